//! Staying with a node, as `run` and `start --foreground` do: until it ends, with its log and the signals that come.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

use super::{Context, endpoint, logs::Follower};
use crate::{
    engine::{halt, interrupt::Interrupts},
    enter,
    facts::{node, volume},
    spawn::Spawned,
    state::{NodeState, Stamp},
    sys::process,
};

/// How somebody stays with a node.
pub struct Attention {
    /// Remove the node when it has ended.
    pub remove: bool,
    /// So many bytes of its log are not shown.
    pub shown: u64,
    /// Of its state when the lab's lock was let go, if that is known.
    pub stamp: Option<Stamp>,
}

/// Stays with a node until it ends, passing signals on; gives its exit code.
pub fn attend(
    context: &Context,
    state: &NodeState,
    mut spawned: Spawned,
    interrupts: &Interrupts,
    attention: &Attention,
) -> Result<i32> {
    let code = match spawned.terminal.take() {
        Some(terminal) => at_its_terminal(terminal, &spawned)?,
        None => beside_it(context, state, &spawned, interrupts, attention.shown)?,
    };
    let dir = context.root.node(&state.spec.lab, &state.spec.node);
    let _lock = context.lock()?;
    // Another command may have removed it, or started it again.
    let now = dir.load_again(state, attention.stamp)?;
    let Some(now) = now.filter(|now| now.init == Some(spawned.init)) else { return Ok(code) };
    let node = node::look(&context.root, &state.spec.lab, &state.spec.node, now)?;
    if attention.remove
        && let Err(error) = volume::refuse_loss(&node)
    {
        super::warn(context, &format!("{error}; so `{}` stays, stopped", state.spec.node));
        halt::take_down(&node)?;
    } else if attention.remove {
        halt::remove(&context.root, &node)?;
        note_of_data(context, state);
    } else {
        halt::take_down(&node)?;
    }
    endpoint::settle_for(context, state);
    Ok(code)
}

fn at_its_terminal(terminal: OwnedFd, spawned: &Spawned) -> Result<i32> {
    let code = enter::attend(terminal, &spawned.child, true)?;
    let pidfd = spawned.child.pidfd.as_fd();
    // Our own terminal is gone, and with it that of the command, which may not care.
    if !process::has_ended(pidfd, HANGING_UP)? {
        process::signal(pidfd, Signal::SIGKILL)?;
        process::has_ended(pidfd, HANGING_UP)?;
    }
    Ok(code)
}

/// How long a command may go on after its terminal has hung up.
const HANGING_UP: Duration = Duration::from_secs(10);

/// Waits for the end, and shows the log of a server; a command has our own standard streams.
fn beside_it(
    context: &Context,
    state: &NodeState,
    spawned: &Spawned,
    interrupts: &Interrupts,
    shown: u64,
) -> Result<i32> {
    let dir = context.root.node(&state.spec.lab, &state.spec.node);
    let mut log = match state.postgres() {
        Some(_) => Some(Follower::open(&dir.log(), shown)?),
        None => None,
    };
    let pidfd = spawned.child.pidfd.as_fd();
    // A log is a file, and nothing tells when it grows.
    let patience = if log.is_some() { PollTimeout::from(50u8) } else { PollTimeout::NONE };
    let mut ended = false;
    while !ended {
        let mut fds = [pidfd, interrupts.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        ended = fds[0].any() == Some(true);
        log.as_mut().map_or(Ok(()), Follower::copy)?;
        while let Some(signal) = interrupts.next()? {
            process::signal(pidfd, signal)?;
        }
    }
    process::exit_code_of(spawned.child.pid)
}

/// With `--rm`, docker removes the volume that it made; here it has the node's name, and data only goes when asked to.
fn note_of_data(context: &Context, state: &NodeState) {
    let home = context.root.home_of(state);
    let volume = home.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
    if let Some(volume) = volume {
        let text = format!(
            "the data of `{}` is kept in the volume `{volume}`; to remove it: pgbox volume rm {volume}",
            state.spec.node
        );
        super::note(context, &text);
    }
}
