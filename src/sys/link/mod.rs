//! Interfaces, addresses and routes through rtnetlink(7): what ip-link(8), ip-address(8) and
//! ip-route(8) do, without the programs.
//!
//! The rules that surprise people: a netlink socket stays in the network namespace it was opened in,
//! wherever it is used; a veth's other end can be *born* in another namespace, which takes a fraction of
//! a millisecond where moving it there takes 20; and the kernel ignores an alias in the message that
//! creates a link.
//!
//! Each public function opens its socket in the namespace of the calling thread (except [`configure`])
//! and has closed it when it returns.

pub mod delay;
mod read;
mod socket;

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkMessage,
};
use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use super::netns;
pub use read::{Address, Link, LinkStats, Route, addresses, exists, get, is_on_link, list, routes, stats};
use read::{find, index, lookup};
use socket::Rtnl;

/// How long a name may stay taken by a link that is ours and on its way out.
const DYING: Duration = Duration::from_secs(1);

/// A bridge(8) with an address of its own, the gateway of what is plugged into it.
#[derive(Debug, Clone)]
pub struct Bridge {
    /// At most 15 bytes (`IFNAMSIZ`).
    pub name: String,
    /// Whose it is; at most 255 bytes (`IFALIASZ`). What another alias marks is never touched.
    pub alias: String,
    /// Given at creation and kept. Otherwise a bridge takes the lowest MAC of its ports; as ports come
    /// and go it would change, and neighbours would send to the old one until their ARP entry is stale.
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    pub prefix: u8,
    /// Bytes; `None` leaves the kernel's 1500.
    pub mtu: Option<u32>,
}

/// A veth(4) pair: one end here as a port of a bridge, the other in another namespace.
#[derive(Debug, Clone)]
pub struct Veth<'a> {
    /// Of the end here; at most 15 bytes.
    pub name: String,
    /// Whose it is, on the end here.
    pub alias: String,
    /// The controller, by name.
    pub bridge: String,
    /// Where the other end is born.
    pub netns: BorrowedFd<'a>,
    pub peer_name: String,
    pub peer_mac: [u8; 6],
    /// Bytes, for both ends. A bridge takes the lowest MTU of its ports.
    pub mtu: Option<u32>,
}

/// Whether [`create_bridge`] made something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    New,
    /// It was there with the same alias.
    Existed,
}

/// Makes a bridge with its MAC, alias and address, and brings it up. One of the same name and alias is
/// reused; address and up are then made sure of.
///
/// # Errors
/// `EEXIST` when the name belongs to something else.
pub fn create_bridge(bridge: &Bridge) -> Result<Created> {
    let name = &bridge.name;
    let mut rtnl = open()?;
    let mut message = LinkBridge::new(name).address(bridge.mac.to_vec());
    if let Some(mtu) = bridge.mtu {
        message = message.mtu(mtu);
    }
    let (created, link) = match lookup(&mut rtnl, name)? {
        Some(link) => (Created::Existed, link),
        None => {
            add(&mut rtnl, message.build()).with_context(|| format!("create bridge {name}: RTM_NEWLINK"))?;
            (Created::New, find(&mut rtnl, name)?)
        }
    };
    if created == Created::Existed && !link.is_bridge_of(&bridge.alias, bridge.mac) {
        return Err(foreign(&link));
    }
    if link.alias.is_none() {
        finish(&mut rtnl, name, LinkUnspec::new_with_name(name).alias(&bridge.alias))?;
    }
    if !link.up {
        up(&mut rtnl, name)?;
    }
    give_address(&mut rtnl, (name, link.index), bridge.address, bridge.prefix)?;
    Ok(created)
}

/// Makes a veth pair with one `RTM_NEWLINK`: the other end born in its namespace (still down, see
/// [`configure`]), this end plugged into the bridge and up.
///
/// A link of that name and alias is what is left of a namespace that is being torn down: it is waited
/// for, up to a second, and then removed.
///
/// # Errors
/// `ENODEV` when the bridge is missing; `EEXIST` when one of the two names belongs to something else.
pub fn create_veth(veth: &Veth) -> Result<()> {
    let mut rtnl = open()?;
    let controller = index(&rtnl, &veth.bridge)?;
    let deadline = Instant::now() + DYING;
    loop {
        let error = match add(&mut rtnl, veth_message(veth, controller)) {
            Ok(()) => return finish(&mut rtnl, &veth.name, port(veth)),
            Err(error) => error,
        };
        let present = match error {
            Errno::EEXIST => lookup(&mut rtnl, &veth.name)?,
            _ => None,
        };
        match present {
            Some(link) if link.alias.as_deref() != Some(&veth.alias) => return Err(foreign(&link)),
            Some(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Some(link) => remove(&mut rtnl, &link).map(drop)?,
            // Gone between the two messages; or it was the other end's name that is taken.
            None if error == Errno::EEXIST && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            None => {
                let (here, there) = (&veth.name, &veth.peer_name);
                return Err(error).with_context(|| {
                    format!("create veth {here} with {there} in the other namespace: RTM_NEWLINK")
                });
            }
        }
    }
}

/// Inside `netns`: brings `lo` up, gives `dev` its address, brings it up and sets the default route,
/// over one socket that was opened there. Doing it again changes nothing.
pub fn configure(
    netns: BorrowedFd,
    dev: &str,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
) -> Result<()> {
    let mut rtnl = netns::run_in(netns, open)??;
    let index = index(&rtnl, dev)?;
    let up = |name: &str| (RouteNetlinkMessage::NewLink(LinkUnspec::new_with_name(name).up().build()), 0);
    // The address first: from the first moment that packets can arrive it answers for itself.
    let mut changes = vec![
        (up("lo"), "bring lo up: RTM_NEWLINK".to_owned()),
        (new_address(index, address, prefix), told_address(dev, address, prefix)),
        (up(dev), format!("bring {dev} up: RTM_NEWLINK")),
    ];
    if let Some(gateway) = gateway {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(gateway).build();
        let message = (RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE);
        changes.push((message, format!("set default route via {gateway} dev {dev}: RTM_NEWROUTE")));
    }
    let (messages, told): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
    let refused = rtnl.change_all(messages).with_context(|| format!("configure {dev}"))?;
    match refused.into_iter().find(|refused| *refused != (1, Errno::EEXIST)) {
        Some((at, error)) => Err(error).context(told[at].clone()),
        None => Ok(()),
    }
}

/// Gives an interface one more address. Doing it again changes nothing.
///
/// # Errors
/// `ENODEV` when there is no such interface.
pub fn add_address(dev: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
    let mut rtnl = open()?;
    let index = index(&rtnl, dev)?;
    give_address(&mut rtnl, (dev, index), address, prefix)
}

/// Takes an address from an interface. Without the address, or the interface, there is nothing to do.
pub fn remove_address(dev: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
    let mut rtnl = open()?;
    let Some(link) = lookup(&mut rtnl, dev)? else { return Ok(()) };
    let message = AddressMessageBuilder::<Ipv4Addr>::new().index(link.index).address(address, prefix).build();
    match rtnl.change(RouteNetlinkMessage::DelAddress(message), 0) {
        Err(Errno::EADDRNOTAVAIL) => Ok(()),
        other => other.with_context(|| format!("remove address {address}/{prefix} from {dev}: RTM_DELADDR")),
    }
}

/// Removes an interface; false when there was none. With one end of a veth goes the other.
pub fn delete(name: &str) -> Result<bool> {
    let mut rtnl = open()?;
    match lookup(&mut rtnl, name)? {
        Some(link) => remove(&mut rtnl, &link),
        None => Ok(false),
    }
}

fn open() -> Result<Rtnl> {
    Rtnl::open().context("open an rtnetlink socket: socket")
}

fn add(rtnl: &mut Rtnl, link: LinkMessage) -> nix::Result<()> {
    rtnl.change(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// With one queue an end: the kernel would make one for each CPU, and a directory of files for each, but without XDP all
/// packets of a veth take the same way.
fn veth_message(veth: &Veth, controller: u32) -> LinkMessage {
    let mut here = LinkVeth::new(&veth.name, &veth.peer_name)
        .controller(controller)
        .up()
        .append_extra_attribute(LinkAttribute::NumTxQueues(1))
        .append_extra_attribute(LinkAttribute::NumRxQueues(1));
    let mut there = LinkMessageBuilder::<LinkUnspec>::new()
        .name(veth.peer_name.clone())
        .append_extra_attribute(LinkAttribute::NumTxQueues(1))
        .append_extra_attribute(LinkAttribute::NumRxQueues(1))
        .address(veth.peer_mac.to_vec())
        .setns_by_fd(veth.netns.as_raw_fd());
    if let Some(mtu) = veth.mtu {
        here = here.mtu(mtu);
        there = there.mtu(mtu);
    }
    here.set_info_data(InfoData::Veth(InfoVeth::Peer(there.build()))).build()
}

/// What the second message sets on the end here.
///
/// Hairpin mode, because where br_netfilter is on (every host that ran Docker) a packet from a port to
/// this machine's address that is rewritten to go back through the same port is not routed but bridged, and
/// a bridge does not send a frame back to where it came from: a published port would not work from its
/// own host.
fn port(veth: &Veth) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_name(&veth.name)
        .alias(&veth.alias)
        .set_port_kind(InfoPortKind::Bridge)
        .set_port_data(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]))
}

/// A second message, and only after the first succeeded: the kernel ignores an alias and port options
/// when it creates a link, and handles every message of a datagram even if the one before failed, so that
/// sending both at once would put our mark on somebody else's link.
fn finish(rtnl: &mut Rtnl, name: &str, message: LinkMessageBuilder<LinkUnspec>) -> Result<()> {
    let Err(error) = rtnl.change(RouteNetlinkMessage::NewLink(message.build()), 0) else { return Ok(()) };
    // Without its mark nobody would find it again.
    if let Some(link) = lookup(rtnl, name)? {
        remove(rtnl, &link)?;
    }
    Err(error).with_context(|| format!("set the alias of {name}: RTM_NEWLINK"))
}

fn up(rtnl: &mut Rtnl, name: &str) -> Result<()> {
    let message = LinkUnspec::new_with_name(name).up().build();
    rtnl.change(RouteNetlinkMessage::NewLink(message), 0)
        .with_context(|| format!("bring {name} up: RTM_NEWLINK"))
}

fn give_address(rtnl: &mut Rtnl, (dev, index): (&str, u32), address: Ipv4Addr, prefix: u8) -> Result<()> {
    let (message, flags) = new_address(index, address, prefix);
    match rtnl.change(message, flags) {
        Err(Errno::EEXIST) => Ok(()), // on this very interface
        other => other.with_context(|| told_address(dev, address, prefix)),
    }
}

fn new_address(index: u32, address: Ipv4Addr, prefix: u8) -> (RouteNetlinkMessage, u16) {
    let message = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix).build();
    (RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn told_address(dev: &str, address: Ipv4Addr, prefix: u8) -> String {
    format!("add address {address}/{prefix} to {dev}: RTM_NEWADDR")
}

/// By index, not by name: between looking and removing, the name may have passed to another link.
fn remove(rtnl: &mut Rtnl, link: &Link) -> Result<bool> {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    match rtnl.change(RouteNetlinkMessage::DelLink(message), 0) {
        Ok(()) => Ok(true),
        Err(Errno::ENODEV) => Ok(false), // its namespace was faster
        Err(error) => Err(error).with_context(|| format!("remove {}: RTM_DELLINK", link.name)),
    }
}

fn foreign(link: &Link) -> anyhow::Error {
    let kind = link.kind.as_deref().unwrap_or("plain");
    let alias = link.alias.as_deref().map_or("no alias".to_owned(), |a| format!("alias {a:?}"));
    anyhow::Error::new(Errno::EEXIST)
        .context(format!("{} is somebody else's: a {kind} interface with {alias}", link.name))
}
