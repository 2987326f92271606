//! Interfaces, addresses and routes through rtnetlink(7): what ip-link(8), ip-address(8) and
//! ip-route(8) do, without the programs.
//!
//! The rules that surprise people: a netlink socket stays in the network namespace it was opened in,
//! wherever it is used; a veth's other end can be *born* in another namespace, which takes a fraction of
//! a millisecond where moving it there takes 20; and the kernel ignores an alias in the message that
//! creates a link.
//!
//! Each public function opens its socket in the namespace of the calling thread (except [`configure`]),
//! runs a current-thread runtime and has closed both when it returns: no thread outlives a call.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::stream::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, TokioSocket};
use nix::errno::Errno;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::netns;

/// How long a name may stay taken by a link that is ours and on its way out.
const DYING: Duration = Duration::from_secs(1);

/// The kernel answers within the system call. This is for a reply that the crate drops because it
/// can't decode it (it logs and goes on): an error then, not a hang.
const NO_ANSWER: Duration = Duration::from_secs(10);

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

/// Makes a bridge with its MAC, alias and address, and brings it up. One of the same name and alias is
/// reused; address and up are then made sure of.
///
/// # Errors
/// `EEXIST` when the name belongs to something else.
pub fn create_bridge(bridge: &Bridge) -> Result<Created> {
    let name = &bridge.name;
    rtnl(socket()?, async |handle| {
        let mut message = LinkBridge::new(name).address(bridge.mac.to_vec());
        if let Some(mtu) = bridge.mtu {
            message = message.mtu(mtu);
        }
        let created = match handle.link().add(message.build()).execute().await {
            Ok(()) => {
                let mark = LinkUnspec::new_with_name(name).alias(&bridge.alias);
                finish(&handle, name, mark).await?;
                Created::New
            }
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Created::Existed,
            Err(error) => return failed(error, || format!("create bridge {name}: RTM_NEWLINK")),
        };
        let link = find(&handle, name).await?;
        if created == Created::Existed {
            let alias = link.alias.as_deref();
            if link.kind.as_deref() != Some("bridge") || alias != Some(&bridge.alias) {
                return Err(foreign(&link));
            }
            up(&handle, name).await?;
        }
        add_address(&handle, &link, bridge.address, bridge.prefix).await?;
        Ok(created)
    })
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
    rtnl(socket()?, async |handle| {
        let controller = find(&handle, &veth.bridge).await?.index;
        let deadline = Instant::now() + DYING;
        loop {
            let error = match handle.link().add(veth_message(veth, controller)).execute().await {
                Ok(()) => return finish(&handle, &veth.name, port(veth)).await,
                Err(error) => error,
            };
            let present = match errno(&error) {
                Some(Errno::EEXIST) => lookup(&handle, &veth.name).await?,
                _ => None,
            };
            match present {
                Some(link) if link.alias.as_deref() != Some(&veth.alias) => {
                    return Err(foreign(&link));
                }
                Some(_) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Some(link) => remove(&handle, &link).await.map(drop)?,
                // Gone between the two messages; or it was the other end's name that is taken.
                None if errno(&error) == Some(Errno::EEXIST) && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                None => {
                    return failed(error, || {
                        format!(
                            "create veth {} with {} in the other namespace: RTM_NEWLINK",
                            veth.name, veth.peer_name
                        )
                    });
                }
            }
        }
    })
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
    rtnl(netns::run_in(netns, socket)??, async |handle| {
        up(&handle, "lo").await?;
        let link = find(&handle, dev).await?;
        // The address first: from the first moment that packets can arrive it answers for itself.
        add_address(&handle, &link, address, prefix).await?;
        up(&handle, dev).await?;
        let Some(gateway) = gateway else { return Ok(()) };
        let route =
            RouteMessageBuilder::<Ipv4Addr>::new().output_interface(link.index).gateway(gateway).build();
        match handle.route().add(route).replace().execute().await {
            Ok(()) => Ok(()),
            Err(error) => {
                failed(error, || format!("set default route via {gateway} dev {dev}: RTM_NEWROUTE"))
            }
        }
    })
}

/// Removes an interface; false when there was none. With one end of a veth goes the other.
pub fn delete(name: &str) -> Result<bool> {
    rtnl(socket()?, async |handle| match lookup(&handle, name).await? {
        Some(link) => remove(&handle, &link).await,
        None => Ok(false),
    })
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
        let address = |message: &netlink_packet_route::address::AddressMessage| {
            // IFA_LOCAL is the interface's own; IFA_ADDRESS is the other side's on a point-to-point link.
            let own = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(std::net::IpAddr::V4(own)) => Some(*own),
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

fn socket() -> Result<Socket> {
    let open = || -> std::io::Result<Socket> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        Ok(socket)
    };
    open()
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        .context("open an rtnetlink socket: socket")
}

/// Runs `work` on `socket` in a current-thread runtime that ends with it.
fn rtnl<T>(socket: Socket, work: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        .context("start a runtime for rtnetlink: epoll_create")?;
    runtime.block_on(async {
        // SAFETY: into_raw_fd gives up the only owner of the descriptor, and it is a netlink socket.
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        let (connection, handle, _) = rtnetlink::from_socket(socket);
        tokio::spawn(connection);
        match tokio::time::timeout(NO_ANSWER, work(handle)).await {
            Ok(result) => result,
            Err(_) => bail!("rtnetlink: no answer that can be read in {NO_ANSWER:?}"),
        }
    })
}

fn veth_message(veth: &Veth, controller: u32) -> LinkMessage {
    let mut here = LinkVeth::new(&veth.name, &veth.peer_name).controller(controller).up();
    let mut there = LinkMessageBuilder::<LinkUnspec>::new()
        .name(veth.peer_name.clone())
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
async fn finish(handle: &Handle, name: &str, message: LinkMessageBuilder<LinkUnspec>) -> Result<()> {
    match handle.link().change(message.build()).execute().await {
        Ok(()) => Ok(()),
        Err(error) => {
            // Without its mark nobody would find it again.
            if let Some(link) = lookup(handle, name).await? {
                remove(handle, &link).await?;
            }
            failed(error, || format!("set the alias of {name}: RTM_NEWLINK"))
        }
    }
}

async fn up(handle: &Handle, name: &str) -> Result<()> {
    let message = LinkUnspec::new_with_name(name).up().build();
    match handle.link().change(message).execute().await {
        Ok(()) => Ok(()),
        Err(error) => failed(error, || format!("bring {name} up: RTM_NEWLINK")),
    }
}

async fn add_address(handle: &Handle, link: &Link, address: Ipv4Addr, prefix: u8) -> Result<()> {
    match handle.address().add(link.index, address.into(), prefix).execute().await {
        Ok(()) => Ok(()),
        Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()), // on this very interface
        Err(error) => {
            failed(error, || format!("add address {address}/{prefix} to {}: RTM_NEWADDR", link.name))
        }
    }
}

/// By index, not by name: between looking and removing, the name may have passed to another link.
async fn remove(handle: &Handle, link: &Link) -> Result<bool> {
    match handle.link().del(link.index).execute().await {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(false), // its namespace was faster
        Err(error) => failed(error, || format!("remove {}: RTM_DELLINK", link.name)),
    }
}

async fn get(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    let mut stream = std::pin::pin!(handle.link().get().match_name(name).execute());
    match stream.try_next().await {
        Ok(message) => Ok(message),
        Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
        Err(error) => failed(error, || format!("look up {name}: RTM_GETLINK")),
    }
}

async fn lookup(handle: &Handle, name: &str) -> Result<Option<Link>> {
    Ok(get(handle, name).await?.map(|message| link(&message)))
}

async fn find(handle: &Handle, name: &str) -> Result<Link> {
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

fn foreign(link: &Link) -> anyhow::Error {
    let kind = link.kind.as_deref().unwrap_or("plain");
    let alias = link.alias.as_deref().map_or("no alias".to_owned(), |a| format!("alias {a:?}"));
    anyhow::Error::new(Errno::EEXIST)
        .context(format!("{} is somebody else's: a {kind} interface with {alias}", link.name))
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw(-message.raw_code())),
        _ => None,
    }
}

fn failed<T>(error: rtnetlink::Error, what: impl FnOnce() -> String) -> Result<T> {
    match errno(&error) {
        Some(errno) => Err(errno).with_context(what),
        None => Err(error).with_context(what),
    }
}
