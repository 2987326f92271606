//! `pgbox start`, and what `run` and `start` share: staying with a node in the foreground.

use std::{os::fd::AsFd, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{Context, each, logs::Follower, need_root, talk};
use crate::{
    cli,
    engine::{Reach, halt, launch},
    facts::{self, node},
    hint::advise,
    plan,
    postgres::version,
    spawn::{Spawned, Stdio},
    spec::Name,
    state::NodeState,
    sys::process,
};

pub fn run(context: &Context, args: &cli::Start) -> Result<i32> {
    need_root("pgbox start")?;
    crate::sys::exe::reexec_read_only()?;
    each(&args.nodes, |name| start(context, args, name))
}

/// Undoes what an earlier life may have left, and applies the stored plan again: the same after a stop, a
/// crash and a reboot.
fn start(context: &Context, args: &cli::Start, name: &Name) -> Result<()> {
    let lock = context.root.lock(&context.lab)?;
    let node = node::find(&context.root, &context.lab, name)?;
    if node.pidfd.is_some() {
        eprintln!("note: `{name}` runs already");
        return Ok(());
    }
    check_data(context, &node.state)?;
    halt::take_down(&node)?;
    let mut state = node.state;
    let mut progress = talk::Progress::new();
    let stdio = if plan::data_dir(&state.plan.init).is_some() { Stdio::Log } else { Stdio::Inherit };
    let mut spawned = launch::bring_up(&context.root, &mut state, Reach::Running, stdio, &mut progress)?;
    drop(lock);
    launch::wait_until_up(&context.root, &state, &mut spawned, Reach::Running, args.timeout, &mut progress)?;
    drop(progress);
    println!("{name} is ready at {}:{}", state.address.addr(), plan::POSTGRES_PORT);
    Ok(())
}

fn check_data(context: &Context, state: &NodeState) -> Result<()> {
    let crate::postgres::launch::Payload::Postgres(postgres) = &state.plan.init.payload else {
        return Ok(());
    };
    let (Some(data), Some(major)) = (&state.data, postgres.major) else { return Ok(()) };
    if let Some(other) = launch::holder(&context.root, data, state.spec.node.as_str()) {
        return Err(advise(
            format!("the data directory {} is in use: node `{other}` runs on it", data.display()),
            format!("stop it first: pgbox stop {other}"),
        ));
    }
    version::check(major, facts::data_version(data)?, &data.display().to_string())
}

/// Stays with a node until it ends, passing signals on; gives its exit code.
pub fn attend(context: &Context, state: &NodeState, spawned: Spawned, remove: bool) -> Result<i32> {
    let dir = context.root.node(&state.spec.lab, &state.spec.node);
    let mut log = match plan::data_dir(&state.plan.init) {
        Some(_) => Some(Follower::open(&dir.log())?),
        None => None,
    };
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGHUP].iter().for_each(|s| signals.add(*s));
    signals.thread_block().context("block signals")?;
    let received =
        SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?;
    let pidfd = spawned.child.pidfd.as_fd();
    // A log has nothing to wait on: it is looked at now and then.
    let patience = if log.is_some() { PollTimeout::from(50u8) } else { PollTimeout::NONE };
    while !process::has_ended(pidfd, Duration::ZERO)? {
        let mut fds =
            [PollFd::new(pidfd, PollFlags::POLLIN), PollFd::new(received.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, patience).context("poll")?;
        if let Some(log) = &mut log {
            log.copy()?;
        }
        while let Some(info) = received.read_signal().context("read signalfd")? {
            let signal = Signal::try_from(info.ssi_signo as i32).context("signal")?;
            process::signal(pidfd, signal)?;
        }
    }
    if let Some(mut log) = log {
        log.copy()?;
    }
    let code = process::exit_code_of(spawned.child.pid)?;
    let _lock = context.root.lock(&state.spec.lab)?;
    let node = node::find(&context.root, &state.spec.lab, &state.spec.node)?;
    if remove {
        halt::remove(&context.root, &node)?;
    } else {
        halt::take_down(&node)?;
    }
    Ok(code)
}
