//! Disks that are full, read-only or not ours.

use std::{fs, path::Path, process::Command};

use nix::mount::{MsFlags, mount};

use crate::harness::{Host, PGBOX, run, text, until};

const PGDATA: &str = "/var/lib/postgresql/data";

/// Mounts an empty disk of this size; it goes with the test's mount namespace.
fn disk(at: &Path, size: &str) {
    let size = format!("size={size}");
    mount(Some("disk"), at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).expect("tmpfs");
}

#[test]
fn initdb_on_a_disk_that_is_too_small_is_one_error_with_its_reason() {
    let Some(host) = Host::new() else { return };
    let small = host.scratch("small");
    disk(&small, "20m");
    let said = host.fails(1, &["run", "n", "postgres:15", "-v", &format!("{}:{PGDATA}", small.display())]);
    assert!(said.contains("initdb failed") && said.contains("hint:  the disk is full"), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    host.is_clean();
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
}

#[test]
fn a_disk_that_fills_up_is_a_state_of_its_own_and_loses_no_row() {
    let Some(host) = Host::new() else { return };
    let small = host.scratch("small");
    disk(&small, "90m");
    let mount = format!("{}:{PGDATA}", small.display());
    host.pgbox(&["run", "n", "postgres:15", "-v", &mount, "--restart", "on-crash:5"]);
    host.sql("n", &[], "CREATE TABLE kept AS SELECT generate_series(1, 1000) i");
    host.sql("n", &[], "SELECT pg_create_physical_replication_slot('away', true)");
    let uri = host.pgbox(&["uri", "n"]);
    let hog = "CREATE TABLE hog AS SELECT repeat(md5(i::text), 30) FROM generate_series(1, 200000) i";
    assert!(!Command::new("psql").args(["-Xqc", hog, uri.trim()]).output().unwrap().status.success());
    until("it has given up", 20, || host.json(&["ps", "--json"])[0]["state"] == "disk-full");
    assert_eq!(host.json(&["ps", "--json"])[0]["restarts"], 0, "a restart could only fail again");
    let log = host.pgbox(&["logs", "-n", "1", "n"]);
    assert!(log.contains("no space left on the volume"), "{log}");
    for words in ["of 90M free", "pg_wal ", "base ", "slots that keep WAL: away"] {
        assert!(log.contains(words), "{words:?} is not in: {log}");
    }
    let said = host.fails(1, &["psql", "n", "-c", "SELECT 1"]);
    assert!(
        said.contains("of 90M free") && said.contains(&format!("make room in {}", small.display())),
        "{said}"
    );
    run("mount", &["-o", "remount,size=300m", small.to_str().unwrap()]);
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT count(*) FROM kept"), "1000");
}

#[test]
fn a_root_directory_that_is_full_or_read_only_or_absent() {
    let Some(host) = Host::new() else { return };
    let full = host.scratch("full");
    disk(&full, "1m");
    let copy = |at: &Path| {
        fs::create_dir(at).unwrap();
        for part in ["images", "layers"] {
            std::os::unix::fs::symlink(host.root.join(part), at.join(part)).unwrap();
        }
        at.to_str().unwrap().to_owned()
    };
    let root = copy(&full.join("root"));
    let _ = fs::write(full.join("filler"), vec![0; 2 << 20]);
    let said = host.fails(1, &["--root", &root, "run", "n", "postgres:15"]);
    assert!(said.contains("No space left") && said.contains("hint:  the disk is full"), "{said}");
    assert_eq!(host.pgbox(&["--root", &root, "ps", "-q"]), "");
    fs::remove_file(full.join("filler")).unwrap();
    run("mount", &["-o", "remount,ro", full.to_str().unwrap()]);
    let said = host.fails(1, &["--root", &root, "run", "n", "postgres:15"]);
    assert!(said.contains("Read-only file system") && said.contains("--root"), "{said}");
    assert_eq!(host.pgbox(&["--root", &root, "ps", "-q"]), "");
    // A root that is not there yet has no nodes, and looking for them does not make it.
    let none = host.scratch("none").join("root");
    assert_eq!(host.pgbox(&["--root", none.to_str().unwrap(), "ps", "-q"]), "");
    assert_eq!(host.pgbox(&["--root", none.to_str().unwrap(), "image", "ls"]).lines().count(), 1);
    assert!(!none.exists(), "a reading command has made {}", none.display());
    host.is_clean();
}

#[test]
fn a_read_only_data_directory_is_refused_before_anything_is_made() {
    let Some(host) = Host::new() else { return };
    let data = host.scratch("data");
    let said = host.fails(1, &["run", "n", "postgres:15", "-v", &format!("{}:{PGDATA}:ro", data.display())]);
    assert!(said.contains("read-only") && said.contains("leave :ro out"), "{said}");
    assert!(!host.root.join("labs/default/nodes").exists());
}

/// What somebody who is not root is told, whichever command it is.
#[test]
fn without_root_every_command_ends_with_the_way_out() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let copy = host.scratch("bin").join("pgbox");
    fs::copy(PGBOX, &copy).unwrap();
    run(
        "chmod",
        &["a+rx", copy.to_str().unwrap(), copy.parent().unwrap().parent().unwrap().to_str().unwrap()],
    );
    let nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(args);
        command.env("PGBOX_ROOT", &host.root).output().unwrap()
    };
    for args in [
        &["stop", "n"][..],
        &["start", "n"],
        &["rm", "-f", "n"],
        &["limit", "n", "--cpus", "1"],
        &["psql", "n"],
        &["image", "ls"],
        &["image", "rm", "tiny"],
    ] {
        let output = nobody(args);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("sudo"), "{args:?}: {said}");
    }
    assert_eq!(nobody(&["exec", "n", "--", "true"]).status.code(), Some(125));
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}
