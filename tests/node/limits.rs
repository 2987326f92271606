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
fn without_a_limit_on_memory_a_standby_takes_over_none_on_swap() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "--memory", "256m", "--swap", "64m"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--memory", "max"]);
    host.pgbox(&["replica", "r2", "--of", "primary", "--memory", "300m"]);
    let limits = |node: &str| host.json(&["inspect", "--json", node])[0]["spec"]["limits"].clone();
    assert!(limits("r1")["memory"].is_null() && limits("r1")["swap"].is_null(), "{}", limits("r1"));
    assert_eq!(
        (&limits("r2")["memory"], &limits("r2")["swap"]),
        (&(300u64 << 20).into(), &(64u64 << 20).into())
    );
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
    // With who it was, also when the node and its counter are gone. The kernel ends somebody else as well where the first one takes
    // more than a second to go, and the postmaster names whoever is gone first.
    host.pgbox(&["stop", "n"]);
    let log = host.pgbox(&["logs", "n"]);
    let told = log.lines().find(|line| line.contains("OOM killer")).unwrap_or_else(|| panic!("{log}"));
    assert!(told.contains(" process (PID ") && told.ends_with("the node was out of memory"), "{told}");
    assert!(host.json(&["inspect", "--json", "n"])[0]["status"]["oom_kills"].as_u64().unwrap() >= 1);
    let shown = host.pgbox(&["status"]);
    let kills =
        shown.lines().find(|line| line.starts_with("n ")).and_then(|line| line.split_whitespace().last());
    assert!(kills.is_some_and(|kills| kills.parse::<u64>().is_ok_and(|kills| kills >= 1)), "{shown}");
}

#[test]
fn a_server_that_is_killed_by_hand_is_not_the_oom_killers() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["crash", "n"]);
    host.pgbox(&["wait", "n", "--for", "stopped"]);
    let log = host.pgbox(&["logs", "-n", "1", "n"]);
    assert!(log.contains("signal 9: a kill -9, and not the kernel's OOM killer"), "{log}");
}

#[test]
fn the_oom_killer_takes_a_backend_before_the_server() {
    let Some(host) = Host::new() else { return };
    // What pgbox comes with, where it may not be lowered. Raising it may be done by all.
    std::fs::write("/proc/self/oom_score_adj", "100").unwrap();
    let lowest = match std::process::Command::new("sh")
        .args(["-c", "echo -1000 >/proc/self/oom_score_adj"])
        .status()
    {
        Ok(status) if status.success() => -1000,
        _ => 100,
    };
    host.pgbox(&["run", "n", "postgres:15"]);
    let score = |pid: i32| {
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse::<i32>().unwrap()
    };
    let children = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()).collect::<Vec<_>>()
    };
    let init = host.init_pid("n");
    let postmaster = children(init)[0];
    assert_eq!((score(init), score(postmaster)), (lowest, lowest));
    let backends = children(postmaster);
    assert!(!backends.is_empty() && backends.iter().all(|pid| score(*pid) == 0), "{backends:?}");
    for dir in host.json(&["inspect", "--json", "n"])[0]["cgroup"].as_array().unwrap() {
        if let Ok(group) =
            std::fs::read_to_string(std::path::Path::new(dir.as_str().unwrap()).join("memory.oom.group"))
        {
            assert_eq!(group.trim(), "0");
        }
    }
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_and_changes_nothing() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "--memory", "512m", "--cpus", "1", "-c", "shared_buffers=200MB"]);
    // 130 MB of shared buffers in use: page cache could be reclaimed, these can't.
    let fill = "CREATE EXTENSION pg_prewarm; CREATE TABLE t AS SELECT repeat(md5(i::text), 50) FROM \
                generate_series(1, 80000) i; SELECT pg_prewarm('t')";
    host.sql("n", &[], fill);
    let limits = || {
        let stats = host.json(&["stats", "--json", "n"])[0].clone();
        let pid = host.init_pid("n");
        let quota = host.json(&["inspect", "--json", "n"])[0]["spec"]["limits"].clone();
        (stats["memory_max"].clone(), quota, pid)
    };
    let before = limits();
    let said = host.fails(1, &["limit", "n", "--memory", "80m", "--cpus", "0.7", "--pids", "90"]);
    assert!(said.contains("in use") && said.contains("nothing was changed"), "{said}");
    assert_eq!(limits(), before);
    assert!(host.fails(2, &["limit", "n", "--memory", "8m"]).contains("too small for Postgres"));
    assert!(host.fails(2, &["limit", "n"]).contains("no limit was given"));
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
    // Of a stopped node it is a wish for the next start.
    host.pgbox(&["stop", "n"]);
    assert!(host.fails(2, &["limit", "n", "--memory", "8m"]).contains("too small for Postgres"));
    host.pgbox(&["limit", "n", "--memory", "600m", "--pids", "200"]);
    host.pgbox(&["start", "n"]);
    let stats = host.json(&["stats", "--json", "n"])[0].clone();
    assert_eq!((&stats["memory_max"], &stats["pids_max"]), (&(600 << 20).into(), &200.into()));
}

#[test]
fn a_limit_can_be_lifted_and_a_refused_change_leaves_none_behind() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "--memory", "300m", "--cpus", "0.5", "--pids", "100"]);
    let limits = || host.json(&["inspect", "--json", "n"])[0]["spec"]["limits"].clone();
    let stats = || host.json(&["stats", "--json", "n"])[0].clone();
    host.pgbox(&["limit", "n", "--memory", "max", "--cpus", "max", "--pids", "max"]);
    assert!(limits()["memory"].is_null() && limits()["milli_cpus"].is_null() && limits()["pids"].is_null());
    let memory = stats()["memory_max"].as_u64();
    assert!(memory.is_none_or(|limit| limit > 1 << 60), "{memory:?}");
    let table = host.pgbox(&["stats", "n"]);
    assert!(table.contains("/ max"), "{table}");
    for name in ["cpu.cfs_quota_us", "pids.max", "cpu.max"] {
        for dir in host.json(&["inspect", "--json", "n"])[0]["cgroup"].as_array().unwrap() {
            if let Ok(text) = std::fs::read_to_string(std::path::Path::new(dir.as_str().unwrap()).join(name))
            {
                assert!(text.starts_with("-1") || text.starts_with("max"), "{name}: {text}");
            }
        }
    }
    // One that is refused half-way sets none of the others.
    assert!(host.fails(1, &["limit", "n", "--pids", "100", "--cpus", "4096"]).contains("4096 CPUs"));
    assert!(limits()["pids"].is_null());
    host.pgbox(&["stop", "n"]);
    host.pgbox(&["start", "n"]);
    assert!(host.pgbox(&["stats", "n"]).contains("/ max"));
    host.pgbox(&["limit", "n", "--memory", "400m"]);
    assert_eq!(stats()["memory_max"], 400 << 20);
    host.pgbox(&["run", "m", "postgres:15", "--memory", "max", "--tune", "auto"]);
    assert!(host.pgbox(&["stats", "m"]).contains("/ max"));
}

#[test]
fn memory_high_slows_down_on_cgroup_v2_and_is_refused_elsewhere() {
    let Some(host) = Host::new() else { return };
    let run = ["run", "n", "postgres:15", "--memory", "300m", "--memory-high"];
    assert!(host.fails(2, &[&run[..], &["400m"]].concat()).contains("above the limit of 300M"));
    // The memory controller is in one of the two.
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "memory") {
        let said = host.fails(1, &[&run[..], &["200m"]].concat());
        assert!(said.contains("only cgroup v2 has memory.high"), "{said}");
        host.is_forgotten();
        host.pgbox(&["run", "n", "postgres:15"]);
        let said = host.fails(1, &["limit", "n", "--memory-high", "200m"]);
        assert!(said.contains("only cgroup v2 has memory.high"), "{said}");
        return;
    }
    host.pgbox(&[&run[..], &["200m"]].concat());
    let high = || {
        let inspected = host.json(&["inspect", "--json", "n"])[0].clone();
        let dirs = inspected["cgroup"].as_array().unwrap().iter();
        let path = |dir: &serde_json::Value| std::path::Path::new(dir.as_str().unwrap()).join("memory.high");
        dirs.filter_map(|dir| std::fs::read_to_string(path(dir)).ok()).collect::<String>()
    };
    assert_eq!(high().trim(), (200 << 20).to_string());
    host.pgbox(&["limit", "n", "--memory-high", "250m"]);
    assert_eq!(high().trim(), (250 << 20).to_string());
    host.pgbox(&["restart", "n"]);
    assert_eq!(high().trim(), (250 << 20).to_string());
    host.pgbox(&["limit", "n", "--memory-high", "max"]);
    assert_eq!(high().trim(), "max");
}
