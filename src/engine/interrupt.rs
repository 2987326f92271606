//! Ctrl-C and its kin as data. signalfd(2), signal(7).
//!
//! The rule that surprises people: the default action of a signal runs no code of ours. A command that is
//! half-way through the steps of a plan would end and leave them there, with pid 1 at work on the rest.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal},
    signalfd::{SfdFlags, SignalFd},
};

/// What a terminal, its end, or another process may send to make a command end.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGHUP];

/// The ending signals, blocked as long as this lives. One that nobody has asked for by then does what it always does.
pub struct Interrupts {
    signals: SignalFd,
    before: SigSet,
}

impl Interrupts {
    pub fn block() -> Result<Self> {
        let set = SigSet::from_iter(ENDING);
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).context("block signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self { signals: SignalFd::with_flags(&set, flags).context("signalfd")?, before })
    }

    /// A signal that has come meanwhile.
    pub fn next(&self) -> Result<Option<Signal>> {
        let info = self.signals.read_signal().context("read signalfd")?;
        info.map(|info| Signal::try_from(info.ssi_signo as i32).context("signal")).transpose()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}
