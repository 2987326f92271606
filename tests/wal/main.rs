//! What a dead server had committed, read from its files: against a real PostgreSQL, with pg_waldump,
//! pg_controldata and the restarted server itself as witnesses. Needs root and a PostgreSQL server.

mod server;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pgbox::facts::wal::Place;
use pgbox::postgres::control::ClusterState;
use pgbox::postgres::control::Control;
use pgbox::postgres::lsn::Lsn;
use pgbox::postgres::wal::Scan;
use server::{Printed, Server, commits, output, prepared, rows, skipped, tool, waldump};

/// The checkpoint at the end of a recovery would take the log before it away.
const KEEP: &[&str] = &["wal_keep_size=512MB"];

/// Rows by file, as pg_waldump's text gives them.
fn control(data: &Path) -> anyhow::Result<Control> {
    Place::alone(data).control()
}

fn lost(data: &Path, from: Lsn) -> anyhow::Result<Scan> {
    Place::alone(data).lost(from)
}

fn by_file(scan: &Scan) -> BTreeMap<u32, u64> {
    scan.tables.iter().map(|(table, rows)| (table.file, *rows)).collect()
}

/// Asks from each of some positions, on the edge of a record and within it, and compares with pg_waldump.
#[track_caller]
fn agrees_everywhere(data: &Path, printed: &[Printed], step: usize) {
    let commits = commits(printed);
    let prepared = prepared(printed);
    let end = lost(data, printed[0].lsn).unwrap().end;
    let last = printed.last().unwrap().lsn;
    assert!(end > last && end - last < 1 << 22, "ends at {end}, the last record is at {last}");
    let committing = printed.iter().filter(|p| commits.contains(&p.lsn));
    let sample = printed.iter().step_by(step).chain(committing.step_by(commits.len() / 10 + 1));
    for record in sample {
        let later = |list: &[Lsn]| list.iter().filter(|lsn| **lsn >= record.lsn).count() as u64;
        let expected = later(&commits) + later(&prepared);
        for within in [0, 1, 8, 23] {
            let scan = lost(data, record.lsn + within).unwrap();
            assert_eq!(
                (scan.commits, scan.prepared, scan.end),
                (expected, later(&prepared), end),
                "from {} + {within}: {record:?}",
                record.lsn
            );
        }
    }
    for after in [0, 1, 8192, 1 << 20, 1 << 40] {
        let scan = lost(data, end + after).unwrap();
        assert_eq!((scan.commits, scan.rows(), scan.end), (0, 0, end), "{after} bytes after the end");
        assert!(scan.exact);
    }
}

#[test]
fn every_kind_of_transaction_is_counted_as_pg_waldump_shows_it() {
    if skipped() {
        return;
    }
    let mut server = Server::new();
    server.start();
    server.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         CREATE TABLE big (v text);
         ALTER TABLE big ALTER v SET STORAGE EXTERNAL;
         INSERT INTO t SELECT n, 'old' FROM generate_series(1, 1000) n;
         CHECKPOINT;",
    );
    let from = server.lsn();
    let copy: String = (2001..=7000).map(|n| format!("{n}\tcopied {n}\n")).collect();
    server.sql(&format!("COPY t FROM stdin;\n{copy}\\.\n"));
    server.sql(
        "BEGIN; INSERT INTO t SELECT n, 'never' FROM generate_series(10001, 10300) n; ROLLBACK;
         BEGIN; INSERT INTO t SELECT n, 'a' FROM generate_series(11001, 11010) n;
         SAVEPOINT a; INSERT INTO t SELECT n, 'never' FROM generate_series(11101, 11120) n; ROLLBACK TO a;
         SAVEPOINT b; INSERT INTO t SELECT n, 'b' FROM generate_series(11201, 11240) n; RELEASE b; COMMIT;
         INSERT INTO big SELECT (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 32768) m)
             FROM generate_series(1, 3) n;
         SELECT pg_logical_emit_message(true, 'x', repeat('y', 3000000)) > '0/0';
         SELECT pg_switch_wal() > '0/0';
         INSERT INTO t VALUES (1, 'there'), (12001, 'new'), (12002, 'new') ON CONFLICT DO NOTHING;
         UPDATE t SET v = 'changed' WHERE id <= 200;
         DELETE FROM t WHERE id BETWEEN 201 AND 250;
         BEGIN; INSERT INTO t SELECT n, 'p' FROM generate_series(13001, 13007) n;
         SAVEPOINT c; INSERT INTO t VALUES (13008, 'p'); PREPARE TRANSACTION 'kept';
         COMMIT PREPARED 'kept';
         BEGIN; CREATE TABLE gone (a int); DROP TABLE gone; INSERT INTO t VALUES (13009); PREPARE TRANSACTION 'q';
         COMMIT PREPARED 'q';
         BEGIN; INSERT INTO t SELECT n, 'p' FROM generate_series(14001, 14005) n;
         SAVEPOINT d; INSERT INTO t VALUES (14006, 'p'); PREPARE TRANSACTION 'open';
         BEGIN; INSERT INTO t VALUES (14007, 'p'); PREPARE TRANSACTION 'given up';
         ROLLBACK PREPARED 'given up';
         BEGIN; SELECT count(*) FROM (SELECT 1 FROM t WHERE id = 300 FOR UPDATE) x; COMMIT;
         ANALYZE t;",
    );
    let (t, big, toast) = (server.files("t").0, server.files("big").0, server.files("big").1);
    server.kill();

    let data = server.data();
    let (printed, why) = waldump(&data, 1, from);
    let scan = lost(&data, from).unwrap();
    assert!(scan.exact, "{scan:?}");
    // One is prepared and nothing more.
    assert_eq!((scan.commits, scan.prepared), (commits(&printed).len() as u64 + 1, 1));
    let mut committed = rows(&printed);
    *committed.entry(t).or_default() += 6;
    assert_eq!(by_file(&scan), committed);
    let mine = by_file(&scan);
    assert_eq!((mine[&t], mine[&big]), (5000 + 50 + 2 + 200 + 50 + 8 + 1 + 6, 3));
    assert_eq!(scan.rows_but(|table| table.file == toast), mine[&t] + mine[&big]);
    assert!(mine[&toast] > 1500, "3 MB are many chunks: {mine:?}");
    // FOR UPDATE and ANALYZE: nobody would miss them.
    assert_eq!(scan.idle, 2, "{scan:?}");
    let (first, last) = (scan.first_commit.unwrap(), scan.last_commit.unwrap());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64;
    assert!(first <= last && last <= now && now - first < 600_000_000, "{first} {last} {now}");
    // What pg_waldump says of the place where it stops, here and after a whole record.
    assert!(why.contains(&scan.end.to_string()) || why.contains("invalid magic"), "{why} {}", scan.end);
    let seen = |what: &str| printed.iter().any(|p| p.what.contains(what));
    assert!(seen("FPW") && seen("MULTI_INSERT") && seen("subxacts") && seen("SWITCH"));
    agrees_everywhere(&data, &printed, 997);
}

#[test]
fn killed_under_load_it_tells_what_recovery_brings_back() {
    if skipped() {
        return;
    }
    let mut server = Server::new();
    // The log of the first data becomes segments to use again, more than the load fills.
    server.start_with(&["min_wal_size=64MB"]);
    output(server.client("pgbench").args(["-i", "-q", "-s", "3", "postgres"]));
    server.sql("CHECKPOINT");
    let from = server.lsn();
    let (history, _) = server.files("pgbench_history");
    let mut load = server.client("pgbench");
    load.args(["-n", "-c", "4", "-T", "60", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut load = load.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    server.kill();
    load.wait().unwrap();

    let data = server.data();
    let scan = lost(&data, from).unwrap();
    let next = data.join(format!("pg_wal/0000000100000000{:08X}", (scan.end.0 >> 20) + 1));
    let mut address = [0; 8];
    fs::File::open(next).expect("no segment to use again").read_exact_at(&mut address, 8).unwrap();
    assert!((1..scan.end.0).contains(&u64::from_ne_bytes(address)), "the next segment has no old WAL in it");
    let (printed, _) = waldump(&data, 1, from);
    assert_eq!((scan.commits, scan.exact), (commits(&printed).len() as u64, true));
    assert_eq!(by_file(&scan), rows(&printed));
    agrees_everywhere(&data, &printed, printed.len() / 10 + 1);

    server.start();
    let there: u64 = server.sql("SELECT count(*) FROM pgbench_history").parse().unwrap();
    assert!(there > 20, "only {there} transactions");
    assert_eq!(by_file(&scan)[&history], there);
}

#[test]
fn a_torn_record_is_skipped_as_recovery_skipped_it() {
    if skipped() {
        return;
    }
    let mut server = Server::new();
    server.start_with(KEEP);
    server.sql("CREATE TABLE t (n int); CHECKPOINT;");
    let from = server.lsn();
    server.sql(
        "INSERT INTO t VALUES (1);
         SELECT pg_logical_emit_message(false, 'x', repeat('y', 3000000)) > '0/0';
         INSERT INTO t VALUES (2);",
    );
    let (t, _) = server.files("t");
    server.kill();
    let data = server.data();
    let whole = lost(&data, from).unwrap();
    assert_eq!((whole.commits, whole.rows()), (2, 2));

    // What a crash leaves that comes while such a record is on its way to the disk.
    let (printed, _) = waldump(&data, 1, from);
    let message = printed.iter().find(|p| p.manager == "LogicalMessage").unwrap().lsn;
    let torn = message.0 / (1 << 20) + 1;
    for number in torn..torn + 20 {
        let _ = fs::remove_file(data.join(format!("pg_wal/0000000100000000{number:08X}")));
    }
    let cut = lost(&data, from).unwrap();
    assert_eq!((cut.commits, cut.rows(), cut.end), (1, 1, message));

    server.start_with(KEEP);
    server.sql("INSERT INTO t VALUES (3), (4); INSERT INTO t VALUES (5);");
    server.kill();
    let scan = lost(&data, from).unwrap();
    let (printed, _) = waldump(&data, 1, from);
    let overwritten = printed.iter().find(|p| p.what.contains("OVERWRITE_CONTRECORD"));
    assert!(overwritten.is_some(), "the server did not go on behind a torn record");
    assert_eq!((scan.commits, by_file(&scan).get(&t)), (3, Some(&4)));
    agrees_everywhere(&data, &printed, 1);
}

#[test]
fn a_log_of_two_timelines_is_one_log() {
    if skipped() {
        return;
    }
    let mut server = Server::new();
    server.start_with(KEEP);
    server.sql("CREATE TABLE t (n int); CHECKPOINT;");
    let from = server.lsn();
    server.sql("INSERT INTO t VALUES (1); SELECT pg_switch_wal() > '0/0'; INSERT INTO t VALUES (2);");
    server.kill();
    let data = server.data();
    fs::write(data.join("recovery.signal"), "").unwrap();
    fs::write(data.join("postgresql.auto.conf"), "restore_command = 'false'\n").unwrap();
    output(std::process::Command::new("chown").arg("postgres:").arg(data.join("recovery.signal")));
    server.start_with(KEEP);
    server.sql("INSERT INTO t VALUES (3); SELECT pg_switch_wal() > '0/0'; INSERT INTO t VALUES (4);");
    server.kill();
    assert!(data.join("pg_wal/00000002.history").exists());
    let scan = lost(&data, from).unwrap();
    assert_eq!((scan.commits, scan.rows()), (4, 4));
    let (printed, _) = waldump(&data, 2, lost(&data, Lsn(u64::MAX / 2)).unwrap().since);
    assert_eq!(commits(&printed).len(), 2);
}

/// A new timeline often begins where a segment does, and all before that may be gone: a base backup has left nothing behind it.
#[test]
fn what_begins_with_a_segment_needs_nothing_before_it() {
    if skipped() {
        return;
    }
    let mut server = Server::new();
    server.start();
    server.sql("CREATE TABLE t (i int)");
    let switched: Lsn = server.sql("SELECT pg_switch_wal()").parse().unwrap();
    let from = Lsn(switched.0.next_multiple_of(1 << 20));
    server.sql("CHECKPOINT");
    server.sql("INSERT INTO t VALUES (1), (2)");
    server.sql("CHECKPOINT");
    server.kill();
    let data = server.data();
    let old = format!("{:024X}", (1u128 << 64) + u128::from((from.0 >> 20) - 1));
    // Unless a checkpoint has done that.
    drop(fs::remove_file(data.join("pg_wal").join(old)));
    let scan = lost(&data, from).unwrap();
    assert_eq!((scan.commits - scan.idle, scan.rows(), scan.exact, scan.since), (1, 2, true, from));
}

#[test]
fn the_control_file_says_what_pg_controldata_prints() {
    if skipped() {
        return;
    }
    let mut server = Server::new();
    let data = server.data();
    let check = |state: ClusterState, words: &str| {
        let text = output(tool("pg_controldata").arg(&data));
        let line = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name} in {text}")).trim().to_owned()
        };
        let control = control(&data).unwrap();
        assert_eq!(control.system.to_string(), line("Database system identifier"));
        assert_eq!(control.version.to_string(), line("pg_control version number"));
        assert_eq!(control.checkpoint.to_string(), line("Latest checkpoint location"));
        assert_eq!(control.redo.to_string(), line("Latest checkpoint's REDO location"));
        assert_eq!(control.timeline.to_string(), line("Latest checkpoint's TimeLineID"));
        assert_eq!(control.segment.to_string(), line("Bytes per WAL segment"));
        assert_eq!((control.state, line("Database cluster state").as_str()), (state, words));
        control
    };
    let made = check(ClusterState::ShutDown, "shut down");
    server.start();
    server.sql("CREATE TABLE t AS SELECT 1");
    check(ClusterState::InProduction, "in production");
    server.kill();
    check(ClusterState::InProduction, "in production");
    server.start();
    server.stop();
    let stopped = check(ClusterState::ShutDown, "shut down");
    assert!(stopped.checkpoint > made.checkpoint);
    // The checkpoint of the shutdown is the last record.
    let scan = lost(&data, stopped.checkpoint).unwrap();
    assert_eq!((scan.commits, scan.since), (0, stopped.checkpoint.min(scan.since)));
}

#[test]
fn damage_and_links_are_errors_and_no_news() {
    if skipped() {
        return;
    }
    let mut server = Server::new();
    server.start();
    server.sql("CREATE TABLE t (n int); CHECKPOINT;");
    let from = server.lsn();
    server.sql("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2);");
    server.kill();
    let data = server.data();
    let (printed, _) = waldump(&data, 1, from);
    let last = *commits(&printed).last().unwrap();
    let path = data.join(format!("pg_wal/0000000100000000{:08X}", last.0 >> 20));

    // A commit whose bytes are not what was written is none: recovery would stop there as well.
    let segment = fs::OpenOptions::new().write(true).open(&path).unwrap();
    segment.write_all_at(b"?", (last.0 & 0xF_FFFF) + 24 + 4).unwrap();
    let scan = lost(&data, from).unwrap();
    assert_eq!((scan.commits, scan.end), (1, last));

    // Without the checkpoint's own record there is nothing to trust.
    let redo = control(&data).unwrap().redo;
    segment.write_all_at(&[0xFF; 64], redo.0 & 0xF_FFFF).unwrap();
    let error = format!("{:#}", lost(&data, from).unwrap_err());
    assert!(error.contains("before the latest checkpoint"), "{error}");

    let elsewhere = data.join("pg_wal_elsewhere");
    fs::rename(data.join("pg_wal"), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, data.join("pg_wal")).unwrap();
    let error = format!("{:#}", lost(&data, from).unwrap_err());
    assert!(error.contains("no directory of the node"), "{error}");
    fs::remove_file(data.join("pg_wal")).unwrap();
    fs::rename(&elsewhere, data.join("pg_wal")).unwrap();

    fs::rename(&path, data.join("segment")).unwrap();
    std::os::unix::fs::symlink(data.join("segment"), &path).unwrap();
    assert!(lost(&data, from).is_err(), "a symbolic link was followed");
}
