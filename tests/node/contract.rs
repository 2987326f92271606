//! What scripts and compose files written for the official image rely on.

use std::fs;

use crate::harness::Host;

#[test]
fn user_database_and_password_with_spaces() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&[
        "run",
        "n",
        "postgres:15",
        "-e",
        "POSTGRES_USER=the user",
        "-e",
        "POSTGRES_PASSWORD=it's a \"secret\" $x",
        "-e",
        "POSTGRES_DB=the db",
    ]);
    assert_eq!(host.sql("n", &[], "SELECT current_user || '|' || current_database()"), "the user|the db");
    assert_eq!(host.sql("n", &["--with-password"], "SELECT 1"), "1");
}

#[test]
fn the_password_is_in_no_state_log_or_environment() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-e", "POSTGRES_PASSWORD=tell-nobody"]);
    let node = host.root.join("labs/default/nodes/n");
    for file in ["state.json", "log", "status.json"] {
        assert!(!fs::read_to_string(node.join(file)).unwrap().contains("tell-nobody"), "{file}");
    }
    let init = host.init_pid("n");
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let postmaster = children.split_whitespace().next().expect("a postmaster").parse().unwrap();
    for pid in [init, postmaster] {
        // By root on the host, whom the kernel shows all; an error is none of "there is nothing in it".
        let seen = ["environ", "cmdline"].map(|file| {
            String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).expect("read /proc"))
                .into_owned()
        });
        assert!(!seen.concat().contains("tell-nobody"), "{pid}: {seen:?}");
        assert_eq!(seen[0].contains("PGDATA="), pid == postmaster, "{pid}: {seen:?}");
    }
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(node.join("password")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn init_scripts_run_in_order_once() {
    let Some(host) = Host::new() else { return };
    let scripts = host.scratch("scripts");
    fs::write(scripts.join("1.sql"), "CREATE TABLE t (who text);").unwrap();
    fs::write(scripts.join("2.sh"), "psql -v ON_ERROR_STOP=1 -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -c \"INSERT INTO t VALUES ('sh')\"").unwrap();
    let mount = format!("{}:/docker-entrypoint-initdb.d:ro", scripts.display());
    host.pgbox(&["run", "n", "postgres:15", "-v", &mount]);
    assert_eq!(host.sql("n", &[], "SELECT who FROM t"), "sh");
    host.pgbox(&["stop", "n"]);
    host.pgbox(&["start", "n"]);
    assert_eq!(host.sql("n", &[], "SELECT count(*) FROM t"), "1");
}

#[test]
fn sourced_scripts_have_what_the_official_entrypoint_gives_them() {
    let Some(host) = Host::new() else { return };
    let scripts = host.scratch("scripts");
    let more = scripts.join("more");
    fs::create_dir(&more).unwrap();
    let script = |name: &str, text: &str| fs::write(scripts.join(name), text).unwrap();
    script("1.sh", "\"${psql[@]}\" <<Q\ncreate table two(a int);\nQ\n");
    script("2.sh", "\"${psql[@]}\" --username \"$POSTGRES_USER\" -c 'create table three()'\n");
    script(
        "3.sh",
        "export SCHEMA='a \"b'; printf 'from a file\\n' > /tmp/value; export VALUE_FILE=/tmp/value\n",
    );
    script(
        "4.sh",
        "file_env VALUE; file_env OTHER default; file_env POSTGRES_PASSWORD; docker_process_sql -v s=\"$SCHEMA\" -v v=\"$VALUE $OTHER\" <<'Q'\ncreate schema :\"s\"; comment on schema :\"s\" is :'v';\nQ\n",
    );
    script("5.sh", "docker_process_init_files /docker-entrypoint-initdb.d/more/*\n");
    fs::write(more.join("1.sql"), "create table four(a int);").unwrap();
    fs::write(more.join("2.sh"), "docker_process_sql -c 'create table five()'").unwrap();
    // An executable one is another program, and has the exports as well.
    script("6.sh", "#!/bin/sh\npsql -U \"$POSTGRES_USER\" -c \"insert into two values (${#SCHEMA})\"\n");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(scripts.join("6.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(host.scratch("secret").join("password"), "secret\n").unwrap();
    let mount = format!("{}:/docker-entrypoint-initdb.d:ro", scripts.display());
    let secret = format!("{}:/secret:ro", host.scratch("secret").display());
    let file = "POSTGRES_PASSWORD_FILE=/secret/password";
    host.pgbox(&["run", "n", "postgres:15", "-v", &mount, "-v", &secret, "-e", file]);
    assert_eq!(
        host.sql("n", &[], "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_stat_user_tables"),
        "five four three two"
    );
    assert_eq!(
        host.sql("n", &[], "SELECT obj_description(oid) FROM pg_namespace WHERE nspname = 'a \"b'"),
        "from a file default"
    );
    assert_eq!(host.sql("n", &[], "SELECT a FROM two"), "4");
}

#[test]
fn a_failed_init_script_is_told_and_its_data_is_not_taken_for_whole() {
    let Some(host) = Host::new() else { return };
    let scripts = host.scratch("scripts");
    fs::write(scripts.join("1.sql"), "CREATE TABLE half (i int); SELECT no_such_function();").unwrap();
    let mount = format!("{}:/docker-entrypoint-initdb.d", scripts.display());
    let said = host.fails(1, &["run", "n", "postgres:15", "-v", &mount]);
    assert!(said.contains("1.sql") && said.contains("no_such_function"), "{said}");
    assert!(!host.root.join("volumes/default/n/data/PG_VERSION").exists());
    fs::write(scripts.join("1.sql"), "CREATE TABLE whole (i int);").unwrap();
    host.pgbox(&["run", "n", "postgres:15", "-v", &mount]);
    assert_eq!(
        host.sql("n", &[], "SELECT count(*) FROM pg_tables WHERE tablename IN ('half', 'whole')"),
        "1"
    );
}

#[test]
fn options_after_the_dashes_and_settings_reach_the_server() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-c", "work_mem=7MB", "--", "-c", "max_connections=33"]);
    assert_eq!(host.sql("n", &[], "SHOW work_mem"), "7MB");
    assert_eq!(host.sql("n", &[], "SHOW max_connections"), "33");
    assert_eq!(host.sql("n", &[], "SHOW data_checksums"), "on");
    assert_eq!(host.sql("n", &[], "SHOW huge_pages"), "off");
}

#[test]
fn an_orphan_that_exits_with_2_restarts_nobody() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    // A child whose parent is gone belongs to pid 1. Were that Postgres, it would take code 2 for a crash.
    host.sql("n", &[], "CREATE TABLE t AS SELECT pg_postmaster_start_time() AS at");
    host.pgbox(&[
        "psql",
        "n",
        "-c",
        "COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; (sleep 0.2; exit 2) >/dev/null 2>&1 & true'",
    ]);
    std::thread::sleep(std::time::Duration::from_millis(600));
    let log = host.pgbox(&["logs", "n"]);
    assert!(!log.contains("terminating any other active server processes"), "{log}");
    assert_eq!(host.pgbox(&["exec", "n", "--", "cat", "/proc/1/comm"]).trim(), "pgbox-init");
}

#[test]
fn variables_that_come_too_late_are_told() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["rm", "-f", "n"]);
    let late = ["-e", "POSTGRES_DB=two", "-e", "POSTGRES_INITDB_ARGS=-k"];
    let output = host.try_pgbox(&[&["run", "n", "postgres:15"], &late[..]].concat());
    let said = crate::harness::text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("note: POSTGRES_DB, POSTGRES_INITDB_ARGS count when the data of `n` are made"),
        "{said}"
    );
    host.pgbox(&["rm", "-f", "n"]);
    let output = host.try_pgbox(&["run", "n", "postgres:15", "-e", "POSTGRES_USER=joe"]);
    let said = crate::harness::text(&output.stderr);
    assert!(said.contains("note: POSTGRES_USER counts when the data of `n` are made"), "{said}");
    host.pgbox(&["rm", "-f", "-v", "n"]);
    let output = host.try_pgbox(&["run", "n", "postgres:15", "-e", "POSTGRES_USER=joe"]);
    assert!(!crate::harness::text(&output.stderr).contains("counts when"), "the data are new");
}

#[test]
fn a_locale_that_an_argument_names_is_tried_once() {
    let Some(host) = Host::new() else { return };
    let said = host.fails(1, &["run", "n", "postgres:15", "-e", "POSTGRES_INITDB_ARGS=--locale=xx_YY.UTF-8"]);
    assert!(said.contains("POSTGRES_INITDB_ARGS names a locale that the image does not have"), "{said}");
    assert!(said.contains("failed: make a database cluster in "), "{said}");
    assert!(said.contains("xx_YY.UTF-8") && said.contains("locale -a"), "{said}");
    assert_eq!(said.matches("The files belonging to this database system").count(), 1, "{said}");
}

#[test]
fn a_parallel_hash_join_fits_into_dev_shm() {
    let Some(host) = Host::new() else { return };
    let join = "CREATE TABLE a AS SELECT i, repeat(md5(i::text), 3) AS t FROM generate_series(1, 1000000) i; ANALYZE a; \
                SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET enable_mergejoin = off; \
                SELECT count(*) FROM a JOIN a b USING (i) WHERE a.t >= b.t";
    let node = ["postgres:15", "-c", "work_mem=512MB"];
    host.pgbox(&[&["run", "n"], &node[..]].concat());
    assert!(host.sql("n", &[], join).ends_with("1000000"));
    let shm = host.pgbox(&["exec", "n", "--", "stat", "-f", "-c", "%S %b", "/dev/shm"]);
    let size: u64 = shm.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product();
    assert_eq!(size, 256 << 20, "{shm}");
    // It is what the join needs: other tools give this much.
    host.pgbox(&[&["run", "small", "--shm-size", "64m"], &node[..]].concat());
    let uri = host.pgbox(&["uri", "small"]);
    let output = std::process::Command::new("psql").args(["-Xqc", join, uri.trim()]).output().unwrap();
    let said = crate::harness::text(&output.stderr);
    assert!(said.contains("could not resize shared memory segment"), "{said}");
}

#[test]
fn another_c_library_under_the_data_is_warned_of() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["rm", "-f", "n"]);
    let file = host.root.join("volumes/default/n/volume.json");
    let known = fs::read_to_string(&file).unwrap();
    assert!(known.contains("glibc 2.36"), "{known}");
    fs::write(&file, known.replace("glibc 2.36", "glibc 2.27")).unwrap();
    let output = host.try_pgbox(&["run", "n", "postgres:15"]);
    let said = crate::harness::text(&output.stderr);
    assert!(output.status.success() && said.contains("glibc 2.27") && said.contains("REINDEX"), "{said}");
}

#[test]
fn tuning_is_derived_from_the_limit_and_told() {
    let Some(host) = Host::new() else { return };
    let output = host.try_pgbox(&["run", "n", "postgres:15", "--memory", "400m", "--tune", "auto"]);
    let said = crate::harness::text(&output.stderr);
    assert!(output.status.success() && said.contains("shared_buffers = 100MB"), "{said}");
    assert_eq!(host.sql("n", &[], "SHOW shared_buffers"), "100MB");
    let output =
        host.try_pgbox(&["run", "m", "postgres:15", "--memory", "200m", "-c", "shared_buffers=150MB"]);
    let said = crate::harness::text(&output.stderr);
    assert!(said.contains("warning: shared_buffers = 150MB"), "{said}");
}
