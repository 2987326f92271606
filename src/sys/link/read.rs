//! Reading interfaces, addresses, routes and counters.
//!
//! Everything is asked of netlink: /sys/class/net shows the namespace in which *that* sysfs was mounted.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, anyhow};
use ipnet::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::{Rtnl, open};

/// One interface, as `ip -d link` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub alias: Option<String>,
    /// The index of the bridge it is a port of.
    pub controller: Option<u32>,
    pub mac: Option<[u8; 6]>,
    /// Administratively up (`IFF_UP`), which says nothing of the carrier.
    pub up: bool,
    /// `bridge`, `veth`, ...; a plain device has none.
    pub kind: Option<String>,
}

impl Link {
    /// Whether this is the bridge that [`create_bridge`](super::create_bridge) marks so. Whoever was killed between
    /// its two messages has left one without an alias: then the MAC, which came with the first, is the mark.
    pub fn is_bridge_of(&self, alias: &str, mac: [u8; 6]) -> bool {
        let marked = self.alias.as_deref().map_or(self.mac == Some(mac), |own| own == alias);
        self.kind.as_deref() == Some("bridge") && marked
    }
}

/// One IPv4 address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub dev: String,
    pub address: Ipv4Addr,
    pub prefix: u8,
}

/// One IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Network and prefix length; the default route is 0.0.0.0/0.
    pub dst: (Ipv4Addr, u8),
    /// `None` where packets go nowhere: unreachable, blackhole, prohibit, throw.
    pub dev: Option<String>,
    pub gateway: Option<Ipv4Addr>,
}

/// Counters since the interface was made (`struct rtnl_link_stats64`). On the host's end of a veth
/// received and sent are swapped against what the other end sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkStats {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Whether an interface of that name exists.
pub fn exists(name: &str) -> Result<bool> {
    Ok(get(name)?.is_some())
}

/// The interface of that name, if there is one.
pub fn get(name: &str) -> Result<Option<Link>> {
    lookup(&mut open()?, name)
}

/// Every interface, in the order of their indexes.
pub fn list() -> Result<Vec<Link>> {
    links(&mut open()?)
}

/// Every IPv4 address of every interface.
pub fn addresses() -> Result<Vec<Address>> {
    let mut rtnl = open()?;
    let names = links(&mut rtnl)?;
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    let replies =
        rtnl.dump(RouteNetlinkMessage::GetAddress(request)).context("list addresses: RTM_GETADDR")?;
    let address = |reply: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewAddress(message) = reply else { return None };
        // IFA_LOCAL is the interface's own; IFA_ADDRESS is the other side's on a point-to-point link.
        let own = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(IpAddr::V4(own)) => Some(*own),
            _ => None,
        })?;
        let dev = name_of(&names, message.header.index)?;
        Some(Address { dev, address: own, prefix: message.header.prefix_len })
    };
    Ok(replies.iter().filter_map(address).collect())
}

/// Whether what is sent to the address goes through no router: an interface of this host has one in the same network.
pub fn is_on_link(address: Ipv4Addr) -> Result<bool> {
    let network = |own: &Address| Ipv4Net::new(own.address, own.prefix);
    Ok(addresses()?.iter().any(|own| network(own).is_ok_and(|network| network.contains(&address))))
}

/// The IPv4 routes of the main table, what `ip -4 route` shows.
pub fn routes() -> Result<Vec<Route>> {
    let mut rtnl = open()?;
    let names = links(&mut rtnl)?;
    let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let replies = rtnl.dump(RouteNetlinkMessage::GetRoute(request)).context("list routes: RTM_GETROUTE")?;
    let main = replies.iter().filter_map(|reply| match reply {
        RouteNetlinkMessage::NewRoute(m) if m.header.table == RouteHeader::RT_TABLE_MAIN => Some(m),
        _ => None,
    });
    Ok(main.map(|m| route(m, &names)).collect())
}

/// The counters of an interface.
///
/// # Errors
/// `ENODEV` when there is none of that name.
pub fn stats(name: &str) -> Result<LinkStats> {
    let message = message(&mut open()?, name, Vec::new())?.ok_or_else(|| absent(name))?;
    let stats = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::Stats64(stats) => Some(stats),
        _ => None,
    });
    let s = stats.ok_or_else(|| anyhow!("link {name}: the kernel sent no counters"))?;
    Ok(LinkStats {
        rx_bytes: s.rx_bytes,
        rx_packets: s.rx_packets,
        rx_errors: s.rx_errors,
        rx_dropped: s.rx_dropped,
        tx_bytes: s.tx_bytes,
        tx_packets: s.tx_packets,
        tx_errors: s.tx_errors,
        tx_dropped: s.tx_dropped,
    })
}

fn message(rtnl: &mut Rtnl, name: &str, mask: Vec<LinkExtentMask>) -> Result<Option<LinkMessage>> {
    let mut request = LinkMessage::default();
    request.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::ExtMask(mask)];
    match rtnl.get(RouteNetlinkMessage::GetLink(request)) {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(message)),
        Ok(_) => Err(anyhow!("look up {name}: RTM_GETLINK got another answer")),
        Err(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("look up {name}: RTM_GETLINK")),
    }
}

pub(super) fn lookup(rtnl: &mut Rtnl, name: &str) -> Result<Option<Link>> {
    Ok(message(rtnl, name, without_counters())?.map(|message| link(&message)))
}

/// Its index alone.
pub(super) fn index(rtnl: &Rtnl, name: &str) -> Result<u32> {
    rtnl.index(name).map_err(|error| match error {
        Errno::ENODEV => absent(name),
        error => anyhow::Error::new(error).context(format!("look up {name}: SIOCGIFINDEX")),
    })
}

pub(super) fn find(rtnl: &mut Rtnl, name: &str) -> Result<Link> {
    lookup(rtnl, name)?.ok_or_else(|| absent(name))
}

/// All links, or the ports of one bridge.
fn links(rtnl: &mut Rtnl) -> Result<Vec<Link>> {
    let mut request = LinkMessage::default();
    request.attributes = vec![LinkAttribute::ExtMask(without_counters())];
    let replies = rtnl.dump(RouteNetlinkMessage::GetLink(request)).context("list links: RTM_GETLINK")?;
    let links = replies.iter().filter_map(|reply| match reply {
        RouteNetlinkMessage::NewLink(message) => Some(link(message)),
        _ => None,
    });
    Ok(links.collect())
}

/// They are half of the answer, and summed up over all processors.
fn without_counters() -> Vec<LinkExtentMask> {
    vec![LinkExtentMask::SkipStats]
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: None,
        controller: None,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        kind: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.clone(),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn route(message: &RouteMessage, names: &[Link]) -> Route {
    let mut network = Ipv4Addr::UNSPECIFIED;
    let mut dev = None;
    let mut gateway = None;
    let mut hop = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => dev = name_of(names, *index),
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
        RouteAttribute::Destination(RouteAddress::Inet(address)) => network = *address,
        _ => {}
    };
    message.attributes.iter().for_each(&mut hop);
    for attribute in &message.attributes {
        // Of several next hops the first stands for all.
        if let RouteAttribute::MultiPath(hops) = attribute
            && let Some(first) = hops.first()
        {
            hop(&RouteAttribute::Oif(first.interface_index));
            first.attributes.iter().for_each(&mut hop);
        }
    }
    Route { dst: (network, message.header.destination_prefix_length), dev, gateway }
}

fn name_of(names: &[Link], index: u32) -> Option<String> {
    names.iter().find(|link| link.index == index).map(|link| link.name.clone())
}

fn absent(name: &str) -> anyhow::Error {
    anyhow::Error::new(Errno::ENODEV).context(format!("interface {name}"))
}
