//! `env` and `with`: programs of this host that find the server by their environment.

use crate::harness::{Host, run, text};

#[test]
fn a_shell_and_a_command_find_the_server_and_never_see_its_password() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15", "-e", "POSTGRES_USER=some one", "-e", "POSTGRES_DB=it's"]);
    host.pgbox(&["replica", "r1", "--of", "primary"]);
    let password = std::fs::read_to_string(host.root.join("labs/default/nodes/primary/password")).unwrap();
    let printed = host.pgbox(&["env"]);
    assert!(!printed.contains(&password) && printed.contains("export PGDATABASE='it'\\''s'"), "{printed}");
    // What the caller has in the way does not count.
    let ask = "psql -XAtc 'SELECT current_user, current_database(), pg_is_in_recovery()'";
    let strange = [("PGPASSWORD", "wrong"), ("PGHOSTADDR", "203.0.113.1"), ("PGSERVICE", "none")];
    let shell = |node: &str| {
        let script = format!("eval \"$({} env {node})\" && {ask}", crate::harness::PGBOX);
        let mut command = std::process::Command::new("sh");
        command.args(["-ec", &script]).env("PGBOX_ROOT", &host.root).envs(strange);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(shell(""), "some one|it's|f\n");
    assert_eq!(shell("r1"), "some one|it's|t\n");
    let mut with = host.command(&["with", "r1", "--", "sh", "-c", &format!("{ask}; env; exit 7")]);
    let output = with.envs(strange).output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.code() == Some(7) && said.starts_with("some one|it's|t\n"), "{output:?}");
    assert!(
        !said.contains(&password) && !said.contains("PGPASSWORD") && !said.contains("PGHOSTADDR"),
        "{said}"
    );
    let file = host.json(&["env", "--json"])["PGPASSFILE"].as_str().unwrap().to_owned();
    assert_eq!(run("stat", &["-c", "%a %u", &file]), "600 0");
    // By the two addresses that stay.
    let by = |which: &str| {
        text(&host.try_pgbox(&["with", which, "--", "sh", "-c", &format!("{ask}; echo $PGHOST")]).stdout)
    };
    let endpoint = |which: &str| host.json(&["uri", which, "--json"])["host"].as_str().unwrap().to_owned();
    assert_eq!(by("--rw"), format!("some one|it's|f\n{}\n", endpoint("--rw")));
    assert_eq!(by("--ro"), format!("some one|it's|t\n{}\n", endpoint("--ro")));
    assert!(host.pgbox(&["env", "--rw"]).contains(&format!("export PGHOST={}\n", endpoint("--rw"))));
    assert!(host.fails(2, &["env", "r1", "--rw"]).contains("cannot be used with"));
    // Exit codes are those of `exec`.
    assert!(host.fails(127, &["with", "--", "no-such-program"]).contains("execute no-such-program"));
    let plain = host.scratch("with").join("plain");
    std::fs::write(&plain, "").unwrap();
    assert!(host.fails(126, &["with", "--", plain.to_str().unwrap()]).contains("Permission denied"));
    assert!(host.fails(125, &["with", "nobody", "--", "true"]).contains("no node `nobody`"));
}
