//! The life of a node: run, look, stop, start, crash, remove.

use std::{
    fs,
    process::{Child, Stdio},
    time::Instant,
};

use crate::harness::{Host, run, text, until};

const MEMORY: &[&str] = &["--memory", "512m"];

#[test]
fn run_answers_and_rm_leaves_only_the_volume() {
    let Some(host) = Host::new() else { return };
    let said =
        host.pgbox(&[&["run", "primary", "postgres:15", "-p", "127.0.0.1:5433:5432"], MEMORY].concat());
    assert!(said.contains("primary is ready"), "{said}");
    assert_eq!(host.sql("primary", &[], "SELECT 40 + 2"), "42");
    assert_eq!(host.sql("primary", &["--published"], "SELECT 40 + 2"), "42");
    assert_eq!(host.pgbox(&["psql", "primary", "-Atc", "SELECT 'in' || 'side'"]).trim(), "inside");
    let ps = host.json(&["ps", "--json"]);
    assert_eq!((ps[0]["node"].as_str(), ps[0]["state"].as_str()), (Some("primary"), Some("running")));
    assert!(host.fails(1, &["rm", "primary"]).contains("pgbox rm --force primary"));
    host.pgbox(&["rm", "--force", "primary"]);
    host.is_clean();
    assert!(host.root.join("volumes/default/primary/data/PG_VERSION").exists());
}

#[test]
fn namespaces_are_its_own() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let pid = host.init_pid("n");
    for kind in ["net", "pid", "mnt", "uts", "ipc", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace");
        assert_ne!(of(&pid.to_string()), of("thread-self"), "{kind}");
    }
    assert_eq!(host.pgbox(&["exec", "n", "--", "hostname"]).trim(), "n");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
    let at = |place: &str| {
        mounts.lines().find(|l| l.split(' ').nth(4) == Some(place)).unwrap_or_else(|| panic!("no {place}"))
    };
    assert!(at("/").contains("- overlay"));
    assert!(at("/sys").split(' ').nth(5).unwrap().starts_with("ro"));
    assert!(at("/proc/sys").split(' ').nth(5).unwrap().starts_with("ro"));
    assert!(at("/dev/shm").contains("size=262144k"));
    let devices = host.pgbox(&["exec", "n", "--", "ls", "/dev"]);
    let devices: Vec<&str> = devices.split_whitespace().collect();
    assert_eq!(
        devices,
        [
            "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
            "urandom", "zero"
        ]
    );
}

#[test]
fn stop_is_fast_with_idle_clients_and_start_keeps_address_and_data() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let address = host.json(&["inspect", "--json", "n"])[0]["network"]["address"].clone();
    host.sql("n", &[], "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
    let uri = host.pgbox(&["uri", "n"]);
    let mut idle = std::process::Command::new("psql")
        .arg(uri.trim())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the idle client is there", 10, || {
        host.pgbox(&[
            "psql",
            "n",
            "-Atc",
            "SELECT count(*) FROM pg_stat_activity WHERE client_addr IS NOT NULL",
        ])
        .trim()
            == "1"
    });
    let begun = Instant::now();
    host.pgbox(&["stop", "n"]);
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    idle.kill().ok();
    idle.wait().ok();
    let log = host.pgbox(&["logs", "n"]);
    assert!(log.contains("received fast shutdown request"), "{log}");
    host.is_clean();
    assert_eq!(host.json(&["ps", "--json"])[0]["state"], "stopped");
    assert!(host.fails(125, &["exec", "n", "--", "true"]).contains("pgbox start n"));
    host.pgbox(&["start", "n"]);
    assert_eq!(host.json(&["inspect", "--json", "n"])[0]["network"]["address"], address);
    assert_eq!(host.sql("n", &[], "SELECT count(*) FROM t"), "1000");
    let log = host.pgbox(&["logs", "n"]);
    assert!(!log.contains("automatic recovery in progress"), "the shutdown was not clean: {log}");
}

/// A backend that does not move: a fast shutdown waits for it.
fn stuck_backend(host: &Host) -> (String, Child) {
    let uri = host.pgbox(&["uri", "n"]);
    let mut client = std::process::Command::new("psql");
    client.args(["-c", "SELECT pg_sleep(600)", uri.trim()]).stdout(Stdio::null()).stderr(Stdio::null());
    let client = client.spawn().unwrap();
    let find = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%sleep(600)%' AND pid <> pg_backend_pid()";
    let inside = || host.pgbox(&["psql", "n", "-Atc", find]).trim().to_owned();
    until("it sleeps", 10, || !inside().is_empty());
    let inside = inside();
    let all = run("pgrep", &["--ns", &host.init_pid("n").to_string(), "--nslist", "pid", "postgres"]);
    let is_it = |pid: &&str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|l| l.starts_with("NSpid:") && l.split_whitespace().last() == Some(&inside))
    };
    let pid = all.lines().find(is_it).expect("the backend").to_owned();
    run("kill", &["-STOP", &pid]);
    (pid, client)
}

#[test]
fn the_time_that_stop_is_given_counts_and_not_the_nodes_own() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "--stop-timeout", "1s"]);
    let (backend, mut client) = stuck_backend(&host);
    let longer = host.command(&["stop", "-t", "60", "n"]).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(4));
    run("kill", &["-CONT", &backend]);
    let longer = longer.wait_with_output().unwrap();
    client.wait().unwrap();
    assert!(longer.status.success() && longer.stderr.is_empty(), "{}", text(&longer.stderr));
    host.pgbox(&["start", "n"]);
    let log = host.pgbox(&["logs", "n"]);
    assert!(!log.contains("becomes an immediate one") && !log.contains("automatic recovery"), "{log}");
    host.pgbox(&["rm", "-f", "n"]);

    host.pgbox(&["run", "n", "postgres:15", "--stop-timeout", "60s"]);
    let (_, mut client) = stuck_backend(&host);
    let begun = Instant::now();
    let shorter = host.try_pgbox(&["stop", "-t", "1", "n"]);
    client.wait().unwrap();
    assert!(text(&shorter.stderr).contains("did not stop in 1s"), "{}", text(&shorter.stderr));
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn restart_keeps_pid_1_and_changes_the_postmaster() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let (init, started) = (host.init_pid("n"), host.sql("n", &[], "SELECT pg_postmaster_start_time()"));
    host.pgbox(&["restart", "n"]);
    assert_eq!(host.init_pid("n"), init);
    assert_ne!(host.sql("n", &[], "SELECT pg_postmaster_start_time()"), started);
}

#[test]
fn after_kill_9_of_pid_1_the_node_starts_again() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 1 AS i");
    let pid = host.init_pid("n");
    run("kill", &["-9", &pid.to_string()]);
    until("pid 1 is gone", 10, || host.json(&["ps", "--json"])[0]["state"] == "killed");
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT count(*) FROM t"), "1");
}

#[test]
fn a_second_node_on_the_same_data_is_refused() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "a", "postgres:15", "-v", "shared:/var/lib/postgresql/data"]);
    let said = host.fails(1, &["run", "b", "postgres:15", "-v", "shared:/var/lib/postgresql/data"]);
    assert!(said.contains("node `a`"), "{said}");
    assert_eq!(host.sql("a", &[], "SELECT 1"), "1");
    assert_eq!(host.json(&["ps", "--json"]).as_array().unwrap().len(), 1);
}

#[test]
fn data_outlives_the_node_and_its_password_is_known_again() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["rm", "-f", "n"]);
    host.pgbox(&["run", "n", "postgres:15"]);
    assert_eq!(host.sql("n", &[], "SELECT i FROM t"), "7");
}

#[test]
fn logs_follow_until_the_node_ends() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let follower = host.command(&["logs", "-f", "n"]).stdout(Stdio::piped()).spawn().unwrap();
    host.sql("n", &[], "DO $$ BEGIN RAISE LOG 'a line of mine'; END $$");
    host.pgbox(&["stop", "n"]);
    let said = text(&follower.wait_with_output().unwrap().stdout);
    assert!(said.contains("a line of mine") && said.contains("database system is shut down"), "{said}");
}

#[test]
fn wait_returns_when_it_is_ready_and_when_it_has_stopped() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["wait", "n"]);
    assert!(host.fails(1, &["wait", "n", "--for", "stopped", "--timeout", "100ms"]).contains("it runs"));
    host.pgbox(&["stop", "n"]);
    host.pgbox(&["wait", "n", "--for", "stopped"]);
    assert!(host.fails(1, &["wait", "n"]).contains("does not run"));
}

#[test]
fn a_start_that_fails_takes_back_its_steps_and_keeps_the_node() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["stop", "n"]);
    // An inner step that must fail at once, with the lab's lock still held by the command.
    let scratch = host.root.join("labs/default/nodes/n/work/work");
    fs::remove_dir_all(&scratch).unwrap();
    fs::write(&scratch, "not a directory").unwrap();
    let said = host.fails(1, &["start", "n"]);
    assert!(said.contains("mount the overlay") && said.contains("`n` is stopped"), "{said}");
    host.is_clean();
    fs::remove_file(&scratch).unwrap();
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

#[test]
fn restart_of_a_stopped_node_starts_it_and_start_of_a_running_one_does_nothing() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let pid = host.init_pid("n");
    let output = host.try_pgbox(&["start", "n"]);
    assert!(output.status.success() && text(&output.stderr).contains("runs already"));
    assert_eq!(host.init_pid("n"), pid);
    host.pgbox(&["stop", "n"]);
    let output = host.try_pgbox(&["stop", "n"]);
    assert!(output.status.success() && text(&output.stderr).contains("does not run"));
    host.pgbox(&["restart", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

#[test]
fn one_node_that_fails_does_not_keep_the_others_from_it() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "a", "postgres:15"]);
    host.pgbox(&["run", "b", "postgres:15"]);
    host.pgbox(&["stop", "b"]);
    let said = host.fails(1, &["rm", "a", "b"]);
    assert!(said.contains("node `a` runs"), "{said}");
    assert_eq!(host.pgbox(&["ps", "-q"]), "a\n");
}

#[test]
fn a_name_that_is_no_nodes_is_seen_before_anything_is_done() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "a", "postgres:15"]);
    let pid = host.init_pid("a");
    let started = || host.sql("a", &[], "SELECT pg_postmaster_start_time(), current_setting('work_mem')");
    let before = started();
    for words in
        [&["stop", "a", "nobody"][..], &["restart", "a", "nobody"], &["set", "a", "nobody", "work_mem=9MB"]]
    {
        let said = host.fails(1, words);
        assert!(said.contains("no node `nobody` in lab `default`") && said.contains("has a"), "{said}");
        assert_eq!((host.init_pid("a"), started()), (pid, before.clone()), "{words:?}");
    }
    host.pgbox(&["stop", "a"]);
    for words in [["start", "a", "nobody"], ["rm", "a", "nobody"]] {
        host.fails(1, &words);
        assert_eq!(host.json(&["ps", "--json"])[0]["state"], "stopped", "{words:?}");
    }
    assert!(host.fails(1, &["rm", "-f", "-v", "a", "nobody"]).contains("no node `nobody`"));
    assert_eq!(host.pgbox(&["ps", "-q"]), "a\n");
    // One of which nothing but the name is left is somebody, where whatever is left is to go.
    host.pgbox(&["run", "b", "postgres:15"]);
    std::fs::remove_dir_all(host.root.join("labs/default/nodes/b")).unwrap();
    host.pgbox(&["rm", "-f", "-v", "b", "a"]);
    host.is_clean();
}

#[test]
fn modes_of_stop() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let uri = host.pgbox(&["uri", "n"]);
    let busy = || {
        let mut client = std::process::Command::new("psql");
        let client = client.args(["-Xqc", "SELECT pg_sleep(100)", uri.trim()]);
        let client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
        until("it is busy", 10, || host.pgbox(&["psql", "n", "-Atc", count]).trim() == "1");
        client
    };
    // A smart shutdown waits for the client, but no longer than it may.
    let mut client = busy();
    let begun = Instant::now();
    let output = host.try_pgbox(&["stop", "--mode", "smart", "-t", "1", "n"]);
    assert!(output.status.success() && text(&output.stderr).contains("did not stop in 1s"));
    assert!((1..8).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    client.wait().unwrap();
    assert!(host.pgbox(&["logs", "n"]).contains("received smart shutdown request"));
    host.pgbox(&["start", "n"]);
    let mut client = busy();
    host.pgbox(&["stop", "--mode", "immediate", "n"]);
    client.wait().unwrap();
    assert!(host.pgbox(&["logs", "-n", "5", "n"]).contains("received immediate shutdown request"));
    host.pgbox(&["start", "n"]);
    assert!(host.pgbox(&["logs", "n"]).contains("automatic recovery in progress"));
    // A restart is always a fast one.
    assert!(host.fails(2, &["restart", "--mode", "immediate", "n"]).contains("--mode"));
}

#[test]
fn logs_from_the_end_and_of_a_stopped_node() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.sql(
        "n",
        &[],
        "DO $$ BEGIN FOR i IN 1..400 LOOP RAISE LOG 'line % %', i, repeat('x', 100); END LOOP; END $$",
    );
    let lines = |n: &str| host.pgbox(&["logs", "-n", n, "n"]);
    assert_eq!(lines("0"), "");
    assert_eq!(lines("7").lines().count(), 7);
    // However long: no fixed buffer stands between.
    assert_eq!(lines("600").lines().count(), 600);
    host.pgbox(&["stop", "n"]);
    assert!(lines("1").contains("database system is shut down"));
    assert!(host.pgbox(&["logs", "-f", "-n", "1", "n"]).contains("database system is shut down"));
}

/// Nothing but the result on standard output, the same names in the table and in JSON, colours nowhere.
#[test]
fn reading_commands_have_tables_and_json() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-p", "127.0.0.1:5433:5432"]);
    for command in [&["ps"][..], &["stats"], &["image", "ls"]] {
        let table = host.pgbox(command);
        let header: Vec<String> = table.lines().next().unwrap().split("  ").map(str::to_owned).collect();
        let rows = host.json(&[command, &["--json"]].concat());
        assert_eq!(rows.as_array().unwrap().len(), table.lines().count() - 1, "{table}");
        let names = rows[0].as_object().unwrap();
        let first = header[0].to_lowercase();
        assert!(names.keys().any(|name| name.starts_with(&first)), "{first} is not in {names:?}");
        assert!(!table.contains('\x1b'), "{table:?}");
    }
    for command in [&["inspect", "n"][..], &["image", "inspect", "postgres:15"], &["uri", "n"]] {
        let value = host.json(&[command, &["--json"]].concat());
        let object = if value.is_array() { &value[0] } else { &value };
        let text = host.pgbox(command);
        if command[0] != "uri" {
            assert!(
                object.as_object().unwrap().keys().all(|key| text.contains(&format!("{key}:"))),
                "{text}"
            );
        }
    }
    assert!(host.pgbox(&["uri", "--published", "n"]).contains("@127.0.0.1:5433/"));
    assert_eq!(host.sql("n", &["--published"], "SELECT 1"), "1");
}

#[test]
fn hints_work_as_they_are_printed() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["--lab", "other", "run", "n", "postgres:15"]);
    host.pgbox(&["--lab", "other", "stop", "n"]);
    let said = host.fails(125, &["--lab", "other", "exec", "n", "--", "true"]);
    let hint = said.lines().find_map(|l| l.trim().strip_prefix("hint:")).expect("a hint");
    let command: Vec<&str> = hint.split("pgbox ").nth(1).unwrap().split_whitespace().collect();
    host.pgbox(&command);
    let root = host.root.to_str().unwrap().to_owned();
    let output = host.command(&["--root", &root, "rm", "n"]).env_remove("PGBOX_ROOT").output().unwrap();
    assert!(text(&output.stderr).contains(&format!("pgbox --root {root} ps")), "{}", text(&output.stderr));
    let said = host.pgbox(&["--lab", "third", "run", "n", "postgres:15"]);
    assert!(said.contains("pgbox --lab third psql n"), "{said}");
}

#[test]
fn what_is_said_is_as_it_was_given() {
    let Some(host) = Host::new() else { return };
    let all = host.pgbox(&["run", "n", "postgres:15", "-p", "5433:5432"]);
    assert!(all.contains("published  127.0.0.1:5433 and every other address"), "{all}");
    let one = host.pgbox(&["run", "m", "postgres:15", "-p", "localhost:5434:5432", "--stop-timeout", "30s"]);
    assert!(one.contains("published  127.0.0.1:5434\n"), "{one}");
    let said = host.fails(1, &["run", "n", "postgres:15"]);
    assert!(said.contains("by a node that runs") && said.contains("pgbox rm --force n"), "{said}");
    let seen = host.json(&["inspect", "--json", "n"])[0].clone();
    assert!(seen["created"].is_u64() && seen["created_at"].as_str().unwrap().ends_with('Z'), "{seen}");
    host.pgbox(&["stop", "-t", "5s", "n"]);
    host.pgbox(&["stop", "-t", "5", "m"]);
    assert!(host.fails(1, &["run", "n", "postgres:15"]).contains("pgbox start n"));
    // A path of the host may be relative to here.
    let dir = host.scratch("here");
    fs::create_dir(dir.join("files")).unwrap();
    let mut command = host.command(&["run", "--rm", "t", "tiny", "-v", "./files:/x", "--", "touch", "/x/y"]);
    assert!(command.current_dir(&dir).status().unwrap().success());
    assert!(dir.join("files/y").exists());
}

#[test]
fn a_lab_that_is_not_there_is_an_error_and_an_empty_default_is_none() {
    let Some(host) = Host::new() else { return };
    for empty in [&["ps"][..], &["status"], &["lag"], &["--lab", "nosuch", "ps", "--all-labs"], &["down"]] {
        let output = host.try_pgbox(empty);
        assert!(output.status.success(), "{empty:?}: {output:?}");
    }
    let refused = |code: i32, command: &[&str], words: &[&str]| {
        let said = host.fails(code, &[&["--lab", "nosuch"], command].concat());
        words.iter().for_each(|word| assert!(said.contains(word), "{command:?}: {said}"));
    };
    refused(1, &["ps"], &["no lab `nosuch`, nor any other", "pgbox --lab nosuch run primary"]);
    for lab in ["one", "two"] {
        host.pgbox(&["--lab", lab, "run", "n", "postgres:15"]);
    }
    let words = ["error: no lab `nosuch`\n", "there is one, two"];
    for command in [
        &["ps"][..],
        &["status", "--json"],
        &["lag"],
        &["slots"],
        &["stats"],
        &["endpoint"],
        &["env"],
        &["psql"],
        &["uri", "--rw"],
        &["uri", "n"],
        &["inspect", "n"],
        &["stop", "--all"],
        &["set", "--all", "work_mem=8MB"],
        &["sync", "off"],
        &["replica", "r", "--of", "n"],
        &["drive", "start"],
        &["net", "ls"],
    ] {
        refused(1, command, &words);
    }
    refused(1, &["down"], &words);
    refused(125, &["with", "--", "true"], &words);
    refused(125, &["exec", "n", "--", "true"], &words);
    host.pgbox(&["--lab", "one", "rm", "-f", "n"]);
    let said = host.fails(1, &["--lab", "one", "ps"]);
    assert!(said.contains("lab `one` has no nodes any more") && said.contains("in the volumes n"), "{said}");
}

#[test]
fn what_becomes_of_a_node_is_said_in_a_line() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "--memory", "512m"]);
    let address = host.json(&["uri", "--json", "n"])["host"].as_str().unwrap().to_owned();
    assert_eq!(
        host.pgbox(&["limit", "n", "--memory", "1g", "--cpus", "0.5"]),
        "n: memory 512M -> 1G, cpus max -> 0.5\n"
    );
    assert_eq!(host.pgbox(&["limit", "n", "--memory", "1g"]), "n: its limits are as they were\n");
    assert_eq!(host.pgbox(&["restart", "n"]), format!("n is ready at {address}:5432\n"));
    assert_eq!(host.pgbox(&["stop", "n"]), "n is stopped\n");
    assert_eq!(host.pgbox(&["limit", "n", "--cpus", "max"]), "n: cpus 0.5 -> max, from its next start on\n");
    let kept = host.pgbox(&["--root", host.root.to_str().unwrap(), "rm", "n"]);
    assert_eq!(kept, "n is removed; its data are kept: `pgbox volume rm n` removes them\n");
    host.pgbox(&["run", "n", "postgres:15"]);
    assert_eq!(host.pgbox(&["rm", "-f", "-v", "n"]), "n is removed, with all data\n");
    host.pgbox(&["run", "-d", "t", "tiny", "--", "sleep", "100"]);
    assert_eq!(host.pgbox(&["rm", "-f", "t"]), "t is removed\n");
}
