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
    assert!(host.fails(1, &["exec", "-u", "nobody-here", "n", "--", "true"]).contains("nobody-here"));
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
