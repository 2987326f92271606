//! Standbys whose data are clones of the other server's files, on file systems that share blocks between files.

use std::path::Path;

use crate::{
    failover::{checkpointer, pair},
    harness::{Host, run, text},
    replica::until,
};

const CLONED: &str = "the data are clones of the other server's files";

/// Has the volumes on a file system of their own, which goes with the test's mount namespace.
fn volumes_on(host: &Host, mkfs: &[&str]) {
    let volumes = host.root.join("volumes");
    std::fs::create_dir(&volumes).unwrap();
    let image = host.scratch("disk").join("image");
    std::fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
    let image = image.to_str().unwrap();
    run(mkfs[0], &[&mkfs[1..], &[image]].concat());
    run("mount", &["-o", "loop", image, volumes.to_str().unwrap()]);
}

const XFS: [&str; 4] = ["mkfs.xfs", "-q", "-m", "reflink=1"];
const BTRFS: [&str; 2] = ["mkfs.btrfs", "-q"];

/// Megabytes that are in use on the file system of a path, by the kernel's own account.
fn used(path: &Path) -> u64 {
    nix::unistd::sync();
    let fs = nix::sys::statvfs::statvfs(path).unwrap();
    ((fs.blocks() - fs.blocks_free()) * fs.fragment_size()) >> 20
}

fn log(host: &Host, node: &str) -> String {
    host.pgbox(&["logs", node])
}

/// Every page of a stopped node's data has its checksum.
#[track_caller]
fn has_good_checksums(host: &Host, node: &str) {
    host.pgbox(&["stop", node]);
    let volume = format!("{}:/data", host.root.join(format!("volumes/default/{node}/data")).display());
    let check = "su postgres -c 'exec \"$(dirname \"$(command -v initdb)\")/pg_checksums\" --check -D /data'";
    let said = host.pgbox(&["run", "--rm", "check", "postgres:15", "-v", &volume, "--", "bash", "-c", check]);
    assert!(said.contains("Bad checksums:  0"), "{said}");
}

#[test]
fn clones_of_a_primary_under_load_are_whole_and_share_its_blocks() {
    let Some(host) = Host::new() else { return };
    volumes_on(&host, &XFS);
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.sql(
        "primary",
        &[],
        "CREATE TABLE big AS SELECT i, repeat(md5(i::text), 25) t FROM generate_series(1, 100000) i",
    );
    host.sql("primary", &[], "CREATE INDEX ON big (i)");
    host.sql("primary", &[], "CREATE EXTENSION amcheck");
    host.pgbox(&["drive", "start", "--fresh"]);
    let before = used(&host.root.join("volumes"));
    assert!(before > 100, "{before} MB");
    host.pgbox(&["replica", "r1", "--of", "primary", "--copy", "reflink"]);
    // Of a standby, while it replays.
    host.pgbox(&["replica", "r2", "--of", "r1", "--copy", "reflink"]);
    let more = used(&host.root.join("volumes")) - before;
    assert!(more < before, "{more} MB for two copies of {before} MB");
    host.sql("primary", &[], "UPDATE big SET t = 'new' WHERE i % 100 = 0");
    host.pgbox(&["drive", "stop"]);
    let rows = "SELECT sum(hashtext(big::text)) || ' ' || count(*) FROM big";
    let corrupt = "SELECT count(*) FROM pg_class c, LATERAL verify_heapam(c.oid) WHERE relkind = 'r'";
    let indexes = "SELECT count(bt_index_check(c.oid, true)) > 100 FROM pg_class c JOIN pg_am a ON a.oid = relam \
                   WHERE amname = 'btree' AND relkind = 'i' AND relpersistence = 'p'";
    for node in ["r1", "r2"] {
        assert!(log(&host, node).contains(CLONED), "{}", log(&host, node));
        host.pgbox(&["wait", node, "--for", "caught-up"]);
        host.pgbox(&["verify", "--node", node]);
        assert_eq!(host.sql(node, &[], rows), host.sql("primary", &[], rows));
        assert_eq!(host.sql(node, &[], corrupt), "0");
        assert_eq!(host.sql(node, &[], indexes), "t");
    }
    for node in ["r2", "r1"] {
        has_good_checksums(&host, node);
        // Alone, it has all that it takes to be a server: the log of the backup is among its own.
        host.pgbox(&["start", node]);
    }
    // What one side writes the other does not see.
    host.pgbox(&["stop", "primary"]);
    host.pgbox(&["failover", "r1"]);
    host.sql("r1", &[], "UPDATE big SET t = 'newer' WHERE i % 10 = 0");
    has_good_checksums(&host, "primary");
}

#[test]
fn a_standby_that_begins_anew_is_cloned_as_well() {
    let Some(host) = Host::new() else { return };
    volumes_on(&host, &BTRFS);
    pair(&host);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["reinit", "r1"]);
    assert_eq!(log(&host, "r1").matches(CLONED).count(), 2, "{}", log(&host, "r1"));
    until("7", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    let stream = "SELECT application_name, state FROM pg_stat_replication";
    assert_eq!(host.sql("primary", &[], stream).trim(), "r1|streaming");
    assert_eq!(host.sql("r1", &[], "SELECT pg_is_in_recovery()"), "t");
    has_good_checksums(&host, "r1");
}

#[test]
fn what_can_not_be_cloned_is_copied_by_pg_basebackup() {
    let Some(host) = Host::new() else { return };
    volumes_on(&host, &XFS);
    host.pgbox(&["run", "primary", "postgres:15"]);
    for (node, args) in [("r1", &["--copy", "basebackup"]), ("r2", &["--rate", "1g"])] {
        host.pgbox(&[&["replica", node, "--of", "primary"], &args[..]].concat());
        assert!(log(&host, node).contains("pg_basebackup copies the data: no clones were asked for"));
    }
    let said = host.fails(2, &["replica", "r3", "--of", "primary", "--copy", "reflink", "--rate", "1g"]);
    assert!(said.contains("leave out"), "{said}");

    // Another file system: tests run in a directory that is on none that has both.
    let elsewhere = format!("{}:/var/lib/postgresql/data", host.scratch("elsewhere").display());
    host.pgbox(&["replica", "r3", "--of", "primary", "-v", &elsewhere]);
    assert!(log(&host, "r3").contains("pg_basebackup copies the data: its file system can't clone"));
    host.pgbox(&["rm", "-f", "r3"]);
    std::fs::remove_dir_all(host.scratch("elsewhere")).unwrap();
    let elsewhere = format!("{}:/var/lib/postgresql/data", host.scratch("elsewhere").display());
    let said = host.fails(1, &["replica", "r3", "--of", "primary", "-v", &elsewhere, "--copy", "reflink"]);
    assert!(said.contains("its file system can't clone") && said.contains("FICLONE"), "{said}");
    assert_eq!(
        host.sql("primary", &[], "SELECT count(*) FROM pg_replication_slots"),
        "2",
        "r3 has left none"
    );

    // It is found out when the copy has begun: what was made until then is gone.
    host.pgbox(&["exec", "primary", "--", "ln", "-s", "/etc/hostname", "/var/lib/postgresql/data/base/link"]);
    let said = host.fails(1, &["replica", "r3", "--of", "primary", "--copy", "reflink"]);
    assert!(said.contains("base/link is neither a file nor a directory"), "{said}");
    assert!(said.contains("nothing of `r3` is left\n"), "{said}");
    assert!(!host.pgbox(&["volume", "ls", "-q"]).contains("r3"), "an empty volume is left");
    host.pgbox(&["replica", "r3", "--of", "primary"]);
    let log = log(&host, "r3");
    assert!(log.contains("pg_basebackup copies the data") && log.contains("base/link"), "{log}");
    assert_eq!(host.sql("r3", &[], "SELECT pg_is_in_recovery()"), "t");
}

/// They are the server's only where it sees them, and the clones are made elsewhere.
#[test]
fn data_that_are_another_users_on_disk_are_copied_by_pg_basebackup() {
    let Some(host) = Host::new() else { return };
    volumes_on(&host, &XFS);
    let volumes = host.root.join("volumes/default");
    for node in ["primary", "r2"] {
        let data = volumes.join(node).join("data");
        std::fs::create_dir_all(&data).unwrap();
        std::os::unix::fs::chown(&data, Some(1234), Some(1234)).unwrap();
    }
    let owner =
        |node: &str| run("stat", &["-c", "%u", volumes.join(node).join("data/PG_VERSION").to_str().unwrap()]);
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    assert!(
        log(&host, "r1").contains("copies the data: the other server's data are not uid"),
        "{}",
        log(&host, "r1")
    );
    // The other way round they are read as the user who owns them.
    host.pgbox(&["replica", "r2", "--of", "r1", "--copy", "reflink"]);
    assert_eq!((owner("primary"), owner("r2")), ("1234".to_owned(), "1234".to_owned()));
    assert_ne!(owner("r1"), "1234");
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (8)");
    host.pgbox(&["rejoin", "primary"]);
    for node in ["primary", "r2"] {
        host.pgbox(&["wait", node, "--for", "caught-up"]);
        assert_eq!(host.sql(node, &[], "SELECT sum(i) FROM t"), "15");
        assert_eq!(owner(node), "1234");
    }
    host.pgbox(&["switchover", "primary"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (9)");
    host.pgbox(&["rm", "-f", "-v", "r2"]);
    assert!(!volumes.join("r2").exists());
}

#[test]
fn a_clone_that_is_interrupted_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    volumes_on(&host, &XFS);
    host.pgbox(&["run", "primary", "postgres:15"]);
    // A backup begins with a checkpoint; without this process there is none.
    let tell = checkpointer(&host);
    tell("STOP");
    let mut command = host.command(&["replica", "r1", "--of", "primary"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    until("cloning", || {
        let nodes = host.json(&["ps", "--json"]);
        let nodes = nodes.as_array().unwrap().iter().find(|node| node["node"] == "r1");
        nodes.map_or(String::new(), |node| node["state"].as_str().unwrap().to_owned())
    });
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    tell("CONT");
    assert_eq!(status.code(), Some(130), "{}", std::io::read_to_string(child.stderr.unwrap()).unwrap());
    assert_eq!(host.pgbox(&["ps", "-q"]), "primary\n");
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM pg_replication_slots"), "0");
    // An empty volume goes, one with anything in it would have stayed.
    assert!(!host.root.join("volumes/default/r1").exists(), "something was in its data directory");
    host.pgbox(&["replica", "r1", "--of", "primary", "--copy", "reflink"]);
}

/// The directory that has its data is a node's own, where it is not the top of a volume.
#[test]
fn data_that_have_become_a_link_are_not_those_that_it_leads_to() {
    let Some(host) = Host::new() else { return };
    volumes_on(&host, &XFS);
    host.pgbox(&["run", "other", "postgres:15"]);
    host.pgbox(&["run", "primary", "postgres:15", "-v", "pg:/var/lib/postgresql"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--copy", "reflink"]);
    assert!(log(&host, "r1").contains(CLONED), "{}", log(&host, "r1"));

    let volumes = host.root.join("volumes/default");
    let data = volumes.join("pg/data/data");
    std::fs::rename(&data, volumes.join("pg/data/kept")).unwrap();
    std::os::unix::fs::symlink(volumes.join("other/data"), &data).unwrap();
    // One that has data of its own needs none of that.
    host.pgbox(&["restart", "r1"]);
    let said = host.fails(1, &["replica", "r2", "--of", "primary", "--copy", "reflink"]);
    let why = "the data of primary can't be opened";
    assert!(said.contains(why) && said.contains("symbolic link"), "{said}");

    host.pgbox(&["crash", "primary", "--node"]);
    let said = host.fails(1, &["failover", "r1"]);
    assert!(said.contains("nobody knows what would be lost") && said.contains("symbolic link"), "{said}");
}

/// Rights to functions are those of one database, and standbys know none but `postgres`.
#[test]
fn a_server_with_a_database_of_its_own_is_cloned_and_rewound_as_well() {
    let Some(host) = Host::new() else { return };
    volumes_on(&host, &XFS);
    host.pgbox(&["run", "primary", "postgres:15", "-e", "POSTGRES_DB=shop"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "--copy", "reflink"]);
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "CREATE TABLE lost ()");
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    host.pgbox(&["net", "heal", "primary", "r1"]);
    host.pgbox(&["rejoin", "primary"]);
    assert!(log(&host, "primary").contains("pg_rewind has taken back"), "{}", log(&host, "primary"));
}

/// Psql stands between a backup and a heap of files: here it is a script, which can also reach the other server's data.
#[test]
fn half_a_backup_is_none() {
    let Some(host) = Host::new() else { return };
    volumes_on(&host, &XFS);
    host.pgbox(&["run", "primary", "postgres:15"]);
    let psql = host.scratch("bin").join("psql");
    let program = format!("{}:/usr/lib/postgresql/15/bin/psql", psql.display());
    let data = format!("{}:/other", host.root.join("volumes/default/primary/data").display());
    let lost = "0/3000000|START WAL LOCATION: 0/F0000028 (file 0000000100000000000000F0)";
    for (script, why) in [
        ("", "psql has ended, and has not ended the backup"),
        ("echo; read stop", "psql has ended, and has not ended the backup"),
        ("mkdir /other/pg_tblspc/1; echo; read stop; rmdir /other/pg_tblspc/1", "there are tablespaces"),
        (
            "cd /other/global; mv pg_control kept; echo; read stop; mv kept pg_control",
            "global/pg_control is not there",
        ),
        (&format!("echo; read stop; echo '{lost}'"), "has not kept 0000000100000000000000F0"),
        ("echo; read stop; echo 0/3000000", "has no label"),
    ] {
        std::fs::write(&psql, format!("#!/bin/sh\nread start\n{script}\n")).unwrap();
        run("chmod", &["755", psql.to_str().unwrap()]);
        let args = ["replica", "r1", "--of", "primary", "--copy", "reflink", "-v", &program, "-v", &data];
        let said = host.fails(1, &args);
        assert!(said.contains(why), "{script}: {said}");
    }
    host.pgbox(&["replica", "r1", "--of", "primary", "--copy", "reflink"]);
}

/// After a promotion inside of it, a segment is archived as the new primary's, and its first part as `.partial`.
#[test]
fn only_what_is_finished_counts_as_archived() {
    let Some(host) = Host::new() else { return };
    volumes_on(&host, &XFS);
    host.pgbox(&["run", "primary", "postgres:15"]);
    for _ in 0..4 {
        host.sql(
            "primary",
            &[],
            "SELECT pg_logical_emit_message(true, '', repeat('x', 1000)), pg_switch_wal()",
        );
    }
    // Files of the log that nobody needs any more are for what comes.
    host.sql("primary", &[], "CHECKPOINT");
    host.pgbox(&["replica", "r1", "--of", "primary", "--copy", "reflink"]);
    let current = host.sql("primary", &[], "SELECT pg_walfile_name(pg_current_wal_lsn())");
    let names = |dir: &str| -> Vec<String> {
        let dir = std::fs::read_dir(host.root.join("volumes/default/r1/data/pg_wal").join(dir)).unwrap();
        dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert!(names("").iter().any(|name| name.len() == 24 && *name > current), "{:?}", names(""));
    let done = names("archive_status");
    assert!(!done.iter().any(|name| *name >= current), "{current}: {done:?}");
}

/// As `--copy` of `replica`, for each time that the data are copied.
#[test]
fn a_lab_file_says_how_data_are_copied() {
    let Some(host) = Host::new() else { return };
    let file = host.scratch("files").join("lab.toml");
    let path = file.to_str().unwrap();
    let write = |copy: &str| {
        let text = "[defaults]\nimage = 'postgres:15'\n[nodes.p]\n[nodes.r1]\nof = 'p'\n";
        std::fs::write(&file, format!("{text}{copy}")).unwrap();
    };
    // Tests run on a file system that can't clone.
    write("copy = 'reflink'\n");
    let said = host.fails(1, &["up", path]);
    assert!(said.contains("its file system can't clone"), "{said}");
    write("");
    host.pgbox(&["up", path]);
    write("copy = 'reflink'\n");
    assert_eq!(host.pgbox(&["up", path, "--diff"]), "~ r1: apply changes at once, clone data (reload)\n");
    host.pgbox(&["up", path]);
    assert!(host.pgbox(&["up", path]).contains("nothing to do"));
    assert!(host.fails(1, &["reinit", "r1"]).contains("its file system can't clone"));
}
