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

mod read;

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVeth, LinkMessage,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, TokioSocket};
use nix::errno::Errno;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::netns;
pub use read::{Address, Link, LinkStats, Route, addresses, exists, list, ports, routes, stats};
use read::{find, lookup};

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
