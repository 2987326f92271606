//! What a user reads: help, usage errors, completions, and the plan as `--dry-run` and `--explain` print it.
//! All of it as snapshots, so that a change of the plan or of the interface shows in review;
//! `SNAPSHOTS=overwrite cargo test --test cli` takes the new text over. None of it needs root.

use std::{
    fmt::Write,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use pgbox::{
    engine,
    plan::{self, Facts, ImageFacts, PostgresFacts},
    postgres::launch::User,
    show::plan::{Depth, render},
    spec::{NodeLimits, NodeSpec, Publish, Restart, Volume},
    state::{Plan, Root},
    sys::cgroup::Hierarchy,
};
use snapbox::{assert_data_eq, file};

fn pgbox(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgbox"));
    // Without a terminal the width is COLUMNS; the user's own lab must not show in the help.
    command.args(args).env("COLUMNS", "100").env_remove("PGBOX_ROOT").env_remove("PGBOX_LAB");
    command.stdin(Stdio::null()).output().expect("start pgbox")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

fn help(command: &[&str]) -> String {
    let output = pgbox(&[command, &["--help"]].concat());
    assert!(output.status.success() && output.stderr.is_empty(), "{command:?}: {output:?}");
    text(output.stdout)
}

/// The subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let list =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// Every command with its help, subcommands after their parent.
fn reference() -> Vec<(Vec<String>, String)> {
    let mut all = Vec::new();
    let mut left = vec![Vec::<String>::new()];
    while let Some(command) = left.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let help = help(&words);
        left.extend(subcommands(&help).into_iter().rev().map(|name| [&command[..], &[name]].concat()));
        all.push((command, help));
    }
    all
}

#[test]
fn help_is_as_reviewed() {
    let mut all = String::new();
    for (command, help) in reference() {
        writeln!(all, "$ pgbox {}\n{help}", [&command[..], &["--help".to_owned()]].concat().join(" "))
            .unwrap();
    }
    assert!(all.matches("\n$ pgbox ").count() >= 20, "{all}");
    assert_data_eq!(all, file!["snapshots/help.txt"].raw());
}

#[test]
fn the_first_help_fits_one_screen_and_has_two_examples() {
    let output = pgbox(&["-h"]);
    let help = text(output.stdout);
    assert!(help.lines().count() <= 30, "{} lines", help.lines().count());
    let examples = help.lines().skip_while(|line| *line != "Examples:").skip(1);
    assert_eq!(examples.filter(|line| line.starts_with("  pgbox ")).count(), 2, "{help}");
    assert_eq!(text(pgbox(&[]).stderr), help, "without arguments it is the same");
}

#[test]
fn usage_errors_are_as_reviewed() {
    let calls: [&[&str]; 24] = [
        &["nosuch"],
        &["run"],
        &["run", "Primary"],
        &["run", "primary", "--memori", "1g"],
        &["run", "primary", "--memory", "12x"],
        &["run", "primary", "--swap", "1g"],
        &["run", "primary", "--cpus", "many"],
        &["run", "primary", "--publish", "5433:"],
        &["run", "primary", "--volume", "data"],
        &["run", "primary", "--volume", "data:relative/path"],
        &["run", "primary", "--restart", "always"],
        &["run", "primary", "--subnet", "10.0.0.0"],
        &["stop"],
        &["stop", "primary", "--mode", "slow"],
        &["--lab", "My Lab", "ps"],
        &["set", "primary"],
        &["set", "primary", "port=5433"],
        &["set", "work_mem=8MB"],
        &["limit", "primary"],
        &["sync", "any 2 (r1)"],
        &["sync", "some of them"],
        &["guard", "--detect", "0"],
        &["replica", "r1", "--of", "primary", "--copy", "reflink", "--rate", "20m"],
        &["psql", "No Node"],
    ];
    let mut all = String::new();
    for call in calls {
        let output = pgbox(call);
        assert_eq!((output.status.code(), text(output.stdout).as_str()), (Some(2), ""), "{call:?}");
        writeln!(all, "$ pgbox {}\n{}", call.join(" "), text(output.stderr)).unwrap();
    }
    assert_data_eq!(all, file!["snapshots/usage.txt"].raw());
}

#[test]
fn what_the_environment_says_is_not_asked_for() {
    let said = |lab: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgbox"));
        command.args(args).env("PGBOX_ROOT", "/nowhere").env("PGBOX_LAB", lab).stdin(Stdio::null());
        text(command.output().expect("start pgbox").stderr)
    };
    assert!(said("a", &["run"]).contains("\nUsage: pgbox run <NODE> "), "{}", said("a", &["run"]));
    assert!(said("No Lab", &["ps"]).contains("invalid value 'No Lab' for '--lab <NAME>'"));
}

#[test]
fn completions_know_every_command() {
    let commands = subcommands(&help(&[]));
    for shell in ["bash", "zsh", "fish", "elvish"] {
        let output = pgbox(&["completions", shell]);
        let script = text(output.stdout);
        assert!(output.status.success() && script.contains("pgbox"), "{shell}");
        for command in &commands {
            assert!(script.contains(command.as_str()), "{shell}: {command}");
        }
    }
    // bash itself has to take it.
    let script = tempfile::NamedTempFile::new().unwrap();
    fs::write(script.path(), pgbox(&["completions", "bash"]).stdout).unwrap();
    let output = Command::new("bash")
        .arg("-eu")
        .arg("-c")
        .arg(". \"$1\"; complete -p pgbox")
        .arg("-")
        .arg(script.path())
        .output();
    let output = output.expect("bash");
    assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
}

/// The commands and options in code of README and docs are those that exist.
#[test]
fn what_is_documented_exists() {
    let reference = reference();
    let mut pages = vec![PathBuf::from("README.md")];
    let mut left = vec![PathBuf::from("docs")];
    while let Some(path) = left.pop() {
        match fs::read_dir(root().join(&path)) {
            Ok(entries) => left.extend(entries.map(|entry| path.join(entry.unwrap().file_name()))),
            Err(_) if path.extension().is_some_and(|ending| ending == "md") => pages.push(path),
            Err(_) => {}
        }
    }
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for page in pages {
        let text =
            fs::read_to_string(root().join(&page)).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        for call in calls_in(&text) {
            checked += 1;
            wrong.extend(
                unknown(&reference, &call).map(|word| format!("{}: {word} in `{call}`", page.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "no such command or option:\n  {}", wrong.join("\n  "));
    assert!(checked >= 10, "only {checked} calls of pgbox were found in README.md");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Calls of pgbox in fenced blocks and between backticks, each without what a shell does after it.
fn calls_in(page: &str) -> Vec<String> {
    let mut calls = Vec::new();
    let mut fenced = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let pieces: Vec<&str> =
            if fenced { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        for piece in pieces {
            let piece = piece
                .trim_start()
                .trim_start_matches("$ ")
                .trim_start_matches("# ")
                .trim_start_matches("sudo ");
            // A call inside another one: psql "$(pgbox uri primary)"
            let inner = piece.split("$(pgbox ").skip(1).map(|rest| rest.split(')').next().unwrap());
            let outer = piece.strip_prefix("pgbox ");
            calls.extend(
                outer
                    .into_iter()
                    .chain(inner)
                    .map(|call| call.split(['|', '>', ';', '#']).next().unwrap().to_owned()),
            );
        }
    }
    calls
}

/// The first word of a call that its help does not know.
fn unknown(reference: &[(Vec<String>, String)], call: &str) -> Option<String> {
    let own = call.split(" -- ").next().unwrap();
    let mut command: Vec<String> = Vec::new();
    let mut options = Vec::new();
    for word in own.split_whitespace() {
        let deeper = [&command[..], &[word.to_owned()]].concat();
        if word.starts_with("--") {
            options.push(word.split('=').next().unwrap().to_owned());
        } else if reference.iter().any(|(known, _)| *known == deeper) {
            command = deeper;
        } else if command.is_empty()
            && word.starts_with(|c: char| c.is_ascii_lowercase())
            && options.is_empty()
        {
            return Some(word.to_owned());
        }
    }
    let help = &reference.iter().find(|(known, _)| *known == command)?.1;
    // What follows psql is psql's.
    let foreign = command.last().is_some_and(|name| name == "psql" || name == "exec");
    options.into_iter().find(|option| !foreign && !help.split([' ', ',', '\n']).any(|word| word == option))
}

#[test]
fn documented_calls_are_read_right() {
    let page = "Run `pgbox run x` or `psql \"$(pgbox uri x)\"`, not pgbox itself.\n```console\n$ pgbox ps --jason | jq .\nout\n```\n";
    assert_eq!(calls_in(page), ["run x", "uri x", "ps --jason "]);
    let reference = reference();
    assert_eq!(unknown(&reference, "ps --jason "), Some("--jason".to_owned()));
    assert_eq!(unknown(&reference, "fly me"), Some("fly".to_owned()));
    assert_eq!(unknown(&reference, "run a --memory 1g -- --no-option"), None);
}

// ---- the plan, from facts made by hand

const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
const HYBRID: &str = "\
31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 23 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 23 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
35 23 0:31 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
";

fn facts(mountinfo: &str, controllers: &str) -> Facts {
    let postgres = User {
        uid: 999,
        gid: 999,
        groups: vec![],
        name: "postgres".into(),
        home: "/var/lib/postgresql".into(),
    };
    Facts {
        root: Root::new(Path::new("/var/lib/pgbox")),
        cgroups: Hierarchy::parse(mountinfo, |_| Ok(controllers.to_owned())).unwrap(),
        nat: true,
        image: ImageFacts {
            digest: format!("sha256:{}", "7".repeat(64)),
            lowers: vec!["/var/lib/pgbox/layers/bbbb".into(), "/var/lib/pgbox/layers/aaaa".into()],
            env: vec![
                ("PGDATA".into(), "/var/lib/postgresql/data".into()),
                ("LANG".into(), "en_US.utf8".into()),
            ],
            postgres: Some(PostgresFacts {
                bindir: "/usr/lib/postgresql/15/bin".into(),
                major: 15,
                user: postgres,
                libc: Some("glibc 2.36".into()),
            }),
            ..ImageFacts::default()
        },
        gateway: "10.213.7.1/24".parse().unwrap(),
        address: "10.213.7.2/24".parse().unwrap(),
        resolv_conf: "nameserver 192.0.2.53\n".into(),
        file_sources: vec![],
        missing_sources: vec![],
        whole_memory: 8 << 30,
        upstream: None,
    }
}

fn spec(args: &[&str]) -> NodeSpec {
    NodeSpec {
        lab: "default".parse().unwrap(),
        node: "primary".parse().unwrap(),
        image: "postgres:15".into(),
        env: vec![],
        volumes: vec![],
        publish: vec![],
        settings: vec![],
        limits: NodeLimits { shm_size: 256 << 20, ..NodeLimits::default() },
        restart: Restart::No,
        stop_timeout: 60,
        tune: false,
        args: args.iter().map(|&word| word.to_owned()).collect(),
        subnet: None,
        offline: false,
        follow: None,
    }
}

/// `run primary postgres:15` with an option of each kind, on pure cgroup v2.
fn full() -> Plan {
    let mut spec = spec(&[]);
    spec.volumes = vec!["/srv/dumps:/dumps:ro".parse::<Volume>().unwrap()];
    spec.publish = vec![Publish { host_ip: Some(Ipv4Addr::LOCALHOST), host_port: 5433, port: 5432 }];
    spec.settings = vec![("work_mem".into(), "16MB".into())];
    spec.limits = NodeLimits {
        memory: Some(1 << 30),
        memory_high: Some(900 << 20),
        swap: None,
        milli_cpus: Some(1500),
        pids: Some(200),
        ..spec.limits
    };
    plan::plan(&spec, &facts(UNIFIED, "cpuset cpu io memory pids")).unwrap()
}

#[test]
fn the_plan_of_a_postgres_is_as_reviewed() {
    assert_data_eq!(render(&full(), Depth::Commands), file!["snapshots/dry-run.txt"].raw());
    assert_data_eq!(render(&full(), Depth::Reasons), file!["snapshots/explain.txt"].raw());
}

/// The README shows some steps, with their numbers, of a first `pgbox run primary -p 5433:5432`.
#[test]
fn the_readmes_steps_are_those_of_the_plan() {
    let mut spec = spec(&[]);
    spec.publish = vec!["5433:5432".parse().unwrap()];
    let plan = plan::plan(&spec, &facts(UNIFIED, "cpuset cpu io memory pids")).unwrap();
    let all = render(&plan, Depth::Commands);
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let is_step = |line: &&str| {
        line.trim_start().split_once(". ").is_some_and(|(number, _)| number.parse::<u8>().is_ok())
    };
    let shown: Vec<_> = readme.lines().filter(is_step).collect();
    assert!(
        shown.len() == 4 && shown.iter().all(|line| all.contains(&format!("{line}\n"))),
        "{shown:?}\n{all}"
    );
    let total = engine::total(&plan);
    let failed = readme.lines().find_map(|line| line.strip_prefix("error: step ")).unwrap();
    let (number, title) = failed.split_once(&format!("/{total} failed: ")).expect("the number of steps");
    assert!(all.contains(&format!(" {number}. {title}\n")), "{failed}\n{all}");
    assert!(readme.contains(&format!("Four of the {total}:")), "{total}");
}

#[test]
fn what_pid_1_is_told_is_as_reviewed() {
    let init = serde_json::to_string_pretty(&full().init).unwrap();
    assert_data_eq!(init, file!["snapshots/init.txt"].raw());
}

#[test]
fn the_plan_of_a_command_on_a_hybrid_host_without_nat_is_as_reviewed() {
    let mut spec = spec(&["true"]);
    spec.limits.memory = Some(64 << 20);
    let facts = Facts { nat: false, ..facts(HYBRID, "") };
    let plan = plan::plan(&spec, &facts).unwrap();
    assert!(plan.after.is_empty());
    assert_data_eq!(render(&plan, Depth::Commands), file!["snapshots/dry-run-command.txt"].raw());
}

/// All that can be done beside pid 1's own steps is, or each run of a node waits for it.
#[test]
fn only_what_pid_1_needs_comes_before_it() {
    let command = plan::plan(&spec(&["true"]), &facts(HYBRID, "")).unwrap();
    for plan in [full(), command] {
        let needed = plan.host.iter().filter(|step| step.precedes_birth()).count();
        assert_eq!(engine::birth(&plan), needed, "{:?}", plan.host);
        assert!(needed < plan.host.len());
    }
}

#[test]
fn the_same_question_has_the_same_plan() {
    assert_eq!(full(), full());
}
