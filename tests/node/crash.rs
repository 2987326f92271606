//! Commands that are killed. What they began, a later command can take back; what runs, they can't harm.

use std::{process::Stdio, time::Duration};

use crate::harness::{Host, run, until};

/// `pgbox run`, killed at moments spread over its whole course; after each, `rm` leaves nothing.
#[test]
fn run_killed_at_any_moment_can_be_taken_back() {
    let Some(host) = Host::new() else { return };
    let mut interrupted = 0;
    for i in 0..24 {
        let mut child = host
            .command(&["run", "n", "postgres:15", "-p", "5433:5432", "--memory", "256m"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(i * i / 2));
        child.kill().unwrap();
        interrupted += i32::from(!child.wait().unwrap().success());
        if !host.pgbox(&["ps", "-q"]).is_empty() {
            host.pgbox(&["rm", "--force", "-v", "n"]);
            host.is_forgotten();
        }
        host.is_clean();
    }
    assert!(interrupted > 12, "only {interrupted} of 24 runs were killed");
    // And the name is free for a node that lives.
    host.pgbox(&["run", "n", "postgres:15"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

/// Whoever is removed meanwhile leaves it bridge and table, which it has not come to yet.
#[test]
fn what_a_lab_shares_goes_with_its_last_node_however_far_that_came() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "-d", "kept", "tiny", "--", "sleep", "600"]);
    // The first one is pid 1's: its namespace is there, its cable is not.
    host.killed_at("socketpair", 1, &["run", "-d", "n", "tiny", "--", "sleep", "600"]);
    host.pgbox(&["rm", "--force", "kept"]);
    host.pgbox(&["rm", "--force", "n"]);
    host.is_forgotten();
}

/// Milliseconds after which a command is killed: most are over within the last ones.
const MOMENTS: [u64; 12] = [0, 4, 8, 12, 17, 23, 30, 40, 55, 80, 120, 200];

/// Begins a command, kills it after a while, and says whether that was before its end.
fn killed(host: &Host, args: &[&str], after: u64) -> bool {
    let mut command = host.command(args);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(after));
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

#[test]
fn stop_and_start_killed_at_any_moment_do_it_the_second_time() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-p", "5433:5432", "--memory", "256m"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 1 AS i");
    let (mut stops, mut starts) = (0, 0);
    for after in MOMENTS {
        stops += i32::from(killed(&host, &["stop", "n"], after));
        host.pgbox(&["stop", "n"]);
        host.is_clean();
        assert_eq!(host.json(&["ps", "--json"])[0]["state"], "stopped", "{after} ms");
        starts += i32::from(killed(&host, &["start", "n"], after));
        host.pgbox(&["start", "n"]);
        host.pgbox(&["wait", "n", "--timeout", "20s"]);
        assert_eq!(host.sql("n", &["--published"], "SELECT i FROM t"), "1", "{after} ms");
    }
    assert!(stops > 3 && starts > 5, "only {stops} stops and {starts} starts were killed");
}

#[test]
fn rm_killed_at_any_moment_does_it_the_second_time() {
    let Some(host) = Host::new() else { return };
    let mut interrupted = 0;
    for after in MOMENTS {
        // A command node is there at once.
        let mut run =
            host.command(&["run", "n", "tiny", "-v", "v:/v", "-p", "5433:5432", "--", "sleep", "600"]);
        let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("it runs", 20, || host.json(&["ps", "--json"])[0]["state"] == "running");
        interrupted += i32::from(killed(&host, &["rm", "--force", "-v", "n"], after));
        let again = host.try_pgbox(&["rm", "--force", "-v", "n"]);
        let said = crate::harness::text(&again.stderr);
        assert!(again.status.success() || said.contains("no node `n`"), "{after} ms: {said}");
        run.wait().unwrap();
        host.is_forgotten();
    }
    assert!(interrupted > 3, "only {interrupted} were killed");
}

#[test]
fn a_volume_whose_removal_is_killed_is_gone_by_its_name_and_soon_altogether() {
    let Some(host) = Host::new() else { return };
    let lab = host.root.join("volumes/default");
    let left = || std::fs::read_dir(&lab).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let half = || left().filter(|name| name.to_string_lossy().ends_with(".going")).count();
    for removal in [&["rm", "-v", "n"][..], &["volume", "rm", "n"]] {
        host.pgbox(&["run", "n", "postgres:15"]);
        host.pgbox(&["stop", "n"]);
        if removal[0] == "volume" {
            host.pgbox(&["rm", "n"]);
        }
        host.killed_at("unlinkat", 300, removal);
        assert_eq!(half(), 1, "{removal:?}: {:?}", left().collect::<Vec<_>>());
        assert_eq!(host.pgbox(&["volume", "ls", "-q"]), "");
        // The name is free, and what comes next to remove something ends what was begun.
        host.pgbox(&["run", "n", "postgres:15"]);
        assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
        host.pgbox(&["rm", "-f", "-v", "n"]);
        assert_eq!(half(), 0, "{removal:?}");
    }
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["stop", "n"]);
    host.killed_at("unlinkat", 300, &["rm", "-v", "n"]);
    host.pgbox(&["down", "-v"]);
    assert_eq!(half(), 0);
}

#[test]
fn killing_every_command_harms_no_node() {
    let Some(host) = Host::new() else { return };
    let mut runner =
        host.command(&["run", "n", "postgres:15", "--foreground"]).stdout(Stdio::null()).spawn().unwrap();
    until("it answers", 60, || host.try_pgbox(&["wait", "n", "--timeout", "1s"]).status.success());
    let mut follower = host.command(&["logs", "-f", "n"]).stdout(Stdio::null()).spawn().unwrap();
    for command in [&mut runner, &mut follower] {
        command.kill().unwrap();
        command.wait().unwrap();
    }
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
    host.pgbox(&["stop", "n"]);
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

#[test]
fn a_backend_that_crashes_takes_nothing_along_and_on_crash_restarts_the_server() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "--restart", "on-crash:3"]);
    let postmaster =
        || host.pgbox(&["exec", "n", "--", "head", "-1", "/var/lib/postgresql/data/postmaster.pid"]);
    let before = postmaster();
    let pid = host.init_pid("n");
    let on_host = run("pgrep", &["-P", &pid.to_string(), "-x", "postgres"]);
    run("kill", &["-9", &on_host]);
    until("another postmaster", 20, || {
        let now =
            host.try_pgbox(&["exec", "n", "--", "head", "-1", "/var/lib/postgresql/data/postmaster.pid"]);
        now.status.success() && crate::harness::text(&now.stdout) != before
    });
    host.pgbox(&["wait", "n", "--timeout", "20s"]);
    assert_eq!(host.init_pid("n"), pid);
    assert_eq!(host.json(&["ps", "--json"])[0]["restarts"], 1);
}
