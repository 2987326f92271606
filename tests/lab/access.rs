//! What clients log in with: one password file a lab, whichever nodes come and go.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::{Host, run, text, until};

/// What a client says that has this connection string from earlier.
#[track_caller]
fn ask(uri: &str, sql: &str) -> String {
    run("psql", &["-XAtqc", sql, uri.trim()])
}

/// The file that a connection string names.
#[track_caller]
fn passfile(uri: &str) -> String {
    uri.trim().split("passfile=").nth(1).expect("a passfile").replace("%2F", "/")
}

const WHO: &str = "SELECT host(inet_server_addr()) || ' ' || pg_is_in_recovery()";

#[test]
fn a_connection_string_outlives_the_node_that_was_the_primary() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-e", "POSTGRES_PASSWORD=it's: a\\b"]);
    for node in ["r1", "r2"] {
        host.pgbox(&["replica", node, "--of", "primary"]);
    }
    host.pgbox(&["endpoint", "--publish-rw", "127.0.0.1:5440"]);
    // Another cluster beside it has the same user with another password.
    host.pgbox(&["run", "other", "postgres:15", "-p", "5441:5432"]);
    let other = [&["uri", "other"][..], &["uri", "other", "--published"]].map(|args| host.pgbox(args));
    let uri = |args: &[&str]| host.pgbox(&[&["uri"], args].concat());
    let [rw, ro] = ["--rw", "--ro"].map(|which| uri(&[which]));
    let [hosts, published] = ["--hosts", "--published"].map(|more| uri(&["--rw", more]));
    let published = published.replace("127.0.0.1", "localhost");
    let file = passfile(&rw);
    assert_eq!(run("stat", &["-c", "%a %u", &file]), "600 0");
    assert!([&ro, &hosts, &published, &other[0]].iter().all(|uri| passfile(uri) == file), "{ro} {hosts}");

    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    host.pgbox(&["rm", "-f", "-v", "primary"]);
    let address = host.json(&["uri", "--json", "r1"])["host"].as_str().unwrap().to_owned();
    let led = |standby: bool| {
        for uri in [&rw, &hosts, &published] {
            assert_eq!(ask(uri, WHO), format!("{address} false"), "{uri}");
        }
        assert_eq!(ask(&ro, "SELECT pg_is_in_recovery()"), if standby { "t" } else { "f" });
    };
    // Its address is the first in the string, and nobody there says that it is gone.
    let begun = Instant::now();
    ask(&hosts, WHO);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    until("r2 takes reads", 20, || host.pgbox(&["endpoint"]).contains("r2"));
    led(true);
    // One by one, and what comes later is in it as well.
    host.pgbox(&["rm", "-f", "-v", "r2"]);
    led(false);
    host.pgbox(&["replica", "r3", "--of", "r1"]);
    led(true);
    host.pgbox(&["switchover", "r3"]);
    host.pgbox(&["rm", "-f", "-v", "r1"]);
    let r3 = host.json(&["uri", "--json", "r3"])["host"].as_str().unwrap().to_owned();
    for uri in [&rw, &published, &host.pgbox(&["uri", "r3"])] {
        assert_eq!(ask(uri, WHO), format!("{r3} false"), "{uri}");
    }
    for uri in &other {
        assert_eq!(ask(uri, "SELECT current_user"), "postgres", "{uri}");
    }
    host.pgbox(&["rm", "-f", "-v", "r3", "other"]);
    assert!(!fs::exists(&file).unwrap(), "with the last node");
    host.is_forgotten();
}

#[test]
fn data_whose_password_is_known_serve_a_new_node_of_any_name() {
    let Some(host) = Host::new() else { return };
    let secret = host.scratch("secrets").join("user");
    fs::write(&secret, "joe\n").unwrap();
    let mount = format!("{}:/run/user:ro", secret.display());
    let volume = ["-v", "kept:/var/lib/postgresql/data"];
    // The user's name is known to pid 1 alone, and to pgbox when that has said it.
    let file = ["-v", &mount, "-e", "POSTGRES_USER_FILE=/run/user"];
    host.pgbox(&[&["run", "a", "postgres:15"][..], &volume, &file].concat());
    let rw = host.pgbox(&["uri", "--rw"]);
    assert_eq!(ask(&rw, "SELECT current_user"), "joe");
    host.pgbox(&["rm", "-f", "a"]);
    host.pgbox(&[&["run", "b", "postgres:15", "-e", "POSTGRES_USER=joe"][..], &volume].concat());
    assert_eq!(ask(&rw, "SELECT current_user"), "joe");
}

#[test]
fn users_and_databases_of_a_lab_file_are_named_by_options() {
    let Some(host) = Host::new() else { return };
    let lab = host.scratch("files").join("lab.toml");
    let text_of = |given: &str| {
        format!(
            "publish-rw = 5440\n[defaults]\nimage = 'postgres:15'\n[nodes.primary]\npublish = ['5441:5432']\n\
             [nodes.r1]\nof = 'primary'\n[users.app]\n[users.'some one']\npassword = '{given}'\n\
             [databases.shop]\nowner = 'app'\n"
        )
    };
    let up = |given: &str| {
        fs::write(&lab, text_of(given)).unwrap();
        host.pgbox(&["up", lab.to_str().unwrap()])
    };
    up("first: one");
    let who = "SELECT current_user || '@' || current_database()";
    let ways: [&[&str]; 6] = [
        &["--rw"],
        &["--rw", "--published"],
        &["--ro", "--hosts"],
        &["r1"],
        &["primary", "--published"],
        &["--rw", "--with-password"],
    ];
    for way in ways {
        let uri = host.pgbox(&[&["uri"], way, &["--user", "app", "--dbname", "shop"]].concat());
        assert_eq!(ask(&uri, who), "app@shop", "{uri}");
    }
    let uri = host.pgbox(&["uri", "--rw", "-U", "some one"]);
    assert_eq!(ask(&uri, who), "some one@postgres");
    up("second");
    assert_eq!(ask(&uri, who), "some one@postgres", "the same file has the new password");
    let with = ["with", "r1", "-U", "app", "-d", "shop", "--", "psql", "-XAtc", who];
    assert_eq!(host.pgbox(&with), "app@shop\n");
    let script = format!("eval \"$({} env -U app -d shop)\" && psql -XAtc \"{who}\"", crate::harness::PGBOX);
    let shell = Command::new("sh").args(["-ec", &script]).env("PGBOX_ROOT", &host.root).output().unwrap();
    assert_eq!(text(&shell.stdout), "app@shop\n", "{}", text(&shell.stderr));

    for call in [&["uri", "--rw", "-U", "bob"][..], &["env", "-U", "bob"]] {
        let said = host.fails(1, call);
        assert!(said.contains("`bob`") && said.contains("postgres, app, some one"), "{said}");
        assert!(said.contains("[users.bob]") && said.contains("pgbox psql primary -- -U bob"), "{said}");
        assert!(said.contains("knows its password: `psql -h 10.") && said.contains(" -U bob`"), "{said}");
    }
}

#[test]
fn the_superuser_may_get_its_password_from_a_lab_file() {
    let Some(host) = Host::new() else { return };
    let lab = host.scratch("files").join("lab.toml");
    let up = |password: &str| {
        let nodes = "[defaults]\nimage = 'postgres:15'\n[nodes.primary]\n[nodes.r1]\nof = 'primary'\n";
        fs::write(&lab, format!("{nodes}[users.postgres]\npassword = '{password}'\n")).unwrap();
        host.pgbox(&["up", lab.to_str().unwrap()])
    };
    for password in ["first", "second"] {
        up(password);
        assert!(up(password).contains("nothing to do"));
        assert!(host.pgbox(&["uri", "r1", "--with-password"]).contains(&format!(":{password}@")));
        assert_eq!(ask(&host.pgbox(&["uri", "--rw"]), "SELECT 1"), "1");
    }
    // And from the data, for nodes to come.
    host.pgbox(&["down"]);
    up("second");
    assert_eq!(ask(&host.pgbox(&["uri", "--rw"]), "SELECT 1"), "1");
}

#[test]
fn a_password_that_is_edited_where_it_does_not_count_is_told() {
    let Some(host) = Host::new() else { return };
    let lab = host.scratch("files").join("lab.toml");
    let up = |password: &str, more: &str| {
        let nodes =
            format!("[nodes.primary]\nimage = 'postgres:15'\nenv = {{ POSTGRES_PASSWORD = '{password}' }}\n");
        fs::write(&lab, format!("{nodes}{more}")).unwrap();
        let output = host.try_pgbox(&["up", lab.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let is_told = |said: &str| said.contains("POSTGRES_PASSWORD of `primary` is another one now");
    assert!(!is_told(&up("first", "")) && !is_told(&up("first", "")));
    let said = up("second", "");
    assert!(is_told(&said) && said.contains("[users.postgres]") && !said.contains("second"), "{said}");
    assert!(!is_told(&up("second", "[users.postgres]\npassword = 'second'\n")));
    assert!(!is_told(&up("second", "")), "now it is that one");
}

#[test]
fn psql_without_a_name_is_the_primarys_or_says_which_there_are() {
    let Some(host) = Host::new() else { return };
    assert!(host.fails(1, &["psql", "-c", "SELECT 1"]).contains("no Postgres runs in lab `default`"));
    host.pgbox(&["run", "a", "postgres:15"]);
    host.pgbox(&["replica", "b", "--of", "a"]);
    host.pgbox(&["psql", "-c", "CREATE DATABASE shop"]);
    let rw = host.pgbox(&["uri", "--rw"]);
    let standby = "SELECT pg_is_in_recovery()";
    let calls: [(&[&str], &str); 7] = [
        (&["psql", "-Atc", standby], "f\n"),
        (&["psql", "--", "-Atc", standby], "f\n"),
        (&["psql", "--", "shop", "-Atc", "SELECT current_database()"], "shop\n"),
        (&["psql", "b", "-Atc", standby], "t\n"),
        (&["psql", "b", "--", "-Atc", standby], "t\n"),
        // What follows is psql's, whatever pgbox calls so.
        (&["psql", "b", "--no-align", "-tc", standby, "--lab", "x"], ""),
        (&["--lab", "default", "psql", "-Atc", standby], "f\n"),
    ];
    for (call, want) in calls {
        match want {
            "" => assert!(text(&host.try_pgbox(call).stderr).contains("--lab"), "{call:?}"),
            _ => assert_eq!(host.pgbox(call), want, "{call:?}"),
        }
    }
    assert!(host.fails(1, &["psql", "shop"]).contains("lab `default` has a, b"));
    host.pgbox(&["switchover", "b"]);
    let roles = host.json(&["inspect", "--json", "a", "b"]);
    assert_eq!([&roles[0]["role"], &roles[1]["role"]], ["standby", "primary"]);
    assert_eq!(host.pgbox(&["psql", "-Atc", "SELECT pg_is_in_recovery()"]), "f\n");
    host.pgbox(&["rm", "-f", "b"]);
    let said = host.fails(1, &["psql", "-Atc", standby]);
    assert!(said.contains("has no primary: what a followed is gone"), "{said}");
    assert!(said.contains("pgbox promote a"), "{said}");
    host.pgbox(&["promote", "a"]);
    assert_eq!(ask(&rw, "SELECT 1"), "1", "meanwhile it led nowhere");
    host.pgbox(&["run", "c", "postgres:15"]);
    let said = host.fails(1, &["psql", "-Atc", standby]);
    assert!(said.contains("several clusters, of a, c") && said.contains("name a node"), "{said}");
}

/// A lab whose superuser gets its password from its file, and where pgbox keeps that.
struct Changed<'h> {
    host: &'h Host,
    lab: PathBuf,
    more: &'static str,
    files: Vec<PathBuf>,
}

impl<'h> Changed<'h> {
    /// `more` is what the file says of the standby, `r1`.
    fn new(host: &'h Host, more: &'static str) -> Self {
        let places = ["labs/default/nodes/primary/", "labs/default/nodes/r1/", "volumes/default/primary/"];
        let files = places.map(|place| host.root.join(place).join("password")).to_vec();
        let changed = Self { host, lab: host.scratch("files").join("lab.toml"), more, files };
        changed.up("one");
        changed.is_known("one");
        changed
    }

    fn command(&self, password: &str) -> Command {
        let nodes = "[defaults]\nimage = 'postgres:15'\n[nodes.primary]\n[nodes.r1]\nof = 'primary'\n";
        let text = format!("{nodes}{}\n[users.postgres]\npassword = '{password}'\n", self.more);
        fs::write(&self.lab, text).unwrap();
        fs::set_permissions(&self.lab, fs::Permissions::from_mode(0o600)).unwrap();
        self.host.command(&["up", self.lab.to_str().unwrap()])
    }

    #[track_caller]
    fn up(&self, password: &str) -> String {
        let output = self.command(password).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// As a command leaves it that is killed while it changes a password: both are written down.
    fn cut_off(&self, password: &str) {
        self.files.iter().for_each(|file| fs::write(file.with_extension("new"), password).unwrap());
    }

    fn alter(&self, password: &str) {
        let sql = format!("ALTER ROLE postgres PASSWORD '{password}'");
        self.host.pgbox(&["psql", "primary", "-c", &sql]);
    }

    #[track_caller]
    fn are_kept(&self, old: &str, new: &str) {
        for file in &self.files {
            assert_eq!(fs::read_to_string(file).unwrap(), old, "{}", file.display());
            assert_eq!(fs::read_to_string(file.with_extension("new")).unwrap(), new, "{}", file.display());
        }
    }

    #[track_caller]
    fn is_known(&self, password: &str) {
        for file in &self.files {
            assert_eq!(fs::read_to_string(file).unwrap(), password, "{}", file.display());
            assert!(!file.with_extension("new").exists(), "{}", file.display());
        }
        assert_eq!(self.host.sql("primary", &[], "SELECT current_user"), "postgres");
    }

    /// Whether pgbox itself gets in.
    #[track_caller]
    fn is_let_in(&self) {
        let status = self.host.json(&["status", "--json"]);
        assert!(status["clusters"][0]["nodes"][0]["write_lsn"].is_string(), "{status}");
    }
}

#[test]
fn a_change_of_the_superusers_password_that_was_cut_off_locks_nobody_out() {
    let Some(host) = Host::new() else { return };
    let lab = Changed::new(&host, "");
    // The server has it already: whoever logs in gets in, and the next `up` takes it over.
    lab.cut_off("two");
    lab.alter("two");
    lab.is_let_in();
    host.pgbox(&["drive", "start", "--for", "1s"]);
    host.pgbox(&["drive", "stop"]);
    lab.are_kept("one", "two");
    let inode = |file: &Path| fs::metadata(file).unwrap().ino();
    let new = inode(&lab.files[0].with_extension("new"));
    assert!(lab.up("two").contains("nothing to do"));
    lab.is_known("two");
    assert_eq!(inode(&lab.files[0]), new, "that needs no space, and is never half done");
    // It has not: it may still get it.
    lab.cut_off("three");
    host.pgbox(&["limit", "primary", "--memory", "1g"]);
    host.pgbox(&["freeze", "primary"]);
    host.pgbox(&["run", "--rm", "x", "postgres:15", "--", "true"]);
    host.pgbox(&["thaw", "primary"]);
    host.pgbox(&["restart", "r1"]);
    lab.are_kept("two", "three");
    lab.is_let_in();
    lab.up("three");
    lab.is_known("three");
    // A full disk leaves an empty file, which is no password.
    lab.cut_off("");
    lab.is_let_in();
    fs::write(&lab.files[0], "").unwrap();
    fs::write(lab.files[0].with_extension("new"), "three").unwrap();
    lab.is_let_in();
    host.pgbox(&["restart", "r1"]);
    // The node goes before anybody has found out.
    lab.cut_off("four");
    lab.alter("four");
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["rm", "primary"]);
    host.pgbox(&["run", "primary", "postgres:15"]);
    lab.is_known("four");
    // And the next one is given a third one.
    lab.cut_off("five");
    lab.alter("five");
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["rm", "primary"]);
    let made = host.try_pgbox(&["run", "primary", "postgres:15", "-e", "POSTGRES_PASSWORD=wrong"]);
    let said = text(&made.stderr);
    assert!(made.status.success() && said.contains("another password than the one that was given"), "{said}");
    assert!(said.contains("The one that counts is in"), "{said}");
    lab.is_known("five");
}

#[test]
fn a_standby_that_is_behind_does_not_say_which_password_counts() {
    let Some(host) = Host::new() else { return };
    let lab = Changed::new(&host, "delay = '5min'");
    lab.cut_off("two");
    lab.alter("two");
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["limit", "r1", "--memory", "1g"]);
    host.pgbox(&["restart", "r1"]);
    lab.are_kept("one", "two");
    let started = host.try_pgbox(&["start", "primary"]);
    let said = text(&started.stderr);
    assert!(started.status.success() && !said.contains("password"), "{said}");
    lab.is_known("two");
}

/// The statement of a command that is killed goes on in the server, and waits for whoever holds the row.
#[test]
fn a_password_that_a_server_gets_after_the_command_was_killed_is_known() {
    let Some(host) = Host::new() else { return };
    let lab = Changed::new(&host, "");
    let count = |what: &str| {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER ROLE%' AND {what}");
        host.pgbox(&["psql", "primary", "-Atc", &sql]).trim().to_owned()
    };
    let uri = host.pgbox(&["uri", "primary"]);
    let mut holder = Command::new("psql").args(["-Xq", uri.trim()]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = holder.stdin.take().unwrap();
    writeln!(input, "BEGIN; ALTER ROLE postgres CONNECTION LIMIT 50;").unwrap();
    until("the row is held", 20, || count("state = 'idle in transaction'") == "1");

    let mut up = lab.command("two").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the server waits for it", 20, || count("wait_event_type = 'Lock'") == "1");
    lab.are_kept("one", "two");
    // Nobody beside it, nor after it, takes that away.
    host.pgbox(&["limit", "primary", "--memory", "1g"]);
    up.kill().unwrap();
    up.wait().unwrap();
    host.pgbox(&["limit", "primary", "--memory", "2g"]);
    host.pgbox(&["restart", "r1"]);
    lab.are_kept("one", "two");

    writeln!(input, "ROLLBACK;").unwrap();
    drop(input);
    assert!(holder.wait().unwrap().success());
    until("the orphan is done", 20, || count("state <> 'idle'") == "0");
    lab.is_let_in();
    // The limit is the file's again.
    lab.up("two");
    lab.is_known("two");
}

/// The orphan is the first to get the row, and the one that came later is refused then.
#[test]
fn a_password_that_a_server_gets_after_another_one_was_begun_is_known() {
    let Some(host) = Host::new() else { return };
    let lab = Changed::new(&host, "");
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER ROLE%' AND wait_event_type = 'Lock'";
    let uri = host.pgbox(&["uri", "primary"]);
    let mut holder = Command::new("psql").args(["-Xq", uri.trim()]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = holder.stdin.take().unwrap();
    writeln!(input, "BEGIN; ALTER ROLE postgres CONNECTION LIMIT 50; SELECT pg_sleep(0) AS held;").unwrap();
    let held = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%AS held%' AND state = 'idle in transaction'";
    until("the row is held", 20, || host.pgbox(&["psql", "primary", "-Atc", held]) == "1\n");
    let begin = |password: &str, count: &str| {
        let up = lab.command(password).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("the server waits for it", 20, || {
            host.pgbox(&["psql", "primary", "-Atc", waiting]).trim() == count
        });
        up
    };
    let mut two = begin("two", "1");
    two.kill().unwrap();
    two.wait().unwrap();
    let mut three = begin("three", "2");
    writeln!(input, "ROLLBACK;").unwrap();
    drop(input);
    assert!(holder.wait().unwrap().success());
    assert!(!three.wait().unwrap().success(), "tuple concurrently updated");
    let login = |password: &str| {
        let asked = Command::new("psql")
            .args(["-Xc", "SELECT", uri.trim()])
            .env("PGPASSWORD", password)
            .output()
            .unwrap();
        asked.status.success()
    };
    assert_eq!(["one", "two", "three"].map(login), [false, true, false]);
    lab.is_let_in();
    lab.up("four");
    assert_eq!(fs::read_to_string(&lab.files[0]).unwrap(), "four");
    lab.is_let_in();
}

/// What the server was not given the next `up` gives it.
#[test]
fn a_users_password_is_written_down_before_the_server_has_it() {
    let Some(host) = Host::new() else { return };
    let file = host.scratch("files").join("lab.toml");
    let up = |password: &str| {
        let users = format!("[users.app]\npassword = '{password}'\n");
        fs::write(&file, format!("[nodes.primary]\nimage = 'postgres:15'\n{users}")).unwrap();
        host.try_pgbox(&["up", file.to_str().unwrap()])
    };
    assert!(up("one").status.success());
    let alter = |sql: &str| host.pgbox(&["psql", "primary", "-c", sql, "-c", "SELECT pg_reload_conf()"]);
    alter("ALTER SYSTEM SET default_transaction_read_only = on");
    assert!(!up("two").status.success());
    assert_eq!(fs::read_to_string(host.root.join("volumes/default/.users/app")).unwrap(), "two");
    host.pgbox(&[
        "psql",
        "primary",
        "-c",
        "SET default_transaction_read_only = off",
        "-c",
        "ALTER SYSTEM RESET ALL",
    ]);
    alter("SELECT 1");
    assert!(up("two").status.success());
    let uri = host.pgbox(&["uri", "primary", "-U", "app"]);
    assert_eq!(ask(&uri, "SELECT current_user"), "app");
}
