//! Addresses, names and published ports.

use crate::harness::{Host, run};

#[test]
fn nodes_know_each_other_by_name() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "a", "postgres:15", "-e", "POSTGRES_HOST_AUTH_METHOD=trust"]);
    host.pgbox(&["run", "b", "postgres:15", "-e", "POSTGRES_HOST_AUTH_METHOD=trust"]);
    assert_eq!(
        host.pgbox(&[
            "exec",
            "a",
            "--",
            "psql",
            "-h",
            "b",
            "-U",
            "postgres",
            "-Atc",
            "SHOW cluster_name; SELECT 2"
        ])
        .trim(),
        "2"
    );
    assert_eq!(
        host.pgbox(&["exec", "b", "--", "psql", "-h", "a", "-U", "postgres", "-Atc", "SELECT 3"]).trim(),
        "3"
    );
    host.pgbox(&["rm", "-f", "b"]);
    assert!(!host.pgbox(&["exec", "a", "--", "cat", "/etc/hosts"]).contains(" b\n"));
}

#[test]
fn a_port_is_published_on_one_address_or_on_all() {
    let Some(host) = Host::new() else { return };
    run("ip", &["link", "add", "up0", "type", "bridge"]);
    run("ip", &["addr", "add", "10.99.0.1/24", "dev", "up0"]);
    run("ip", &["link", "set", "up0", "up"]);
    let trust = "POSTGRES_HOST_AUTH_METHOD=trust";
    host.pgbox(&["run", "all", "postgres:15", "-e", trust, "-p", "5433:5432"]);
    host.pgbox(&["run", "one", "postgres:15", "-e", trust, "-p", "10.99.0.1:5434:5432"]);
    let ask = |host: &str, port: &str| {
        run("psql", &["-h", host, "-p", port, "-U", "postgres", "-XAtc", "SELECT inet_server_port()"])
    };
    assert_eq!(ask("127.0.0.1", "5433"), "5432");
    assert_eq!(ask("10.99.0.1", "5433"), "5432");
    assert_eq!(ask("10.99.0.1", "5434"), "5432");
    let refused = std::process::Command::new("psql")
        .args(["-h", "127.0.0.1", "-p", "5434", "-U", "postgres", "-c", "SELECT 1"])
        .output()
        .unwrap();
    assert!(!refused.status.success());
}

#[test]
fn two_labs_have_two_networks() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["--lab", "other", "run", "n", "postgres:15"]);
    let bridge =
        |lab: &str| host.json(&["--lab", lab, "inspect", "--json", "n"])[0]["network"]["bridge"].clone();
    assert_ne!(bridge("default"), bridge("other"));
    assert_eq!(host.sql("n", &[], "SELECT 1"), "1");
    assert_eq!(host.json(&["ps", "--all-labs", "--json"]).as_array().unwrap().len(), 2);
}
