//! Standbys that are none any more, by a promotion without pgbox or by what a failover has given up: whoever looks says so.

use serde_json::{Value, json};

use crate::{
    failover::{STREAMS, trio},
    guard::Guard,
    harness::{Host, text},
    replica::until,
};

fn promote_in(host: &Host, node: &str) {
    assert_eq!(host.sql(node, &[], "SELECT pg_promote()"), "t");
}

fn reads_go_to(host: &Host) -> Value {
    host.json(&["endpoint", "--json"])[1]["leads_to"].clone()
}

fn member(host: &Host, node: &str) -> Value {
    let status = host.json(&["status", "--json", node]);
    status["clusters"][0]["nodes"][0].clone()
}

#[test]
fn who_was_promoted_behind_pgbox_back_takes_no_reads_and_is_named_until_it_rejoins() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.pgbox(&["replica", "r3", "--of", "r1"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r3", "-Atc", "SELECT count(*) FROM t"]).stdout));
    assert_eq!(reads_go_to(&host), json!(["r1", "r2", "r3"]));
    promote_in(&host, "r1");
    host.sql("r1", &[], "INSERT INTO t VALUES (1)");
    // After a checkpoint it is `at least` that.
    let is_told = |said: &str| {
        let parts = [
            "`r1` was promoted behind pgbox' back, and is no standby of `primary` any more; it has ",
            "1 transaction with 1 row that `primary` lacks; to give that up: `pgbox rejoin r1`; to keep that, in the place of \
             `primary`: `pgbox failover r1`",
        ];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    };
    is_told(&host.pgbox(&["status"]));
    let seen = member(&host, "r1");
    assert_eq!(seen["state"], json!("promoted"));
    is_told(seen["stray"].as_str().unwrap());
    // Whatever settles the endpoint: what follows it has its rows, too.
    host.pgbox(&["stop", "r2"]);
    assert_eq!(reads_go_to(&host), json!(["primary"]));
    host.pgbox(&["start", "r2"]);
    assert_eq!(reads_go_to(&host), json!(["r2"]));
    for which in ["--rw", "--ro"] {
        let hosts = host.json(&["uri", which, "--hosts", "--json"])["hosts"].as_array().unwrap().len();
        assert_eq!(hosts, 2, "the primary and r2");
    }
    for args in [&["up"][..], &["up", "--diff"]] {
        is_told(&host.fails(1, args));
    }
    host.pgbox(&["stop", "r1"]);
    for args in [&["start", "r1"][..], &["up"]] {
        let said = host.fails(1, args);
        // Nothing starts it as a primary.
        assert!(said.contains("1 transaction with 1 row") && !said.contains("failover"), "{said}");
    }
    assert_eq!(host.pgbox(&["psql", "primary", "-Atc", "SELECT count(*) FROM t"]), "0\n");
    let output = host.try_pgbox(&["rejoin", "r1"]);
    assert!(text(&output.stderr).contains("1 transaction with 1 row"), "{output:?}");
    until("r1 streaming, r2 streaming", || host.sql("primary", &[], STREAMS));
    host.pgbox(&["rejoin", "r3"]);
    assert_eq!(reads_go_to(&host), json!(["r1", "r2", "r3"]));
    assert_eq!(host.pgbox(&["up"]), "nothing to do: lab `default` is as it is wanted\n");
    assert_eq!(member(&host, "r1")["stray"], Value::Null);
}

/// It may be the one that is meant: then what the old one has is what is lost.
#[test]
fn who_was_promoted_behind_pgbox_back_can_be_kept() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    promote_in(&host, "r1");
    host.sql("r1", &[], "INSERT INTO t VALUES (1)");
    host.sql("primary", &[], "INSERT INTO t VALUES (2), (3)");
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("lacks 1 acknowledged transaction with 2 rows that `primary` has"), "{said}");
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    assert_eq!(host.sql("r1", &[], "SELECT string_agg(i::text, ' ') FROM t"), "1");
    host.pgbox(&["rejoin", "r2"]);
    host.pgbox(&["rejoin", "primary"]);
    until("primary streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
    assert_eq!(host.pgbox(&["up"]), "nothing to do: lab `default` is as it is wanted\n");
}

#[test]
fn a_guard_leads_reads_past_who_was_promoted_behind_its_back() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    let guard = Guard::start(&host, "primary", &[]);
    promote_in(&host, "r1");
    // In the midst of a promotion only the logs tell of it.
    let words = ["`r1` was promoted behind pgbox' back", "`r1` has gone its own way"];
    guard.sees("warning", |event| words.iter().any(|word| event["what"].as_str().unwrap().contains(word)));
    guard.sees("reads", |event| event["standbys"] == json!(["r2"]));
    assert_eq!(reads_go_to(&host), json!(["r2"]));
    host.pgbox(&["crash", "primary", "--node"]);
    guard.sees("failed-over", |event| event["new"] == "r2");
    guard.end();
}

/// Its primary is gone: nothing starts it as a standby, and nobody else has more.
#[test]
fn who_was_promoted_by_hand_where_the_primary_is_gone_is_taken_for_what_it_is() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["rm", "-f", "-v", "primary"]);
    promote_in(&host, "r1");
    host.sql("r1", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["stop", "r1"]);
    assert!(host.fails(1, &["start", "r1"]).contains("`pgbox promote` takes it for the primary that it is"));
    host.pgbox(&["promote", "r1"]);
    assert_eq!(host.sql("r1", &[], "SELECT i FROM t"), "7");
    host.pgbox(&["restart", "r1"]);
    host.pgbox(&["replica", "r2", "--of", "r1"]);
}

/// `r2`, and `r3` by way of it, have 50 rows that `r1` has not, and were frozen when that took the place of the primary.
fn failed_over_past_two(host: &Host) {
    trio(host);
    host.pgbox(&["replica", "r3", "--of", "r2"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t SELECT generate_series(1, 50)");
    until("50", || text(&host.try_pgbox(&["psql", "r3", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["freeze", "r2", "r3"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    host.pgbox(&["net", "heal", "--all"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (100)");
    host.pgbox(&["rejoin", "primary"]);
}

fn states(host: &Host, args: &[&str]) -> Vec<(String, String)> {
    let said = host.json(args);
    let nodes = said.as_array().or_else(|| said["clusters"][0]["nodes"].as_array()).unwrap();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    nodes.iter().map(|node| (word(&node["node"]), word(&node["state"]))).collect()
}

#[test]
fn who_was_away_while_his_rows_were_given_up_is_known_whatever_he_streams() {
    let Some(host) = Host::new() else { return };
    failed_over_past_two(&host);
    let is_told = |said: &str, way_out: &str| {
        let lacks = "is no standby of `r1` any more; it has 1 transaction with 50 rows that `r1` lacks";
        assert!(said.contains("has gone its own way since 0/") && said.contains(lacks), "{said}");
        assert!(said.contains(way_out), "{said}");
    };
    let [r2, r3] = ["`pgbox rejoin r2`", "first `pgbox rejoin r2`, then `pgbox rejoin r3`"];
    // What was given up can be read there, and nowhere else.
    for node in ["r2", "r3"] {
        host.pgbox(&["thaw", node]);
        assert_eq!(host.pgbox(&["psql", node, "-Atc", "SELECT count(*) FROM t"]), "50\n");
        assert_eq!(reads_go_to(&host), json!(["primary"]));
        is_told(&host.fails(1, &["wait", node, "--for", "streaming", "--timeout", "1s"]), r2);
    }
    let said = host.pgbox(&["status"]);
    is_told(&said, &format!("to give that up: {r2}"));
    is_told(&said, &format!("to give that up: {r3}"));
    for args in [&["up"][..], &["up", "--diff"]] {
        is_told(&host.fails(1, args), r3);
    }
    // Nobody gets data from it.
    for args in [["rejoin", "r3"], ["reinit", "r3"]] {
        is_told(&host.fails(1, &args), &format!("hint:  {r3}"));
    }
    is_told(&host.fails(1, &["replica", "r4", "--of", "r3"]), &format!("hint:  first {r2}"));
    // Nor does anybody wait for it, or come after it.
    is_told(&host.fails(1, &["sync", "any 1 (primary, r2)"]), &format!("hint:  to give that up: {r2}"));
    is_told(&host.fails(1, &["switchover", "r2"]), &format!("hint:  first {r2}"));
    for args in [&["status", "--json"][..], &["ps", "--json"]] {
        for node in ["r2", "r3"] {
            assert!(states(&host, args).contains(&(node.to_owned(), "diverged".to_owned())), "{args:?}");
        }
    }
    host.pgbox(&["stop", "r2", "r3", "primary"]);
    for (args, way_out) in [(["start", "r2"], r2), (["start", "r3"], r3), (["start", "--all"], r3)] {
        is_told(&host.fails(1, &args), way_out);
    }
    assert!(states(&host, &["ps", "--json"]).contains(&("primary".to_owned(), "running".to_owned())));
    is_told(&host.fails(1, &["up"]), r3);
    for node in ["r2", "r3"] {
        let said = text(&host.try_pgbox(&["rejoin", node]).stderr);
        assert!(said.contains("pg_rewind has taken back") && !said.contains("a new base backup"), "{said}");
        until("100", || text(&host.try_pgbox(&["psql", node, "-Atc", "SELECT sum(i) FROM t"]).stdout));
    }
    until("r3 streaming", || host.sql("r2", &[], STREAMS));
    until("[\"primary\",\"r2\",\"r3\"]", || reads_go_to(&host).to_string());
    assert_eq!(host.pgbox(&["up"]), "nothing to do: lab `default` is as it is wanted\n");
    assert_eq!(text(&host.try_pgbox(&["status"]).stderr), "");
}

#[test]
fn who_has_gone_his_own_way_is_chosen_by_no_guard() {
    let Some(host) = Host::new() else { return };
    failed_over_past_two(&host);
    host.pgbox(&["thaw", "r2", "r3"]);
    host.pgbox(&["wait", "primary", "--for", "caught-up"]);
    let guard = Guard::start(&host, "r1", &[]);
    guard.sees("warning", |event| event["what"].as_str().unwrap().contains("`r2` has gone its own way"));
    host.pgbox(&["crash", "r1", "--node"]);
    guard.sees("failed-over", |event| event["new"] == "primary");
    guard.end();
    assert_eq!(host.sql("primary", &[], "SELECT sum(i) FROM t"), "100");
}

/// pg_rewind looks at what the server has replayed, and not at what is in its log: the next start would replay that.
#[test]
fn what_was_received_and_not_replayed_is_given_up_by_a_new_base_backup() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    for node in ["r1", "r2"] {
        until("0", || text(&host.try_pgbox(&["psql", node, "-Atc", "SELECT count(*) FROM t"]).stdout));
    }
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("r2", &[], "SELECT pg_wal_replay_pause()");
    host.sql("primary", &[], "INSERT INTO t SELECT generate_series(1, 50)");
    let received = "SELECT flush_lsn >= pg_current_wal_insert_lsn() FROM pg_stat_replication WHERE application_name = 'r2'";
    until("t", || host.sql("primary", &[], received));
    host.pgbox(&["stop", "r2"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (100)");
    let said = text(&host.try_pgbox(&["rejoin", "r2"]).stderr);
    let parts =
        ["pg_rewind sees nothing to do, though the logs have parted", "a new base backup replaces the data"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    until("r2 streaming", || host.sql("r1", &[], STREAMS));
    assert_eq!(host.sql("r2", &[], "SELECT string_agg(i::text, ' ') FROM t"), "100");
}
