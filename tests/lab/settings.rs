//! Other settings for servers that run: checked, brought in order, taken back.

use crate::harness::{Host, run};

/// What the node's server goes by.
#[track_caller]
fn setting(host: &Host, node: &str, name: &str) -> String {
    host.sql(node, &[], &format!("SHOW {name}"))
}

#[test]
fn a_setting_is_in_effect_and_stays() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-c", "work_mem=8MB"]);
    let pid = host.sql("primary", &[], "SELECT pg_postmaster_start_time()");
    let said = host.pgbox(&["set", "primary", "work_mem=64MB", "log_min_messages=notice"]);
    assert!(said.contains("primary: work_mem=64MB, in effect"), "{said}");
    assert_eq!(setting(&host, "primary", "work_mem"), "64MB");
    assert_eq!(host.sql("primary", &[], "SELECT pg_postmaster_start_time()"), pid, "no restart was needed");
    // In any case it is the same setting, as for the server.
    let said = host.pgbox(&["set", "primary", "WORK_MEM=32MB", "DateStyle=German"]);
    assert!(said.contains("primary: work_mem=32MB, in effect"), "{said}");
    assert_eq!(
        ["work_mem", "DateStyle"].map(|name| setting(&host, "primary", name)),
        ["32MB", "German, DMY"]
    );
    host.pgbox(&["set", "primary", "work-mem=64MB", "--reset", "DATESTYLE"]);
    let said = host.pgbox(&["set", "primary", "shared_buffers=40MB"]);
    assert!(said.contains("shared_buffers=40MB, in effect after a restart in place"), "{said}");
    host.pgbox(&["stop", "primary"]);
    host.pgbox(&["start", "primary"]);
    assert_eq!(["work_mem", "shared_buffers"].map(|name| setting(&host, "primary", name)), ["64MB", "40MB"]);
    // A reset leads to what every node has, or the server itself.
    host.pgbox(&[
        "set",
        "primary",
        "--reset",
        "work_mem",
        "--reset",
        "log-min-messages",
        "wal_sender_timeout=9s",
    ]);
    host.pgbox(&["set", "primary", "--reset", "wal_sender_timeout"]);
    assert_eq!(["work_mem", "wal_sender_timeout"].map(|name| setting(&host, "primary", name)), ["4MB", "5s"]);

    host.sql("primary", &[], "ALTER SYSTEM SET work_mem = '5MB'");
    let output = host.try_pgbox(&["set", "primary", "work_mem=6MB"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("ALTER SYSTEM RESET work_mem"), "{said}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "primary: work_mem=6MB, but not in effect\n");
}

#[test]
fn what_the_server_would_not_start_with_is_never_written() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    let files = || {
        let node = host.root.join("labs/default/nodes/primary");
        ["state.json", "orders.json"].map(|name| std::fs::read_to_string(node.join(name)).unwrap())
    };
    let before = files();
    for (words, why) in [
        (&["nosuch=1"][..], "knows no parameter nosuch"),
        (&["include=x"], "knows no parameter include"),
        (&["work_mem=1"], "outside the valid range"),
        (&["max_connections=abc"], "invalid value"),
        (&["max_connections=0"], "outside the valid range"),
        (&["max_connections=2"], "superuser_reserved_connections (3) must be less than max_connections (2)"),
        (&["superuser_reserved_connections=100"], "must be less than max_connections (100)"),
        (&["wal_level=most"], "invalid value"),
        (&["work_mem=64MB", "log_destination=nowhere"], "invalid value"),
        (&["block_size=4096"], "is fixed"),
        (&["wal_level=minimal"], "no standbys"),
    ] {
        let said = host.fails(1, &[&["set", "primary"], words].concat());
        assert!(said.contains(why), "{words:?}: {said}");
    }
    for (words, why) in [
        (&["port=5555"][..], "publish"),
        (&["synchronous_standby_names=x"], "pgbox sync"),
        (&["--reset", "primary_conninfo"], "pgbox rejoin"),
        (&[], "no setting was given"),
    ] {
        let said = host.fails(2, &[&["set", "primary"], words].concat());
        assert!(said.contains(why), "{words:?}: {said}");
    }
    for words in [&["set", "work_mem=64MB"][..], &["set", "--lab", "default", "work_mem=64MB"]] {
        let said = host.fails(2, words);
        assert!(said.contains("no node was named") && said.contains("set --all work_mem=64MB"), "{said}");
    }
    host.pgbox(&["set", "primary", "max_connections=50", "--dry-run"]);
    assert_eq!(files(), before);
    // What only a start can show is taken back.
    let said = host.fails(1, &["set", "primary", "shared_preload_libraries=nosuch"]);
    assert!(said.contains("runs as it was") && said.contains("could not access file"), "{said}");
    assert_eq!(setting(&host, "primary", "shared_preload_libraries"), "");
    host.pgbox(&["stop", "primary"]);
    assert!(host.fails(1, &["set", "primary", "work_mem=8MB"]).contains("pgbox start primary"));
    host.pgbox(&["start", "primary"]);
}

#[test]
fn what_pid_1_has_not_written_is_not_left_behind() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    let before = setting(&host, "primary", "work_mem");
    let pid = host.init_pid("primary").to_string();
    run("kill", &["-STOP", &pid]);
    let said = host.fails(1, &["set", "primary", "work_mem=64MB"]);
    run("kill", &["-CONT", &pid]);
    assert!(said.contains("everything is as it was") && said.contains("has not read its files"), "{said}");
    host.pgbox(&["restart", "primary"]);
    assert_eq!(setting(&host, "primary", "work_mem"), before);
}

#[test]
fn connections_are_raised_on_standbys_first_and_lowered_on_the_primary_first() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "r1"]);
    let order = |said: &str| -> Vec<String> {
        said.lines().filter_map(|line| line.split_once(": max_")).map(|(node, _)| node.to_owned()).collect()
    };
    let streams = || {
        for node in ["r1", "r2"] {
            host.pgbox(&["wait", node, "--for", "streaming"]);
            host.pgbox(&["wait", node, "--for", "caught-up"]);
            assert_eq!(host.sql(node, &[], "SELECT pg_get_wal_replay_pause_state()"), "not paused", "{node}");
        }
    };
    // One node alone must not be told.
    let said = host.fails(1, &["set", "primary", "max_connections=130"]);
    assert!(said.contains("`r1`") && said.contains("pgbox set --all max_connections=130"), "{said}");
    assert!(host.fails(1, &["set", "r1", "max_connections=90"]).contains("its primary `primary` has 100"));

    let said = host.pgbox(&["set", "--lab", "max_connections=130"]);
    assert_eq!(order(&said), ["r1", "r2", "primary"], "{said}");
    streams();
    let said = host.pgbox(&["set", "--all", "max_connections=110"]);
    assert_eq!(order(&said), ["primary", "r1", "r2"], "{said}");
    streams();
    // Both at once: up first on the standbys, and down last.
    let said = host.pgbox(&["set", "--all", "max_connections=120", "max_wal_senders=8", "work_mem=8MB"]);
    assert_eq!(order(&said), ["r1", "r2", "primary", "primary", "r1", "r2"], "{said}");
    streams();
    for node in ["primary", "r1", "r2"] {
        let now = ["max_connections", "max_wal_senders", "work_mem"].map(|name| setting(&host, node, name));
        assert_eq!(now, ["120", "8", "8MB"], "{node}");
    }
    // A standby that is stopped takes more at its next start, and less when it has replayed the change.
    host.pgbox(&["stop", "r2"]);
    let said = host.pgbox(&["set", "--all", "max_connections=140"]);
    assert!(said.contains("r2: max_connections=140, from its next start on"), "{said}");
    host.pgbox(&["start", "r2"]);
    streams();
    host.pgbox(&["stop", "r2"]);
    let said = host.pgbox(&["set", "--all", "max_connections=100"]);
    assert!(said.contains("r2: max_connections=100, from its next start on"), "{said}");
    let said = host.pgbox(&["start", "r2"]);
    assert!(said.contains("r2: max_connections=100, since its primary has less"), "{said}");
    assert_eq!(setting(&host, "r2", "max_connections"), "100");
    streams();
}

#[test]
fn limits_that_were_lowered_while_nothing_ran_are_no_reason_not_to_start() {
    let Some(host) = Host::new() else { return };
    let path = host.scratch("up").join("lab.toml");
    let file = |values: [u32; 5]| {
        let [a, b, c, d, e] = values;
        let settings = format!(
            "max_connections = {a}, max_worker_processes = {b}, max_wal_senders = {c}, \
             max_prepared_transactions = {d}, max_locks_per_transaction = {e}"
        );
        let text = format!(
            "[defaults]\nimage = 'postgres:15'\nsettings = {{ {settings} }}\n[nodes.primary]\n[nodes.r1]\nof = 'primary'\n\
             [nodes.r2]\nof = 'r1'\n"
        );
        std::fs::write(&path, text).expect("write");
        path.to_str().expect("UTF-8").to_owned()
    };
    host.pgbox(&["up", &file([130, 12, 14, 5, 80])]);
    host.pgbox(&["down"]);
    host.pgbox(&["up", &file([110, 9, 11, 0, 65])]);
    for node in ["primary", "r1", "r2"] {
        let sql = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name ~ \
                   '^max_(connections|worker_processes|wal_senders|prepared_transactions|locks_per_transaction)$'";
        assert_eq!(host.sql(node, &[], sql), "110 65 0 11 9", "{node}");
    }
    assert!(host.pgbox(&["up", path.to_str().unwrap()]).contains("nothing to do"));
    // Less than a primary goes on with is told, and a standby goes by what it needs.
    let output = host.try_pgbox(&["replica", "small", "--of", "primary", "-c", "max_connections=50"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("with max_connections=50 it could not replay"),
        "{said}"
    );
    assert_eq!(setting(&host, "small", "max_connections"), "110");
}
