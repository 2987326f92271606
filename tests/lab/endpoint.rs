//! The stable addresses of a lab: where they lead, and what becomes of sessions when they move.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use pgbox::{
    engine::endpoint,
    spec::{LabNames, Name},
    state::{Endpoint, Root},
};

use crate::harness::{Host, run, text, until};

const TRUST: &str = "POSTGRES_HOST_AUTH_METHOD=trust";
const PUBLISHED: u16 = 5440;

/// A lab on a host, as what moves its endpoints sees it.
struct Lab<'h> {
    host: &'h Host,
    root: Root,
    name: Name,
}

impl<'h> Lab<'h> {
    /// With these nodes, each a primary of its own that trusts everybody.
    fn new(host: &'h Host, name: &str, nodes: &[&str]) -> Self {
        for node in nodes {
            host.pgbox(&["--lab", name, "run", node, "postgres:15", "-e", TRUST]);
        }
        Self { host, root: Root::new(&host.root), name: name.parse().unwrap() }
    }

    fn publish(&self, at: &str) {
        self.host.pgbox(&["--lab", self.name.as_str(), "endpoint", "--publish-rw", at]);
    }

    fn address(&self, node: &str) -> Ipv4Addr {
        let rows = self.host.json(&["--lab", self.name.as_str(), "ps", "--json"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["node"] == node).expect("the node");
        row["address"].as_str().unwrap().parse().unwrap()
    }

    fn endpoint(&self, which: Endpoint) -> Ipv4Addr {
        self.root.load_lab(&self.name).unwrap().unwrap().endpoint(which)
    }

    fn point(&self, rw: Option<&str>, ro: &[&str]) {
        let ro: Vec<_> = ro.iter().map(|node| self.address(node)).collect();
        let rw = rw.map(|node| self.address(node));
        endpoint::point(&self.root, &self.name, rw, &ro).unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// What nft(8) shows of the table.
    fn listed(&self) -> String {
        run("nft", &["list", "table", "ip", &LabNames::new(self.root.path(), &self.name).endpoint_table])
    }

    /// Who answers on each of these ways, or what becomes of it.
    fn answers(&self, ways: &[Way]) -> Vec<String> {
        let rows = self.host.json(&["--lab", self.name.as_str(), "ps", "--json"]);
        let name = |address: &str| {
            let row = rows.as_array().unwrap().iter().find(|row| row["address"] == address);
            row.map(|row| row["node"].as_str().unwrap().to_owned())
        };
        let ask = |way: &Way| {
            let output = way.psql("SELECT host(inet_server_addr())").output().unwrap();
            let said = format!("{}{}", text(&output.stdout), text(&output.stderr)).trim().to_owned();
            name(&said).unwrap_or(said)
        };
        ways.iter().map(ask).collect()
    }

    /// From the host, over an endpoint's own address.
    fn way(&self, which: Endpoint) -> Way {
        Way { name: which.word(), netns: None, address: self.endpoint(which), port: 5432 }
    }

    /// Who answers at an endpoint, in so many sessions one after the other.
    fn who(&self, which: Endpoint, sessions: usize) -> Vec<String> {
        let mut who: Vec<String> = (0..sessions).flat_map(|_| self.answers(&[self.way(which)])).collect();
        who.sort();
        who.dedup();
        who
    }

    fn sleepers(&self, node: &str) -> usize {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active' \
                     AND pid <> pg_backend_pid()";
        let said = self.host.pgbox(&["--lab", self.name.as_str(), "psql", node, "-Atc", count]);
        said.trim().parse().unwrap()
    }

    fn wake(&self, node: &str) {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' \
                   AND pid <> pg_backend_pid()";
        self.host.pgbox(&["--lab", self.name.as_str(), "psql", node, "-Atc", end]);
        until("they are gone", 20, || self.sleepers(node) == 0);
    }
}

/// A client: where it runs, and whom it calls.
struct Way {
    name: &'static str,
    /// A network namespace; none is the host's.
    netns: Option<String>,
    address: Ipv4Addr,
    port: u16,
}

impl Way {
    fn psql(&self, sql: &str) -> Command {
        self.command(&["-c", sql])
    }

    /// Statements come from standard input.
    fn shell(&self) -> Command {
        let mut command = self.command(&["-v", "ON_ERROR_STOP=1"]);
        command.stdin(Stdio::piped());
        command
    }

    fn command(&self, more: &[&str]) -> Command {
        let (address, port) = (self.address.to_string(), self.port.to_string());
        let psql = [&["psql", "-XAtq", "-h", &address, "-p", &port, "-U", "postgres"], more].concat();
        let enter = self.netns.iter().flat_map(|name| ["ip", "netns", "exec", name]);
        let words: Vec<&str> = enter.chain(psql).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("PGCONNECT_TIMEOUT", "5").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// From the host, a node, the node that is about to become the target, and through the published port, also from
/// another machine.
fn ways(lab: &Lab, new: &str) -> Vec<Way> {
    run("ip", &["netns", "add", "outside"]);
    run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", "outside"]);
    run("ip", &["addr", "add", "192.0.2.1/24", "dev", "up0"]);
    run("ip", &["link", "set", "up0", "up"]);
    run("ip", &["-n", "outside", "addr", "add", "192.0.2.2/24", "dev", "eth0"]);
    run("ip", &["-n", "outside", "link", "set", "eth0", "up"]);
    let netns = |node: &str| {
        let names = pgbox::spec::ObjectNames::new(lab.root.path(), &lab.name, &node.parse().unwrap());
        Some(names.netns)
    };
    let (rw, host) = (lab.endpoint(Endpoint::Rw), Ipv4Addr::new(192, 0, 2, 1));
    let way = |name, netns, address, port| Way { name, netns, address, port };
    vec![
        way("host", None, rw, 5432),
        way("host, published", None, Ipv4Addr::LOCALHOST, PUBLISHED),
        way("node", netns("client"), rw, 5432),
        way("new primary", netns(new), rw, 5432),
        way("another machine, published", Some("outside".to_owned()), host, PUBLISHED),
    ]
}

/// How a session ended, within a second of `moved`.
#[track_caller]
fn ended_with_an_error(name: &str, child: Child, moved: Instant) {
    let mut child = child;
    while child.try_wait().unwrap().is_none() {
        if moved.elapsed() > Duration::from_secs(5) {
            child.kill().unwrap();
            panic!("{name}: still waiting after 5 s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = moved.elapsed();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success(), "{name}: {}", text(&output.stdout));
    let said = text(&output.stderr);
    assert!(
        said.contains("reset by peer") || said.contains("server closed the connection"),
        "{name}: {said}"
    );
    assert!(took < Duration::from_secs(1), "{name}: {took:?}");
}

#[test]
fn a_move_takes_new_sessions_along_and_resets_the_old_ones() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["a", "b", "client"]);
    let other = Lab::new(&host, "other", &["a"]);
    other.point(Some("a"), &[]);
    let bystander = Way { name: "other", netns: None, address: other.endpoint(Endpoint::Rw), port: 5432 };
    let mut bystander = bystander.psql("SELECT pg_sleep(60)").spawn().unwrap();
    lab.publish(&PUBLISHED.to_string());
    lab.point(Some("a"), &[]);
    let ways = ways(&lab, "b");
    assert_eq!(lab.answers(&ways), vec!["a"; ways.len()]);
    assert!(lab.listed().contains(&format!("dnat to {}:5432", lab.address("a"))), "{}", lab.listed());

    let waiting: Vec<_> = ways.iter().map(|way| way.psql("SELECT pg_sleep(60)").spawn().unwrap()).collect();
    until("they wait", 20, || lab.sleepers("a") == ways.len() && other.sleepers("a") == 1);
    lab.point(Some("a"), &["a"]);
    assert_eq!(lab.sleepers("a"), ways.len(), "nobody has moved");

    lab.point(Some("b"), &[]);
    let moved = Instant::now();
    for (way, child) in ways.iter().zip(waiting) {
        ended_with_an_error(way.name, child, moved);
    }
    assert_eq!(lab.answers(&ways), vec!["b"; ways.len()]);
    assert!(!lab.listed().contains(&format!("dnat to {}:5432", lab.address("a"))), "{}", lab.listed());
    assert!(bystander.try_wait().unwrap().is_none(), "the other lab's session goes on");
    assert_eq!(other.sleepers("a"), 1);
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    run("ip", &["netns", "delete", "outside"]);
}

#[test]
fn sessions_of_a_primary_that_is_cut_off_are_reset() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["a", "b", "client"]);
    lab.publish(&PUBLISHED.to_string());
    lab.point(Some("a"), &[]);
    let ways = ways(&lab, "b");
    let waiting: Vec<_> = ways.iter().map(|way| way.psql("SELECT pg_sleep(60)").spawn().unwrap()).collect();
    until("they wait", 20, || lab.sleepers("a") == ways.len());
    let names = pgbox::spec::ObjectNames::new(&host.root, &lab.name, &"a".parse().unwrap());
    run("ip", &["link", "set", &names.veth, "down"]);
    lab.point(Some("b"), &[]);
    let moved = Instant::now();
    for (way, child) in ways.iter().zip(waiting) {
        ended_with_an_error(way.name, child, moved);
    }
    assert_eq!(lab.answers(&ways), vec!["b"; ways.len()]);
    run("ip", &["netns", "delete", "outside"]);
}

#[test]
fn without_a_primary_connections_are_refused_at_once() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["a", "client"]);
    lab.publish(&PUBLISHED.to_string());
    lab.point(None, &["a"]);
    let ways = ways(&lab, "a");
    for (way, said) in ways.iter().zip(lab.answers(&ways)) {
        assert!(said.contains("Connection refused"), "{}: {said}", way.name);
    }
    let reads = Way { name: "", netns: None, address: lab.endpoint(Endpoint::Ro), port: 5432 };
    assert_eq!(lab.answers(&[reads]), ["a"]);
    run("ip", &["netns", "delete", "outside"]);
}

#[test]
fn endpoints_are_there_from_the_first_node_to_the_last() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["a"]);
    let [rw, ro] = Endpoint::BOTH;
    let both = || [lab.who(rw, 1), lab.who(ro, 1)].concat();
    assert_eq!(both(), ["a", "a"]);
    // A second primary takes nothing away from the first, which a restart does not either.
    host.pgbox(&["run", "b", "postgres:15", "-e", TRUST]);
    assert!(![lab.address("a"), lab.address("b")].contains(&lab.endpoint(rw)));
    assert_eq!(both(), ["a", "a"]);
    host.pgbox(&["restart", "a"]);
    assert_eq!(both(), ["a", "a"]);
    host.pgbox(&["stop", "a"]);
    assert!(lab.who(rw, 1)[0].contains("Connection refused"), "b is another cluster");
    host.pgbox(&["start", "a"]);
    assert_eq!(both(), ["a", "a"]);

    let addresses = run("ip", &["-4", "-o", "addr"]);
    for which in Endpoint::BOTH {
        assert_eq!(addresses.matches(&format!(" {}/32 ", lab.endpoint(which))).count(), 1, "{addresses}");
    }
    let listed = lab.listed();
    lab.point(Some("a"), &[]);
    assert_eq!(lab.listed(), listed, "doing it again changes nothing");
    endpoint::remove(&lab.root, &lab.name).unwrap();
    endpoint::remove(&lab.root, &lab.name).unwrap();
    assert!(!run("ip", &["-4", "-o", "addr"]).contains(&lab.endpoint(ro).to_string()));
    assert!(!run("nft", &["list", "tables"]).contains("/endpoint"));

    host.pgbox(&["rm", "-f", "-v", "a"]);
    assert_eq!(both(), ["b", "b"], "the only one left");
    host.pgbox(&["stop", "b"]);
    assert!(!run("nft", &["list", "tables"]).contains("pgbox"));
    let error = endpoint::point(&lab.root, &lab.name, None, &[]).unwrap_err();
    assert!(error.to_string().contains("none of its nodes runs"), "{error:#}");
    let shown = host.json(&["endpoint", "--json"]);
    assert_eq!(shown[0]["leads_to"].as_array().unwrap().len(), 0, "{shown}");
    host.pgbox(&["start", "b"]);
    assert_eq!(both(), ["b", "b"]);
    host.pgbox(&["rm", "-f", "-v", "b"]);
    host.is_clean();
}

#[test]
fn reads_go_to_the_standbys_that_answer_and_are_not_late_on_purpose() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["p"]);
    let ro = Endpoint::Ro;
    host.pgbox(&["replica", "late", "--of", "p", "--delay", "1min"]);
    assert_eq!(lab.who(ro, 2), ["p"]);
    let sleep = "SELECT pg_sleep(60)";
    let mut early = lab.way(ro).psql(sleep).spawn().unwrap();
    until("it reads", 20, || lab.sleepers("p") == 1);
    host.pgbox(&["replica", "r1", "--of", "p"]);
    host.pgbox(&["replica", "r2", "--of", "r1"]);
    assert_eq!(lab.who(ro, 4), ["r1", "r2"]);
    assert_eq!(lab.sleepers("p"), 1, "it may go on where it has begun");
    early.kill().unwrap();
    early.wait().unwrap();
    let shown = host.json(&["endpoint", "--json"]);
    assert_eq!(shown[0]["leads_to"], serde_json::json!(["p"]));
    assert_eq!(shown[1]["leads_to"], serde_json::json!(["r1", "r2"]));

    // Who is not concerned by a change goes on.
    let mut readers: Vec<Child> = (0..2).map(|_| lab.way(ro).psql(sleep).spawn().unwrap()).collect();
    until("they read", 20, || lab.sleepers("r1") == 1 && lab.sleepers("r2") == 1);
    host.pgbox(&["stop", "r2"]);
    assert_eq!(lab.who(ro, 3), ["r1"]);
    assert_eq!(lab.sleepers("r1"), 1);
    host.pgbox(&["start", "r2"]);
    assert_eq!(lab.who(ro, 4), ["r1", "r2"]);
    host.pgbox(&["reinit", "r2"]);
    assert_eq!(lab.who(ro, 4), ["r1", "r2"]);
    // Nobody is sent to one that is frozen or has crashed.
    host.pgbox(&["freeze", "r2"]);
    assert_eq!(lab.who(ro, 3), ["r1"]);
    host.pgbox(&["thaw", "r2"]);
    assert_eq!(lab.who(ro, 4), ["r1", "r2"]);
    host.pgbox(&["crash", "r2", "--node"]);
    assert_eq!(lab.who(ro, 3), ["r1"]);
    assert_eq!(lab.sleepers("r1"), 1);
    host.pgbox(&["rm", "-f", "-v", "r2", "r1"]);
    assert_eq!(lab.who(ro, 2), ["p"]);
    for reader in &mut readers {
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
    host.pgbox(&["rm", "-f", "-v", "late", "p"]);
    host.is_clean();
}

/// Sessions through the read-write endpoint: one that waits for an answer, a psql that was asked nothing yet after it
/// had connected, and a client of no library that only listens.
struct Sessions {
    waiting: Child,
    asked: Child,
    listening: TcpStream,
}

impl Sessions {
    fn new(lab: &Lab, primary: &str) -> Self {
        let way = lab.way(Endpoint::Rw);
        let waiting = way.psql("SELECT pg_sleep(60)").spawn().unwrap();
        let mut asked = way.shell().spawn().unwrap();
        writeln!(asked.stdin.as_mut().unwrap(), "SELECT 'before';").unwrap();
        let mut said = [0; 7];
        asked.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"before\n");
        let mut listening = TcpStream::connect((way.address, way.port)).unwrap();
        // PostgreSQL manual 55.7, StartupMessage and ReadyForQuery.
        let startup = [&0x0003_0000u32.to_be_bytes()[..], b"user\0postgres\0\0"].concat();
        listening.write_all(&[&(startup.len() as u32 + 4).to_be_bytes()[..], &startup].concat()).unwrap();
        let mut greeting = Vec::new();
        while !greeting.ends_with(b"Z\0\0\0\x05I") {
            let mut byte = [0];
            listening.read_exact(&mut byte).unwrap();
            greeting.extend(byte);
        }
        until("it waits", 20, || lab.sleepers(primary) == 1);
        Self { waiting, asked, listening }
    }

    /// All of them have ended, at most a second after `moved`.
    #[track_caller]
    fn end(mut self, moved: Instant) {
        self.listening.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        // What the server had to say before it went; then nothing, or a reset.
        let said = loop {
            match self.listening.read(&mut [0; 256]) {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        said.expect("an end of the session that only listens");
        assert!(moved.elapsed() < Duration::from_secs(1), "{:?}", moved.elapsed());
        ended_with_an_error("waiting", self.waiting, moved);
        let ask = writeln!(self.asked.stdin.as_mut().unwrap(), "SELECT 'after';");
        drop((ask, self.asked.stdin.take()));
        ended_with_an_error("asked", self.asked, moved);
    }
}

#[test]
fn a_switchover_takes_the_endpoints_along() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["p"]);
    host.pgbox(&["replica", "r1", "--of", "p"]);
    host.pgbox(&["replica", "r2", "--of", "p"]);
    let uris = ["--rw", "--ro"].map(|which| host.pgbox(&["uri", which]));
    for (old, new, standbys) in [("p", "r1", ["p", "r2"]), ("r1", "p", ["r1", "r2"])] {
        let foretold = host.pgbox(&["switchover", new, "--dry-run"]);
        assert!(foretold.contains(&format!("move: {} to `{new}`", lab.endpoint(Endpoint::Rw))), "{foretold}");
        let sessions = Sessions::new(&lab, old);
        let readers: Vec<Child> =
            (0..2).map(|_| lab.way(Endpoint::Ro).psql("SELECT pg_sleep(60)").spawn().unwrap()).collect();
        until("they read", 20, || lab.sleepers(new) == 1 && lab.sleepers("r2") == 1);
        host.pgbox(&["switchover", new]);
        sessions.end(Instant::now());
        assert_eq!((lab.sleepers(new), lab.sleepers("r2")), (1, 1), "readers go on");
        for mut reader in readers {
            reader.kill().unwrap();
            reader.wait().unwrap();
        }
        // A server that sleeps takes no notice of that.
        [new, "r2"].iter().for_each(|node| lab.wake(node));
        assert_eq!(lab.who(Endpoint::Rw, 2), [new]);
        assert_eq!(lab.who(Endpoint::Ro, 4), standbys);
    }
    assert_eq!(["--rw", "--ro"].map(|which| host.pgbox(&["uri", which])), uris);
    run("psql", &["-XAtc", "CREATE TABLE t ()", uris[0].trim()]);
}

/// It neither answers nor closes anything that its clients would hear of.
#[test]
fn a_failover_from_a_frozen_and_unreachable_primary_resets_its_clients() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["p"]);
    host.pgbox(&["replica", "r1", "--of", "p"]);
    host.pgbox(&["replica", "r2", "--of", "p"]);
    let sessions = Sessions::new(&lab, "p");
    host.pgbox(&["freeze", "p"]);
    let late = lab.way(Endpoint::Rw).psql("SELECT 'nobody answers'").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    host.pgbox(&["net", "cut", "p", "host"]);
    host.pgbox(&["failover", "r1"]);
    let moved = Instant::now();
    ended_with_an_error("late", late, moved);
    sessions.end(moved);
    assert_eq!(lab.who(Endpoint::Rw, 2), ["r1"]);
    assert_eq!(lab.who(Endpoint::Ro, 2), ["r2"]);
    host.pgbox(&["net", "heal", "p", "host"]);
    host.pgbox(&["rejoin", "p"]);
    assert_eq!(lab.who(Endpoint::Ro, 4), ["p", "r2"]);
}

#[test]
fn a_promotion_in_place_of_a_primary_that_is_gone_moves_them() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["p"]);
    host.pgbox(&["replica", "r1", "--of", "p"]);
    host.pgbox(&["replica", "r2", "--of", "p"]);
    host.pgbox(&["stop", "p"]);
    assert!(lab.who(Endpoint::Rw, 1)[0].contains("Connection refused"));
    assert_eq!(lab.who(Endpoint::Ro, 4), ["r1", "r2"], "reads go on");
    host.pgbox(&["promote", "r1"]);
    assert_eq!(lab.who(Endpoint::Rw, 1), ["r1"]);
    assert_eq!(lab.who(Endpoint::Ro, 2), ["r2"]);
    host.pgbox(&["rm", "-f", "-v", "p", "r1"]);
    host.pgbox(&["promote", "r2"]);
    assert_eq!([lab.who(Endpoint::Rw, 1), lab.who(Endpoint::Ro, 1)].concat(), ["r2", "r2"]);
}

/// The same without anybody ending the old primary: what is reset is reset by the move alone.
#[test]
fn sessions_of_a_frozen_primary_are_reset_by_the_move() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["a", "b"]);
    let sessions = Sessions::new(&lab, "a");
    host.pgbox(&["freeze", "a"]);
    lab.point(Some("b"), &[]);
    sessions.end(Instant::now());
    assert_eq!(lab.who(Endpoint::Rw, 1), ["b"]);
    host.pgbox(&["thaw", "a"]);
}

#[test]
fn a_uri_names_a_role_and_psql_takes_it() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "p", "postgres:15", "-e", "POSTGRES_DB=shop"]);
    let lab = Lab::new(&host, "default", &[]);
    host.pgbox(&["replica", "r1", "--of", "p"]);
    lab.publish(&format!("127.0.0.1:{PUBLISHED}"));
    let nodes = ["p", "r1"].map(|node| lab.address(node));
    let ask = |args: &[&str]| {
        let uri = host.pgbox(&[&["uri"], args].concat());
        let sql = "SELECT host(inet_server_addr()), pg_is_in_recovery(), current_database()";
        run("psql", &["-XAtc", sql, uri.trim()]).trim().to_owned()
    };
    let (primary, standby) = (format!("{}|f|shop", nodes[0]), format!("{}|t|shop", nodes[1]));
    assert_eq!(ask(&["--rw"]), primary);
    assert_eq!(ask(&["--ro"]), standby);
    assert_eq!(ask(&["--rw", "--published"]), primary);
    assert_eq!(ask(&["--rw", "--hosts"]), primary);
    assert_eq!(ask(&["--ro", "--hosts"]), standby);
    assert_eq!(ask(&["--ro", "--with-password"]), standby);

    let shown = host.json(&["uri", "--rw", "--json"]);
    assert_eq!(shown["endpoint"], "rw");
    assert_eq!(shown["host"], lab.endpoint(Endpoint::Rw).to_string());
    let shown = host.json(&["uri", "--ro", "--hosts", "--json"]);
    assert_eq!(shown["hosts"].as_array().unwrap().len(), 2);
    assert!(shown["uri"].as_str().unwrap().contains("target_session_attrs=prefer-standby"), "{shown}");

    host.fails(2, &["uri"]);
    host.fails(2, &["uri", "p", "--rw"]);
    host.fails(2, &["uri", "--rw", "--ro"]);
    host.fails(2, &["uri", "p", "--hosts"]);
    let said = host.fails(1, &["uri", "--ro", "--published"]);
    assert!(said.contains("the ro endpoint of lab `default` is not published"), "{said}");
}

#[test]
fn an_endpoint_is_published_where_nobody_else_is() {
    let Some(host) = Host::new() else { return };
    let lab = Lab::new(&host, "default", &["p"]);
    host.pgbox(&["run", "x", "postgres:15", "-e", TRUST, "-p", "5441:5432"]);
    let at = |port| [Way { name: "", netns: None, address: Ipv4Addr::LOCALHOST, port }];
    host.pgbox(&["endpoint", "--publish-rw", "5440", "--publish-ro", "127.0.0.1:5442"]);
    assert_eq!([lab.answers(&at(5440)), lab.answers(&at(5442))].concat(), ["p", "p"]);
    // The same again is no collision; what others have is one, in both directions.
    host.pgbox(&["endpoint", "--publish-rw", "5440"]);
    let said = host.fails(1, &["endpoint", "--publish-rw", "5441"]);
    assert!(said.contains("node `x` of lab `default` has it"), "{said}");
    let said = host.fails(1, &["endpoint", "--publish-rw", "5442"]);
    assert!(said.contains("both endpoints can't have port 5442"), "{said}");
    let said = host.fails(1, &["run", "y", "postgres:15", "-p", "5440:5432"]);
    assert!(said.contains("an endpoint of lab `default` has it"), "{said}");
    host.fails(2, &["endpoint", "--publish-rw", "1:2:3"]);
    assert_eq!(lab.answers(&at(5440)), ["p"], "a refusal changes nothing");

    let explained = host.pgbox(&["endpoint", "--explain"]);
    let script: Vec<&str> = explained
        .lines()
        .skip_while(|line| !line.contains("<<'END'"))
        .skip(1)
        .take_while(|line| line.trim() != "END")
        .collect();
    let file = host.scratch("explained").join("table.nft");
    std::fs::write(&file, script.join("\n") + "\n").unwrap();
    let listed = lab.listed();
    run("nft", &["-f", file.to_str().unwrap()]);
    assert_eq!(lab.listed(), listed, "what is explained is what is done");

    host.pgbox(&["endpoint", "--publish-rw", "off"]);
    assert!(lab.answers(&at(5440))[0].contains("Connection refused"));
    host.pgbox(&["stop", "p", "x"]);
    host.pgbox(&["start", "p"]);
    assert_eq!(lab.answers(&at(5442)), ["p"], "a port outlives a stop");
}
