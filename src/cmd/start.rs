//! `pgbox start`, and what `run` and `start` share: staying with a node in the foreground.

use std::{os::fd::AsFd, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{Context, each, logs::Follower, need_root, talk};
use crate::{
    cli,
    engine::{
        Reach, faults, halt,
        interrupt::Interrupts,
        launch::{self, Patience},
        ready::Answer,
    },
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
    each(context, &args.nodes, |name| start(context, name, args.timeout))
}

/// Undoes what an earlier life may have left, and applies the stored plan again: the same after a stop, a
/// crash and a reboot.
pub fn start(context: &Context, name: &Name, timeout: Duration) -> Result<()> {
    let lock = context.root.lock(&context.lab)?;
    let node = node::find(&context.root, &context.lab, name)?;
    if node.pidfd.is_some() {
        let text = match node.frozen {
            true => format!("`{name}` runs already, but is frozen; to let it go on: pgbox thaw {name}"),
            false => format!("`{name}` runs already"),
        };
        super::note(context, &text);
        return Ok(());
    }
    let interrupts = Interrupts::block()?;
    check_data(context, &node.state)?;
    halt::take_down(&node)?;
    let mut state = node.state;
    let mut progress = talk::Progress::new(context);
    let mut spawned = launch::bring_up(&context.root, &mut state, Reach::Running, Stdio::Log, &mut progress)?;
    if let Err(error) = faults::renew(&context.root, &context.lab, name) {
        super::warn(context, &format!("`{name}` starts without the delays it had: {error:#}"));
    }
    drop(lock);
    let patience = Patience { timeout, interrupts: &interrupts };
    let reach = Reach::Running;
    let answer = launch::wait_until_up(&context.root, &state, &mut spawned, reach, &patience, &mut progress)?;
    drop(progress);
    if let Some(text) = turned_away(&state, &answer) {
        super::note(context, &text);
    }
    match plan::data_dir(&state.plan.init) {
        Some(_) => println!("{name} is ready at {}:{}", state.address.addr(), plan::POSTGRES_PORT),
        None => println!("{name} is started"),
    }
    Ok(())
}

/// What to say of a server that is up but does not let pgbox in.
fn turned_away(state: &NodeState, answer: &Answer) -> Option<String> {
    let name = &state.spec.node;
    match answer {
        Answer::WrongPassword(why) => Some(format!(
            "`{name}` is up, but its password is not the one that pgbox knows ({why}). \
             To change it: pgbox psql {name} -c '\\password'"
        )),
        other => super::password::refused(state, other),
    }
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
pub fn attend(
    context: &Context,
    state: &NodeState,
    spawned: Spawned,
    interrupts: &Interrupts,
    remove: bool,
) -> Result<i32> {
    let dir = context.root.node(&state.spec.lab, &state.spec.node);
    let mut log = match plan::data_dir(&state.plan.init) {
        Some(_) => Some(Follower::open(&dir.log())?),
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
    let code = process::exit_code_of(spawned.child.pid)?;
    let _lock = context.root.lock(&state.spec.lab)?;
    // Another command may have removed it, or started it again.
    if dir.load()?.is_none_or(|now| now.init != Some(spawned.init)) {
        return Ok(code);
    }
    let node = node::find(&context.root, &state.spec.lab, &state.spec.node)?;
    if remove {
        halt::remove(&context.root, &node)?;
    } else {
        halt::take_down(&node)?;
    }
    Ok(code)
}
