//! Commands whose words nobody hears: what they do, they do to the end.

use std::{
    fs::File,
    io::pipe,
    process::{Child, Command, ExitStatus},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{Host, text, until};

/// Standard output as `| head -1` leaves it.
fn unread(command: &mut Command) -> &mut Command {
    let (reader, writer) = pipe().expect("pipe");
    drop(reader);
    command.stdout(writer)
}

/// Standard output as a full disk leaves it.
fn unwritten(command: &mut Command) -> &mut Command {
    command.stdout(File::options().write(true).open("/dev/full").expect("open"))
}

fn ended(command: &mut Command) -> (ExitStatus, String) {
    let output = command.stderr(std::process::Stdio::piped()).spawn().and_then(Child::wait_with_output);
    let output = output.expect("run pgbox");
    (output.status, text(&output.stderr))
}

fn is_primary(host: &Host, node: &str) -> bool {
    host.sql(node, &[], "SELECT NOT pg_is_in_recovery()") == "t"
}

#[test]
fn a_reader_that_goes_away_ends_no_change_halfway() {
    let Some(host) = Host::new() else { return };
    let done = |args: &[&str]| {
        let (status, said) = ended(unread(&mut host.command(args)));
        assert!(status.success(), "{args:?}: {status} {said}");
    };
    done(&["up"]);
    done(&["set", "--lab", "log_min_messages=error"]);
    for node in ["primary", "replica"] {
        assert_eq!(host.sql(node, &[], "SHOW log_min_messages"), "error");
    }
    done(&["failover", "replica", "--accept-loss"]);
    assert!(is_primary(&host, "replica"));
    done(&["rejoin", "primary"]);
    done(&["switchover", "primary"]);
    assert!(is_primary(&host, "primary") && !is_primary(&host, "replica"));
    done(&["stop", "--all"]);
    assert!(
        host.json(&["ps", "--json"]).as_array().expect("rows").iter().all(|row| row["state"] == "stopped")
    );
    done(&["down", "-v"]);
    host.is_clean();
    // Who only reads ends as every program does.
    host.pgbox(&["run", "n", "postgres:15"]);
    let (status, _) = ended(unread(&mut host.command(&["ps"])));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(13), "{status}");
}

#[test]
fn a_full_disk_behind_the_output_is_told_and_ends_nothing() {
    let Some(host) = Host::new() else { return };
    for args in [&["up"][..], &["ps"], &["down", "-v"]] {
        let (status, said) = ended(unwritten(&mut host.command(args)));
        let told = said.matches("standard output can't be written: No space left").count();
        assert_eq!((status.code(), told), (Some(1), 1), "{args:?}: {said}");
        if args == ["up"] {
            assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM pg_stat_replication"), "1");
        }
    }
    host.is_clean();
}

#[test]
fn a_guard_whose_log_can_not_be_written_fails_over_all_the_same() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["up"]);
    let unread = unread as fn(&mut Command) -> &mut Command;
    for (dies, takes_over, output, code) in
        [("primary", "replica", unread, 0), ("replica", "primary", unwritten, 1)]
    {
        let mut guard =
            output(&mut host.command(&["guard", "--accept-loss"])).spawn().expect("start the guard");
        let lock = host.root.join("locks/guard-default");
        let is_its = || std::fs::read_to_string(&lock).is_ok_and(|pid| pid.trim() == guard.id().to_string());
        until("it guards", 10, is_its);
        host.pgbox(&["crash", dies, "--node"]);
        until("it has promoted the other one", 20, || {
            host.try_pgbox(&["psql", takes_over, "-c", "CREATE TABLE t ()"]).status.success()
        });
        // As a user ends it: what it is doing it does to the end.
        kill(Pid::from_raw(guard.id() as i32), Signal::SIGTERM).expect("end the guard");
        assert_eq!(guard.wait().expect("wait").code(), Some(code));
        host.sql(takes_over, &[], "DROP TABLE t");
        host.pgbox(&["rejoin", dies]);
        host.pgbox(&["wait", dies, "--for", "caught-up"]);
    }
}
