//! The netlink side of netfilter: attributes, nf_tables batches, dumps. Names are those of
//! linux/netfilter/nf_tables.h and nfnetlink.h; netlink(7) has the frame.
//!
//! The rules that surprise people: integers are big-endian inside netfilter's attributes but host-endian in
//! the netlink header; and a batch without its `BATCH_END` is checked in full and then dropped, which is how
//! `nft --check` works.

use anyhow::{Context, Result, anyhow, bail};
use netlink_packet_core::{
    NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkBuffer,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

/// `struct nlmsghdr` and, after it, `struct nfgenmsg`.
const HEADER: usize = 16;
const NFGENMSG: usize = 4;

/// The kernel fills no datagram of a dump beyond this.
const LARGEST: usize = 32 << 10;

/// A dump starts over when the rules change under it.
const DUMP_ATTEMPTS: usize = 10;

/// Attributes one after the other, in the kernel's padded form.
#[derive(Default)]
pub(in crate::sys) struct Attributes(Vec<u8>);

impl Attributes {
    pub(in crate::sys) fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(in crate::sys) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(in crate::sys) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Only a rule of thousands of expressions would reach 64 KiB.
        let length = u16::try_from(4 + value.len()).expect("a netlink attribute is under 64 KiB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(in crate::sys) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(in crate::sys) fn text(self, kind: u16, value: &str) -> Self {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated)
    }

    pub(in crate::sys) fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// Messages that the kernel applies all together or not at all.
pub(in crate::sys) struct Batch {
    bytes: Vec<u8>,
    /// `NFPROTO_*`, of every message.
    family: u8,
    /// What each message does, by sequence number: an error names it.
    labels: Vec<String>,
}

impl Batch {
    /// A batch of the IPv4 family.
    pub(in crate::sys) fn new() -> Self {
        Self::of(nix::libc::AF_INET as u8)
    }

    /// A batch of another family.
    pub(in crate::sys) fn of(family: u8) -> Self {
        let labels = vec!["commit the batch".to_owned()];
        let mut batch = Self { bytes: Vec::new(), family, labels };
        batch.frame(0, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, &Attributes::new());
        batch
    }

    /// Adds an nf_tables message. `flags` come on top of REQUEST and ACK.
    pub(in crate::sys) fn push(&mut self, operation: u16, flags: u16, attributes: Attributes, label: String) {
        let sequence = self.labels.len() as u32;
        let flags = flags | NLM_F_REQUEST | NLM_F_ACK;
        self.frame(sequence, message_type(operation), flags, self.family, 0, &attributes);
        self.labels.push(label);
    }

    /// Applies the batch.
    ///
    /// # Errors
    /// Name the first message that the kernel refused; nothing has been changed then.
    pub(in crate::sys) fn commit(self) -> Result<()> {
        self.commit_first().map(drop)
    }

    /// As [`commit`](Self::commit), and leaves the waiting to the caller.
    pub(in crate::sys) fn commit_first(mut self) -> Result<Leftover> {
        let end = self.labels.len() as u32;
        self.frame(end, NFNL_MSG_BATCH_END, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, &Attributes::new());
        self.send().map(Leftover)
    }

    /// Has the kernel check the batch and drop it: without its end it is never applied.
    pub(in crate::sys) fn check(self) -> Result<()> {
        self.send().map(drop)
    }

    fn frame(
        &mut self,
        sequence: u32,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        attributes: &Attributes,
    ) {
        self.bytes.extend(message(sequence, kind, flags, family, resource, attributes));
    }

    fn send(self) -> Result<Socket> {
        let socket = open()?;
        // Errors then carry the header of the message they are about, not all of it.
        socket.set_cap_ack(true).map_err(errno).context("netfilter: set NETLINK_CAP_ACK")?;
        send(&socket, &self.bytes)?;
        // The kernel does all the work, and queues every answer, within that one system call.
        socket.set_non_blocking(true).map_err(errno).context("nf_tables: set O_NONBLOCK")?;
        let last = self.labels.len() as u32 - 1;
        let mut acknowledged = false;
        let mut datagram = Vec::with_capacity(LARGEST);
        loop {
            match receive(&socket, &mut datagram) {
                Ok(()) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno).context("nf_tables: recv"),
            }
            for answer in answers(&datagram)? {
                if let Some(errno) = error_code(&answer)? {
                    return Err(errno).with_context(|| self.label(answer.sequence_number()));
                }
                acknowledged |= answer.sequence_number() == last;
            }
        }
        if !acknowledged {
            bail!("nf_tables: the kernel did not answer to: {}", self.label(last));
        }
        Ok(socket)
    }

    fn label(&self, sequence: u32) -> String {
        let label = self.labels.get(sequence as usize).unwrap_or(&self.labels[0]);
        format!("nf_tables: {label}")
    }
}

/// What a transaction has deleted. It is out of use, but not freed before all readers have passed: closing the
/// transaction's socket, or any other one of netfilter, waits for that, 10 ms and more. Whoever has more urgent things to
/// do drops this afterwards.
#[derive(Debug)]
pub struct Leftover(#[expect(dead_code, reason = "it is there to be dropped")] Socket);

/// One object of a dump.
pub(in crate::sys) struct Object {
    /// `NFPROTO_*`; equal to `AF_INET` for IPv4.
    pub(in crate::sys) family: u8,
    attributes: Vec<u8>,
}

impl Object {
    pub(in crate::sys) fn bytes(&self, kind: u16) -> Option<&[u8]> {
        attribute(&self.attributes, kind)
    }

    pub(in crate::sys) fn text(&self, kind: u16) -> Option<String> {
        let bytes = self.bytes(kind)?;
        Some(String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned())
    }

    pub(in crate::sys) fn number(&self, kind: u16) -> Option<u32> {
        number(self.bytes(kind)?)
    }
}

/// All nf_tables objects that the `GET` operation lists, of one family or (0) of all.
pub(in crate::sys) fn dump(operation: u16, family: u8) -> Result<Vec<Object>> {
    dump_on(&open()?, message_type(operation), family)
}

/// All objects that a `GET` message, subsystem and operation, lists.
pub(in crate::sys) fn dump_on(socket: &Socket, kind: u16, family: u8) -> Result<Vec<Object>> {
    let request = message(1, kind, NLM_F_REQUEST | NLM_F_DUMP, family, 0, &Attributes::new());
    for _ in 0..DUMP_ATTEMPTS {
        send(socket, &request)?;
        if let Some(objects) = read_dump(socket)? {
            return Ok(objects);
        }
    }
    Err(Errno::EINTR).context("netfilter: the objects changed during every attempt to list them")
}

/// Sends single messages of one kind, subsystem and operation, one after the other.
///
/// # Errors
/// The first one that the kernel answered to; the others are sent all the same.
pub(in crate::sys) fn change_each(
    socket: &Socket,
    kind: u16,
    family: u8,
    all: Vec<Attributes>,
) -> Result<()> {
    let mut result = Ok(());
    for attributes in all {
        send(socket, &message(1, kind, NLM_F_REQUEST | NLM_F_ACK, family, 0, &attributes))?;
        let (datagram, _) = socket.recv_from_full().map_err(errno).context("netfilter: recv")?;
        for answer in answers(&datagram)? {
            if let Some(errno) = error_code(&answer)? {
                result = result.and(Err(errno.into()));
            }
        }
    }
    result
}

/// None when the dump is inconsistent and has to be repeated.
fn read_dump(socket: &Socket) -> Result<Option<Vec<Object>>> {
    let mut objects = Vec::new();
    let mut consistent = true;
    let mut datagram = Vec::with_capacity(LARGEST);
    loop {
        receive(socket, &mut datagram).context("netfilter: recv")?;
        for answer in answers(&datagram)? {
            consistent &= answer.flags() & NLM_F_DUMP_INTR == 0;
            match answer.message_type() {
                NLMSG_DONE => return Ok(consistent.then_some(objects)),
                NLMSG_ERROR => {
                    let errno = error_code(&answer)?.unwrap_or(Errno::EPROTO);
                    return Err(errno).context("netfilter: list");
                }
                _ => {
                    let payload = answer.payload();
                    let (head, attributes) =
                        payload.split_at_checked(NFGENMSG).ok_or_else(|| anyhow!(SHORT))?;
                    objects.push(Object { family: head[0], attributes: attributes.to_vec() });
                }
            }
        }
    }
}

/// The value of the attribute `kind` in a run of attributes.
pub(in crate::sys) fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while let Some((head, _)) = attributes.split_first_chunk::<4>() {
        let length = u16::from_ne_bytes([head[0], head[1]]) as usize;
        let found = u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE_MASK;
        let value = attributes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// A big-endian number.
pub(in crate::sys) fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

const SHORT: &str = "netfilter: the kernel's answer is cut short";

fn message_type(operation: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | operation
}

fn message(
    sequence: u32,
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    attributes: &Attributes,
) -> Vec<u8> {
    let length = HEADER + NFGENMSG + attributes.0.len();
    let mut bytes = vec![0; HEADER];
    let mut header = NetlinkBuffer::new(&mut bytes);
    header.set_length(length as u32);
    header.set_message_type(kind);
    header.set_flags(flags);
    header.set_sequence_number(sequence);
    header.set_port_number(0);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(&attributes.0);
    bytes
}

pub(in crate::sys) fn open() -> Result<Socket> {
    Socket::new(NETLINK_NETFILTER).map_err(errno).context("netfilter: open a socket: socket")
}

fn send(socket: &Socket, bytes: &[u8]) -> Result<()> {
    let kernel = SocketAddr::new(0, 0);
    let sent = socket.send_to(bytes, &kernel, 0).map_err(errno).context("netfilter: send")?;
    if sent != bytes.len() {
        bail!("netfilter: send: {sent} of {} bytes", bytes.len());
    }
    Ok(())
}

/// Reads one datagram into `datagram`.
fn receive(socket: &Socket, datagram: &mut Vec<u8>) -> nix::Result<()> {
    datagram.clear();
    match socket.recv(datagram, nix::libc::MSG_TRUNC).map_err(errno)? {
        length if length > datagram.len() => Err(Errno::EMSGSIZE),
        _ => Ok(()),
    }
}

/// The messages of one datagram.
fn answers(datagram: &[u8]) -> Result<Vec<NetlinkBuffer<&[u8]>>> {
    let mut answers = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let answer = NetlinkBuffer::new_checked(rest).map_err(|_| anyhow!(SHORT))?;
        let length = (answer.length() as usize).next_multiple_of(4).min(rest.len());
        answers.push(answer);
        rest = &rest[length..];
    }
    Ok(answers)
}

/// The errno of an error message; None for an acknowledgement and for every other message.
fn error_code(answer: &NetlinkBuffer<&[u8]>) -> Result<Option<Errno>> {
    if answer.message_type() != NLMSG_ERROR {
        return Ok(None);
    }
    let code = answer.payload().first_chunk::<4>().ok_or_else(|| anyhow!(SHORT))?;
    let code = i32::from_ne_bytes(*code);
    Ok((code != 0).then(|| Errno::from_raw(-code)))
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
