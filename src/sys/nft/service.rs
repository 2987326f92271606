//! Services on addresses of their own, which lead to servers that may change: what IPVS calls virtual services and
//! real servers, made of nf_tables NAT.
//!
//! The rule that surprises people: NAT looks at the first packet of a connection only, so that after a change the
//! connections that exist would go on to the old server. Every later packet of them is therefore looked at by a
//! filter chain, which resets who sent it. It stands *before* the rewriting, in prerouting: with br_netfilter a reset
//! that is made in the forward hook leaves without its addresses rewritten back, and the client takes no notice.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};

use super::rule::{Base, Chain, Hook, Statement, TcpFlag};
use super::table::Table;
use super::wire::Leftover;

/// A table (family `ip`) of services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTable {
    pub name: String,
    /// Whose it is; as in [`NatTable`](super::NatTable).
    pub comment: String,
    /// The network that the servers are in.
    pub subnet: (Ipv4Addr, u8),
    pub services: Vec<Service>,
}

/// A service, on one or more addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The chains are called after it: letters, digits, `-`.
    pub name: String,
    /// An address of this machine, for it alone.
    pub at: SocketAddrV4,
    /// Ports of this machine that lead there as well.
    pub published: Vec<Front>,
    /// New connections go to them in turn; without any they are refused.
    pub servers: Vec<SocketAddrV4>,
    /// They get no new connections, but keep those that they have.
    pub keep: Vec<Ipv4Addr>,
}

/// A TCP port of this machine: `ip` is as in [`Publish`](super::Publish).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Front {
    pub ip: Option<Ipv4Addr>,
    pub port: u16,
}

/// Makes the table, or changes it into this one, in one step: each packet meets the old one or the new one.
///
/// Gives nothing if it is there already.
///
/// # Errors
/// `EEXIST` when a table of that name is somebody else's, by its comment.
pub fn replace(table: &ServiceTable) -> Result<Option<Leftover>> {
    let table = table.table();
    table.check()?;
    table.refill().with_context(|| format!("change the table ip {}", table.name))
}

impl ServiceTable {
    /// The table as nft(8) text, as `nft list table` would print it.
    pub fn to_nft(&self) -> String {
        self.table().to_nft()
    }

    /// Whether a connection that its client made to `to`, and that `server` answers, is one that this table resets:
    /// of a service of which `server` is none any more.
    pub fn resets(&self, to: SocketAddrV4, server: Ipv4Addr) -> bool {
        let (network, prefix) = self.subnet;
        let mask = u32::from_be_bytes(super::rule::netmask(prefix));
        let inside = (server.to_bits() ^ network.to_bits()) & mask == 0;
        let meets = |front: &Front| front.port == to.port() && front.ip.map_or(inside, |ip| ip == *to.ip());
        let own = |service: &&Service| service.at == to;
        let published = |service: &&Service| service.published.iter().any(meets);
        let left = |service: &Service| !service.stays().any(|ip| ip == server);
        let mut services = self.services.iter();
        services.clone().find(own).or_else(|| services.find(published)).is_some_and(left)
    }

    fn table(&self) -> Table {
        Table { name: self.name.clone(), comment: self.comment.clone(), chains: self.chains() }
    }

    fn chains(&self) -> Vec<Chain> {
        let mut chains = Vec::new();
        for service in &self.services {
            chains.push(plain(service.name.clone(), service.dispatch_rules()));
            chains.push(plain(service.left(), service.left_rules()));
        }
        chains.push(plain("answers".to_owned(), self.answer_rules()));
        let mut arriving = self.request_rules();
        arriving.extend(self.arriving_answer_rules());
        chains.push(base("arriving", "filter", Hook::Prerouting, MANGLE, arriving));
        chains.push(base("leaving", "filter", Hook::Output, MANGLE, self.request_rules()));
        // Before all published ports, which on "every address of this machine" would catch these addresses as well.
        let at = || self.services.iter().map(Service::at_rule).collect();
        chains.push(base("prerouting", "nat", Hook::Prerouting, DSTNAT - 10, at()));
        chains.push(base("output", "nat", Hook::Output, DSTNAT - 10, at()));
        let published =
            |outside| -> Vec<_> { self.services.iter().flat_map(|s| s.published_rules(outside)).collect() };
        chains.push(base("published", "nat", Hook::Prerouting, DSTNAT, published(true)));
        chains.push(base("published-here", "nat", Hook::Output, DSTNAT, published(false)));
        chains
    }

    /// Later packets from clients, by the addresses that they carry: here those are still what the client means. An answer may
    /// go to a port of the same number. Every packet that this machine gets or sends is asked this: what tells most of
    /// them apart comes first, and costs least.
    fn request_rules(&self) -> Vec<Vec<Statement>> {
        self.later_rules(|front| {
            let mut to: Vec<_> = front.ip.map(|ip| Statement::Destination(ip, 32)).into_iter().collect();
            to.extend([Statement::TcpPort(front.port), Statement::CtOriginal]);
            to
        })
    }

    /// What is no request may be an answer. Those of a server that stays in every service pass at once.
    fn arriving_answer_rules(&self) -> Vec<Vec<Statement>> {
        let (network, prefix) = self.subnet;
        let [first, others @ ..] = &self.services[..] else { return Vec::new() };
        let stays_everywhere =
            |ip: &Ipv4Addr| others.iter().all(|other| other.stays().any(|stays| stays == *ip));
        let passes = |ip| vec![Statement::Source(ip, 32), Statement::Return];
        let mut rules: Vec<_> = first.stays().filter(stays_everywhere).map(passes).collect();
        rules.push(vec![Statement::Source(network, prefix), Statement::Jump("answers".to_owned())]);
        rules
    }

    /// An answer carries the address of the server, and what that takes for the client's. Which address the client meant, only
    /// connection tracking knows.
    fn answer_rules(&self) -> Vec<Vec<Statement>> {
        self.later_rules(|front| {
            let mut to: Vec<_> = front.ip.map(Statement::CtOriginalDestination).into_iter().collect();
            to.extend([Statement::Tcp, Statement::CtOriginalPort(front.port)]);
            to
        })
    }

    /// Packets of connections to each front, told by `to`, go to the chain that resets those whose server has left. A port on
    /// every address would take those to the services' own addresses as well: it comes after them.
    fn later_rules(&self, to: impl Fn(&Front) -> Vec<Statement>) -> Vec<Vec<Statement>> {
        let rule = |(service, front): (&Service, Front)| {
            let mut rule = to(&front);
            // It is known by who answers: other machines have such ports, too.
            if front.ip.is_none() {
                rule.push(Statement::CtReplySource(self.subnet.0, self.subnet.1));
            }
            rule.extend([Statement::CtStatusDnat, Statement::Goto(service.left())]);
            rule
        };
        let own = self.services.iter().map(|service| (service, service.own_front()));
        own.chain(self.services.iter().flat_map(Service::fronts)).map(rule).collect()
    }
}

impl Service {
    fn own_front(&self) -> Front {
        Front { ip: Some(*self.at.ip()), port: self.at.port() }
    }

    fn fronts(&self) -> impl Iterator<Item = (&Service, Front)> {
        self.published.iter().map(move |front| (self, *front))
    }

    fn left(&self) -> String {
        format!("{}-left", self.name)
    }

    /// The first packet of a connection. Each rule counts for itself: the first takes every third, the second every
    /// other one of the rest, the last what is left.
    fn dispatch_rules(&self) -> Vec<Vec<Statement>> {
        let count = self.servers.len();
        let mut rules = Vec::new();
        for (index, server) in self.servers.iter().enumerate() {
            let left = (count - index) as u32;
            let mut rule: Vec<_> = (left > 1).then_some(Statement::EveryNth(left)).into_iter().collect();
            rule.extend([Statement::Tcp, Statement::Dnat(*server)]);
            rules.push(rule);
        }
        if rules.is_empty() {
            // Not rewritten, it would reach what this machine itself has on that port.
            rules.push(vec![Statement::Reset]);
        }
        rules
    }

    /// Later packets. The server of the connection is asked for, not the packet's address: so the rules hold for
    /// both directions.
    fn left_rules(&self) -> Vec<Vec<Statement>> {
        let stays = |ip| vec![Statement::CtReplySource(ip, 32), Statement::Return];
        let mut rules: Vec<_> = self.stays().map(stays).collect();
        rules.extend([
            // A reset must arrive, whoever sends it.
            vec![Statement::TcpFlag(TcpFlag::Rst), Statement::Return],
            // In the midst of a connection it makes its receiver answer where it is, see `conntrack::Tracker::reset`.
            vec![Statement::CtEstablished, Statement::TcpFlag(TcpFlag::Syn), Statement::Return],
            vec![Statement::Reset],
        ]);
        rules
    }

    /// Whose connections go on.
    fn stays(&self) -> impl Iterator<Item = Ipv4Addr> {
        let servers = self.servers.iter().map(|server| *server.ip());
        let more = self.keep.iter().filter(|ip| !self.servers.iter().any(|server| server.ip() == *ip));
        servers.chain(more.copied())
    }

    fn at_rule(&self) -> Vec<Statement> {
        let jump = Statement::Jump(self.name.clone());
        vec![Statement::Destination(*self.at.ip(), 32), Statement::TcpPort(self.at.port()), jump]
    }

    /// For packets from `outside` those on a loopback address are left out, as in a `NatTable`.
    fn published_rules(&self, outside: bool) -> impl Iterator<Item = Vec<Statement>> {
        let fronts =
            self.published.iter().filter(move |f| !outside || !f.ip.is_some_and(|ip| ip.is_loopback()));
        fronts.map(|front| {
            let to = front.ip.map_or(Statement::DestinationLocal, |ip| Statement::Destination(ip, 32));
            vec![to, Statement::TcpPort(front.port), Statement::Jump(self.name.clone())]
        })
    }
}

fn plain(name: String, rules: Vec<Vec<Statement>>) -> Chain {
    Chain { name, base: None, rules }
}

fn base(name: &str, kind: &'static str, hook: Hook, priority: i32, rules: Vec<Vec<Statement>>) -> Chain {
    Chain { name: name.to_owned(), base: Some(Base { kind, hook, priority }), rules }
}

// `enum nf_ip_hook_priorities`. Connections are known from -200 on.
const MANGLE: i32 = -150;
const DSTNAT: i32 = -100;

#[cfg(test)]
mod tests {
    use super::*;

    fn server(last: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 1, 2, last), 5432)
    }

    fn sample() -> ServiceTable {
        let service = |name: &str, at, published, servers| Service {
            name: name.to_owned(),
            at,
            published,
            servers,
            keep: vec![],
        };
        let everywhere = Front { ip: None, port: 5440 };
        let here = Front { ip: Some(Ipv4Addr::LOCALHOST), port: 5441 };
        ServiceTable {
            name: "demo".to_owned(),
            comment: "lab a".to_owned(),
            subnet: (Ipv4Addr::new(10, 1, 2, 0), 24),
            services: vec![
                service("rw", server(253), vec![everywhere, here], vec![server(2)]),
                service("ro", server(254), vec![], vec![server(3), server(4), server(5)]),
                service("none", server(252), vec![], vec![]),
            ],
        }
    }

    #[test]
    fn servers_take_turns_and_none_is_a_refusal() {
        let text = sample().to_nft();
        let chain = |name: &str| {
            text.split(&format!("chain {name} {{\n")).nth(1).unwrap().split("\t}").next().unwrap()
        };
        assert_eq!(
            chain("ro"),
            "\t\tnumgen inc mod 3 0 meta l4proto tcp dnat to 10.1.2.3:5432\n\
             \t\tnumgen inc mod 2 0 meta l4proto tcp dnat to 10.1.2.4:5432\n\
             \t\tmeta l4proto tcp dnat to 10.1.2.5:5432\n"
        );
        assert_eq!(chain("none"), "\t\treject with tcp reset\n");
        assert!(!chain("published").contains("127.0.0.1"), "{text}");
        assert!(chain("published-here").contains("127.0.0.1"), "{text}");
    }

    #[test]
    fn packets_of_others_are_asked_for_their_addresses_only() {
        let mut table = sample();
        table.services.truncate(1);
        let [a, b] = [2, 3].map(server);
        let ro = Service {
            name: "ro".to_owned(),
            at: server(254),
            published: vec![],
            servers: vec![b],
            keep: vec![*a.ip()],
        };
        table.services.push(ro);
        let requests = "\
            \t\tip daddr 10.1.2.253 tcp dport 5432 ct direction original ct status dnat goto rw-left\n\
            \t\tip daddr 10.1.2.254 tcp dport 5432 ct direction original ct status dnat goto ro-left\n\
            \t\ttcp dport 5440 ct direction original ct reply ip saddr 10.1.2.0/24 ct status dnat goto rw-left\n\
            \t\tip daddr 127.0.0.1 tcp dport 5441 ct direction original ct status dnat goto rw-left\n";
        let leaving = format!("type filter hook output priority mangle; policy accept;\n{requests}\t}}");
        let arriving = format!(
            "type filter hook prerouting priority mangle; policy accept;\n{requests}\
             \t\tip saddr 10.1.2.2 return\n\t\tip saddr 10.1.2.0/24 jump answers\n\t}}"
        );
        let text = table.to_nft();
        assert!(text.contains(&leaving) && text.contains(&arriving), "{text}");
        // Who serves one of the two only may answer too late for the other.
        table.services[1].keep.clear();
        assert!(!table.to_nft().contains("\tip saddr 10.1.2.2 return"));
    }

    #[test]
    fn a_connection_is_reset_when_its_server_is_none_any_more() {
        let table = sample();
        let at = |ip: [u8; 4], port| SocketAddrV4::new(ip.into(), port);
        let old = *server(9).ip();
        assert!(table.resets(server(253), old) && !table.resets(server(253), *server(2).ip()));
        assert!(table.resets(server(252), *server(2).ip()), "no server at all");
        assert!(!table.resets(server(254), *server(4).ip()));
        // Published: everywhere, but only into the own network.
        assert!(table.resets(at([192, 0, 2, 1], 5440), old));
        assert!(!table.resets(at([192, 0, 2, 1], 5440), Ipv4Addr::new(10, 9, 9, 9)));
        assert!(table.resets(at([127, 0, 0, 1], 5441), old) && !table.resets(at([192, 0, 2, 1], 5441), old));
        // One service published on the port of another one.
        let mut same_port = sample();
        same_port.services[0].published[0].port = 5432;
        assert!(
            !same_port.resets(server(254), *server(4).ip())
                && same_port.resets(at([192, 0, 2, 1], 5432), old)
        );
        // It gets no new ones, and keeps those that it has.
        let mut kept = sample();
        kept.services[0].keep = vec![old, *server(2).ip()];
        assert!(!kept.resets(server(253), old) && kept.resets(server(253), *server(8).ip()));
        let text = kept.to_nft();
        assert!(
            text.contains("ct reply ip saddr 10.1.2.9 return") && !text.contains("dnat to 10.1.2.9"),
            "{text}"
        );
        assert_eq!(text.matches("ct reply ip saddr 10.1.2.2 return").count(), 1);
        // A node's own address, or its own published port.
        assert!(!table.resets(server(9), old) && !table.resets(at([192, 0, 2, 1], 5433), old));
    }
}
