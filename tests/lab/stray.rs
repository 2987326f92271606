//! A standby that somebody has promoted without pgbox: two servers take writes, and whoever looks says so.

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
    guard.sees("warning", |event| {
        event["what"].as_str().unwrap().contains("`r1` was promoted behind pgbox' back")
    });
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
