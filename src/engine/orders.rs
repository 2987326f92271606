//! Giving a node other orders: what is remembered of it, what its pid 1 reads, and the word to read it.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{
    state::{NodeDir, NodeState},
    sys::process,
};

/// Saves a node's changed state and has its server, if it runs, take over the settings that need no restart.
pub fn give(node: &NodeDir, state: &NodeState, pidfd: Option<&OwnedFd>) -> Result<()> {
    save(node, state)?;
    match pidfd {
        Some(pidfd) => process::signal(pidfd.as_fd(), Signal::SIGHUP).map(drop),
        None => Ok(()),
    }
}

/// Saves a node's changed state, and lets its pid 1 find the orders in it when it looks next.
pub fn save(node: &NodeDir, state: &NodeState) -> Result<()> {
    let before = node.load()?.map(|state| state.plan.host.len());
    node.save(state)?;
    // The journal counts steps; a plan of another length is as far as it was when it was whole.
    let journal = node.progress()?;
    if before.is_some_and(|count| journal.get().is_ok_and(|begun| begun >= count)) {
        journal.set(state.plan.host.len())?;
    }
    match state.postgres() {
        Some(postgres) => node.give_orders(&postgres.orders),
        None => Ok(()),
    }
}
