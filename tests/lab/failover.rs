//! The primary changes: planned, after a death, and with something to lose.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use pgbox::facts::{node::Node, wal::Place};

use crate::{
    guard::descendant,
    harness::{self, Host, run, text},
    replica::until,
};

pub const STREAMS: &str = "SELECT string_agg(application_name || ' ' || state, ', ' ORDER BY application_name) FROM pg_stat_replication";

/// A primary and a standby.
pub fn pair(host: &Host) {
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
}

/// A way to send signals to the primary's checkpointer. While it is stopped there is no checkpoint, and no backup, which begins
/// with one; and commits wait as they did before, whatever the rule has become since.
pub fn checkpointer(host: &Host) -> impl Fn(&str) {
    let pid =
        host.sql("primary", &[], "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
    move |signal| {
        let kill = format!("kill -{signal} {}", pid.trim());
        host.pgbox(&["exec", "primary", "--", "bash", "-c", &kill]);
    }
}

/// A primary and two standbys.
pub fn trio(host: &Host) {
    pair(host);
    host.pgbox(&["replica", "r2", "--of", "primary"]);
}

#[test]
fn a_switchover_under_load_loses_nothing_and_turns_everybody() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.pgbox(&["drive", "start"]);
    let said = host.pgbox(&["switchover", "r1"]);
    assert!(said.contains("r1 is the primary, on timeline 2"), "{said}");
    host.pgbox(&["drive", "stop"]);
    host.pgbox(&["verify"]);
    until("primary streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
    assert_eq!(host.sql("primary", &[], "SELECT pg_is_in_recovery()").trim(), "t");
    // Nothing keeps WAL for nobody.
    assert_eq!(host.sql("r1", &[], "SELECT count(*) FROM pg_replication_slots WHERE NOT active").trim(), "0");
    host.pgbox(&["switchover", "primary"]);
    until("r1 streaming, r2 streaming", || host.sql("primary", &[], STREAMS));
}

#[test]
fn after_the_primary_has_died_a_standby_takes_over_and_the_old_one_rejoins() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    until("1000", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    assert!(host.fails(1, &["promote", "r1"]).contains("there would be two"));
    host.pgbox(&["crash", "primary", "--node"]);
    let said = host.pgbox(&["failover", "r1"]);
    assert!(said.contains("nothing is lost") && said.contains("timeline 2"), "{said}");
    host.sql("r1", &[], "INSERT INTO t VALUES (0)");
    // By no order of starting does the old one come back as a second primary.
    let said = host.fails(1, &["start", "primary"]);
    assert!(said.contains("`r1` was promoted") && said.contains("pgbox rejoin primary"), "{said}");
    host.pgbox(&["stop", "r1", "r2"]);
    host.fails(1, &["start", "primary"]);
    host.pgbox(&["start", "r1", "r2"]);
    host.pgbox(&["rejoin", "primary"]);
    until("primary streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
    until("1001", || host.sql("primary", &[], "SELECT count(*) FROM t"));
    // What streams has nothing to mend, and is left alone.
    let pid = host.init_pid("primary");
    assert_eq!(host.pgbox(&["rejoin", "primary"]), "primary streams from r1 already\n");
    assert_eq!(host.init_pid("primary"), pid);
    // A new base backup in place of the data, too.
    host.pgbox(&["reinit", "primary"]);
    until("1001", || host.sql("primary", &[], "SELECT count(*) FROM t"));
    host.pgbox(&["rm", "-f", "-v", "primary", "r1", "r2"]);
    host.is_clean();
}

#[test]
fn commits_that_wait_for_nobody_are_counted_whatever_the_rule() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--sync"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    let said = host.try_pgbox(&["set", "primary", "synchronous_commit=local"]);
    assert!(text(&said.stderr).contains("commits of `primary` wait for nobody now"), "{said:?}");
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (1)");
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 1 transaction with 1 row"), "{said}");
    // And as soon as they wait again, those that do are nobody's loss.
    host.pgbox(&["net", "heal", "--all"]);
    host.pgbox(&["wait", "r1", "--for", "caught-up"]);
    host.pgbox(&["set", "primary", "--reset", "synchronous_commit"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (2)");
    host.pgbox(&["net", "cut", "primary", "r1"]);
    let waits = ["psql", "primary", "-c", "INSERT INTO t VALUES (3)"];
    let mut waits = host.command(&waits).stdout(std::process::Stdio::null()).spawn().unwrap();
    until("1", || {
        host.sql("primary", &[], "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    });
    let said = host.pgbox(&["failover", "r1"]);
    assert!(said.contains("nothing acknowledged is lost: 1 transaction"), "{said}");
    waits.wait().unwrap();
}

/// In a directory of the host pgbox keeps no note of what has become of them.
#[test]
fn data_of_the_cluster_of_another_primary_are_not_run_as_one() {
    let Some(host) = Host::new() else { return };
    let data = host.scratch("data");
    let run =
        ["run", "primary", "postgres:15", "-v", &format!("{}:/var/lib/postgresql/data", data.display())];
    host.pgbox(&run);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    host.pgbox(&["rm", "primary"]);
    let said = host.fails(1, &run);
    assert!(said.contains("of the same cluster as the primary `r1`"), "{said}");
    // In a lab of its own it is nobody's rival.
    host.pgbox(&[&["--lab", "other"], &run[..]].concat());
}

#[test]
fn a_switchover_to_a_frozen_standby_stops_nobody() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.pgbox(&["freeze", "r1"]);
    assert!(host.fails(1, &["switchover", "r1"]).contains("node `r1` is frozen"));
    host.pgbox(&["thaw", "r1"]);
    // Nobody waits for what can't come.
    host.pgbox(&["freeze", "primary"]);
    assert!(host.fails(1, &["switchover", "r1"]).contains("node `primary` is frozen"));
    host.pgbox(&["thaw", "primary"]);
    host.pgbox(&["freeze", "r1"]);
    let said = text(&host.try_pgbox(&["rejoin", "r1"]).stderr);
    assert!(said.contains("`r1` was frozen, and is thawed"), "{said}");
    host.sql("primary", &[], "CREATE TABLE t (i int)");
}

#[test]
fn what_would_be_lost_is_counted_and_not_given_up_by_itself() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.pgbox(&["net", "cut", "primary", "r2"]);
    for i in 0..7 {
        host.sql("primary", &[], &format!("INSERT INTO t VALUES ({i})"));
    }
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 7 acknowledged transactions with 7 rows"), "{said}");
    let way_out =
        "no standby has more; switch over: `pgbox switchover r1`; or give up 7 transactions with 7 rows: ";
    assert!(said.contains(&format!("hint:  {way_out}`pgbox failover r1 --accept-loss`")), "{said}");
    assert!(
        host.fails(2, &["failover"])
            .contains("which standby is to become the primary?\n  hint:  name one: r1, r2;")
    );
    // Nor is another one better that lacks as much.
    assert!(host.fails(1, &["failover", "r2"]).contains("hint:  no standby has more; switch over"));
    host.pgbox(&["rm", "-f", "-v", "r2"]);
    // It was only looked at: the primary goes on.
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM t").trim(), "7");
    host.pgbox(&["crash", "primary", "--node"]);
    assert!(host.pgbox(&["failover", "r1", "--dry-run"]).contains("7 transactions with 7 rows are lost"));
    host.fails(1, &["failover", "r1"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    assert_eq!(host.sql("r1", &[], "SELECT count(*) FROM t").trim(), "0");
    host.sql("r1", &[], "INSERT INTO t VALUES (100)");
    host.pgbox(&["net", "heal", "primary", "r1"]);
    // What only the old primary had is taken back.
    let output = host.try_pgbox(&["rejoin", "primary"]);
    assert!(output.status.success() && text(&output.stderr).contains("pg_rewind"), "{output:?}");
    until("100", || host.sql("primary", &[], "SELECT string_agg(i::text, ',') FROM t"));
}

#[test]
fn a_log_outside_the_data_directory_is_renewed_with_the_data() {
    let Some(host) = Host::new() else { return };
    let env = "POSTGRES_INITDB_WALDIR=/wal/log";
    host.pgbox(&["run", "primary", "postgres:15", "-e", env, "-v", "wal:/wal"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let volumes = host.root.join("volumes/default");
    let log = || std::fs::read_link(volumes.join("primary/data/pg_wal")).unwrap().display().to_string();
    let entries = || {
        let dir = std::fs::read_dir(volumes.join("wal/data/log")).unwrap().flatten();
        let mut names: Vec<_> =
            dir.map(|entry| format!("/wal/log/{}", entry.file_name().display())).collect();
        names.sort();
        names
    };
    assert_eq!(log(), "/wal/log");
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    // What is in it counts, wherever it lies.
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "CREATE TABLE lost AS SELECT generate_series(1, 5)");
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 1 acknowledged transaction"), "{said}");
    host.sql("primary", &[], "DROP TABLE lost");
    host.pgbox(&["net", "heal", "primary", "r1"]);
    let streamed = "SELECT sent_lsn = replay_lsn FROM pg_stat_replication";
    until("t", || host.sql("primary", &[], streamed));
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    std::fs::write(volumes.join("wal/data/log/notes"), "somebody's").unwrap();
    host.pgbox(&["rejoin", "primary", "--clone"]);
    let first = log();
    assert_eq!(entries(), [first.clone(), "/wal/log/notes".to_owned()]);
    until("primary streaming", || host.sql("r1", &[], STREAMS));
    host.pgbox(&["reinit", "primary"]);
    assert_ne!(log(), first);
    assert_eq!(entries(), [log(), "/wal/log/notes".to_owned()]);
    // It is the log that counts, also after a rewind.
    host.pgbox(&["switchover", "primary"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (8)");
    host.pgbox(&["restart", "primary"]);
    until("7,8", || host.sql("r1", &[], "SELECT string_agg(i::text, ',' ORDER BY i) FROM t"));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (9)");
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    host.pgbox(&["net", "heal", "primary", "r1"]);
    let said = text(&host.try_pgbox(&["rejoin", "primary", "--clone", "--dry-run"]).stderr);
    assert!(said.contains("given up: 1 transaction with 1 row"), "{said}");
    let output = host.try_pgbox(&["rejoin", "primary"]);
    assert!(output.status.success() && text(&output.stderr).contains("pg_rewind"), "{output:?}");
    until("7,8", || host.sql("primary", &[], "SELECT string_agg(i::text, ',' ORDER BY i) FROM t"));
}

#[test]
fn a_log_in_the_container_itself_is_read_too_and_a_link_out_of_it_is_not_followed() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-e", "POSTGRES_INITDB_WALDIR=/var/lib/postgresql/log"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    host.pgbox(&["crash", "primary", "--node"]);
    // The node could have put anything there.
    let data = host.root.join("volumes/default/primary/data");
    let other = host.root.join("volumes/default/r1/data/pg_wal");
    std::fs::rename(data.join("pg_wal"), data.join("kept")).unwrap();
    std::os::unix::fs::symlink(&other, data.join("pg_wal")).unwrap();
    let said = host.fails(1, &["failover", "r1"]);
    assert!(
        said.contains("nobody knows what would be lost") && said.contains("/upper: No such file"),
        "{said}"
    );
    std::fs::remove_file(data.join("pg_wal")).unwrap();
    std::fs::rename(data.join("kept"), data.join("pg_wal")).unwrap();
    host.pgbox(&["failover", "r1"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (8)");
}

/// After a failover with a loss, the one that was away has a greater position than the new primary, on a timeline that was
/// left. Taken for the most advanced it would bring back what was given up, and lose what was written since.
#[test]
fn a_standby_that_has_gone_another_way_is_not_taken_for_a_better_one() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t SELECT generate_series(1, 100000)");
    until("100000", || host.sql("r2", &[], "SELECT count(*) FROM t"));
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("`r2` has more, and with it nothing is lost: `pgbox failover r2`"), "{said}");
    host.pgbox(&["net", "cut", "primary", "r2"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (0)");
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("`r2` has more, and lacks 1 transaction with 1 row as well"), "{said}");
    host.pgbox(&["freeze", "r2"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (7)");
    host.pgbox(&["crash", "r1", "--node"]);
    host.pgbox(&["thaw", "r2"]);
    let output = host.try_pgbox(&["failover", "r2"]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("`r2` has gone another way"), "{said}");
    assert!(said.contains("`r2` may lack what `r1` has acknowledged"), "{said}");
    // The one that has the rows comes back, and the other one to it.
    host.pgbox(&["start", "r1"]);
    host.pgbox(&["rejoin", "r2"]);
    until("7", || text(&host.try_pgbox(&["psql", "r2", "-Atc", "SELECT i FROM t"]).stdout));
}

/// The primary is dead, and what a failover to `r1` writes down next is on disk: as if it had been killed there.
fn begin_takeover(host: &Host) {
    host.pgbox(&["crash", "primary", "--node"]);
    let root = pgbox::state::Root::new(&host.root);
    let name = |name: &str| name.parse::<pgbox::spec::Name>().expect("a name");
    let old = pgbox::facts::node::find(&root, &name("default"), &name("primary")).expect("the node");
    pgbox::engine::takeover::supersede(&old, &name("r1")).expect("supersede");
}

/// Killed between the end of the old primary and the promotion: nobody is a primary then, and only one can become it.
#[test]
fn a_takeover_that_was_not_finished_is_finished_by_the_same_standby() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    begin_takeover(&host);
    for args in [["start", "primary"], ["rejoin", "primary"], ["switchover", "r1"], ["switchover", "r2"]] {
        let said = host.fails(1, &args);
        let not_finished = "`r1` was about to take the place of `primary`, which was not finished";
        assert!(said.contains(not_finished) && said.contains("`pgbox failover r1`"), "{args:?}: {said}");
    }
    let said = text(&host.try_pgbox(&["start", "--all"]).stderr);
    assert!(said.contains("`primary` stays down") && said.contains("`pgbox failover r1`"), "{said}");
    let said = host.fails(1, &["failover", "r2"]);
    assert!(said.contains("`r1` was about to take over") && said.contains("pgbox failover r1"), "{said}");
    // That is another thing than a standby that somebody else has promoted.
    let begun = |promoted: bool, said: &str| {
        let cluster = &host.json(&["status", "--json"])["clusters"][0];
        let takeover = serde_json::json!({ "old": "primary", "new": "r1", "promoted": promoted });
        assert_eq!(cluster["unfinished_takeover"], takeover);
        assert_eq!(cluster["nodes"][1]["stray"], serde_json::Value::Null);
        let text = format!(
            "`r1` was about to take the place of `primary`, which was not finished{said}: `pgbox failover r1`"
        );
        assert!(host.pgbox(&["status"]).contains(&text));
    };
    begun(false, "");
    host.sql("r1", &[], "SELECT pg_promote()");
    begun(true, "; it takes writes already, and nobody is led to it");
    host.pgbox(&["failover", "r1"]);
    host.pgbox(&["rejoin", "primary"]);
    until("primary streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
}

/// Killed just after the promotion, and then everything went down: the new one's data are a primary's, and nothing says so.
#[test]
fn a_takeover_that_was_not_finished_is_finished_after_both_went_down() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    begin_takeover(&host);
    host.sql("r1", &[], "SELECT pg_promote()");
    host.sql("r1", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["crash", "r1", "--node"]);
    let said = host.fails(1, &["start", "r1"]);
    assert!(said.contains("`pgbox promote r1`"), "{said}");
    assert!(host.pgbox(&["failover", "r1", "--dry-run"]).contains("start: `r1` as the primary"));
    host.pgbox(&["promote", "r1"]);
    assert_eq!(host.sql("r1", &[], "SELECT i FROM t"), "7");
    host.pgbox(&["rejoin", "r2"]);
    host.pgbox(&["rejoin", "primary"]);
    until("primary streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
}

/// The new primary dies before the next one has heard of it. Both would begin the same timeline, and pg_rewind would find
/// nothing to do where everything is different.
#[test]
fn two_that_never_met_do_not_begin_the_same_timeline() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r2", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["freeze", "r2"]);
    host.pgbox(&["crash", "primary", "--node"]);
    assert!(host.pgbox(&["failover", "r1"]).contains("timeline 2"));
    host.sql("r1", &[], "INSERT INTO t SELECT generate_series(1, 1000)");
    host.pgbox(&["crash", "r1", "--node"]);
    host.pgbox(&["thaw", "r2"]);
    let said = host.pgbox(&["failover", "r2", "--accept-loss"]);
    assert!(said.contains("timeline 3"), "{said}");
    host.sql("r2", &[], "INSERT INTO t VALUES (-1)");
    host.pgbox(&["rejoin", "r1", "--timeout", "60s"]);
    host.pgbox(&["rejoin", "primary", "--timeout", "60s"]);
    until("primary streaming, r1 streaming", || host.sql("r2", &[], STREAMS));
    for node in ["r1", "primary"] {
        until("-1", || host.sql(node, &[], "SELECT string_agg(i::text, ',') FROM t"));
    }
}

/// What is made below a live overlay need not be seen in it.
#[test]
fn a_standby_with_its_log_in_the_container_hears_of_the_others_timelines() {
    let Some(host) = Host::new() else { return };
    let kept = host.scratch("kept");
    pair(&host);
    host.pgbox(&["replica", "r2", "--of", "primary", "-v", &format!("{}:/kept:ro", kept.display())]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    host.pgbox(&["stop", "r2"]);
    let below = host.root.join("labs/default/nodes/r2/upper/var/lib/postgresql");
    let wal = host.root.join("volumes/default/r2/data/pg_wal");
    let aside = format!(
        "mkdir -p {0} && mv {1} {0}/log && ln -s /var/lib/postgresql/log {1}",
        below.display(),
        wal.display()
    );
    run("sh", &["-c", &aside]);
    host.pgbox(&["start", "r2"]);
    // The kernel remembers that there is none.
    host.fails(2, &["exec", "r2", "--", "ls", "/var/lib/postgresql/log/00000002.history"]);
    host.pgbox(&["freeze", "r2"]);
    host.pgbox(&["crash", "primary", "--node"]);
    assert!(host.pgbox(&["failover", "r1"]).contains("timeline 2"));
    host.sql("r1", &[], "INSERT INTO t VALUES (1)");
    host.pgbox(&["crash", "r1", "--node"]);
    host.pgbox(&["thaw", "r2"]);
    // What was given to the node to read is not written to for it.
    run("cp", &["-a", &below.join("log/.").display().to_string(), kept.to_str().unwrap()]);
    let lead_to = |place: &str| {
        std::fs::remove_file(&wal).unwrap();
        std::os::unix::fs::symlink(place, &wal).unwrap();
    };
    lead_to("/kept");
    let said = host.fails(1, &["failover", "r2", "--accept-loss"]);
    assert!(said.contains("make 00000002.history") && said.contains("Read-only file system"), "{said}");
    lead_to("/var/lib/postgresql/log");
    let said = host.pgbox(&["failover", "r2", "--accept-loss"]);
    assert!(said.contains("timeline 3"), "{said}");
}

/// What the standby lacks is no longer in the primary's log: that it holds no commit there says nothing.
#[test]
fn a_gap_in_the_log_is_not_taken_for_nothing_lost() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["stop", "r1"]);
    host.sql("primary", &[], "SELECT pg_drop_replication_slot('pgbox_r1')");
    host.sql("primary", &[], "INSERT INTO t VALUES (1)");
    for _ in 0..3 {
        host.sql("primary", &[], "SELECT pg_switch_wal()");
        host.sql("primary", &[], "CHECKPOINT");
    }
    host.pgbox(&["crash", "primary", "--node"]);
    host.try_pgbox(&["start", "r1"]);
    let output = host.try_pgbox(&["failover", "r1"]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("the WAL of `primary` between"), "{said}");
    assert!(said.contains("may lack what `primary` has acknowledged"), "{said}");
    host.pgbox(&["start", "primary"]);
    assert_eq!(host.sql("primary", &[], "SELECT i FROM t").trim(), "1");
}

/// The rule names r1 alone by now, but the commits before were on r2 alone: what holds now says nothing of them.
#[test]
fn a_rule_says_nothing_of_what_was_committed_before_it_held() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["sync", "any 1 (r1, r2)"]);
    host.pgbox(&["net", "cut", "primary", "r1"]);
    for i in 0..3 {
        host.sql("primary", &[], &format!("INSERT INTO t VALUES ({i})"));
    }
    host.pgbox(&["rm", "-f", "-v", "r2"]);
    host.pgbox(&["crash", "primary", "--node"]);
    let said = host.fails(1, &["failover", "r1"]);
    assert!(
        said.contains("lacks 3 transactions with 3 rows") && said.contains("may have been acknowledged"),
        "{said}"
    );
    // Once it has all that was before, it has all that was acknowledged.
    host.pgbox(&["net", "heal", "primary", "r1"]);
    host.pgbox(&["start", "primary"]);
    until("r1 streaming", || host.sql("primary", &[], STREAMS));
    host.sql("primary", &[], "INSERT INTO t VALUES (3)");
    let name = "default".parse().expect("a name");
    let node = pgbox::facts::node::find(
        &pgbox::state::Root::new(&host.root),
        &name,
        &"primary".parse().expect("a name"),
    );
    assert!(node.expect("the node").state.sync_since.is_some());
    host.pgbox(&["net", "cut", "primary", "r1"]);
    let uri = host.pgbox(&["uri", "primary"]);
    let mut commit = std::process::Command::new("psql");
    let mut commit =
        commit.args(["-Xqc", "INSERT INTO t VALUES (4)", uri.trim()]).spawn().expect("start psql");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("1", || host.sql("primary", &[], waits));
    let said = host.pgbox(&["failover", "r1"]);
    assert!(said.contains("nothing acknowledged is lost"), "{said}");
    assert!(!commit.wait().expect("psql ends").success());
}

/// Starts a failover that takes a while over its look, and waits until it holds the primary still.
pub fn failover_that_looks(host: &Host) -> std::process::Child {
    let child = host.command(&["failover", "r1"]).spawn().expect("start pgbox");
    let held = host.root.join("labs/default/held.json");
    let begun = std::time::Instant::now();
    while !(held.exists() && state(host, "primary") == "frozen") {
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "it holds nobody still");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child
}

fn state(host: &Host, node: &str) -> String {
    let rows = host.json(&["ps", "--json"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["node"] == node).unwrap().clone();
    row["state"].as_str().unwrap().to_owned()
}

/// A primary and a standby that is cut off from it and lacks something: so a failover waits for it, and looks.
pub fn pair_with_something_to_lose(host: &Host) {
    pair(host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (1)");
}

#[test]
fn what_a_killed_failover_held_still_goes_on_with_the_next_command() {
    let Some(host) = Host::new() else { return };
    pair_with_something_to_lose(&host);
    let mut child = failover_that_looks(&host);
    let said = host.fails(1, &["thaw", "primary"]);
    assert!(said.contains("held still by a failover"), "{said}");
    child.kill().expect("kill it");
    child.wait().expect("wait");
    assert_eq!(state(&host, "primary"), "frozen");
    for reader in ["status", "ps"] {
        let said = text(&host.try_pgbox(&[reader]).stderr);
        assert!(said.contains("`primary` is held still by a command that is gone"), "{reader}: {said}");
    }
    // Any command that takes the lab's lock.
    let said = text(&host.try_pgbox(&["net", "cut", "primary", "host"]).stderr);
    assert!(said.contains("left `primary` held still: it goes on"), "{said}");
    host.pgbox(&["net", "heal", "primary", "host"]);
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM t"), "1");
    let quiet = |args: &[&str]| assert_eq!(text(&host.try_pgbox(args).stderr), "", "{args:?}");
    quiet(&["status"]);

    // Nor does it stay so where the user thaws it.
    let mut child = failover_that_looks(&host);
    child.kill().expect("kill it");
    child.wait().expect("wait");
    host.pgbox(&["thaw", "primary"]);
    assert_eq!(state(&host, "primary"), "running");
    quiet(&["net", "heal", "--all"]);

    // A freeze of the user's stays, whoever looks meanwhile and is killed.
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (2)");
    host.pgbox(&["freeze", "primary"]);
    host.fails(1, &["failover", "r1"]);
    assert_eq!(state(&host, "primary"), "frozen");
    host.pgbox(&["thaw", "primary"]);
    let mut child = failover_that_looks(&host);
    host.try_pgbox(&["freeze", "primary"]);
    child.wait().expect("wait");
    quiet(&["net", "heal", "--all"]);
    assert_eq!(state(&host, "primary"), "frozen");
    host.pgbox(&["thaw", "primary"]);
}

#[test]
fn what_was_held_still_and_has_lost_its_place_does_not_go_on() {
    let Some(host) = Host::new() else { return };
    pair_with_something_to_lose(&host);
    let mut child = failover_that_looks(&host);
    child.kill().expect("kill it");
    child.wait().expect("wait");
    // Killed a moment later, it would have written this.
    let root = pgbox::state::Root::new(&host.root);
    let name = |name: &str| name.parse::<pgbox::spec::Name>().expect("a name");
    let old = pgbox::facts::node::find(&root, &name("default"), &name("primary")).expect("the node");
    pgbox::engine::takeover::supersede(&old, &name("r1")).expect("supersede");
    let output = host.try_pgbox(&["failover", "r1"]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("it is ended, for `r1` has its place"), "{said}");
    assert_ne!(state(&host, "primary"), "running");
    assert_eq!(host.sql("r1", &[], "SELECT pg_is_in_recovery()"), "f");
}

/// Only what has gone its own way is rewound, and nothing that is not needed is copied.
#[test]
fn who_only_fell_off_follows_as_it_is_and_says_so() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    until("1000", || text(&host.try_pgbox(&["psql", "r2", "-Atc", "SELECT count(*) FROM t"]).stdout));
    let system = |node: &str| {
        let file = host.root.join(format!("volumes/default/{node}/data/PG_VERSION"));
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(file).unwrap().ino()
    };
    let (before, data) = (host.init_pid("r2"), system("r2"));
    // Stopped while the primary changes, and killed.
    host.pgbox(&["crash", "r2", "--node"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (0)");
    for node in ["r2", "primary"] {
        let foretold = host.try_pgbox(&["rejoin", node, "--dry-run"]);
        assert!(text(&foretold.stdout).starts_with("as it is: "), "{foretold:?}");
        let output = host.try_pgbox(&["rejoin", node]);
        let said = text(&output.stderr);
        let as_it_is = format!("`{node}` has nothing that `r1` has not, and follows as it is");
        assert!(output.status.success() && said.contains(&as_it_is), "{said}");
        assert!(!said.contains("pg_rewind has") && !said.contains("base backup"), "{said}");
        until("1001", || host.sql(node, &[], "SELECT count(*) FROM t"));
    }
    assert_ne!(host.init_pid("r2"), before);
    assert_eq!(system("r2"), data, "its data are the same files");
    until("primary streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
}

/// Removed before the promotion, the old primary has no state to say that another one took its place: its data say it.
#[test]
fn a_primary_that_was_removed_first_does_not_come_back_beside_its_successor() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    for node in ["r1", "r2"] {
        until("7", || text(&host.try_pgbox(&["psql", node, "-Atc", "SELECT i FROM t"]).stdout));
        host.pgbox(&["stop", node]);
    }
    host.sql("primary", &[], "INSERT INTO t VALUES (8)");
    host.pgbox(&["rm", "--force", "primary"]);
    host.pgbox(&["start", "r1", "r2"]);
    let lacks = "the volume `primary` has 1 transaction that `r1` lacks";
    let foretold = host.pgbox(&["promote", "r1", "--dry-run"]);
    assert!(foretold.contains("follow: `r2` follows `r1`") && foretold.contains(lacks), "{foretold}");
    assert!(host.fails(1, &["promote", "r1"]).contains(lacks));
    host.pgbox(&["promote", "r1", "--accept-loss"]);
    until("r2 streaming", || host.sql("r1", &[], STREAMS));
    let said = host.fails(1, &["run", "primary", "postgres:15"]);
    assert!(said.contains("`r1` was promoted in its place"), "{said}");
    assert_eq!(host.json(&["endpoint", "--json"])[0]["leads_to"], serde_json::json!(["r1"]));
}

/// It asks for the old timeline from its segment's start, and so is seen to stream the end of that, again and again.
#[test]
fn a_standby_that_is_ahead_of_the_new_primary_does_not_stream_from_it() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    // So that it takes a while each time.
    host.sql("primary", &[], "SELECT pg_switch_wal()");
    host.sql("primary", &[], "CREATE TABLE much AS SELECT generate_series(1, 50000)");
    until("50000", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM much"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r2", "-Atc", "SELECT i FROM t"]).stdout));
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    let signal = |signal| {
        let receiver = descendant(host.init_pid("r2"), "walreceiver").map(Pid::from_raw);
        // It ends now and then.
        receiver.is_some_and(|receiver| kill(receiver, signal).is_ok())
    };
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    // Held in such a moment; the sender loses patience after 5 s, which a busy machine may take.
    let is_still = (0..5).any(|_| {
        until("1", || {
            signal(Signal::SIGCONT);
            std::thread::sleep(std::time::Duration::from_millis(10));
            signal(Signal::SIGSTOP);
            host.sql("r1", &[], streams)
        });
        let output = host.try_pgbox(&["rejoin", "r2", "--dry-run"]);
        let is_still = host.sql("r1", &[], streams) == "1";
        signal(Signal::SIGCONT);
        assert!(text(&output.stdout).starts_with("pg_rewind, or else"), "{output:?}");
        is_still
    });
    assert!(is_still, "it was never held for as long as that takes");
    host.pgbox(&["rejoin", "r2"]);
    until("r2 streaming", || host.sql("r1", &[], STREAMS));
}

#[test]
fn data_of_another_cluster_do_not_rejoin_and_it_is_said_what_does() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.pgbox(&["run", "other", "postgres:15"]);
    let origin = |node: &str| host.sql(node, &[], "SELECT system_identifier FROM pg_control_system()");
    let (own, theirs) = (origin("primary"), origin("other"));
    host.pgbox(&["stop", "r1", "other"]);
    let [r1, other] = ["r1", "other"].map(|node| host.root.join("volumes/default").join(node).join("data"));
    std::fs::remove_dir_all(&r1).unwrap();
    run("cp", &["-a", other.to_str().unwrap(), r1.to_str().unwrap()]);
    for args in [&["rejoin", "r1"][..], &["rejoin", "r1", "--dry-run"]] {
        let said = host.fails(1, args);
        let told =
            format!("the data of `r1` are of another cluster, {theirs}, than those of `primary`, {own}");
        assert!(said.contains(&told) && said.contains("`pgbox reinit r1`"), "{said}");
    }
    host.pgbox(&["reinit", "r1"]);
    assert_eq!(origin("r1"), own);
    until("r1 streaming", || host.sql("primary", &[], STREAMS));
}

/// What is seen of its log while it is held still is all that there will ever be: nobody is told of more.
#[test]
fn a_primary_that_is_fenced_writes_nothing_more() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["drive", "start"]);
    let root = pgbox::state::Root::new(&host.root);
    let name = |name: &str| name.parse::<pgbox::spec::Name>().expect("a name");
    let end = |node: &Node| {
        let place = Place::of(&node.state).unwrap();
        place.unreceived(place.control().unwrap().redo).unwrap().end
    };
    for _ in 0..5 {
        let before = host.json(&["drive", "report", "--json"])["acknowledged"].as_u64().unwrap();
        harness::until("it writes", 20, || {
            host.json(&["drive", "report", "--json"])["acknowledged"].as_u64().unwrap() > before + 100
        });
        let node = pgbox::facts::node::find(&root, &name("default"), &name("primary")).expect("the node");
        let pause = pgbox::engine::failover::Pause::begin(&root, &node).expect("hold it still");
        let held = end(&node);
        pgbox::engine::takeover::fence(&root, &node).expect("fence");
        pause.over().expect("no pause any more");
        assert_eq!(end(&node), held);
        host.pgbox(&["start", "primary"]);
    }
    host.pgbox(&["drive", "stop"]);
}
