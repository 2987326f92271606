//! What has been acknowledged and is not on the standby that is to be promoted, where it is hard to see.

use std::io::Write;

use crate::{
    failover::{checkpointer, pair, trio},
    guard::Guard,
    harness::{Host, text, until as wait_until},
};

/// A standby that was restarted has received nothing since, and one that applies late has replayed next to nothing. What it has
/// acknowledged before is on its disk.
#[test]
fn what_a_late_standby_has_acknowledged_before_its_restart_is_not_lost_to_another_one() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.pgbox(&["replica", "late", "--of", "primary", "--delay", "1h"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    host.pgbox(&["sync", "any 1 (r1, late)"]);
    host.pgbox(&["wait", "r1", "--for", "caught-up"]);
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t SELECT generate_series(1, 100)");
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["stop", "late"]);
    // It may not wait for the stream of a dead primary.
    host.try_pgbox(&["start", "late", "--timeout", "20s"]);
    wait_until("late answers", 20, || {
        let asked = ["psql", "late", "-Atc", "SELECT pg_last_wal_receive_lsn() IS NULL"];
        text(&host.try_pgbox(&asked).stdout).trim() == "t"
    });
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 1 transaction with 100 rows"), "{said}");
    assert!(said.contains("`late` has more, and with it nothing is lost: `pgbox failover late`"), "{said}");
    // Nor does a guard take the other one.
    let guard = Guard::start(&host, "primary", &[]);
    wait_until("the guard acts", 60, || guard.text().contains("failed-over"));
    guard.end();
    assert_eq!(host.sql("late", &[], "SELECT pg_is_in_recovery(), count(*) FROM t").trim(), "f|100");
}

/// The setting is what every session sees; whether commits wait is what the checkpointer alone decides, when it comes to it.
#[test]
fn a_rule_counts_from_where_a_commit_was_seen_to_wait() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    host.pgbox(&["wait", "r1", "--for", "caught-up"]);
    let tell = checkpointer(&host);
    tell("STOP");
    let output = host.try_pgbox(&["sync", "any 1 (r1)"]);
    assert_eq!(text(&output.stdout), "");
    let said = text(&output.stderr);
    assert!(said.contains("commits on `primary` may wait for nobody yet"), "{said}");
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t SELECT generate_series(1, 100)");
    tell("CONT");
    assert_eq!(host.pgbox(&["sync", "any 1 (r1)"]), "commits wait for any 1 (r1)\n");
    host.pgbox(&["crash", "primary", "--node"]);
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 1 transaction with 100 rows"), "{said}");
}

/// Nobody streams from it at that moment, and what it commits to see that waits for them for ever.
#[test]
fn who_has_just_been_promoted_is_seen_to_wait_and_nothing_is_left_of_that() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.pgbox(&["sync", "any 1 (primary, r1, r2)"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["crash", "r2", "--node"]);
    host.pgbox(&["failover", "r1"]);
    let name = |text: &str| text.parse().expect("a name");
    let root = pgbox::state::Root::new(&host.root);
    let node = pgbox::facts::node::find(&root, &name("default"), &name("r1")).expect("the node");
    assert!(node.state.sync_since.is_some());
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' OR application_name = 'pgbox sync'";
    wait_until("nothing is left of the proof", 10, || host.sql("r1", &[], waits) == "0");
    // With one that lacks only what was committed to see it, nothing is lost.
    host.pgbox(&["crash", "r1", "--node"]);
    host.pgbox(&["start", "r2"]);
    let said = host.pgbox(&["failover", "r2"]);
    assert!(said.contains("nothing is lost"), "{said}");
}

/// Whoever was told that a transaction is prepared will have it committed, and counts on that.
#[test]
fn a_prepared_transaction_that_the_standby_lacks_counts() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-c", "max_prepared_transactions=5"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    host.pgbox(&["wait", "r1", "--for", "caught-up"]);
    host.pgbox(&["net", "cut", "primary", "r1"]);
    let prepare = "BEGIN; INSERT INTO t SELECT generate_series(1, 100); PREPARE TRANSACTION 'x'";
    host.sql("primary", &[], prepare);
    let given_up = "BEGIN; INSERT INTO t SELECT generate_series(1, 10); PREPARE TRANSACTION 'y'";
    host.sql("primary", &[], given_up);
    host.sql("primary", &[], "ROLLBACK PREPARED 'y'");
    host.pgbox(&["crash", "primary", "--node"]);
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 1 acknowledged transaction (1 prepared) with 100 rows"), "{said}");
    host.pgbox(&["failover", "r1", "--accept-loss"]);
}

/// What a role or a database is set to wins over the rule, for its own sessions, and the server says nothing of it.
#[test]
fn where_a_role_does_not_wait_for_standbys_its_commits_count() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--sync"]);
    host.sql("primary", &[], "CREATE TABLE t (i int); CREATE ROLE app LOGIN; GRANT ALL ON t TO app");
    host.sql("primary", &[], "ALTER ROLE app SET synchronous_commit = OFF");
    host.pgbox(&["wait", "r1", "--for", "caught-up"]);
    host.pgbox(&["net", "cut", "primary", "r1"]);
    let insert = "INSERT INTO t SELECT generate_series(1, 100)";
    host.pgbox(&["exec", "primary", "--", "psql", "-U", "app", "-c", insert, "postgres"]);
    // Until the server writes it by itself (wal_writer_delay).
    host.sql("primary", &[], "SELECT pg_switch_wal()");
    host.pgbox(&["crash", "primary", "--node"]);
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 1 transaction with 100 rows"), "{said}");
    assert!(said.contains("that may have been acknowledged"), "{said}");
}

/// Nor does it say so of a line in a file of its own, which may be one that another includes.
#[test]
fn where_a_file_says_that_commits_do_not_wait_they_count() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--sync"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    host.pgbox(&["wait", "r1", "--for", "caught-up"]);
    let data = host.root.join("volumes/default/primary/data");
    let append = |name: &str, line: &str| {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(data.join(name));
        writeln!(file.expect("the file"), "{line}").expect("write");
    };
    append("postgresql.conf", "include 'mine.conf'");
    append("mine.conf", "Synchronous_Commit LOCAL # for a bulk load");
    host.sql("primary", &[], "SELECT pg_reload_conf()");
    wait_until("it has read it", 10, || host.sql("primary", &[], "SHOW synchronous_commit") == "local");
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t SELECT generate_series(1, 100)");
    host.pgbox(&["crash", "primary", "--node"]);
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 1 transaction with 100 rows"), "{said}");
}
