//! The driver and its ledger against a real server: what is acknowledged is there, whatever is killed; what is taken
//! away behind its back is named.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::harness::{Host, run, text, until};

const TABLE: &str = "pgbox_drive";

fn report(host: &Host) -> Value {
    host.json(&["drive", "report", "--json"])
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {value}"))
}

/// Waits for so many more acknowledged rows.
#[track_caller]
fn more(host: &Host, rows: u64) {
    let goal = number(&report(host), "acknowledged") + rows;
    until("more acknowledged rows", 20, || number(&report(host), "acknowledged") >= goal);
}

fn driver(host: &Host) -> i32 {
    report(host)["pid"].as_i64().expect("a running driver") as i32
}

/// The driver is a child of nobody here, so that its end shows in /proc alone.
fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" Z"))
}

/// Postgres' own first process, on the host.
fn postmaster(host: &Host, node: &str) -> Pid {
    let init = host.init_pid(node).to_string();
    Pid::from_raw(run("pgrep", &["-P", &init, "-x", "postgres"]).parse().expect("one postmaster"))
}

#[test]
fn what_was_acknowledged_is_there() {
    let Some(host) = Host::new() else { return };
    assert!(host.fails(1, &["drive", "start"]).contains("no Postgres runs in lab `default`"));
    host.pgbox(&["run", "n", "postgres:15"]);
    assert!(host.fails(1, &["verify"]).contains("nothing to compare"));
    assert!(host.fails(1, &["drive", "report"]).contains("no driver has written"));
    host.pgbox(&["drive", "start", "--writers", "3", "--rows-per-commit", "7"]);
    let refusal = host.fails(1, &["drive", "start"]);
    assert!(refusal.contains("writes to lab `default` already"), "{refusal}");
    more(&host, 100);
    // While they write, only what was acknowledged before the snapshot counts.
    let during = host.json(&["verify", "--json"]);
    assert!(during["running"] == true && number(&during, "acknowledged") > 100, "{during}");
    assert_eq!(number(&during, "foreign"), 0, "{during}");
    let stopped: Value = serde_json::from_str(&host.pgbox(&["drive", "stop", "--json"])).expect("JSON");
    assert_eq!(stopped["state"], "stopped");
    let acknowledged = number(&stopped, "acknowledged");
    assert_eq!(number(&stopped, "sent"), acknowledged, "a clean stop leaves nothing in doubt: {stopped}");
    assert_eq!(acknowledged % 7, 0);
    let count = host.sql("n", &[], &format!("SELECT count(*), count(DISTINCT writer) FROM {TABLE}"));
    assert_eq!(count, format!("{acknowledged}|3"));
    let verdict = host.json(&["verify", "--json"]);
    assert_eq!((number(&verdict, "missing"), number(&verdict, "present")), (0, acknowledged));
    assert_eq!(
        (verdict["timeline"].as_u64(), verdict["history"].as_array().map(Vec::len)),
        (Some(1), Some(0))
    );
    // A second run has writers of its own; the first one still counts.
    host.pgbox(&["drive", "start", "--writers", "2", "--for", "300ms"]);
    until("it ends by itself", 5, || report(&host)["state"] == "stopped");
    let both = number(&host.json(&["verify", "--json"]), "acknowledged");
    assert_eq!(both, acknowledged + number(&report(&host), "acknowledged"));
    assert_eq!(host.sql("n", &[], &format!("SELECT max(writer) FROM {TABLE}")), "5");
    // And everything can be forgotten.
    host.pgbox(&["drive", "start", "--fresh", "--writers", "1"]);
    host.pgbox(&["drive", "stop"]);
    assert!(number(&host.json(&["verify", "--json"]), "acknowledged") < both);
    assert_eq!(host.sql("n", &[], &format!("SELECT count(DISTINCT writer) FROM {TABLE}")), "1");
}

#[test]
fn a_postmaster_killed_under_load_loses_nothing() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "--restart", "on-crash"]);
    host.pgbox(&["drive", "start"]);
    more(&host, 200);
    kill(postmaster(&host, "n"), Signal::SIGKILL).expect("kill the postmaster");
    let down = Instant::now();
    until("a gap", 10, || report(&host)["current_gap_ms"].as_f64() > Some(20.0));
    more(&host, 200);
    let down = down.elapsed().as_secs_f64() * 1e3;
    let stopped: Value = serde_json::from_str(&host.pgbox(&["drive", "stop", "--json"])).expect("JSON");
    let gap = stopped["longest_gap_ms"].as_f64().expect("a gap");
    assert!(gap > 20.0 && gap <= down, "gap of {gap} ms, {down} ms from kill to writes");
    let verdict = host.json(&["verify", "--json"]);
    assert_eq!((number(&verdict, "missing"), &verdict["complete"]), (0, &Value::Bool(true)), "{verdict}");
    assert_eq!(number(&verdict, "acknowledged"), number(&stopped, "acknowledged"));
    // Four sessions were cut, each at most once in the middle of a commit.
    assert!(number(&verdict, "unknown") <= 4, "{verdict}");
    assert!(number(&verdict, "present_unacknowledged") <= number(&verdict, "unknown"), "{verdict}");
}

#[test]
fn a_row_taken_away_behind_its_back_is_named() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["drive", "start", "--writers", "2", "--rate", "200"]);
    more(&host, 50);
    host.pgbox(&["drive", "stop"]);
    host.pgbox(&["verify"]);
    host.sql("n", &[], &format!("DELETE FROM {TABLE} WHERE (writer, seq) IN ((1, 3), (2, 5), (2, 6))"));
    host.sql("n", &[], &format!("INSERT INTO {TABLE} VALUES (2, 1000000), (77, 1)"));
    let output = host.try_pgbox(&["verify"]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("3 (writer/seq 1/3, 2/5, 2/6)"), "{shown}");
    assert!(shown.contains("LOST") && shown.contains("2/1000000") && shown.contains("77/1"), "{shown}");
    host.sql("n", &[], &format!("DROP TABLE {TABLE}"));
    let output = host.try_pgbox(&["verify", "--json"]);
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &verdict["table"]), (Some(1), &Value::Bool(false)));
    assert_eq!(verdict["missing"], verdict["acknowledged"]);
    assert_eq!(verdict["missing_rows"].as_array().map(Vec::len), Some(10));
}

#[test]
fn a_killed_driver_has_told_all_it_knew() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let start = ["drive", "start", "--writers", "4"];
    assert!(host.command(&start).env("POSTGRES_PASSWORD", "tell-nobody").status().unwrap().success());
    more(&host, 100);
    let pid = driver(&host);
    let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("read its environment");
    assert!(environment.iter().all(|byte| *byte == 0), "{}", String::from_utf8_lossy(&environment));
    assert_eq!(
        run("ps", &["-o", "sid=", "-p", &pid.to_string()]).trim(),
        pid.to_string(),
        "a session of its own"
    );
    assert_eq!(run("ps", &["-o", "tty=", "-p", &pid.to_string()]).trim(), "?");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill the driver");
    // The last of its threads may take a moment longer than the first, which has its pid.
    until("it is gone", 5, || is_gone(pid) && report(&host)["state"] != "running");
    let killed = report(&host);
    assert_eq!((killed["state"].as_str(), &killed["pid"]), (Some("killed"), &Value::Null), "{killed}");
    // As a crash of the host might: a torn record at the end.
    let ledger = host.root.join("labs/default/drive/1/ledger.1");
    let mut bytes = std::fs::read(&ledger).expect("the ledger");
    bytes.extend([2, 0, 0, 0, 0, 9]);
    std::fs::write(&ledger, bytes).expect("write the ledger");
    // What the server commits after the writer's death is in the table, and unknown.
    until("no session of it is left", 5, || {
        host.sql("n", &[], "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbox-drive'")
            == "0"
    });
    let verdict = host.json(&["verify", "--json"]);
    assert_eq!(number(&verdict, "missing"), 0, "{verdict}");
    assert_eq!(number(&verdict, "acknowledged"), number(&killed, "acknowledged"));
    assert!(number(&killed, "unknown") <= 4, "{killed}");
    assert_eq!(
        number(&verdict, "present"),
        number(&verdict, "acknowledged") + number(&verdict, "present_unacknowledged")
    );
    // The way is free for another.
    host.pgbox(&["drive", "start"]);
    host.pgbox(&["drive", "stop"]);
    host.pgbox(&["verify"]);
}

#[test]
fn a_read_only_server_is_left_and_found_again() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["drive", "start", "--writers", "2"]);
    more(&host, 50);
    // Open sessions take the new default with their next command, and are refused with SQLSTATE 25006.
    host.sql("n", &[], "ALTER SYSTEM SET default_transaction_read_only = on");
    host.sql("n", &[], "SELECT pg_reload_conf()");
    until("both are refused", 10, || number(&report(&host), "refused") == 2);
    let before = report(&host);
    std::thread::sleep(Duration::from_millis(300));
    let after = report(&host);
    // They look at the server again and again, and send it nothing.
    assert_eq!((&before["sent"], &before["acknowledged"]), (&after["sent"], &after["acknowledged"]));
    assert!(after["current_gap_ms"].as_f64() > Some(250.0), "{after}");
    host.sql("n", &[], "ALTER SYSTEM RESET default_transaction_read_only");
    host.sql("n", &[], "SELECT pg_reload_conf()");
    more(&host, 50);
    host.pgbox(&["drive", "stop"]);
    let verdict = host.json(&["verify", "--json"]);
    let fields = ["missing", "refused", "present_refused", "unknown"].map(|field| number(&verdict, field));
    assert_eq!(fields, [0, 2, 0, 0], "{verdict}");
}

/// Without a standby such a commit waits for ever. When its wait is cancelled it is committed, here and nowhere else,
/// and the server says so in a warning only.
#[test]
fn a_commit_that_no_standby_has_is_not_acknowledged() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["drive", "start", "--writers", "2", "--patience", "1min"]);
    more(&host, 20);
    host.sql("n", &[], "ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    host.sql("n", &[], "SELECT pg_reload_conf()");
    let waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'pgbox-drive'";
    until("both wait", 10, || host.sql("n", &[], &format!("SELECT count(*) {waiting}")) == "2");
    let before = number(&report(&host), "acknowledged");
    // A cancelled wait costs the session, and the next one waits as well.
    host.sql("n", &[], &format!("SELECT pg_cancel_backend(pid) {waiting}"));
    until("both are unknown", 10, || number(&report(&host), "unknown") == 2);
    assert_eq!(number(&report(&host), "acknowledged"), before);
    host.sql("n", &[], "ALTER SYSTEM RESET synchronous_standby_names");
    host.sql("n", &[], "SELECT pg_reload_conf()");
    more(&host, 20);
    host.pgbox(&["drive", "stop"]);
    let verdict = host.json(&["verify", "--json"]);
    let fields = ["missing", "unknown", "present_unacknowledged"].map(|field| number(&verdict, field));
    assert_eq!(fields, [0, 2, 2], "{verdict}");
}

/// A server that is stopped by a signal goes on acknowledging at the level of TCP.
#[test]
fn a_server_that_hangs_is_given_up() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["drive", "start", "--writers", "2", "--patience", "300ms"]);
    more(&host, 20);
    let backends =
        "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE application_name = 'pgbox-drive'";
    assert_eq!(host.sql("n", &[], backends).split(' ').count(), 2);
    let init = host.init_pid("n");
    let all = Servers::below(init);
    all.signal(Signal::SIGSTOP);
    until("both are given up", 10, || number(&report(&host), "unknown") == 2);
    all.signal(Signal::SIGCONT);
    more(&host, 20);
    host.pgbox(&["drive", "stop"]);
    let verdict = host.json(&["verify", "--json"]);
    assert_eq!((number(&verdict, "missing"), number(&verdict, "unknown")), (0, 2), "{verdict}");
    assert!(verdict["longest_gap_ms"].as_f64() > Some(300.0), "{verdict}");
}

/// All processes of a node's Postgres; they go on when the test ends, or it could not be cleaned up after.
struct Servers(Vec<Pid>);

impl Servers {
    fn below(init: i32) -> Self {
        let mut found: Vec<Pid> = Vec::new();
        let mut left = vec![init];
        while let Some(parent) = left.pop() {
            let children = std::process::Command::new("pgrep").args(["-P", &parent.to_string()]).output();
            let children = text(&children.expect("pgrep").stdout);
            let children: Vec<i32> = children.lines().map(|line| line.parse().expect("a pid")).collect();
            found.extend(children.iter().map(|pid| Pid::from_raw(*pid)));
            left.extend(children);
        }
        Self(found)
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.0 {
            // A backend may have ended meanwhile.
            let _ = kill(*pid, signal);
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
    }
}

#[test]
fn a_fixed_address_is_written_to_whoever_answers() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["run", "other", "postgres:15"]);
    let several = host.fails(1, &["drive", "start"]);
    assert!(several.contains("several clusters") && several.contains("--node"), "{several}");
    host.pgbox(&["drive", "start", "--node", "other", "--for", "200ms"]);
    until("it ends", 5, || report(&host)["state"] == "stopped");
    assert_eq!(host.sql("n", &[], &format!("SELECT to_regclass('{TABLE}') IS NULL")), "t");
    host.pgbox(&["verify", "--node", "other"]);
    host.fails(2, &["drive", "start", "--node", "n", "--address", "1.2.3.4:5"]);
    let address = host.json(&["ps", "--json"])[0]["address"].as_str().expect("an address").to_owned();
    host.pgbox(&["drive", "start", "--fresh", "--address", &format!("{address}:5432"), "--for", "200ms"]);
    until("it ends", 5, || report(&host)["state"] == "stopped");
    host.pgbox(&["verify", "--node", "n"]);
    let error = host.fails(1, &["drive", "start", "--node", "n", "--writers", "95"]);
    assert!(error.contains("95 writers leave too little of the server's 100 sessions"), "{error}");
    // Nobody there: the error comes at once, and nothing is left.
    let error = host.fails(1, &["drive", "start", "--address", &format!("{address}:1")]);
    assert!(error.contains("the driver can't begin") && error.contains("refused"), "{error}");
    assert_eq!(report(&host)["run"], 1);
}

#[test]
fn the_driver_goes_with_its_lab() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["drive", "start"]);
    let pid = driver(&host);
    // A lab is locked only while a command works on it, not as long as the driver lives.
    host.pgbox(&["run", "second", "postgres:15"]);
    host.pgbox(&["rm", "--force", "-v", "second"]);
    let open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its descriptors")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|path| path.display().to_string())
        .collect();
    let foreign = |path: &&String| {
        let known = ["/labs/default/drive/", "/dev/null", "/dev/urandom", "socket:", "anon_inode:", "pipe:"];
        !known.iter().any(|known| path.contains(known))
    };
    assert_eq!(open.iter().filter(foreign).collect::<Vec<_>>(), Vec::<&String>::new());
    host.pgbox(&["rm", "--force", "-v", "n"]);
    until("the driver is gone", 5, || is_gone(pid));
    assert!(!Path::new(&host.root.join("labs/default")).exists());
}

#[test]
fn a_driver_that_is_not_let_in_says_why() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.sql("primary", &[], "ALTER ROLE postgres PASSWORD 'other'");
    let said = host.fails(1, &["drive", "start"]);
    assert!(
        said.contains("password authentication failed") && said.contains("another password than pgbox knows"),
        "{said}"
    );
    assert!(
        said.contains("ALTER ROLE CURRENT_USER PASSWORD") && said.contains("| pgbox psql primary`"),
        "{said}"
    );
}
