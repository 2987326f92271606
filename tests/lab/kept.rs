//! Labs that come up again with less than they went down with: a volume was removed meanwhile, or an old primary stays out.

use std::fs;

use crate::{
    failover::STREAMS,
    harness::{Host, text},
    replica::until,
};

fn ps(host: &Host) -> String {
    host.pgbox(&["ps", "-q"])
}

#[test]
fn the_one_whose_data_are_a_primary_s_is_it_again_also_if_the_file_s_has_none_any_more() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["up"]);
    host.sql("primary", &[], "CREATE TABLE precious AS SELECT 7 AS i");
    host.pgbox(&["wait", "replica", "--for", "caught-up"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "replica"]);
    host.pgbox(&["rm", "-f", "-v", "primary"]);
    host.pgbox(&["down"]);
    let output = host.try_pgbox(&["up", "--diff"]);
    let is_primary = "`replica` is the primary now, and not `primary`";
    assert!(text(&output.stderr).contains(is_primary), "{output:?}");
    assert!(text(&output.stdout).contains("+ primary: a standby of replica"), "{output:?}");
    let output = host.try_pgbox(&["up"]);
    assert!(output.status.success() && text(&output.stderr).contains(is_primary), "{output:?}");
    until("primary streaming", || host.sql("replica", &[], STREAMS));
    assert_eq!(host.sql("primary", &[], "SELECT i FROM precious"), "7");
    assert!(host.pgbox(&["up"]).contains("nothing to do"));

    // Only a standby's are left: an empty primary would be another cluster.
    host.pgbox(&["down"]);
    host.pgbox(&["volume", "rm", "replica"]);
    for args in [&["up", "--diff"][..], &["up"]] {
        let said = host.fails(1, args);
        assert!(said.contains("the data of `primary` are no primary's"), "{said}");
        assert!(said.contains("primary/data/standby.signal") && !said.contains("volume rm"), "{said}");
        assert_eq!(ps(&host), "");
    }
    fs::remove_file(host.root.join("volumes/default/primary/data/standby.signal")).unwrap();
    host.pgbox(&["up"]);
    until("replica streaming", || host.sql("primary", &[], STREAMS));
    assert_eq!(host.sql("replica", &[], "SELECT i FROM precious"), "7");

    // Of another cluster, which may be all that is left of that: nothing is done with them, and nothing said against them.
    host.pgbox(&["down"]);
    host.pgbox(&["volume", "rm", "primary"]);
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["down"]);
    for args in [&["up", "--diff"][..], &["up"], &["up"]] {
        let said = host.fails(1, args);
        assert!(
            said.contains("`replica` is left out: the data in its volume are of another cluster"),
            "{said}"
        );
        assert!(!said.contains("volume rm"), "{said}");
    }
    assert_eq!(ps(&host), "primary\n");
}

#[test]
fn who_would_follow_an_old_primary_that_stays_out_follows_the_one_that_there_is() {
    let Some(host) = Host::new() else { return };
    let path = host.scratch("files").join("lab.toml");
    let lab = "sync = 'any 1 (b, c)'\n[defaults]\nimage = 'postgres:15'\n[nodes.a]\n[nodes.b]\nof = 'a'\n[nodes.c]\nof = 'a'\n\
               [nodes.late]\nof = 'b'\n";
    fs::write(&path, lab).unwrap();
    let file = path.to_str().unwrap();
    host.pgbox(&["up", file]);
    host.sql("a", &[], "CREATE TABLE t (i int)");
    host.pgbox(&["wait", "late", "--for", "caught-up"]);
    host.pgbox(&["switchover", "b"]);
    for other in ["a", "c", "late"] {
        host.pgbox(&["net", "cut", "b", other]);
    }
    host.sql("b", &[], "SET synchronous_commit = local; INSERT INTO t VALUES (1)");
    host.pgbox(&["crash", "b", "--node"]);
    host.pgbox(&["failover", "c", "--accept-loss"]);
    host.pgbox(&["net", "heal", "--all"]);
    host.pgbox(&["down"]);
    let output = host.try_pgbox(&["up", file]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("`late` follows `c`, and not `b`, which does not come up"), "{said}");
    assert!(text(&output.stdout).contains("as it is wanted, but for what was refused"), "{output:?}");
    until("a streaming, late streaming", || host.sql("c", &[], STREAMS));
    assert_eq!(host.sql("c", &[], "SHOW synchronous_standby_names"), "ANY 1 (\"a\", \"late\")");
}
