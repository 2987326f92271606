//! One rtnetlink socket, one question at a time. netlink(7), rtnetlink(7).
//!
//! The rule that makes it simple: the kernel does all the work, and queues its answer, within the system call that
//! sends the question. So there is nothing to wait for and nothing for a runtime to do: two system calls a question.
//! The crate `rtnetlink` builds the messages; its own connection, a task in a tokio runtime, takes six.
//!
//! What the kernel refuses is an [`Errno`] here and not yet an error with a text: half of the refusals are what the
//! caller hoped for (it is there already), and an `anyhow::Error` may cost a backtrace.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::{Result, errno::Errno};
use rustix::net::netdevice::name_to_index;

/// The kernel fills no datagram of a dump beyond this.
const LARGEST: usize = 32 << 10;

/// A list that changes while it is read is read again.
const DUMP_ATTEMPTS: usize = 10;

/// A socket in the network namespace of the thread that opened it, wherever it is used.
pub(super) struct Rtnl {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Rtnl {
    pub(super) fn open() -> Result<Rtnl> {
        let socket = Socket::new(NETLINK_ROUTE).map_err(errno)?;
        Ok(Rtnl { socket, sequence: 0, buffer: Vec::new() })
    }

    /// The index of an interface, by which messages name it, without all else that the kernel would tell. netdevice(7),
    /// SIOCGIFINDEX
    ///
    /// # Errors
    /// `ENODEV` when there is none of that name.
    pub(super) fn index(&self, name: &str) -> Result<u32> {
        name_to_index(&self.socket, name).map_err(|error| Errno::from_raw(error.raw_os_error()))
    }

    /// Has the kernel change something. `flags` come on top of REQUEST and ACK.
    ///
    /// # Errors
    /// What the kernel answered.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.ask(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(drop)
    }

    /// Has the kernel change several things in one call, each whatever has become of those before. Gives those that it refused, by
    /// their places in the list.
    ///
    /// # Errors
    /// Those of the socket itself.
    pub(super) fn change_all(
        &mut self,
        changes: Vec<(RouteNetlinkMessage, u16)>,
    ) -> Result<Vec<(usize, Errno)>> {
        let (first, count) = (self.sequence + 1, changes.len());
        let mut bytes = Vec::new();
        for (at, (message, flags)) in changes.into_iter().enumerate() {
            // A refusal is always told, and that all is done once.
            let ack = if at + 1 == count { NLM_F_ACK } else { 0 };
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(self.request(message, NLM_F_REQUEST | ack | flags));
        }
        self.socket.send(&bytes, 0).map_err(errno)?;
        let mut refused = Vec::new();
        loop {
            for message in self.datagram()? {
                let number = message.header.sequence_number;
                let NetlinkPayload::Error(error) = message.payload else { continue };
                if let (Some(at), Some(code)) = (number.checked_sub(first), error.code) {
                    refused.push((at as usize, Errno::from_raw(-code.get())));
                }
                if number == self.sequence {
                    return Ok(refused);
                }
            }
        }
    }

    /// Asks for one object.
    ///
    /// # Errors
    /// As [`Rtnl::change`]; ENODEV when it is absent.
    pub(super) fn get(&mut self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage> {
        self.ask(message, NLM_F_REQUEST)?.0.pop().ok_or(Errno::EBADMSG)
    }

    /// Asks for all objects of a kind.
    ///
    /// # Errors
    /// As [`Rtnl::change`]; EAGAIN when the list changes again and again while it is read.
    pub(super) fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            let (items, whole) = self.ask(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if whole {
                return Ok(items);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// What the kernel sends, and whether it is consistent.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(Vec<RouteNetlinkMessage>, bool)> {
        let bytes = self.request(message, flags);
        self.socket.send(&bytes, 0).map_err(errno)?;
        let (mut items, mut whole) = (Vec::new(), true);
        while self.receive(flags, &mut items, &mut whole)? {}
        Ok((items, whole))
    }

    /// A message with the next number, as it is sent.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        bytes
    }

    fn datagram(&mut self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        self.buffer.clear();
        self.buffer.reserve(LARGEST);
        let length = self.socket.recv(&mut self.buffer, nix::libc::MSG_TRUNC).map_err(errno)?;
        if length > self.buffer.len() {
            return Err(Errno::EMSGSIZE);
        }
        let (mut rest, mut messages) = (&self.buffer[..], Vec::new());
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|_| Errno::EBADMSG)?;
            let size = (message.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(size..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }

    /// Reads one datagram; false when the answer is complete.
    fn receive(
        &mut self,
        flags: u16,
        items: &mut Vec<RouteNetlinkMessage>,
        whole: &mut bool,
    ) -> Result<bool> {
        for message in self.datagram()? {
            // What is left of an earlier question that ended in an error.
            if message.header.sequence_number != self.sequence {
                continue;
            }
            *whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
            match message.payload {
                NetlinkPayload::InnerMessage(item) => items.push(item),
                NetlinkPayload::Done(_) => return Ok(false),
                NetlinkPayload::Error(error) => match error.code {
                    None => return Ok(false),
                    Some(code) => return Err(Errno::from_raw(-code.get())),
                },
                _ => {}
            }
        }
        // A dump ends with DONE and a change with its acknowledgement; a single object is all of its answer.
        Ok(flags & (NLM_F_DUMP | NLM_F_ACK) != 0 || items.is_empty())
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
