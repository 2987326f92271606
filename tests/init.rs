//! pgbox's pid 1 with a real PostgreSQL in real namespaces. Needs root and the host's postgresql-15.
//!
//! Independent witnesses: psql, /proc seen from the host, flock(1), and what is left on the volume.

#[path = "init/container.rs"]
mod container;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use container::{BINDIR, Container, PGDATA, SECRET, Volume, command, config, postgres, user};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgbox::postgres::launch::{Password, PostgresPayload, Restart, Source};
use pgbox::postgres::report::{Exit, Phase, Reason};

#[test]
#[ignore = "not a test: the container, started by the others"]
fn inside() {
    container::inside();
}

/// True if this machine cannot run these tests; says so, and fails where they are required.
fn skipped() -> bool {
    let why = match (nix::unistd::geteuid().is_root(), fs::exists(BINDIR).unwrap()) {
        (true, true) => return false,
        (false, _) => "no root",
        (_, false) => "no postgresql-15 on this machine",
    };
    assert!(std::env::var_os("CI").is_none() && std::env::var_os("PGBOX_REQUIRE_ROOT").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
    true
}

/// A script packed by the machine's own tool.
fn packed(tool: &str, text: &str) -> Vec<u8> {
    let mut child =
        Command::new(tool).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap().stdout
}

#[test]
fn the_contract_of_the_official_image() {
    if skipped() {
        return;
    }
    let (volume, superuser, database) = (Volume::new(), "my user", "my \"db\" it's é");
    // A file system of its own has this directory, and initdb alone would refuse it.
    fs::create_dir(volume.data().join("lost+found")).unwrap();
    fs::create_dir(volume.data().join("lost+found/kept")).unwrap();
    let insert = |n: i32| format!("INSERT INTO t VALUES ({n}, current_setting('listen_addresses'));\n");
    volume.script("01 first.sh", 0o755, "#!/bin/sh\nset -e\npsql -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -c 'CREATE TABLE t (n int, listen text)'\nprintf '%s' \"$POSTGRES_PASSWORD\" > /tmp/seen\n");
    volume.script("02.sh", 0o644, format!("docker_process_sql <<'E'\n{}E\n", insert(2)));
    volume.script("03.sql", 0o644, insert(3));
    volume.script("04.sql.gz", 0o644, packed("gzip", &insert(4)));
    volume.script("05.sql.xz", 0o644, packed("xz", &insert(5)));
    volume.script("06.sql.zst", 0o644, packed("zstd", &insert(6)));
    volume.script(
        "07.sh",
        0o755,
        "psql -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -c \"INSERT INTO t VALUES (7, '')\"",
    );
    volume.script("99.txt", 0o644, "not SQL");
    volume.script("secret", 0o600, format!("{SECRET}\n\n"));
    volume.script("user", 0o600, format!("{superuser}\n"));
    let mut container = Container::start(
        &volume,
        &config(PostgresPayload {
            superuser: Source::File("/docker-entrypoint-initdb.d/user".into()),
            database: Some(Source::Value(database.into())),
            password: Password::File("/docker-entrypoint-initdb.d/secret".into()),
            ..postgres()
        }),
    );
    container.wait_running();
    let conninfo = format!("dbname={}", pgbox::postgres::uri::conninfo_value(database));
    let sql = |sql: &str| container.sql_as(superuser, &conninfo, sql);
    assert_eq!(sql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM t"), "2 3 4 5 6 7");
    assert_eq!(
        sql("SELECT string_agg(DISTINCT listen, '') FROM t"),
        "",
        "the port was open while scripts ran"
    );
    assert!(container.log().contains("ignoring /docker-entrypoint-initdb.d/99.txt"));
    let verifier = sql("SELECT rolpassword FROM pg_authid WHERE rolsuper");
    assert!(pgbox::postgres::password::verify(SECRET, &verifier, superuser).unwrap(), "{verifier}");
    assert_eq!(String::from_utf8_lossy(&container.sh("cat /tmp/seen").stdout), SECRET);
    for (name, value) in [
        ("data_checksums", "on"),
        ("huge_pages", "off"),
        ("wal_log_hints", "on"),
        ("listen_addresses", "*"),
        ("shared_buffers", "16MB"),
    ] {
        assert_eq!(sql(&format!("SHOW {name}")), value, "{name}");
    }
    let hba = "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = 'scram-sha-256' AND error IS NULL AND \
               (database = '{all}' AND user_name = '{all}' AND address = 'all' OR \
                database = '{replication}' AND user_name = '{replicator}' AND address = '10.88.0.0')";
    assert_eq!(sql(hba), "2");
    sql("ALTER SYSTEM SET work_mem = '7MB'");
    sql("SELECT pg_reload_conf()");
    container
        .until("ALTER SYSTEM", |c| (c.sql_as(superuser, "postgres", "SHOW work_mem") == "7MB").then_some(()));
    assert!(volume.names().contains(&"lost+found".to_owned()));
    let status = container.status();
    assert_eq!((status.superuser.as_deref(), status.database.as_deref()), (Some(superuser), Some(database)));
    let postmaster = container.postmaster();
    for pid in [postmaster, container.pid.unwrap()] {
        for file in ["environ", "cmdline"] {
            let text =
                String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap()).into_owned();
            assert!(!text.contains("p w'd") && !text.contains("leaked"), "{file}: {text}");
        }
    }
    assert!(!container.everything().contains("p w'd"), "the password is in a log or a report");
}

#[test]
fn pid_1_holds_nothing_of_the_host() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    let pid = container.pid.unwrap();
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(read("comm").trim(), "pgbox-init");
    assert_eq!(read("cmdline").trim_end_matches('\0'), "pgbox-init");
    assert_eq!(read("environ").trim_matches('\0'), "");
    assert_eq!(fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(), 1);
    assert!(read("status").contains("NSsid:") && read("status").contains("Umask:\t0022"));
    let session = read("stat").rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "a signal of the caller's terminal reaches it");
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap().display().to_string();
        let known = ["/dev/null", "pipe:", "anon_inode:[signalfd]", PGDATA, "/log", "/previous", "/status"];
        assert!(known.iter().any(|name| target.contains(name)), "{target}");
    }
    let payload = container.postmaster();
    let fds: Vec<_> = fs::read_dir(format!("/proc/{payload}/fd"))
        .unwrap()
        .map(|fd| fs::read_link(fd.unwrap().path()).unwrap().display().to_string())
        .collect();
    assert!(!fds.iter().any(|target| target.ends_with("/log") || target.ends_with("/status")), "{fds:?}");
    let rollup = read("smaps_rollup");
    eprintln!(
        "{}",
        rollup
            .lines()
            .filter(|l| l.starts_with("Pss") || l.starts_with("Rss"))
            .collect::<Vec<_>>()
            .join("\n")
    );
}

#[test]
fn an_orphan_that_exits_with_2_harms_no_session() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    let psql = format!("{BINDIR}/psql");
    let mut session = container
        .enter(&[&psql, "-XAtq", "-U", "postgres"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) =
        (session.stdin.take().unwrap(), BufReader::new(session.stdout.take().unwrap()));
    let mut ask = || {
        input.write_all(b"SELECT pg_backend_pid();\n").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line
    };
    let before = ask();
    assert!(container.sh("(sleep 0.2; exit 2) & (sleep 0.2; kill -9 $$) & exit 0").status.success());
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(ask(), before);
    let pid = container.pid.unwrap();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "an orphan was not reaped: {children}");
    assert!(!container.log().contains("terminating any other active server processes"));
    drop(input);
    session.wait().unwrap();
}

#[test]
fn stop_is_fast_with_an_idle_client() {
    if skipped() {
        return;
    }
    let volume = Volume::initialised();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut container = Container::start(&volume, &config(postgres()));
        container.wait_running();
        let psql = format!("{BINDIR}/psql");
        let mut idle =
            container.enter(&[&psql, "-X", "-U", "postgres"]).stdin(Stdio::piped()).spawn().unwrap();
        container.until("client", |c| {
            (c.sql("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle'") == "1").then_some(())
        });
        let begun = Instant::now();
        let code = container.stop(signal);
        assert!(begun.elapsed() < Duration::from_secs(5), "{signal}: {:?}", begun.elapsed());
        let status = container.status();
        assert_eq!((status.phase, status.reason), (Phase::Ended, Some(Reason::Stopped)), "{signal}");
        assert_eq!(status.code, Some(code));
        assert!(container.log().contains("database system is shut down"), "{signal}: {}", container.log());
        drop(idle.stdin.take());
        idle.wait().unwrap();
    }
}

#[test]
fn a_fast_stop_that_hangs_becomes_immediate() {
    if skipped() {
        return;
    }
    let volume = Volume::initialised();
    let mut config = config(postgres());
    config.stop_timeout = 1;
    let mut container = Container::start(&volume, &config);
    container.wait_running();
    // A stopped backend cannot answer the fast shutdown.
    let postmaster = container.postmaster();
    let psql = format!("{BINDIR}/psql");
    let mut client =
        container.enter(&[&psql, "-X", "-U", "postgres", "-c", "SELECT pg_sleep(100)"]).spawn().unwrap();
    container.until("client", |c| {
        (c.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1").then_some(())
    });
    let backend: i32 =
        container.sql("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'").parse().unwrap();
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    let host = children.split_whitespace().map(|c| c.parse::<i32>().unwrap()).find(|child| {
        fs::read_to_string(format!("/proc/{child}/status"))
            .unwrap()
            .lines()
            .any(|line| line.starts_with("NSpid:") && line.ends_with(&format!("\t{backend}")))
    });
    kill(Pid::from_raw(host.unwrap()), Signal::SIGSTOP).unwrap();
    container.stop(Signal::SIGTERM);
    assert!(container.log().contains("becomes an immediate one"));
    client.wait().unwrap();
}

#[test]
fn smart_stop_waits_for_clients_and_reload_reloads() {
    if skipped() {
        return;
    }
    let volume = Volume::initialised();
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    container.signal(Signal::SIGHUP);
    container.until("reload", |c| c.log().contains("reloading configuration files").then_some(()));
    let psql = format!("{BINDIR}/psql");
    let mut idle = container.enter(&[&psql, "-X", "-U", "postgres"]).stdin(Stdio::piped()).spawn().unwrap();
    container.until("client", |c| {
        (c.sql("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle'") == "1").then_some(())
    });
    container.signal(Signal::SIGUSR2);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(container.status().phase, Phase::Stopping, "it did not wait for the client");
    drop(idle.stdin.take());
    idle.wait().unwrap();
    assert_eq!(container.wait(), 0);
}

#[test]
fn a_stop_at_any_moment_of_a_first_start_is_heard() {
    if skipped() {
        return;
    }
    for moment in [0, 3, 10, 30, 100, 200, 300, 350, 400, 450, 500, 600] {
        let volume = Volume::new();
        volume.script("1.sql", 0o644, "SELECT 1;\n");
        let mut container = Container::start(&volume, &config(postgres()));
        std::thread::sleep(Duration::from_millis(moment));
        let begun = Instant::now();
        container.stop(Signal::SIGTERM);
        assert!(begun.elapsed() < Duration::from_secs(10), "{moment} ms\n{}", container.everything());
        let status = container.status();
        assert_eq!(status.reason, Some(Reason::Stopped), "{moment} ms\n{}", container.everything());
        let names = volume.names();
        let whole = names.iter().any(|name| name == "PG_VERSION");
        assert!(whole || names.is_empty() || names == [".pgbox-failed"], "{moment} ms: {names:?}");
    }
}

#[test]
fn initdb_interrupted_leaves_an_empty_directory() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_phase(Phase::Initdb);
    let begun = Instant::now();
    assert_eq!(container.stop(Signal::SIGTERM), 143);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(container.status().reason, Some(Reason::Stopped));
    assert!(volume.names().is_empty(), "{:?}", volume.names());
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
}

#[test]
fn a_failed_init_script_is_kept_aside_and_the_next_start_begins_anew() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    volume.script("1.sql", 0o644, "CREATE TABLE half_made ();\n");
    volume.script("2.sql", 0o644, "SELECT 1;\nSELECT nonsense;\n");
    let mut container = Container::start(&volume, &config(postgres()));
    assert_eq!(container.wait(), 1);
    let (error, in_use) = container.failure();
    assert!(error.contains("2.sql") && error.contains("nonsense"), "{error}");
    assert!(!in_use);
    assert_eq!(container.status().reason, Some(Reason::Failed));
    assert_eq!(volume.names(), [".pgbox-failed"]);
    assert!(volume.data().join(".pgbox-failed/PG_VERSION").exists());
    for (name, script) in [
        ("2.sql.gz", &packed("gzip", &"SELECT 1;\n".repeat(50_000))[..200]),
        ("2.sh", b"exit 3" as &[u8]),
        ("2.sh", b"exit 4"),
    ] {
        volume.script("2.sql", 0o644, "");
        volume.script(name, 0o644, script);
        let mut container = Container::start(&volume, &config(postgres()));
        assert_eq!(container.wait(), 1, "{name}\n{}", container.everything());
        assert!(container.failure().0.contains(name), "{}", container.failure().0);
        volume.script("2.sql.gz", 0o644, packed("gzip", ""));
        volume.script("2.sh", 0o644, "");
    }
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    assert_eq!(container.sql("SELECT count(*) FROM half_made"), "0");
    let names = volume.names();
    let kept: Vec<_> = names.iter().filter(|name| name.starts_with(".pgbox-failed")).collect();
    assert_eq!(kept, [".pgbox-failed-2", ".pgbox-failed-3", ".pgbox-failed-4"], "the latest three are kept");
}

#[test]
fn a_container_killed_during_its_init_scripts_is_not_taken_for_whole() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    volume.script("1.sh", 0o755, "#!/bin/sh\nsleep 60\n");
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_phase(Phase::Scripts);
    container.until("script", |c| c.log().contains("running /docker-entrypoint-initdb.d/1.sh").then_some(()));
    assert_eq!(container.stop(Signal::SIGKILL), 137);
    assert_eq!(volume.names(), [".pgbox-init"]);
    volume.script("1.sh", 0o755, "#!/bin/sh\n");
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    assert!(container.notes().contains(".pgbox-failed"), "{}", container.notes());
    // A stop in this phase ends the script and the server at once.
    drop(container);
    let volume = Volume::new();
    volume.script("1.sh", 0o755, "#!/bin/sh\nsleep 60\n");
    let mut container = Container::start(&volume, &config(postgres()));
    container.until("script", |c| c.log().contains("running /docker-entrypoint-initdb.d/1.sh").then_some(()));
    let begun = Instant::now();
    assert_eq!(container.stop(Signal::SIGINT), 130);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(volume.names(), [".pgbox-failed"]);
}

#[test]
fn a_complete_cluster_that_was_not_moved_up_is_moved_up() {
    if skipped() {
        return;
    }
    let volume = Volume::initialised();
    let (data, done) = (volume.data(), volume.data().join(".pgbox-done"));
    fs::create_dir(&done).unwrap();
    for name in ["PG_VERSION", "base", "postgresql.conf"] {
        fs::rename(data.join(name), done.join(name)).unwrap();
    }
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    assert!(!done.exists());
}

#[test]
fn a_stale_postmaster_pid_is_removed_under_the_lock() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    container.sql("CREATE TABLE t AS SELECT 1 AS n");
    assert_eq!(container.stop(Signal::SIGKILL), 137);
    assert!(volume.data().join("postmaster.pid").exists());
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    assert!(container.notes().contains("postmaster.pid"), "{}", container.notes());
    assert_eq!(container.sql("SELECT n FROM t"), "1");
}

#[test]
fn two_containers_on_one_data_directory() {
    if skipped() {
        return;
    }
    let volume = Volume::initialised();
    let mut first = Container::start(&volume, &config(postgres()));
    first.wait_running();
    let mut second = Container::start(&volume, &config(postgres()));
    assert_eq!(second.wait(), 1);
    let (error, in_use) = second.failure();
    assert!(in_use && error.contains(PGDATA), "{error}");
    assert_eq!(first.sql("SELECT 1"), "1");
    let locked = || {
        !Command::new("flock")
            .args(["-n", volume.data().to_str().unwrap(), "true"])
            .status()
            .unwrap()
            .success()
    };
    assert!(locked());
    // The postmaster and its children have the lock themselves.
    let postmaster = first.postmaster();
    assert_eq!(fs::read_link(format!("/proc/{postmaster}/fd/3")).unwrap().to_str().unwrap(), PGDATA);
    let child = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    let child = child.split_whitespace().next().unwrap().to_owned();
    assert_eq!(fs::read_link(format!("/proc/{child}/fd/3")).unwrap().to_str().unwrap(), PGDATA);
    assert_eq!(first.stop(Signal::SIGTERM), 0);
    assert!(!locked());
}

#[test]
fn directories_that_are_refused() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    fs::write(volume.data().join("holiday.jpg"), "x").unwrap();
    let mut container = Container::start(&volume, &config(postgres()));
    assert_eq!(container.wait(), 1);
    let (error, _) = container.failure();
    assert!(error.contains("not a data directory") && error.contains("holiday.jpg"), "{error}");
    assert_eq!(volume.names(), ["holiday.jpg"]);
    fs::write(volume.data().join("PG_VERSION"), "13\n").unwrap();
    let mut container = Container::start(&volume, &config(postgres()));
    assert_eq!(container.wait(), 1);
    let (error, _) = container.failure();
    assert!(error.contains("PostgreSQL 13") && error.contains("PostgreSQL 15"), "{error}");
}

#[test]
fn initdb_that_fails_says_why() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    let args = Some(Source::Value("--wal-segsize=3".into()));
    let mut container =
        Container::start(&volume, &config(PostgresPayload { initdb_args: args, ..postgres() }));
    assert_eq!(container.wait(), 1);
    assert!(container.failure().0.contains("power of 2"), "{}", container.failure().0);
    let empty = PostgresPayload { password: Password::Unset, ..postgres() };
    let volume = Volume::new();
    let mut container = Container::start(&volume, &config(empty.clone()));
    assert_eq!(container.wait(), 1);
    assert!(container.failure().0.contains("password"), "{}", container.failure().0);
    let volume = Volume::new();
    let trust = PostgresPayload { auth_method: Some("trust".into()), ..empty };
    Container::start(&volume, &config(trust)).wait_running();
}

#[test]
fn a_missing_locale_falls_back() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    let mut config = config(postgres());
    config.env.push(("LC_ALL".into(), "xx_XX.UTF-8".into()));
    let mut container = Container::start(&volume, &config);
    container.until("note", |c| c.notes().contains("C.UTF-8").then_some(()));
    container.wait_running();
    assert!(container.notes().contains("C.UTF-8"), "{}", container.everything());
    assert_eq!(container.sql("SHOW server_encoding"), "UTF8");
}

#[test]
fn ownership_and_mode_are_put_right_once() {
    if skipped() {
        return;
    }
    let volume = Volume::initialised();
    let data = volume.data();
    assert!(
        Command::new("chown").args(["-R", "12345:12345", data.to_str().unwrap()]).status().unwrap().success()
    );
    assert!(Command::new("chmod").args(["0755", data.to_str().unwrap()]).status().unwrap().success());
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    let notes = container.notes();
    assert!(notes.contains("12345") && notes.contains("0755"), "{notes}");
    let uid = std::os::unix::fs::MetadataExt::uid(&fs::metadata(data.join("base/1")).unwrap());
    assert_eq!(uid, user().uid);
    assert_eq!(container.stop(Signal::SIGTERM), 0);
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    assert_eq!(container.notes(), "");
}

#[test]
fn the_write_ahead_log_in_a_place_of_its_own() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    volume.script("1.sql", 0o644, "SELECT nonsense;\n");
    let waldir = Some("/docker-entrypoint-initdb.d/wal".into());
    let payload = PostgresPayload { initdb_waldir: waldir, ..postgres() };
    let mut container = Container::start(&volume, &config(payload.clone()));
    assert_eq!(container.wait(), 1);
    volume.script("1.sql", 0o644, "SELECT 1;\n");
    let mut container = Container::start(&volume, &config(payload));
    container.wait_running();
    assert!(fs::read_link(volume.data().join("pg_wal")).unwrap().ends_with("wal"));
}

#[test]
fn a_crashed_server_is_started_again_a_few_times() {
    if skipped() {
        return;
    }
    let volume = Volume::initialised();
    let mut config = config(postgres());
    config.restart = Restart::OnCrash { max: 2 };
    let mut container = Container::start(&volume, &config);
    container.wait_running();
    container.sql("CREATE TABLE t AS SELECT 1 AS n");
    // A backend that does not notice the postmaster's death.
    let psql = format!("{BINDIR}/psql");
    let busy = "DO $$ BEGIN LOOP END LOOP; END $$";
    let mut client = container.enter(&[&psql, "-X", "-U", "postgres", "-c", busy]).spawn().unwrap();
    container.until("client", |c| {
        (c.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO%'") == "1").then_some(())
    });
    for restarts in 1..=2 {
        kill(Pid::from_raw(container.postmaster()), Signal::SIGKILL).unwrap();
        let again = container.until("restart", |c| {
            let status = c.status();
            (status.restarts == restarts && status.phase == Phase::Running).then_some(())
        });
        assert!(again.is_some(), "{}", container.everything());
        assert_eq!(container.sql("SELECT n FROM t"), "1");
        assert_eq!(container.status().last_exit, Some(Exit::Signal(9)));
    }
    client.wait().unwrap();
    kill(Pid::from_raw(container.postmaster()), Signal::SIGKILL).unwrap();
    assert_eq!(container.wait(), 137);
    assert_eq!(container.status().reason, Some(Reason::Crashed));
}

#[test]
fn restart_in_place_keeps_the_container() {
    if skipped() {
        return;
    }
    let volume = Volume::initialised();
    let mut container = Container::start(&volume, &config(postgres()));
    container.wait_running();
    let before = (container.postmaster(), container.sql("SELECT pg_postmaster_start_time()"));
    container.signal(Signal::SIGUSR1);
    let inner = container.status().pid;
    container
        .until("restart", |c| (c.status().pid > inner && c.status().phase == Phase::Running).then_some(()));
    let after = (container.postmaster(), container.sql("SELECT pg_postmaster_start_time()"));
    assert!(after.0 != before.0 && after.1 != before.1, "{before:?} {after:?}");
    assert_eq!(container.status().restarts, 0);
    assert_eq!(container.stop(Signal::SIGTERM), 0);
}

#[test]
fn a_server_that_cannot_start_is_not_started_again() {
    if skipped() {
        return;
    }
    let volume = Volume::initialised();
    let mut payload = postgres();
    payload.server_args = vec!["-c".into(), "max_connections=nonsense".into()];
    let mut config = config(payload);
    config.restart = Restart::OnCrash { max: 5 };
    let mut container = Container::start(&volume, &config);
    assert_eq!(container.wait(), 1);
    let (error, _) = container.failure();
    assert!(error.contains("max_connections") && error.contains("nonsense"), "{error}");
    assert_eq!(container.status().restarts, 0);
}

#[test]
fn a_full_volume_ends_without_a_restart_loop() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    let args = Some(Source::Value("--no-sync --wal-segsize=1".into()));
    let mut config = config(PostgresPayload { initdb_args: args, ..postgres() });
    config.restart = Restart::OnCrash { max: 50 };
    let mut container = Container::on_tmpfs(&volume, &config, 80);
    container.wait_running();
    container.sql("CREATE TABLE t AS SELECT 0 AS n");
    container.sh(&format!("dd if=/dev/zero of={PGDATA}/filler bs=64k"));
    let psql = format!("{BINDIR}/psql");
    let fill = "DO $$ BEGIN FOR i IN 1..200 LOOP INSERT INTO t VALUES (i); PERFORM pg_switch_wal(); COMMIT; END LOOP; END $$";
    container.enter(&[&psql, "-X", "-U", "postgres", "-c", fill]).output().unwrap();
    assert_ne!(container.wait(), 0, "{}", container.everything());
    let status = container.status();
    assert_eq!((status.reason, status.restarts), (Some(Reason::DiskFull), 0), "{}", container.everything());
    assert!(status.error.unwrap().contains("no space left"));
}

#[test]
fn a_command_passes_its_exit_code_on() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    let run = |words: &[&str]| {
        let mut container = Container::foreground(&volume, &command(words));
        (container.wait(), container.file("stdout"), container)
    };
    assert_eq!(run(&["sh", "-c", "exit 42"]).0, 42);
    assert_eq!(run(&["sh", "-c", "kill -9 $$"]).0, 137);
    let (code, _, missing) = run(&["no-such-program"]);
    assert_eq!(code, 127);
    assert!(missing.failure().0.contains("no-such-program"), "{}", missing.failure().0);
    assert_eq!(run(&["/etc/passwd"]).0, 126);
    assert_eq!(run(&["/etc"]).0, 126);
    let (code, output, _) = run(&[
        "sh",
        "-c",
        "id -u; echo $$; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l; cat /proc/1/cmdline",
    ]);
    assert_eq!(code, 0);
    assert!(output.contains(&format!("{}\n2\n", user().uid)), "{output}");
    assert_eq!(output.matches("\t0000000000000000").count(), 2, "signals are blocked or ignored: {output}");
    assert!(output.contains("\n4\npgbox-init"), "{output}");
}

#[test]
fn signals_reach_a_command() {
    if skipped() {
        return;
    }
    let volume = Volume::new();
    let script =
        "trap 'echo got HUP' HUP; trap 'echo got TERM; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let mut container = Container::foreground(&volume, &command(&["sh", "-c", script]));
    container.until("command", |c| c.file("stdout").contains("up").then_some(()));
    container.signal(Signal::SIGHUP);
    container.until("HUP", |c| c.file("stdout").contains("got HUP").then_some(()));
    assert_eq!(container.stop(Signal::SIGTERM), 7);
    let mut container = Container::foreground(&volume, &command(&["sleep", "100"]));
    container.wait_phase(Phase::Running);
    assert_eq!(container.stop(Signal::SIGTERM), 143);
}
