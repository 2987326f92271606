//! A step that fails: everything before it is taken back, and one error tells what, why, and what is left.

use crate::harness::{Host, run};

#[test]
fn a_read_only_cgroup_mount_is_named_and_nothing_is_left() {
    let Some(host) = Host::new() else { return };
    // In this test's own mount namespace: a read-only view lies over the machine's mount.
    let place = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].into_iter().find(|p| {
        std::fs::read_to_string("/proc/self/mounts").unwrap().lines().any(|l| {
            let fields: Vec<&str> = l.split(' ').collect();
            fields[1] == *p && fields[2].starts_with("cgroup")
        })
    });
    let place = place.expect("a cgroup mount");
    run("mount", &["--bind", place, place]);
    run("mount", &["-o", "remount,bind,ro", place]);
    let said = host.fails(1, &["run", "n", "postgres:15", "-p", "5433:5432"]);
    run("umount", &[place]);
    for words in ["failed: create the cgroup", place, "EROFS", "inside a container", "nothing of `n` is left"]
    {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
    assert!(!said.contains("but its volumes"), "{said}");
    host.is_clean();
    assert_eq!(host.pgbox(&["ps", "-q"]) + &host.pgbox(&["volume", "ls", "-q"]), "");
    host.pgbox(&["run", "n", "postgres:15", "-p", "5433:5432"]);
    assert_eq!(host.sql("n", &["--published"], "SELECT 1"), "1");
}

#[test]
fn a_failure_between_the_host_steps_and_pid_1_is_rolled_back_and_is_no_steps() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-p", "5433:5432"]);
    host.pgbox(&["stop", "n"]);
    let orders = host.root.join("labs/default/nodes/n/orders.json");
    std::fs::remove_file(&orders).unwrap();
    std::fs::create_dir(&orders).unwrap();
    let said = host.fails(1, &["start", "n"]);
    let stopped = "steps 6-1 undone, `n` is stopped";
    for words in ["did not come to life, between steps 6 and 7", "orders.json", "EISDIR", stopped] {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
    host.is_clean();
    std::fs::remove_dir(&orders).unwrap();
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &["--published"], "SELECT 1"), "1");
}

/// As it is on disk since a pgbox that connected a node before it made pid 1.
#[test]
fn a_plan_in_another_order_is_walked_as_it_is() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-p", "5433:5432"]);
    host.pgbox(&["stop", "n"]);
    let file = host.root.join("labs/default/nodes/n/state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let steps = state["plan"]["host"].as_array_mut().unwrap();
    // bundle, volume, then namespace, hosts file, cgroup and limits, which go behind the network; its bridge is first.
    let needed: Vec<_> = steps.drain(2..6).collect();
    steps.insert(3, needed[0].clone());
    steps.extend_from_slice(&needed[1..]);
    std::fs::write(&file, state.to_string()).unwrap();
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &["--published"], "SELECT 1"), "1");
    host.pgbox(&["stop", "n"]);
    host.is_clean();
    host.pgbox(&["rm", "-v", "n"]);
    host.is_forgotten();
}

#[test]
fn what_pid_1_fails_at_before_its_payload_is_told() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["stop", "n"]);
    let file = host.root.join("labs/default/nodes/n/state.json");
    let state = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, state.replace("cap_fsetid", "cap_nonsense")).unwrap();
    let said = host.fails(1, &["start", "n"]);
    for words in ["failed: keep 7 capabilities", "cap_nonsense", "`n` is stopped"] {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
    host.is_clean();
}

#[test]
fn what_is_somebody_elses_is_not_taken_back() {
    let Some(host) = Host::new() else { return };
    let names = pgbox::spec::ObjectNames::new(&host.root, &"default".parse().unwrap(), &"n".parse().unwrap());
    run("ip", &["link", "add", &names.bridge, "type", "bridge"]);
    let said = host.fails(1, &["run", "n", "postgres:15"]);
    assert!(said.contains("somebody else's") && said.contains(&names.bridge), "{said}");
    assert!(run("ip", &["-o", "link"]).contains(&names.bridge), "a foreign bridge was removed");
    run("ip", &["link", "delete", &names.bridge]);
    host.is_clean();
}

#[test]
fn a_namespace_a_table_and_a_cgroup_of_somebody_else_stay() {
    let Some(host) = Host::new() else { return };
    let names = pgbox::spec::ObjectNames::new(&host.root, &"default".parse().unwrap(), &"n".parse().unwrap());
    let publish = ["run", "n", "postgres:15", "-p", "5433:5432"];

    run("ip", &["netns", "add", &names.netns]);
    assert!(host.fails(1, &publish).contains(&names.netns));
    assert_eq!(run("ip", &["netns", "list"]), names.netns);
    run("ip", &["netns", "delete", &names.netns]);
    host.is_forgotten();

    for table in [&names.nat_table, &names.publish_table] {
        run("nft", &["add", "table", "ip", table, "{ comment \"theirs\" ; }"]);
        let before = run("nft", &["-a", "list", "ruleset"]);
        let said = host.fails(1, &publish);
        assert!(said.contains(table.as_str()) && said.contains("EEXIST"), "{said}");
        assert!(said.contains("somebody else's") && said.contains("nothing of `n` is left"), "{said}");
        assert_eq!(run("nft", &["-a", "list", "ruleset"]), before, "a foreign table was touched");
        run("nft", &["delete", "table", "ip", table]);
        host.is_forgotten();
    }

    let place =
        pgbox::sys::cgroup::Cgroup::new(&pgbox::sys::cgroup::detect().unwrap(), &names.cgroup).unwrap();
    let place = place.directories().remove(0);
    std::fs::create_dir_all(&place).unwrap();
    let said = host.fails(1, &publish);
    assert!(said.contains(names.cgroup.to_str().unwrap()), "{said}");
    assert!(place.exists(), "a foreign cgroup was removed");
    for dir in place.ancestors().take(3) {
        std::fs::remove_dir(dir).unwrap();
    }
    host.is_forgotten();
}

#[test]
fn the_printed_steps_are_those_that_ran() {
    let Some(host) = Host::new() else { return };
    let args = ["run", "n", "postgres:15", "-p", "5433:5432", "--memory", "300m"];
    let printed = host.pgbox(&[&args[..], &["--dry-run"]].concat());
    host.is_clean();
    assert_eq!(host.pgbox(&["ps", "-q"]), "", "a dry run must make nothing");
    host.pgbox(&args);
    let state = std::fs::read_to_string(host.root.join("labs/default/nodes/n/state.json")).unwrap();
    let state: pgbox::state::NodeState = serde_json::from_str(&state).unwrap();
    let ran = pgbox::show::plan::render(&state.plan, pgbox::show::plan::Depth::Commands);
    assert_eq!(printed, ran);
}
