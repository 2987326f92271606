//! Standbys: made by a base backup, streaming, and gone without a trace.

use std::time::{Duration, Instant};

use crate::harness::{Host, run, text};

/// Asks until the answer is this one; replication is fast, but not at once.
#[track_caller]
pub fn until(what: &str, mut ask: impl FnMut() -> String) {
    let begun = Instant::now();
    loop {
        let said = ask();
        if said.trim() == what {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{said:?} and not {what:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_replica_has_the_rows_and_refuses_to_write() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    let said = host.pgbox(&["replica", "r1", "--of", "primary"]);
    assert!(said.contains("r1 streams from primary"), "{said}");
    assert_eq!(host.sql("r1", &[], "SELECT count(*) FROM t").trim(), "1000");
    host.sql("primary", &[], "INSERT INTO t SELECT generate_series(1001, 300000)");
    until("300000", || host.sql("r1", &[], "SELECT count(*) FROM t"));
    let refused = host.try_pgbox(&["psql", "r1", "-c", "INSERT INTO t VALUES (0)"]);
    assert!(text(&refused.stderr).contains("read-only transaction"), "{}", text(&refused.stderr));
    let stream = "SELECT application_name, state, client_addr IS NOT NULL FROM pg_stat_replication";
    assert_eq!(host.sql("primary", &[], stream).trim(), "r1|streaming|t");
    let slot = "SELECT slot_name, active FROM pg_replication_slots";
    assert_eq!(host.sql("primary", &[], slot).trim(), "pgbox_r1|t");

    host.pgbox(&["rm", "-f", "-v", "r1"]);
    assert_eq!(host.sql("primary", &[], slot).trim(), "");
    host.pgbox(&["rm", "-f", "-v", "primary"]);
    host.is_clean();
}

#[test]
fn the_replication_password_is_nowhere_but_in_its_files() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-c", "log_statement=all"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let nodes = host.root.join("labs/default/nodes");
    let password = std::fs::read_to_string(nodes.join("r1/replicator")).unwrap();
    assert_eq!(password.len(), 24);
    // The password works, so what follows looks for the right thing.
    let uri = format!("host={} user=replicator dbname=postgres", address(&host, "primary"));
    let asked = std::process::Command::new("psql")
        .args(["-XAtc", "SELECT 1", &uri])
        .env("PGPASSWORD", &password)
        .output()
        .unwrap();
    assert_eq!(text(&asked.stdout).trim(), "1", "{}", text(&asked.stderr));
    let below = [host.root.join("labs"), host.root.join("volumes")].map(|dir| dir.display().to_string());
    let found = run("grep", &["-rlF", &password, &below[0], &below[1]]);
    let mut found: Vec<&str> = found.lines().map(|path| path.strip_prefix(&below[0]).unwrap()).collect();
    found.sort_unstable();
    let expected = [
        "/default/nodes/primary/replicator",
        "/default/nodes/r1/replicator",
        "/default/nodes/r1/upper/run/pgbox/pgpass",
    ];
    assert_eq!(found, expected);
    let mode = run("stat", &["-c", "%a", &nodes.join("r1/upper/run/pgbox/pgpass").display().to_string()]);
    assert_eq!(mode.trim(), "600");
    // Root on the host sees the arguments and the environment of every process, those of the nodes too.
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let content = std::fs::read(process.path().join(file)).unwrap_or_default();
            assert!(!text(&content).contains(&password), "{:?} {file}", process.path());
        }
    }
}

#[test]
fn a_replica_of_a_replica_streams_through_it() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "r1", "--delay", "1s"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || host.sql("r1", &[], "SELECT i FROM t"));
    until("7", || text(&host.try_pgbox(&["psql", "r2", "-Atc", "SELECT i FROM t"]).stdout));
    assert_eq!(host.sql("r2", &[], "SHOW recovery_min_apply_delay").trim(), "1s");
    let stream = "SELECT application_name, state FROM pg_stat_replication";
    assert_eq!(host.sql("primary", &[], stream).trim(), "r1|streaming");
    assert_eq!(host.sql("r1", &[], stream).trim(), "r2|streaming");
}

#[test]
fn a_replica_survives_stops_in_any_order() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let before = address(&host, "r1");
    host.pgbox(&["stop", "primary", "r1"]);
    // Alone it answers, and says that it does not stream.
    let output = host.try_pgbox(&["start", "r1"]);
    assert!(
        output.status.success() && text(&output.stderr).contains("`primary`, which it follows, does not run"),
        "{output:?}"
    );
    host.pgbox(&["start", "primary"]);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    assert_eq!(address(&host, "r1"), before);
}

#[test]
fn what_can_not_be_followed_is_refused_in_one_line() {
    let Some(host) = Host::new() else { return };
    assert!(host.fails(1, &["replica", "r1", "--of", "nobody"]).contains("no node `nobody`"));
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["stop", "primary"]);
    let said = host.fails(1, &["replica", "r1", "--of", "primary"]);
    assert!(said.contains("`primary`") && said.contains("pgbox start primary"), "{said}");
    assert_eq!(host.pgbox(&["ps", "-q"]), "primary\n");
}

fn address(host: &Host, node: &str) -> String {
    host.json(&["uri", "--json", node])["host"].as_str().unwrap().to_owned()
}

#[test]
fn a_volume_that_was_left_serves_who_can_go_on_with_it_and_nobody_else() {
    let Some(host) = Host::new() else { return };
    let said = |args: &[&str]| {
        let output = host.try_pgbox(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    assert_eq!(said(&["run", "a", "postgres:15"]), "");
    assert_eq!(said(&["replica", "z", "--of", "a"]), "");
    host.pgbox(&["rm", "-f", "z"]);
    let goes_on = "note: `z` goes on with the data of the volume `z` (PostgreSQL 15, last written ";
    let again = said(&["replica", "z", "--of", "a"]);
    assert!(again.starts_with(goes_on) && again.contains("`pgbox rm -f -v z` removes both"), "{again}");
    host.pgbox(&["rm", "-f", "z"]);
    // Refused before anything is made, and with the way out.
    let refused = |args: &[&str], why: &str| {
        let begun = Instant::now();
        let said = host.fails(1, args);
        assert!(said.contains(why), "{said}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(!host.root.join("labs/default/nodes/z").exists());
        said
    };
    let way_out = refused(&["run", "z", "postgres:15"], "a standby's, and `z` would be a primary");
    assert!(way_out.contains("hint:  `pgbox replica z --of a` goes on with them"), "{way_out}");
    host.pgbox(&["run", "b", "postgres:15"]);
    let way_out = refused(&["replica", "z", "--of", "b"], "of another cluster than `b`");
    assert!(way_out.contains("`pgbox volume rm z` removes them"), "{way_out}");
    // A primary's, which comes back under its name as a standby.
    host.pgbox(&["replica", "z", "--of", "a"]);
    host.pgbox(&["switchover", "z"]);
    host.pgbox(&["rm", "-f", "z"]);
    host.pgbox(&["promote", "a"]);
    let way_out = refused(&["run", "z", "postgres:15"], "`a` was promoted in its place");
    assert!(way_out.contains("`pgbox replica z --of PRIMARY`"), "{way_out}");
    let way_out = refused(&["replica", "z", "--of", "a"], "do not follow `a` as they are");
    assert!(way_out.contains("`pgbox replica z --of a --force` does that"), "{way_out}");
    let again = said(&["replica", "z", "--of", "a", "--force"]);
    assert!(again.contains("`z` has nothing that `a` has not, and follows as it is"), "{again}");
    // All that is left of a cluster nobody is told to remove.
    host.pgbox(&["rm", "-f", "z"]);
    host.pgbox(&["rm", "-f", "-v", "a"]);
    let way_out = refused(&["replica", "z", "--of", "b"], "of another cluster than `b`");
    assert!(way_out.contains("`pgbox replica NAME --of b`") && !way_out.contains("volume rm"), "{way_out}");
}

/// They are ahead of the new primary, which was promoted without them.
#[test]
fn kept_data_that_have_gone_another_way_are_refused_and_brought_back_where_that_is_asked_for() {
    let Some(host) = Host::new() else { return };
    crate::failover::trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (7)");
    until("1", || text(&host.try_pgbox(&["psql", "r2", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["rm", "-f", "r2"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (8)");
    let said = host.fails(1, &["replica", "r2", "--of", "r1"]);
    let why = "the data that `r2` would go on with do not follow `r1` as they are\n  hint:  `r2` has gone its own way since ";
    assert!(
        said.contains(why)
            && said.contains(
                "given up: 1 transaction with 1 row, acknowledged or not; `pgbox replica r2 --of r1 --force`"
            ),
        "{said}"
    );
    assert!(!host.root.join("labs/default/nodes/r2").exists());
    let output = host.try_pgbox(&["replica", "r2", "--of", "r1", "--force"]);
    assert!(
        output.status.success() && text(&output.stderr).contains("given up: 1 transaction"),
        "{output:?}"
    );
    until("r2 streaming", || host.sql("r1", &[], crate::failover::STREAMS));
    until("8", || host.sql("r2", &[], "SELECT string_agg(i::text, ' ') FROM t"));
    host.pgbox(&["rm", "-f", "r2"]);
    // As it is, where it has nothing of its own.
    host.sql("r1", &[], "INSERT INTO t VALUES (9)");
    assert!(host.pgbox(&["replica", "r2", "--of", "r1"]).starts_with("r2 streams from r1"));
}

#[test]
fn a_standby_that_applies_late_is_up_before_it_has_applied_anything() {
    let Some(host) = Host::new() else { return };
    let path = host.scratch("up").join("lab.toml");
    let file = |connections: &str| {
        let text = format!(
            "[defaults]\nimage = 'postgres:15'\nsettings = {{ max_connections = {connections} }}\n[nodes.primary]\n\
             [nodes.late]\nof = 'primary'\ndelay = '1h'\n[nodes.r]\nof = 'primary'\n[nodes.r-late]\nof = 'r'\ndelay = '1h'\n"
        );
        std::fs::write(&path, text).expect("write");
        path.to_str().expect("UTF-8").to_owned()
    };
    host.pgbox(&["up", &file("130")]);
    // Its base backup brings WAL along that is no hour old, and it streams all the same; what comes then is applied late.
    host.sql("primary", &[], "CREATE TABLE t ()");
    for (node, of) in [("late", "primary"), ("r-late", "r")] {
        assert_eq!(host.sql(of, &[], &state_of(node)), "streaming");
        assert_eq!(host.sql(node, &[], "SHOW recovery_min_apply_delay"), "1h");
        host.pgbox(&["wait", "r", "--for", "caught-up"]);
        assert_eq!(host.sql(node, &[], "SELECT to_regclass('t')"), "");
    }
    // After a start what it has is to be applied late, and PostgreSQL receives nothing before that.
    host.pgbox(&["down"]);
    let output = host.try_pgbox(&["up", &file("110")]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for node in ["late", "r-late"] {
        assert!(said.contains(&format!("`{node}` answers queries, but does not stream yet")), "{said}");
        assert!(
            said.contains(&format!("`{node}` goes by max_connections=130, as its primary did")),
            "{said}"
        );
        assert_eq!(host.sql(node, &[], "SELECT to_regclass('t')"), "");
    }
    // Nobody waits for it either where it runs and is to have less.
    assert!(host.pgbox(&["up", &file("105")]).contains("is as it is wanted"));
    let said = host.pgbox(&["set", "--all", "max_connections=101"]);
    for node in ["late", "r-late"] {
        assert!(said.contains(&format!("{node}: max_connections=101, from its next start on")), "{said}");
        let said = text(&host.try_pgbox(&["restart", node]).stderr);
        assert!(said.contains("because it applies late"), "{said}");
        assert_eq!(host.sql(node, &[], "SHOW max_connections"), "130");
    }
}

fn state_of(node: &str) -> String {
    format!("SELECT state FROM pg_stat_replication WHERE application_name = '{node}'")
}

/// What is copied with the data, and what a server is started with, wins over pgbox' file: nothing in there is to be raised.
#[test]
fn a_standby_that_has_enough_by_alter_system_or_an_argument_is_not_told_more() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.sql("primary", &[], "ALTER SYSTEM SET max_connections = 200");
    host.pgbox(&["restart", "primary"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.pgbox(&["stop", "r1"]);
    let output = host.try_pgbox(&["start", "r1"]);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && !said.contains("max_connections"), "{said}");
    assert_eq!(host.sql("r1", &[], "SHOW max_connections"), "200");
    let conf = host.pgbox(&["exec", "r1", "--", "cat", "/var/lib/postgresql/data/pgbox.conf"]);
    assert!(!conf.contains("max_connections"), "{conf}");
}
