//! One clear error each, with the way out; nothing left behind, nothing lost.

use std::{fs, net::TcpListener};

use crate::harness::{Host, run};

/// Fails, says these words, and leaves nothing on the host.
#[track_caller]
fn refused(host: &Host, args: &[&str], words: &[&str]) {
    refused_as(1, host, args, words);
}

#[track_caller]
fn refused_as(code: i32, host: &Host, args: &[&str], words: &[&str]) {
    let said = host.fails(code, args);
    assert!(said.lines().any(|line| line.starts_with("error: ")), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    host.is_forgotten();
}

#[test]
fn images_that_will_not_do() {
    let Some(host) = Host::new() else { return };
    refused(&host, &["run", "n", "no-such-image"], &["no-such-image", "pgbox image build"]);
    refused(&host, &["run", "n", "tiny"], &["tiny", "no Postgres"]);
}

#[test]
fn settings_that_are_pgboxs_own_matter() {
    let Some(host) = Host::new() else { return };
    for (setting, words) in [
        ("port=5433", &["port can't be set", "pgbox run -p"][..]),
        ("listen-addresses=*", &["listen_addresses can't be set"]),
    ] {
        refused_as(2, &host, &["run", "n", "postgres:15", "-c", setting], words);
    }
}

#[test]
fn what_the_server_says_of_a_setting_is_the_cause() {
    let Some(host) = Host::new() else { return };
    let cause = |settings: &[&str]| {
        let said = host.fails(1, &[&["run", "n", "postgres:15"], settings].concat());
        host.is_forgotten();
        let line = said.lines().find(|line| line.starts_with("  cause: ")).map(str::to_owned);
        line.unwrap_or_else(|| panic!("{said}"))
    };
    assert!(cause(&["--", "-c", "nope=1"]).contains("unrecognized configuration parameter \"nope\""));
    let memory = cause(&["-c", "shared_buffers=900GB"]);
    assert!(
        memory
            .ends_with("exit code 1: FATAL:  could not map anonymous shared memory: Cannot allocate memory"),
        "{memory}"
    );
    assert!(cause(&["-c", "ssl=on"]).contains("FATAL:  could not load server certificate"));
}

/// Before there is anything: the image's own server is asked.
#[test]
fn a_setting_that_the_server_does_not_take() {
    let Some(host) = Host::new() else { return };
    let of = |setting: &'static str| ["run", "n", "postgres:15", "-c", "work_mem=8MB", "-c", setting];
    refused(&host, &of("nope=1"), &["`n` would not start", "unrecognized configuration parameter \"nope\""]);
    refused(
        &host,
        &of("wal_level=bogus"),
        &["parameter \"wal_level\": \"bogus\"; Available values: minimal,"],
    );
    refused(&host, &of("max_connections=0"), &["0 is outside the valid range", "(1 .. 262143)"]);
    assert_eq!(host.pgbox(&["volume", "ls", "-q"]), "");
    host.pgbox(&["run", "n", "postgres:15", "-c", "some.thing=1"]);
    let replica = ["replica", "r", "--of", "n", "-c", "nope=1"];
    let said = host.fails(1, &replica);
    assert!(said.contains("`r` would not start with that: unrecognized"), "{said}");
}

#[test]
fn names_and_ports_that_are_taken() {
    let Some(host) = Host::new() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let publish = format!("127.0.0.1:{port}:5432");
    refused(
        &host,
        &["run", "n", "postgres:15", "-p", &publish],
        &[&port.to_string(), "another program listens there"],
    );
    let long = "x".repeat(41);
    assert!(host.fails(2, &["run", &long]).contains("41 characters"));
    host.pgbox(&["run", "n", "postgres:15", "-p", "5499:5432"]);
    assert!(host.fails(1, &["run", "n", "postgres:15"]).contains("is taken"));
    assert!(host.fails(1, &["run", "m", "postgres:15", "-p", "5499:5432"]).contains("node `n`"));
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

#[test]
fn an_address_range_in_use() {
    let Some(host) = Host::new() else { return };
    run("ip", &["link", "add", "up0", "type", "bridge"]);
    run("ip", &["addr", "add", "10.77.0.1/16", "dev", "up0"]);
    refused(
        &host,
        &["run", "n", "postgres:15", "--subnet", "10.77.3.0/24"],
        &["10.77.3.0/24", "up0", "--subnet"],
    );
}

#[test]
fn data_that_is_not_for_this_server() {
    let Some(host) = Host::new() else { return };
    let data = host.scratch("data");
    let mount = format!("{}:/var/lib/postgresql/data", data.display());
    fs::write(data.join("PG_VERSION"), "14\n").unwrap();
    refused(&host, &["run", "n", "postgres:15", "-v", &mount], &["14", "15"]);
    assert!(data.join("PG_VERSION").exists());
    fs::rename(data.join("PG_VERSION"), data.join("my-thesis.tex")).unwrap();
    refused(&host, &["run", "n", "postgres:15", "-v", &mount], &[data.to_str().unwrap(), "no PG_VERSION"]);
    assert!(data.join("my-thesis.tex").exists());
}

#[test]
fn an_initdb_that_fails_and_memory_too_small() {
    let Some(host) = Host::new() else { return };
    refused(
        &host,
        &["run", "n", "postgres:15", "-e", "POSTGRES_INITDB_ARGS=--no-such-option"],
        &["initdb", "no-such-option"],
    );
    refused_as(2, &host, &["run", "m", "postgres:15", "--memory", "8m"], &["memory"]);
}

#[test]
fn nodes_that_are_not_there() {
    let Some(host) = Host::new() else { return };
    for command in
        [&["stop", "x"][..], &["start", "x"], &["rm", "x"], &["logs", "x"], &["psql", "x"], &["uri", "x"]]
    {
        let said = host.fails(1, command);
        assert!(said.contains("no node `x`"), "{command:?}: {said}");
    }
    assert!(host.fails(125, &["exec", "x", "--", "true"]).contains("no node `x`"));
}

#[test]
fn without_root_it_says_so() {
    let Some(host) = Host::new() else { return };
    // As nobody, from a place that nobody can read.
    let copy = host.scratch("bin").join("pgbox");
    fs::copy(crate::harness::PGBOX, &copy).unwrap();
    run("chmod", &["-R", "a+rX", copy.parent().unwrap().parent().unwrap().to_str().unwrap()]);
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["run", "n"])
        .output()
        .unwrap();
    let said = crate::harness::text(&output.stderr);
    assert!(!output.status.success() && said.contains("needs root") && said.contains("sudo"), "{said}");
}

#[test]
fn volumes_and_ports_that_exclude_each_other() {
    let Some(host) = Host::new() else { return };
    let data = "/var/lib/postgresql/data";
    let run =
        |more: &[&str], words: &[&str]| refused(&host, &[&["run", "n", "postgres:15"], more].concat(), words);
    let misuse = |more: &[&str], words: &[&str]| {
        refused_as(2, &host, &[&["run", "n", "postgres:15"], more].concat(), words);
    };
    misuse(&["-v", &format!("a:{data}"), "-v", &format!("b:{data}")], &["a and b", data]);
    misuse(&["-p", "5433:5432", "-p", "127.0.0.1:5433:5433"], &["5433", "can't both"]);
    misuse(&["-p", "5433:5432", "-p", "5433:5432"], &["5433->5432 is published twice"]);
    for port in ["5433:80", "5433"] {
        misuse(&["-p", port], &["nothing would answer on 0.0.0.0:5433->", "write -p 5433:5432"]);
    }
    host.pgbox(&["run", "--dry-run", "n", "postgres:15", "-p", "5433:80", "--", "sleep", "1"]);
    misuse(&["--memory", "max", "--swap", "1g"], &["swap", "memory"]);
    misuse(&["--cpus", "-1"], &["`-1` CPUs", "least is 0.01"]);
    run(&["--cpus", "4096"], &["4096 CPUs", "this machine has"]);
    misuse(&["-e", "A B=x"], &["`A B`", "environment variable"]);
    misuse(&["-e", "A B"], &["`A B`", "environment variable"]);
    misuse(&["-e", "=x"], &["environment variable"]);
    run(&["-v", "n:/elsewhere"], &["mounted twice"]);
    run(&["-v", &format!("/etc/passwd:{data}")], &["/etc/passwd", "no directory"]);
    run(&["-e", "PGDATA=relative"], &["PGDATA", "absolute"]);
    run(&["-p", "198.51.100.7:5433:5432"], &["no address of this host"]);
    run(&["--subnet", "224.0.0.0/24"], &["no range for hosts"]);
    assert!(host.fails(2, &["run", "n", "postgres:15", "-v", "a:/proc/x"]).contains("/proc"));
    // One volume at two places is lawful, and removed once.
    host.pgbox(&[
        "run",
        "--rm",
        "t",
        "tiny",
        "-v",
        "a:/1",
        "-v",
        "a:/2",
        "--",
        "sh",
        "-c",
        "echo x >/1/f; cat /2/f",
    ]);
    host.pgbox(&["run", "t", "tiny", "-v", "a:/1", "-v", "a:/2", "--", "true"]);
    host.pgbox(&["rm", "-v", "t"]);
    assert!(!host.root.join("volumes/default/a").exists());
}

#[test]
fn what_is_only_to_be_read_must_be_there() {
    let Some(host) = Host::new() else { return };
    let nope = host.scratch("files").join("nope");
    let mount = |how: &str| format!("{}:/docker-entrypoint-initdb.d{how}", nope.display());
    for more in [&[][..], &["--dry-run"]] {
        let said = host.fails(1, &[&["run", "n", "postgres:15", "-v", &mount(":ro")], more].concat());
        assert!(said.contains("there is no /") && said.contains("to be mounted read-only"), "{said}");
        host.is_forgotten();
        assert!(!nope.exists());
    }
    host.pgbox(&["run", "n", "postgres:15", "-v", &mount("")]);
    assert!(nope.is_dir());
}

#[test]
fn huge_pages_that_are_not_there_are_missed_before_anything_is_made() {
    let Some(host) = Host::new() else { return };
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let free =
        meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).expect("huge pages").trim();
    let on = ["run", "n", "postgres:15", "-c", "HUGE_PAGES=on", "-c", "shared_buffers=1TB"];
    let said = host.fails(1, &on);
    assert!(said.contains("huge_pages=on needs more than") && said.contains(&format!("{free} of")), "{said}");
    assert!(said.contains("sysctl vm.nr_hugepages="), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    host.is_clean();
    assert_eq!(host.pgbox(&["ps", "-q"]) + &host.pgbox(&["volume", "ls", "-q"]), "");
    if free == "0" {
        host.pgbox(&["run", "n", "postgres:15"]);
        let started = host.sql("n", &[], "SELECT pg_postmaster_start_time()");
        let said = host.fails(1, &["set", "n", "huge_pages=on"]);
        assert!(said.contains("huge_pages=on needs more than 64 huge pages of 2"), "{said}");
        assert_eq!(host.sql("n", &[], "SELECT pg_postmaster_start_time()"), started, "it was restarted");
    }
}

#[test]
fn limits_too_small_for_initdb_name_the_option() {
    let Some(host) = Host::new() else { return };
    refused(&host, &["run", "n", "postgres:15", "--shm-size", "1k"], &["initdb failed", "--shm-size"]);
    let least = ["5 processes", "too small", "--pids 10"];
    refused_as(2, &host, &["run", "n", "postgres:15", "--pids", "5"], &least);
    refused_as(2, &host, &["run", "n", "postgres:15", "--memory", "8m"], &["too small", "--memory 64m"]);
    let command = |option, value| ["run", "--rm", "t", "tiny", option, value, "--", "true"];
    let said = host.fails(125, &command("--pids", "1"));
    assert!(said.contains("fork: EAGAIN") && said.contains("--pids"), "{said}");
    refused_as(125, &host, &command("--memory", "200k"), &["200K", "pid 1 and a command", "--memory 2m"]);
    // The least is enough.
    host.pgbox(&command("--pids", "2"));
    host.pgbox(&command("--memory", "2m"));
    host.pgbox(&["run", "n", "postgres:15", "--pids", "10"]);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

#[test]
fn a_log_in_a_volume_that_is_read_only() {
    let Some(host) = Host::new() else { return };
    let mount = format!("{}:/wal:ro", host.scratch("wal").display());
    let said =
        host.fails(1, &["run", "n", "postgres:15", "-e", "POSTGRES_INITDB_WALDIR=/wal/x", "-v", &mount]);
    assert!(said.contains("mkdir /wal/x: Read-only") && said.contains("a volume with `:ro`"), "{said}");
    assert!(!said.contains("--root"), "{said}");
}
