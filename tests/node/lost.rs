//! What is remembered is lost or damaged, or the kernel has forgotten: a reboot, `rm -rf`, a hand edit.

use std::fs;

use crate::harness::{Host, run, text, until};

#[test]
fn a_dry_run_of_rm_refuses_what_rm_refuses() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "tiny", "-d", "--", "sleep", "600"]);
    let refused = host.fails(1, &["rm", "n"]);
    assert_eq!(host.fails(1, &["rm", "--dry-run", "n"]), refused);
    assert!(refused.contains("node `n` runs"), "{refused}");
    assert!(host.pgbox(&["rm", "--force", "--dry-run", "n"]).contains("undo: "));
    host.pgbox(&["stop", "n"]);
    let foretold = host.pgbox(&["rm", "--dry-run", "n"]);
    assert!(
        foretold.contains("\nundo: create the network namespace")
            && foretold.contains("\n    $ ip netns delete ")
    );
}

#[test]
fn rm_force_finds_everything_by_its_name_alone() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "kept", "postgres:15"]);
    for damage in ["no directory", "no state", "half a state"] {
        host.pgbox(&["run", "n", "postgres:15", "-p", "5433:5432"]);
        host.sql("n", &["--published"], "CREATE TABLE IF NOT EXISTS t (i int); INSERT INTO t VALUES (1)");
        let pid = host.init_pid("n");
        let state = host.root.join("labs/default/nodes/n/state.json");
        match damage {
            "no directory" => fs::remove_dir_all(state.parent().unwrap()).unwrap(),
            "no state" => fs::remove_file(&state).unwrap(),
            _ => fs::write(&state, "{\"version\": 1, \"spec\"").unwrap(),
        }
        let said = host.fails(1, &["run", "n", "postgres:15"]);
        assert!(said.contains("pgbox rm --force n"), "{damage}: {said}");
        assert!(!host.try_pgbox(&["rm", "n"]).status.success(), "{damage}");
        let foretold = host.pgbox(&["rm", "--force", "--dry-run", "n"]);
        assert!(foretold.contains("network namespace"), "{foretold}");
        let said = text(&host.try_pgbox(&["rm", "--force", "-v", "n"]).stderr);
        assert!(said.contains("volumes are kept"), "{damage}: {said}");
        until("pid 1 is gone", 10, || !std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(host.objects().iter().all(|object| !object.contains("default.n")), "{:?}", host.objects());
        assert_eq!(host.pgbox(&["ps", "-q"]), "kept\n", "{damage}");
        assert_eq!(host.sql("kept", &[], "SELECT 1"), "1", "{damage}");
    }
    // The name is free again, and no row that was acknowledged is lost.
    host.pgbox(&["run", "n", "postgres:15"]);
    assert_eq!(host.sql("n", &[], "SELECT count(*) FROM t"), "3");
    assert!(host.fails(1, &["rm", "--force", "nobody"]).contains("no node `nobody`"));
}

#[test]
fn a_damaged_node_hides_no_other() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "a", "postgres:15"]);
    host.pgbox(&["run", "b", "postgres:15"]);
    let state = host.root.join("labs/default/nodes/a/state.json");
    fs::write(&state, "scribble").unwrap();
    let output = host.try_pgbox(&["ps"]);
    let (rows, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        rows.contains("\nb ") && said.contains("node `a`") && said.contains("rm --force a"),
        "{rows}{said}"
    );
    // Nor does it keep another one from its own data, of this lab or another.
    host.pgbox(&["--lab", "other", "run", "n", "postgres:15"]);
    for args in [&["--lab", "other"][..], &[]] {
        let name = if args.is_empty() { "b" } else { "n" };
        host.pgbox(&[args, &["stop", name]].concat());
        host.pgbox(&[args, &["start", name]].concat());
    }
    host.pgbox(&["rm", "--force", "a"]);
    assert_eq!(host.pgbox(&["ps", "-q"]), "b\n");
}

#[test]
fn start_after_a_reboot_makes_anew_what_the_kernel_has_forgotten() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-p", "5433:5432", "--memory", "256m"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i");
    let node = host.json(&["inspect", "--json", "n"])[0].clone();
    // The power goes, and with it all that is not on disk.
    let pid = host.init_pid("n");
    run("kill", &["-9", &pid.to_string()]);
    until("pid 1 is gone", 10, || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    let network = &node["network"];
    run("ip", &["link", "delete", network["veth"].as_str().unwrap()]);
    run("ip", &["link", "delete", network["bridge"].as_str().unwrap()]);
    run("ip", &["netns", "delete", network["netns"].as_str().unwrap()]);
    run("nft", &["flush", "ruleset"]);
    for directory in node["cgroup"].as_array().unwrap() {
        fs::remove_dir(directory.as_str().unwrap()).unwrap();
    }
    let directory = host.root.join("labs/default/nodes/n");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let state = fs::read_to_string(directory.join("state.json")).unwrap();
    assert!(state.contains(boot.trim()), "it does not count as started without its journal: {state}");
    fs::write(directory.join("state.json"), state.replace(boot.trim(), "another-boot")).unwrap();
    fs::remove_file(directory.join("progress")).unwrap();
    assert_eq!(host.json(&["ps", "--json"])[0]["state"], "killed");
    host.pgbox(&["start", "n"]);
    assert_eq!(host.json(&["inspect", "--json", "n"])[0]["network"]["address"], network["address"]);
    assert_eq!(host.sql("n", &["--published"], "SELECT i FROM t"), "7");
    assert_eq!(host.json(&["stats", "--json", "n"])[0]["memory_max"], 256 << 20);
    // And again: all of it goes, though nothing says how much there is.
    host.pgbox(&["stop", "n"]);
    fs::remove_file(directory.join("progress")).unwrap();
    host.pgbox(&["rm", "-v", "n"]);
}
