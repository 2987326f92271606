//! Other commands in a node: `run --rm … -- CMD` and `exec`.

use crate::harness::{Host, text};

#[test]
fn a_command_is_given_a_password_and_a_server_never_sees_one() {
    let Some(host) = Host::new() else { return };
    let passwords = ["-e", "PGPASSWORD=for-psql", "-e", "POSTGRES_PASSWORD=for-initdb"];
    let script = "echo $PGPASSWORD $POSTGRES_PASSWORD";
    let command = [&["run", "--rm", "t", "tiny"], &passwords[..], &["--", "sh", "-c", script]].concat();
    assert_eq!(host.pgbox(&command), "for-psql for-initdb\n");
    host.pgbox(&[&["run", "n", "postgres:15"], &passwords[..]].concat());
    assert_eq!(host.pgbox(&["exec", "n", "--", "sh", "-c", script]), "\n");
    let state = std::fs::read_to_string(host.root.join("labs/default/nodes/n/state.json")).unwrap();
    assert!(!state.contains("for-initdb") && !state.contains("for-psql"));
}

#[test]
fn a_command_runs_alone_and_its_exit_code_comes_back() {
    let Some(host) = Host::new() else { return };
    assert_eq!(host.pgbox(&["run", "--rm", "t", "tiny", "--", "echo", "hello"]), "hello\n");
    host.fails(3, &["run", "--rm", "t", "tiny", "--", "sh", "-c", "exit 3"]);
    host.fails(143, &["run", "--rm", "t", "tiny", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
    host.is_clean();
}

/// The network is made while pid 1 is at its mounts, and here for half a second after them.
#[test]
fn nothing_of_the_image_runs_before_there_is_a_network() {
    let Some(host) = Host::new() else { return };
    let slow = "delay_enter=200000";
    let output =
        host.tampered("setns", slow, &["run", "--rm", "t", "tiny", "--", "cat", "/proc/net/fib_trie"]);
    let routes = text(&output.stdout);
    assert!(routes.contains("10.213."), "{routes}{}", text(&output.stderr));
}

#[test]
fn a_name_is_free_as_soon_as_its_node_has_gone() {
    let Some(host) = Host::new() else { return };
    // Another node keeps the bridge, as in a lab: the interface of the one that went lingers for some milliseconds.
    host.pgbox(&["run", "other", "postgres:15"]);
    for _ in 0..20 {
        host.pgbox(&["run", "--rm", "t", "tiny", "--", "true"]);
    }
}

#[test]
fn a_command_that_is_not_there_is_127_and_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let said = host.fails(127, &["run", "--rm", "t", "tiny", "--", "no-such-program"]);
    assert!(said.contains("no-such-program"), "{said}");
    host.fails(126, &["run", "--rm", "t", "tiny", "--", "/etc/passwd"]);
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
}

#[test]
fn exec_has_the_nodes_environment_and_gives_exit_codes() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-e", "MINE=a b"]);
    assert_eq!(host.pgbox(&["exec", "n", "--", "sh", "-c", "echo $MINE $PG_MAJOR"]), "a b 15\n");
    host.fails(7, &["exec", "n", "--", "sh", "-c", "exit 7"]);
    let script = "echo $HERE ${NOWHERE-unset} $MINE";
    let args = ["exec", "-e", "HERE", "-e", "NOWHERE", "-e", "MINE=c", "n", "--", "sh", "-c", script];
    let output = host.command(&args).env("HERE", "x").env_remove("NOWHERE").output().unwrap();
    assert_eq!(text(&output.stdout), "x unset c\n");
    host.fails(137, &["exec", "n", "--", "sh", "-c", "kill -9 $$"]);
    host.fails(126, &["exec", "-w", "/nowhere", "n", "--", "true"]);
    assert!(host.fails(125, &["exec", "-u", "nobody-here", "n", "--", "true"]).contains("nobody-here"));
    assert!(host.fails(125, &["exec", "-e", "1=2", "n", "--", "true"]).contains("environment variable"));
    host.fails(127, &["exec", "n", "--", "no-such-program"]);
    assert_eq!(host.pgbox(&["exec", "-u", "postgres", "n", "--", "id", "-un"]), "postgres\n");
    let output = host
        .command(&["exec", "-i", "n", "--", "cat"])
        .stdin(std::fs::File::open("/etc/hostname").unwrap())
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), std::fs::read_to_string("/etc/hostname").unwrap());
}

#[test]
fn a_processs_power_is_limited() {
    let Some(host) = Host::new() else { return };
    let status = host.pgbox(&["run", "--rm", "t", "tiny", "--", "cat", "/proc/self/status"]);
    let field =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    let bounding = u64::from_str_radix(&field("CapBnd:"), 16).unwrap();
    for (name, bit) in
        [("sys_admin", 21), ("net_admin", 12), ("sys_ptrace", 19), ("sys_module", 16), ("mknod", 27)]
    {
        assert_eq!(bounding >> bit & 1, 0, "{name}");
    }
    host.fails(1, &["run", "--rm", "t", "tiny", "--", "mount", "-t", "tmpfs", "none", "/tmp"]);
}

#[test]
fn what_fails_before_the_command_is_125() {
    let Some(host) = Host::new() else { return };
    let command = ["--", "true"];
    for (args, word) in [
        (&["run", "--rm", "t", "no-such-image"][..], "no image no-such-image"),
        (&["run", "--rm", "t", "tiny", "-v", "/etc/hostname:/etc/passwd/x"], "Not a directory"),
        (&["run", "--rm", "t", "tiny", "--subnet", "127.0.0.0/8"], "in use"),
    ] {
        let said = host.fails(125, &[args, &command].concat());
        assert!(said.contains(word), "{said}");
        host.is_clean();
    }
    host.fails(2, &["run", "--rm", "t", "tiny", "--memory", "much", "--", "true"]);
    // Of a server the same is a plain failure.
    host.fails(1, &["run", "t", "no-such-image"]);
}

#[test]
fn a_command_that_was_kept_can_be_started_again() {
    let Some(host) = Host::new() else { return };
    let script = "date >>/count; wc -l </count";
    assert_eq!(host.pgbox(&["run", "t", "tiny", "--", "sh", "-c", script]).trim(), "1");
    let state = || host.json(&["ps", "--json"])[0]["state"].clone();
    assert_eq!(state(), "completed");
    host.is_clean();
    assert_eq!(host.pgbox(&["start", "t"]), "t is started\n");
    host.pgbox(&["wait", "t", "--for", "stopped"]);
    assert_eq!(host.pgbox(&["logs", "t"]).trim(), "2");
    assert!(host.fails(1, &["uri", "t"]).contains("runs no Postgres"));
    assert!(host.fails(1, &["psql", "t"]).contains("runs no Postgres"));
    host.pgbox(&["rm", "t"]);
    host.fails(4, &["run", "t", "tiny", "--", "sh", "-c", "exit 4"]);
    assert_eq!(state(), "crashed");
}

#[test]
fn a_postgres_that_only_says_something_initialises_nothing() {
    let Some(host) = Host::new() else { return };
    for words in [&["postgres", "--version"][..], &["postgres", "-V"], &["--version"]] {
        let output =
            host.try_pgbox(&[&["run", "--rm", "t", "postgres:15", "--memory", "32m", "--"], words].concat());
        assert!(text(&output.stdout).starts_with("postgres (PostgreSQL) 15"), "{words:?}: {output:?}");
        assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    }
    assert!(host.pgbox(&["run", "--rm", "t", "postgres:15", "--", "postgres", "--help"]).contains("Usage:"));
    let settings = host.pgbox(&["run", "--rm", "t", "postgres:15", "--", "--describe-config"]);
    assert!(settings.contains("shared_buffers"), "{settings}");
    assert!(!host.root.join("volumes").join("default").exists(), "a volume was made");
    // On data that is there, it can ask and repair.
    host.pgbox(&["run", "n", "postgres:15", "-c", "work_mem=7MB", "--", "-c", "max_connections=33"]);
    let data = ["-v", "n:/var/lib/postgresql/data", "--", "postgres"];
    let on_data = |words: &[&'static str]| [&["run", "--rm", "t", "postgres:15"], &data[..], words].concat();
    assert_eq!(host.pgbox(&on_data(&["-C", "work_mem"])), "7168\n");
    let single = on_data(&["--single", "-D", "/var/lib/postgresql/data", "postgres"]);
    let said = host.fails(125, &single);
    assert!(said.contains("in use: node `n`"), "{said}");
    host.pgbox(&["stop", "n"]);
    let mut command = host.command(&single);
    let mut child =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"SELECT 40 + 2 AS answer\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && text(&output.stdout).contains("42"), "{output:?}");
}

#[test]
fn a_detached_command_returns_at_once_and_has_a_log() {
    let Some(host) = Host::new() else { return };
    let script = "echo out; echo err >&2; sleep 1; exit 3";
    let begun = std::time::Instant::now();
    assert_eq!(host.pgbox(&["run", "-d", "t", "tiny", "--", "sh", "-c", script]), "t is started\n");
    assert!(begun.elapsed().as_millis() < 900, "{:?}: it has waited", begun.elapsed());
    assert_eq!(host.json(&["ps", "--json"])[0]["state"], "running");
    host.pgbox(&["wait", "t", "--for", "stopped"]);
    assert_eq!(host.pgbox(&["logs", "t"]), "out\nerr\n");
    assert_eq!(host.json(&["ps", "--json"])[0]["state"], "crashed");
    host.pgbox(&["rm", "t"]);
    // Of a server it is what happens anyway; nobody stays to remove anything.
    assert!(host.pgbox(&["run", "-d", "n", "postgres:15"]).contains("n is ready"));
    assert!(
        host.fails(125, &["run", "-d", "--rm", "t", "tiny", "--", "true"]).contains("nobody would be there")
    );
}

#[test]
fn start_in_the_foreground_shows_what_comes_and_gives_the_exit_code() {
    let Some(host) = Host::new() else { return };
    host.fails(4, &["run", "t", "tiny", "--", "sh", "-c", "echo once; exit 4"]);
    let output = host.try_pgbox(&["start", "--foreground", "t"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(4), "once\n"));
    host.is_clean();
    host.pgbox(&["run", "n", "postgres:15"]);
    host.sql("n", &[], "DO 'BEGIN RAISE LOG $$of the first life$$; END'");
    assert!(host.fails(1, &["start", "--foreground", "n"]).contains("runs already"));
    host.pgbox(&["stop", "n"]);
    let mut node = host.command(&["start", "--foreground", "n"]);
    let node = node.stdout(std::process::Stdio::piped()).spawn().unwrap();
    crate::harness::until("it runs", 20, || host.try_pgbox(&["wait", "n"]).status.success());
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
    let child = nix::unistd::Pid::from_raw(node.id() as i32);
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = node.wait_with_output().unwrap();
    let log = text(&output.stdout);
    assert!(output.status.success() && log.contains("database system is shut down"), "{log}");
    assert!(!log.contains("of the first life"), "{log}");
    host.is_clean();
    host.pgbox(&["rm", "n"]);
}
