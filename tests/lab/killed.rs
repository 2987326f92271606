//! Commands that are killed while they change what a node is to do: whoever comes after them finds all they have begun.

use crate::{harness::Host, replica::until};

#[test]
fn a_start_killed_at_the_clone_is_taken_back_whatever_it_had_planned() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "p", "postgres:15"]);
    host.pgbox(&["replica", "r", "--of", "p"]);
    host.pgbox(&["stop", "--all"]);
    // It is to come up alone, and its plan has fewer steps than before.
    host.killed_at("clone3", 1, &["start", "r"]);
    host.pgbox(&["start", "r"]);
    host.pgbox(&["stop", "r"]);
    host.is_clean();
    // And more again. What makes pid 1 begins with this call; before it there are threads that ask.
    host.pgbox(&["start", "p"]);
    host.killed_at("socketpair", 1, &["start", "r"]);
    host.pgbox(&["start", "r"]);
    until("streaming", || host.sql("p", &[], "SELECT state FROM pg_stat_replication"));
    host.pgbox(&["stop", "--all"]);
    host.killed_at("clone3", 1, &["start", "r"]);
    host.pgbox(&["rm", "-v", "r"]);
    host.is_clean();
    host.pgbox(&["rm", "-v", "p"]);
    host.is_forgotten();
}

#[test]
fn ports_that_are_published_by_a_command_that_is_killed_are_known() {
    let Some(host) = Host::new() else { return };
    let file = |publish: &str| {
        let file = host.scratch("lab").join("lab.toml");
        let text = format!("lab = \"default\"\n[nodes.p]\nimage = \"postgres:15\"\n{publish}");
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    // Files are renamed into their place, the node's state among them.
    for nth in 1.. {
        host.pgbox(&["up", &file("")]);
        let was_killed = host.try_killed_at("rename", nth, &["up", &file("publish = ['5433:5432']")]);
        host.pgbox(&["rm", "-f", "p"]);
        host.is_clean();
        if !was_killed {
            assert!(nth > 1, "nothing was killed");
            break;
        }
    }
}

/// The rule goes when the node has gone, and not before: a standby that is left is one that commits wait for, or that is told.
#[test]
fn a_standby_whose_removal_is_killed_is_in_the_rule_as_before() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "p", "postgres:15"]);
    host.pgbox(&["replica", "a", "--of", "p", "--sync"]);
    let mut left = 0;
    for nth in 1.. {
        let was_killed = host.try_killed_at("rename", nth, &["rm", "-f", "-v", "a"]);
        if !was_killed || !host.pgbox(&["ps", "-q"]).contains("a\n") {
            break;
        }
        left += 1;
        host.pgbox(&["up"]);
        let rule = host.json(&["sync", "--json"]);
        assert_eq!(rule["rule"], "any 1 (a)", "{nth}");
        let is_told = host.pgbox(&["status"]).contains("`pgbox sync 'any 1 (a)'` brings it there");
        assert!(is_told || rule["in_effect"] != "", "{nth}: {rule}");
    }
    assert!(left > 1, "{left}");
    host.try_pgbox(&["rm", "-f", "-v", "a"]);
    host.pgbox(&["up"]);
    assert_eq!(host.json(&["sync", "--json"])["in_effect"], "");
    assert_eq!(host.pgbox(&["ps", "-q"]), "p\n");
}
