//! The steps by the commands of a shell: the script that `--emit-shell` prints makes the node that `run` makes, by the
//! witness of the kernel and of the server, and that of `--undo` takes it back.

use std::{fs, process::Command};

use pgbox::spec::ObjectNames;

use crate::harness::{Host, run, text};

fn nft(args: &[&str]) -> std::process::Output {
    Command::new("nft").args(args).output().expect("start nft")
}

/// Runs a script in a shell that is told the password.
#[track_caller]
fn bash(host: &Host, script: &str) -> std::process::Output {
    let file = host.scratch("script").join("script.sh");
    fs::write(&file, script).unwrap();
    Command::new("bash").arg(file).env("POSTGRES_PASSWORD", "it's secret").output().expect("start bash")
}

#[track_caller]
fn succeeds(host: &Host, script: &str) {
    let output = bash(host, script);
    let said = text(&output.stdout) + &text(&output.stderr);
    let log = fs::read_to_string(host.root.join("labs/default/nodes/n/log")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{log}\n{script}");
}

/// What the kernel says of the node `n`, whoever made it.
fn seen(host: &Host) -> Vec<(&'static str, String)> {
    let names = ObjectNames::new(&host.root, &"default".parse().unwrap(), &"n".parse().unwrap());
    let group = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let groups: Vec<_> = group
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .map(|line| std::path::Path::new(line.split(' ').nth(4).unwrap()).join(&names.cgroup))
        .filter(|dir| dir.exists())
        .collect();
    let limits = ["memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us", "pids.max"];
    let limits = groups.iter().flat_map(|dir| limits.map(|file| dir.join(file))).filter(|file| file.exists());
    let limits: Vec<_> =
        limits.map(|file| format!("{file:?} {}", fs::read_to_string(&file).unwrap())).collect();
    let is_postmaster = |pid: &&str| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"/usr/lib/postgresql/"))
    };
    let pids = fs::read_to_string(groups[0].join("cgroup.procs")).unwrap();
    let pid = pids.lines().find(is_postmaster).expect("a postmaster in the cgroup");
    let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let lines = |text: String, keep: &dyn Fn(&str) -> Option<String>| {
        let mut kept: Vec<_> = text.lines().filter_map(keep).collect();
        kept.sort();
        kept.join("\n")
    };
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let place: Vec<_> = place.split(' ').collect();
        Some(format!("{} {} {}", place[4], place[5].split(',').next()?, kind.split(' ').next()?))
    };
    let power = |line: &str| {
        let keep = ["Uid:", "Gid:", "Groups:", "NoNewPrivs:", "CapBnd:", "CapEff:"];
        keep.iter().any(|name| line.starts_with(name)).then(|| line.to_owned())
    };
    // But for the number of the other end of a veth pair.
    let words = |text: String| {
        text.split_whitespace()
            .map(|word| word.split("@if").next().unwrap_or("").to_owned() + " ")
            .collect::<String>()
    };
    let netns = &names.netns;
    let inside = |args: &[&str]| run("nsenter", &[&["-t", pid, "-m", "-u", "-n"], args].concat());
    let tables = [&names.nat_table, &names.publish_table]
        .map(|table| text(&nft(&["list", "table", "ip", table]).stdout));
    vec![
        ("tables", tables.concat()),
        ("limits", limits.concat()),
        ("cgroups", lines(of("cgroup"), &|line| Some(line.to_owned()))),
        ("mounts", lines(of("mountinfo"), &mount)),
        ("power", lines(of("status"), &power)),
        ("addresses", words(run("ip", &["-n", netns, "-br", "address"]))),
        ("routes", run("ip", &["-n", netns, "route"])),
        // The endpoints are no step: they follow from all nodes of the lab.
        ("bridge", run("ip", &["-br", "link", "show", "dev", &names.bridge])),
        (
            "port",
            run("ip", &["-o", "link", "show", "master", &names.bridge])
                .split(": ")
                .nth(1)
                .unwrap()
                .to_owned(),
        ),
        ("name", inside(&["hostname"])),
        ("files", inside(&["cat", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"])),
        ("devices", inside(&["ls", "/dev"])),
    ]
}

#[test]
fn a_script_makes_the_node_that_run_makes() {
    let Some(host) = Host::new() else { return };
    // A name that is more than one word for a shell that is not told otherwise.
    let dumps = host.scratch("my dumps");
    fs::write(dumps.join("file"), "mine\n").unwrap();
    // In Debian /var/run leads to /run, by an absolute link: to the host's, for a path that is not looked up inside.
    let volume = format!("{}:/var/run/dumps:ro", dumps.display());
    let file = format!("{}:/opt/x/file", dumps.join("file").display());
    // Debian's kernel for guests has no nf_tables.
    let publish: &[&str] = match nft(&["add table ip probe; delete table ip probe"]).status.success() {
        true => &["-p", "5433:5432"],
        false => &[],
    };
    let args = [
        &["run", "n", "postgres:15", "--memory", "300m", "--cpus", "0.5", "--pids", "100"][..],
        publish,
        &[
            "-e",
            "POSTGRES_USER=me",
            "-e",
            "POSTGRES_DB=shop",
            "-c",
            "work_mem=7MB",
            "-v",
            &volume,
            "-v",
            &file,
        ],
    ]
    .concat();
    let [script, way_back] = [&["--emit-shell"][..], &["--emit-shell", "--undo"]]
        .map(|more| host.pgbox(&[&args[..], more].concat()));
    assert!(!script.contains("secret"));
    host.is_forgotten();

    host.pgbox(&[&args[..], &["-e", "POSTGRES_PASSWORD=it's secret"]].concat());
    let settings = "SELECT name, setting FROM pg_settings WHERE source <> 'default' AND name !~ 'application' ORDER BY 1";
    let at = match publish {
        [] => format!("{}:5432", script.split("psql -X -h ").nth(1).unwrap().split(' ').next().unwrap()),
        _ => "127.0.0.1:5433".to_owned(),
    };
    let ask =
        |sql: &str| run("psql", &["-XAt", "-c", sql, &format!("postgresql://me:it%27s%20secret@{at}/shop")]);
    let by_pgbox = (seen(&host), ask(settings));
    host.pgbox(&["rm", "--force", "-v", "n"]);
    host.is_forgotten();

    succeeds(&host, &script);
    let by_hand = (seen(&host), ask(settings));
    for (made, wanted) in by_hand.0.iter().zip(&by_pgbox.0) {
        assert_eq!(made, wanted);
    }
    assert_eq!(by_hand.1, by_pgbox.1);
    assert!(ask("SHOW work_mem") == "7MB" && ask("SHOW data_checksums") == "on");
    let checked = Command::new("psql")
        .args(["-XAtc", "SELECT 1", &format!("postgresql://me:wrong@{at}/shop")])
        .output()
        .unwrap();
    assert!(text(&checked.stderr).contains("password authentication failed"), "{checked:?}");

    bash(&host, &way_back);
    host.is_forgotten();
    let version = fs::read_to_string(host.root.join("volumes/default/n/data/PG_VERSION"));
    assert_eq!(version.unwrap(), "15\n", "the data stay");

    // What pgbox has made is not the script's to take back.
    host.pgbox(&["run", "n", "tiny", "-d", "--", "sleep", "600"]);
    let refused = bash(&host, &way_back);
    assert!(!refused.status.success() && text(&refused.stderr).contains("pgbox rm"), "{refused:?}");
    assert!(!bash(&host, &script).status.success());
    assert!(host.pgbox(&["ps"]).contains("running"));
}

#[test]
fn a_script_for_a_command_ends_as_the_command_does() {
    let Some(host) = Host::new() else { return };
    // Whose name begins as the other one's.
    host.pgbox(&["run", "n-2", "tiny", "-d", "--", "sleep", "600"]);
    let shared =
        || run("ip", &["-br", "link"]).contains("pgb-") && run("nft", &["list", "tables"]).contains("pgbox");
    let nat = shared();
    let outside = host.scratch("outside").join("file");
    let hostile = format!("A=b c\nINNER\ntouch {}\n", outside.display());
    let command = "echo \"${A%%INNER*}in $(hostname)\"; cat; exit 7\n#\nINNER\nexit 3";
    let args =
        ["run", "n", "postgres:15", "-e", &hostile, "-e", "PGPASSWORD=secret", "--", "sh", "-c", command];
    let with = |more: &[&str]| host.pgbox(&[&args[..2], more, &args[2..]].concat());
    let (script, way_back) = (with(&["--emit-shell"]), with(&["--emit-shell", "--undo"]));
    assert!(!script.contains("=secret"), "{script}");
    let file = host.scratch("script").join("command.sh");
    fs::write(&file, &script).unwrap();
    let given = fs::File::open("/etc/hostname").unwrap();
    let output = Command::new("bash").arg(file).env("PGPASSWORD", "x").stdin(given).output().unwrap();
    host.pgbox(&["run", "other", "tiny", "-d", "--", "sleep", "600"]);
    let other =
        host.json(&["inspect", "--json", "other"])[0]["network"]["address"].as_str().unwrap().to_owned();
    assert!(!script.contains(other.split('/').next().unwrap()), "{other} is that of `n`");
    host.pgbox(&["rm", "--force", "other"]);
    let said = format!("b c\nin n\n{}", fs::read_to_string("/etc/hostname").unwrap());
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(7), said), "{output:?}");
    assert!(!outside.exists());
    bash(&host, &way_back);
    assert_eq!(shared(), nat, "the other node's");
    host.pgbox(&["rm", "--force", "n-2"]);
    host.is_forgotten();
}

/// It says so before it has made anything.
#[test]
fn a_script_needs_all_of_its_tools() {
    let Some(host) = Host::new() else { return };
    let file = host.scratch("script").join("script.sh");
    fs::write(&file, host.pgbox(&["run", "n", "tiny", "--emit-shell", "--", "true"])).unwrap();
    let only = host.scratch("only");
    std::os::unix::fs::symlink(run("which", &["ip"]), only.join("ip")).unwrap();
    let output = Command::new("/bin/bash").arg(file).env("PATH", only).output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("nft is needed"), "{output:?}");
    host.is_forgotten();
}

#[test]
fn undo_is_for_the_script_only() {
    let Some(host) = Host::new() else { return };
    assert!(host.fails(2, &["run", "n", "--undo"]).contains("--emit-shell"));
    assert!(host.fails(2, &["run", "n", "--emit-shell", "--dry-run"]).contains("--dry-run"));
}
