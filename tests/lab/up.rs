//! Whole labs: made, left alone, edited, started, taken down, and several beside each other.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use crate::{
    harness::{Host, run, text},
    replica::until,
};

const STREAMS: &str = "SELECT string_agg(application_name || ' ' || state, ', ' ORDER BY application_name) FROM pg_stat_replication";

/// Writes a lab file.
fn write(host: &Host, name: &str, content: &str) -> PathBuf {
    let path = host.scratch("files").join(name);
    fs::write(&path, content).expect("write the lab file");
    path
}

fn up(host: &Host, path: &Path) -> String {
    host.pgbox(&["up", path.to_str().expect("UTF-8")])
}

/// `pgbox up --diff --json` as lines of `node action effect`.
fn diff(host: &Host, path: &Path) -> Vec<String> {
    let found = host.json(&["up", path.to_str().expect("UTF-8"), "--diff", "--json"]);
    let word = |change: &serde_json::Value, key: &str| change[key].as_str().unwrap_or("-").to_owned();
    let changes = found["changes"].as_array().expect("changes").iter();
    changes.map(|c| [word(c, "node"), word(c, "action"), word(c, "effect")].join(" ")).collect()
}

#[test]
fn a_lab_without_a_file_is_a_primary_and_a_standby_and_stays_so() {
    let Some(host) = Host::new() else { return };
    assert!(host.pgbox(&["up", "--diff"]).contains("+ replica: a standby of primary"));
    host.is_clean();
    host.pgbox(&["up"]);
    assert_eq!(host.sql("primary", &[], STREAMS), "replica streaming");
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    let pids = ["primary", "replica"].map(|node| host.init_pid(node));
    assert!(host.pgbox(&["up"]).contains("nothing to do"));
    assert_eq!(["primary", "replica"].map(|node| host.init_pid(node)), pids, "nothing was restarted");
    host.pgbox(&["stop", "primary", "replica"]);
    host.pgbox(&["up"]);
    until("replica streaming", || host.sql("primary", &[], STREAMS));

    let foretold = host.pgbox(&["down", "--dry-run"]);
    let order = "stop: primary\nstop: replica\nremove: replica\nremove: primary\n";
    assert!(foretold.starts_with(order) && foretold.contains("keep: volume primary"), "{foretold}");
    host.pgbox(&["down"]);
    host.is_forgotten();
    let again = text(&host.try_pgbox(&["down"]).stderr);
    assert!(again.contains("has no nodes; its data are in the volumes primary, replica"), "{again}");
    let said = text(&host.try_pgbox(&["up"]).stderr);
    assert!(
        said.contains("note: `primary` goes on with the data of the volume `primary` (PostgreSQL"),
        "{said}"
    );
    until("replica streaming", || host.sql("primary", &[], STREAMS));
    assert_eq!(host.sql("replica", &[], "SELECT i FROM t"), "7", "the data stayed");
    host.pgbox(&["down", "-v"]);
    assert_eq!(host.pgbox(&["volume", "ls", "-q", "--all-labs"]), "");
    host.is_forgotten();
}

#[test]
fn down_says_of_what_is_still_there_that_it_is_and_keeps_what_it_needs() {
    let Some(host) = Host::new() else { return };
    let lab = write(&host, "lab.toml", "[nodes.primary]\n[nodes.r1]\nof = 'primary'\n[users.app]\n");
    up(&host, &lab);
    let password = host.root.join("volumes/default/.users/app");
    assert!(password.exists());
    // What is mounted can't be removed.
    let stuck = host.root.join("labs/default/nodes/r1/stuck");
    fs::create_dir(&stuck).expect("mkdir");
    run("mount", &["-t", "tmpfs", "none", stuck.to_str().expect("UTF-8")]);
    let output = host.try_pgbox(&["down", "-v"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(text(&output.stdout), "primary is removed\n", "{output:?}");
    assert!(password.exists(), "the data are still there");
    let rest = host.root.join("labs/default/nodes/.r1.new");
    run("umount", &[rest.join("stuck").to_str().expect("UTF-8")]);
    fs::remove_dir_all(rest).expect("remove what is left");
    host.pgbox(&["down", "-v"]);
    assert!(!password.exists());
    assert_eq!(host.pgbox(&["volume", "ls", "-q", "--all-labs"]), "");
}

#[test]
fn after_a_switchover_up_keeps_the_roles_also_through_down() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["up"]);
    host.pgbox(&["switchover", "replica"]);
    let output = host.try_pgbox(&["up"]);
    assert!(text(&output.stdout).contains("nothing to do"), "{output:?}");
    assert!(text(&output.stderr).contains("`replica` is the primary now"), "{output:?}");
    host.sql("replica", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["down"]);
    host.pgbox(&["up"]);
    until("primary streaming", || host.sql("replica", &[], STREAMS));
    assert_eq!(host.sql("primary", &[], "SELECT i FROM t"), "7");
}

/// A lab without a file has the nodes `primary` and `replica`; this one's primary is another one.
#[test]
fn without_a_file_up_names_the_volume_that_has_the_primary() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["switchover", "r1"]);
    host.sql("r1", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["down"]);
    let said = text(&host.try_pgbox(&["up"]).stderr);
    assert!(
        said.contains("`pgbox run r1` brings the primary back") && !said.contains("standby.signal"),
        "{said}"
    );
    host.pgbox(&["run", "r1", "postgres:15"]);
    host.pgbox(&["replica", "primary", "--of", "r1"]);
    until("7", || host.sql("primary", &[], "SELECT i FROM t"));
}

/// The old primary was not brought back before `down`: its data look like a primary's.
#[test]
fn after_a_failover_up_takes_the_old_primary_back_also_through_down() {
    let Some(host) = Host::new() else { return };
    let file = write(
        &host,
        "lab.toml",
        "sync = 'any 1 (r1)'\n[defaults]\nimage = 'postgres:15'\n[nodes.p]\n[nodes.r1]\nof = 'p'\n[nodes.r2]\nof = 'p'\n",
    );
    let rule = || host.sql("r1", &[], "SHOW synchronous_standby_names");
    up(&host, &file);
    host.sql("p", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r2", "-Atc", "SELECT i FROM t"]).stdout));
    host.pgbox(&["crash", "p", "--node"]);
    host.pgbox(&["failover", "r1"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (8)");
    let output = host.try_pgbox(&["down"]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("the sync rule any 1 (r1) goes with the lab"), "{said}");
    assert!(!said.contains("leaves the lab's sync rule") && !said.contains("the last in"), "{said}");
    // Alone it is no primary, though the one in its place is not there now.
    let said = host.fails(1, &["run", "p", "postgres:15"]);
    assert!(said.contains("`r1` was promoted in its place") && said.contains("`pgbox up`"), "{said}");
    up(&host, &file);
    until("p streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
    assert_eq!(rule(), "ANY 1 (\"p\", \"r2\")", "whoever follows sits in the seat of r1");
    until("7,8", || host.sql("p", &[], "SELECT string_agg(i::text, ',' ORDER BY i) FROM t"));
    assert!(up(&host, &file).contains("nothing to do"));

    // The same of a node that is still there.
    host.pgbox(&["switchover", "p"]);
    host.pgbox(&["crash", "p", "--node"]);
    host.pgbox(&["failover", "r1"]);
    assert_eq!(diff(&host, &file), ["p rejoin -"]);
    up(&host, &file);
    until("p streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
    assert!(up(&host, &file).contains("nothing to do"));
}

#[test]
fn up_gives_up_nothing_that_only_an_old_primary_has_and_does_the_rest() {
    let Some(host) = Host::new() else { return };
    let lab = "[defaults]\nimage = 'postgres:15'\n[nodes.p]\n[nodes.r1]\nof = 'p'\n[nodes.r2]\nof = 'p'\n";
    let file = write(&host, "lab.toml", lab);
    up(&host, &file);
    host.sql("p", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["net", "cut", "p", "r1"]);
    host.sql("p", &[], "INSERT INTO t VALUES (7)");
    host.pgbox(&["crash", "p", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    let said = host.fails(1, &["up", file.to_str().unwrap()]);
    assert!(said.contains("1 transaction with 1 row") && said.contains("`pgbox rejoin p`"), "{said}");
    // r2 has it, too, which is another matter: the rest is what is neither.
    host.pgbox(&["rejoin", "r2"]);
    host.pgbox(&["down"]);
    let file = write(&host, "lab.toml", &format!("sync = 'any 1 (p, r2)'\n{lab}"));
    let output = host.try_pgbox(&["up", file.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("1 transaction with 1 row") && said.contains("`pgbox volume rm p`"), "{said}");
    assert!(text(&output.stdout).contains("as it is wanted, but for what was refused"), "{output:?}");
    assert_eq!(host.sql("r1", &[], STREAMS), "r2 streaming");
    assert_eq!(host.sql("r1", &[], "SHOW synchronous_standby_names"), "ANY 1 (\"r2\")");
    host.pgbox(&["volume", "rm", "p"]);
    up(&host, &file);
    until("p streaming, r2 streaming", || host.sql("r1", &[], STREAMS));
}

#[test]
fn a_standby_whose_primary_is_gone_is_named_as_the_one_to_promote() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "p", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "p"]);
    host.pgbox(&["rm", "-f", "-v", "p"]);
    let said = text(&host.try_pgbox(&["up"]).stderr);
    assert!(
        said.contains("`r1` follows `p`, which is gone") && said.contains("`pgbox promote r1`"),
        "{said}"
    );
    for args in [&["sync", "any 1 (r1)"][..], &["sync"], &["uri", "--rw"]] {
        let said = host.fails(1, args);
        assert!(said.contains("pgbox promote r1"), "{args:?}: {said}");
    }
    host.pgbox(&["promote", "r1"]);
    assert_eq!(host.sql("r1", &[], "SELECT pg_is_in_recovery()"), "f");
}

#[test]
fn a_file_is_checked_as_far_as_it_can_be_before_anything_is_done() {
    let Some(host) = Host::new() else { return };
    let lab =
        |rest: &str| write(&host, "lab.toml", &format!("[nodes.primary]\nimage = 'postgres:15'\n{rest}"));
    let owned = lab("[databases.shop]\nowner = 'shpo'\n");
    for how in [&["--diff"][..], &[]] {
        let said = host.fails(1, &[&["up", owned.to_str().unwrap()], how].concat());
        assert!(said.contains("add [users.shpo]"), "{said}");
        host.is_forgotten();
    }
    // Of all nodes at once, and with what is allowed.
    let lines = "settings = { work_mem = '12q', wal_level = 'full' }\n[nodes.r1]\nof = 'primary'\nsettings = { wrok_mem = '1MB' }\n";
    for how in [&["--diff"][..], &[]] {
        let said = host.fails(1, &[&["up", lab(lines).to_str().unwrap()], how].concat());
        for words in [
            "settings of `primary`, `r1`: work_mem=12q: invalid value for parameter \"work_mem\": \"12q\"; Valid units",
            "wal_level=full: invalid value for parameter \"wal_level\": \"full\"; Available values: minimal, replica",
            "settings of `r1`: wrok_mem=1MB: unrecognized configuration parameter \"wrok_mem\"",
        ] {
            assert!(said.contains(words), "{said}");
        }
        host.is_forgotten();
    }
    let said =
        host.fails(1, &["up", lab("[nodes.r1]\nof = 'primary'\nimage = 'nosuch'\n").to_str().unwrap()]);
    assert!(said.contains("nosuch"), "{said}");
    host.is_forgotten();
    up(&host, &lab("[[init]]\nsql = 'CREATE TABLE a ()'\n"));
    let wrong = lab("settings = { wrok_mem = '9MB' }\n[[init]]\nsql = 'CREATE TABLE a ()'\n");
    let said = host.fails(1, &["up", wrong.to_str().unwrap(), "--diff"]);
    assert!(said.contains("`primary`: wrok_mem=9MB: unrecognized configuration parameter"), "{said}");
    // What has run is not what the file says now, and nobody knows what to do about that.
    let edited = lab("[[init]]\nsql = 'CREATE TABLE a (i int)'\n");
    let output = host.try_pgbox(&["up", edited.to_str().unwrap()]);
    assert!(text(&output.stderr).contains("has changed since it ran, and is not run again"), "{output:?}");
    assert!(output.status.success() && text(&output.stdout).contains("nothing to do"), "{output:?}");
    // Nor where only a server that is started for it can tell.
    host.pgbox(&["down"]);
    let output = host.try_pgbox(&["up", edited.to_str().unwrap()]);
    assert!(text(&output.stderr).contains("has changed since it ran, and is not run again"), "{output:?}");
    assert!(output.status.success() && !text(&output.stdout).contains("run the SQL"), "{output:?}");
    // Whether there is an owner only the data know: that is said before, and what is wrong when they can be asked.
    host.pgbox(&["down"]);
    let owned = lab("[databases.shop]\nowner = 'shpo'\n");
    let said = text(&host.try_pgbox(&["up", owned.to_str().unwrap(), "--diff"]).stderr);
    assert!(
        said.contains("of user shpo, and the file has no such user: whether there is one is known only when"),
        "{said}"
    );
    let said = host.fails(1, &["up", owned.to_str().unwrap()]);
    assert!(said.contains("add [users.shpo]") && said.contains("the nodes are as they are wanted"), "{said}");
}

#[test]
fn sql_for_a_database_that_nobody_makes_is_found_before_anything_is_done() {
    let Some(host) = Host::new() else { return };
    let lab = |database: &str, more: &str| {
        let text = format!(
            "[defaults]\nimage = 'postgres:15'\n[nodes.primary]\n{more}\n[databases.shop]\n\
             [[init]]\ndatabase = '{database}'\nsql = 'CREATE TABLE {database} ()'\n"
        );
        write(&host, "lab.toml", &text)
    };
    let why = "is to run in database shpo, and there is no such database: add [databases.shpo]";
    for how in [&["--diff"][..], &[]] {
        let said = host.fails(1, &[&["up", lab("shpo", "").to_str().unwrap()], how].concat());
        assert!(said.contains(why), "{said}");
    }
    host.is_forgotten();
    // Those that a first start makes are there.
    up(&host, &lab("first", "env = { POSTGRES_DB = 'first' }"));
    for database in ["shop", "postgres", "template1"] {
        up(&host, &lab(database, "env = { POSTGRES_DB = 'first' }"));
    }
    assert!(host.fails(1, &["up", lab("shpo", "").to_str().unwrap()]).contains(why));
    // Of data that no server runs on nobody knows.
    host.pgbox(&["down"]);
    let said = text(&host.try_pgbox(&["up", lab("shpo", "").to_str().unwrap(), "--diff"]).stderr);
    assert!(
        said.contains("the file has no such database: whether there is one is known only when"),
        "{said}"
    );
}

#[test]
fn limits_that_can_not_be_and_whom_a_node_follows_are_said_before_anything_is_done() {
    let Some(host) = Host::new() else { return };
    let lab = |primary: &str, of: &str| {
        let text = format!(
            "[defaults]\nimage = 'postgres:15'\n[nodes.primary]\n{primary}\n[nodes.r1]\nof = 'primary'\n\
             [nodes.r2]\nof = '{of}'\n"
        );
        write(&host, "lab.toml", &text)
    };
    let wrong = |limits: &str, (code, why): (i32, &str)| {
        let file = lab(limits, "primary");
        for how in [&["--diff"][..], &[]] {
            let said = host.fails(code, &[&["up", file.to_str().unwrap()], how].concat());
            assert!(said.contains(why), "{said}");
        }
    };
    // What no host can do is wrong usage.
    let limits = [
        (
            "memory = '1m'",
            (
                2,
                "nodes.primary: a memory limit of 1M is too small for Postgres to start; give at least --memory",
            ),
        ),
        ("cpus = 1000", (1, "limits of `primary`: 1000 CPUs can't be given: this machine has")),
        ("pids = 2", (2, "nodes.primary: a limit of 2 processes is too small")),
    ];
    for (limits, why) in limits {
        wrong(limits, why);
        host.is_forgotten();
    }
    up(&host, &lab("memory = '512m'", "primary"));
    let before = ["primary", "r1", "r2"].map(|node| host.init_pid(node));
    limits.iter().for_each(|(limits, why)| wrong(limits, *why));
    for how in [&["--diff"][..], &[]] {
        let file = lab("memory = '512m'", "r1");
        let output = host.try_pgbox(&[&["up", file.to_str().unwrap()], how].concat());
        let said = text(&output.stderr);
        assert!(said.contains("`r2` follows `primary`, and not `r1` as the file says"), "{said}");
        assert!(output.status.success() && text(&output.stdout).contains("nothing to do"), "{output:?}");
    }
    assert_eq!(["primary", "r1", "r2"].map(|node| host.init_pid(node)), before);
    host.pgbox(&["rm", "-f", "-v", "r2"]);
    assert!(up(&host, &lab("memory = '512m'", "r1")).contains("r2 streams from r1"));
}

#[test]
fn a_file_describes_a_lab_with_what_is_in_it() {
    let Some(host) = Host::new() else { return };
    fs::write(host.scratch("files").join("secret"), "geheim\n").unwrap();
    fs::write(host.scratch("files").join("seed.sql"), "CREATE TABLE item (id int); -- the end").unwrap();
    let file = write(
        &host,
        "lab.toml",
        "sync = 'any 1 (r1)'\npublish-rw = '127.0.0.1:5440'\n\
         [defaults]\nimage = 'postgres:15'\n\
         [nodes.primary]\npublish = ['127.0.0.1:5433:5432']\nsettings = { work_mem = '9MB', log_statement = 'all' }\n\
         [nodes.r1]\nof = 'primary'\n[nodes.late]\nof = 'r1'\ndelay = '2s'\n\
         [users.app]\n[users.given]\npassword-file = 'secret'\n\
         [databases.shop]\nowner = 'app'\n\
         [[init]]\ndatabase = 'shop'\nfile = 'seed.sql'\n[[init]]\nsql = 'CREATE SCHEMA extra'\n",
    );
    up(&host, &file);
    assert!(up(&host, &file).contains("nothing to do"));
    assert_eq!(host.sql("primary", &["--published"], "SHOW work_mem"), "9MB");
    assert_eq!(host.sql("r1", &[], "SHOW work_mem"), "9MB", "a standby is as its primary");
    let published = host.pgbox(&["uri", "--rw", "--published"]);
    assert!(published.contains("5440"), "{published}");
    assert_eq!(run("psql", &["-XAtqc", "SELECT pg_is_in_recovery()", published.trim()]), "f");
    assert_eq!(host.sql("late", &[], "SHOW recovery_min_apply_delay"), "2s");
    assert_eq!(host.sql("primary", &[], "SHOW synchronous_standby_names"), "ANY 1 (\"r1\")");
    assert_eq!(host.sql("r1", &[], STREAMS), "late streaming");
    // As a client of the database, with the password that pgbox has made up, and with the given one.
    let made = host.root.join("volumes/default/.users/app");
    assert_eq!(run("stat", &["-c", "%a", &made.display().to_string()]), "600");
    for (user, password) in [("app", fs::read_to_string(&made).unwrap().as_str()), ("given", "geheim")] {
        let address = host.json(&["uri", "--json", "primary"])["host"].as_str().unwrap().to_owned();
        let asked = std::process::Command::new("psql")
            .args(["-XAtc", "SELECT count(*) FROM pg_tables WHERE tablename = 'item'"])
            .arg(format!("host={address} user={user} dbname=shop"))
            .env("PGPASSWORD", password)
            .output()
            .unwrap();
        assert_eq!(text(&asked.stdout).trim(), "1", "{user}: {}", text(&asked.stderr));
    }
    // Nowhere else is either of them, though the server writes down every statement.
    let passfile = host.root.join("labs/default/pgpass");
    let password = fs::read_to_string(&made).unwrap();
    let root = host.root.display().to_string();
    let found = |secret: &str| {
        let args = ["-rlF", "--exclude-dir=images", "--exclude-dir=layers", "-e", secret, &root];
        let output = std::process::Command::new("grep").args(args).output().expect("grep");
        let mut files: Vec<PathBuf> = text(&output.stdout).lines().map(PathBuf::from).collect();
        files.sort();
        files
    };
    assert_eq!(found(&password), [passfile.clone(), made.clone()]);
    assert_eq!(found("geheim"), [passfile, made.with_file_name("given")]);
    let owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'shop'";
    assert_eq!(host.sql("primary", &[], owner), "app");
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM pg_namespace WHERE nspname = 'extra'"), "1");
    // What has run is known to the data themselves: they go through `down`, and so does the password.
    let password = fs::read_to_string(&made).unwrap();
    host.pgbox(&["down"]);
    assert_eq!(fs::read_to_string(&made).unwrap(), password);
    let said = up(&host, &file);
    assert!(!said.contains("seed.sql") && !said.contains("user app"), "{said}");
}

#[test]
fn sql_that_fails_leaves_nothing_and_runs_again_when_it_is_mended() {
    let Some(host) = Host::new() else { return };
    let lab = |sql: &str| format!("[nodes.primary]\nimage = 'postgres:15'\n[[init]]\nsql = '''{sql}'''\n");
    let file = write(&host, "lab.toml", &lab("CREATE TABLE a (); SELECT nonsense"));
    let said = host.fails(1, &["up", file.to_str().unwrap()]);
    assert!(said.contains("the SQL of") && said.contains("nonsense"), "{said}");
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM pg_tables WHERE tablename = 'a'"), "0");
    // Nothing of it is there afterwards, what stands before its own end of the transaction neither.
    let other = |sql: &str| {
        format!("CREATE TABLE a (i int); INSERT INTO a VALUES (1); {sql}; INSERT INTO a VALUES (2)")
    };
    for (sql, why) in [
        (&*other("BEGIN"), "begins or ends a transaction"),
        (&other("COMMIT"), "leave out BEGIN, COMMIT"),
        (&other("ROLLBACK"), "begins or ends a transaction"),
        (&other("COPY a TO STDOUT"), "COPY FROM STDIN or TO STDOUT"),
        (&other("COPY a FROM STDIN"), "--inserts"),
        ("CREATE TABLE a (i int);\nCOPY a FROM stdin;\n1\n\\.\n", "syntax error at or near \"1\""),
        ("CREATE TABLE a (i int);\nCOPY a FROM stdin;\n1\n\\.\n", "`pgbox psql`"),
        ("CREATE TABLE a (); SET ROLE pg_monitor", "it ends as the user `pg_monitor`"),
        ("CREATE TABLE a (); SET SESSION AUTHORIZATION pg_monitor", "RESET SESSION AUTHORIZATION"),
        ("VACUUM", "VACUUM cannot run inside a transaction block"),
        ("VACUUM", "is for `pgbox psql`"),
    ] {
        let file = write(&host, "lab.toml", &lab(sql));
        let said = host.fails(1, &["up", file.to_str().unwrap()]);
        assert!(said.contains(why) && said.contains("the SQL of"), "{sql}: {said}");
        assert_eq!(
            host.sql("primary", &[], "SELECT count(*) FROM pg_tables WHERE tablename = 'a'"),
            "0",
            "{sql}"
        );
    }
    let mended = r"SET ROLE pg_monitor; RESET ROLE; CREATE TABLE a AS SELECT $q$it's \n$q$::text AS s;
        CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT s FROM a); END $$;
        SELECT f() AS s INTO b -- the end";
    let file = write(&host, "lab.toml", &lab(mended));
    up(&host, &file);
    assert!(up(&host, &file).contains("nothing to do"));
    assert_eq!(host.sql("primary", &[], "SELECT s FROM b"), r"it's \n");
}

#[test]
fn users_and_databases_do_not_wait_for_a_standby_that_is_frozen() {
    let Some(host) = Host::new() else { return };
    let lab = "sync = 'any 1 (r1)'\n[nodes.primary]\nimage = 'postgres:15'\n[nodes.r1]\nof = 'primary'\n";
    let file = write(&host, "lab.toml", lab);
    up(&host, &file);
    host.pgbox(&["freeze", "r1"]);
    let file = write(&host, "lab.toml", &format!("{lab}[users.app]\n[databases.shop]\nowner = 'app'\n"));
    let said = up(&host, &file);
    assert!(said.contains("user app") && said.contains("database shop"), "{said}");
    host.pgbox(&["thaw", "r1"]);
    let owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'shop'";
    until("app", || text(&host.try_pgbox(&["psql", "r1", "-Atc", owner]).stdout));
}

#[test]
fn an_edited_file_costs_no_more_than_it_must() {
    let Some(host) = Host::new() else { return };
    let lab = |primary: &str, r1: &str| {
        let text = format!(
            "[defaults]\nimage = 'postgres:15'\n[nodes.primary]\n{primary}\n[nodes.r1]\nof = 'primary'\n{r1}\n"
        );
        write(&host, "lab.toml", &text)
    };
    up(&host, &lab("publish = ['5433:5432']", ""));
    let pids = ["primary", "r1"].map(|node| host.init_pid(node));
    let started = host.sql("primary", &[], "SELECT pg_postmaster_start_time()");

    let file =
        lab("publish = ['5434:5432']\nmemory = '1g'\nrestart = 'on-crash'", "memory = 'max'\ndelay = '1s'");
    let expected =
        ["r1 policy at its next start", "r1 follow reload", "primary limit live", "primary publish live"];
    let found = diff(&host, &file);
    assert!(expected.iter().all(|change| found.contains(&(*change).to_owned())), "{found:?}");
    up(&host, &file);
    assert_eq!(["primary", "r1"].map(|node| host.init_pid(node)), pids, "nothing was restarted");
    assert_eq!(host.sql("primary", &["--published"], "SELECT pg_postmaster_start_time()"), started);
    let rules = run("nft", &["list", "ruleset"]);
    assert!(rules.contains("5434") && !rules.contains("5433"), "{rules}");
    until("1s", || host.sql("r1", &[], "SHOW recovery_min_apply_delay"));
    assert_eq!(host.json(&["stats", "--json", "primary"])[0]["memory_max"].as_u64(), Some(1 << 30));
    assert!(up(&host, &file).contains("nothing to do"));

    // A container can't grow its /dev/shm; data and address stay.
    let address = |node: &str| host.json(&["uri", "--json", node])["host"].as_str().unwrap().to_owned();
    let before = ["primary", "r1"].map(address);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    let file =
        lab("publish = ['5434:5432']\nmemory = '1g'\nrestart = 'on-crash'\nshm-size = '300m'", "delay = 0");
    assert!(
        diff(&host, &file).ends_with(&["r1 remake restart".to_owned(), "primary remake restart".to_owned()])
    );
    up(&host, &file);
    assert_eq!(["primary", "r1"].map(address), before);
    until("7", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    let size = host.pgbox(&["exec", "primary", "--", "df", "-k", "--output=size", "/dev/shm"]);
    assert!(size.contains("307200"), "{size}");
    until("r1 streaming", || host.sql("primary", &[], STREAMS));
    assert!(up(&host, &file).contains("nothing to do"));
}

#[test]
fn settings_of_an_edited_file_are_reloaded_or_restart_servers_in_the_order_of_hot_standby() {
    let Some(host) = Host::new() else { return };
    let lab = |settings: &str| {
        let text = format!(
            "[defaults]\nimage = 'postgres:15'\nsettings = {{ {settings} }}\n[nodes.primary]\n[nodes.r1]\nof = 'primary'\n"
        );
        write(&host, "lab.toml", &text)
    };
    let started = |node: &str| host.sql(node, &[], "SELECT pg_postmaster_start_time()");
    up(&host, &lab("work_mem = '8MB'"));
    let before = ["primary", "r1"].map(started);
    let file = lab("work_mem = '9MB'");
    assert_eq!(diff(&host, &file), ["r1 set reload", "primary set reload"]);
    up(&host, &file);
    for node in ["primary", "r1"] {
        assert_eq!(host.sql(node, &[], "SHOW work_mem"), "9MB");
    }
    assert_eq!(["primary", "r1"].map(started), before, "no server was restarted");

    let pids = ["primary", "r1"].map(|node| host.init_pid(node));
    for (connections, order) in [("120", ["r1", "primary"]), ("80", ["primary", "r1"])] {
        let file = lab(&format!("work_mem = '9MB', max_connections = {connections}"));
        let restarts: Vec<String> =
            diff(&host, &file).into_iter().filter(|c| c.ends_with("set restart")).collect();
        assert_eq!(restarts, order.map(|node| format!("{node} set restart")));
        up(&host, &file);
        for node in ["primary", "r1"] {
            assert_eq!(host.sql(node, &[], "SHOW max_connections"), connections);
        }
        until("r1 streaming", || host.sql("primary", &[], STREAMS));
        assert!(up(&host, &file).contains("nothing to do"));
    }
    assert_eq!(["primary", "r1"].map(|node| host.init_pid(node)), pids, "servers restart in place");
    let log = host.pgbox(&["logs", "r1"]);
    assert!(!log.contains("insufficient parameter settings"), "{log}");

    // What the server does not know is refused while it runs.
    let said = host.fails(1, &["up", lab("wrok_mem = '9MB'").to_str().unwrap()]);
    assert!(said.contains("`primary`, `r1`: wrok_mem=9MB: unrecognized"), "{said}");
    assert_eq!(host.sql("primary", &[], "SHOW max_connections"), "80");
}

#[test]
fn nodes_that_the_file_forgets_go_only_when_told() {
    let Some(host) = Host::new() else { return };
    let lab = |rest: &str| {
        write(
            &host,
            "lab.toml",
            &format!("[nodes.primary]\nimage = 'postgres:15'\n[nodes.r1]\nof = 'primary'\n{rest}"),
        )
    };
    up(&host, &lab("[nodes.r2]\nof = 'primary'\n"));
    let file = lab("");
    let output = host.try_pgbox(&["up", file.to_str().unwrap()]);
    assert!(text(&output.stdout).contains("nothing to do"), "{output:?}");
    assert!(text(&output.stderr).contains("`r2` is not in the file"), "{output:?}");
    host.pgbox(&["up", file.to_str().unwrap(), "--prune"]);
    assert_eq!(host.pgbox(&["ps", "-q"]), "primary\nr1\n");
    assert!(host.pgbox(&["volume", "ls", "-q"]).contains("r2"), "its data stays");
    assert_eq!(
        host.sql("primary", &[], "SELECT string_agg(slot_name, ',') FROM pg_replication_slots"),
        "pgbox_r1"
    );
}

#[test]
fn an_interrupted_up_goes_on() {
    let Some(host) = Host::new() else { return };
    for milliseconds in [5, 60, 300, 700, 1000] {
        let mut child =
            host.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start pgbox");
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().expect("kill it");
        child.wait().expect("wait");
        host.pgbox(&["up"]);
        assert_eq!(host.sql("primary", &[], STREAMS), "replica streaming", "killed after {milliseconds} ms");
        host.pgbox(&["down", "-v"]);
        host.is_forgotten();
    }
}

#[test]
fn two_at_once_make_one_lab() {
    let Some(host) = Host::new() else { return };
    let start =
        || host.command(&["up"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start pgbox");
    let outputs = [start(), start()].map(|child| child.wait_with_output().expect("wait"));
    for output in &outputs {
        assert!(output.status.success(), "{output:?}");
    }
    let idle = outputs.iter().filter(|output| text(&output.stdout).contains("nothing to do"));
    assert_eq!(idle.count(), 1, "{outputs:?}");
}

/// Refused by `--diff` as well as by `up`, in these words.
#[track_caller]
fn refused(host: &Host, file: &Path, words: &[&str]) {
    for how in [&["--diff"][..], &[]] {
        let said = host.fails(1, &[&["up", file.to_str().unwrap()], how].concat());
        words.iter().for_each(|word| assert!(said.contains(word), "{how:?}: {word:?} is not in: {said}"));
    }
}

#[test]
fn what_this_host_does_not_have_for_a_lab_is_said_before_anything_is_made() {
    let Some(host) = Host::new() else { return };
    let lab = |name: &str, head: &str, of_nodes: &str| {
        let text = format!(
            "lab = '{name}'\n{head}\n[defaults]\nimage = 'postgres:15'\n{of_nodes}\n[nodes.primary]\n[nodes.r1]\nof = 'primary'\n"
        );
        write(&host, &format!("{name}.toml"), &text)
    };
    let nope = host.scratch("files").join("nope");
    let dir = "volumes = ['./nope:/docker-entrypoint-initdb.d:ro']";
    refused(
        &host,
        &lab("blue", "", dir),
        &["volumes of `primary`: there is no /", "files/nope, which is to be mounted"],
    );
    host.is_forgotten();
    let said = host.pgbox(&["up", lab("blue", "publish-rw = 5440", "").to_str().unwrap()]);
    assert!(said.contains("the read-write endpoint is at 127.0.0.1:5440 and every other address"), "{said}");
    let ports = ["publish-rw, publish-ro: can't publish on 0.0.0.0:5440: an endpoint of lab `blue` has it"];
    refused(&host, &lab("green", "publish-ro = 5440", ""), &ports);
    let taken = std::net::TcpListener::bind("127.0.0.1:5441").unwrap();
    refused(&host, &lab("blue", "publish-rw = 5441", ""), &["0.0.0.0:5441: another program listens there"]);
    drop(taken);
    let tiny =
        fs::read_to_string(lab("blue", "publish-rw = 5440", "")).unwrap().replace("postgres:15", "tiny");
    let before = ["primary", "r1"]
        .map(|node| host.json(&["--lab", "blue", "inspect", "--json", node])[0]["pid"].clone());
    refused(
        &host,
        &write(&host, "tiny.toml", &tiny),
        &["image of `primary`, `r1`: tiny has no Postgres in it"],
    );
    refused(&host, &lab("blue", "publish-rw = 5440", dir), &["volumes of `r1`: there is no /"]);
    let after = ["primary", "r1"]
        .map(|node| host.json(&["--lab", "blue", "inspect", "--json", node])[0]["pid"].clone());
    assert_eq!(before, after);
    assert!(!nope.exists());
    assert!(host.fails(1, &["--lab", "green", "ps"]).contains("no lab `green`"));
}

#[test]
fn a_primary_that_was_renamed_in_the_file_gets_no_empty_one_beside_it() {
    let Some(host) = Host::new() else { return };
    let lab = |primary: &str| {
        let text = format!(
            "[defaults]\nimage = 'postgres:15'\n[nodes.{primary}]\n[nodes.b]\nof = '{primary}'\n\
             [[init]]\nsql = 'CREATE TABLE {primary} ()'\n"
        );
        write(&host, "lab.toml", &text)
    };
    up(&host, &lab("a"));
    refused(
        &host,
        &lab("z"),
        &["`z` would be a new primary", "the lab's primary is `a`", "[nodes.a]", "`pgbox rm -f a`"],
    );
    assert_eq!(host.pgbox(&["ps", "-q"]), "a\nb\n");
    assert_eq!(host.sql("a", &[], "SELECT count(*) FROM pg_tables WHERE tablename = 'z'"), "0");
    assert!(up(&host, &lab("a")).contains("nothing to do"));
    // Nor when both are gone: what `b` has left is of another cluster than an empty one.
    host.pgbox(&["down"]);
    refused(&host, &lab("z"), &["an empty one would be another cluster"]);
    assert_eq!(host.pgbox(&["ps", "-q"]), "");
}

/// Its end is waited for, as `pgbox start` does.
#[test]
fn beside_a_stop_that_goes_on_without_its_command_up_brings_the_lab_back() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    let (init, uri) = (host.init_pid("primary"), host.pgbox(&["uri", "primary"]));
    let mut client = std::process::Command::new("psql");
    let client = client.args(["-Xqc", "SELECT pg_sleep(100)", uri.trim()]);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let children = |pid: &str| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let backend = || {
        let servers = children(&init.to_string());
        let all: String = servers.split_whitespace().map(children).collect();
        let busy = |pid: &&str| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| text(&line).contains("SELECT"))
        };
        all.split_whitespace().find(busy).map(str::to_owned)
    };
    until("true", || backend().is_some().to_string());
    // The server can't end before that session has.
    let backend = backend().unwrap();
    run("kill", &["-STOP", &backend]);
    run("kill", &["-TERM", &init.to_string()]);
    until("stopping", || host.json(&["ps", "--json"])[0]["state"].as_str().unwrap().to_owned());
    let up = host.command(&["up"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    run("kill", &["-CONT", &backend]);
    let up = up.wait_with_output().unwrap();
    assert!(up.status.success(), "{}", text(&up.stderr));
    assert_ne!(host.init_pid("primary"), init);
    assert_eq!(host.sql("primary", &[], "SELECT 1"), "1");
    client.wait().unwrap();
}

#[test]
fn what_is_wrong_in_a_file_is_said_before_anything_is_made() {
    let Some(host) = Host::new() else { return };
    let file = write(&host, "lab.toml", "[nodes.primary]\nmemroy = '1g'\n");
    // What is not on this host is no wrong use of it.
    let missing = write(&host, "missing.toml", "[nodes.primary]\n[[init]]\nfile = 'nosuch.sql'\n");
    let said = host.fails(1, &["up", missing.to_str().unwrap()]);
    assert!(said.contains("missing.toml:3: init.file: read /") && said.contains("No such file"), "{said}");
    let said = host.fails(2, &["up", file.to_str().unwrap()]);
    assert!(said.contains("lab.toml:2: unknown field `memroy`"), "{said}");
    let file = write(&host, "lab.toml", "lab = 'shop'\n[nodes.primary]\n");
    let said = host.fails(2, &["--lab", "other", "up", file.to_str().unwrap()]);
    assert!(said.contains("is about lab `shop`, and not `other`"), "{said}");
    host.is_forgotten();
}

/// Whether a TCP connection to Postgres can be made from inside a node.
fn reaches(host: &Host, lab: &str, address: &str) -> bool {
    let connect = format!("timeout 2 bash -c '</dev/tcp/{address}/5432'");
    host.try_pgbox(&["--lab", lab, "exec", "primary", "--", "bash", "-c", &connect]).status.success()
}

#[test]
fn labs_stand_beside_each_other_and_none_reaches_the_other() {
    let Some(host) = Host::new() else { return };
    let lab = |name: &str| {
        write(
            &host,
            name,
            &format!("lab = '{name}'\n[nodes.primary]\nimage = 'postgres:15'\n[nodes.r1]\nof = 'primary'\n"),
        )
    };
    for name in ["blue", "green"] {
        up(&host, &lab(name));
    }
    let address = |lab: &str, node: &str| {
        host.json(&["--lab", lab, "uri", "--json", node])["host"].as_str().unwrap().to_owned()
    };
    let (blue, green) = (address("blue", "primary"), address("green", "primary"));
    assert_ne!(blue.rsplit_once('.').unwrap().0, green.rsplit_once('.').unwrap().0, "each has its own range");
    let bridges = run("ip", &["-o", "link", "show", "type", "bridge"]);
    assert!(bridges.lines().count() == 2, "{bridges}");
    // The same question is answered within a lab, so it is the right one.
    assert!(reaches(&host, "blue", &address("blue", "r1")) && reaches(&host, "green", &green));
    assert!(!reaches(&host, "blue", &green) && !reaches(&host, "green", &blue));
    // Nor by the way of the other lab's stable addresses.
    let stable = |lab: &str, which: &str| {
        host.json(&["--lab", lab, "uri", which, "--json"])["host"].as_str().unwrap().to_owned()
    };
    assert!(reaches(&host, "blue", &stable("blue", "--rw")));
    for which in ["--rw", "--ro"] {
        assert!(!reaches(&host, "blue", &stable("green", which)), "{which}");
    }
    for lab in ["blue", "green"] {
        let uri = host.pgbox(&["--lab", lab, "uri", "primary"]);
        assert_eq!(run("psql", &["-XAtqc", "SELECT 1", uri.trim()]), "1", "the host reaches {lab}");
    }
    host.pgbox(&["--lab", "blue", "down", "-v"]);
    assert_eq!(host.pgbox(&["--lab", "green", "ps", "-q"]), "primary\nr1\n");
}

/// Its settings are tried without an address of the lab.
#[test]
fn a_lab_without_a_free_address_takes_other_settings() {
    let Some(host) = Host::new() else { return };
    let lab = |more: &str| {
        let nodes = "[nodes.primary]\n[nodes.r1]\nof = 'primary'\n[nodes.r2]\nof = 'primary'\n";
        write(
            &host,
            "lab.toml",
            &format!("subnet = '10.99.0.0/29'\n[defaults]\nimage = 'postgres:15'\n{more}{nodes}"),
        )
    };
    up(&host, &lab(""));
    assert!(up(&host, &lab("settings = { work_mem = '5MB' }\n")).contains("r2: work_mem=5MB"));
    assert_eq!(host.sql("r2", &[], "SHOW work_mem"), "5MB");
}

#[test]
fn ctrl_c_ends_an_up_that_has_tried_settings() {
    let Some(host) = Host::new() else { return };
    up(&host, &write(&host, "lab.toml", "[nodes.primary]\nimage = \"postgres:15\"\n"));
    let slow = "[nodes.primary]\nimage = \"postgres:15\"\nsettings = { work_mem = \"8MB\" }\n\
                [[init]]\nsql = \"SELECT pg_sleep(600)\"\n";
    let path = write(&host, "slow.toml", slow);
    let mut child = host.command(&["up", path.to_str().unwrap()]).stdout(Stdio::null()).spawn().unwrap();
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    until("1", || host.sql("primary", &[], sleeps));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    until("ended", || if child.try_wait().unwrap().is_some() { "ended".to_owned() } else { String::new() });
}

#[test]
fn data_that_no_node_has_are_told_of_where_no_file_says_what_is_meant() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "db", "postgres:15"]);
    host.pgbox(&["replica", "r9", "--of", "db"]);
    host.pgbox(&["rm", "-f", "r9"]);
    let said = text(&host.try_pgbox(&["up", "--diff"]).stderr);
    assert!(said.contains("volume `r9`: `pgbox replica r9 --of db` goes on"), "{said}");
    host.pgbox(&["replica", "r9", "--of", "db"]);
    host.pgbox(&["rm", "-f", "-v", "r9"]);
    host.pgbox(&["down"]);
    let said = host.try_pgbox(&["up", "--diff"]);
    assert!(text(&said.stderr).contains("no node has the volume `db`: `pgbox run db` goes on"), "{said:?}");
    host.pgbox(&["run", "db", "postgres:15"]);
    assert!(!text(&host.try_pgbox(&["up", "--diff"]).stderr).contains("volume"));
}
