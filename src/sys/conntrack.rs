//! TCP connections that the kernel tracks (nf_conntrack, what `conntrack -L` lists), and how to end one whose ends
//! say nothing.
//!
//! The rules that surprise people: a program that only waits for an answer sends no packet that could be refused, and
//! a forged RST is ignored unless it carries the very next sequence number (RFC 5961), which nobody but the two ends
//! knows. But an end that is sent a SYN in the midst of a connection tells it: it answers with an ACK that has the
//! number in it. A rule that refuses *that* packet (`reject with tcp reset`) makes a reset that is believed.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use netlink_sys::Socket;
use nix::errno::Errno;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};

use super::nft::wire::{self, Attributes};

/// An IPv4 TCP connection, as its client sees it and as its server does. They differ where addresses are rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    pub client: Way,
    pub server: Way,
    /// Packets went both ways.
    pub answered: bool,
}

/// From where to where one of the two ends sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
}

/// The connections that the caller's network namespace tracks.
pub struct Tracker(Socket);

impl Tracker {
    pub fn open() -> Result<Self> {
        wire::open().map(Self)
    }

    /// All of them. A kernel that can't list them (no ctnetlink) has none.
    pub fn list(&self) -> Result<Vec<Connection>> {
        match wire::dump_on(&self.0, IPCTNL_MSG_CT_GET, nix::libc::AF_INET as u8) {
            Err(error) if unsupported(&error) => Ok(Vec::new()),
            objects => Ok(objects.context("list connections")?.iter().filter_map(connection).collect()),
        }
    }

    /// Ends connections that a rule refuses to carry on: makes both ends of each say where they are, so that the rule
    /// resets them, and forgets it. An end whose answer is late meets the rules for new connections.
    ///
    /// The rule must let SYN and RST of such connections pass, as those of `nft::ServiceTable` do.
    pub fn reset(&self, connections: &[Connection]) -> Result<()> {
        if connections.is_empty() {
            return Ok(());
        }
        let flags = SocketFlags::CLOEXEC;
        let raw = socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::RAW))
            .context("open a raw socket: socket")?;
        for Connection { client, server, .. } in connections.iter().filter(|c| c.answered) {
            // Connection tracking passes a SYN of the client and a SYN+ACK of the server in any state, and rewrites
            // them. One that can't be sent leaves its end to find out when it next sends something.
            let _ = send(&raw, *client, SYN);
            let _ = send(&raw, *server, SYN | ACK);
        }
        let tuples =
            connections.iter().map(|c| Attributes::new().nest(CTA_TUPLE_ORIG, tuple(c.client))).collect();
        match wire::change_each(&self.0, IPCTNL_MSG_CT_DELETE, nix::libc::AF_INET as u8, tuples) {
            // The kernel was faster.
            Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => Ok(()),
            other => other.context("forget connections"),
        }
    }
}

/// Sends a TCP segment of 20 bytes, with sequence number 0.
fn send(raw: &OwnedFd, way: Way, flags: u8) -> rustix::io::Result<()> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(way.from.port().to_be_bytes());
    segment.extend(way.to.port().to_be_bytes());
    segment.extend([0; 8]);
    segment.extend([5 << 4, flags, 4, 0, 0, 0, 0, 0]);
    let pseudo = [way.from.ip().octets(), way.to.ip().octets(), [0, TCP, 0, 20]].concat();
    let sum = checksum(&[pseudo, segment.clone()].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    // The kernel fills in length, identification and checksum of the IP header, raw(7).
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0];
    packet.extend(way.from.ip().octets());
    packet.extend(way.to.ip().octets());
    packet.extend(segment);
    sendto(raw, &packet, SendFlags::empty(), &SocketAddrV4::new(*way.to.ip(), 0)).map(drop)
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn connection(object: &wire::Object) -> Option<Connection> {
    let client = way(object.bytes(CTA_TUPLE_ORIG)?)?;
    let server = way(object.bytes(CTA_TUPLE_REPLY)?)?;
    let status = object.number(CTA_STATUS)?;
    Some(Connection { client, server, answered: status & IPS_SEEN_REPLY != 0 })
}

fn way(tuple: &[u8]) -> Option<Way> {
    let ip = wire::attribute(tuple, CTA_TUPLE_IP)?;
    let proto = wire::attribute(tuple, CTA_TUPLE_PROTO)?;
    if wire::attribute(proto, CTA_PROTO_NUM)? != [TCP] {
        return None;
    }
    let end = |address, port| {
        let address = wire::number(wire::attribute(ip, address)?)?;
        let port = wire::attribute(proto, port)?.try_into().ok()?;
        Some(SocketAddrV4::new(Ipv4Addr::from_bits(address), u16::from_be_bytes(port)))
    };
    Some(Way { from: end(CTA_IP_V4_SRC, CTA_PROTO_SRC_PORT)?, to: end(CTA_IP_V4_DST, CTA_PROTO_DST_PORT)? })
}

fn tuple(way: Way) -> Attributes {
    let ip = Attributes::new()
        .bytes(CTA_IP_V4_SRC, &way.from.ip().octets())
        .bytes(CTA_IP_V4_DST, &way.to.ip().octets());
    let proto = Attributes::new()
        .bytes(CTA_PROTO_NUM, &[TCP])
        .bytes(CTA_PROTO_SRC_PORT, &way.from.port().to_be_bytes())
        .bytes(CTA_PROTO_DST_PORT, &way.to.port().to_be_bytes());
    Attributes::new().nest(CTA_TUPLE_IP, ip).nest(CTA_TUPLE_PROTO, proto)
}

/// nfnetlink answers EINVAL for a subsystem that is not there.
fn unsupported(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT))
}

const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// linux/netfilter/nf_conntrack_common.h.
const IPS_SEEN_REPLY: u32 = 1 << 1;

// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const IPCTNL_MSG_CT_DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn what_is_asked_for_reads_back() {
        let one = Way { from: "10.0.0.1:1".parse().unwrap(), to: "10.0.0.2:65535".parse().unwrap() };
        let bytes = Attributes::new().nest(CTA_TUPLE_ORIG, tuple(one));
        assert_eq!(way(wire::attribute(bytes.as_bytes(), CTA_TUPLE_ORIG).unwrap()), Some(one));
    }
}
