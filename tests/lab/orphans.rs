//! Nodes that lead to nobody: standbys of a node that was removed, and old primaries whose successor was.

use std::{
    fs,
    io::ErrorKind,
    net::TcpListener,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    failover::{STREAMS, pair, trio},
    harness::{Host, run, text},
    replica::until,
};

fn note(host: &Host, args: &[&str]) -> String {
    let output = host.try_pgbox(args);
    assert!(output.status.success(), "{output:?}");
    text(&output.stderr)
}

/// A running server whose control file can't be read for a moment.
struct Unreadable(PathBuf);

impl Unreadable {
    fn new(host: &Host, node: &str) -> Self {
        // None is due then: it would not get on without the file.
        host.sql(node, &[], "CHECKPOINT");
        let file = host.root.join(format!("volumes/default/{node}/data/global/pg_control"));
        fs::rename(&file, file.with_extension("aside")).unwrap();
        Self(file)
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        drop(fs::rename(self.0.with_extension("aside"), &self.0));
    }
}

/// `r1` took the place of `primary`, and is gone. `r2` followed it.
fn without_successor(host: &Host) {
    trio(host);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    host.sql("r1", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r2", "-Atc", "SELECT i FROM t"]).stdout));
    host.pgbox(&["rm", "-f", "-v", "r1"]);
}

/// While no bridge leads to it, the address of a lab's server is a stranger's.
#[test]
fn a_standby_of_a_stopped_lab_is_removed_without_a_word_to_others() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.pgbox(&["stop", "--all"]);
    run("ip", &["route", "add", "local", "10.213.0.0/16", "dev", "lo"]);
    let stranger = TcpListener::bind("0.0.0.0:5432").unwrap();
    stranger.set_nonblocking(true).unwrap();
    host.pgbox(&["rm", "-v", "r1"]);
    assert_eq!(stranger.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    run("ip", &["route", "del", "local", "10.213.0.0/16", "dev", "lo"]);
    host.pgbox(&["start", "primary"]);
    assert_eq!(host.sql("primary", &[], "SELECT count(*) FROM pg_replication_slots"), "0");
}

#[test]
fn an_old_primary_goes_to_the_one_that_is_there_also_if_its_own_successor_is_gone() {
    let Some(host) = Host::new() else { return };
    without_successor(&host);
    assert!(
        note(&host, &["status"])
            .contains("`r2` follows `r1`, which is gone; to make it the primary: `pgbox promote r2`")
    );
    assert!(note(&host, &["status"]).contains("in the place of `primary`, is gone; first promote `r2`"));
    for command in ["rejoin", "promote"] {
        let said = host.fails(1, &[command, "primary"]);
        assert!(said.contains("first promote `r2`, which may have more: `pgbox promote r2`"), "{said}");
    }
    host.pgbox(&["promote", "r2"]);
    for command in ["start", "promote", "failover", "switchover", "thaw", "psql"] {
        let said = host.fails(1, &[command, "primary"]);
        assert!(
            said.contains("`r1` was promoted in its place") && said.contains("pgbox rejoin primary"),
            "{said}"
        );
    }
    for command in [&["status"][..], &["up", "--diff"]] {
        let output = host.try_pgbox(command);
        let rejoin = "is gone; to make it follow the primary, `r2`: `pgbox rejoin primary`";
        assert!(text(&output.stderr).contains(rejoin), "{output:?}");
    }
    // What is left of it is no cluster that one could mean.
    host.pgbox(&["drive", "start"]);
    host.pgbox(&["drive", "stop"]);
    host.pgbox(&["rejoin", "primary"]);
    until("primary streaming", || host.sql("r2", &[], STREAMS));
    assert_eq!(host.sql("primary", &[], "SELECT i FROM t"), "7");
}

#[test]
fn a_standby_of_a_node_that_is_gone_is_led_to_the_primary_that_there_is() {
    let Some(host) = Host::new() else { return };
    without_successor(&host);
    host.pgbox(&["promote", "primary", "--accept-loss"]);
    host.sql("primary", &[], "CREATE TABLE u AS SELECT 8 AS i");
    let rejoin = "`pgbox rejoin r2`";
    assert!(
        note(&host, &["status"]).contains(&format!("to make it follow the primary, `primary`: {rejoin}"))
    );
    assert!(text(&host.try_pgbox(&["up", "--diff"]).stderr).contains(rejoin));
    let said = host.fails(1, &["promote", "r2"]);
    assert!(
        said.contains("the primary `primary` runs: there would be two") && said.contains(rejoin),
        "{said}"
    );
    let unreadable = Unreadable::new(&host, "primary");
    for command in ["promote", "failover"] {
        let said = host.fails(1, &[command, "r2", "--accept-loss"]);
        assert!(said.contains("or nobody can tell: there would be two"), "{said}");
    }
    drop(unreadable);
    host.pgbox(&["stop", "r2"]);
    let said = note(&host, &["start", "r2"]);
    assert!(said.contains(rejoin) && !said.contains("promote"), "{said}");
    let said = note(&host, &["rejoin", "r2"]);
    assert!(said.contains("given up: at least 1 transaction"), "{said}");
    until("r2 streaming", || host.sql("primary", &[], STREAMS));
    assert_eq!(host.sql("r2", &[], "SELECT i FROM u"), "8");
    assert_eq!(note(&host, &["status"]), "");
}

/// Its data may be all that is left.
#[test]
fn an_old_primary_comes_back_as_it_was_where_nobody_has_more() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    host.pgbox(&["switchover", "r1"]);
    host.pgbox(&["crash", "r1", "--node"]);
    host.pgbox(&["failover", "primary"]);
    host.pgbox(&["rm", "-f", "primary"]);
    let said = host.fails(1, &["promote", "r1"]);
    assert!(
        said.contains("may lack") && said.contains("`pgbox run primary` brings the primary back"),
        "{said}"
    );
    host.pgbox(&["volume", "rm", "primary"]);
    assert!(host.fails(1, &["rejoin", "r1"]).contains("`pgbox promote r1` makes it the primary again"));
    assert_eq!(host.pgbox(&["promote", "r1", "--dry-run"]), "start: `r1` as the primary\n");
    host.pgbox(&["promote", "r1"]);
    host.sql("r1", &[], "INSERT INTO t VALUES (8)");
    assert_eq!(host.json(&["endpoint", "--json"])[0]["leads_to"], serde_json::json!(["r1"]));
    host.pgbox(&["replica", "r2", "--of", "r1"]);
}

/// Who took its place was replaced itself: nobody is left of the name that the old primary knows.
#[test]
fn an_old_primary_does_not_come_back_where_others_are_further_by_more_than_one_change() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.pgbox(&["replica", "r3", "--of", "primary"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    host.pgbox(&["switchover", "r2"]);
    host.sql("r2", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r3", "-Atc", "SELECT i FROM t"]).stdout));
    host.pgbox(&["rm", "-f", "-v", "r1"]);
    host.pgbox(&["rm", "-f", "-v", "r2"]);
    let first = "first promote `r3`, which may have more: `pgbox promote r3`";
    for command in ["promote", "rejoin"] {
        let said = host.fails(1, &[command, "primary"]);
        assert!(said.contains(first), "{said}");
    }
    let said = note(&host, &["status"]);
    assert!(said.contains(first) && !said.contains("promote primary"), "{said}");
    host.pgbox(&["promote", "r3"]);
    assert_eq!(host.sql("r3", &[], "SELECT i FROM t"), "7");
    // While that runs, nothing makes another one of what is left, not even if nobody can tell what its data are.
    let unreadable = Unreadable::new(&host, "r3");
    for args in [&["promote", "primary"][..], &["promote", "primary", "--accept-loss"]] {
        let said = host.fails(1, args);
        assert!(said.contains("or nobody can tell: there would be two"), "{said}");
    }
    drop(unreadable);
    host.pgbox(&["rm", "-f", "primary"]);
    let said = host.fails(1, &["run", "primary", "postgres:15"]);
    assert!(
        said.contains("two primaries") && said.contains("`pgbox replica primary --of PRIMARY`"),
        "{said}"
    );
}

/// As `data`, a volume of another name than its node's.
#[test]
fn data_that_are_given_up_by_an_old_primary_s_return_do_not_come_up_beside_it() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary", "-v", "data:/var/lib/postgresql/data"]);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1"]);
    host.sql("r1", &[], "CREATE TABLE t AS SELECT 7 AS i");
    host.pgbox(&["rm", "-f", "r1"]);
    let back = "`pgbox run data` brings the primary back that has left the volume `data`";
    assert!(note(&host, &["status"]).contains(back));
    let said = host.fails(1, &["promote", "primary"]);
    assert!(said.contains("may lack") && said.contains(back), "{said}");
    let said = note(&host, &["promote", "primary", "--accept-loss"]);
    assert!(said.contains("given up: whatever the volume `data`"), "{said}");
    let volume = "data:/var/lib/postgresql/data";
    for args in [&["run", "data", "postgres:15"][..], &["run", "r1", "postgres:15", "-v", volume]] {
        let said = host.fails(1, args);
        assert!(said.contains("`primary` was promoted in its place: two primaries"), "{said}");
    }
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 8 AS i");
}

/// Of a chain its end is promoted: whom it followed follows it, and everybody else who is left.
#[test]
fn all_that_a_removed_primary_has_left_follow_the_one_that_is_promoted() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.pgbox(&["replica", "a", "--of", "r1"]);
    host.pgbox(&["replica", "b", "--of", "a"]);
    host.pgbox(&["rm", "-f", "primary"]);
    // Nobody follows the other one of a chain that leads nowhere in vain.
    let said = note(&host, &["rm", "-f", "-v", "a"]);
    assert!(said.contains("`b` follows `r1` now"), "{said}");
    until("b streaming", || host.sql("r1", &[], STREAMS));
    let said = host.pgbox(&["promote", "b", "--dry-run"]);
    assert!(said.contains("follow: `r1` follows `b`\nfollow: `r2` follows `b`"), "{said}");
    host.pgbox(&["promote", "b"]);
    until("r1 streaming, r2 streaming", || host.sql("b", &[], STREAMS));
    // Nothing keeps WAL for nobody.
    assert_eq!(host.sql("r1", &[], "SELECT count(*) FROM pg_replication_slots"), "0");
}

/// A walreceiver that finds no line asks the name servers outside, 5 s for each that does not answer.
#[test]
fn the_name_of_a_removed_primary_is_known_all_the_time() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    let file = host.root.join("labs/default/hosts");
    let (is_over, was_missing) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let is_there =
                    fs::read_to_string(&file).unwrap().lines().any(|line| line.ends_with(" primary"));
                was_missing.fetch_or(!is_there, Ordering::Relaxed);
            }
        });
        let removed = host.try_pgbox(&["rm", "-f", "primary"]);
        is_over.store(true, Ordering::Relaxed);
        assert!(removed.status.success(), "{removed:?}");
    });
    assert!(!was_missing.into_inner());
    // The last standby that looks for it takes it along.
    host.pgbox(&["rm", "-f", "-v", "r1"]);
    run("test", &["!", "-e", file.to_str().unwrap()]);
}

#[test]
fn without_a_primary_reads_go_to_the_standbys_that_answer_and_writes_nowhere() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    let [rw, ro] = ["--rw", "--ro"].map(|which| host.pgbox(&["uri", which]));
    let ask = |uri: &str, sql: &str| run("psql", &["-XAtqc", sql, uri.trim()]);
    host.pgbox(&["rm", "-f", "primary"]);
    let endpoints = host.json(&["endpoint", "--json"]);
    assert_eq!(endpoints[0]["leads_to"], serde_json::json!([]));
    assert_eq!(endpoints[1]["leads_to"], serde_json::json!(["r1", "r2"]));
    assert_eq!(ask(&ro, "SELECT i FROM t"), "7");
    assert_eq!(host.pgbox(&["uri", "--ro"]), ro);
    assert_eq!(ask(&host.pgbox(&["uri", "--ro", "--hosts"]), "SELECT i FROM t"), "7");
    assert!(host.fails(1, &["uri", "--rw"]).contains("has no primary"));
    let refused = std::process::Command::new("psql").args(["-Xc", "SELECT", rw.trim()]).output().unwrap();
    assert!(text(&refused.stderr).contains("Connection refused"), "{refused:?}");
    // It follows what becomes of them.
    host.pgbox(&["crash", "r1", "--node"]);
    assert_eq!(host.json(&["endpoint", "--json"])[1]["leads_to"], serde_json::json!(["r2"]));
    assert_eq!(ask(&ro, "SELECT i FROM t"), "7");
    host.pgbox(&["start", "r1"]);
    host.pgbox(&["promote", "r1"]);
    assert_eq!(ask(&ro, "SELECT i FROM t"), "7");
    ask(&rw, "INSERT INTO t VALUES (8)");
}

/// What follows each other is a picture also then, and who is to be promoted is said in one way.
#[test]
fn without_a_primary_the_picture_and_the_words_are_as_before() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "z", "--of", "primary"]);
    host.pgbox(&["replica", "r2", "--of", "z"]);
    host.pgbox(&["rm", "-f", "primary"]);
    let drawn = || {
        let said = host.pgbox(&["status"]);
        let r2 = said.lines().find(|line| line.contains("r2")).unwrap_or_default();
        r2.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
    };
    until("`-> r2 streaming", drawn);
    let others = host.json(&["status", "--json"])["others"].clone();
    assert_eq!((&others[0]["node"], &others[1]["node"]), (&"z".into(), &"r2".into()));
    assert_eq!(others[1]["slot"]["active"], true, "{others}");
    assert_eq!(host.json(&["lag", "--json"]).as_array().map(Vec::len), Some(2));
    for args in [&["drive", "start"][..], &["verify"], &["psql", "--", "-c", "SELECT"], &["up"]] {
        let said = host.fails(1, args);
        assert!(said.contains("`pgbox promote z`") && !said.contains("promote r2"), "{args:?}: {said}");
    }
    host.pgbox(&["promote", "z"]);
    assert!(host.pgbox(&["up"]).contains("nothing to do"));
}

/// Whatever else is left of the cluster, what is hinted at works.
#[test]
fn data_that_a_standby_has_left_are_gone_on_with_as_is_said() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t AS SELECT 7 AS i");
    until("7", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT i FROM t"]).stdout));
    let run_r1 = |hint: &str| {
        let said = host.fails(1, &["run", "r1", "postgres:15"]);
        assert!(said.contains(&format!("hint:  {hint}")), "{said}");
    };
    host.pgbox(&["rm", "-f", "r1"]);
    run_r1("`pgbox replica r1 --of primary` goes on with them; `pgbox volume rm r1` removes them");
    host.pgbox(&["stop", "primary"]);
    run_r1("`pgbox start primary`, then `pgbox replica r1 --of primary` goes");
    host.pgbox(&["rm", "primary"]);
    run_r1("`pgbox promote r2`, then `pgbox replica r1 --of r2` goes");
    host.pgbox(&["rm", "-f", "-v", "r2"]);
    run_r1(
        "`pgbox run primary` brings the primary back that has left the volume `primary`; then `pgbox replica r1 --of",
    );
    host.pgbox(&["run", "primary", "postgres:15"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    until("r1 streaming", || host.sql("primary", &[], STREAMS));
    host.pgbox(&["rm", "-f", "r1"]);
    host.pgbox(&["rm", "-f", "-v", "primary"]);
    run_r1("nothing is left that they could follow: without ");
    fs::remove_file(host.root.join("volumes/default/r1/data/standby.signal")).unwrap();
    host.pgbox(&["run", "r1", "postgres:15"]);
    assert_eq!(host.sql("r1", &[], "INSERT INTO t VALUES (8) RETURNING i"), "8");
}

/// Without a primary, who has most of what it wrote is asked of the disks of all that is left.
#[test]
fn nobody_is_promoted_past_one_who_has_more() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (1)");
    until("1", || text(&host.try_pgbox(&["psql", "r2", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["stop", "r2"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (2)");
    host.pgbox(&["rm", "-f", "primary"]);
    let told =
        "the volume `primary` has 2 transactions that `r1` lacks; `r2` has 1 transaction that `r1` lacks";
    assert!(host.pgbox(&["promote", "r1", "--dry-run"]).contains(told));
    let said = host.fails(1, &["promote", "r1"]);
    assert!(said.contains(told) && said.contains("`pgbox run primary` brings back"), "{said}");
    host.pgbox(&["volume", "rm", "primary"]);
    assert!(host.fails(1, &["promote", "r1"]).contains("hint:  `pgbox promote r2`; or give that up"));
    host.pgbox(&["start", "r2"]);
    host.pgbox(&["promote", "r2"]);
    assert_eq!(host.sql("r2", &[], "SELECT count(*) FROM t").trim(), "1");
}

/// A power cut leaves an empty file on some file systems; what it said then counts as unknown, not as nothing.
#[test]
fn an_old_primary_s_volume_whose_mark_is_damaged_does_not_come_up() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.pgbox(&["crash", "primary", "--node"]);
    host.pgbox(&["failover", "r1", "--accept-loss"]);
    host.pgbox(&["rm", "-f", "primary", "r1"]);
    let run_it = || host.fails(1, &["run", "primary", "postgres:15"]);
    assert!(run_it().contains("`r1` was promoted in its place"));
    let known = host.root.join("volumes/default/primary/volume.json");
    fs::write(&known, "").unwrap();
    let said = run_it();
    assert!(said.contains("can't be told") && said.contains(known.to_str().unwrap()), "{said}");
}

/// The node that knew where in its volume they are is gone.
#[test]
fn data_below_the_top_of_a_volume_count_as_well() {
    let Some(host) = Host::new() else { return };
    let volume = ["-v", "kept:/var/lib/postgresql/data", "-e", "PGDATA=/var/lib/postgresql/data/in/here"];
    // It is not kept beside such data.
    let password = ["-e", "POSTGRES_PASSWORD=secret"];
    host.pgbox(&[&["run", "primary", "postgres:15"], &volume[..], &password].concat());
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (1)");
    host.pgbox(&["rm", "-f", "primary"]);
    let said = host.fails(1, &["promote", "r1"]);
    let back = "pgbox run kept -v kept:/var/lib/postgresql/data -e PGDATA=/var/lib/postgresql/data/in/here";
    assert!(said.contains("the volume `kept` has 1 transaction that `r1` lacks"), "{said}");
    assert!(said.contains(&format!("`{back}` brings back the node that has left it")), "{said}");
    let words: Vec<&str> = back.split(' ').skip(1).collect();
    host.pgbox(&[&words[..2], &["postgres:15"], &words[2..], &password].concat());
    assert_eq!(host.sql("kept", &[], "SELECT i FROM t"), "1");
    // Promoted past them all the same: they do not come back as a second primary.
    host.pgbox(&["rm", "-f", "kept"]);
    host.pgbox(&["promote", "r1", "--accept-loss"]);
    let said = host.fails(1, &[&words[..2], &["postgres:15"], &words[2..], &password].concat());
    assert!(said.contains("an old primary's, and `r1` was promoted in its place"), "{said}");
    assert!(said.contains("`pgbox replica NAME --of PRIMARY`"), "{said}");
}

/// Nobody can be asked what was in them, and somebody has to be the primary.
#[test]
fn data_that_can_not_be_read_are_named_before_somebody_is_promoted_past_them() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.pgbox(&["rm", "-f", "primary"]);
    let control = host.root.join("volumes/default/primary/data/global/pg_control");
    fs::File::options().write(true).open(control).unwrap().set_len(100).unwrap();
    let said = note(&host, &["promote", "r1", "--dry-run"]);
    assert!(said.contains("warning: nobody knows what the volume `primary` has and `r1` lacks: "), "{said}");
    assert_eq!(note(&host, &["promote", "r1"]), said);
    assert_eq!(host.sql("r1", &[], "SELECT pg_is_in_recovery()"), "f");
}

/// A server writes it at any moment, and the kernel lets a reader see half of that.
#[test]
fn a_control_file_that_is_written_at_this_moment_is_read_once_more() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    let data = host.root.join("volumes/default/primary/data");
    let file = data.join("global/pg_control");
    host.pgbox(&["stop", "primary"]);
    let old = fs::read(&file).unwrap();
    host.pgbox(&["start", "primary"]);
    host.pgbox(&["stop", "primary"]);
    let new = fs::read(&file).unwrap();
    let control = || pgbox::facts::wal::Place::alone(&data).control();
    let checkpoint = control().unwrap().checkpoint;
    // The checkpoint of the one, the rest of the other: no checksum fits.
    let torn = [&new[..64], &old[64..]].concat();
    fs::write(&file, &torn).unwrap();
    assert!(control().is_err(), "it stays so");
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(std::time::Duration::from_millis(15));
            fs::write(&file, &new).unwrap();
        });
        assert_eq!(control().unwrap().checkpoint, checkpoint);
    });
}

/// Two that never met would begin the same timeline, and pg_rewind would find nothing to do between them.
#[test]
fn a_promotion_takes_no_number_that_data_of_a_node_that_is_gone_have() {
    let Some(host) = Host::new() else { return };
    trio(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    for node in ["r1", "r2"] {
        until("0", || text(&host.try_pgbox(&["psql", node, "-Atc", "SELECT count(*) FROM t"]).stdout));
    }
    host.pgbox(&["stop", "r2"]);
    host.pgbox(&["crash", "primary", "--node"]);
    assert!(host.pgbox(&["failover", "r1"]).contains("on timeline 2"));
    host.sql("r1", &[], "INSERT INTO t VALUES (1)");
    host.pgbox(&["rm", "-f", "r1", "primary"]);
    host.pgbox(&["start", "r2"]);
    let said = host.pgbox(&["promote", "r2", "--accept-loss"]);
    assert!(said.contains("timeline 3"), "{said}");
    host.sql("r2", &[], "INSERT INTO t VALUES (2)");
    let said = host.fails(1, &["replica", "r1", "--of", "r2"]);
    assert!(
        said.contains("`r1` has gone its own way") && said.contains("1 transaction with 1 row"),
        "{said}"
    );
    host.pgbox(&["replica", "r1", "--of", "r2", "--force"]);
    until("2", || host.sql("r1", &[], "SELECT string_agg(i::text, ' ') FROM t"));
}

/// `r1` and then `r2` took the place of `primary`, each on a timeline 2 of its own: what `r1` has was out of sight then.
fn two_histories_of_one_number<T>(host: &Host, hide: impl FnOnce() -> T, promote: &[&str]) {
    trio(host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    for node in ["r1", "r2"] {
        until("0", || text(&host.try_pgbox(&["psql", node, "-Atc", "SELECT count(*) FROM t"]).stdout));
    }
    // It writes something of its own now and then, which `r1` would have alone.
    host.pgbox(&["freeze", "primary"]);
    host.pgbox(&["stop", "r2"]);
    host.pgbox(&["crash", "primary", "--node"]);
    let fork = |said: String| said.split_once("on timeline 2 since ").map(|(_, at)| at[..9].to_owned());
    let first = fork(host.pgbox(&["failover", "r1"]));
    host.sql("r1", &[], "INSERT INTO t VALUES (1)");
    let hidden = hide();
    host.try_pgbox(&["start", "r2", "--timeout", "10s"]);
    let second = fork(host.pgbox(promote));
    assert!(first.is_some() && first == second, "{first:?} {second:?}");
    drop(hidden);
    // More than `r1` has.
    host.sql("r2", &[], "INSERT INTO t SELECT generate_series(2, 101)");
}

const HIDDEN: &str = "under the number of a timeline of `r2`: a new base backup; given up: ";

/// Somebody has put a volume away, and brings it back later.
#[test]
fn data_on_a_timeline_of_the_same_number_and_place_do_not_follow_as_they_are() {
    let Some(host) = Host::new() else { return };
    let (volume, away) = (host.root.join("volumes/default/r1"), host.root.join("away"));
    struct Away(PathBuf, PathBuf);
    impl Drop for Away {
        fn drop(&mut self) {
            drop(fs::rename(&self.1, &self.0));
        }
    }
    let hide = || {
        host.pgbox(&["rm", "-f", "r1", "primary"]);
        fs::rename(&volume, &away).unwrap();
        Away(volume.clone(), away.clone())
    };
    two_histories_of_one_number(&host, hide, &["promote", "r2", "--accept-loss"]);
    let said = host.fails(1, &["replica", "r1", "--of", "r2"]);
    assert!(said.contains("do not follow `r2` as they are") && said.contains(HIDDEN), "{said}");
    host.pgbox(&["replica", "r1", "--of", "r2", "--force"]);
    until("100", || host.sql("r1", &[], "SELECT count(*) FROM t WHERE i > 1"));
    assert_eq!(host.sql("r1", &[], "SELECT count(*) FROM t WHERE i = 1"), "0");
}

/// pg_rewind would find them on one timeline, and leave the rows of the one under the log of the other.
#[test]
fn an_old_primary_on_a_timeline_of_the_same_number_and_place_gets_a_new_base_backup() {
    let Some(host) = Host::new() else { return };
    let hide = || {
        // Where its timeline begins is in its log no more.
        host.sql("r1", &[], "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
        host.sql("r1", &[], "SELECT pg_switch_wal()");
        let hidden = Unreadable::new(&host, "r1");
        host.pgbox(&["crash", "r1", "--node"]);
        hidden
    };
    two_histories_of_one_number(&host, hide, &["failover", "r2", "--accept-loss"]);
    host.sql("r2", &[], "SELECT pg_switch_wal()");
    host.sql("r2", &[], "INSERT INTO t VALUES (102)");
    let output = host.try_pgbox(&["up", "--diff"]);
    assert!(text(&output.stderr).contains("was promoted in its place and lacks"), "{output:?}");
    let output = host.try_pgbox(&["rejoin", "r1", "--dry-run"]);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(said.contains("a new base backup in place of its data: `r1`") && said.contains(HIDDEN), "{said}");
    host.pgbox(&["rejoin", "r1"]);
    until("101", || host.sql("r1", &[], "SELECT count(*) FROM t WHERE i > 1"));
    assert_eq!(host.sql("r1", &[], "SELECT count(*) FROM t WHERE i = 1"), "0");
}

/// Without standby.signal the data of a standby are a primary's, and on the same timeline.
#[test]
fn data_that_were_gone_on_with_twice_on_one_timeline_do_not_follow_as_they_are() {
    let Some(host) = Host::new() else { return };
    pair(&host);
    host.sql("primary", &[], "CREATE TABLE t (i int)");
    until("0", || text(&host.try_pgbox(&["psql", "r1", "-Atc", "SELECT count(*) FROM t"]).stdout));
    host.pgbox(&["net", "cut", "primary", "r1"]);
    host.sql("primary", &[], "INSERT INTO t VALUES (1)");
    host.pgbox(&["rm", "-f", "primary", "r1"]);
    fs::remove_file(host.root.join("volumes/default/r1/data/standby.signal")).unwrap();
    host.pgbox(&["run", "r1", "postgres:15"]);
    host.sql("r1", &[], "INSERT INTO t SELECT generate_series(2, 1001)");
    let said = host.fails(1, &["replica", "primary", "--of", "r1"]);
    let hidden = "under the number of a timeline of `r1`: a new base backup; given up: ";
    assert!(said.contains("do not follow `r1` as they are") && said.contains(hidden), "{said}");
}
