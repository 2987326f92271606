//! A whole lab goes down and comes back, as planned and otherwise.

use std::process::Stdio;

use crate::{
    harness::{Host, text, until as soon},
    replica::until,
};

const STREAMS: &str = "SELECT string_agg(application_name || ' ' || state, ', ' ORDER BY application_name) FROM pg_stat_replication";

/// When a server said this last, as its log has it: text that sorts by time.
fn moment(host: &Host, node: &str, what: &str) -> String {
    let log = host.pgbox(&["logs", node]);
    let line = log.lines().rev().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{node}: {log}"));
    line[..23].to_owned()
}

fn addresses(host: &Host) -> Vec<String> {
    let rows = host.json(&["ps", "--json"]);
    rows.as_array().unwrap().iter().map(|row| format!("{} {}", row["node"], row["address"])).collect()
}

fn postmaster(host: &Host, node: &str) -> i64 {
    host.json(&["inspect", "--json", node])[0]["status"]["pid"].as_i64().unwrap()
}

#[test]
fn a_planned_outage_keeps_data_addresses_and_streams() {
    let Some(host) = Host::new() else { return };
    // By name the standbys would come first.
    host.pgbox(&["run", "main", "postgres:15"]);
    host.pgbox(&["replica", "branch", "--of", "main", "--sync"]);
    host.pgbox(&["replica", "leaf", "--of", "branch"]);
    host.pgbox(&["run", "-d", "client", "tiny", "--", "sleep", "1000"]);
    host.pgbox(&["run", "-d", "done", "tiny", "--", "true"]);
    host.sql("main", &[], "CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    let before = addresses(&host);
    host.pgbox(&["stop", "--all"]);
    let states = host.pgbox(&["ps"]);
    assert!(!states.contains("running"), "{states}");
    // The primary ended first: its standbys have its last word.
    let ended = ["main", "branch", "leaf"].map(|node| moment(&host, node, "database system is shut down"));
    assert!(ended.is_sorted(), "{ended:?}");
    for node in ["branch", "leaf"] {
        let end = |node: &str| {
            let data = host.root.join("volumes/default").join(node).join("data");
            let text =
                crate::harness::run("/usr/lib/postgresql/15/bin/pg_controldata", &[data.to_str().unwrap()]);
            let line = text.lines().find(|line| line.starts_with("Latest checkpoint location")).unwrap();
            line.to_owned()
        };
        assert_eq!(end(node), end("main"), "{node}");
    }
    // What is down already is no failure.
    let again = host.try_pgbox(&["stop", "--all"]);
    assert!(again.status.success() && text(&again.stderr).contains("`main` does not run"), "{again:?}");
    let output = host.try_pgbox(&["start", "--all"]);
    let said = text(&output.stdout);
    let place = |node: &str| said.find(&format!("{node} is")).unwrap_or_else(|| panic!("{said}"));
    assert!(output.status.success() && text(&output.stderr).is_empty(), "{}", text(&output.stderr));
    assert!(place("main") < place("branch") && place("branch") < place("leaf"), "{said}");
    assert!(place("leaf") < place("client") && !said.contains("done"), "{said}");
    assert_eq!(addresses(&host), before);
    assert_eq!(host.sql("main", &[], STREAMS), "branch streaming");
    assert_eq!(host.sql("branch", &[], STREAMS), "leaf streaming");
    assert_eq!(host.sql("main", &[], "SHOW synchronous_standby_names"), "ANY 1 (\"branch\")");
    host.sql("main", &[], "INSERT INTO t VALUES (0)");
    until("1001", || host.sql("leaf", &[], "SELECT count(*) FROM t"));
}

#[test]
fn all_restart_in_place_and_stream_again() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let nodes = ["primary", "r1"];
    let before = nodes.map(|node| (host.init_pid(node), postmaster(&host, node)));
    let output = host.try_pgbox(&["restart", "--all"]);
    assert!(output.status.success() && text(&output.stderr).is_empty(), "{}", text(&output.stderr));
    assert_eq!(host.sql("primary", &[], STREAMS), "r1 streaming");
    for (node, (init, server)) in nodes.iter().zip(before) {
        assert_eq!(host.init_pid(node), init, "{node}");
        assert_ne!(postmaster(&host, node), server, "{node}");
    }
    // One that is down is started, as `restart` by name does.
    host.pgbox(&["stop", "r1"]);
    host.pgbox(&["restart", "--all"]);
    assert_eq!(host.sql("primary", &[], STREAMS), "r1 streaming");
}

#[test]
fn by_no_command_and_no_order_does_an_old_primary_come_back_as_a_second_one() {
    let Some(host) = Host::new() else { return };
    // Even if it is to be started again whenever it crashes.
    host.pgbox(&["run", "primary", "postgres:15", "--restart", "on-crash:9"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 1 AS i");
    until("1", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    host.pgbox(&["crash", "primary"]);
    host.pgbox(&["failover", "r1"]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let is_down = |after: &str| {
        let rows = host.json(&["ps", "--json"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["node"] == "primary").unwrap();
        assert!(row["pid"].is_null(), "after {after}: {row}");
        assert_eq!(host.sql("r1", &[], "SELECT pg_is_in_recovery()"), "f", "after {after}");
    };
    is_down("the restart policy");
    for command in [&["start", "primary"][..], &["restart", "primary"], &["start", "primary", "--foreground"]]
    {
        let said = host.fails(1, command);
        assert!(said.contains("`r1` was promoted") && said.contains("pgbox rejoin primary"), "{said}");
        is_down(&command.join(" "));
    }
    let said = host.fails(1, &["replica", "r2", "--of", "primary"]);
    assert!(said.contains("--of r1"), "{said}");
    host.fails(1, &["switchover", "primary"]);
    host.fails(1, &["run", "primary", "postgres:15"]);
    // All of them at once, in whichever order: it stays down, which is no failure.
    host.pgbox(&["stop", "--all"]);
    for command in ["start", "restart"] {
        let output = host.try_pgbox(&[command, "--all"]);
        let said = text(&output.stderr);
        assert!(
            output.status.success()
                && said.contains("`primary` stays down")
                && said.contains("`r1` was promoted"),
            "{said}"
        );
        is_down(command);
    }
    // Nor do its data without its name, nor its name with its data.
    let mount = "primary:/var/lib/postgresql/data";
    let said = host.fails(1, &["run", "other", "postgres:15", "-v", mount]);
    assert!(said.contains("`r1` was promoted") && said.contains("pgbox rejoin primary"), "{said}");
    host.pgbox(&["rm", "primary"]);
    let said = host.fails(1, &["run", "primary", "postgres:15"]);
    assert!(said.contains("`r1` was promoted") && said.contains("pgbox replica primary --of"), "{said}");
    host.fails(1, &["run", "other", "postgres:15", "-v", mount]);
    host.pgbox(&["volume", "rm", "primary"]);
    host.pgbox(&["replica", "primary", "--of", "r1"]);
    soon("it streams", 20, || host.sql("r1", &[], STREAMS) == "primary streaming");
    assert_eq!(host.sql("primary", &[], "SELECT pg_is_in_recovery()"), "t");
}

#[test]
fn names_and_addresses_are_a_nodes_for_life() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let before = addresses(&host);
    // Somebody who would take a free address.
    host.pgbox(&["stop", "primary"]);
    host.pgbox(&["run", "-d", "other", "tiny", "--", "sleep", "1000"]);
    host.pgbox(&["start", "primary"]);
    host.pgbox(&["restart", "r1"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["start", "primary"]);
    let after = addresses(&host);
    assert!(before.iter().all(|line| after.contains(line)) && after.len() == 3, "{before:?} {after:?}");
    // Every node finds every other by its name, and connects by it.
    let conninfo = host.sql("r1", &[], "SHOW primary_conninfo");
    assert!(conninfo.contains("host=primary "), "{conninfo}");
    let rows = host.json(&["ps", "--json"]);
    for inside in ["primary", "r1", "other"] {
        let hosts = host.pgbox(&["exec", inside, "--", "cat", "/etc/hosts"]);
        for row in rows.as_array().unwrap() {
            let line = format!("{} {}", row["address"].as_str().unwrap(), row["node"].as_str().unwrap());
            assert_eq!(hosts.lines().filter(|known| **known == line).count(), 1, "{inside}: {hosts}");
        }
    }
    until("r1 streaming", || host.sql("primary", &[], STREAMS));
}

#[test]
fn a_server_that_vanished_is_noticed_in_seconds() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    for node in ["primary", "r1"] {
        for setting in ["wal_sender_timeout", "wal_receiver_timeout"] {
            assert_eq!(host.sql(node, &[], &format!("SHOW {setting}")), "5s", "{node} {setting}");
        }
    }
    let receivers = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    assert_eq!(host.sql("r1", &[], receivers), "1");
    // No word comes through any more, not even that the connection is closed.
    host.pgbox(&["net", "cut", "primary", "r1"]);
    soon("the standby notices", 12, || host.sql("r1", &[], receivers) == "0");
    soon("the primary notices", 12, || host.sql("primary", &[], STREAMS).is_empty());
    host.pgbox(&["net", "heal", "--all"]);
    soon("it streams again", 12, || host.sql("primary", &[], STREAMS) == "r1 streaming");
}

/// A session that a smart shutdown waits for.
fn sleeper(host: &Host, node: &str) -> std::process::Child {
    let uri = host.pgbox(&["uri", node]);
    let mut command = std::process::Command::new("psql");
    let child =
        command.args(["-Xqc", "SELECT pg_sleep(3)", uri.trim()]).stdin(Stdio::null()).spawn().expect("psql");
    let asks = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
    soon("it sleeps", 5, || host.sql(node, &[], asks) == "1");
    child
}

#[test]
fn a_start_waits_for_the_end_of_a_stop() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "primary"]);
    let phase = |node: &str| host.json(&["inspect", "--json", node])[0]["status"]["phase"].clone();
    let (mut client, smart) = (sleeper(&host, "r1"), ["stop", "--all", "--mode", "smart"]);
    let mut stop = host.command(&smart).spawn().expect("stop");
    soon("r1 is being stopped", 5, || phase("r1") == "stopping");
    let output = host.try_pgbox(&["start", "--all"]);
    let (said, noted) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && noted.contains("another command stops nodes of this lab"), "{noted}");
    for node in ["primary", "r1", "r2"] {
        assert!(said.contains(&format!("{node} is ready at")), "{said}{noted}");
        assert_eq!(host.sql(node, &[], "SELECT 1"), "1");
    }
    assert!(stop.wait().unwrap().success());
    let _ = client.wait();
    // Whoever told it to stop may be gone.
    let mut client = sleeper(&host, "r1");
    let mut stop = host.command(&["stop", "r1", "--mode", "smart"]).spawn().expect("stop");
    soon("r1 is being stopped", 5, || phase("r1") == "stopping");
    let said = host.fails(1, &["start", "primary", "--timeout", "500ms"]);
    assert!(said.contains("another command has been at work") && said.contains("500ms"), "{said}");
    stop.kill().expect("kill");
    stop.wait().expect("wait");
    let said = host.fails(1, &["start", "r1", "--timeout", "100ms"]);
    assert!(said.contains("has not ended yet") && said.contains("pgbox stop -t 0 r1"), "{said}");
    assert!(host.pgbox(&["start", "r1"]).contains("r1 is ready at"));
    let _ = client.wait();
}

/// A standby with data of its own needs nothing of its primary to come up, and what says nothing must not hold it up.
#[test]
fn a_standby_starts_while_its_primary_is_silent() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "p", "postgres:15"]);
    host.pgbox(&["replica", "r", "--of", "p"]);
    for (silence, end, why) in [
        (&["freeze", "p"][..], &["thaw", "p"][..], "`p`, which it follows, is frozen"),
        (&["crash", "p", "--signal", "STOP"], &["crash", "p", "--signal", "CONT"], "gave no answer for 3"),
    ] {
        host.pgbox(&["stop", "r"]);
        host.pgbox(silence);
        let begun = std::time::Instant::now();
        let output = host.try_pgbox(&["start", "r"]);
        let said = text(&output.stderr);
        assert!(output.status.success() && said.contains(why), "{silence:?}: {said}");
        assert!(begun.elapsed().as_secs() < 10, "{silence:?}: {:?}", begun.elapsed());
        assert_eq!(host.sql("r", &[], "SELECT pg_is_in_recovery()"), "t");
        host.pgbox(end);
        until("streaming", || host.sql("p", &[], "SELECT state FROM pg_stat_replication"));
    }
}
