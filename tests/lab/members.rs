//! Who is in a cluster, and what follows from it: slots, and whom commits wait for. Asked of the servers themselves.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crate::{
    harness::{Host, text, until as soon},
    replica::until,
};

const SLOTS: &str =
    "SELECT coalesce(string_agg(slot_name, ' ' ORDER BY slot_name), '') FROM pg_replication_slots";
const NAMES: &str = "SHOW synchronous_standby_names";
const STATES: &str = "SELECT string_agg(application_name || ' ' || sync_state, ', ' ORDER BY application_name) FROM pg_stat_replication";

/// Runs SQL in the background: it may hang.
fn begin(host: &Host, node: &str, sql: &str) -> Child {
    let uri = host.pgbox(&["uri", node]);
    let mut command = std::process::Command::new("psql");
    command.args(["-XAtq", "-c", sql, uri.trim()]).stdin(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("start psql")
}

#[test]
fn a_synchronous_standby_is_waited_for_until_it_is_removed() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    let said = host.pgbox(&["replica", "r1", "--of", "primary", "--sync"]);
    assert!(
        said.contains("r1 streams from primary") && said.contains("commits wait for any 1 (r1)"),
        "{said}"
    );
    assert_eq!(host.sql("primary", &[], STATES), "r1 quorum");
    host.pgbox(&["freeze", "r1"]);
    let mut commit = begin(&host, "primary", "INSERT INTO t VALUES (1)");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    soon("the commit waits", 5, || host.sql("primary", &[], waits) == "1");
    assert!(commit.try_wait().unwrap().is_none());
    // The removal of the one that it waits for lets it go, and says so.
    let output = host.try_pgbox(&["rm", "-f", "-v", "r1"]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("`r1` was the last in the lab's sync rule"), "{said}");
    assert!(said.contains("commits on `primary` wait for nobody now"), "{said}");
    assert!(commit.wait().unwrap().success());
    assert_eq!(host.sql("primary", &[], NAMES), "");
    assert_eq!(host.sql("primary", &[], SLOTS), "");
    assert_eq!(host.sql("primary", &[], "SELECT i FROM t"), "1");
}

#[test]
fn a_second_synchronous_standby_joins_the_rule_and_leaves_it() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--sync"]);
    let said = host.pgbox(&["replica", "r2", "--of", "primary", "--sync"]);
    assert!(said.contains("commits wait for any 1 (r1, r2)"), "{said}");
    assert_eq!(host.sql("primary", &[], STATES), "r1 quorum, r2 quorum");
    // What follows a standby can't be waited for.
    let said = host.fails(1, &["replica", "r3", "--of", "r1", "--sync"]);
    assert!(said.contains("--of primary") && host.pgbox(&["ps", "-q"]) == "primary\nr1\nr2\n", "{said}");
    host.pgbox(&["stop", "r1"]);
    let output = host.try_pgbox(&["rm", "-v", "r1"]);
    assert!(text(&output.stderr).contains("which is any 1 (r2) now"), "{}", text(&output.stderr));
    soon("the server knows", 5, || host.sql("primary", &[], NAMES) == "ANY 1 (\"r2\")");
    // Who takes the primary's place leaves its seat to the old one, as soon as that streams.
    host.pgbox(&["switchover", "r2"]);
    soon("the server knows", 5, || host.sql("r2", &[], NAMES) == "ANY 1 (\"primary\")");
    until("primary quorum", || host.sql("r2", &[], STATES));
    // A seat that is empty is nobody's: a commit does not hang.
    let said = text(&host.try_pgbox(&["rm", "-f", "-v", "primary"]).stderr);
    assert!(said.contains("commits on `r2` wait for nobody now"), "{said}");
    host.sql("r2", &[], "CREATE TABLE t ()");
}

#[test]
fn a_slot_goes_with_its_standby_even_if_its_server_does_not_answer() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    for name in ["r1", "r2", "r3"] {
        host.pgbox(&["replica", name, "--of", "primary"]);
    }
    host.pgbox(&["rm", "-f", "-v", "r1"]);
    assert_eq!(host.sql("primary", &[], SLOTS), "pgbox_r2 pgbox_r3");
    host.pgbox(&["stop", "primary"]);
    host.pgbox(&["rm", "-f", "-v", "r2"]);
    host.pgbox(&["start", "primary"]);
    assert_eq!(host.sql("primary", &[], SLOTS), "pgbox_r3");
    // A frozen one accepts, and says nothing.
    host.pgbox(&["freeze", "primary"]);
    let begun = Instant::now();
    host.pgbox(&["rm", "-f", "-v", "r3"]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    host.pgbox(&["thaw", "primary"]);
    host.pgbox(&["replica", "r4", "--of", "primary"]);
    soon("nobody's slot is gone", 5, || host.sql("primary", &[], SLOTS) == "pgbox_r4");
}

#[test]
fn data_that_comes_back_has_the_slots_of_those_who_follow_now() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "primary"]);
    let hosts = |node: &str| host.pgbox(&["exec", node, "--", "cat", "/etc/hosts"]);
    host.pgbox(&["rm", "-f", "primary"]);
    // Who looks for it asks no name server, which could not be heard of a promotion meanwhile.
    assert!(hosts("r1").contains(" primary\n"), "{}", hosts("r1"));
    host.pgbox(&["rm", "-f", "-v", "r2"]);
    host.pgbox(&["stop", "r1"]);
    // The address that r1 knows is given to nobody else, as long as the lab has it on record.
    let file = host.root.join("labs/default/hosts");
    let before = std::fs::read_to_string(&file).unwrap();
    let known = before.lines().find_map(|line| line.strip_suffix(" primary")).expect("a line of the primary");
    assert!(!host.pgbox(&["run", "third", "tiny", "-d", "--", "sleep", "600"]).contains(known));
    assert!(std::fs::read_to_string(&file).unwrap().contains(&format!("{known} primary\n")));
    host.pgbox(&["rm", "-f", "third"]);
    std::fs::write(&file, before.replace(&format!("{known} primary\n"), "")).unwrap();
    // Another server stands at it.
    let other = host.pgbox(&["run", "other", "postgres:15"]);
    assert!(other.contains(known), "{other}");
    let said = text(&host.try_pgbox(&["start", "r1"]).stderr);
    assert!(said.contains("`r1` follows `primary`, which is gone"), "{said}");
    assert_eq!(host.sql("other", &[], SLOTS), "", "{other}");
    assert_eq!(host.sql("other", &[], "SELECT count(*) FROM pg_roles WHERE rolname = 'replicator'"), "0");
    // The same data under the same name, at another address: r1 finds it.
    host.pgbox(&["run", "primary", "postgres:15"]);
    assert_eq!(host.sql("primary", &[], SLOTS), "pgbox_r1");
    until("r1 async", || host.sql("primary", &[], STATES));
    host.pgbox(&["restart", "r1"]);
    host.pgbox(&["stop", "r1"]);
    let output = host.try_pgbox(&["start", "r1"]);
    assert!(output.status.success() && text(&output.stderr).is_empty(), "{}", text(&output.stderr));
}

#[test]
fn nobody_keeps_wal_for_a_standby_that_follows_another_server() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "primary"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    assert_eq!(host.sql("r1", &[], SLOTS), "pgbox_r2");
    host.pgbox(&["rejoin", "primary"]);
    assert_eq!(host.sql("r1", &[], SLOTS), "pgbox_primary pgbox_r2");
    assert_eq!(host.sql("primary", &[], SLOTS), "");
    // pg_rewind has brought the new primary's settings along; they are this node's again.
    assert_eq!(host.sql("primary", &[], "SHOW primary_slot_name"), "pgbox_primary");
    assert!(host.sql("primary", &[], "SHOW primary_conninfo").contains("application_name=primary"));
    host.pgbox(&["switchover", "primary"]);
    assert_eq!(host.sql("primary", &[], SLOTS), "pgbox_r1 pgbox_r2");
    assert_eq!(host.sql("r1", &[], SLOTS), "");
}

#[test]
fn the_standbys_of_a_standby_that_goes_follow_the_server_above_it() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "r1"]);
    host.pgbox(&["replica", "r3", "--of", "r1"]);
    host.pgbox(&["stop", "r3"]);
    let output = host.try_pgbox(&["rm", "-f", "-v", "r1"]);
    let said = text(&output.stderr);
    for name in ["r2", "r3"] {
        assert!(
            output.status.success() && said.contains(&format!("`{name}` follows `primary` now")),
            "{said}"
        );
    }
    assert_eq!(host.sql("primary", &[], SLOTS), "pgbox_r2 pgbox_r3");
    until("r2 async", || host.sql("primary", &[], STATES));
    host.pgbox(&["start", "r3"]);
    assert_eq!(host.sql("primary", &[], STATES), "r2 async, r3 async");
    // Those of a primary have nobody to follow; who goes with it need not be told of.
    let said = text(&host.try_pgbox(&["rm", "-f", "-v", "primary", "r3"]).stderr);
    assert!(said.contains("`pgbox promote r2`") && !said.contains("r3"), "{said}");
    assert!(host.pgbox(&["promote", "r2"]).contains("r2 is the primary"));
    assert_eq!(host.sql("r2", &[], SLOTS), "");
}

#[test]
fn sync_is_off_in_a_lab_with_two_clusters_too() {
    let Some(host) = Host::new() else { return };
    for (primary, standby) in [("a", "ra"), ("b", "rb")] {
        host.pgbox(&["run", primary, "postgres:15"]);
        host.pgbox(&["replica", standby, "--of", primary]);
    }
    let said = host.pgbox(&["sync"]);
    assert_eq!(
        said,
        "rule       off\nin effect  a: commits wait for nobody\nin effect  b: commits wait for nobody\n"
    );
    let output = host.try_pgbox(&["uri", "--rw"]);
    let said = text(&output.stderr);
    assert!(
        output.status.success()
            && said.contains("of several clusters, the endpoints of lab `default` lead to that of `"),
        "{said}"
    );
    host.pgbox(&["sync", "any 1 (ra)"]);
    assert_eq!(
        (host.sql("a", &[], NAMES), host.sql("b", &[], NAMES)),
        ("ANY 1 (\"ra\")".into(), String::new())
    );
    assert!(host.pgbox(&["sync"]).contains("any 1 (ra)"));
    // The other cluster's turn: the first one waits for nobody.
    host.pgbox(&["sync", "any 1 (rb)"]);
    soon("the servers know", 5, || host.sql("a", &[], NAMES).is_empty());
    assert_eq!(host.sql("b", &[], NAMES), "ANY 1 (\"rb\")");
    assert!(host.pgbox(&["sync", "off"]).contains("commits wait for nobody"));
    assert_eq!(host.sql("b", &[], NAMES), "");
    assert!(host.pgbox(&["sync", "off"]).contains("commits wait for nobody"));
}

#[test]
fn who_is_away_does_not_sit_in_a_free_seat() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--sync"]);
    host.pgbox(&["replica", "r2", "--of", "primary"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    host.pgbox(&["stop", "r2"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    assert_eq!(host.sql("r1", &[], NAMES), "");
    host.sql("r1", &[], "INSERT INTO t VALUES (1)");
    host.pgbox(&["start", "r2"]);
    soon("it sits there now", 5, || host.sql("r1", &[], NAMES) == "ANY 1 (\"r2\")");
    until("r2 quorum", || host.sql("r1", &[], STATES));
}

#[test]
fn who_is_behind_on_purpose_sits_in_a_seat_only_where_it_is_named() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--sync"]);
    host.pgbox(&["replica", "late", "--of", "primary", "--delay", "1h"]);
    host.pgbox(&["switchover", "r1"]);
    soon("the old primary sits there", 5, || host.sql("r1", &[], NAMES) == "ANY 1 (\"primary\")");
    host.pgbox(&["rm", "-f", "-v", "primary"]);
    assert_eq!(host.sql("r1", &[], NAMES), "", "nobody has the free seat");
    host.pgbox(&["restart", "late"]);
    host.pgbox(&["replica", "r2", "--of", "r1"]);
    assert_eq!(host.sql("r1", &[], NAMES), "ANY 1 (\"r2\")");
    assert!(!host.pgbox(&["status"]).contains("brings it there"));
    // Named it is waited for, until it has written, or as long as it is behind.
    host.pgbox(&["set", "r1", "synchronous_commit=remote_apply"]);
    let output = host.try_pgbox(&["sync", "any 1 (late, r2)"]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("`late` applies 1h late, and with"), "{said}");
    assert_eq!(host.sql("r1", &[], NAMES), "ANY 1 (\"late\", \"r2\")");
}

/// What pg_basebackup has received is half a copy, though it tells the server how far it has flushed its log.
#[test]
fn a_base_backup_acknowledges_no_commit() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--rate", "20m", "--sync"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT repeat('x', 100) FROM generate_series(1, 600000)");
    let mut reinit = host.command(&["reinit", "r1"]).stdout(Stdio::null()).spawn().expect("start pgbox");
    let flows = "SELECT bool_or(state = 'backup') AND bool_or(state = 'streaming') FROM pg_stat_replication";
    soon("the backup's log flows", 30, || host.sql("primary", &[], flows) == "t");
    let mut commit = begin(&host, "primary", "INSERT INTO t VALUES (1)");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    soon("the commit waits", 5, || host.sql("primary", &[], waits) == "1");
    // The backup tells every 10 seconds how far it is, and at the end of each file of its log.
    host.sql("primary", &[], "SELECT pg_switch_wal()");
    let ends = "SELECT bool_or(flush_lsn >= pg_current_wal_lsn()) FROM pg_stat_replication";
    soon("the backup has it", 15, || host.sql("primary", &[], ends) == "t");
    assert_eq!(host.sql("primary", &[], waits), "1");
    assert_eq!(host.sql("primary", &[], STATES), "base backup of r1 async, base backup of r1 async");
    assert!(host.fails(1, &["wait", "r1", "--for", "streaming", "--timeout", "100ms"]).contains("r1"));
    assert!(reinit.wait().unwrap().success() && commit.wait().unwrap().success());
    assert_eq!(host.sql("primary", &[], STATES), "r1 quorum");
}

/// A base backup can take hours. Who has the data of a standby is waited for, as the user says, also where it is away.
#[test]
fn a_rule_waits_for_nobody_whose_data_are_being_made() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    let mut made = host.command(&["replica", "r1", "--of", "primary", "--rate", "8m"]);
    let mut made = made.stdout(Stdio::null()).spawn().expect("start pgbox");
    let copied = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase LIKE 'streaming%'";
    soon("it is copied", 20, || host.sql("primary", &[], copied) == "1");
    let said = host.try_pgbox(&["sync", "any 1 (r1)"]);
    assert!(said.status.success() && text(&said.stderr).contains("wait for nobody"), "{said:?}");
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    assert_eq!(host.sql("primary", &[], copied), "1", "it did not wait until that was over");
    assert!(made.wait().unwrap().success());
    soon("commits wait for it", 5, || host.sql("primary", &[], STATES) == "r1 quorum");
    host.pgbox(&["sync", "off"]);
    host.pgbox(&["stop", "r1"]);
    host.pgbox(&["sync", "any 1 (r1)"]);
    assert_eq!(host.sql("primary", &[], NAMES), "ANY 1 (\"r1\")");
}

/// The server goes by the rule, and its commits do not.
#[test]
fn where_commits_wait_for_nobody_that_is_said_whatever_the_rule() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-c", "synchronous_commit=local"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let given = host.try_pgbox(&["sync", "any 1 (r1)"]);
    let nobody = "commits on `primary` wait for nobody, whatever the sync rule says: synchronous_commit is local there";
    assert!(given.status.success() && text(&given.stderr).contains(nobody), "{given:?}");
    assert!(!text(&given.stdout).contains("commits wait for any"), "{given:?}");
    let in_effect = "in effect  commits wait for nobody: synchronous_commit is local\n";
    assert_eq!(host.pgbox(&["sync"]), format!("rule       any 1 (r1)\n{in_effect}"));
    assert_eq!(host.json(&["sync", "--json"])["waived_by"], "local");
    let seen = host.pgbox(&["status"]);
    assert!(!seen.contains("commits wait for any") && seen.contains(nobody), "{seen}");
    host.pgbox(&["set", "primary", "synchronous_commit=on"]);
    assert!(host.pgbox(&["sync"]).contains("in effect  commits wait for any 1 (r1)\n"));
    assert!(host.json(&["sync", "--json"])["waived_by"].is_null());
    let seen = host.pgbox(&["status"]);
    assert!(seen.contains("\ncommits wait for any 1 (r1)\n") && !seen.contains("warning"), "{seen}");
}
