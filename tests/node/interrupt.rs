//! Commands that are interrupted, and nodes that are stopped or removed by one command while another waits.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Stdio},
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{Host, run, text, until};

fn begin(host: &Host, args: &[&str]) -> Child {
    host.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// Begins to run a node in the foreground, and waits until the log is shown; gives what was read of it.
fn attended(host: &Host, more: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut command = begin(host, &[&["run", "n", "postgres:15", "--foreground"], more].concat());
    let mut log = BufReader::new(command.stdout.take().unwrap());
    assert!(!log.fill_buf().unwrap().is_empty(), "the log ended");
    (command, log)
}

/// Its exit code, standard output and standard error.
fn end(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn state(host: &Host) -> String {
    host.json(&["ps", "--json"])[0]["state"].as_str().unwrap_or_default().to_owned()
}

/// Init scripts that take long, so that there is time to come between.
fn slow_scripts(host: &Host) -> String {
    let scripts = host.scratch("scripts");
    fs::write(scripts.join("1.sql"), "SELECT pg_sleep(60);").unwrap();
    format!("{}:/docker-entrypoint-initdb.d", scripts.display())
}

#[test]
fn ctrl_c_during_initdb_takes_everything_back() {
    let Some(host) = Host::new() else { return };
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let command = begin(&host, &["run", "n", "postgres:15"]);
        until("initdb runs", 20, || state(&host) == "initdb");
        send(&command, signal);
        let (code, _, said) = end(command);
        assert_eq!(code, Some(128 + signal as i32), "{said}");
        assert!(said.contains(signal.as_str()) && said.contains("nothing of `n` is left"), "{said}");
        host.is_clean();
        assert_eq!(host.pgbox(&["ps", "-q"]), "");
        // A volume stays, but never with half a cluster that looks whole.
        assert!(!host.root.join("volumes/default/n/data/PG_VERSION").exists());
    }
}

#[test]
fn ctrl_c_during_start_leaves_the_node_stopped() {
    let Some(host) = Host::new() else { return };
    slow_start(&host);
    let command = begin(&host, &["start", "n"]);
    until("it recovers", 20, || state(&host) == "starting");
    send(&command, Signal::SIGINT);
    let (code, _, said) = end(command);
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("`n` is stopped"), "{said}");
    host.is_clean();
    assert!(host.root.join("volumes/default/n/data/PG_VERSION").exists());
}

/// A stopped node whose server asks an archive for its log, and waits three seconds for an answer.
fn slow_start(host: &Host) {
    host.pgbox(&["run", "n", "postgres:15", "-c", "restore_command=sleep 3; false"]);
    host.pgbox(&["stop", "n"]);
    let data = host.root.join("volumes/default/n/data");
    fs::write(data.join("recovery.signal"), "").unwrap();
    crate::harness::run("chmod", &["a+rw", data.join("recovery.signal").to_str().unwrap()]);
}

#[test]
fn a_server_that_recovers_for_longer_than_we_wait_is_left_to_it() {
    let Some(host) = Host::new() else { return };
    slow_start(&host);
    let said = host.fails(1, &["start", "n", "--timeout", "1s"]);
    assert!(said.contains("no answer after 1s") && said.contains("pgbox wait n"), "{said}");
    host.pgbox(&["wait", "n", "--timeout", "30s"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

#[test]
fn a_run_that_takes_too_long_says_where_it_was_and_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let scripts = slow_scripts(&host);
    let said = host.fails(1, &["run", "n", "postgres:15", "-v", &scripts, "--timeout", "10s"]);
    assert!(said.contains("no answer after 10s: init scripts") && said.contains("1.sql"), "{said}");
    host.is_clean();
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
}

#[test]
fn stop_and_rm_end_a_node_in_its_init_scripts_at_once() {
    let Some(host) = Host::new() else { return };
    let scripts = slow_scripts(&host);
    for ending in [&["stop", "n"][..], &["rm", "--force", "n"]] {
        let command = begin(&host, &["run", "n", "postgres:15", "-v", &scripts]);
        until("the scripts run", 20, || state(&host) == "init-scripts");
        let begun = Instant::now();
        host.pgbox(ending);
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        let (code, _, said) = end(command);
        // Of `rm` it may see the stop first.
        let told = said.contains("was stopped") || said.contains("was removed");
        assert!(code == Some(1) && told, "{code:?} {said}");
        host.is_clean();
        assert_eq!(host.pgbox(&["ps", "-q"]), "");
        assert!(!host.root.join("volumes/default/n/data/PG_VERSION").exists(), "half a cluster looks whole");
    }
}

#[test]
fn the_foreground_shows_the_log_and_a_signal_is_a_fast_shutdown() {
    let Some(host) = Host::new() else { return };
    for (signal, more) in [(Signal::SIGINT, &[][..]), (Signal::SIGTERM, &["--rm"])] {
        let (command, mut output) = attended(&host, more);
        send(&command, signal);
        let mut log = String::new();
        output.read_to_string(&mut log).unwrap();
        let (code, _, said) = end(command);
        assert_eq!((code, said.contains("volume rm n")), (Some(0), more == ["--rm"]), "{said}");
        assert_eq!(said.lines().count(), more.len(), "{said}");
        for words in ["ready to accept connections", "fast shutdown request", "system is shut down"] {
            assert!(log.contains(words), "{words:?} is not in: {log}");
        }
        host.is_clean();
        let left = if more.is_empty() { "n\n" } else { "" };
        assert_eq!(host.pgbox(&["ps", "-q"]), left);
        host.try_pgbox(&["rm", "-v", "n"]);
    }
}

/// Stops a command that waits for its node, as Ctrl-Z does; not one that holds the lab's lock, which all others would wait for.
fn suspend(host: &Host, command: &Child) {
    let lock = host.root.join("locks/lab-default");
    until("it waits without the lock", 20, || File::open(&lock).unwrap().try_lock().is_ok());
    send(command, Signal::SIGSTOP);
}

/// A command that was stopped while it waited (Ctrl-Z) finds another node under the name when it goes on.
#[test]
fn who_gives_up_late_leaves_a_node_alone_that_was_made_anew() {
    let Some(host) = Host::new() else { return };
    let scripts = slow_scripts(&host);
    let late = begin(&host, &["run", "n", "postgres:15", "-v", &scripts]);
    until("the scripts run", 20, || state(&host) == "init-scripts");
    suspend(&host, &late);
    host.pgbox(&["rm", "--force", "-v", "n"]);
    host.pgbox(&["run", "n", "postgres:15"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i");
    send(&late, Signal::SIGCONT);
    let (code, _, said) = end(late);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`n` was made or started anew by another command, and is left alone"), "{said}");
    assert_eq!(host.sql("n", &[], "SELECT i FROM t"), "7");

    // The same for one that was there before.
    host.pgbox(&["rm", "--force", "-v", "n"]);
    slow_start(&host);
    let late = begin(&host, &["start", "n"]);
    until("it recovers", 20, || state(&host) == "starting");
    suspend(&host, &late);
    host.pgbox(&["stop", "n"]);
    host.pgbox(&["start", "n"]);
    let pid = host.init_pid("n");
    send(&late, Signal::SIGCONT);
    let (code, _, said) = end(late);
    assert!(code == Some(1) && said.contains("is left alone"), "{code:?} {said}");
    assert_eq!((host.init_pid("n"), host.sql("n", &[], "SELECT 1").as_str()), (pid, "1"));
}

#[test]
fn the_foreground_ends_with_the_node_whoever_ends_it() {
    let Some(host) = Host::new() else { return };
    for (ending, left) in [(&["stop", "n"][..], "n\n"), (&["rm", "--force", "n"], "")] {
        let (command, _output) = attended(&host, &[]);
        host.pgbox(ending);
        let (code, _, said) = end(command);
        assert_eq!((code, said.as_str()), (Some(0), ""), "{ending:?}");
        assert_eq!(host.pgbox(&["ps", "-q"]), left);
        host.try_pgbox(&["rm", "-v", "n"]);
    }
    let (command, _output) = attended(&host, &[]);
    kill(Pid::from_raw(host.init_pid("n")), Signal::SIGKILL).unwrap();
    assert_eq!(end(command).0, Some(137));
    host.is_clean();
    assert_eq!(state(&host), "killed");
}

#[test]
fn rm_without_somebody_to_do_it_is_refused() {
    let Some(host) = Host::new() else { return };
    assert!(host.fails(2, &["run", "n", "postgres:15", "--rm"]).contains("--foreground"));
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
}

/// A command that ends between the last node's name and its directory leaves no node whose removal would take the rest.
#[test]
fn what_a_killed_down_has_left_of_a_lab_goes_with_the_next_one() {
    let Some(host) = Host::new() else { return };
    for lab in ["a", "b"] {
        let down = ["--lab", lab, "down", "-v"];
        host.pgbox(&["--lab", lab, "run", "n", "tiny", "-d", "--", "sleep", "100"]);
        let dir = host.root.join("labs").join(lab);
        let kept = host.scratch("kept").join(lab);
        run("cp", &["-a", dir.to_str().unwrap(), kept.to_str().unwrap()]);
        host.pgbox(&down);
        assert!(!dir.exists());
        fs::rename(&kept, &dir).unwrap();
        fs::rename(dir.join("nodes/n"), dir.join("nodes/.n.new")).unwrap();
        if lab == "b" {
            fs::create_dir_all(host.root.join("volumes/b/n/data")).unwrap();
        }
        host.pgbox(&down);
        assert!(!dir.exists(), "{lab}");
    }
}

#[test]
fn what_could_not_be_undone_is_said_with_the_node_and_the_way_out() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "tiny", "-d", "--", "sleep", "100"]);
    let hosts = host.root.join("labs/default/hosts");
    let aside = host.scratch("aside").join("hosts");
    host.pgbox(&["stop", "n"]);
    fs::rename(&hosts, &aside).unwrap();
    fs::create_dir(&hosts).unwrap();
    let said = host.fails(1, &["rm", "n"]);
    assert!(
        said.contains("1 step of `n` could not be undone (") && said.contains("`pgbox rm --force n` tries"),
        "{said}"
    );
    fs::remove_dir(&hosts).unwrap();
    fs::rename(&aside, &hosts).unwrap();
    host.pgbox(&["rm", "--force", "n"]);
    host.is_forgotten();
}
