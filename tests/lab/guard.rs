//! The guard: what it does by itself when the primary dies, freezes or is cut off, and what it leaves alone.

use std::{
    fs::File,
    path::PathBuf,
    process::Child,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::harness::{Host, run, text, until};

/// A guard in the background; it ends with the test.
pub struct Guard {
    child: Child,
    log: PathBuf,
}

impl Guard {
    /// Returns when it watches `primary`.
    #[track_caller]
    pub fn start(host: &Host, primary: &str, args: &[&str]) -> Self {
        let log = host.scratch("guard").join("log");
        let out = File::create(&log).expect("create the log");
        let error = out.try_clone().expect("dup");
        let args = [&["guard", "--json"], args].concat();
        let child = host.command(&args).stdout(out).stderr(error).spawn().expect("start the guard");
        let guard = Self { child, log };
        guard.sees("watching", |event| event["primary"] == primary);
        guard
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log")
    }

    fn events(&self) -> Vec<Value> {
        let text = self.text();
        // The last line may be half written.
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    }

    fn has_seen(&self, kind: &str) -> bool {
        self.events().iter().any(|event| event["event"] == kind)
    }

    /// Waits for an event of this kind, and gives it.
    #[track_caller]
    pub fn sees(&self, kind: &str, check: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.events().into_iter().find(|event| event["event"] == kind && check(event));
            if let Some(event) = found {
                return event;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "no {kind}:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as a user does; it must end well.
    #[track_caller]
    pub fn end(mut self) -> String {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("signal the guard");
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "{status}: {}", self.text());
        assert!(self.has_seen("ended"), "{}", self.text());
        self.text()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It was waited for already, or has ended with an error.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn trio(host: &Host) {
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "primary"]);
}

fn acknowledged(host: &Host) -> u64 {
    host.json(&["drive", "report", "--json"])["acknowledged"].as_u64().expect("a number")
}

#[test]
fn a_primary_that_dies_is_replaced_at_once_and_nothing_is_lost() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.pgbox(&["sync", "any 1 (r1, r2)"]);
    let guard = Guard::start(&host, "primary", &[]);
    let second = host.fails(1, &["guard"]);
    assert!(
        second.contains(&format!("has a guard already: process {}", guard.child.id())),
        "the second one names the first: {second}"
    );
    host.pgbox(&["drive", "start"]);
    until("it writes", 10, || acknowledged(&host) > 100);
    host.pgbox(&["crash", "primary", "--node"]);
    let killed = Instant::now();
    let done = guard.sees("failed-over", |_| true);
    let before = acknowledged(&host);
    until("it writes again", 10, || acknowledged(&host) > before);
    // On two cores, with other tests beside it; half a second is usual.
    let (took, logs) = (killed.elapsed(), ["r1", "r2"].map(|node| host.pgbox(&["logs", node])));
    assert!(took < Duration::from_secs(4), "{took:?}\n{}\n{}", guard.text(), logs.join("\n==\n"));
    assert_eq!((&done["old"], &done["timeline"]), (&Value::from("primary"), &Value::from(2)));
    let new = done["new"].as_str().expect("a name").to_owned();
    // The lab's endpoint has moved with it.
    let endpoints = host.json(&["endpoint", "--json"]);
    assert_eq!(endpoints[0]["leads_to"], serde_json::json!([new]), "{endpoints}");
    // It watches the new one, and the old one among its standbys as soon as it is back.
    guard.sees("watching", |event| event["primary"] == new.as_str());
    host.pgbox(&["rejoin", "primary"]);
    guard.sees("standbys", |event| event["standbys"].to_string().contains("primary"));
    host.pgbox(&["drive", "stop"]);
    host.pgbox(&["verify"]);
    let log = guard.end();
    assert!(log.contains("from now on nothing fails over by itself"), "{log}");
    // And another one may guard now.
    Guard::start(&host, &new, &[]).end();
}

#[test]
fn what_somebody_wants_is_no_failure() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "--restart", "on-crash"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let guard = Guard::start(&host, "primary", &["--detect", "8s"]);
    host.pgbox(&["stop", "primary"]);
    guard.sees("let-be", |event| event["text"].to_string().contains("asked to stop"));
    std::thread::sleep(Duration::from_millis(300));
    host.pgbox(&["start", "primary"]);
    guard.sees("back", |_| true);
    host.pgbox(&["restart", "primary"]);
    // The policy brings it back in less time than it has, but with so much to replay not before somebody can have seen it.
    host.sql("primary", &[], "CREATE TABLE t AS SELECT generate_series(1, 1000000)");
    host.pgbox(&["crash", "primary"]);
    guard.sees("trouble", |_| true);
    let is_back =
        || guard.events().into_iter().skip_while(|e| e["event"] != "trouble").any(|e| e["event"] == "back");
    until("it is back", 20, is_back);
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    let streaming = || text(&host.try_pgbox(&["psql", "primary", "-Atc", streams]).stdout);
    until("r1 streams again", 20, || streaming().trim() == "1");
    // A change by hand is followed.
    host.pgbox(&["switchover", "r1"]);
    guard.sees("watching", |event| event["primary"] == "r1");
    host.pgbox(&["replica", "r2", "--of", "r1"]);
    guard.sees("standbys", |event| event["standbys"].to_string().contains("r2"));
    host.pgbox(&["rm", "--force", "-v", "r2"]);
    guard.sees("standbys", |event| event["standbys"] == serde_json::json!(["primary"]));
    let log = guard.end();
    for never in ["\"failed\"", "fenced", "failed-over", "\"refused\"", "\"error\""] {
        assert!(!log.contains(never), "{never}:\n{log}");
    }
    assert_eq!(host.sql("primary", &[], "SELECT pg_is_in_recovery()"), "t");
}

#[test]
fn a_restart_that_was_asked_for_is_no_crash_however_short_it_is() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "--restart", "on-crash:3"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let guard = Guard::start(&host, "primary", &["--detect", "20s"]);
    for _ in 0..6 {
        host.pgbox(&["restart", "primary"]);
    }
    assert!(!guard.text().contains("crashed"), "{}", guard.text());
    host.pgbox(&["crash", "primary"]);
    guard.sees("trouble", |_| true);
    guard.end();
}

#[test]
fn a_frozen_primary_is_ended_before_another_one_is_made() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.pgbox(&["sync", "any 1 (r1, r2)"]);
    let guard = Guard::start(&host, "primary", &["--detect", "500ms"]);
    host.pgbox(&["drive", "start"]);
    until("it writes", 10, || acknowledged(&host) > 100);
    host.pgbox(&["freeze", "primary"]);
    let done = guard.sees("failed-over", |_| true);
    let fenced = guard.sees("fenced", |_| true);
    assert_eq!(fenced["primary"], "primary");
    // There is nothing left to thaw, and nothing that could start.
    assert!(host.fails(1, &["thaw", "primary"]).contains("does not run"));
    let new = done["new"].as_str().expect("a name").to_owned();
    assert!(host.fails(1, &["start", "primary"]).contains(&format!("`{new}` was promoted")));
    let before = acknowledged(&host);
    until("it writes again", 10, || acknowledged(&host) > before);
    host.pgbox(&["drive", "stop"]);
    host.pgbox(&["verify"]);
    guard.end();
}

#[test]
fn a_primary_that_is_cut_off_is_replaced() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.pgbox(&["sync", "any 1 (r1, r2)"]);
    let guard = Guard::start(&host, "primary", &["--detect", "500ms"]);
    host.pgbox(&["drive", "start"]);
    until("it writes", 10, || acknowledged(&host) > 100);
    // From one standby: the other one is enough.
    host.pgbox(&["net", "cut", "primary", "r1"]);
    std::thread::sleep(Duration::from_secs(1));
    assert!(!guard.has_seen("failed"), "{}", guard.text());
    // From both: its commits wait, and it hears of nobody.
    host.pgbox(&["net", "cut", "primary", "r2"]);
    let failed = guard.sees("failed", |_| true);
    assert!(failed["text"].to_string().contains("cut off: its commits wait"), "{failed}");
    let new = guard.sees("failed-over", |_| true)["new"].as_str().expect("a name").to_owned();
    assert_eq!(new, "r2", "it had more");
    let before = acknowledged(&host);
    until("it writes again", 10, || acknowledged(&host) > before);
    // And from this host.
    host.pgbox(&["net", "heal", "--all"]);
    host.pgbox(&["net", "cut", "r2", "host"]);
    guard.sees("failed-over", |event| event["old"] == "r2" && event["new"] == "r1");
    let before = acknowledged(&host);
    until("it writes again", 10, || acknowledged(&host) > before);
    host.pgbox(&["drive", "stop"]);
    host.pgbox(&["verify"]);
    guard.end();
}

#[test]
fn what_would_be_lost_is_not_given_up() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("it is on r1", 10, || host.try_pgbox(&["psql", "r1", "-c", "SELECT FROM t"]).status.success());
    let guard = Guard::start(&host, "primary", &["--detect", "500ms"]);
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t SELECT generate_series(1, 5)");
    host.pgbox(&["crash", "primary", "--node"]);
    let refused = guard.sees("refused", |_| true);
    let said = refused["text"].to_string();
    assert!(said.contains("lacks 1 acknowledged transaction with 5 rows"), "{said}");
    assert_eq!(host.sql("r1", &[], "SELECT pg_is_in_recovery()"), "t");
    // It goes on watching: the primary comes back, and with it the rows.
    host.pgbox(&["net", "heal", "--all"]);
    host.pgbox(&["start", "primary"]);
    guard.sees("back", |_| true);
    until("5", 10, || host.sql("r1", &[], "SELECT count(*) FROM t") == "5");
    guard.end();
    // Unless it was told to.
    let guard = Guard::start(&host, "primary", &["--accept-loss"]);
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (6)");
    host.pgbox(&["crash", "primary", "--node"]);
    let fenced = guard.sees("fenced", |_| true);
    assert!(fenced["loss"].to_string().contains("1 transaction with 1 row is lost"), "{fenced}");
    guard.sees("failed-over", |event| event["new"] == "r1");
    guard.end();
}

/// The last guard was killed at the worst moment: the next one does not take its freeze for a failure.
#[test]
fn a_new_guard_lets_go_what_a_killed_one_held_still() {
    let Some(host) = Host::new() else { return };
    crate::failover::pair_with_something_to_lose(&host);
    let mut child = crate::failover::failover_that_looks(&host);
    child.kill().expect("kill it");
    child.wait().expect("wait");
    let guard = Guard::start(&host, "primary", &["--detect", "1s"]);
    let said = guard.sees("warning", |_| true)["text"].to_string();
    assert!(said.contains("left `primary` held still: it goes on"), "{said}");
    host.sql("primary", &[], "INSERT INTO t VALUES (2)");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!guard.has_seen("failed"), "{}", guard.text());
    guard.end();
}

#[test]
fn reads_go_to_the_standbys_that_are_there() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    let guard = Guard::start(&host, "primary", &[]);
    let reads = |names: &[&str]| {
        let want = serde_json::json!(names);
        until("reads to follow", 10, || host.json(&["endpoint", "--json"])[1]["leads_to"] == want);
    };
    reads(&["r1", "r2"]);
    // No command sees that end: what is left of r1 is its exit status.
    kill(Pid::from_raw(host.init_pid("r1")), Signal::SIGKILL).expect("kill pid 1 of r1");
    reads(&["r2"]);
    assert_eq!(guard.sees("reads", |_| true)["standbys"], serde_json::json!(["r2"]));
    let (uri, way) =
        (host.pgbox(&["uri", "--ro"]), "SELECT inet_server_addr() = inet_client_addr(), pg_is_in_recovery()");
    for _ in 0..4 {
        assert_eq!(run("psql", &[uri.trim(), "-Atc", way]).trim(), "f|t");
    }
    host.pgbox(&["start", "r1"]);
    reads(&["r1", "r2"]);
    // A line for each change, and no second one.
    guard.sees("standby-up", |event| event["standby"] == "r1");
    host.pgbox(&["freeze", "r2"]);
    guard.sees("standby-down", |event| event["text"] == "standby `r2` is frozen");
    host.pgbox(&["thaw", "r2"]);
    guard.sees("standby-up", |event| event["standby"] == "r2");
    std::thread::sleep(Duration::from_millis(1500));
    let events = guard.events();
    let told =
        events.iter().filter(|event| event["event"].as_str().is_some_and(|e| e.starts_with("standby-")));
    let told: Vec<&str> = told.filter_map(|event| event["text"].as_str()).collect();
    let want = ["`r1` is killed", "`r1` is up", "`r2` is frozen", "`r2` is up"];
    assert_eq!(told, want.map(|text| format!("standby {text}")), "{}", guard.text());
    guard.end();
}

/// A process of this kind below another one.
pub fn descendant(pid: i32, kind: &str) -> Option<i32> {
    let read =
        |pid: i32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let children = read(pid, &format!("task/{pid}/children"));
    children.split_whitespace().find_map(|child| {
        let child = child.parse().ok()?;
        if read(child, "cmdline").contains(kind) { Some(child) } else { descendant(child, kind) }
    })
}

/// Most has whoever has most when all has arrived that the dead one sent: who is promoted before can't be followed by it.
#[test]
fn what_arrives_last_decides_who_is_promoted() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    for node in ["r1", "r2"] {
        until("the table", 10, || host.try_pgbox(&["psql", node, "-c", "SELECT FROM t"]).status.success());
    }
    let guard = Guard::start(&host, "primary", &["--accept-loss"]);
    let receiver = Pid::from_raw(descendant(host.init_pid("r2"), "walreceiver").expect("a walreceiver"));
    kill(receiver, Signal::SIGSTOP).expect("stop it");
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t SELECT generate_series(1, 1000)");
    let sent =
        "SELECT sent_lsn = pg_current_wal_lsn() FROM pg_stat_replication WHERE application_name = 'r2'";
    until("it is sent", 10, || host.sql("primary", &[], sent) == "t");
    host.pgbox(&["crash", "primary", "--node"]);
    guard.sees("failed", |_| true);
    // By now both are seen to have the same; r1 hears of no end, and is waited for half a second.
    std::thread::sleep(Duration::from_millis(400));
    kill(receiver, Signal::SIGCONT).expect("let it go on");
    assert_eq!(guard.sees("failed-over", |_| true)["new"], "r2", "{}", guard.text());
    assert_eq!(host.sql("r2", &[], "SELECT count(*) FROM t"), "1000");
    guard.end();
}
