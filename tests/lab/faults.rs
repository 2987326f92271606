//! Faults on purpose: crash, freeze, and the network between nodes.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Host, run, text, until};

/// Starts nodes that let each other in.
fn nodes(host: &Host, names: &[&str]) {
    for name in names {
        host.pgbox(&["run", name, "postgres:15", "-e", "POSTGRES_HOST_AUTH_METHOD=trust"]);
    }
}

/// Ends a client that a failed test leaves behind.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The state of a process as the kernel has it: `S (sleeping)`, `Z (zombie)`; none when it is gone.
fn kernel_state(pid: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("State:")).map(|s| s.trim().to_owned())
}

/// The node's postmaster on the host, without pgbox: the child of its pid 1 that is called postgres.
fn postmaster(host: &Host, node: &str) -> String {
    let init = host.init_pid(node).to_string();
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).expect("children");
    let is_postgres = |pid: &&str| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "postgres")
    };
    children.split_whitespace().find(is_postgres).expect("a postmaster").to_owned()
}

fn state(host: &Host, node: &str) -> String {
    host.json(&["inspect", "--json", node])[0]["state"].as_str().expect("a state").to_owned()
}

#[test]
fn crash_kills_the_postmaster_and_the_node_ends_or_starts_it_again() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["n"]);
    host.pgbox(&["run", "r", "postgres:15", "--restart", "on-crash"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i");
    let pid = postmaster(&host, "n");
    let foretold = host.pgbox(&["crash", "--dry-run", "n"]);
    assert!(foretold.contains(&format!("pid {pid},")) && kernel_state(&pid).is_some(), "{foretold}");
    let said = host.pgbox(&["crash", "n"]);
    assert!(said.contains(&format!("pid {pid},")) && said.contains("SIGKILL"), "{said}");
    assert!(kernel_state(&pid).is_none_or(|state| state.starts_with(['Z', 'X'])), "{:?}", kernel_state(&pid));
    until("the node has ended", 10, || state(&host, "n") == "crashed");
    let said = host.fails(1, &["crash", "n"]);
    assert!(said.contains("does not run") && said.contains("pgbox start n"), "{said}");
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT i FROM t"), "7");
    assert!(host.pgbox(&["logs", "n"]).contains("automatic recovery in progress"));
    // A node that starts it again keeps its pid 1.
    let (init, pid) = (host.init_pid("r"), postmaster(&host, "r"));
    host.pgbox(&["crash", "--signal", "segv", "r"]);
    until("it answers again", 20, || host.try_pgbox(&["wait", "r", "--timeout", "1s"]).status.success());
    assert_eq!(host.init_pid("r"), init);
    assert_ne!(postmaster(&host, "r"), pid);
}

#[test]
fn a_signal_that_is_not_deadly_is_only_sent() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["n"]);
    let pid = postmaster(&host, "n");
    assert!(host.pgbox(&["crash", "--signal", "19", "n"]).contains("sent SIGSTOP"));
    until("it is stopped", 5, || kernel_state(&pid).is_some_and(|state| state.starts_with('T')));
    // It accepts connections and says nothing; `wait` keeps its time all the same.
    let begun = Instant::now();
    let said = host.fails(1, &["wait", "n", "--timeout", "500ms"]);
    assert!(said.contains("gave no answer") && begun.elapsed() < Duration::from_secs(3), "{said}");
    host.pgbox(&["crash", "--signal", "CONT", "n"]);
    host.pgbox(&["wait", "n", "--timeout", "5s"]);
    assert_eq!(postmaster(&host, "n"), pid);
}

#[test]
fn crash_of_the_node_leaves_no_process() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["n"]);
    let (init, pid) = (host.init_pid("n").to_string(), postmaster(&host, "n"));
    let said = host.pgbox(&["crash", "--node", "n"]);
    assert!(said.contains(&format!("pid {init}")), "{said}");
    for pid in [&init, &pid] {
        assert!(kernel_state(pid).is_none_or(|state| state.starts_with(['Z', 'X'])), "{pid}");
    }
    assert_eq!(state(&host, "n"), "killed");
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

/// What the kernel says of the node's cgroup, on v2 and on v1.
fn frozen_by_the_kernel(host: &Host, node: &str) -> bool {
    let groups = host.json(&["inspect", "--json", node])[0]["cgroup"].clone();
    let has = |dir: &str, file: &str, line: &str| {
        fs::read_to_string(format!("{dir}/{file}")).is_ok_and(|text| text.lines().any(|l| l == line))
    };
    groups
        .as_array()
        .expect("cgroups")
        .iter()
        .filter_map(|dir| dir.as_str())
        .any(|dir| has(dir, "cgroup.events", "frozen 1") || has(dir, "freezer.state", "FROZEN"))
}

#[test]
fn a_frozen_node_stands_still_and_nothing_hangs_on_it() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["n"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["freeze", "n"]);
    assert!(frozen_by_the_kernel(&host, "n"));
    assert_eq!(state(&host, "n"), "frozen");
    assert_eq!(host.json(&["ps", "--json"])[0]["state"], "frozen");
    let begun = Instant::now();
    for command in [
        &["exec", "n", "--", "true"][..],
        &["psql", "n", "-c", "SELECT 1"],
        &["restart", "n"],
        &["crash", "n"],
    ] {
        // As with docker: 125 is pgbox's own failure, and not the command's.
        let code = if command[0] == "exec" { 125 } else { 1 };
        let said = host.fails(code, command);
        assert!(said.contains("is frozen") && said.contains("pgbox thaw n"), "{command:?}: {said}");
    }
    let said = host.fails(1, &["wait", "n", "--timeout", "300ms"]);
    assert!(said.contains("it is frozen") && said.contains("pgbox thaw n"), "{said}");
    host.fails(1, &["wait", "n", "--for", "stopped", "--timeout", "300ms"]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let output = host.try_pgbox(&["freeze", "n"]);
    assert!(output.status.success() && text(&output.stderr).contains("frozen already"));
    host.pgbox(&["thaw", "n"]);
    assert!(!frozen_by_the_kernel(&host, "n"));
    assert_eq!(
        (state(&host, "n").as_str(), host.sql("n", &[], "SELECT i FROM t")),
        ("running", "7".to_owned())
    );
    // All at once, and nothing where there is nothing to do.
    nodes(&host, &["m"]);
    host.pgbox(&["freeze", "n", "m"]);
    assert_eq!(host.pgbox(&["thaw", "--all"]), "m goes on\nn goes on\n");
    let output = host.try_pgbox(&["thaw", "--all"]);
    assert!(output.status.success() && text(&output.stderr).contains("is frozen"), "{output:?}");
}

#[test]
fn a_frozen_node_can_be_stopped_killed_and_removed() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["n"]);
    host.pgbox(&["freeze", "n"]);
    let begun = Instant::now();
    let output = host.try_pgbox(&["stop", "n"]);
    assert!(
        output.status.success() && text(&output.stderr).contains("was frozen"),
        "{}",
        text(&output.stderr)
    );
    assert!(host.pgbox(&["logs", "n"]).contains("received fast shutdown request"));
    assert!(host.fails(1, &["freeze", "n"]).contains("does not run"));
    host.pgbox(&["start", "n"]);
    host.pgbox(&["freeze", "n"]);
    host.pgbox(&["crash", "--node", "n"]);
    assert_eq!(state(&host, "n"), "killed");
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
    host.pgbox(&["freeze", "n"]);
    host.pgbox(&["rm", "--force", "n"]);
    host.is_clean();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// Whether a node's psql reaches the server of another one.
fn reaches(host: &Host, from: &str, to: &str) -> bool {
    let ask = ["exec", from, "--", "env", "PGCONNECT_TIMEOUT=2", "psql", "-XAtq", "-U", "postgres", "-h", to];
    let output = host.try_pgbox(&[&ask[..], &["-c", "SELECT 40 + 2"]].concat());
    output.status.success() && text(&output.stdout).trim() == "42"
}

/// The rules about bridges, as nft(8) sees them.
fn rules() -> String {
    run("nft", &["list", "ruleset", "bridge"])
}

fn faults(host: &Host) -> Vec<String> {
    let rows = host.json(&["net", "ls", "--json"]);
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let row = |row: &serde_json::Value| {
        let (from, to) = (word(&row["from"]), word(&row["to"]));
        format!("{from}>{to} {} {}", word(&row["fault"]), word(&row["value"])).trim_end().to_owned()
    };
    rows.as_array().expect("rows").iter().map(row).collect()
}

#[test]
fn a_cut_parts_two_nodes_and_nobody_else() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["a", "b", "c"]);
    assert!(reaches(&host, "a", "b") && reaches(&host, "b", "a"));
    // A session that stands is hit like a new one.
    let asking = "for i in $(seq 60); do echo 'SELECT 1;'; sleep 0.1; done | \
                  PGOPTIONS='-c application_name=standing' exec psql -XAtq -U postgres -h b";
    let session =
        host.command(&["exec", "-i", "a", "--", "bash", "-c", asking]).stdout(Stdio::piped()).spawn();
    let mut session = Client(session.unwrap());
    let answers = Arc::new(AtomicUsize::new(0));
    let (counted, output) = (answers.clone(), session.0.stdout.take().unwrap());
    thread::spawn(move || {
        BufReader::new(output).lines().for_each(|_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
    });
    let answers = || answers.load(Ordering::Relaxed);
    until("the session answers", 10, || answers() > 2);
    let said = host.pgbox(&["net", "cut", "a", "b"]);
    assert_eq!(said, "a > b: cut\nb > a: cut\n");
    thread::sleep(Duration::from_millis(300));
    let before = answers();
    thread::sleep(Duration::from_millis(800));
    assert_eq!(answers(), before, "an established session goes on");
    assert_eq!(faults(&host), ["a>b cut", "b>a cut"]);
    assert_eq!(rules().matches(" drop comment ").count(), 2, "{}", rules());
    assert!(!reaches(&host, "a", "b") && !reaches(&host, "b", "a"));
    assert!(reaches(&host, "a", "c") && reaches(&host, "c", "b"));
    assert_eq!((host.sql("a", &[], "SELECT 1"), host.sql("b", &[], "SELECT 1")), ("1".into(), "1".into()));
    // The same again, in other words, changes nothing.
    let once = rules();
    host.pgbox(&["net", "cut", "b", "a"]);
    assert_eq!(rules(), once);
    assert_eq!(host.pgbox(&["net", "heal", "b", "a"]).lines().count(), 2);
    assert_eq!(rules(), "");
    until("the session comes back", 10, || answers() > before);
    assert!(reaches(&host, "a", "b") && reaches(&host, "b", "a"));
}

#[test]
fn one_way_loses_only_what_a_sends() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["a", "b"]);
    host.pgbox(&["net", "cut", "a", "b", "--one-way"]);
    assert_eq!(faults(&host), ["a>b cut"]);
    let address = |i: usize| host.json(&["ps", "--json"])[i]["address"].as_str().unwrap().to_owned();
    let (a, b) = (address(0), address(1));
    let rules = rules();
    assert!(rules.contains(&format!("ip saddr {a} ip daddr {b} drop")), "{rules}");
    assert!(!rules.contains(&format!("ip saddr {b}")), "{rules}");
    // What b sends arrives: a sees the packets that open a connection, and its answers are lost.
    let counter = "ip netns list | cut -d' ' -f1 | grep '[.]a$'";
    let netns = run("sh", &["-c", counter]);
    let received = || {
        let stat = run("ip", &["netns", "exec", &netns, "nstat", "-az", "TcpPassiveOpens", "TcpInSegs"]);
        let line = stat.lines().find(|l| l.starts_with("TcpInSegs")).expect("a counter").to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = received();
    assert!(!reaches(&host, "b", "a"));
    assert!(received() > before, "b's packets are lost, too");
    host.pgbox(&["net", "heal", "--all"]);
    assert!(reaches(&host, "b", "a"));
}

#[test]
fn faults_combine_and_heal_one_by_one() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["a", "b", "c"]);
    host.pgbox(&["net", "cut", "a", "b"]);
    host.pgbox(&["net", "loss", "a", "c", "10%"]);
    host.pgbox(&["net", "rate", "--one-way", "c", "b", "1mbit"]);
    let three = ["a>b cut", "a>c loss 10%", "b>a cut", "c>a loss 10%", "c>b rate 1mbit"];
    assert_eq!(faults(&host), three);
    let listed = rules();
    assert!(listed.contains("numgen random mod 1000000 < 100000 drop"), "{listed}");
    assert!(listed.contains("limit rate over 125000 bytes/second"), "{listed}");
    // One of a kind in each direction.
    host.pgbox(&["net", "loss", "a", "c", "0.5%", "--one-way"]);
    assert_eq!(faults(&host)[1], "a>c loss 0.5%");
    assert_eq!(faults(&host).len(), 5);
    host.pgbox(&["net", "heal", "a", "b"]);
    assert_eq!(faults(&host), ["a>c loss 0.5%", "c>a loss 10%", "c>b rate 1mbit"]);
    let output = host.try_pgbox(&["net", "heal", "a", "b"]);
    assert!(output.status.success() && text(&output.stderr).contains("no fault between a and b"));
    // They are the lab's: a node that starts again finds them, the next one of its name does not.
    host.pgbox(&["stop", "c"]);
    host.pgbox(&["start", "c"]);
    assert_eq!(faults(&host).len(), 3);
    host.pgbox(&["rm", "-f", "c"]);
    assert_eq!((faults(&host), rules()), (Vec::new(), String::new()));
}

#[test]
fn all_loss_is_a_cut_and_half_of_it_is_not() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["a", "b"]);
    host.pgbox(&["net", "loss", "a", "b", "100%"]);
    assert!(!reaches(&host, "a", "b"));
    host.pgbox(&["net", "loss", "a", "b", "30%"]);
    until("with patience it passes", 60, || reaches(&host, "a", "b"));
    assert_eq!(faults(&host), ["a>b loss 30%", "b>a loss 30%"]);
}

#[test]
fn a_rate_slows_one_pair_down() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["a", "b", "c"]);
    let million = "SELECT repeat('x', 1000000) FROM generate_series(1, 3)";
    let fetch = |from: &str| {
        let begun = Instant::now();
        let ask = ["exec", from, "--", "psql", "-XAtq", "-U", "postgres", "-h", "b", "-c", million];
        assert_eq!(host.pgbox(&ask).len(), 3_000_003);
        begun.elapsed()
    };
    assert!(fetch("a") < Duration::from_secs(2));
    host.pgbox(&["net", "rate", "a", "b", "8mbit"]);
    // A megabyte a second, and one for the burst.
    let slow = fetch("a");
    assert!(slow > Duration::from_millis(1700) && slow < Duration::from_secs(60), "{slow:?}");
    assert!(fetch("c") < Duration::from_secs(2));
}

#[test]
fn the_host_can_be_cut_off_too() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["a", "b"]);
    host.pgbox(&["net", "cut", "a", "host"]);
    assert_eq!(faults(&host), ["a>(host) cut", "(host)>a cut"]);
    let uri = host.pgbox(&["uri", "a"]);
    let ask = || {
        let mut psql = Command::new("psql");
        psql.env("PGCONNECT_TIMEOUT", "2").args(["-XAtqc", "SELECT 1", uri.trim()]);
        psql.output().unwrap().status.success()
    };
    assert!(!ask());
    assert!(reaches(&host, "b", "a"));
    assert_eq!(host.sql("b", &[], "SELECT 1"), "1");
    host.pgbox(&["net", "heal", "host", "a"]);
    assert!(ask());
}

#[test]
fn wrong_words_change_nothing() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["a", "b"]);
    assert!(host.fails(1, &["net", "cut", "a", "nobody"]).contains("no node `nobody`"));
    assert!(host.fails(2, &["net", "cut", "a", "a"]).contains("the same"));
    host.fails(2, &["net", "cut", "a"]);
    host.fails(2, &["net", "heal", "a"]);
    host.fails(2, &["net", "heal"]);
    host.fails(2, &["net", "heal", "--all", "a", "b"]);
    assert!(host.fails(2, &["net", "loss", "a", "b", "0%"]).contains("`0%`"));
    assert!(host.fails(2, &["net", "rate", "a", "b", "1m"]).contains("`1m`"));
    assert!(host.fails(2, &["crash", "a", "--signal", "NOSUCH"]).contains("`NOSUCH`"));
    host.pgbox(&["stop", "b"]);
    let said = host.fails(1, &["net", "cut", "a", "b"]);
    assert!(said.contains("`b` does not run") && said.contains("pgbox start b"), "{said}");
    assert_eq!((host.json(&["net", "ls", "--json"]), rules()), (serde_json::json!([]), String::new()));
    assert_eq!(host.pgbox(&["net", "ls"]), "FROM  TO  FAULT  VALUE\n");
}

/// Two labs have nodes of the same names, and their faults are two.
#[test]
fn faults_are_of_one_lab() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["a", "b"]);
    for name in ["a", "b"] {
        let trust = "POSTGRES_HOST_AUTH_METHOD=trust";
        host.pgbox(&["--lab", "other", "run", name, "postgres:15", "-e", trust]);
    }
    host.pgbox(&["--lab", "other", "net", "cut", "a", "b"]);
    assert!(faults(&host).is_empty() && reaches(&host, "a", "b"));
    host.pgbox(&["net", "heal", "--all"]);
    assert_eq!(host.json(&["--lab", "other", "net", "ls", "--json"]).as_array().unwrap().len(), 2);
}

#[test]
fn a_delay_holds_back_one_pair_or_names_what_the_kernel_lacks() {
    let Some(host) = Host::new() else { return };
    nodes(&host, &["a", "b", "c"]);
    let probe =
        Command::new("unshare").args(["-n", "tc", "qdisc", "add", "dev", "lo", "root", "netem"]).output();
    if !probe.expect("unshare, tc").status.success() {
        let said = host.fails(1, &["net", "delay", "a", "b", "50ms"]);
        assert!(said.contains("`netem`") && said.contains("CONFIG_NET_SCH_NETEM"), "{said}");
        assert_eq!((faults(&host), rules()), (Vec::new(), String::new()));
        assert!(!run("tc", &["qdisc"]).contains("htb"));
        return;
    }
    let connects = |from: &str, to: &str| {
        let script = format!(
            "best=9999; for i in 1 2 3; do s=$(date +%s%N); : </dev/tcp/{to}/5432; e=$(date +%s%N); \
             t=$(( (e - s) / 1000000 )); [ $t -ge $best ] || best=$t; done; echo $best"
        );
        host.pgbox(&["exec", from, "--", "bash", "-c", &script]).trim().parse::<u64>().expect("milliseconds")
    };
    host.pgbox(&["net", "delay", "a", "b", "150ms"]);
    assert_eq!(faults(&host), ["a>b delay 150ms", "b>a delay 150ms"]);
    // There and back.
    let late = |ms: u64| (300..900).contains(&ms);
    assert!(late(connects("a", "b")) && late(connects("b", "a")));
    assert!(connects("a", "c") < 150 && connects("c", "b") < 150);
    let tc = run("tc", &["qdisc"]);
    assert_eq!(tc.matches("delay 150ms").count(), 2, "{tc}");
    // Another one takes its place, and a node that starts again has it still.
    host.pgbox(&["net", "delay", "a", "b", "200ms"]);
    host.pgbox(&["stop", "b"]);
    host.pgbox(&["start", "b"]);
    let again = connects("a", "b");
    assert!((400..1200).contains(&again), "{again}");
    host.pgbox(&["net", "heal", "a", "b"]);
    let tc = run("tc", &["qdisc"]);
    assert!(connects("a", "b") < 150 && !tc.contains("netem") && !tc.contains("htb"), "{tc}");
    assert!(host.fails(1, &["net", "delay", "a", "host", "50ms"]).contains("two nodes"));
}
