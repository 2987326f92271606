//! NAT and port publishing with nf_tables: nft(8) and libnftables without the program or the library,
//! straight over netlink. [`NatTable::to_nft`] is the same table as a file for `nft -f`.
//!
//! The rules that surprise people: everything here is one atomic batch, so a table is there in full or
//! not at all, and deleting it takes all its rules along; NAT chains see only the *first* packet of a
//! connection, so connections that exist go on after a table is gone; and an `accept` in one table does not
//! overrule a `drop` in another (see [`forward_policy_drop`]).

pub mod bridge;
mod expression;
mod rule;
mod service;
mod table;
mod uapi;
pub(in crate::sys) mod wire;

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, bail};
use nix::errno::Errno;

use rule::{Base, Chain, Hook, Statement};
pub use service::{Front, Service, ServiceTable, replace};
use table::Table;
use uapi::*;
use wire::Batch;
pub use wire::Leftover;

/// A NAT table (family `ip`) for the network on a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatTable {
    pub name: String,
    /// Whose it is; `nft list` shows it. At most 127 bytes, no quotes and control characters.
    pub comment: String,
    /// The network that this machine guards and lends its own address to.
    pub gateway: Option<Gateway>,
    pub publish: Vec<Publish>,
}

/// A bridge with the network on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    pub bridge: String,
    /// The bridge's network and prefix length.
    pub subnet: (Ipv4Addr, u8),
}

/// A TCP port of this machine that leads to another address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// `None` is every address of this machine, 127.0.0.1 included. A loopback address is reachable from
    /// this machine alone.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub to: SocketAddrV4,
}

/// A table that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub comment: Option<String>,
}

/// Adds the table with all its chains and rules, or nothing.
///
/// Publishing also needs `net.ipv4.ip_forward`, and on 127.0.0.1 the bridge's `route_localnet`.
///
/// # Errors
/// `EEXIST` when a table of that name exists; otherwise they name the first rule that the kernel refused.
pub fn add(table: &NatTable) -> Result<()> {
    batch(table)?.commit()
}

/// As [`add`], but a table of that name and comment that exists already is all right. One that says anything else, as
/// that of another version of this program does, is replaced within one transaction: no packet meets neither.
///
/// # Errors
/// `EEXIST` when a table of that name exists that has another comment.
pub fn ensure(table: &NatTable) -> Result<()> {
    table.check()?;
    table.table().ensure()
}

/// Deletes the table of that name in family `ip` with all that is in it. Absent is Ok.
pub fn delete(name: &str) -> Result<()> {
    let mut batch = Batch::new();
    table::push_delete(&mut batch, name);
    match batch.commit() {
        Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => Ok(()),
        Err(error) if unsupported(&error) => Ok(()),
        result => result,
    }
}

/// Deletes those of these tables that carry this comment, or none, in one transaction.
pub fn delete_own(names: &[&str], comment: &str) -> Result<()> {
    let ours =
        |t: &Found| names.contains(&t.name.as_str()) && t.comment.as_deref().is_none_or(|c| c == comment);
    let found: Vec<Found> = list()?.into_iter().filter(ours).collect();
    if found.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    found.iter().for_each(|t| table::push_delete(&mut batch, &t.name));
    match batch.commit() {
        // Somebody was faster with one of them.
        Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => {
            found.iter().try_for_each(|t| delete(&t.name))
        }
        result => result,
    }
}

/// Every table of family `ip`, whoever made it. A kernel without nf_tables has none.
pub fn list() -> Result<Vec<Found>> {
    let found = |table: &wire::Object| {
        let comment = table.bytes(NFTA_TABLE_USERDATA).and_then(table::comment_of);
        Some(Found { name: table.text(NFTA_TABLE_NAME)?, comment })
    };
    Ok(tables()?.iter().filter_map(found).collect())
}

fn tables() -> Result<Vec<wire::Object>> {
    match wire::dump(NFT_MSG_GETTABLE, nix::libc::AF_INET as u8) {
        Err(error) if unsupported(&error) => Ok(Vec::new()),
        tables => tables,
    }
}

/// Whether this kernel can do what [`add`] needs: nf_tables for IPv4 with NAT, fib and conntrack.
///
/// It has the kernel check a table with one rule of each kind, as `nft --check` does; nothing is applied,
/// not for an instant. Modules that are missing are loaded by this, as `add` would.
///
/// # Errors
/// When the question can't be answered, above all `EPERM`.
pub fn supported() -> Result<bool> {
    let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 1);
    let sample = NatTable {
        name: format!("probe-{}", std::process::id()),
        comment: String::new(),
        gateway: Some(Gateway { bridge: "probe".to_owned(), subnet: (*to.ip(), 24) }),
        publish: vec![Publish { host_ip: None, host_port: 1, to }],
    };
    match batch(&sample)?.check() {
        Ok(()) => Ok(true),
        // A missing chain type or expression is ENOENT.
        Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => Ok(false),
        Err(error) if unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Looks for a chain that drops forwarded IPv4 packets unless a rule of *its own* accepts them, and names
/// it: `table ip filter, chain FORWARD`. Docker and firewalld make one; then neither publishing nor
/// masquerading works until it lets the bridge through, whatever our own table says.
///
/// It does not see iptables-legacy, nor a chain that accepts by policy and rejects in its last rule.
pub fn forward_policy_drop() -> Result<Option<String>> {
    let chains = match wire::dump(NFT_MSG_GETCHAIN, 0) {
        Err(error) if unsupported(&error) => return Ok(None),
        chains => chains?,
    };
    for chain in &chains {
        let family = match chain.family {
            NFPROTO_INET => "inet",
            NFPROTO_IPV4 => "ip",
            _ => continue,
        };
        let hook = chain.bytes(NFTA_CHAIN_HOOK).and_then(|h| wire::attribute(h, NFTA_HOOK_HOOKNUM));
        let forward = hook.and_then(wire::number) == Some(Hook::Forward as u32);
        if forward && chain.number(NFTA_CHAIN_POLICY) == Some(NF_DROP) {
            let table = chain.text(NFTA_CHAIN_TABLE).unwrap_or_default();
            let name = chain.text(NFTA_CHAIN_NAME).unwrap_or_default();
            return Ok(Some(format!("table {family} {table}, chain {name}")));
        }
    }
    Ok(None)
}

impl NatTable {
    /// The table as nft(8) text, as `nft list table` would print it.
    pub fn to_nft(&self) -> String {
        self.table().to_nft()
    }

    fn table(&self) -> Table {
        Table { name: self.name.clone(), comment: self.comment.clone(), chains: self.chains() }
    }

    fn chains(&self) -> Vec<Chain> {
        let chain = |name: &str, kind, hook, priority, rules| Chain {
            name: name.to_owned(),
            base: Some(Base { kind, hook, priority }),
            rules,
        };
        let mut chains = Vec::new();
        if let Some(gateway) = &self.gateway {
            chains.push(chain("guard", "filter", Hook::Prerouting, -300, gateway.guard_rules()));
            chains.push(chain("postrouting", "nat", Hook::Postrouting, 100, gateway.postrouting_rules()));
        }
        if !self.publish.is_empty() {
            let output = self.publish.iter().map(publish_rule).collect();
            chains.push(chain("prerouting", "nat", Hook::Prerouting, -100, self.prerouting_rules()));
            chains.push(chain("output", "nat", Hook::Output, -100, output));
        }
        chains
    }

    /// For packets from other machines and from the bridge.
    ///
    /// Ports on a loopback address are left out: this chain comes before the routing decision, which
    /// drops packets for 127/8 from outside. Rewritten here, a neighbour's packet would pass.
    fn prerouting_rules(&self) -> Vec<Vec<Statement>> {
        let outside = |p: &&Publish| !p.host_ip.is_some_and(|ip| ip.is_loopback());
        self.publish.iter().filter(outside).map(publish_rule).collect()
    }

    fn check(&self) -> Result<()> {
        let bridge = self.gateway.as_ref().map(|g| g.bridge.as_str());
        if bridge.is_some_and(|name| name.is_empty() || name.len() > 15 || !table::is_plain(name)) {
            bail!("{bridge:?} can't be the name of an interface");
        }
        self.table().check()
    }
}

impl Gateway {
    /// Before connection tracking (priority raw), where addresses are still those on the wire and all packets
    /// pass, not only the first of a connection: so what costs least to compare comes first.
    fn guard_rules(&self) -> Vec<Vec<Statement>> {
        let bridge = || self.bridge.clone();
        let (network, prefix) = self.network();
        vec![
            // route_localnet lets 127.0.0.1 go out to the bridge, and by the same switch lets what is on
            // the bridge reach services that listen on this machine's loopback only.
            vec![loopback(Statement::Destination), Statement::In(bridge()), Statement::Drop],
            // With forwarding on, this machine is a router: a neighbour that sets a route reaches the
            // addresses themselves, all ports of them, also what is published on 127.0.0.1 alone. Answers to
            // masqueraded and to published connections carry this machine's address here, and pass. So does what
            // this machine sends to an address of its own on the bridge: that comes in through `lo`.
            vec![
                Statement::Destination(network, prefix),
                Statement::InNot(bridge()),
                Statement::InNot("lo".to_owned()),
                Statement::Drop,
            ],
        ]
    }

    fn postrouting_rules(&self) -> Vec<Vec<Statement>> {
        let bridge = || self.bridge.clone();
        let (network, prefix) = self.network();
        vec![
            // Out to the world: nobody out there has a route back to the bridge's network.
            vec![Statement::Source(network, prefix), Statement::OutNot(bridge()), Statement::Masquerade],
            // From this machine's 127.0.0.1 through a published port: an answer to 127.0.0.1 would stay
            // on the other side, so the bridge's address goes in.
            vec![loopback(Statement::Source), Statement::Out(bridge()), Statement::Masquerade],
            // From one host on the bridge through a published port to another (or itself): the answer
            // would go straight over the bridge, past the rewriting, and be refused as unknown.
            vec![
                Statement::Source(network, prefix),
                Statement::Out(bridge()),
                Statement::CtStatusDnat,
                Statement::Masquerade,
            ],
        ]
    }

    fn network(&self) -> (Ipv4Addr, u8) {
        let (address, prefix) = self.subnet;
        (Ipv4Addr::from_bits(address.to_bits() & u32::from_be_bytes(rule::netmask(prefix))), prefix)
    }
}

fn publish_rule(publish: &Publish) -> Vec<Statement> {
    let destination = match publish.host_ip {
        Some(ip) => Statement::Destination(ip, 32),
        None => Statement::DestinationLocal,
    };
    vec![destination, Statement::TcpPort(publish.host_port), Statement::Dnat(publish.to)]
}

fn loopback(statement: fn(Ipv4Addr, u8) -> Statement) -> Statement {
    statement(Ipv4Addr::new(127, 0, 0, 0), 8)
}

/// The messages that make the table; not sent yet.
fn batch(table: &NatTable) -> Result<Batch> {
    table.check()?;
    let mut batch = Batch::new();
    table.table().push(&mut batch)?;
    Ok(batch)
}

/// The kernel was built without nf_tables, or without its IPv4 family.
fn unsupported(error: &anyhow::Error) -> bool {
    use Errno::{EAFNOSUPPORT, EOPNOTSUPP, EPROTONOSUPPORT};
    matches!(error.downcast_ref(), Some(&(EAFNOSUPPORT | EOPNOTSUPP | EPROTONOSUPPORT)))
}

// linux/netfilter.h.
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NatTable {
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 1, 2, 3), 5432);
        NatTable {
            name: "demo".to_owned(),
            comment: "lab a, node b".to_owned(),
            gateway: Some(Gateway { bridge: "br0".to_owned(), subnet: (Ipv4Addr::new(10, 1, 2, 77), 24) }),
            publish: vec![
                Publish { host_ip: None, host_port: 5433, to },
                Publish { host_ip: Some(Ipv4Addr::LOCALHOST), host_port: 5434, to },
            ],
        }
    }

    #[test]
    fn text_reads_like_nft_list() {
        let text = sample().to_nft();
        let expected = r#"table ip demo {
	comment "lab a, node b"
	chain guard {
		type filter hook prerouting priority raw; policy accept;
		ip daddr 127.0.0.0/8 iifname "br0" drop
		ip daddr 10.1.2.0/24 iifname != "br0" iifname != "lo" drop
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.1.2.0/24 oifname != "br0" masquerade
		ip saddr 127.0.0.0/8 oifname "br0" masquerade
		ip saddr 10.1.2.0/24 oifname "br0" ct status dnat masquerade
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local tcp dport 5433 dnat to 10.1.2.3:5432
	}

	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local tcp dport 5433 dnat to 10.1.2.3:5432
		ip daddr 127.0.0.1 tcp dport 5434 dnat to 10.1.2.3:5432
	}
}
"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn names_that_text_could_not_carry_are_refused() {
        for bad in ["", "a b", "a\"b", "a\nb"] {
            assert!(NatTable { name: bad.to_owned(), ..sample() }.check().is_err(), "{bad:?}");
        }
        assert!(NatTable { comment: "x".repeat(128), ..sample() }.check().is_err());
        assert!(NatTable { comment: "say \"hi\"".to_owned(), ..sample() }.check().is_err());
    }
}
