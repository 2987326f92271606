//! Labs that come up again with less than they went down with: a volume was removed meanwhile, or an old primary stays out.

use std::{
    fs,
    time::{Duration, Instant},
};

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

/// The middle of a cascade is made anew, and has not what the one below it needs.
#[test]
fn a_standby_that_needs_wal_that_is_gone_is_told_of_at_once_and_with_the_way_out() {
    let Some(host) = Host::new() else { return };
    let path = host.scratch("files").join("lab.toml");
    let lab = "sync = 'any 1 (b)'\n[defaults]\nimage = 'postgres:15'\n[nodes.a]\n[nodes.b]\nof = 'a'\n[nodes.c]\nof = 'b'\n";
    fs::write(&path, lab).unwrap();
    let file = path.to_str().unwrap();
    let go_on = || {
        let more = "SELECT pg_switch_wal(); CREATE TABLE IF NOT EXISTS t (i int); CHECKPOINT";
        more.split("; ").for_each(|sql| drop(host.sql("a", &[], sql)));
    };
    host.pgbox(&["up", file]);
    host.pgbox(&["stop", "c"]);
    go_on();
    host.pgbox(&["reinit", "b"]);
    let begun = Instant::now();
    let said = host.fails(1, &["start", "c"]);
    assert!(
        said.contains("`c` can't follow `b`, which has not kept the WAL")
            && said.contains("`pgbox reinit c`"),
        "{said}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let told = "`c` can't follow `b`, which has not kept the WAL that it needs";
    until("true", || host.pgbox(&["status"]).contains(told).to_string());
    for args in [&["up", file][..], &["up", file, "--diff"]] {
        let said = host.fails(1, args);
        assert!(said.contains(told) && said.contains("`pgbox reinit c`"), "{said}");
    }
    host.pgbox(&["reinit", "c"]);
    until("c streaming", || host.sql("b", &[], STREAMS));
    assert!(host.pgbox(&["up", file]).contains("nothing to do"));
    assert!(!host.pgbox(&["status"]).contains(told));

    // The same of a node that is to be made of data that were left. The rest is done.
    host.pgbox(&["down"]);
    host.pgbox(&["volume", "rm", "b"]);
    host.pgbox(&["run", "a", "postgres:15"]);
    go_on();
    let output = host.try_pgbox(&["up", file]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("has not kept the WAL that `c` needs")
            && said.contains("`pgbox replica c --of b --force`"),
        "{said}"
    );
    assert_eq!(host.sql("a", &[], "SHOW synchronous_standby_names"), "ANY 1 (\"b\")");
    host.pgbox(&["replica", "c", "--of", "b", "--force"]);
    assert!(host.pgbox(&["up", file]).contains("nothing to do"));
}
