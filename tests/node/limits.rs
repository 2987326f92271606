//! Limits that the kernel holds. What needs pure cgroup v2 is tested again inside the test kernel.

use crate::harness::Host;

#[test]
fn limits_are_in_the_kernels_files_and_change_while_it_runs() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "--memory", "300m", "--cpus", "0.5", "--pids", "100"]);
    let stats = || host.json(&["stats", "--json", "n"])[0].clone();
    assert_eq!(stats()["memory_max"], 300 << 20);
    assert_eq!(stats()["pids_max"], 100);
    let pid = host.init_pid("n");
    let membership = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(membership.lines().any(|l| l.ends_with("/default/n")), "{membership}");
    host.pgbox(&["limit", "n", "--memory", "400m"]);
    assert_eq!(stats()["memory_max"], 400 << 20);
    host.pgbox(&["stop", "n"]);
    host.pgbox(&["start", "n"]);
    assert_eq!(stats()["memory_max"], 400 << 20);
}

#[test]
fn a_backend_that_takes_too_much_dies_and_the_server_answers_again() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "--memory", "256m"]);
    let hog = "SELECT length(string_agg(repeat(md5(i::text), 50), '')) FROM generate_series(1, 500000) i";
    let uri = host.pgbox(&["uri", "n"]);
    let output = std::process::Command::new("psql").args(["-Xc", hog, uri.trim()]).output().unwrap();
    assert!(!output.status.success(), "it was given the memory");
    host.pgbox(&["wait", "n", "--timeout", "30s"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
    assert!(host.json(&["stats", "--json", "n"])[0]["oom_kills"].as_u64().unwrap() >= 1);
}
