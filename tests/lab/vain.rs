//! Changes of the primary that could not succeed, or would leave something behind: that is said before anybody is put out of the
//! way.

use std::process::Stdio;

use crate::{
    guard::Guard,
    harness::{Host, text, until},
};

/// The command that a hint gives behind these words.
fn command(said: &str, words: &str) -> String {
    let rest = said.split_once(words).unwrap_or_else(|| panic!("no {words:?} in {said}")).1;
    rest.split('`').nth(1).expect("a command").to_owned()
}

/// Users do that in psql, and pgbox does not learn it.
#[test]
fn no_primary_is_given_up_for_a_standby_that_does_not_let_pgbox_in() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let guard = Guard::start(&host, "primary", &[]);
    let alter = "ALTER ROLE postgres PASSWORD 'other'";
    host.pgbox(&["psql", "primary", "-c", alter]);
    let end = host.pgbox(&["psql", "primary", "-Atc", "SELECT pg_current_wal_lsn()"]);
    let has = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", end.trim());
    until("r1 has it", 10, || host.pgbox(&["psql", "r1", "-Atc", &has]) == "t\n");
    let asked = ["psql", "primary", "-Atc", "SELECT pg_is_in_recovery()"];
    for args in [
        &["failover", "r1", "--accept-loss"][..],
        &["failover", "r1", "--accept-loss", "--dry-run"],
        &["failover", "r1"],
    ] {
        let said = host.fails(1, args);
        assert!(said.contains("`r1` does not let pgbox in (password authentication failed"), "{said}");
        assert_eq!(host.pgbox(&asked), "f\n");
    }
    let said = host.fails(1, &["switchover", "r1", "--dry-run"]);
    assert!(said.contains("`primary` does not let pgbox in"), "{said}");
    guard.sees("warning", |event| event["what"].as_str().unwrap().contains("`r1` does not let pgbox in"));
    host.pgbox(&["crash", "primary", "--node"]);
    let refused = guard.sees("refused", |_| true);
    assert!(refused["why"].as_str().unwrap().contains("`r1` does not let pgbox in"), "{refused}");
    guard.end();
    let said = host.fails(1, &["failover", "r1", "--accept-loss"]);
    assert!(said.contains("`pgbox start primary`"), "{said}");
    let said = text(&host.try_pgbox(&["start", "primary"]).stderr);
    assert!(said.contains("`primary` does not let pgbox in"), "{said}");
    command(&said, "give back the one that pgbox knows:");
    let status = text(&host.try_pgbox(&["status"]).stdout);
    let back = command(&status, "give back the one that pgbox knows:");
    let pgbox = std::path::Path::new(env!("CARGO_BIN_EXE_pgbox")).parent().unwrap();
    let path = format!("{}:{}", pgbox.display(), std::env::var("PATH").unwrap());
    let mut shell = std::process::Command::new("sh");
    let done = shell.args(["-c", &back]).env("PATH", path).env("PGBOX_ROOT", &host.root).output().unwrap();
    assert!(done.status.success(), "{back}: {}", text(&done.stderr));
    until("r1 streams", 10, || host.try_pgbox(&["switchover", "r1", "--dry-run"]).status.success());
    host.pgbox(&["failover", "r1"]);
}

/// A primary that is shut down for a standby that does not replay would only be started again.
#[test]
fn a_switchover_to_a_standby_that_does_not_replay_stops_nobody() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "late", "--of", "primary", "--delay", "1h"]);
    let begun = "SELECT pg_postmaster_start_time()";
    let before = host.sql("primary", &[], begun);
    host.sql("r1", &[], "SELECT pg_wal_replay_pause()");
    for more in [&["--dry-run"][..], &[]] {
        let said = host.fails(1, &[&["switchover", "late"], more].concat());
        assert!(said.contains("`late` applies late on purpose"), "{said}");
        let said = host.fails(1, &[&["switchover", "r1"], more].concat());
        assert!(said.contains("the replay of `r1` is paused"), "{said}");
        assert!(said.contains("`pgbox psql r1 -c 'SELECT pg_wal_replay_resume()'`"), "{said}");
    }
    assert_eq!(host.sql("primary", &[], begun), before);
    host.pgbox(&["psql", "r1", "-c", "SELECT pg_wal_replay_resume()"]);
    host.pgbox(&["switchover", "r1"]);
}

/// Its sender finds that out seconds later.
#[test]
fn a_switchover_to_a_standby_that_is_cut_off_stops_nobody() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let begun = "SELECT pg_postmaster_start_time()";
    let before = host.sql("primary", &[], begun);
    host.pgbox(&["net", "cut", "primary", "r1"]);
    let said = host.fails(1, &["switchover", "r1", "--timeout", "1s"]);
    assert!(said.contains("`r1` has received up to") && said.contains("`primary` was not stopped"), "{said}");
    assert_eq!(host.sql("primary", &[], begun), before);
    host.pgbox(&["net", "heal", "primary", "r1"]);
    until("r1 streams", 30, || host.try_pgbox(&["switchover", "r1"]).status.success());
}

/// A query on the standby holds up its replay, longer than the old primary's shutdown takes. What it has received is not lost.
#[test]
fn a_switchover_waits_for_what_is_received_and_the_promotion_replays_it() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-c", "max_standby_streaming_delay=13s"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let reads = "BEGIN; SELECT count(*) FROM t; SELECT pg_sleep(60)";
    let mut reader = host.command(&["psql", "r1", "-c", reads]);
    let mut reader = reader.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start pgbox");
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    until("it reads", 10, || host.sql("r1", &[], sleeps) == "1");
    host.sql("primary", &[], "ALTER TABLE t ADD j int; INSERT INTO t VALUES (1, 2)");
    host.pgbox(&["switchover", "r1"]);
    assert_eq!(host.sql("r1", &[], "SELECT pg_is_in_recovery(), j FROM t"), "f|2");
    reader.wait().expect("wait");
}

#[test]
fn slots_that_somebody_else_has_made_are_named_when_they_stay_behind() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-c", "wal_level=logical"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.sql("primary", &[], "SELECT pg_create_physical_replication_slot('ext')");
    host.sql("primary", &[], "SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')");
    let told = |args: &[&str]| {
        let output = host.try_pgbox(args);
        assert!(output.status.success(), "{output:?}");
        text(&output.stderr)
    };
    let named = "`r1` has none of these slots, which stay behind on `primary`: cdc (logical), ext (physical)";
    for args in
        [&["switchover", "r1", "--dry-run"][..], &["failover", "r1", "--dry-run"], &["switchover", "r1"]]
    {
        let said = told(args);
        assert!(said.contains(named) && !said.contains("pgbox_"), "{said}");
    }
    // The command that it gives.
    for slot in ["cdc", "ext"] {
        host.pgbox(&["slots", "--drop", slot, "--on", "primary"]);
    }
    host.sql("r1", &[], "SELECT pg_create_physical_replication_slot('ext')");
    host.pgbox(&["crash", "r1", "--node"]);
    let said = told(&["failover", "primary"]);
    assert!(said.contains("which stay behind on `r1`: ext (physical)"), "{said}");
}
