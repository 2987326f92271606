//! Services that move: `nft::ServiceTable` and `conntrack::Tracker`.

use std::net::Shutdown;

use nft::{Front, Service, ServiceTable};
use pgbox::sys::conntrack;

use super::*;

const AT: Ipv4Addr = Ipv4Addr::new(10, 89, 7, 253);
const AT_ALL: Ipv4Addr = Ipv4Addr::new(10, 89, 7, 254);
const PORT: u16 = 5432;
const PUBLISHED: u16 = 5440;

fn to(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, PORT)
}

/// `rw` leads to `one`, `ro` to `all`; both are published.
fn services(one: &[Ipv4Addr], all: &[Ipv4Addr]) -> ServiceTable {
    let service = |name: &str, at, port, servers: &[Ipv4Addr]| Service {
        name: name.to_owned(),
        at: to(at),
        published: vec![Front { ip: None, port }, Front { ip: Some(Ipv4Addr::LOCALHOST), port: port + 1 }],
        servers: servers.iter().copied().map(to).collect(),
        keep: vec![],
    };
    ServiceTable {
        name: "test/services".to_owned(),
        comment: "lab a".to_owned(),
        subnet: NETWORK,
        services: vec![service("rw", AT, PUBLISHED, one), service("ro", AT_ALL, PUBLISHED + 2, all)],
    }
}

#[test]
fn the_encoder_and_its_text_make_the_same_services() {
    isolated_with_nat(|| {
        netns::create("n1").unwrap();
        let third = Ipv4Addr::new(10, 89, 7, 9);
        for (one, all) in [(vec![NODE], vec![NODE, OTHER, third]), (vec![], vec![])] {
            let table = services(&one, &all);
            nft::replace(&table).unwrap();
            let ours = ruleset(&json("nft -j list ruleset"));
            let listed = run("nft list table ip test/services");
            std::fs::write("/run/table.nft", table.to_nft()).unwrap();
            run("ip netns exec n1 nft flush ruleset; ip netns exec n1 nft -f /run/table.nft");
            assert_eq!(table.to_nft(), listed, "reads as nft prints it");
            assert_eq!(ours, ruleset(&json("ip netns exec n1 nft -j list ruleset")));
            assert_eq!(listed, run("ip netns exec n1 nft list table ip test/services"));
        }
    });
}

/// To delete a base chain takes the kernel 20-60 ms, during which the transaction does not return.
#[test]
fn other_servers_are_other_rules_in_the_chains_that_stand() {
    isolated_with_nat(|| {
        let chains = || {
            let listed = run("nft -a list ruleset");
            listed.lines().filter(|line| line.contains("chain ")).map(str::to_owned).collect::<Vec<_>>()
        };
        nft::replace(&services(&[NODE], &[OTHER])).unwrap();
        let before = chains();
        let same = run("nft -a list ruleset");
        assert!(nft::replace(&services(&[NODE], &[OTHER])).unwrap().is_none(), "it is there");
        assert_eq!(run("nft -a list ruleset"), same);
        for (one, all) in [(vec![OTHER], vec![]), (vec![], vec![NODE, OTHER]), (vec![NODE], vec![OTHER])] {
            let table = services(&one, &all);
            assert!(nft::replace(&table).unwrap().is_some());
            assert_eq!(run("nft list table ip test/services"), table.to_nft());
        }
        assert_eq!(chains(), before);
        // Somebody has changed the chains: they are made anew.
        run(
            "nft delete table ip test/services; nft 'table ip test/services { comment \"lab a\"; chain x { }; }'",
        );
        let table = services(&[NODE], &[OTHER]);
        nft::replace(&table).unwrap();
        assert_eq!(run("nft list table ip test/services"), table.to_nft());
    });
}

#[test]
fn somebody_elses_table_is_not_replaced() {
    isolated_with_nat(|| {
        run("nft 'table ip test/services { comment \"theirs\"; }'");
        let before = run("nft -a list ruleset");
        let error = nft::replace(&services(&[NODE], &[])).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EEXIST), "{error:#}");
        assert_eq!(run("nft -a list ruleset"), before);
    });
}

#[test]
fn an_address_comes_and_goes_more_than_once() {
    isolated_with_nat(|| {
        link::create_bridge(&bridge()).unwrap();
        let shown = || run(&format!("ip -4 -o addr show {BRIDGE}"));
        for _ in 0..2 {
            link::add_address(BRIDGE, AT, 32).unwrap();
            assert!(shown().contains("10.89.7.253/32"), "{}", shown());
        }
        for _ in 0..2 {
            link::remove_address(BRIDGE, AT, 32).unwrap();
            assert!(!shown().contains("10.89.7.253"), "{}", shown());
        }
        link::remove_address("nosuch", AT, 32).unwrap();
        assert_eq!(errno(&link::add_address("nosuch", AT, 32).unwrap_err()), Some(Errno::ENODEV));
    });
}

/// A server that says its letter to every client, and then waits for what they say.
struct Server {
    listener: TcpListener,
}

fn server(ns: &OwnedFd, address: Ipv4Addr) -> Server {
    Server { listener: netns::run_in(ns.as_fd(), || TcpListener::bind((address, PORT)).unwrap()).unwrap() }
}

impl Server {
    /// A session of each path, as client and server have it.
    fn sessions(&self, machine: &Machine) -> Vec<(&'static str, TcpStream, TcpStream)> {
        let open = |(name, from, at, port)| {
            let client = connect(from, at, port).unwrap_or_else(|e| panic!("{name}: {e}"));
            let (server, _) = self.listener.accept().unwrap();
            (name, client, server)
        };
        paths(machine).into_iter().map(open).collect()
    }
}

type Path<'a> = (&'static str, Option<&'a OwnedFd>, Ipv4Addr, u16);

fn paths(Machine { node, other, outside }: &Machine) -> Vec<Path<'_>> {
    vec![
        ("machine", None, AT, PORT),
        ("loopback", None, Ipv4Addr::LOCALHOST, PUBLISHED),
        ("loopback only", None, Ipv4Addr::LOCALHOST, PUBLISHED + 1),
        ("machine, published", None, HOST, PUBLISHED),
        ("the server itself", Some(node), AT, PORT),
        ("another node", Some(other), AT, PORT),
        ("another node, published", Some(other), HOST, PUBLISHED),
        ("outside, published", Some(outside), HOST, PUBLISHED),
    ]
}

/// What a read ends with, and after how long.
fn ends(stream: &mut TcpStream) -> (Option<ErrorKind>, Duration) {
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let begun = Instant::now();
    let kind = stream.read(&mut [0; 8]).err().map(|e| e.kind());
    (kind, begun.elapsed())
}

fn move_to(one: &[Ipv4Addr]) {
    let table = services(one, &[]);
    nft::replace(&table).unwrap();
    let tracker = conntrack::Tracker::open().unwrap();
    let left = tracker.list().unwrap();
    let left: Vec<_> = left.into_iter().filter(|c| table.resets(c.client.to, *c.server.from.ip())).collect();
    tracker.reset(&left).unwrap();
}

fn prepared(br_netfilter: bool) -> Option<Machine> {
    if !bridge_netfilter(br_netfilter) {
        eprintln!("SKIPPED: this kernel has no br_netfilter");
        return None;
    }
    let machine = machine();
    nft::add(&table(vec![])).unwrap();
    link::add_address(BRIDGE, AT, 32).unwrap();
    link::add_address(BRIDGE, AT_ALL, 32).unwrap();
    Some(machine)
}

fn a_move(br_netfilter: bool) {
    isolated_with_nat(|| {
        let Some(machine) = prepared(br_netfilter) else { return };
        let (old, new) = (server(&machine.node, NODE), server(&machine.other, OTHER));
        move_to(&[NODE]);
        let mut idle = old.sessions(&machine);
        let direct = connect(None, NODE, PORT).unwrap();
        exchange(direct, &old.listener);
        move_to(&[NODE]);
        for (name, client, server) in &mut idle {
            server.write_all(b"still").unwrap();
            let mut bytes = [0; 5];
            client.read_exact(&mut bytes).unwrap_or_else(|e| panic!("{name}: {e}: no move, no reset"));
        }
        move_to(&[OTHER]);
        for (name, client, server) in &mut idle {
            for (end, stream) in [("client", client), ("server", server)] {
                let (kind, took) = ends(stream);
                assert_eq!(kind, Some(ErrorKind::ConnectionReset), "{name}: {end}");
                assert!(took < Duration::from_secs(1), "{name}: {end}: {took:?}");
            }
        }
        for (_, client, _) in new.sessions(&machine) {
            client.shutdown(Shutdown::Both).unwrap();
        }
        // The node's own address leads to the node, whatever the service does.
        exchange(connect(None, NODE, PORT).unwrap(), &old.listener);
    });
}

#[test]
fn a_move_resets_idle_sessions_of_every_path() {
    a_move(false);
}

#[test]
fn a_move_resets_idle_sessions_of_every_path_with_br_netfilter() {
    a_move(true);
}

/// The rules alone, without anybody looking for connections: from the first packet on.
#[test]
fn from_the_move_on_nothing_reaches_the_old_server() {
    isolated_with_nat(|| {
        let Some(machine) = prepared(true) else { return };
        let (old, _new) = (server(&machine.node, NODE), server(&machine.other, OTHER));
        nft::replace(&services(&[NODE], &[])).unwrap();
        let mut sessions = old.sessions(&machine);
        // Who stays in both passes as a server, not as a client.
        nft::replace(&services(&[OTHER], &[OTHER])).unwrap();
        for (name, client, server) in &mut sessions {
            client.write_all(b"lost").unwrap();
            assert_eq!(ends(client).0, Some(ErrorKind::ConnectionReset), "{name}");
            server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            assert_eq!(server.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock, "{name}");
        }
    });
}

/// An answer goes to the client's port, which may be the number of a published one, and that of an address.
#[test]
fn a_session_of_another_service_is_not_taken_for_one_of_a_published_port() {
    isolated_with_nat(|| {
        let Some(machine) = prepared(true) else { return };
        let (_, other) = (server(&machine.node, NODE), server(&machine.other, OTHER));
        let mut table = services(&[NODE], &[OTHER]);
        table.services[0].published.push(Front { ip: None, port: PORT });
        nft::replace(&table).unwrap();
        exchange(connect(None, AT_ALL, PORT).unwrap(), &other.listener);
        exchange(connect_from(PUBLISHED, AT_ALL, PORT), &other.listener);
    });
}

/// A connection of this machine from that port.
fn connect_from(port: u16, address: Ipv4Addr, to: u16) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&fd, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).unwrap();
    connect(&fd, &SocketAddrV4::new(address, to)).unwrap();
    fd.into()
}

#[test]
fn a_service_without_a_server_refuses_at_once() {
    isolated_with_nat(|| {
        for br_netfilter in [false, true] {
            if !bridge_netfilter(br_netfilter) {
                continue;
            }
            let machine = match br_netfilter {
                false => prepared(false).unwrap(),
                true => {
                    let open = |name| netns::open(name).unwrap();
                    Machine { node: open("n1"), other: open("n2"), outside: open("outside") }
                }
            };
            // What the machine itself has on that port is not to be reached by mistake.
            let _own = [AT, HOST, Ipv4Addr::LOCALHOST].map(|a| TcpListener::bind((a, PORT)).unwrap());
            let _published = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PUBLISHED)).unwrap();
            move_to(&[]);
            for (name, from, at, port) in paths(&machine) {
                let error = connect(from, at, port).map(drop).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{name}");
            }
        }
    });
}

#[test]
fn a_connection_that_waits_for_a_dead_server_finds_the_new_one() {
    isolated_with_nat(|| {
        let Some(machine) = prepared(false) else { return };
        let new = server(&machine.other, OTHER);
        run(
            "ip netns exec n1 nft 'table ip dead { chain c { type filter hook input priority 0; policy drop; }; }'",
        );
        move_to(&[NODE]);
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| TcpStream::connect_timeout(&(AT, PORT).into(), Duration::from_secs(5)));
            std::thread::sleep(Duration::from_millis(300));
            move_to(&[OTHER]);
            exchange(waiting.join().unwrap().unwrap(), &new.listener);
        });
    });
}

#[test]
fn servers_take_turns() {
    isolated_with_nat(|| {
        let Some(machine) = prepared(false) else { return };
        let (one, two) = (server(&machine.node, NODE), server(&machine.other, OTHER));
        nft::replace(&services(&[], &[NODE, OTHER])).unwrap();
        for _ in 0..3 {
            let clients = [(); 2].map(|()| connect(None, AT_ALL, PORT).unwrap());
            let [a, b] = [&one, &two].map(|s| s.listener.accept().unwrap());
            drop((clients, a, b));
        }
    });
}

#[test]
fn a_port_published_on_every_address_is_not_that_of_a_service() {
    isolated_with_nat(|| {
        let Some(machine) = prepared(false) else { return };
        let (one, two) = (server(&machine.node, NODE), server(&machine.other, OTHER));
        // As a node does it, and before the service is there.
        let publish =
            NatTable { name: "n1".to_owned(), gateway: None, ..table(vec![everywhere(PORT, to(NODE))]) };
        nft::add(&publish).unwrap();
        nft::replace(&services(&[OTHER], &[])).unwrap();
        let check = || {
            exchange(connect(None, HOST, PORT).unwrap(), &one.listener);
            for from in [None, Some(&machine.node), Some(&machine.other)] {
                exchange(connect(from, AT, PORT).unwrap(), &two.listener);
            }
        };
        check();
        // And after.
        nft::delete("n1").unwrap();
        nft::add(&publish).unwrap();
        check();
        // From another interface only what is published.
        run(&format!("ip -n outside route add {AT} via {HOST}"));
        assert_eq!(connect(Some(&machine.outside), AT, PORT).unwrap_err().kind(), ErrorKind::TimedOut);
    });
}
