//! Stopping and removing nodes: a signal to pid 1, patience, and then the host steps backwards.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use anyhow::{Error, Result, bail};
use nix::sys::signal::Signal;

use super::Reach;
use crate::{
    facts::node::Node,
    hint::advise,
    plan,
    spec::Name,
    state::{Progress, Root},
    step::HostStep,
    sys::process,
};

/// How Postgres is asked to end; the signals that pid 1 understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    Smart,
    Fast,
    Immediate,
}

impl Shutdown {
    fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::SIGUSR2,
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
        }
    }
}

/// How long an immediate shutdown may take: it writes nothing.
const IMMEDIATE: Duration = Duration::from_secs(10);

/// How much later than this command pid 1 loses patience.
const MARGIN: Duration = Duration::from_secs(2);

/// As pid 1 reads it beside a signal.
pub fn seconds(patience: Duration) -> i32 {
    i32::try_from(patience.as_secs()).unwrap_or(i32::MAX)
}

/// Asks pid 1 to end, and with it the node; returns whether it has.
///
/// pid 1 has a deadline of its own, for a host that goes down without this command. It is told another one that lies
/// behind ours, so that `patience` counts whether it is longer or shorter than what the node was made with.
pub fn ask(pidfd: &OwnedFd, how: Shutdown, patience: Duration) -> Result<bool> {
    signal(pidfd, how.signal(), patience)
}

fn signal(pidfd: &OwnedFd, signal: Signal, patience: Duration) -> Result<bool> {
    process::signal_with(pidfd.as_fd(), signal, seconds(patience.saturating_add(MARGIN)))?;
    process::has_ended(pidfd.as_fd(), patience)
}

/// Ends pid 1 and with it the node; returns true if more than a polite request was needed.
///
/// # Errors
/// When even SIGKILL does not end it, as with a process that waits for a dead disk.
pub fn end(node: &Node, how: Shutdown, patience: Duration) -> Result<bool> {
    let Some(pidfd) = &node.pidfd else { return Ok(false) };
    let stages = [(how.signal(), patience), (Signal::SIGQUIT, IMMEDIATE), (Signal::SIGKILL, IMMEDIATE)];
    for (i, (signal, patience)) in stages.into_iter().enumerate() {
        if self::signal(pidfd, signal, patience)? {
            return Ok(i > 0);
        }
    }
    bail!("node `{}` does not end, not even by SIGKILL: its pid 1 waits in the kernel", node.name)
}

/// Lets a frozen node go on, so that it can end; true if it was frozen.
pub fn thaw(root: &Root, node: &Node) -> Result<bool> {
    if node.frozen {
        node.cgroup(root)?.thaw()?;
    }
    Ok(node.frozen)
}

/// Takes back what a stopped node does not keep. Also right after a reboot or a crash.
pub fn take_down(node: &Node) -> Result<()> {
    all_undone(super::undo(&node.state.plan, Reach::Running, begun(node)?), &node.name, "stop")
}

/// How many host steps there may be something of. All of a node that was ever started: a power cut may have taken its journal.
fn begun(node: &Node) -> Result<usize> {
    match node.state.init {
        Some(_) => Ok(Progress::ALL),
        None => node.dir.progress()?.get(),
    }
}

/// Removes a node that does not run: its faults, every host step backwards, then its directory.
pub fn remove(root: &Root, node: &Node) -> Result<()> {
    super::faults::forget(root, &node.lab, &node.name)?;
    all_undone(super::undo(&node.state.plan, Reach::All, begun(node)?), &node.name, "rm --force")?;
    node.dir.remove()
}

/// Leaves the name of a server that is gone in the hosts file, for the standbys that go on looking for it: without the line
/// they ask the name servers outside, and hear of no promotion meanwhile: one moment is enough. It goes when its address is another node's.
pub fn keep_name(node: &mut Node) {
    node.state.plan.host.retain(|step| !matches!(step, HostStep::AddHostName { .. }));
}

/// Removes what there is of a node of which nothing is remembered.
pub fn remove_remains(root: &Root, lab: &Name, node: &Name) -> Result<()> {
    super::faults::forget(root, lab, node)?;
    let steps = plan::remains(root, lab, node);
    let undo = |step: &HostStep| step.undo().err().map(|e| e.context(step.lesson().title));
    all_undone(steps.iter().rev().filter_map(undo).collect(), node, "rm --force")?;
    root.node(lab, node).remove()
}

fn all_undone(errors: Vec<Error>, name: &Name, command: &str) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    let (what, way_out) = super::not_undone(name, &errors, command);
    Err(advise(what, way_out))
}
