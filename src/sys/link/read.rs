//! Reading interfaces, addresses, routes and counters.
//!
//! Everything is asked of netlink: /sys/class/net shows the namespace in which *that* sysfs was mounted.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, anyhow};
use futures_util::stream::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use nix::errno::Errno;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{errno, failed, rtnl, socket};

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
    rtnl(socket()?, async |handle| Ok(lookup(&handle, name).await?.is_some()))
}

/// Every interface, in the order of their indexes.
pub fn list() -> Result<Vec<Link>> {
    rtnl(socket()?, async |handle| links(&handle).await)
}

/// The names of the ports of a bridge.
///
/// # Errors
/// `ENODEV` when there is no such bridge.
pub fn ports(bridge: &str) -> Result<Vec<String>> {
    rtnl(socket()?, async |handle| {
        let index = find(&handle, bridge).await?.index;
        let ports = links(&handle).await?.into_iter().filter(|l| l.controller == Some(index));
        Ok(ports.map(|l| l.name).collect())
    })
}

/// Every IPv4 address of every interface.
pub fn addresses() -> Result<Vec<Address>> {
    rtnl(socket()?, async |handle| {
        let names = links(&handle).await?;
        let mut request = handle.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let messages = collect(request.execute(), "list addresses: RTM_GETADDR").await?;
        let address = |message: &AddressMessage| {
            // IFA_LOCAL is the interface's own; IFA_ADDRESS is the other side's on a point-to-point link.
            let own = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(IpAddr::V4(own)) => Some(*own),
                _ => None,
            })?;
            let dev = name_of(&names, message.header.index)?;
            Some(Address { dev, address: own, prefix: message.header.prefix_len })
        };
        Ok(messages.iter().filter_map(address).collect())
    })
}

/// The IPv4 routes of the main table, what `ip -4 route` shows.
pub fn routes() -> Result<Vec<Route>> {
    rtnl(socket()?, async |handle| {
        let names = links(&handle).await?;
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let stream = handle.route().get(request).execute();
        let messages = collect(stream, "list routes: RTM_GETROUTE").await?;
        let main = messages.iter().filter(|m| m.header.table == RouteHeader::RT_TABLE_MAIN);
        Ok(main.map(|m| route(m, &names)).collect())
    })
}

/// The counters of an interface.
///
/// # Errors
/// `ENODEV` when there is none of that name.
pub fn stats(name: &str) -> Result<LinkStats> {
    rtnl(socket()?, async |handle| {
        let message = get(&handle, name).await?.ok_or_else(|| absent(name))?;
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
    })
}

async fn get(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    let mut stream = std::pin::pin!(handle.link().get().match_name(name).execute());
    match stream.try_next().await {
        Ok(message) => Ok(message),
        Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
        Err(error) => failed(error, || format!("look up {name}: RTM_GETLINK")),
    }
}

pub(super) async fn lookup(handle: &Handle, name: &str) -> Result<Option<Link>> {
    Ok(get(handle, name).await?.map(|message| link(&message)))
}

pub(super) async fn find(handle: &Handle, name: &str) -> Result<Link> {
    lookup(handle, name).await?.ok_or_else(|| absent(name))
}

async fn links(handle: &Handle) -> Result<Vec<Link>> {
    let messages = collect(handle.link().get().execute(), "list links: RTM_GETLINK").await?;
    Ok(messages.iter().map(link).collect())
}

async fn collect<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>, what: &str) -> Result<Vec<T>> {
    let mut stream = std::pin::pin!(stream);
    let mut items = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(item) => items.push(item),
            Err(error) => return failed(error, || what.to_owned()),
        }
    }
    Ok(items)
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
