//! Commands at the same instant: what all labs share is given to one of them.

use std::{
    fs::{self, File},
    process::{Child, Stdio},
};

use crate::{
    harness::{Host, text, until},
    image,
};

/// The lock of which `Root::lock_shared` speaks, held by the test.
fn hold(host: &Host) -> File {
    fs::create_dir_all(host.root.join("locks")).unwrap();
    let file = File::options().create(true).truncate(false).write(true).open(host.root.join("locks/shared"));
    let file = file.unwrap();
    file.lock().unwrap();
    file
}

fn begin(host: &Host, args: &[&str]) -> Child {
    host.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether the process waits for a lock on the file (proc_locks(5)).
fn waits(child: &Child) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let pid = child.id().to_string();
    locks.lines().any(|l| l.contains(" -> ") && l.split_whitespace().any(|word| word == pid))
}

/// Runs a node in each of two labs at the same instant; gives what those said that failed.
fn race(host: &Host, more: &[&str]) -> Vec<String> {
    let lock = hold(host);
    let args = |lab| [&["--lab", lab, "run", "n", "tiny"], more, &["--", "sleep", "60"]].concat();
    let runs = ["a", "b"].map(|lab| begin(host, &args(lab)));
    until("both have come as far as the lock", 20, || runs.iter().all(waits));
    assert!(
        !host.root.join("labs/a").exists() && !host.root.join("labs/b").exists(),
        "taken without the lock"
    );
    drop(lock);
    let mut said = Vec::new();
    for (mut child, lab) in runs.into_iter().zip(["a", "b"]) {
        until("it runs or has failed", 20, || {
            let rows = host.json(&["ps", "--all-labs", "--json"]);
            let is_up = |row: &serde_json::Value| row["lab"] == lab && row["state"] == "running";
            rows.as_array().unwrap().iter().any(is_up) || child.try_wait().unwrap().is_some()
        });
        if child.try_wait().unwrap().is_some() {
            said.push(text(&child.wait_with_output().unwrap().stderr));
        } else {
            host.pgbox(&["--lab", lab, "rm", "--force", "n"]);
            child.wait().unwrap();
        }
    }
    said
}

#[test]
fn of_two_labs_one_gets_the_port_and_one_the_range() {
    let Some(host) = Host::new() else { return };
    for (more, words) in [(["-p", "5433:5432"], "5433"), (["--subnet", "10.77.0.0/24"], "10.77.0.0/24")] {
        let said = race(&host, &more);
        assert!(said.len() == 1 && said[0].contains(words), "{said:?}");
    }
    assert_eq!(race(&host, &[]), Vec::<String>::new(), "there is room for both where nothing is asked for");
}

#[test]
fn the_trial_of_settings_has_no_part_in_a_new_lab() {
    let Some(host) = Host::new() else { return };
    let args = |node| ["run", node, "postgres:15", "--subnet", "10.213.77.0/24", "-c", "work_mem=8MB"];
    let runs = ["a", "b", "c"].map(|node| begin(&host, &args(node)));
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert_eq!(host.pgbox(&["ps", "-q"]), "a\nb\nc\n");
    assert!(!host.root.join("labs/pgbox-trial").exists());
}

#[test]
fn what_a_killed_trial_of_settings_has_left_goes_with_the_next_one() {
    let Some(host) = Host::new() else { return };
    let trials = host.root.join("labs/pgbox-trial/nodes");
    let names = || fs::read_dir(&trials).map_or(0, |entries| entries.filter_map(Result::ok).count());
    let killed = || {
        let mut child = begin(&host, &["run", "n", "postgres:15", "-c", "work_mem=8MB"]);
        until("a trial begins, or is over", 20, || names() > 0 || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        names() > 0
    };
    // It lasts some milliseconds only.
    assert!(
        (0..20)
            .any(|_| killed() || !host.try_pgbox(&["rm", "-f", "-v", "n"]).status.success() && names() > 0)
    );
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
    // Another one was killed before it had its name.
    fs::create_dir_all(trials.join(".trial-9999999.new")).unwrap();
    until("what the killed one has begun has ended", 20, || {
        host.pgbox(&["run", "--rm", "m", "tiny", "--", "true"]);
        host.pgbox(&["run", "n", "postgres:15", "-c", "work_mem=8MB"]);
        host.pgbox(&["rm", "-f", "-v", "n"]);
        names() == 0
    });
}

#[test]
fn an_image_is_not_removed_under_a_node_that_is_being_made() {
    let Some(host) = Host::new() else { return };
    let layout = image::layout(&host, &["busy:1"]);
    image::own_store(&host);
    host.pgbox(&["image", "import", layout.to_str().unwrap()]);
    // The removal decides while the lock is held, or it would not see the node that is made meanwhile.
    let lock = hold(&host);
    let removal = begin(&host, &["image", "rm", "busy:1"]);
    until("the removal waits", 20, || waits(&removal));
    let node = begin(&host, &["run", "n", "busy:1", "--", "/bin/busybox", "sleep", "60"]);
    until("the run waits", 20, || waits(&node));
    drop(lock);
    let (removal, node) = (removal.wait_with_output().unwrap(), node);
    let row = || host.json(&["ps", "--json"])[0]["state"].clone();
    if removal.status.success() {
        let said = text(&node.wait_with_output().unwrap().stderr);
        assert!(said.contains("there is no image"), "{said}");
    } else {
        assert!(text(&removal.stderr).contains("in use"), "{}", text(&removal.stderr));
        until("the node runs", 20, || row() == "running");
        host.pgbox(&["rm", "--force", "n"]);
        node.wait_with_output().unwrap();
    }
}
