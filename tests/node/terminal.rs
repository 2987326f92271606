//! `exec -it` and `psql` as somebody at a terminal has them.

use std::{process::Stdio, time::Duration};

use expectrl::{ControlCode, Expect, process::unix::WaitStatus, session::OsSession};

use crate::harness::{Host, text};

fn at_a_terminal(host: &Host, args: &[&str]) -> OsSession {
    let mut command = host.command(args);
    command.stdin(Stdio::inherit());
    let mut session = OsSession::spawn(command).expect("a terminal");
    session.set_expect_timeout(Some(Duration::from_secs(20)));
    session.get_process_mut().set_window_size(100, 30).expect("size");
    session
}

/// The code with which the command ends.
fn end(session: OsSession) -> i32 {
    match session.get_process().wait().expect("wait") {
        WaitStatus::Exited(_, code) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_shell_has_a_terminal_whose_size_follows_and_whose_keys_work() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let mut shell = at_a_terminal(&host, &["exec", "-it", "n", "--", "bash", "--norc"]);
    shell.send_line("tty; stty size").unwrap();
    shell.expect("/dev/pts/0").unwrap();
    shell.expect("30 100").unwrap();
    shell.get_process_mut().set_window_size(132, 43).unwrap();
    shell.send_line("sleep 0.2; stty size").unwrap();
    shell.expect("43 132").unwrap();
    // Ctrl-C ends what runs in the shell, and not the shell, nor pgbox.
    shell.send_line("sleep 1000 || echo interrupted: $?").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    shell.send(ControlCode::EndOfText).unwrap();
    shell.send_line("echo still $((40 + 2)) here").unwrap();
    shell.expect("still 42 here").unwrap();
    shell.send_line("exit 7").unwrap();
    assert_eq!(end(shell), 7);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

#[test]
fn psql_is_interactive_at_a_terminal_and_reads_a_pipe_otherwise() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let mut psql = at_a_terminal(&host, &["psql", "n"]);
    psql.expect("postgres=#").unwrap();
    psql.send_line("SELECT 40 + 2 AS answer;").unwrap();
    psql.expect("42").unwrap();
    // Ctrl-C cancels the query, and the session goes on.
    psql.send_line("SELECT pg_sleep(1000);").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    psql.send(ControlCode::EndOfText).unwrap();
    psql.expect("canceling statement due to user request").unwrap();
    psql.send_line("\\q").unwrap();
    assert_eq!(end(psql), 0);
    let mut piped = host.command(&["psql", "n", "-At"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut piped.stdin.take().unwrap(), b"SELECT 1;\nSELECT 2;\n").unwrap();
    assert_eq!(text(&piped.wait_with_output().unwrap().stdout), "1\n2\n");
    host.fails(1, &["psql", "n", "-c", "SELECT no_such_function()"]);
}

#[test]
fn ctrl_c_at_a_foreground_node_is_a_fast_shutdown() {
    let Some(host) = Host::new() else { return };
    let mut node = at_a_terminal(&host, &["run", "n", "postgres:15", "--foreground", "--rm"]);
    node.expect("ready to accept connections").unwrap();
    node.send(ControlCode::EndOfText).unwrap();
    node.expect("fast shutdown request").unwrap();
    node.expect("database system is shut down").unwrap();
    assert_eq!(end(node), 0);
    host.is_clean();
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
}

#[test]
fn ctrl_c_at_run_takes_it_back() {
    let Some(host) = Host::new() else { return };
    let mut run = at_a_terminal(&host, &["run", "n", "postgres:15"]);
    run.expect("initdb").unwrap();
    run.send(ControlCode::EndOfText).unwrap();
    run.expect("SIGINT during initdb").unwrap();
    run.expect("nothing of `n` is left").unwrap();
    assert_eq!(end(run), 130);
    host.is_clean();
}

#[test]
fn exec_in_a_node_that_ends_ends_too() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    let mut shell = at_a_terminal(&host, &["exec", "-it", "n", "--", "bash", "--norc"]);
    shell.send_line("echo $((40 + 2)) ready").unwrap();
    shell.expect("42 ready").unwrap();
    host.pgbox(&["rm", "--force", "n"]);
    assert_eq!(end(shell), 137);
    host.is_clean();
}

#[test]
fn a_shell_instead_of_a_server_has_a_terminal() {
    let Some(host) = Host::new() else { return };
    let mut shell = at_a_terminal(&host, &["run", "--rm", "-it", "t", "postgres:15", "--", "bash", "--norc"]);
    shell.send_line("tty; stty size; echo $TERM; id -un").unwrap();
    shell.expect("/dev/pts/0").unwrap();
    shell.expect("30 100").unwrap();
    shell.expect("xterm").unwrap();
    shell.expect("root").unwrap();
    shell.get_process_mut().set_window_size(132, 43).unwrap();
    shell.send_line("sleep 0.2; stty size").unwrap();
    shell.expect("43 132").unwrap();
    // Jobs: Ctrl-C ends what runs in the shell, and not the shell, nor pid 1; Ctrl-Z stops it.
    shell.send_line("sh -c 'echo job $((40 + 3)); exec sleep 1000'").unwrap();
    shell.expect("job 43").unwrap();
    shell.send(ControlCode::EndOfText).unwrap();
    shell.send_line("echo still $((40 + 2)) here").unwrap();
    shell.expect("still 42 here").unwrap();
    shell.send_line("sh -c 'echo job $((40 + 4)); exec sleep 1000'").unwrap();
    shell.expect("job 44").unwrap();
    shell.send(ControlCode::Substitute).unwrap();
    shell.expect("Stopped").unwrap();
    // As long as it lists a stopped job, bash refuses to exit; it may hear late of the end of one.
    shell.send_line("kill -9 %1; until [ -z \"$(jobs -s)\" ]; do sleep 0.1; done; exit 7").unwrap();
    assert_eq!(end(shell), 7);
    host.is_clean();
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
    // What can't have one says what can.
    let said = host.fails(2, &["run", "-it", "n", "postgres:15"]);
    assert!(said.contains("pgbox exec -it n -- bash"), "{said}");
}

#[test]
fn a_command_whose_terminal_hangs_up_goes_with_it() {
    let Some(host) = Host::new() else { return };
    let mut shell = at_a_terminal(&host, &["run", "--rm", "-it", "t", "tiny", "--", "sh"]);
    shell.send_line("echo $((40 + 2)) ready").unwrap();
    shell.expect("42 ready").unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shell.get_process().pid().as_raw()),
        nix::sys::signal::Signal::SIGHUP,
    )
    .unwrap();
    assert_eq!(end(shell), 129);
    host.is_clean();
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
}
