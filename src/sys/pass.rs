//! A descriptor passed to another process through a Unix socket. unix(7), SCM_RIGHTS; cmsg(3).
//!
//! What surprises people is that the descriptor rides on a byte: without at least one byte of data nothing is sent, and
//! who reads that byte with read(2) throws the descriptor away.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends a copy of `fd`, with one byte of data.
pub fn send(socket: impl AsFd, fd: impl AsFd) -> Result<()> {
    let fds = [fd.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let data = [IoSlice::new(b"f")];
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &data, &rights, MsgFlags::MSG_NOSIGNAL, None)
        .map(drop)
        .context("sendmsg(SCM_RIGHTS)")
}

/// Waits for the byte, and gives the descriptor that came with it. `None`: the other side is closed.
pub fn receive(socket: impl AsFd) -> Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let socket = socket.as_fd().as_raw_fd();
    let message = recvmsg::<()>(socket, &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        .context("recvmsg(SCM_RIGHTS)")?;
    for control in message.cmsgs().context("recvmsg(SCM_RIGHTS)")? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
            return Ok(fds.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_and_an_end_is_told() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&here, &writer).unwrap();
        drop(writer);
        let received = receive(&there).unwrap().expect("a descriptor");
        std::fs::File::from(received).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(here);
        assert!(receive(&there).unwrap().is_none());
    }
}
