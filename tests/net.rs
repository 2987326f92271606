//! Namespaces, links, NAT and sysctls against the real kernel, with `ip` and `nft` as witnesses.
//!
//! Each test is a machine of its own: a thread in new mount and network namespaces with a tmpfs on /run.
//! Whatever it makes ends with that thread, also when it panics, and no packet can leave, because the only
//! interfaces are those it made.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pgbox::sys::link::{self, Bridge, Created, Veth};
use pgbox::sys::nft::{self, Gateway, NatTable, Publish};
use pgbox::sys::{netns, sysctl};
use serde_json::Value;

#[path = "net/service.rs"]
mod service;

const BRIDGE: &str = "br-test";
const ALIAS: &str = "test lab a";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 89, 7, 1);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 89, 7, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 89, 7, 3);
const NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 89, 7, 0), 24);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Says loudly that a test did not run; an error where tests have to.
fn skip(why: &str) {
    let required = ["PGBOX_REQUIRE_ROOT", "CI"].iter().any(|v| std::env::var_os(v).is_some());
    assert!(!required, "may not be skipped here: {why}");
    eprintln!("SKIPPED: {why}");
}

/// Runs `test` on a machine of its own.
fn isolated(test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        return skip("needs root");
    }
    std::thread::scope(|scope| {
        let machine = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            test();
        });
        machine.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// The same, for what Debian's user-mode-linux 6.1 lacks: there, as on any kernel without nf_tables, the
/// questions have an answer and deleting is Ok.
fn isolated_with_nat(test: impl FnOnce() + Send) {
    isolated(|| {
        if nft::supported().unwrap_or_else(|error| panic!("{error:#}")) {
            return test();
        }
        assert_eq!(nft::list().unwrap(), []);
        assert_eq!(nft::forward_policy_drop().unwrap(), None);
        nft::delete("test-node").unwrap();
        assert!(nft::add(&table(vec![])).is_err());
        let why = "this kernel has no nf_tables family ip with NAT";
        if std::fs::read_to_string("/proc/cpuinfo").unwrap().contains("User Mode Linux") {
            eprintln!("SKIPPED: {why}");
        } else {
            skip(why);
        }
    });
}

/// The names of the bridge's ports.
fn ports() -> Vec<String> {
    let links = link::list().unwrap();
    let bridge = links.iter().find(|link| link.name == BRIDGE).unwrap().index;
    links.into_iter().filter(|link| link.controller == Some(bridge)).map(|link| link.name).collect()
}

/// Runs a command in the caller's namespaces; its output, and a panic when it fails.
fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(command: &str) -> Value {
    serde_json::from_str(&run(command)).unwrap()
}

fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.downcast_ref().copied()
}

fn bridge() -> Bridge {
    Bridge {
        name: BRIDGE.to_owned(),
        alias: ALIAS.to_owned(),
        mac: [0xf2, 0, 0, 0, 0, 1],
        address: GATEWAY,
        prefix: 24,
        mtu: Some(1400),
    }
}

fn veth<'a>(name: &str, netns: &'a OwnedFd, last: u8) -> Veth<'a> {
    Veth {
        name: name.to_owned(),
        alias: format!("test node {name}"),
        bridge: BRIDGE.to_owned(),
        netns: netns.as_fd(),
        peer_name: "eth0".to_owned(),
        peer_mac: [0x02, 0, 0, 0, 0, last],
        mtu: Some(1400),
    }
}

/// A namespace plugged into the bridge, with its address and default route.
fn node(name: &str, address: Ipv4Addr) -> OwnedFd {
    netns::create(name).unwrap();
    let ns = netns::open(name).unwrap();
    link::create_veth(&veth(name, &ns, address.octets()[3])).unwrap();
    link::configure(ns.as_fd(), "eth0", address, 24, Some(GATEWAY)).unwrap();
    ns
}

// --- namespaces ---

#[test]
fn a_namespace_is_seen_by_ip_netns_and_goes_away() {
    isolated(|| {
        assert_eq!(netns::list().unwrap(), Vec::<String>::new());
        netns::create("one").unwrap();
        netns::create("two").unwrap();
        assert_eq!(netns::list().unwrap(), ["one", "two"]);
        let names: Vec<_> =
            json("ip -j netns list").as_array().unwrap().iter().map(|n| n["name"].clone()).collect();
        assert_eq!(names.len(), 2, "{names:?}");

        // Another namespace than ours, and the same one by both ways in.
        let own = run("readlink /proc/self/ns/net");
        let there = run("ip netns exec one readlink /proc/self/ns/net");
        assert_ne!(own, there);
        let read = || std::fs::read_link("/proc/thread-self/ns/net").unwrap().display().to_string();
        let ours = netns::run_in(netns::open("one").unwrap().as_fd(), read).unwrap();
        assert_eq!(ours, there.trim());
        assert_eq!(read(), own.trim(), "the caller stays where it is");
        assert!(run("ip -n one -o link").starts_with("1: lo: <LOOPBACK> "));

        // A mount that the host itself has there is hidden below our /run, but still in the table.
        let shared = run("findmnt -no PROPAGATION /run/netns");
        assert_eq!(shared.lines().last(), Some("shared"));
        assert_eq!(shared.matches("shared").count(), 1, "a second create must not mount again");

        netns::delete("one").unwrap();
        netns::delete("one").unwrap();
        assert_eq!(netns::list().unwrap(), ["two"]);
        assert!(!run("cat /proc/thread-self/mountinfo").contains("/run/netns/one"));
        assert_eq!(errno(&netns::open("one").unwrap_err()), Some(Errno::ENOENT));
    });
}

#[test]
fn a_taken_name_is_eexist_and_a_leftover_file_can_be_deleted() {
    isolated(|| {
        netns::create("one").unwrap();
        assert_eq!(errno(&netns::create("one").unwrap_err()), Some(Errno::EEXIST));
        run("touch /run/netns/left");
        assert_eq!(errno(&netns::create("left").unwrap_err()), Some(Errno::EEXIST));
        assert!(netns::open("left").unwrap_err().to_string().contains("empty file"));
        netns::delete("left").unwrap();
        netns::create("left").unwrap();
        run("mount --bind /proc/self/ns/net /run/netns/left");
        netns::delete("left").unwrap();
        assert_eq!(netns::list().unwrap(), ["one"]);
    });
}

#[test]
fn ip_netns_and_we_take_turns() {
    isolated(|| {
        run("ip netns add theirs");
        netns::create("ours").unwrap();
        netns::open("theirs").unwrap();
        run("ip netns delete ours");
        netns::delete("theirs").unwrap();
        assert_eq!(netns::list().unwrap(), Vec::<String>::new());
    });
}

// --- links ---

#[test]
fn a_bridge_keeps_its_mac_and_is_reused_by_its_alias_only() {
    isolated(|| {
        assert_eq!(link::create_bridge(&bridge()).unwrap(), Created::New);
        let shown = &json(&format!("ip -j -d link show {BRIDGE}"))[0];
        assert_eq!(shown["address"], "f2:00:00:00:00:01");
        assert_eq!(shown["ifalias"], ALIAS);
        assert_eq!(shown["mtu"], 1400);
        assert_eq!(shown["linkinfo"]["info_kind"], "bridge");
        assert!(shown["flags"].as_array().unwrap().contains(&"UP".into()));
        let address = &json(&format!("ip -j -4 addr show {BRIDGE}"))[0]["addr_info"][0];
        assert_eq!((&address["local"], &address["prefixlen"]), (&"10.89.7.1".into(), &24.into()));

        // A port with a lower MAC would change it.
        run(&format!(
            "ip link add low address 02:00:00:00:00:01 type veth peer name low-peer; ip link set low master {BRIDGE} up"
        ));
        assert_eq!(json(&format!("ip -j link show {BRIDGE}"))[0]["address"], "f2:00:00:00:00:01");

        run(&format!("ip link set {BRIDGE} down; ip addr flush dev {BRIDGE}"));
        assert_eq!(link::create_bridge(&bridge()).unwrap(), Created::Existed);
        let healed = &json(&format!("ip -j -4 addr show {BRIDGE}"))[0];
        assert!(healed["flags"].as_array().unwrap().contains(&"UP".into()));
        assert_eq!(healed["addr_info"].as_array().unwrap().len(), 1);
        assert_eq!(link::create_bridge(&bridge()).unwrap(), Created::Existed);

        let error = link::create_bridge(&Bridge { alias: "another".to_owned(), ..bridge() }).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EEXIST));
        assert!(error.to_string().contains("somebody else's"), "{error:#}");
        assert_eq!(json(&format!("ip -j link show {BRIDGE}"))[0]["ifalias"], ALIAS);

        run("ip link add plain type veth peer name plain-peer");
        let error = link::create_bridge(&Bridge { name: "plain".to_owned(), ..bridge() }).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EEXIST), "{error:#}");
    });
}

#[test]
fn a_bridge_that_was_left_without_its_alias_is_known_by_its_mac() {
    isolated(|| {
        run(&format!("ip link add {BRIDGE} address f2:00:00:00:00:01 type bridge"));
        assert_eq!(link::create_bridge(&bridge()).unwrap(), Created::Existed);
        assert_eq!(json(&format!("ip -j link show {BRIDGE}"))[0]["ifalias"], ALIAS);
        run(&format!("ip link del {BRIDGE}; ip link add {BRIDGE} address f2:00:00:00:00:02 type bridge"));
        assert_eq!(errno(&link::create_bridge(&bridge()).unwrap_err()), Some(Errno::EEXIST));
    });
}

#[test]
fn a_veth_is_born_in_its_namespace_and_carries_packets() {
    isolated(|| {
        link::create_bridge(&bridge()).unwrap();
        let _ns = node("n1", NODE);
        let here = &json("ip -j -d link show n1")[0];
        assert_eq!(here["master"], BRIDGE);
        assert_eq!(here["ifalias"], "test node n1");
        assert_eq!(here["mtu"], 1400);
        assert!(here["flags"].as_array().unwrap().contains(&"UP".into()));
        assert_eq!(here["linkinfo"]["info_slave_data"]["hairpin"], true);
        let there = &json("ip -n n1 -j -d addr show eth0")[0];
        for end in [here, there] {
            assert_eq!([&end["num_tx_queues"], &end["num_rx_queues"]], [1, 1], "{end}");
        }
        assert_eq!(there["address"], "02:00:00:00:00:02");
        assert_eq!(there["mtu"], 1400);
        assert_eq!(there["addr_info"][0]["local"], "10.89.7.2");
        assert_eq!(there["link_netnsid"], 0, "the other end is in another namespace");
        let lo = &json("ip -n n1 -j link show lo")[0];
        assert!(lo["flags"].as_array().unwrap().contains(&"UP".into()));
        let default = &json("ip -n n1 -j route show default")[0];
        assert_eq!((&default["gateway"], &default["dev"]), (&"10.89.7.1".into(), &"eth0".into()));

        let ns = netns::open("n1").unwrap();
        link::configure(ns.as_fd(), "eth0", NODE, 24, Some(GATEWAY)).unwrap();
        assert_eq!(json("ip -n n1 -j route show default").as_array().unwrap().len(), 1);

        let listener = listen(&ns, NODE);
        let seen = talk(None, &listener, NODE).unwrap();
        assert_eq!(seen, IpAddr::V4(GATEWAY));
        let counted = link::stats("n1").unwrap();
        assert!(counted.rx_packets > 0 && counted.tx_packets > 0, "{counted:?}");
        let witness = &json("ip -j -s link show n1")[0]["stats64"];
        assert!(witness["rx"]["bytes"].as_u64().unwrap() >= counted.rx_bytes);
    });
}

#[test]
fn a_restart_waits_for_the_dying_veth() {
    isolated(|| {
        link::create_bridge(&bridge()).unwrap();
        for _ in 0..5 {
            // The host's end outlives its namespace by some 30 ms.
            drop(node("n1", NODE));
            netns::delete("n1").unwrap();
        }
        drop(node("n1", NODE));
        assert_eq!(ports(), ["n1"]);
    });
}

#[test]
fn a_veth_of_ours_that_stays_is_replaced_and_others_are_not() {
    isolated(|| {
        link::create_bridge(&bridge()).unwrap();
        netns::create("n2").unwrap();
        let ns = netns::open("n2").unwrap();
        // Held open, its namespace does not die.
        let held = node("n1", NODE);
        let before = link::list().unwrap().into_iter().find(|l| l.name == "n1").unwrap();
        let started = Instant::now();
        link::create_veth(&veth("n1", &ns, 2)).unwrap();
        assert!(started.elapsed() < Duration::from_secs(3));
        let after = link::list().unwrap().into_iter().find(|l| l.name == "n1").unwrap();
        assert_ne!(before.index, after.index);
        drop(held);

        run("ip link add theirs type bridge");
        let error = link::create_veth(&veth("theirs", &ns, 3)).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EEXIST));
        assert!(error.to_string().contains("somebody else's"), "{error:#}");
        let error = link::create_veth(&veth("n3", &ns, 3)).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EEXIST), "eth0 is taken in there");
        assert!(error.to_string().contains("eth0"), "{error:#}");
        assert!(!link::exists("n3").unwrap());

        let lost = Veth { bridge: "nosuch".to_owned(), ..veth("n4", &ns, 4) };
        assert_eq!(errno(&link::create_veth(&lost).unwrap_err()), Some(Errno::ENODEV));
    });
}

#[test]
fn lists_agree_with_ip() {
    isolated(|| {
        link::create_bridge(&bridge()).unwrap();
        let _ns = node("n1", NODE);
        run("ip link add plain address 02:00:00:00:00:99 type bridge; ip link set plain alias hello");
        run(
            "ip link set plain up; ip addr add 192.0.2.1/30 dev plain; ip route add 198.51.100.0/24 via 192.0.2.2",
        );
        run("ip route add unreachable 203.0.113.0/24; ip route add default dev plain");
        // Where the kernel was built without several next hops, one.
        run(
            "ip route add 10.0.0.0/8 nexthop via 192.0.2.2 nexthop dev plain || ip route add 10.0.0.0/8 via 192.0.2.2",
        );
        run("ip route add 10.55.0.0/16 dev plain table 77");

        let links = link::list().unwrap();
        let witness = json("ip -j -d link");
        assert_eq!(links.len(), witness.as_array().unwrap().len());
        for (ours, theirs) in links.iter().zip(witness.as_array().unwrap()) {
            assert_eq!(Value::from(ours.name.as_str()), theirs["ifname"]);
            assert_eq!(Value::from(ours.index), theirs["ifindex"]);
            assert_eq!(ours.alias.as_deref(), theirs["ifalias"].as_str());
            assert_eq!(ours.kind.as_deref(), theirs["linkinfo"]["info_kind"].as_str());
            assert_eq!(ours.up, theirs["flags"].as_array().unwrap().contains(&"UP".into()));
            let mac = ours.mac.map(|m| m.map(|b| format!("{b:02x}")).join(":"));
            // A tunnel's address is not a MAC.
            let theirs_mac = theirs["address"].as_str().filter(|mac| mac.len() == 17);
            assert_eq!(mac.as_deref(), theirs_mac);
            let controller = links.iter().find(|l| Some(l.index) == ours.controller).map(|l| l.name.as_str());
            assert_eq!(controller, theirs["master"].as_str());
        }
        assert_eq!(ports(), ["n1"]);

        let addresses: Vec<_> = link::addresses().unwrap();
        let shown: Vec<_> =
            addresses.iter().map(|a| format!("{} {}/{}", a.dev, a.address, a.prefix)).collect();
        let expected = run("ip -4 -o addr | awk '{print $2, $4}'");
        assert_eq!(shown, expected.lines().collect::<Vec<_>>());

        let routes = link::routes().unwrap();
        let shown: Vec<_> = routes
            .iter()
            .map(|r| (format!("{}/{}", r.dst.0, r.dst.1), r.dev.clone().unwrap_or_default(), r.gateway))
            .collect();
        let via = Some(OUTSIDE);
        for expected in [
            ("0.0.0.0/0", "plain", None),
            ("10.0.0.0/8", "plain", via),
            ("10.89.7.0/24", BRIDGE, None),
            ("192.0.2.0/30", "plain", None),
            ("198.51.100.0/24", "plain", via),
            ("203.0.113.0/24", "", None),
        ] {
            let expected = (expected.0.to_owned(), expected.1.to_owned(), expected.2);
            assert!(shown.contains(&expected), "{expected:?} in {shown:?}");
        }
        assert_eq!(shown.len(), 6, "{shown:?}");

        assert!(link::delete("n1").unwrap());
        assert!(!link::delete("n1").unwrap());
        assert!(!link::exists("n1").unwrap() && link::exists(BRIDGE).unwrap());
        assert!(!run("ip -n n1 -o link").contains("eth0"), "the other end went along");
    });
}

/// The whole network of one node has a budget of 3 ms of processor time. Through the programs it takes 90.
#[test]
fn a_node_costs_little_processor_time() {
    isolated_with_nat(|| {
        link::create_bridge(&bridge()).unwrap();
        let mut samples: Vec<_> = (0..15u8)
            .map(|i| {
                let (name, address) = (format!("n{i}"), Ipv4Addr::new(10, 89, 7, 10 + i));
                let to = SocketAddrV4::new(address, 5432);
                let table = NatTable { name: name.clone(), ..table(vec![everywhere(1, to)]) };
                let before = processor_time();
                netns::create(&name).unwrap();
                let created = processor_time();
                let ns = netns::open(&name).unwrap();
                link::create_bridge(&bridge()).unwrap();
                link::create_veth(&veth(&name, &ns, address.octets()[3])).unwrap();
                link::configure(ns.as_fd(), "eth0", address, 24, Some(GATEWAY)).unwrap();
                let linked = processor_time();
                nft::add(&table).unwrap();
                let end = processor_time();
                (end - before, created - before, linked - created, end - linked)
            })
            .collect();
        samples.sort();
        let (all, netns, links, nat) = samples[0]; // the one least disturbed by other tests
        eprintln!("best: {all:?} = namespace {netns:?} + links {links:?} + NAT {nat:?}");
        assert!(all < Duration::from_millis(3), "{samples:?}");
    });
}

/// User and system time of this thread and of the short-lived ones it waited for. Theirs is only in the
/// process's sum, so other tests in this process are in it too; nextest gives each test its own.
fn processor_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    time.into()
}

// --- sysctl ---

#[test]
fn sysctls_follow_the_namespace_and_say_whether_they_changed() {
    isolated(|| {
        run("ip link add v.100 type bridge");
        // A new namespace begins with what the host has set.
        sysctl::set("net.ipv4.ip_forward", "0").unwrap();
        assert!(sysctl::set("net.ipv4.ip_forward", "1").unwrap());
        assert!(!sysctl::set("net.ipv4.ip_forward", "1").unwrap());
        assert_eq!(run("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
        let name = sysctl::ipv4_conf("v.100", "route_localnet");
        assert!(sysctl::set(&name, "1").unwrap());
        assert_eq!(run("cat /proc/sys/net/ipv4/conf/v.100/route_localnet"), "1\n");
        assert!(sysctl::set("net.ipv4.ip_local_port_range", "30000 40000").unwrap());
        assert!(!sysctl::set("net.ipv4.ip_local_port_range", "30000 40000").unwrap());

        netns::create("n1").unwrap();
        let ns = netns::open("n1").unwrap();
        let there =
            netns::run_in(ns.as_fd(), || sysctl::get("net.ipv4.ip_local_port_range").unwrap()).unwrap();
        assert!(!there.starts_with("30000"), "{there}");

        let error = sysctl::set("net.ipv4.ip_local_port_range", "x").unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EINVAL));
        assert!(error.to_string().contains("/proc/sys/net/ipv4/ip_local_port_range"), "{error:#}");
        run(
            "mount -t tmpfs tmpfs /mnt; mount --bind -o ro /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys",
        );
        assert!(!sysctl::set("net.ipv4.ip_forward", "1").unwrap(), "already right: no write needed");
        assert_eq!(errno(&sysctl::set("net.ipv4.ip_forward", "0").unwrap_err()), Some(Errno::EROFS));
    });
}

// --- NAT ---

fn table(publish: Vec<Publish>) -> NatTable {
    NatTable {
        name: "test-node".to_owned(),
        comment: "lab a, node n1".to_owned(),
        gateway: Some(Gateway { bridge: BRIDGE.to_owned(), subnet: NETWORK }),
        publish,
    }
}

fn everywhere(host_port: u16, to: SocketAddrV4) -> Publish {
    Publish { host_ip: None, host_port, to }
}

#[test]
fn the_encoder_and_its_text_make_the_same_table() {
    isolated_with_nat(|| {
        let to = SocketAddrV4::new(NODE, 5432);
        let table = NatTable {
            gateway: Some(Gateway { bridge: BRIDGE.to_owned(), subnet: (Ipv4Addr::new(10, 89, 4, 9), 22) }),
            ..table(vec![
                everywhere(5432, to),
                Publish { host_ip: Some(HOST), host_port: 5433, to },
                Publish { host_ip: Some(Ipv4Addr::LOCALHOST), host_port: 65535, to },
            ])
        };
        nft::add(&table).unwrap();
        let ours = ruleset(&json("nft -j list ruleset"));
        let listed = run("nft list table ip test-node");
        netns::create("n1").unwrap();
        std::fs::write("/run/table.nft", table.to_nft()).unwrap();
        run("ip netns exec n1 nft -f /run/table.nft");
        let theirs = ruleset(&json("ip netns exec n1 nft -j list ruleset"));
        assert_eq!(ours.len(), 1 + 4 + 2 + 2 + 3 + 3);
        assert_eq!(ours, theirs);
        assert_eq!(listed, run("ip netns exec n1 nft list table ip test-node"));
        assert_eq!(table.to_nft(), listed, "and reads as nft prints it");
    });
}

/// What `nft -j list ruleset` shows, without what differs from run to run.
fn ruleset(shown: &Value) -> Vec<Value> {
    let mut objects = shown["nftables"].as_array().unwrap().clone();
    objects.retain(|object| object.get("metainfo").is_none());
    for object in objects.iter_mut().flat_map(|o| o.as_object_mut().unwrap().values_mut()) {
        object.as_object_mut().unwrap().remove("handle");
    }
    objects
}

#[test]
fn tables_are_added_once_listed_and_deleted() {
    isolated_with_nat(|| {
        let table = table(vec![everywhere(5432, SocketAddrV4::new(NODE, 5432))]);
        run("nft add table ip theirs; nft add table ip6 six");
        nft::add(&table).unwrap();
        let before = run("nft -a list ruleset");
        let error = nft::add(&table).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EEXIST));
        assert!(error.to_string().contains("add table ip test-node"), "{error:#}");
        assert_eq!(run("nft -a list ruleset"), before, "a failed batch leaves nothing");

        let mut found = nft::list().unwrap();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = found.iter().map(|t| (t.name.as_str(), t.comment.as_deref())).collect();
        assert_eq!(names, [("test-node", Some("lab a, node n1")), ("theirs", None)]);

        nft::delete("test-node").unwrap();
        nft::delete("test-node").unwrap();
        assert_eq!(run("nft list tables"), "table ip theirs\ntable ip6 six\n");
    });
}

#[test]
fn a_table_of_ours_is_kept_if_it_says_the_same_and_replaced_if_not() {
    isolated_with_nat(|| {
        let old = table(vec![everywhere(5432, SocketAddrV4::new(NODE, 5432))]);
        nft::ensure(&old).unwrap();
        let before = run("nft -a list ruleset");
        nft::ensure(&old).unwrap();
        assert_eq!(run("nft -a list ruleset"), before, "a table that is right was made again");

        let new = table(vec![everywhere(5433, SocketAddrV4::new(NODE, 5433))]);
        nft::ensure(&new).unwrap();
        let now = run("nft list ruleset");
        assert!(now.contains("5433") && !now.contains("5432"), "{now}");
        // One that bears no mark of its content, as an earlier version made it.
        run(&format!(
            "nft delete table ip {0}; nft add table ip {0} '{{ comment \"{1}\" ; }}'",
            new.name, new.comment
        ));
        nft::ensure(&new).unwrap();
        assert_eq!(run("nft list ruleset"), now);

        run(&format!("nft delete table ip {0}; nft add table ip {0} '{{ comment \"theirs\" ; }}'", new.name));
        let theirs = run("nft -a list ruleset");
        assert_eq!(errno(&nft::ensure(&new).unwrap_err()), Some(Errno::EEXIST));
        assert_eq!(run("nft -a list ruleset"), theirs);
    });
}

#[test]
fn a_refused_rule_is_named_and_leaves_nothing() {
    isolated_with_nat(|| {
        // The kernel takes names up to 255 bytes.
        let error = nft::add(&NatTable { name: "n".repeat(300), ..table(vec![]) }).unwrap_err();
        assert!(errno(&error).is_some(), "{error:#}");
        assert!(error.to_string().contains("add table ip nnn"), "{error:#}");
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn the_probe_leaves_nothing() {
    isolated_with_nat(|| {
        let mut monitor = Command::new("nft").arg("monitor").stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(nft::supported().unwrap());
        assert_eq!(run("nft list ruleset"), "");
        run("nft add table ip marker");
        std::thread::sleep(Duration::from_millis(300));
        monitor.kill().unwrap();
        let mut seen = String::new();
        monitor.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
        monitor.wait().unwrap();
        assert!(seen.contains("marker"), "{seen}");
        assert!(!seen.contains("probe"), "{seen}");
    });
}

#[test]
fn a_forward_chain_that_drops_is_found() {
    isolated_with_nat(|| {
        assert_eq!(nft::forward_policy_drop().unwrap(), None);
        run("nft add table ip filter; nft add table inet fw; nft add table ip6 six");
        run("nft 'add chain ip filter INPUT { type filter hook input priority 0; policy drop; }'");
        run("nft 'add chain ip6 six forward { type filter hook forward priority 0; policy drop; }'");
        run("nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }'");
        run("nft add chain ip filter plain");
        assert_eq!(nft::forward_policy_drop().unwrap(), None);
        run("nft 'add chain inet fw filter_FORWARD { type filter hook forward priority 10; policy drop; }'");
        let found = nft::forward_policy_drop().unwrap();
        assert_eq!(found.as_deref(), Some("table inet fw, chain filter_FORWARD"));
        run("nft delete table inet fw; nft 'chain ip filter FORWARD { policy drop; }'");
        let found = nft::forward_policy_drop().unwrap();
        assert_eq!(found.as_deref(), Some("table ip filter, chain FORWARD"));
    });
}

/// Two nodes on the bridge, and a neighbour `outside` on another interface of the machine.
struct Machine {
    node: OwnedFd,
    other: OwnedFd,
    outside: OwnedFd,
}

fn machine() -> Machine {
    run("ip link set lo up");
    link::create_bridge(&bridge()).unwrap();
    let node = node("n1", NODE);
    let other = self::node("n2", OTHER);
    run(&format!(
        "ip netns add outside; ip link add uplink type veth peer name eth0 netns outside
         ip addr add {HOST}/24 dev uplink; ip link set uplink up
         ip -n outside addr add {OUTSIDE}/24 dev eth0; ip -n outside link set eth0 up; ip -n outside link set lo up"
    ));
    sysctl::set("net.ipv4.ip_forward", "1").unwrap();
    sysctl::set(&sysctl::ipv4_conf(BRIDGE, "route_localnet"), "1").unwrap();
    Machine { node, other, outside: netns::open("outside").unwrap() }
}

fn listen(ns: &OwnedFd, address: Ipv4Addr) -> TcpListener {
    netns::run_in(ns.as_fd(), || TcpListener::bind((address, 0)).unwrap()).unwrap()
}

/// Connects to `port` at `to` from `from` (None is the machine itself).
fn connect(from: Option<&OwnedFd>, to: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let dial = || TcpStream::connect_timeout(&(to, port).into(), Duration::from_millis(700));
    match from {
        Some(ns) => netns::run_in(ns.as_fd(), dial).unwrap(),
        None => dial(),
    }
}

/// Sends bytes through and back; the address that the listener saw.
fn exchange(mut client: TcpStream, listener: &TcpListener) -> IpAddr {
    let (mut server, peer) = listener.accept().unwrap();
    client.write_all(b"ping").unwrap();
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).unwrap();
    server.write_all(&bytes).unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    peer.ip()
}

fn talk(from: Option<&OwnedFd>, listener: &TcpListener, to: Ipv4Addr) -> std::io::Result<IpAddr> {
    let port = listener.local_addr().unwrap().port();
    connect(from, to, port).map(|client| exchange(client, listener))
}

/// Whether frames that are only bridged pass the IPv4 hooks too (br_netfilter). Hosts differ, Docker turns it
/// on, and it changes how a packet comes back through its own port. False when the kernel can't.
fn bridge_netfilter(on: bool) -> bool {
    match sysctl::set("net.bridge.bridge-nf-call-iptables", if on { "1" } else { "0" }) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(errno(&error), Some(Errno::ENOENT), "{error:#}");
            !on
        }
    }
}

#[test]
fn a_published_port_works_on_all_five_paths() {
    five_paths(false);
}

#[test]
fn a_published_port_works_on_all_five_paths_with_br_netfilter() {
    five_paths(true);
}

fn five_paths(br_netfilter: bool) {
    isolated_with_nat(|| {
        if !bridge_netfilter(br_netfilter) {
            return eprintln!("SKIPPED: this kernel has no br_netfilter");
        }
        let Machine { node, other, outside } = machine();
        let server = listen(&node, NODE);
        let to = SocketAddrV4::new(NODE, server.local_addr().unwrap().port());
        let out = listen(&outside, OUTSIDE);
        let port = 15432;
        // The three that need rewriting fail without the table, so it is the table that does it.
        for from in [None, Some(&outside), Some(&other)] {
            let error = connect(from, HOST, port).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        assert!(talk(Some(&node), &out, OUTSIDE).is_err(), "outside has no route back");

        nft::add(&table(vec![everywhere(port, to)])).unwrap();
        let seen = |from, at| exchange(connect(from, at, port).unwrap(), &server);
        assert_eq!(seen(Some(&outside), HOST), OUTSIDE, "from outside; the client's address is kept");
        assert_eq!(seen(None, Ipv4Addr::LOCALHOST), GATEWAY, "from 127.0.0.1");
        assert_eq!(seen(None, HOST), HOST, "from the machine's own address");
        assert_eq!(talk(Some(&node), &out, OUTSIDE).unwrap(), HOST, "to the world, masqueraded");
        assert_eq!(seen(Some(&other), HOST), GATEWAY, "from the other node");
        assert_eq!(seen(Some(&other), GATEWAY), GATEWAY, "from the other node, by the gateway's address");
        assert_eq!(seen(Some(&node), HOST), GATEWAY, "from the node to itself");
        // Straight over the bridge nothing is rewritten.
        assert_eq!(talk(Some(&other), &server, NODE).unwrap(), OTHER);
        assert_eq!(talk(None, &server, NODE).unwrap(), GATEWAY);

        nft::delete("test-node").unwrap();
        assert_eq!(connect(Some(&outside), HOST, port).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn two_tables_do_not_disturb_one_another() {
    isolated_with_nat(|| {
        let Machine { node, other, outside } = machine();
        let (one, two) = (listen(&node, NODE), listen(&other, OTHER));
        let to = |l: &TcpListener, a| SocketAddrV4::new(a, l.local_addr().unwrap().port());
        nft::add(&table(vec![everywhere(1001, to(&one, NODE))])).unwrap();
        let second = NatTable {
            name: "test-other".to_owned(),
            gateway: None,
            ..table(vec![everywhere(1002, to(&two, OTHER))])
        };
        nft::add(&second).unwrap();
        let seen = |from, at, port, l: &TcpListener| exchange(connect(from, at, port).unwrap(), l);
        assert_eq!(seen(Some(&outside), HOST, 1001, &one), OUTSIDE);
        assert_eq!(seen(Some(&outside), HOST, 1002, &two), OUTSIDE);
        assert_eq!(seen(Some(&node), HOST, 1002, &two), GATEWAY);
        assert_eq!(seen(Some(&other), HOST, 1001, &one), GATEWAY);
        assert_eq!(seen(None, Ipv4Addr::LOCALHOST, 1002, &two), GATEWAY);
        nft::delete("test-node").unwrap();
        assert_eq!(seen(Some(&outside), HOST, 1002, &two), OUTSIDE);
    });
}

#[test]
fn a_port_on_one_address_is_on_that_address_only() {
    isolated_with_nat(|| {
        let Machine { node, outside, .. } = machine();
        run("ip addr add 192.0.2.77/24 dev uplink");
        let server = listen(&node, NODE);
        let to = SocketAddrV4::new(NODE, server.local_addr().unwrap().port());
        nft::add(&table(vec![
            Publish { host_ip: Some(HOST), host_port: 1001, to },
            Publish { host_ip: Some(Ipv4Addr::LOCALHOST), host_port: 1002, to },
        ]))
        .unwrap();
        let second = Ipv4Addr::new(192, 0, 2, 77);
        let reached = |from, at, port| match connect(from, at, port) {
            Ok(client) => {
                exchange(client, &server);
                true
            }
            Err(_) => false,
        };
        assert!(reached(Some(&outside), HOST, 1001));
        assert!(reached(None, HOST, 1001));
        assert!(!reached(Some(&outside), second, 1001));
        assert!(!reached(None, Ipv4Addr::LOCALHOST, 1001));
        assert!(reached(None, Ipv4Addr::LOCALHOST, 1002));
        assert!(!reached(None, HOST, 1002));
        assert!(!reached(Some(&outside), HOST, 1002));
    });
}

/// In `ns`, sends 127/8 out of `eth0` to `gateway` instead of to itself.
fn route_loopback_out(ns: &str, gateway: Ipv4Addr) {
    run(&format!(
        "ip netns exec {ns} sh -c '
         echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
         ip addr flush dev lo
         ip route flush table local type local dev lo 2>/dev/null
         ip route add 127.0.0.0/8 via {gateway}'"
    ));
}

#[test]
fn loopback_is_guarded_against_the_bridge() {
    isolated_with_nat(|| {
        let Machine { node, .. } = machine();
        let private = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        route_loopback_out("n1", GATEWAY);
        // The witness that the attack is real: without the table it works.
        assert_eq!(talk(Some(&node), &private, Ipv4Addr::LOCALHOST).unwrap(), NODE);
        nft::add(&table(vec![])).unwrap();
        let error = talk(Some(&node), &private, Ipv4Addr::LOCALHOST).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn a_loopback_port_is_guarded_against_neighbours() {
    isolated_with_nat(|| {
        let Machine { node, outside, .. } = machine();
        let server = listen(&node, NODE);
        let to = SocketAddrV4::new(NODE, server.local_addr().unwrap().port());
        let local = Publish { host_ip: Some(Ipv4Addr::LOCALHOST), host_port: 1002, to };

        // By a route to the node's own address.
        run(&format!("ip -n outside route add {NODE} via {HOST}"));
        assert_eq!(talk(Some(&outside), &server, NODE).unwrap(), OUTSIDE);
        // By a packet for 127.0.0.1 on the wire, against the rule that would be wrong.
        route_loopback_out("outside", HOST);
        run(&format!(
            "nft 'table ip wrong {{ chain c {{ type nat hook prerouting priority dstnat;
             ip daddr 127.0.0.1 tcp dport 1002 dnat to {to}
             }}
             }}'"
        ));
        let client = connect(Some(&outside), Ipv4Addr::LOCALHOST, 1002).unwrap();
        assert_eq!(exchange(client, &server), OUTSIDE);
        run("nft delete table ip wrong");

        nft::add(&table(vec![local])).unwrap();
        assert!(talk(Some(&outside), &server, NODE).is_err());
        assert!(connect(Some(&outside), Ipv4Addr::LOCALHOST, 1002).is_err());
        exchange(connect(None, Ipv4Addr::LOCALHOST, 1002).unwrap(), &server);
    });
}

#[test]
fn hairpin_needs_its_rule() {
    isolated_with_nat(|| {
        assert!(bridge_netfilter(false));
        let Machine { node, other, .. } = machine();
        let server = listen(&node, NODE);
        let to = SocketAddrV4::new(NODE, server.local_addr().unwrap().port());
        let table = table(vec![everywhere(1001, to)]);
        let without: String = table
            .to_nft()
            .lines()
            .filter(|l| !l.contains("ct status"))
            .fold(String::new(), |text, line| text + line + "\n");
        std::fs::write("/run/without.nft", without).unwrap();
        run("nft -f /run/without.nft");
        assert!(connect(Some(&other), HOST, 1001).is_err());
        nft::delete("test-node").unwrap();
        nft::add(&table).unwrap();
        exchange(connect(Some(&other), HOST, 1001).unwrap(), &server);
    });
}
