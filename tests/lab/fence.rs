//! An old primary that does not get out of the way by itself.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
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
