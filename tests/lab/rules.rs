//! What a cluster needs from its first start on, so that standbys may connect and an old primary can come back.

use std::{fs, os::unix::fs::MetadataExt, process::Command};

use crate::{
    harness::{Host, text},
    replica::until,
};

#[test]
fn standbys_are_let_in_by_a_line_of_their_own() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-e", "POSTGRES_HOST_AUTH_METHOD=md5"]);
    let rules = "SELECT count(*) FROM pg_hba_file_rules WHERE type = 'host' AND database = '{replication}' \
                 AND user_name = '{replicator}' AND auth_method = 'scram-sha-256' AND error IS NULL";
    assert_eq!(host.sql("primary", &[], rules), "1");
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    assert_eq!(host.sql("r1", &[], rules), "1");
    // The range is the lab's, and no other.
    let range = "SELECT address || '/' || netmask FROM pg_hba_file_rules WHERE database = '{replication}' \
                 AND user_name = '{replicator}'";
    let node =
        host.json(&["inspect", "--json", "primary"])[0]["network"]["address"].as_str().unwrap().to_owned();
    let net = node.rsplit_once('.').unwrap().0;
    assert_eq!(host.sql("primary", &[], range), format!("{net}.0/255.255.255.0"));
    // Data that were made without pgbox lack it. The role's password counts, whatever others have.
    host.pgbox(&["stop", "--all"]);
    let hba = host.root.join("volumes/default/primary/data/pg_hba.conf");
    let old = fs::read_to_string(&hba).unwrap();
    let without: String = old.lines().filter(|l| !l.contains("replicator")).flat_map(|l| [l, "\n"]).collect();
    assert_ne!(old, without);
    fs::write(&hba, without).unwrap();
    host.pgbox(&["start", "--all"]);
    assert_eq!(host.sql("primary", &[], rules), "1");
    until("1", || {
        host.sql("primary", &[], "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
    });
    let uri = format!("host={} user=replicator dbname=postgres", node.split('/').next().unwrap());
    let wrong =
        Command::new("psql").args(["-XAtc", "SELECT 1", &uri]).env("PGPASSWORD", "x").output().unwrap();
    assert!(text(&wrong.stderr).contains("password authentication failed"), "{wrong:?}");
}

/// `r1` takes the place of the primary, which stays cut off, and has a row that `r1` lacks: without one it would follow as it is.
fn part(host: &Host) {
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (100)");
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
}

#[test]
fn where_a_rewind_can_not_work_the_data_are_copied_anew_and_that_is_said() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    for setting in ["data_checksums", "wal_log_hints"] {
        assert_eq!(host.sql("primary", &[], &format!("SHOW {setting}")), "on", "{setting}");
    }
    // Somebody has turned both off, and then nothing tells which pages the two have changed.
    host.sql("primary", &[], "ALTER SYSTEM SET wal_log_hints = off");
    host.pgbox(&["stop", "primary"]);
    let data = host.root.join("volumes/default/primary/data");
    let owner = fs::metadata(&data).unwrap();
    let mut program = Command::new("/usr/lib/postgresql/15/bin/pg_checksums");
    program.args(["--disable", "-D"]).arg(&data);
    assert!(program.output().unwrap().status.success());
    let control = data.join("global/pg_control");
    std::os::unix::fs::chown(control, Some(owner.uid()), Some(owner.gid())).unwrap();
    host.pgbox(&["start", "primary"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    part(&host);
    host.pgbox(&["net", "heal", "--all"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (8)");
    let output = host.try_pgbox(&["rejoin", "primary"]);
    let said = text(&output.stderr);
    assert!(
        output.status.success() && said.contains("checksums") && said.contains("a new base backup"),
        "{said}"
    );
    until("15", || host.sql("primary", &[], "SELECT sum(i) FROM t"));
    assert_eq!(host.sql("primary", &[], "SHOW primary_slot_name"), "pgbox_primary");
}

/// It may be healed before the base backup begins, and then all is copied that could have been kept.
#[test]
fn a_rewind_that_does_not_reach_the_primary_is_an_error_and_keeps_the_data() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    part(&host);
    host.sql("r1", &[], "INSERT INTO t VALUES (8)");
    let said = host.fails(1, &["rejoin", "primary"]);
    assert!(said.contains("pg_rewind: exit code 1") && !said.contains("a new base backup"), "{said}");
    host.pgbox(&["net", "heal", "--all"]);
    let said = text(&host.try_pgbox(&["rejoin", "primary"]).stderr);
    assert!(said.contains("pg_rewind has taken back") && !said.contains("a new base backup"), "{said}");
    until("15", || host.sql("primary", &[], "SELECT sum(i) FROM t"));
}

#[test]
fn the_replication_password_is_in_no_argument_and_no_environment_while_data_are_copied() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i");
    // Slow enough to be looked at.
    let mut replica = host.command(&["replica", "r1", "--of", "primary", "--rate", "8m"]).spawn().unwrap();
    let secret = host.root.join("labs/default/nodes/primary/replicator");
    let mut looked = 0;
    while replica.try_wait().unwrap().is_none() {
        let password = fs::read_to_string(&secret).unwrap_or_default();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let read = |file: &str| text(&fs::read(process.path().join(file)).unwrap_or_default());
            let argv = read("cmdline");
            looked += usize::from(argv.contains("pg_basebackup") && argv.contains("user=replicator"));
            let found =
                !password.is_empty() && (argv.contains(&password) || read("environ").contains(&password));
            assert!(!found, "{argv}");
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(replica.wait().unwrap().success() && looked > 0);
    let auto = fs::read_to_string(host.root.join("volumes/default/r1/data/postgresql.auto.conf")).unwrap();
    assert!(!auto.contains("conninfo"), "{auto}");
}

/// Whether a server takes a setting its own program is asked, and what it is asked anybody on the host could read.
#[test]
fn a_setting_that_is_tried_is_in_no_argument() {
    let Some(host) = Host::new() else { return };
    let path = host.scratch("up").join("lab.toml");
    let lines =
        "[nodes.primary]\nimage = 'postgres:15'\nsettings = { archive_command = 'put %p --key its-qu1et' }\n";
    fs::write(&path, lines).unwrap();
    let mut looked = 0;
    for _ in 0..20 {
        let mut up = host.command(&["up", path.to_str().unwrap(), "--diff"]).spawn().unwrap();
        while up.try_wait().unwrap().is_none() {
            for process in fs::read_dir("/proc").unwrap().flatten() {
                let argv = text(&fs::read(process.path().join("cmdline")).unwrap_or_default());
                looked += usize::from(argv.contains("-C\0server_version"));
                assert!(!argv.contains("its-qu1et"), "{argv}");
            }
        }
        assert!(up.wait().unwrap().success());
        if looked > 0 {
            break;
        }
    }
    assert!(looked > 0, "nobody was seen who tries it");
    let left: Vec<_> =
        fs::read_dir(host.root.join("locks")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("trial-")), "{left:?}");
    // And what is wrong is said as the server says it.
    let bad = "settings = { archive_command = 5, work_mem = '12q', 'my.key' = \"a'b\\\\c\" }\n";
    fs::write(&path, format!("[nodes.primary]\nimage = 'postgres:15'\n{bad}")).unwrap();
    let said = host.fails(1, &["up", path.to_str().unwrap(), "--diff"]);
    assert!(said.contains("work_mem=12q: invalid value for parameter") && !said.contains("my.key"), "{said}");
}
