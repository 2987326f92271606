//! Addresses, names and published ports.

use std::process::Command;

use crate::harness::{Host, run, text, until};

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
    let refused = Command::new("psql")
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
    // From one lab to the other there is only what is published.
    let trust = "POSTGRES_HOST_AUTH_METHOD=trust";
    host.pgbox(&["--lab", "other", "run", "p", "postgres:15", "-e", trust, "-p", "5433:5432"]);
    let row = host.json(&["--lab", "other", "inspect", "--json", "p"]);
    let address = row[0]["network"]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    let ask = |from: &[&str], address: &str, port: &str| {
        let psql = ["env", "PGCONNECT_TIMEOUT=2", "psql", "-U", "postgres", "-XAtc", "SELECT 42"];
        let output = host.try_pgbox(&[from, &["--"], &psql, &["-h", address, "-p", port]].concat());
        text(&output.stdout).trim().to_owned()
    };
    assert_eq!(ask(&["exec", "n"], &address, "5432"), "", "one lab reaches the other");
    assert_eq!(ask(&["--lab", "other", "exec", "n"], &address, "5432"), "42");
    let own = host.json(&["ps", "--json"])[0]["address"].as_str().unwrap().to_owned();
    let gateway = format!("{}.1", own.rsplit_once('.').unwrap().0);
    assert_eq!(ask(&["exec", "n"], &gateway, "5433"), "42");
    assert_eq!(run("psql", &["-h", "127.0.0.1", "-p", "5433", "-U", "postgres", "-XAtc", "SELECT 42"]), "42");
}

/// Another machine: a network namespace at the other end of a cable from this host, in which `script` runs.
fn outside(script: &str) -> std::process::Child {
    run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    run("ip", &["addr", "add", "192.0.2.1/24", "dev", "up0"]);
    run("ip", &["link", "set", "up0", "up"]);
    let setup = format!(
        "set -e; ip link set lo up; until ip link show up1 >/dev/null 2>&1; do sleep 0.02; done; \
         ip addr add 192.0.2.2/24 dev up1; ip link set up1 up; set +e; {script}"
    );
    let child = Command::new("unshare")
        .args(["--net", "sh", "-c", &setup])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    until("it has a network of its own", 10, || {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|other| other != own)
    });
    run("ip", &["link", "set", "up1", "netns", &pid]);
    child
}

#[test]
fn a_node_reaches_a_server_outside_and_has_the_hosts_address_there() {
    let Some(host) = Host::new() else { return };
    // It tells its client the address that it comes from.
    let server = r#"exec python3 -c '
import socket
client, address = socket.create_server(("192.0.2.2", 7000)).accept()
client.sendall(address[0].encode())
client.close()'"#;
    let mut server = outside(server);
    host.pgbox(&["run", "n", "postgres:15"]);
    let ask = "until exec 3<>/dev/tcp/192.0.2.2/7000; do sleep 0.1; done 2>/dev/null; cat <&3";
    assert_eq!(host.pgbox(&["exec", "n", "--", "timeout", "10", "bash", "-c", ask]), "192.0.2.1");
    server.wait().unwrap();
}

#[test]
fn a_start_takes_no_port_that_another_program_has_by_now() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "tiny", "-d", "-p", "5433:5432", "--", "sleep", "600"]);
    host.pgbox(&["stop", "n"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:5433").unwrap();
    let said = host.fails(1, &["start", "n"]);
    assert!(said.contains("another program listens there") && said.contains("`pgbox rm n`"), "{said}");
    drop(listener);
    host.pgbox(&["start", "n"]);
    // It is its own by then.
    host.pgbox(&["start", "n"]);
}

#[test]
fn a_published_port_answers_another_machine_and_the_node_itself_does_not() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "n", "postgres:15", "-e", "POSTGRES_HOST_AUTH_METHOD=trust", "-p", "5433:5432"]);
    let node = host.json(&["ps", "--json"])[0]["address"].as_str().unwrap().to_owned();
    let ask = "PGCONNECT_TIMEOUT=2 psql -U postgres -XAtc 'SELECT 40 + 2' -h";
    let route = "ip route add default via 192.0.2.1";
    let client = outside(&format!("{ask} 192.0.2.1 -p 5433; {route}; {ask} {node} || echo guarded"));
    assert_eq!(text(&client.wait_with_output().unwrap().stdout), "42\nguarded\n");
}

#[test]
fn names_are_known_to_every_user_as_nodes_come_and_go() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "a", "postgres:15"]);
    host.pgbox(&["run", "b", "postgres:15"]);
    let as_postgres = |node: &str, command: &[&str]| {
        host.pgbox(&[&["exec", "-u", "postgres", node, "--"], command].concat())
    };
    let hosts = || as_postgres("a", &["cat", "/etc/hosts"]);
    let rows = host.json(&["ps", "--json"]);
    let line = |i: usize| {
        format!("{} {}\n", rows[i]["address"].as_str().unwrap(), rows[i]["node"].as_str().unwrap())
    };
    assert!(hosts().ends_with(&format!("{}{}", line(0), line(1))), "{}", hosts());
    assert!(as_postgres("b", &["getent", "hosts", "a"]).starts_with(rows[0]["address"].as_str().unwrap()));
    host.pgbox(&["stop", "b"]);
    host.pgbox(&["start", "b"]);
    assert_eq!(hosts().matches(&line(1)).count(), 1, "{}", hosts());
    host.pgbox(&["rm", "-f", "b"]);
    assert!(!hosts().contains(" b\n"), "{}", hosts());
    assert_eq!(as_postgres("a", &["cat", "/etc/hostname"]), "a\n");
    let outside = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let reachable = outside.lines().any(|l| l.starts_with("nameserver") && !l.contains(" 127."));
    assert!(!reachable || as_postgres("a", &["cat", "/etc/resolv.conf"]) == outside);
}

#[test]
fn an_address_answers_at_once_for_the_next_node_that_has_it() {
    let Some(host) = Host::new() else { return };
    // It keeps the bridge, and with it what the host remembers of its neighbours.
    host.pgbox(&["run", "other", "postgres:15"]);
    let neighbour = |node: &str| {
        host.pgbox(&["run", node, "postgres:15"]);
        assert_eq!(host.sql(node, &[], "SELECT 1"), "1");
        let address = host.json(&["inspect", "--json", node])[0]["network"]["address"].clone();
        let ip = address.as_str().unwrap().split('/').next().unwrap().to_owned();
        let mac = host.pgbox(&["exec", node, "--", "cat", "/sys/class/net/eth0/address"]);
        (run("ip", &["neigh", "show", &ip]), ip, mac)
    };
    let (remembered, ip, mac) = neighbour("first");
    assert!(remembered.contains(mac.trim()), "{remembered}");
    host.pgbox(&["rm", "--force", "first"]);
    let begun = std::time::Instant::now();
    let (_, again, same) = neighbour("second");
    assert_eq!((again, same), (ip, mac));
    assert!(begun.elapsed().as_secs() < 15, "{:?}: the entry of the node before was stale", begun.elapsed());
}

#[test]
fn a_node_that_starts_again_has_the_name_servers_of_now() {
    let Some(host) = Host::new() else { return };
    // In this test's own mount namespace.
    let file = host.scratch("etc").join("resolv.conf");
    let name_server = |address: &str| std::fs::write(&file, format!("nameserver {address}\n")).unwrap();
    name_server("192.0.2.53");
    run("mount", &["--bind", file.to_str().unwrap(), "/etc/resolv.conf"]);
    host.pgbox(&["run", "n", "postgres:15"]);
    host.pgbox(&["stop", "n"]);
    name_server("192.0.2.54");
    host.pgbox(&["start", "n"]);
    assert_eq!(host.pgbox(&["exec", "n", "--", "cat", "/etc/resolv.conf"]), "nameserver 192.0.2.54\n");
}
