//! Where the password comes from, and what happens when the data has another one.

use std::fs;

use crate::harness::{Host, text};

fn with<'a>(args: &[&'a str], password: &'a str) -> Vec<&'a str> {
    [args, &["-e", password]].concat()
}

const RUN: [&str; 3] = ["run", "n", "postgres:15"];

#[test]
fn another_password_for_old_data_is_told_and_the_right_one_is_not_forgotten() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&with(&RUN, "POSTGRES_PASSWORD=right"));
    host.pgbox(&["rm", "-f", "n"]);
    let output = host.try_pgbox(&with(&RUN, "POSTGRES_PASSWORD=wrong"));
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("another password than the one that was given").count(), 1, "{said}");
    assert!(said.contains("pgbox psql n -c '\\password'"), "{said}");
    // pgbox knows the right one from the volume, and goes on using it.
    assert_eq!(host.sql("n", &["--with-password"], "SELECT 1"), "1");
    assert!(host.pgbox(&["uri", "n", "--with-password"]).contains(":right@"));
    host.pgbox(&["rm", "-f", "n"]);
    let output = host.try_pgbox(&RUN);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.lines().count() == 1, "{said}");
    assert!(said.contains("goes on with the data of the volume `n` (PostgreSQL 15, last written"), "{said}");
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
}

#[test]
fn data_below_the_top_of_a_volume_keep_their_password_too_and_others_beside_them_theirs() {
    let Some(host) = Host::new() else { return };
    let other =
        [&RUN[..], &["-v", "v:/var/lib/postgresql", "-e", "PGDATA=/var/lib/postgresql/other/data"]].concat();
    for run in [[&RUN[..], &["-v", "v:/var/lib/postgresql"]].concat(), other] {
        host.pgbox(&run);
        let made_up = host.pgbox(&["uri", "n", "--with-password"]);
        host.pgbox(&["rm", "-f", "n"]);
        host.pgbox(&run);
        assert_eq!(host.pgbox(&["uri", "n", "--with-password"]), made_up);
        assert_eq!(host.sql("n", &["--with-password"], "SELECT 1"), "1");
        host.pgbox(&["rm", "-f", "n"]);
        // Also where another one is given.
        host.pgbox(&with(&run, "POSTGRES_PASSWORD=wrong"));
        assert_eq!(host.pgbox(&["uri", "n", "--with-password"]), made_up);
        host.pgbox(&["rm", "-f", "n"]);
    }
    let said = host.pgbox(&[&RUN[..], &["-v", "v:/var/lib/postgresql"]].concat());
    assert!(!said.contains("doesn't know"), "{said}");
    assert_eq!(host.sql("n", &["--with-password"], "SELECT 1"), "1");
}

#[test]
fn data_with_an_unknown_password_is_told_and_no_wrong_one_is_shown() {
    let Some(host) = Host::new() else { return };
    let mount = format!("{}:/var/lib/postgresql/data", host.scratch("data").display());
    let run = [&RUN[..], &["-v", &mount]].concat();
    host.pgbox(&with(&run, "POSTGRES_PASSWORD=right"));
    host.pgbox(&["rm", "-f", "n"]);
    let output = host.try_pgbox(&run);
    assert!(output.status.success() && text(&output.stderr).contains("a password that pgbox doesn't know"));
    assert!(!text(&output.stdout).contains("password"), "{}", text(&output.stdout));
    assert!(!host.pgbox(&["uri", "n"]).contains("passfile"));
    assert!(host.fails(1, &["uri", "n", "--with-password"]).contains("knows no password"));
    // It is up nevertheless.
    host.pgbox(&["wait", "n"]);
    assert_eq!(host.pgbox(&["psql", "n", "-Atc", "SELECT 1"]), "1\n");
    host.pgbox(&["stop", "n"]);
    host.pgbox(&["start", "n"]);
}

#[test]
fn the_password_may_come_from_a_file_in_a_volume() {
    let Some(host) = Host::new() else { return };
    let file = host.scratch("secrets").join("pw");
    fs::write(&file, "from a file\n").unwrap();
    let mount = format!("{}:/run/secrets/pw:ro", file.display());
    host.pgbox(&with(&[&RUN[..], &["-v", &mount]].concat(), "POSTGRES_PASSWORD_FILE=/run/secrets/pw"));
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
    assert!(host.pgbox(&["uri", "n", "--with-password"]).contains(":from%20a%20file@"));
}

#[test]
fn a_password_and_its_file_exclude_each_other_and_nothing_is_made() {
    let Some(host) = Host::new() else { return };
    let both = with(&with(&RUN, "POSTGRES_PASSWORD=a"), "POSTGRES_PASSWORD_FILE=/b");
    let said = host.fails(1, &both);
    assert!(said.contains("POSTGRES_PASSWORD_FILE"), "{said}");
    assert!(!host.root.join("labs").exists() && !host.root.join("volumes").exists());
}

#[test]
fn trust_needs_no_password_and_has_none() {
    let Some(host) = Host::new() else { return };
    let said = host.pgbox(&with(&RUN, "POSTGRES_HOST_AUTH_METHOD=trust"));
    assert!(!said.contains("password"), "{said}");
    assert!(!host.pgbox(&["uri", "n"]).contains("passfile"));
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
    let directory = host.root.join("labs/default/nodes/n");
    assert!(!directory.join("password").exists());
}

#[test]
fn variables_come_from_a_file_and_from_the_caller() {
    let Some(host) = Host::new() else { return };
    let file = host.scratch("env").join("file");
    fs::write(&file, "# a comment\n\nPOSTGRES_USER=joe o@x/y:z\nFOO=bar  baz\nHERE\nTWICE=file\n").unwrap();
    let env = ["--env-file", file.to_str().unwrap(), "-e", "NOWHERE", "-e", "ALSO", "-e", "TWICE=option"];
    let output = host
        .command(&[&RUN[..], &env].concat())
        .env("HERE", "1")
        .env("ALSO", "2")
        .env_remove("NOWHERE")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let script = "echo \"$FOO|$HERE|$ALSO|$TWICE|${NOWHERE-unset}\"";
    assert_eq!(host.pgbox(&["exec", "n", "--", "sh", "-c", script]), "bar  baz|1|2|option|unset\n");
    // A name that needs every kind of quoting works in the string that libpq reads, and inside.
    for args in [&[][..], &["--with-password"]] {
        assert_eq!(host.sql("n", args, "SELECT current_user"), "joe o@x/y:z");
    }
    assert_eq!(host.pgbox(&["psql", "n", "-Atc", "SELECT current_database()"]), "joe o@x/y:z\n");
}

#[test]
fn a_password_that_pgbox_made_up_is_kept_although_the_first_run_failed() {
    let Some(host) = Host::new() else { return };
    let script = host.scratch("scripts").join("1.sql");
    fs::write(&script, "SELECT no_such_column").unwrap();
    let mount = format!("{}:/docker-entrypoint-initdb.d/1.sql", script.display());
    assert!(host.fails(1, &[&RUN[..], &["-v", &mount]].concat()).contains("no_such_column"));
    let kept = host.root.join("volumes/default/n/password");
    let made_up = fs::read_to_string(&kept).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(&kept).unwrap()) & 0o777, 0o600);
    host.pgbox(&RUN);
    assert_eq!(fs::read_to_string(&kept).unwrap(), made_up);
    assert!(host.pgbox(&["uri", "n", "--with-password"]).contains(&format!(":{made_up}@")));
    assert_eq!(host.sql("n", &["--with-password"], "SELECT 1"), "1");
}
