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
