//! Changes of the primary that could not succeed, or would leave something behind: that is said before anybody is put out of the
//! way.

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
    host.pgbox(&["start", "primary"]);
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
