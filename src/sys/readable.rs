//! Descriptors among the things that an event loop waits for: a pidfd, a signalfd. epoll(7).
//!
//! The rule that surprises people: a pidfd of a process that has ended is readable for ever. Whoever goes on waiting for it
//! never sleeps again.

use std::{
    os::fd::OwnedFd,
    task::{Context, Poll},
};

use anyhow::{Context as _, Result};
use tokio::io::unix::AsyncFd;

/// A descriptor that can be waited for inside of tokio's event loop.
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// # Errors
    /// When the kernel can't wait for a descriptor of this kind (epoll_ctl(2), EPERM).
    pub fn new(fd: OwnedFd) -> Result<Self> {
        // SAFETY: the descriptor is owned by the returned value alone, which never gives it away: it stays this one, and
        // open, until it is deregistered.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(registered.context("epoll_ctl")?))
    }

    /// Whether there is, or was, something to read; if not, the task is woken when there is.
    pub fn is_ready(&self, cx: &mut Context<'_>) -> bool {
        matches!(self.0.poll_read_ready(cx), Poll::Ready(_))
    }
}
