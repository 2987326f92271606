//! Volumes: what is mounted where, whose it is afterwards, and that nobody's data is removed by mistake.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Stdio,
};

use crate::harness::{Host, run, text, until};

const PGDATA: &str = "/var/lib/postgresql/data";

#[test]
fn a_volume_that_another_node_uses_survives_rm_v() {
    let Some(host) = Host::new() else { return };
    let mount = format!("shared:{PGDATA}");
    host.pgbox(&["run", "a", "postgres:15", "-v", &mount]);
    host.sql("a", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["stop", "a"]);
    host.pgbox(&["run", "b", "postgres:15", "-v", &mount]);
    host.pgbox(&["stop", "b"]);
    let said = host.try_pgbox(&["rm", "-v", "b"]);
    assert!(said.status.success());
    assert!(crate::harness::text(&said.stderr).contains("node `a` uses it"));
    host.pgbox(&["start", "a"]);
    assert_eq!(host.sql("a", &[], "SELECT i FROM t"), "7");
    host.pgbox(&["rm", "-f", "-v", "a"]);
    assert!(!host.root.join("volumes/default/shared").exists());
}

#[test]
fn rm_v_never_removes_a_directory_of_the_host() {
    let Some(host) = Host::new() else { return };
    let data = host.scratch("made").join("below/data");
    host.pgbox(&["run", "n", "postgres:15", "-v", &format!("{}:{PGDATA}", data.display())]);
    host.pgbox(&["rm", "-f", "-v", "n"]);
    assert!(data.join("PG_VERSION").exists());
}

/// It is named by where its data really lie, as a command that brings it back.
#[test]
fn a_primary_that_has_left_its_data_below_a_volume_is_the_way_out_for_its_standbys() {
    let Some(host) = Host::new() else { return };
    let below = ["-v", &format!("pv:{PGDATA}"), "-e", &format!("PGDATA={PGDATA}/sub")];
    host.pgbox(&[&["run", "primary", "postgres:15"][..], &below].concat());
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["rm", "-f", "r1", "primary"]);
    let own = ["-e", below[3]];
    let said = host.fails(1, &[&["run", "r1", "postgres:15"][..], &own].concat());
    let back = format!("pgbox run pv -v pv:{PGDATA} -e PGDATA={PGDATA}/sub");
    assert!(
        said.contains(&format!("`{back}` brings the primary back")) && !said.contains("signal"),
        "{said}"
    );
    let words: Vec<&str> = back.split(' ').skip(1).collect();
    host.pgbox(&[&words[..2], &["postgres:15"], &words[2..]].concat());
    assert_eq!(host.pgbox(&["psql", "pv", "-Atc", "SELECT i FROM t"]), "7\n");
}

/// What below a directory is not this user's and group's, by names below it.
fn not_of(dir: &Path, id: u32) -> Vec<String> {
    let (dir, id) = (dir.to_str().unwrap(), id.to_string());
    let found = run("find", &[dir, "-not", "(", "-uid", &id, "-gid", &id, ")", "-printf", "%P\n"]);
    found.lines().map(str::to_owned).collect()
}

fn give(dir: &Path, id: u32) {
    run("chown", &["-R", &format!("{id}:{id}"), dir.to_str().unwrap()]);
}

/// A stopped cluster in the directory, which belongs to nobody any more, and its server's user.
fn old_data(host: &Host, data: &Path) -> u32 {
    let mount = format!("{}:{PGDATA}", data.display());
    let first = host.try_pgbox(&["run", "old", "postgres:15", "-v", &mount, "-e", "POSTGRES_PASSWORD=pw"]);
    let said = text(&first.stderr);
    assert!(first.status.success() && said.is_empty(), "nothing was anybody's before: {said}");
    host.pgbox(&["stop", "old"]);
    host.pgbox(&["rm", "old"]);
    fs::metadata(data.join("PG_VERSION")).unwrap().uid()
}

/// Runs a node on data that were there; gives what was said of them.
#[track_caller]
fn run_on(host: &Host, mount: &str) -> String {
    let output = host.try_pgbox(&["run", "n", "postgres:15", "-v", mount, "-e", "POSTGRES_PASSWORD=pw"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn data_of_another_user_stay_that_users_and_are_the_servers_inside() {
    let Some(host) = Host::new() else { return };
    let data = host.scratch("data");
    let server = old_data(&host, &data);
    give(&data, 1234);
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(data.join("lost+found")).unwrap();
    let mount = format!("{}:{PGDATA}", data.display());
    let plan = host.pgbox(&["run", "n", "postgres:15", "-v", &mount, "--explain"]);
    let map = format!("u:{server}:1234:1");
    assert!(plan.contains(&format!("uid 1234 of the disk as {server}")) && plan.contains(&map), "{plan}");
    let said = run_on(&host, &mount);
    assert!(said.contains("mode 0755") && !said.contains("uid 1234"), "{said}");
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i; CHECKPOINT");
    assert_eq!(not_of(&data, 1234), ["lost+found"]);
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    let inside =
        host.pgbox(&["exec", "n", "--", "stat", "-c", "%u", PGDATA, &format!("{PGDATA}/PG_VERSION")]);
    assert_eq!(inside, format!("{server}\n{server}\n"));
    let mounts = host.pgbox(&["exec", "n", "--", "grep", PGDATA, "/proc/self/mountinfo"]);
    assert!(mounts.contains("idmapped"), "{mounts}");
    host.pgbox(&["stop", "n"]);
    // Whose they are now counts, not whose they were.
    for owner in [5678, server] {
        give(&data, owner);
        let output = host.try_pgbox(&["start", "n"]);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(host.sql("n", &[], "SELECT i FROM t"), "7");
        host.pgbox(&["stop", "n"]);
        assert_eq!(not_of(&data, owner), [""; 0]);
    }
    give(&data, 1234);
    let ask = ["run", "--rm", "t", "postgres:15", "-v", &mount, "--", "postgres", "-C", "data_checksums"];
    assert!(["on\n", "off\n"].contains(&&*host.pgbox(&ask)));
    host.pgbox(&["rm", "n"]);
    // Some of it changed hands, as when pid 1 was killed at that: no map is right for all of it.
    std::os::unix::fs::chown(data.join("PG_VERSION"), Some(server), Some(server)).unwrap();
    assert!(run_on(&host, &mount).contains("uid 1234"));
    assert_eq!(not_of(&data, server), [""; 0]);
}

#[test]
fn a_new_cluster_in_a_users_empty_directory_is_that_users() {
    let Some(host) = Host::new() else { return };
    let data = host.scratch("data");
    give(&data, 1000);
    let said = run_on(&host, &format!("{}:{PGDATA}", data.display()));
    assert_eq!(said, "");
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i; CHECKPOINT");
    assert_eq!(not_of(&data, 1000), [""; 0]);
    assert!(data.join("PG_VERSION").exists());
    let volume = host.root.join("volumes/default/below/data");
    fs::create_dir_all(volume.join("data")).unwrap();
    give(&volume, 1000);
    host.pgbox(&["run", "m", "postgres:15", "-v", "below:/var/lib/postgresql"]);
    assert_eq!(not_of(&volume, 1000), [""; 0]);
    host.pgbox(&["rm", "-f", "-v", "m"]);
    assert!(!volume.exists());
}

#[test]
fn where_no_mount_can_show_them_so_data_of_another_user_are_taken_over_and_told() {
    let Some(host) = Host::new() else { return };
    let [data, lower, upper, work] = ["data", "lower", "upper", "work"].map(|name| host.scratch(name));
    // Overlayfs can't be mounted with other owners.
    let [l, u, w] = [lower, upper, work].map(|path| path.display().to_string());
    let options = format!("lowerdir={l},upperdir={u},workdir={w}");
    run("mount", &["-t", "overlay", "overlay", "-o", &options, data.to_str().unwrap()]);
    let server = old_data(&host, &data);
    give(&data, 1234);
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(data.join("lost+found")).unwrap();
    let mount = format!("{}:{PGDATA}", data.display());
    let said = run_on(&host, &mount);
    assert!(said.contains("uid 1234") && said.contains("mode 0755"), "{said}");
    assert_eq!(not_of(&data, server), [""; 0]);
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

#[test]
fn data_on_several_mounts_are_taken_over_as_one() {
    let Some(host) = Host::new() else { return };
    let [data, wal] = ["data", "wal"].map(|name| host.scratch(name));
    let server = old_data(&host, &data);
    let (inside, outside) = (data.join("pg_wal"), wal.join("wal"));
    run("mv", &[inside.to_str().unwrap(), outside.to_str().unwrap()]);
    fs::create_dir(&inside).unwrap();
    let mount = format!("{}:{PGDATA}", data.display());
    for by_hand in [false, true] {
        for dir in [&data, &outside] {
            give(dir, 1234);
        }
        let log = format!("{}:{PGDATA}/pg_wal", outside.display());
        let said = match by_hand {
            true => {
                run("mount", &["--bind", outside.to_str().unwrap(), inside.to_str().unwrap()]);
                run_on(&host, &mount)
            }
            false => {
                let args =
                    ["run", "n", "postgres:15", "-v", &mount, "-v", &log, "-e", "POSTGRES_PASSWORD=pw"];
                text(&host.try_pgbox(&args).stderr)
            }
        };
        assert!(said.contains("uid 1234"), "{by_hand} {said}");
        assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
        assert_eq!(not_of(&outside, server), [""; 0]);
        host.pgbox(&["stop", "n"]);
        host.pgbox(&["rm", "n"]);
    }
}

#[test]
fn data_on_which_a_server_of_somebody_else_runs_are_refused() {
    let Some(host) = Host::new() else { return };
    let data = host.scratch("data");
    let ours = format!("{}:{PGDATA}", data.display());
    host.pgbox(&["run", "n", "postgres:15", "-v", &ours]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["stop", "n"]);
    // It locks nothing, and its process id is that of nobody in the node.
    let server = "exec su postgres -c 'exec /usr/lib/postgresql/15/bin/postgres -D /theirs -k /tmp'";
    let mount = format!("{}:/theirs", data.display());
    host.pgbox(&["run", "-d", "theirs", "postgres:15", "-v", &mount, "--", "sh", "-c", server]);
    until("their server runs", 20, || {
        fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|text| text.contains("ready"))
    });
    for args in [&["start", "n"][..], &["run", "m", "postgres:15", "-v", &ours]] {
        let said = host.fails(1, args);
        let pid =
            said.split("another server runs on it (process ").nth(1).and_then(|rest| rest.split(' ').next());
        let comm = fs::read_to_string(format!("/proc/{}/comm", pid.expect(&said))).unwrap();
        assert_eq!(comm, "postgres\n", "{said}");
    }
    host.pgbox(&["rm", "--force", "theirs"]);
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT i FROM t"), "7");
}

#[test]
fn a_volume_on_a_disk_that_is_not_there_is_not_taken_for_empty() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.sql("n", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["rm", "--force", "n"]);
    let volume = host.root.join("volumes/default/n");
    let disk = host.scratch("disk");
    fs::rename(volume.join("data"), disk.join("data")).unwrap();
    std::os::unix::fs::symlink(disk.join("data"), volume.join("data")).unwrap();
    let away = disk.with_extension("away");
    fs::rename(&disk, &away).unwrap();
    host.fails(1, &["run", "n", "postgres:15"]);
    assert!(volume.join("data").is_symlink() && volume.join("password").exists());
    fs::rename(&away, &disk).unwrap();
    host.pgbox(&["run", "n", "postgres:15"]);
    assert_eq!(host.sql("n", &[], "SELECT i FROM t"), "7");
}

#[test]
fn the_data_directory_may_be_below_the_volume_and_an_empty_disk_has_lost_and_found() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-v", "parent:/var/lib/postgresql"]);
    assert!(host.root.join("volumes/default/parent/data/data/PG_VERSION").exists());
    assert!(!host.root.join("volumes/default/n").exists(), "a second volume nobody asked for");
    let disk = host.scratch("disk");
    fs::create_dir(disk.join("lost+found")).unwrap();
    host.pgbox(&["run", "m", "postgres:15", "-v", &format!("{}:{PGDATA}", disk.display())]);
    assert_eq!(host.sql("m", &[], "SELECT 1"), "1");
}

#[test]
fn a_file_and_a_read_only_directory_can_be_mounted() {
    let Some(host) = Host::new() else { return };
    let dir = host.scratch("dir");
    let file = dir.join("file");
    fs::write(&file, "from the host\n").unwrap();
    let (at_file, at_dir) =
        (format!("{}:/etc/my.conf", file.display()), format!("{}:/new/dir:ro", dir.display()));
    let script = "cat /etc/my.conf; echo more >>/etc/my.conf; touch /new/dir/x 2>/dev/null || echo no";
    let said =
        host.pgbox(&["run", "--rm", "t", "tiny", "-v", &at_file, "-v", &at_dir, "--", "sh", "-c", script]);
    assert_eq!(said, "from the host\nno\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "from the host\nmore\n");
    assert!(!dir.join("x").exists());
}

#[test]
fn volumes_of_no_node_are_seen_and_removed_and_others_are_not() {
    let Some(host) = Host::new() else { return };
    assert_eq!(host.pgbox(&["volume", "ls", "-q"]), "");
    host.pgbox(&["run", "a", "postgres:15"]);
    host.sql("a", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["run", "b", "tiny", "-v", "files:/x", "--", "touch", "/x/y"]);
    let rows = host.json(&["volume", "ls", "--json"]);
    assert_eq!((&rows[0]["volume"], &rows[0]["postgres"]), (&"a".into(), &15.into()));
    assert_eq!((&rows[0]["nodes"][0], &rows[1]["nodes"][0]), (&"a".into(), &"b".into()));
    assert!(rows[0]["size"].as_u64().unwrap() > 20 << 20, "{rows}");
    for (volume, node) in [("a", "a"), ("files", "b")] {
        let said = host.fails(1, &["volume", "rm", volume]);
        assert!(said.contains(&format!("node `{node}` has it")), "{said}");
    }
    host.pgbox(&["rm", "--force", "a", "b"]);
    assert!(host.pgbox(&["volume", "rm", "--dry-run", "a"]).contains("volumes/default/a"));
    let table = host.pgbox(&["volume", "ls"]);
    assert!(table.lines().any(|l| l.starts_with("a ") && l.ends_with('-')), "{table}");
    host.pgbox(&["volume", "rm", "a"]);
    assert!(!host.root.join("volumes/default/a").exists());
    assert_eq!(host.pgbox(&["volume", "ls", "-q", "--all-labs"]), "files\n");
    let said = host.fails(1, &["volume", "rm", "a"]);
    assert!(said.contains("no volume `a`") && said.contains("files"), "{said}");
}

#[test]
fn what_is_kept_of_a_failed_first_start_is_told_and_goes_with_the_volume() {
    let Some(host) = Host::new() else { return };
    let scripts = host.scratch("scripts");
    fs::write(scripts.join("1.sql"), "SELECT nonsense;").unwrap();
    let mount = format!("{}:/docker-entrypoint-initdb.d", scripts.display());
    host.fails(1, &["run", "n", "postgres:15", "-v", &mount]);
    let output = host.try_pgbox(&["volume", "ls"]);
    assert!(text(&output.stdout).contains("n "), "{output:?}");
    assert!(text(&output.stderr).contains("n/data/.pgbox-failed is kept"), "{output:?}");
    host.pgbox(&["volume", "rm", "n"]);
    assert_eq!(host.pgbox(&["volume", "ls", "-q"]), "");
}

#[test]
fn run_rm_says_where_the_data_is() {
    let Some(host) = Host::new() else { return };
    let mut node = host.command(&["run", "--rm", "--foreground", "n", "postgres:15"]);
    let mut node = node.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Not only the server is ready: the command has seen it.
    let mut said = BufReader::new(node.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("is ready")));
    host.pgbox(&["stop", "n"]);
    let output = node.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("volume `n`") && said.contains("volume rm n"), "{said}");
    assert_eq!(said.matches("note: ").count(), 1, "{said}");
    host.pgbox(&["volume", "rm", "n"]);
}

#[test]
fn of_two_nodes_on_one_new_volume_one_makes_the_cluster() {
    let Some(host) = Host::new() else { return };
    let mount = format!("shared:{PGDATA}");
    let runs = ["a", "b"].map(|node| {
        let mut command = host.command(&["run", node, "postgres:15", "-v", &mount]);
        (node, command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    });
    let ended = runs.map(|(node, child)| (node, child.wait_with_output().unwrap()));
    let (up, refused): (Vec<_>, Vec<_>) = ended.iter().partition(|(_, output)| output.status.success());
    assert_eq!((up.len(), refused.len()), (1, 1), "{ended:?}");
    let (node, said) = (up[0].0, crate::harness::text(&refused[0].1.stderr));
    assert!(said.contains("in use") && said.contains(&format!("node `{node}`")), "{said}");
    assert_eq!(host.sql(node, &[], "SELECT 1"), "1");
    assert_eq!(host.pgbox(&["ps", "-q"]), format!("{node}\n"));
    // The password beside the data is that of the one that made it.
    host.pgbox(&["rm", "-f", node]);
    host.pgbox(&["run", "c", "postgres:15", "-v", &mount]);
    assert_eq!(host.sql("c", &[], "SELECT 1"), "1");
}

/// What root in a node may leave in a volume for the next node on it, and for pgbox on the host.
#[test]
fn what_a_node_has_left_in_a_volume_neither_hangs_nor_leads_out() {
    let Some(host) = Host::new() else { return };
    let secret = host.scratch("secret").join("file");
    fs::write(&secret, "of the host").unwrap();
    let outside = secret.to_str().unwrap();
    let hostile = |script: &str| {
        host.pgbox(&["run", "--rm", "t", "tiny", "-v", "v:/v", "--", "sh", "-c", script]);
    };
    let run = |more: &[&str]| {
        let node = ["run", "n", "postgres:15", "-v", "v:/var/lib/postgresql", "--timeout", "20s"];
        host.try_pgbox(&[&node[..], more].concat())
    };
    // The link means something inside only, so pgbox sees no PG_VERSION on the host, and pid 1 does.
    let link = "mkdir /v/real; mkfifo /v/real/PG_VERSION; ln -s /var/lib/postgresql/real /v/data";
    for script in ["mkdir /v/data; mkfifo /v/data/PG_VERSION", link] {
        hostile(script);
        let output = run(&[]);
        let said = crate::harness::text(&output.stderr);
        assert!(!output.status.success() && said.contains("it is not a plain file"), "{script}: {said}");
        host.is_forgotten();
        hostile("rm -r /v/*");
    }
    // What pgbox knows of a volume is not kept in what a node can write.
    hostile(&format!("mkfifo /v/volume.json; ln -s {outside} /v/password"));
    assert!(run(&["-e", "POSTGRES_PASSWORD=right"]).status.success());
    assert!(host.pgbox(&["uri", "n", "--with-password"]).contains(":right@"));
    host.pgbox(&["rm", "-f", "n"]);
    for script in ["mkfifo /v/pw", &format!("ln -sf {outside} /v/pw")] {
        hostile(script);
        let output = run(&["-e", "POSTGRES_PASSWORD_FILE=/var/lib/postgresql/pw"]);
        assert!(output.status.success(), "{script}: {}", crate::harness::text(&output.stderr));
        assert!(host.fails(1, &["uri", "n", "--with-password"]).contains("knows no password"), "{script}");
        host.pgbox(&["rm", "-f", "n"]);
    }
    hostile("rm -r /v/data /v/pw; mkfifo /v/pw");
    let output = run(&["-e", "POSTGRES_PASSWORD_FILE=/var/lib/postgresql/pw"]);
    assert!(crate::harness::text(&output.stderr).contains("it is not a plain file"));
    assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host");
}

#[test]
fn a_part_of_the_data_in_no_volume_does_not_go_by_itself() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "pg", "postgres:15", "-v", "kept:/kept"]);
    host.pgbox(&["exec", "pg", "--", "install", "-d", "-o", "postgres", "/in it", "/kept/it"]);
    host.sql("pg", &[], "CREATE TABLESPACE kept LOCATION '/kept/it'");
    host.sql("pg", &[], "CREATE TABLESPACE lost LOCATION '/in it'");
    host.sql("pg", &[], "CREATE TABLE t TABLESPACE lost AS SELECT 7 AS i");
    let file = host.scratch("up").join("lab.toml");
    std::fs::write(&file, "[nodes.other]\nimage = 'postgres:15'\n").expect("write");
    let file = file.to_str().expect("UTF-8");
    for args in [
        &["rm", "-f", "pg"][..],
        &["rm", "-f", "--dry-run", "pg"],
        &["down"],
        &["up", file, "--prune", "--diff"],
        &["up", file, "--prune"],
    ] {
        let said = host.fails(1, args);
        assert!(said.contains("in no volume: /in it would go"), "{args:?}: {said}");
        assert_eq!(host.sql("pg", &[], "SELECT i FROM t"), "7", "{args:?}");
    }
    host.pgbox(&["stop", "pg"]);
    assert!(host.fails(1, &["rm", "pg"]).contains("pgbox rm -f -v pg"));
    host.pgbox(&["start", "pg"]);
    host.sql("pg", &[], "ALTER TABLE t SET TABLESPACE kept");
    host.sql("pg", &[], "DROP TABLESPACE lost");
    host.pgbox(&["down"]);
    host.pgbox(&["run", "pg", "postgres:15", "-v", "kept:/kept"]);
    assert_eq!(host.sql("pg", &[], "SELECT i FROM t"), "7");
    host.pgbox(&["down", "-v"]);
    // A log that is nowhere but in the container.
    host.pgbox(&["run", "pg", "postgres:15", "-e", "POSTGRES_INITDB_WALDIR=/var/lib/postgresql/wal"]);
    assert!(host.fails(1, &["rm", "-f", "pg"]).contains("/var/lib/postgresql/wal"));
    host.pgbox(&["rm", "-f", "-v", "pg"]);
}
