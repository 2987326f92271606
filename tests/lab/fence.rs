//! An old primary that does not get out of the way by itself.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    failover::{STREAMS, trio},
    guard::{Guard, descendant},
    harness::{Host, run, text, until as soon},
    replica::until,
};

/// A process that waits in the kernel, as one does for a dead disk: it takes no signal and joins no freeze, not even SIGKILL.
/// A group of its own in the freezer of cgroup v1 does that to it, and it goes on when that is dropped.
struct Stuck {
    group: PathBuf,
    mounted: Option<PathBuf>,
}

impl Stuck {
    fn new(host: &Host, pid: i32) -> Stuck {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
        let has_freezer = |line: &&str| {
            line.rsplit_once(" - cgroup ")
                .is_some_and(|(_, rest)| rest.ends_with(",freezer") || rest.contains(",freezer,"))
        };
        let place =
            mounts.lines().find(has_freezer).and_then(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mounted = place.is_none().then(|| host.scratch("freezer"));
        if let Some(place) = &mounted {
            run("mount", &["-t", "cgroup", "-o", "freezer", "freezer", &place.display().to_string()]);
        }
        let top = place.or(mounted.clone()).expect("a freezer");
        let group = top.join(format!("test-{}-{pid}", std::process::id()));
        fs::create_dir(&group).expect("mkdir");
        let stuck = Stuck { group, mounted };
        fs::write(stuck.group.join("cgroup.procs"), pid.to_string()).expect("move it there");
        fs::write(stuck.group.join("freezer.state"), "FROZEN").expect("freeze it");
        let state = stuck.group.join("freezer.state");
        soon("it stands still", 5, || fs::read_to_string(&state).is_ok_and(|text| text.trim() == "FROZEN"));
        assert!(fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat").contains(") D "));
        stuck
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        drop(fs::write(self.group.join("freezer.state"), "THAWED"));
        let begun = Instant::now();
        // It may have to end first.
        while fs::remove_dir(&self.group).is_err() && begun.elapsed() < Duration::from_secs(5) {
            for pid in fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default().lines() {
                drop(fs::write(self.group.with_file_name("cgroup.procs"), pid));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(place) = &self.mounted {
            run("umount", &[&place.display().to_string()]);
        }
    }
}

/// A session of the primary that sleeps. Nothing tells it that its server is gone: that holds its end of the connection.
struct Session {
    psql: Child,
    backend: i32,
}

impl Session {
    fn new(host: &Host) -> Session {
        let uri = host.pgbox(&["uri", "primary"]);
        let mut psql = std::process::Command::new("psql");
        psql.args(["-XAtqc", "SELECT pg_sleep(600)", uri.trim()]).stdout(Stdio::null());
        let mut session = Session { psql: psql.spawn().expect("start psql"), backend: 0 };
        soon("it sleeps", 5, || {
            session.backend = descendant(host.init_pid("primary"), "SELECT").unwrap_or(0);
            session.backend > 0
        });
        session
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.psql.kill());
        drop(self.psql.wait());
    }
}

#[test]
fn a_primary_with_a_process_that_nothing_ends_is_replaced_and_may_be_spared() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    for node in ["r1", "r2"] {
        host.pgbox(&["net", "cut", "primary", node]);
    }
    host.sql("primary", &[], "INSERT INTO t VALUES (1)");
    let session = Session::new(&host);
    let stuck = Stuck::new(&host, session.backend);
    // It is looked at as it stands, and goes on if it is needed.
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 1 acknowledged transaction with 1 row"), "{said}");
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM t"), "1");
    let output = host.try_pgbox(&["failover", "r1", "--accept-loss"]);
    let said = text(&output.stderr);
    assert!(output.status.success() && text(&output.stdout).contains("r1 is the primary"), "{output:?}");
    // It has happened, whatever is left of the old one; and nothing of that is at work.
    assert!(said.contains("something is left of `primary`"), "{said}");
    until("r2 streaming", || host.sql("r1", &[], STREAMS));
    assert_eq!(host.json(&["endpoint", "--json"])[0]["leads_to"], serde_json::json!(["r1"]));
    assert_eq!(
        host.sql("r1", &[], "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots"),
        "pgbox_r2"
    );
    let uri = host.pgbox(&["uri", "--rw"]);
    assert_eq!(run("psql", &["-XAtc", "SELECT pg_is_in_recovery()", uri.trim()]), "f");
    // When the disk is back.
    drop(stuck);
    host.pgbox(&["net", "heal", "--all"]);
    host.pgbox(&["rejoin", "primary"]);
    until("primary streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
}

#[test]
fn a_guard_replaces_a_primary_with_a_process_that_nothing_ends() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.pgbox(&["sync", "any 1 (r1, r2)"]);
    let session = Session::new(&host);
    let guard = Guard::start(&host, "primary", &["--detect", "500ms"]);
    host.pgbox(&["drive", "start"]);
    soon("it writes", 10, || host.json(&["drive", "report", "--json"])["acknowledged"].as_u64() > Some(100));
    let _stuck = Stuck::new(&host, session.backend);
    host.pgbox(&["net", "cut", "primary", "host"]);
    guard.sees("failed-over", |event| event["old"] == "primary");
    host.pgbox(&["drive", "stop"]);
    host.pgbox(&["verify"]);
    guard.end();
}

/// A file name in a directory of a container, which may be of another cluster.
#[test]
fn a_file_of_a_timeline_that_nobody_was_on_is_no_timeline() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "other", "postgres:15"]);
    trio(&host);
    let touch = |node: &str, timeline: &str| {
        let wal = format!("volumes/default/{node}/data/pg_wal/{timeline}0000000000000001");
        fs::write(host.root.join(&wal), "").expect("touch");
        wal
    };
    touch("other", "0000000A");
    host.pgbox(&["crash", "primary", "--node"]);
    let said = host.pgbox(&["failover", "r1"]);
    assert!(said.contains("on timeline 2 since"), "{said}");
    host.pgbox(&["rejoin", "primary"]);
    until("primary streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
    // Before anything is put out of the way.
    let file = touch("r2", "FFFFFFFF");
    for command in ["failover", "switchover"] {
        let said = host.fails(1, &[command, "primary"]);
        assert!(said.contains("`r2` has a file of timeline 4294967295"), "{said}");
        assert!(said.contains("hint:  take FFFFFFFF* away"), "{said}");
    }
    assert_eq!(host.sql("r1", &[], "SELECT pg_is_in_recovery()"), "f");
    fs::remove_file(host.root.join(file)).expect("unlink");
    assert!(host.pgbox(&["switchover", "primary"]).contains("on timeline 3 since"));
}

/// It is given the time that the switchover has, and what it did not finish is not taken for its last word.
#[test]
fn a_switchover_goes_by_a_clean_shutdown_only() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "--stop-timeout", "1s"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "primary"]);
    // A server does not write its last checkpoint before all its senders are about to end.
    let begin = |from: &str, to: &str| {
        let address = host.json(&["uri", "--json", "r2"])["host"].as_str().expect("an address").to_owned();
        let sender = format!("walsender replicator {address}(");
        let mut found = None;
        soon("it sends", 10, || {
            found = descendant(host.init_pid(from), &sender);
            found.is_some()
        });
        let sender = Pid::from_raw(found.expect("a sender"));
        kill(sender, Signal::SIGSTOP).expect("stop it");
        let mut command = host.command(&["switchover", to, "--timeout", "30s"]);
        let command = command.stderr(Stdio::piped()).spawn().expect("start pgbox");
        let asked = "received fast shutdown request";
        soon("it is asked", 10, || host.pgbox(&["logs", from]).contains(asked));
        (command, sender)
    };
    let (command, sender) = begin("primary", "r1");
    // Its own second is over then.
    std::thread::sleep(Duration::from_secs(2));
    kill(sender, Signal::SIGCONT).expect("let it go on");
    let output = command.wait_with_output().expect("wait");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let log = host.pgbox(&["logs", "primary"]);
    assert!(!log.contains("immediate shutdown") && log.contains("database system is shut down"), "{log}");
    until("primary streaming, r2 streaming", || host.sql("r1", &[], STREAMS));

    let (command, _) = begin("r1", "primary");
    kill(Pid::from_raw(host.init_pid("r1")), Signal::SIGKILL).expect("kill its pid 1");
    let output = command.wait_with_output().expect("wait");
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("`r1` has ended without a clean shutdown"), "{said}");
    assert!(said.contains("`r1` is the primary again"), "{said}");
    host.sql("r1", &[], "CREATE TABLE t ()");
}
