//! Giving a node other orders: what is remembered of it, what its pid 1 reads, and the word to read it.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{
    postgres::launch::{Renew, RenewHow},
    state::{NodeDir, NodeState, Progress},
    sys::process,
};

/// Saves a node's changed state and has its server, if it runs, take over the settings that need no restart.
pub fn give(node: &NodeDir, state: &NodeState, pidfd: Option<&OwnedFd>) -> Result<()> {
    save(node, state)?;
    pidfd.map_or(Ok(()), remind)
}

/// Has a server take over the settings that need no restart, whether there are other ones or not.
pub fn remind(pidfd: &OwnedFd) -> Result<()> {
    process::signal(pidfd.as_fd(), Signal::SIGHUP).map(drop)
}

/// Saves a node's changed state, and lets its pid 1 find the orders in it when it looks next.
pub fn save(node: &NodeDir, state: &NodeState) -> Result<()> {
    // Before: whoever is killed here leaves a journal for either of the two plans.
    if node.load()?.is_none_or(|before| before.plan.host.len() != state.plan.host.len()) {
        node.progress()?.set(Progress::ALL)?;
    }
    node.save(state)?;
    match state.postgres() {
        Some(postgres) => node.give_orders(&postgres.orders),
        None => Ok(()),
    }
}

/// The order to do this to a standby's data before its next start. Different each time: what was done for one is not done again.
pub fn renewal(how: RenewHow) -> Renew {
    let stamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    Renew { stamp, how }
}
