//! NAT and port publishing with nf_tables: nft(8) and libnftables without the program or the library,
//! straight over netlink. [`NatTable::to_nft`] is the same table as a file for `nft -f`.
//!
//! The rules that surprise people: everything here is one atomic batch, so a table is there in full or
//! not at all, and deleting it takes all its rules along; NAT chains see only the *first* packet of a
//! connection, so connections that exist go on after a table is gone; and an `accept` in one table does not
//! overrule a `drop` in another (see [`forward_policy_drop`]).

pub mod bridge;
mod rule;
mod wire;

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use rule::{Chain, Hook, Statement};
use wire::{Attributes, Batch};

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
    let is_it = |found: &wire::Object| found.text(NFTA_TABLE_NAME).as_deref() == Some(table.name.as_str());
    // Looking first is worth it: a batch, also one that the kernel refuses, waits some 10 ms for the readers of its rules.
    let Some(found) = tables()?.into_iter().find(is_it) else { return add(table) };
    let userdata = found.bytes(NFTA_TABLE_USERDATA).unwrap_or_default();
    if comment_of(userdata).as_deref() != Some(table.comment.as_str()) {
        return add(table);
    }
    match entry_of(userdata, UDATA_CONTENT) == Some(&table.content()[..]) {
        true => Ok(()),
        false => replacement(table)?.commit(),
    }
}

/// Deletes the table of that name in family `ip` with all that is in it. Absent is Ok.
pub fn delete(name: &str) -> Result<()> {
    let mut batch = Batch::new();
    push_delete(&mut batch, name);
    match batch.commit() {
        Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => Ok(()),
        Err(error) if unsupported(&error) => Ok(()),
        result => result,
    }
}

/// Every table of family `ip`, whoever made it. A kernel without nf_tables has none.
pub fn list() -> Result<Vec<Found>> {
    let found = |table: &wire::Object| {
        let comment = table.bytes(NFTA_TABLE_USERDATA).and_then(comment_of);
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
        if forward && chain.number(NFTA_CHAIN_POLICY) == Some(rule::NF_DROP) {
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
        let mut text = format!("table ip {} {{\n", self.name);
        if !self.comment.is_empty() {
            let _ = writeln!(text, "\tcomment \"{}\"", self.comment);
        }
        for (index, chain) in self.chains().iter().enumerate() {
            let Chain { name, kind, hook, rules, .. } = chain;
            let gap = if index == 0 { "" } else { "\n" };
            let (hook, priority) = (hook.text(), chain.priority_text());
            let _ = writeln!(text, "{gap}\tchain {name} {{");
            let _ = writeln!(text, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;");
            for rule in rules {
                let _ = writeln!(text, "\t\t{}", rule::text(rule));
            }
            text.push_str("\t}\n");
        }
        text + "}\n"
    }

    fn chains(&self) -> Vec<Chain> {
        let chain = |name, kind, hook, priority, rules| Chain { name, kind, hook, priority, rules };
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

    /// What the table says, in 16 bytes. They are kept in the table itself: the kernel gives rules back in another form
    /// than it was given them, so comparing those would be guesswork.
    fn content(&self) -> [u8; 16] {
        let digest = Sha256::digest(self.to_nft());
        std::array::from_fn(|i| digest[i])
    }

    /// What the text form could not express would be two different tables.
    fn check(&self) -> Result<()> {
        let plain = |text: &str| !text.contains(|c: char| c == '"' || c == '\\' || c.is_control());
        if self.name.is_empty() || !plain(&self.name) || self.name.contains(char::is_whitespace) {
            bail!("{:?} can't be the name of an nf_tables table", self.name);
        }
        let bridge = self.gateway.as_ref().map(|g| g.bridge.as_str());
        if bridge.is_some_and(|name| name.is_empty() || name.len() > 15 || !plain(name)) {
            bail!("{bridge:?} can't be the name of an interface");
        }
        if self.comment.len() > 127 || !plain(&self.comment) {
            bail!("{:?} can't be the comment of an nf_tables table", self.comment);
        }
        Ok(())
    }
}

impl Gateway {
    /// Before connection tracking (priority raw), where addresses are still those on the wire and
    /// packets of every connection pass, not only the first.
    fn guard_rules(&self) -> Vec<Vec<Statement>> {
        let bridge = || self.bridge.clone();
        let (network, prefix) = self.network();
        vec![
            // route_localnet lets 127.0.0.1 go out to the bridge, and by the same switch lets what is on
            // the bridge reach services that listen on this machine's loopback only.
            vec![Statement::In(bridge()), loopback(Statement::Destination), Statement::Drop],
            // With forwarding on, this machine is a router: a neighbour that sets a route reaches the
            // addresses themselves, all ports of them, also what is published on 127.0.0.1 alone. Answers to
            // masqueraded and to published connections carry this machine's address here, and pass.
            vec![Statement::InNot(bridge()), Statement::Destination(network, prefix), Statement::Drop],
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
    let mut batch = Batch::new();
    push_table(&mut batch, table)?;
    Ok(batch)
}

/// The messages that put the table in the place of one of its name.
fn replacement(table: &NatTable) -> Result<Batch> {
    let mut batch = Batch::new();
    push_delete(&mut batch, &table.name);
    push_table(&mut batch, table)?;
    Ok(batch)
}

fn push_delete(batch: &mut Batch, name: &str) {
    let table = Attributes::new().text(NFTA_TABLE_NAME, name);
    batch.push(NFT_MSG_DELTABLE, 0, table, format!("delete table ip {name}"));
}

fn push_table(batch: &mut Batch, table: &NatTable) -> Result<()> {
    table.check()?;
    let name = &table.name;
    let attributes = Attributes::new()
        .text(NFTA_TABLE_NAME, name)
        .bytes(NFTA_TABLE_USERDATA, &userdata(&table.comment, &table.content())?);
    // EXCL: without it adding to somebody else's table of that name would succeed.
    batch.push(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, attributes, format!("add table ip {name}"));
    for chain in &table.chains() {
        push_chain(batch, name, chain);
    }
    Ok(())
}

fn push_chain(batch: &mut Batch, table: &str, chain: &Chain) {
    let hook = Attributes::new()
        .number(NFTA_HOOK_HOOKNUM, chain.hook as u32)
        .number(NFTA_HOOK_PRIORITY, chain.priority.cast_unsigned());
    let attributes = Attributes::new()
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, chain.name)
        .nest(NFTA_CHAIN_HOOK, hook)
        .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
        .text(NFTA_CHAIN_TYPE, chain.kind);
    let label = format!("add chain ip {table} {}", chain.name);
    batch.push(NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, attributes, label);
    for rule in &chain.rules {
        let attributes = Attributes::new()
            .text(NFTA_RULE_TABLE, table)
            .text(NFTA_RULE_CHAIN, chain.name)
            .nest(NFTA_RULE_EXPRESSIONS, rule::expressions(rule));
        let label = format!("add rule ip {table} {} {}", chain.name, rule::text(rule));
        batch.push(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attributes, label);
    }
}

/// User data is opaque to the kernel; nft(8) reads it as type, length, value.
fn userdata(comment: &str, content: &[u8; 16]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if !comment.is_empty() {
        let length =
            u8::try_from(comment.len() + 1).context("the comment of an nf_tables table is too long")?;
        bytes.extend([NFTNL_UDATA_COMMENT, length]);
        bytes.extend(comment.as_bytes());
        bytes.push(0);
    }
    bytes.extend([UDATA_CONTENT, content.len() as u8]);
    bytes.extend(content);
    Ok(bytes)
}

fn comment_userdata(comment: &str) -> Result<Vec<u8>> {
    let length = u8::try_from(comment.len() + 1).context("the comment of an nf_tables object is too long")?;
    let mut bytes = vec![NFTNL_UDATA_COMMENT, length];
    bytes.extend(comment.as_bytes());
    bytes.push(0);
    Ok(bytes)
}

fn comment_of(userdata: &[u8]) -> Option<String> {
    let value = entry_of(userdata, NFTNL_UDATA_COMMENT)?;
    Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned())
}

fn entry_of(mut userdata: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        let (&[kind, length], rest) = userdata.split_first_chunk()?;
        let (value, next) = rest.split_at_checked(length.into())?;
        if kind == wanted {
            return Some(value);
        }
        userdata = next;
    }
}

/// The kernel was built without nf_tables, or without its IPv4 family.
fn unsupported(error: &anyhow::Error) -> bool {
    use Errno::{EAFNOSUPPORT, EOPNOTSUPP, EPROTONOSUPPORT};
    matches!(error.downcast_ref(), Some(&(EAFNOSUPPORT | EOPNOTSUPP | EPROTONOSUPPORT)))
}

// linux/netfilter.h.
const NF_ACCEPT: u32 = 1;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;

// linux/netfilter/nf_tables.h.
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;

/// libnftnl/udata.h: of tables and of rules.
const NFTNL_UDATA_COMMENT: u8 = 0;

/// Our own entry, see [`NatTable::content`]; nft(8) passes over types that it does not know.
const UDATA_CONTENT: u8 = 200;

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
		iifname "br0" ip daddr 127.0.0.0/8 drop
		iifname != "br0" ip daddr 10.1.2.0/24 drop
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

    #[test]
    fn comments_survive_userdata() {
        let bytes = userdata("hello", b"0123456789abcdef").unwrap();
        assert_eq!(bytes, b"\0\x06hello\0\xc8\x100123456789abcdef");
        assert_eq!(comment_of(&bytes).as_deref(), Some("hello"));
        assert_eq!(entry_of(&bytes, UDATA_CONTENT), Some(&b"0123456789abcdef"[..]));
        assert_eq!(comment_of(&userdata("", &[0; 16]).unwrap()), None);
        assert_eq!(comment_of(&[1, 2, 9, 9, 0, 2, b'x', 0]).as_deref(), Some("x"));
        assert_eq!(comment_of(&[0, 9, b'x']), None);
    }
}
