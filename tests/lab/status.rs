//! What a lab says of itself: the picture, lag, slots, and waiting for a state.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::harness::{Host, text, until};

/// A node as `status` has it.
#[track_caller]
fn member(host: &Host, node: &str) -> Value {
    let lab = host.json(&["status", "--json"]);
    let clusters = lab["clusters"].as_array().unwrap().iter();
    let nodes: Vec<&Value> = clusters.flat_map(|cluster| cluster["nodes"].as_array().unwrap()).collect();
    (*nodes.iter().find(|one| one["node"] == node).unwrap_or_else(|| panic!("no {node} in {lab}"))).clone()
}

#[track_caller]
fn is_in_state(host: &Host, node: &str, state: &str) {
    until(&format!("{node} is {state}"), 20, || member(host, node)["state"] == state);
}

fn lsn(value: &Value) -> u64 {
    value.as_str().unwrap().parse::<pgbox::postgres::lsn::Lsn>().unwrap().0
}

#[test]
fn the_picture_shows_who_follows_whom_and_how_far() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "r1"]);
    host.pgbox(&["replica", "r3", "--of", "primary"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    for node in ["r1", "r2", "r3"] {
        host.pgbox(&["wait", node, "--for", "caught-up"]);
        assert_eq!(host.sql(node, &[], "SELECT count(*) FROM t"), "1000", "{node}");
    }
    let picture = host.pgbox(&["status"]);
    let width = picture.find("STATE").unwrap();
    let names: Vec<&str> = picture.lines().map(|line| line[..width].trim_end()).collect();
    assert_eq!(names, ["NODE", "primary", "|-> r1", "|   `-> r2", "`-> r3"], "{picture}");

    for (node, of) in [("r1", "primary"), ("r2", "r1")] {
        until("nothing is left to replay", 20, || member(&host, node)["lag_bytes"] == 0);
        let one = member(&host, node);
        assert_eq!(
            (&one["role"], &one["follows"], &one["state"]),
            (&"standby".into(), &of.into(), &"streaming".into())
        );
        assert_eq!((&one["timeline"], &one["sync_state"]), (&1.into(), &"async".into()));
        let lsns = ["sent_lsn", "write_lsn", "flush_lsn", "replay_lsn"].map(|name| lsn(&one[name]));
        assert!(lsns.is_sorted_by(|a, b| a >= b), "{lsns:?}");
        assert_eq!((&one["slot"]["active"], &one["slot"]["wal_status"]), (&true.into(), &"reserved".into()));
        assert!(one["memory_bytes"].as_u64() > Some(1 << 20) && one["oom_kills"] == 0, "{one}");
    }
    let some = host.json(&["status", "r2", "--json"]);
    assert_eq!(some["clusters"][0]["nodes"].as_array().unwrap().len(), 1);
    assert!(host.fails(1, &["status", "nobody"]).contains("no node `nobody`"));
}

#[test]
fn nodes_that_say_nothing_are_shown_as_what_they_are() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    for node in ["r1", "r2", "r3"] {
        host.pgbox(&["replica", node, "--of", "primary"]);
    }
    host.pgbox(&["freeze", "r1"]);
    host.pgbox(&["crash", "r2", "--node"]);
    // Cut off at the host: it lives, and no packet reaches it.
    let address = host.json(&["uri", "r3", "--json"])["host"].as_str().unwrap().to_owned();
    crate::harness::run("ip", &["route", "add", "blackhole", &address]);
    let begun = Instant::now();
    let states =
        ["primary", "r1", "r2", "r3"].map(|node| member(&host, node)["state"].as_str().unwrap().to_owned());
    assert_eq!((&*states[1], &*states[2], &*states[3]), ("frozen", "killed", "silent"));
    assert_eq!(states[0], "running");
    assert!(begun.elapsed() < Duration::from_secs(20), "four looks took {:?}", begun.elapsed());
    assert!(host.pgbox(&["status"]).contains("r3: "), "the reason is told");
    assert!(host.pgbox(&["lag"]).contains("frozen"));
    crate::harness::run("ip", &["route", "del", "blackhole", &address]);
    host.pgbox(&["thaw", "r1"]);
    is_in_state(&host, "r1", "streaming");

    // Without a primary, nothing is known of the lag; the connections to a frozen one stay open.
    host.pgbox(&["freeze", "primary"]);
    assert_eq!(member(&host, "primary")["state"], "frozen");
    let r1 = member(&host, "r1");
    assert_eq!((&r1["lag_bytes"], &r1["state"]), (&Value::Null, &"streaming".into()));
    host.pgbox(&["thaw", "primary"]);
}

#[test]
fn a_stale_slot_is_lost_and_the_primary_lives() {
    let Some(host) = Host::new() else { return };
    let small = ["-c", "max_slot_wal_keep_size=32MB", "-c", "max_wal_size=48MB", "-c", "min_wal_size=32MB"];
    host.pgbox(&[&["run", "primary", "postgres:15"][..], &small].concat());
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.sql("primary", &[], "SELECT pg_create_physical_replication_slot('forgotten', true)");
    host.pgbox(&["stop", "r1"]);
    let kept = |slot: &str| {
        let all = host.json(&["slots", "--json"]);
        all.as_array().unwrap().iter().find(|row| row["slot_name"] == slot).unwrap().clone()
    };
    assert_eq!((&kept("pgbox_r1")["standby"], &kept("forgotten")["standby"]), (&"r1".into(), &Value::Null));
    host.sql("primary", &[], "CREATE TABLE t (x text)");
    for _ in 0..6 {
        host.sql("primary", &[], "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 20000)");
        host.sql("primary", &[], "SELECT pg_switch_wal()");
        host.sql("primary", &[], "CHECKPOINT");
    }
    assert_eq!(kept("pgbox_r1")["wal_status"], "lost");
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM t"), "120000");
    let picture = host.pgbox(&["status"]);
    assert!(picture.contains("the slot of `r1` is lost") && picture.contains("pgbox reinit r1"), "{picture}");
    assert_eq!(member(&host, "r1")["slot"]["wal_status"], "lost");

    assert!(host.fails(1, &["slots", "--drop", "pgbox_r1"]).contains("that of `r1`"));
    assert!(host.pgbox(&["slots", "--drop", "forgotten", "--dry-run"]).contains("forgotten"));
    host.pgbox(&["slots", "--drop", "forgotten"]);
    assert!(host.fails(1, &["slots", "--drop", "forgotten"]).contains("no running server has a slot"));
    assert!(!host.pgbox(&["slots"]).contains("forgotten"));
}

#[test]
fn a_slot_that_nobody_reads_from_is_named_with_what_it_keeps() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-c", "wal_level=logical"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.sql("primary", &[], "SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')");
    host.sql("r1", &[], "SELECT pg_create_physical_replication_slot('ext', true)");
    host.sql("primary", &[], "CREATE TABLE t AS SELECT generate_series(1, 100000)");
    host.pgbox(&["wait", "r1", "--for", "caught-up"]);
    host.pgbox(&["stop", "r1"]);
    let warnings = || {
        host.pgbox(&["status"]).lines().filter(|l| l.starts_with("warning")).collect::<Vec<_>>().join("\n")
    };
    let said = warnings();
    assert!(said.contains("the slot cdc (logical) of `primary` has no reader, and keeps "), "{said}");
    assert!(said.contains(" of WAL and the dead rows of the last ") && !said.contains("pgbox_r1"), "{said}");
    assert!(said.contains("`pgbox slots --drop cdc --on primary`"), "{said}");
    host.pgbox(&["slots", "--drop", "cdc", "--on", "primary"]);
    host.pgbox(&["start", "r1"]);
    let said = warnings();
    assert!(said.contains("the slot ext (physical) of `r1` has no reader, and keeps "), "{said}");
    host.pgbox(&["slots", "--drop", "ext", "--on", "r1"]);
    assert_eq!(warnings(), "");
}

#[test]
fn a_slot_in_use_is_not_dropped() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.sql("primary", &[], "SELECT pg_create_physical_replication_slot('mine')");
    let dir = host.scratch("wal");
    // The role that may replicate is there with the first standby.
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let password = std::fs::read_to_string(host.root.join("labs/default/nodes/primary/replicator")).unwrap();
    let address = host.json(&["uri", "primary", "--json"])["host"].as_str().unwrap().to_owned();
    let mut reader = std::process::Command::new("/usr/lib/postgresql/15/bin/pg_receivewal")
        .args(["-S", "mine", "-n", "-D", dir.to_str().unwrap(), "-U", "replicator", "-h", &address])
        .env("PGPASSWORD", password.trim())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let active = || host.json(&["slots", "--json"])[0].clone();
    until("the slot is in use", 20, || active()["slot_name"] == "mine" && active()["active"] == true);
    assert!(host.fails(1, &["slots", "--drop", "mine"]).contains("in use"));
    host.pgbox(&["slots", "--drop", "mine", "--force"]);
    assert!(!host.pgbox(&["slots"]).contains("mine"));
    let _ = reader.kill();
    reader.wait().unwrap();
}

#[test]
fn a_script_can_wait_for_roles_and_for_rows() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "late", "--of", "primary", "--delay", "1h"]);
    host.pgbox(&["wait", "primary", "--for", "role=primary"]);
    host.pgbox(&["wait", "r1", "--for", "role=standby"]);
    host.pgbox(&["wait", "r1", "--for", "streaming"]);
    // A primary is where it is itself.
    host.pgbox(&["wait", "primary", "--for", "caught-up"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT generate_series(1, 100000) i");
    host.pgbox(&["wait", "r1", "--for", "caught-up"]);
    assert_eq!(host.sql("r1", &[], "SELECT count(*) FROM t"), "100000");
    let said = host.fails(1, &["wait", "late", "--for", "caught-up", "--timeout", "500ms"]);
    assert!(said.contains("not caught up") && said.contains("has replayed up to"), "{said}");
    assert!(
        host.fails(1, &["wait", "r1", "--for", "role=primary", "--timeout", "100ms"])
            .contains("it is a standby")
    );
    assert!(
        host.fails(1, &["wait", "primary", "--for", "streaming", "--timeout", "0s"]).contains("no standby")
    );
    assert!(member(&host, "late")["lag_bytes"].as_u64() > Some(0));

    // It waits for what another command brings about.
    host.pgbox(&["stop", "r1"]);
    let wait = host.command(&["wait", "r1", "--for", "streaming"]).spawn().unwrap();
    host.pgbox(&["start", "r1"]);
    assert!(wait.wait_with_output().unwrap().status.success());
}

#[test]
fn lag_is_watched_until_ctrl_c() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    assert_eq!(host.json(&["lag", "--json"])[0]["node"], "r1");
    let watch = ["lag", "--watch", "--interval", "50ms", "--json"];
    let watch = host.command(&watch).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    kill(Pid::from_raw(watch.id() as i32), Signal::SIGINT).unwrap();
    let output = watch.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let lines = text(&output.stdout);
    assert!(lines.lines().count() >= 3, "{lines}");
    for line in lines.lines() {
        let rows: Value = serde_json::from_str(line).unwrap();
        assert_eq!(rows[0]["node"], "r1");
    }
}

#[test]
fn a_recovery_is_shown_and_left_alone() {
    let Some(host) = Host::new() else { return };
    let much = ["-c", "max_wal_size=8GB", "-c", "checkpoint_timeout=1h", "--restart", "on-crash:3"];
    host.pgbox(&[&["run", "primary", "postgres:15"][..], &much].concat());
    host.sql("primary", &[], "CREATE TABLE t (i int PRIMARY KEY, x text)");
    host.sql("primary", &[], "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 1500000) i");
    host.sql("primary", &[], "CREATE INDEX ON t (x, i)");
    let pid = host.init_pid("primary");
    host.pgbox(&["crash", "primary"]);
    let mut seen = Vec::new();
    until("it answers again", 60, || {
        let primary = member(&host, "primary");
        if !primary["recovery"]["at"].is_null() {
            seen.push(lsn(&primary["recovery"]["at"]));
            if seen.len() == 1 {
                assert!(
                    host.pgbox(&["status"]).contains("recovering at")
                        || member(&host, "primary")["state"] == "running"
                );
            }
        }
        primary["state"] == "running"
    });
    assert!(!seen.is_empty(), "the recovery was not seen");
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM t"), "1500000");
    assert_eq!(host.init_pid("primary"), pid, "nobody killed it");
}

/// Writes a row from a thread of its own; true when that is acknowledged.
fn commit(host: &Host, sql: &str) -> std::process::Child {
    let uri = host.pgbox(&["uri", "primary"]);
    let psql = std::process::Command::new("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, uri.trim()])
        .stdout(Stdio::null())
        .spawn();
    psql.unwrap()
}

#[test]
fn commits_wait_for_a_stopped_standby_until_sync_is_off() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "r1"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    // The primary beside its standby is the seat that it has after a switchover.
    assert!(host.pgbox(&["sync", "any 1 (primary, r1)"]).contains("; at this moment that is r1"));
    assert_eq!(host.sql("primary", &[], "SHOW synchronous_standby_names"), "ANY 1 (\"r1\")");
    host.pgbox(&["sync", "off"]);
    for (rule, why) in [
        ("any 1 (nobody)", "`nobody` does not follow `primary`"),
        ("any 1 (primary)", "`primary` does not follow"),
        ("any 1 (r2)", "these do: r1"),
        ("some", "these do: r1; a rule is `any N (NODE, ...)`"),
    ] {
        assert!(host.fails(1, &["sync", rule]).contains(why), "{rule}");
    }
    let said = host.pgbox(&["sync", "any", "1", "(r1)"]);
    assert!(said.contains("commits wait for any 1 (r1)"), "{said}");
    assert_eq!(host.sql("primary", &[], "SHOW synchronous_standby_names"), "ANY 1 (\"r1\")");
    // In the words of the rule, whatever the server's own are.
    let seen = host.pgbox(&["status"]);
    assert!(
        seen.contains("sync rule: any 1 (r1)\n") && seen.contains("\ncommits wait for any 1 (r1)\n"),
        "{seen}"
    );
    assert!(host.pgbox(&["sync"]).contains("in effect  commits wait for any 1 (r1)\n"));
    is_in_state(&host, "r1", "streaming");
    assert_eq!(member(&host, "r1")["sync_state"], "quorum");
    host.sql("primary", &[], "INSERT INTO t VALUES (1)");

    host.pgbox(&["stop", "r1"]);
    let mut waiting: Vec<_> = (2..4).map(|i| commit(&host, &format!("INSERT INTO t VALUES ({i})"))).collect();
    until("two commits wait", 20, || host.json(&["sync", "--json"])["waiting_commits"] == 2);
    let sync = host.json(&["status", "--json"])["clusters"][0]["sync"].clone();
    assert_eq!((&sync["waiting_commits"], &sync["waiting_for"][0]), (&2.into(), &"r1".into()));
    until("it is told", 5, || host.pgbox(&["status"]).contains("2 commits wait for r1"));
    assert!(host.pgbox(&["sync"]).contains("2 commits wait for r1"));
    // No timeout of the server's ends that.
    std::thread::sleep(Duration::from_millis(500));
    assert!(waiting.iter_mut().all(|psql| psql.try_wait().unwrap().is_none()));

    let said = host.pgbox(&["sync", "off"]);
    assert!(
        said.contains("commits wait for nobody") && said.contains("2 that waited went through"),
        "{said}"
    );
    for mut psql in waiting {
        until("it is acknowledged", 10, || psql.try_wait().unwrap().is_some());
        assert!(psql.wait().unwrap().success());
    }
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM t"), "3");
    // It can be asked for while the standby is away, and says so.
    let output = host.try_pgbox(&["sync", "first 1 (r1)"]);
    assert!(text(&output.stderr).contains("r1 does not stream"), "{output:?}");
    assert!(host.pgbox(&["sync"]).contains("first 1 (r1)"));
    host.pgbox(&["start", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (4)");
    host.pgbox(&["sync", "off"]);
}

#[test]
fn a_sync_rule_survives_a_change_of_roles_and_waits_for_nobody_that_is_gone() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["sync", "any 1 (r1)"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    let rule = |node: &str| host.sql(node, &[], "SHOW synchronous_standby_names");
    let states = "SELECT string_agg(application_name || ' ' || sync_state, ', ') FROM pg_stat_replication";

    // The old primary takes the seat of the new one, as soon as it follows.
    host.pgbox(&["switchover", "r1"]);
    assert_eq!(rule("r1"), "ANY 1 (\"primary\")");
    host.sql("r1", &[], "INSERT INTO t VALUES (1)");
    assert_eq!(host.sql("r1", &[], states), "primary quorum");
    host.pgbox(&["sync", "any 1 (r1)"]);
    host.pgbox(&["switchover", "primary"]);
    assert_eq!(rule("primary"), "ANY 1 (\"r1\")");
    // After a death nobody is there to wait for, until the dead one is back.
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    assert_eq!(rule("r1"), "");
    host.sql("r1", &[], "INSERT INTO t VALUES (2)");
    // Saying it again is no mistake, but it means nobody, and nobody says that it would mend something.
    let said = text(&host.try_pgbox(&["sync", "any 1 (r1)"]).stderr);
    assert!(said.contains("commits on `r1` wait for nobody"), "{said}");
    let said = host.pgbox(&["status"]);
    assert!(said.contains("commits on `r1` wait for nobody") && !said.contains("pgbox sync"), "{said}");
    host.pgbox(&["rejoin", "primary"]);
    assert_eq!(
        (rule("r1"), host.sql("r1", &[], states)),
        ("ANY 1 (\"primary\")".into(), "primary quorum".into())
    );

    // It is remembered over a restart of everything.
    host.pgbox(&["stop", "primary", "r1"]);
    host.pgbox(&["start", "r1", "primary"]);
    assert_eq!(rule("r1"), "ANY 1 (\"primary\")");
    // Told otherwise behind pgbox' back: that is seen, and mended.
    host.sql("r1", &[], "ALTER SYSTEM SET synchronous_standby_names = ''");
    host.sql("r1", &[], "SELECT pg_reload_conf()");
    until("it is seen", 10, || host.pgbox(&["status"]).contains("and `r1` waits for nobody"));
    assert!(host.fails(1, &["sync", "any 1 (r1)"]).contains("ALTER SYSTEM RESET"));
    host.sql("r1", &[], "ALTER SYSTEM RESET synchronous_standby_names");
    host.pgbox(&["sync", "any 1 (r1)"]);
    assert!(!host.pgbox(&["status"]).contains("waits for nobody"));

    host.pgbox(&["rm", "--force", "primary"]);
    until("nobody is waited for", 5, || rule("r1").is_empty());
    host.sql("r1", &[], "INSERT INTO t VALUES (3)");
    host.pgbox(&["replica", "r2", "--of", "r1"]);
    assert_eq!(rule("r1"), "ANY 1 (\"r2\")");
    host.pgbox(&["sync", "off"]);
    assert_eq!(rule("r1"), "");
}

/// A restartpoint may be long ago: what a standby has received says on which timeline it is.
#[test]
fn the_timeline_of_a_standby_that_is_alone_is_that_of_its_newest_wal() {
    let Some(host) = Host::new() else { return };
    for (node, of) in [("r1", "primary"), ("r2", "primary")] {
        if node == "r1" {
            host.pgbox(&["run", of, "postgres:15"]);
        }
        host.pgbox(&["replica", node, "--of", of]);
    }
    host.pgbox(&["switchover", "r1"]);
    host.sql("r1", &[], "CREATE TABLE t (i int)");
    until("it has that", 10, || host.try_pgbox(&["psql", "r2", "-c", "SELECT FROM t"]).status.success());
    let control = "SELECT timeline_id FROM pg_control_checkpoint()";
    assert_eq!(host.sql("r2", &[], control), "1", "there was no restartpoint");
    host.pgbox(&["net", "cut", "r1", "r2"]);
    until("it is alone", 20, || host.sql("r2", &[], "SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    assert_eq!(member(&host, "r2")["timeline"], 2);
}
