//! The life of a node: run, look, stop, start, crash, remove.

use std::{fs, process::Stdio, time::Instant};

use crate::harness::{Host, run, text, until};

const MEMORY: &[&str] = &["--memory", "512m"];

#[test]
fn run_answers_and_rm_leaves_only_the_volume() {
    let Some(host) = Host::new() else { return };
    let said =
        host.pgbox(&[&["run", "primary", "postgres:15", "-p", "127.0.0.1:5433:5432"], MEMORY].concat());
    assert!(said.contains("primary is ready"), "{said}");
    assert_eq!(host.sql("primary", &[], "SELECT 40 + 2"), "42");
    assert_eq!(host.sql("primary", &["--published"], "SELECT 40 + 2"), "42");
    assert_eq!(host.pgbox(&["psql", "primary", "-Atc", "SELECT 'in' || 'side'"]).trim(), "inside");
    let ps = host.json(&["ps", "--json"]);
    assert_eq!((ps[0]["node"].as_str(), ps[0]["state"].as_str()), (Some("primary"), Some("running")));
    assert!(host.fails(1, &["rm", "primary"]).contains("pgbox rm --force primary"));
    host.pgbox(&["rm", "--force", "primary"]);
    host.is_clean();
    assert!(host.root.join("volumes/default/primary/data/PG_VERSION").exists());
}

#[test]
fn namespaces_are_its_own() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let pid = host.init_pid("n");
    for kind in ["net", "pid", "mnt", "uts", "ipc", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace");
        assert_ne!(of(&pid.to_string()), of("thread-self"), "{kind}");
    }
    assert_eq!(host.pgbox(&["exec", "n", "--", "hostname"]).trim(), "n");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
    let at = |place: &str| {
        mounts.lines().find(|l| l.split(' ').nth(4) == Some(place)).unwrap_or_else(|| panic!("no {place}"))
    };
    assert!(at("/").contains("- overlay"));
    assert!(at("/sys").split(' ').nth(5).unwrap().starts_with("ro"));
    assert!(at("/proc/sys").split(' ').nth(5).unwrap().starts_with("ro"));
    assert!(at("/dev/shm").contains("size=262144k"));
    let devices = host.pgbox(&["exec", "n", "--", "ls", "/dev"]);
    let devices: Vec<&str> = devices.split_whitespace().collect();
    assert_eq!(
        devices,
        [
            "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
            "urandom", "zero"
        ]
    );
}

#[test]
fn stop_is_fast_with_idle_clients_and_start_keeps_address_and_data() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let address = host.json(&["inspect", "--json", "n"])[0]["network"]["address"].clone();
    host.sql("n", &[], "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
    let uri = host.pgbox(&["uri", "n"]);
    let mut idle = std::process::Command::new("psql")
        .arg(uri.trim())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the idle client is there", 10, || {
        host.pgbox(&[
            "psql",
            "n",
            "-Atc",
            "SELECT count(*) FROM pg_stat_activity WHERE client_addr IS NOT NULL",
        ])
        .trim()
            == "1"
    });
    let begun = Instant::now();
    host.pgbox(&["stop", "n"]);
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    idle.kill().ok();
    idle.wait().ok();
    let log = host.pgbox(&["logs", "n"]);
    assert!(log.contains("received fast shutdown request"), "{log}");
    host.is_clean();
    assert_eq!(host.json(&["ps", "--json"])[0]["state"], "stopped");
    assert!(host.fails(1, &["exec", "n", "--", "true"]).contains("pgbox start n"));
    host.pgbox(&["start", "n"]);
    assert_eq!(host.json(&["inspect", "--json", "n"])[0]["network"]["address"], address);
    assert_eq!(host.sql("n", &[], "SELECT count(*) FROM t"), "1000");
    let log = host.pgbox(&["logs", "n"]);
    assert!(!log.contains("automatic recovery in progress"), "the shutdown was not clean: {log}");
}

#[test]
fn restart_keeps_pid_1_and_changes_the_postmaster() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let (init, started) = (host.init_pid("n"), host.sql("n", &[], "SELECT pg_postmaster_start_time()"));
    host.pgbox(&["restart", "n"]);
    assert_eq!(host.init_pid("n"), init);
    assert_ne!(host.sql("n", &[], "SELECT pg_postmaster_start_time()"), started);
}

#[test]
fn after_kill_9_of_pid_1_the_node_starts_again() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 1 AS i");
    let pid = host.init_pid("n");
    run("kill", &["-9", &pid.to_string()]);
    until("pid 1 is gone", 10, || host.json(&["ps", "--json"])[0]["state"] == "killed");
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT count(*) FROM t"), "1");
}

#[test]
fn a_second_node_on_the_same_data_is_refused() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "a", "postgres:15", "-v", "shared:/var/lib/postgresql/data"]);
    let said = host.fails(1, &["run", "b", "postgres:15", "-v", "shared:/var/lib/postgresql/data"]);
    assert!(said.contains("node `a`"), "{said}");
    assert_eq!(host.sql("a", &[], "SELECT 1"), "1");
    assert_eq!(host.json(&["ps", "--json"]).as_array().unwrap().len(), 1);
}

#[test]
fn data_outlives_the_node_and_its_password_is_known_again() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["rm", "-f", "n"]);
    host.pgbox(&["run", "n", "postgres:15"]);
    assert_eq!(host.sql("n", &[], "SELECT i FROM t"), "7");
}

#[test]
fn logs_follow_until_the_node_ends() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let follower = host.command(&["logs", "-f", "n"]).stdout(Stdio::piped()).spawn().unwrap();
    host.sql("n", &[], "DO $$ BEGIN RAISE LOG 'a line of mine'; END $$");
    host.pgbox(&["stop", "n"]);
    let said = text(&follower.wait_with_output().unwrap().stdout);
    assert!(said.contains("a line of mine") && said.contains("database system is shut down"), "{said}");
}

#[test]
fn wait_returns_when_it_is_ready_and_when_it_has_stopped() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["wait", "n"]);
    assert!(host.fails(1, &["wait", "n", "--for", "stopped", "--timeout", "100ms"]).contains("it runs"));
    host.pgbox(&["stop", "n"]);
    host.pgbox(&["wait", "n", "--for", "stopped"]);
    assert!(host.fails(1, &["wait", "n"]).contains("does not run"));
}

#[test]
fn a_start_that_fails_takes_back_its_steps_and_keeps_the_node() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["stop", "n"]);
    // An inner step that must fail at once, with the lab's lock still held by the command.
    let scratch = host.root.join("labs/default/nodes/n/work/work");
    fs::remove_dir_all(&scratch).unwrap();
    fs::write(&scratch, "not a directory").unwrap();
    let said = host.fails(1, &["start", "n"]);
    assert!(said.contains("mount the overlay") && said.contains("`n` is stopped"), "{said}");
    host.is_clean();
    fs::remove_file(&scratch).unwrap();
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}
