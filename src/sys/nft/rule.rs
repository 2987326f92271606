//! Rules in two forms from one source: the text of nft(8), and the expressions that the kernel runs.
//!
//! A rule is a small program: load something into register 1, compare it, stop if it differs; at the end
//! a verdict or a NAT statement. `nft --debug=netlink` shows the same programs.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::expression::*;
use super::uapi::*;
use super::wire::Attributes;

/// One part of a rule. A rule's statements are tried from left to right.
pub(super) enum Statement {
    /// An IPv4 packet. Where other kinds pass too, on a bridge, it must come before what looks at addresses.
    Ipv4,
    /// Came in through this interface.
    In(String),
    InNot(String),
    /// Goes out through this interface.
    Out(String),
    OutNot(String),
    /// From this network; a prefix of 32 is one address.
    Source(Ipv4Addr, u8),
    Destination(Ipv4Addr, u8),
    /// To any address of this host.
    DestinationLocal,
    /// Any TCP packet.
    Tcp,
    TcpPort(u16),
    /// This bit of the TCP header is set.
    TcpFlag(TcpFlag),
    /// The connection's destination was rewritten.
    CtStatusDnat,
    /// Packets went both ways.
    CtEstablished,
    /// From who made the connection.
    CtOriginal,
    /// The address and the port that the connection's client meant, whatever they were rewritten to. The port needs
    /// [`Statement::Tcp`] before it.
    CtOriginalDestination(Ipv4Addr),
    CtOriginalPort(u16),
    /// The address, or network, of who answers in this connection, whichever way the packet goes.
    CtReplySource(Ipv4Addr, u8),
    /// Every n-th time, counted by this rule alone.
    EveryNth(u32),
    Dnat(SocketAddrV4),
    /// Source NAT to the address of the interface that the packet leaves through.
    Masquerade,
    /// As many packets in a million, by chance.
    Random(u32),
    /// What goes beyond as many bytes a second. Packets are let through up to a burst: a second's worth, and what
    /// one packet can hold.
    Over(u64),
    /// From now on the packet belongs to this traffic class, tc(8).
    Class(u32),
    Drop,
    /// Drops a TCP packet, and resets the connection of who sent it.
    Reset,
    /// Goes through another chain, and comes back.
    Jump(String),
    /// Goes through another chain, and from there to where this one would have gone.
    Goto(String),
    Return,
}

/// Bits of the TCP header, RFC 9293.
#[derive(Clone, Copy)]
pub(super) enum TcpFlag {
    Syn = 2,
    Rst = 4,
}

/// Rules that are tried in order.
pub(super) struct Chain {
    pub(super) name: String,
    /// Where packets come in; without it only from other chains.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Vec<Statement>>,
}

/// One of the kernel's hooks; lower priorities come first.
#[derive(Clone, Copy)]
pub(super) struct Base {
    pub(super) kind: &'static str,
    pub(super) hook: Hook,
    pub(super) priority: i32,
}

/// `enum nf_inet_hooks`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

impl Hook {
    pub(super) fn text(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

impl Base {
    /// The priority as `nft list` writes it: the names are valid at some hooks only.
    pub(super) fn priority_text(&self) -> String {
        match (self.hook, self.priority) {
            (_, -300) => "raw".to_owned(),
            (_, -150) => "mangle".to_owned(),
            (Hook::Prerouting, -100) => "dstnat".to_owned(),
            (Hook::Prerouting, -110) => "dstnat - 10".to_owned(),
            (Hook::Postrouting, 100) => "srcnat".to_owned(),
            (_, number) => number.to_string(),
        }
    }
}

pub(super) fn text(rule: &[Statement]) -> String {
    rule.iter().map(Statement::text).collect::<Vec<_>>().join(" ")
}

/// The value of `NFTA_RULE_EXPRESSIONS`.
pub(super) fn expressions(rule: &[Statement]) -> Attributes {
    let all = rule.iter().flat_map(Statement::expressions);
    all.fold(Attributes::new(), |list, expression| list.nest(NFTA_LIST_ELEM, expression))
}

impl Statement {
    fn text(&self) -> String {
        match self {
            Self::Ipv4 => "meta protocol ip".to_owned(),
            Self::In(name) => format!("iifname {name:?}"),
            Self::InNot(name) => format!("iifname != {name:?}"),
            Self::Out(name) => format!("oifname {name:?}"),
            Self::OutNot(name) => format!("oifname != {name:?}"),
            Self::Source(address, prefix) => format!("ip saddr {}", network(*address, *prefix)),
            Self::Destination(address, prefix) => format!("ip daddr {}", network(*address, *prefix)),
            Self::DestinationLocal => "fib daddr type local".to_owned(),
            Self::Tcp => "meta l4proto tcp".to_owned(),
            Self::TcpPort(port) => format!("tcp dport {port}"),
            Self::TcpFlag(TcpFlag::Syn) => "tcp flags syn".to_owned(),
            Self::TcpFlag(TcpFlag::Rst) => "tcp flags rst".to_owned(),
            Self::CtEstablished => "ct state established".to_owned(),
            Self::CtOriginal => "ct direction original".to_owned(),
            Self::CtOriginalDestination(address) => format!("ct original ip daddr {address}"),
            Self::CtOriginalPort(port) => format!("ct original proto-dst {port}"),
            Self::CtReplySource(address, prefix) => {
                format!("ct reply ip saddr {}", network(*address, *prefix))
            }
            Self::EveryNth(n) => format!("numgen inc mod {n} 0"),
            Self::CtStatusDnat => "ct status dnat".to_owned(),
            Self::Dnat(to) => format!("dnat to {to}"),
            Self::Masquerade => "masquerade".to_owned(),
            Self::Random(per_million) => format!("numgen random mod {MILLION} < {per_million}"),
            Self::Over(rate) => format!("limit rate over {rate} bytes/second burst {BURST} bytes"),
            Self::Class(id) => format!("meta priority set {:x}:{:x}", id >> 16, id & 0xffff),
            Self::Drop => "drop".to_owned(),
            Self::Reset => "reject with tcp reset".to_owned(),
            Self::Jump(chain) => format!("jump {chain}"),
            Self::Goto(chain) => format!("goto {chain}"),
            Self::Return => "return".to_owned(),
        }
    }

    fn expressions(&self) -> Vec<Attributes> {
        match self {
            Self::Ipv4 => vec![meta(NFT_META_PROTOCOL), compare(NFT_CMP_EQ, &ETH_P_IP.to_be_bytes())],
            Self::In(name) => vec![meta(NFT_META_IIFNAME), compare(NFT_CMP_EQ, &padded(name))],
            Self::InNot(name) => vec![meta(NFT_META_IIFNAME), compare(NFT_CMP_NEQ, &padded(name))],
            Self::Out(name) => vec![meta(NFT_META_OIFNAME), compare(NFT_CMP_EQ, &padded(name))],
            Self::OutNot(name) => vec![meta(NFT_META_OIFNAME), compare(NFT_CMP_NEQ, &padded(name))],
            Self::Source(address, prefix) => in_network(IP_SADDR, *address, *prefix),
            Self::Destination(address, prefix) => in_network(IP_DADDR, *address, *prefix),
            Self::DestinationLocal => vec![fib(), compare(NFT_CMP_EQ, &RTN_LOCAL.to_ne_bytes())],
            Self::Tcp => tcp(vec![]),
            // The fields are at their offsets in TCP only, so the protocol is part of the match.
            Self::TcpPort(port) => tcp(vec![
                payload(NFT_PAYLOAD_TRANSPORT_HEADER, TCP_DPORT, 2),
                compare(NFT_CMP_EQ, &port.to_be_bytes()),
            ]),
            Self::TcpFlag(flag) => tcp(vec![
                payload(NFT_PAYLOAD_TRANSPORT_HEADER, TCP_FLAGS, 1),
                mask(&[*flag as u8]),
                compare(NFT_CMP_NEQ, &[0]),
            ]),
            Self::CtStatusDnat => any_bit(ct(NFT_CT_STATUS), IPS_DST_NAT),
            Self::CtEstablished => any_bit(ct(NFT_CT_STATE), NF_CT_STATE_ESTABLISHED),
            Self::CtOriginal => vec![ct(NFT_CT_DIRECTION), compare(NFT_CMP_EQ, &[IP_CT_DIR_ORIGINAL])],
            Self::CtOriginalDestination(address) => {
                vec![ct_of(NFT_CT_DST_IP, IP_CT_DIR_ORIGINAL), compare(NFT_CMP_EQ, &address.octets())]
            }
            Self::CtOriginalPort(port) => {
                vec![ct_of(NFT_CT_PROTO_DST, IP_CT_DIR_ORIGINAL), compare(NFT_CMP_EQ, &port.to_be_bytes())]
            }
            Self::CtReplySource(address, prefix) => {
                within(ct_of(NFT_CT_SRC_IP, IP_CT_DIR_REPLY), *address, *prefix)
            }
            Self::EveryNth(n) => {
                vec![generate(NFT_NG_INCREMENTAL, *n), compare(NFT_CMP_EQ, &0u32.to_ne_bytes())]
            }
            Self::Dnat(to) => vec![
                immediate(NFT_REG_1, value(&to.ip().octets())),
                immediate(NFT_REG_2, value(&to.port().to_be_bytes())),
                dnat_to_registers(),
            ],
            Self::Masquerade => vec![expression("masq", Attributes::new())],
            // Numbers are compared byte by byte, so the first byte must be the highest.
            Self::Random(per_million) => {
                vec![
                    generate(NFT_NG_RANDOM, MILLION),
                    big_endian(),
                    compare(NFT_CMP_LT, &per_million.to_be_bytes()),
                ]
            }
            Self::Over(rate) => vec![limit_over(*rate)],
            Self::Class(id) => vec![immediate(NFT_REG_1, value(&id.to_ne_bytes())), set_priority()],
            Self::Drop => vec![immediate(NFT_REG_VERDICT, verdict(NF_DROP))],
            Self::Reset => tcp(vec![reset()]),
            Self::Jump(chain) => vec![immediate(NFT_REG_VERDICT, verdict_to(NFT_JUMP, chain))],
            Self::Goto(chain) => vec![immediate(NFT_REG_VERDICT, verdict_to(NFT_GOTO, chain))],
            Self::Return => vec![immediate(NFT_REG_VERDICT, verdict(NFT_RETURN.cast_unsigned()))],
        }
    }
}

fn network(address: Ipv4Addr, prefix: u8) -> String {
    match prefix {
        32 => address.to_string(),
        _ => format!("{address}/{prefix}"),
    }
}

/// The netmask of a prefix length.
pub(super) fn netmask(prefix: u8) -> [u8; 4] {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0).to_be_bytes()
}

fn in_network(offset: u32, address: Ipv4Addr, prefix: u8) -> Vec<Attributes> {
    within(payload(NFT_PAYLOAD_NETWORK_HEADER, offset, 4), address, prefix)
}

/// Whether the address that `load` loads is in a network.
fn within(load: Attributes, address: Ipv4Addr, prefix: u8) -> Vec<Attributes> {
    match prefix {
        32 => vec![load, compare(NFT_CMP_EQ, &address.octets())],
        _ => vec![load, mask(&netmask(prefix)), compare(NFT_CMP_EQ, &address.octets())],
    }
}

/// TCP, and then what `rest` says of it.
fn tcp(rest: Vec<Attributes>) -> Vec<Attributes> {
    let mut all = vec![meta(NFT_META_L4PROTO), compare(NFT_CMP_EQ, &[IPPROTO_TCP])];
    all.extend(rest);
    all
}

/// Whether one of these bits is set in what `load` loads.
fn any_bit(load: Attributes, bits: u32) -> Vec<Attributes> {
    vec![load, mask(&bits.to_ne_bytes()), compare(NFT_CMP_NEQ, &0u32.to_ne_bytes())]
}

/// Interface names are compared over their whole field of 16 bytes; a shorter value would be a prefix
/// match, `iifname "br*"`.
fn padded(interface: &str) -> [u8; 16] {
    let mut field = [0; 16];
    let length = interface.len().min(15);
    field[..length].copy_from_slice(&interface.as_bytes()[..length]);
    field
}

const MILLION: u32 = 1_000_000;

/// linux/if_ether.h.
const ETH_P_IP: u16 = 0x0800;
// Offsets in the IPv4 and TCP headers, RFC 791 and RFC 9293.
const IP_SADDR: u32 = 12;
const IP_DADDR: u32 = 16;
const TCP_DPORT: u32 = 2;
const TCP_FLAGS: u32 = 13;
const IPPROTO_TCP: u8 = 6;

/// rtnetlink(7), `rtm_type`.
const RTN_LOCAL: u32 = 2;
/// linux/netfilter/nf_conntrack_common.h.
const IPS_DST_NAT: u32 = 1 << 5;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`.
const NF_CT_STATE_ESTABLISHED: u32 = 1 << 1;
const IP_CT_DIR_ORIGINAL: u8 = 0;
const IP_CT_DIR_REPLY: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks() {
        assert_eq!(netmask(0), [0, 0, 0, 0]);
        assert_eq!(netmask(8), [255, 0, 0, 0]);
        assert_eq!(netmask(20), [255, 255, 240, 0]);
        assert_eq!(netmask(32), [255, 255, 255, 255]);
    }

    #[test]
    fn interface_names_fill_their_field() {
        assert_eq!(&padded("br0")[..4], b"br0\0");
        assert_eq!(padded("a-name-of-15-ab")[15], 0);
    }
}
