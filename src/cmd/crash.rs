//! `pgbox crash`: the postmaster, or the whole node, dies as it would by accident.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use super::{Context, endpoint, need_root};
use crate::{
    cli,
    engine::halt,
    facts::node::{self, Node},
    hint::advise,
    sys::process,
};

/// How long the kernel may take to end a process that it was told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// Without the lab's lock: a stop that waits for a hanging server holds that.
pub fn run(context: &Context, args: &cli::Crash) -> Result<i32> {
    need_root("pgbox crash")?;
    let node = node::find(&context.root, &context.lab, &args.node)?;
    if args.whole {
        power_cut(context, args, &node)?
    } else {
        postmaster(context, args, &node)?
    }
    if !args.dry_run {
        endpoint::settle_if_free(context, &node)?;
    }
    Ok(0)
}

/// Every process of a pid namespace dies with its pid 1, by SIGKILL and with nothing written.
fn power_cut(context: &Context, args: &cli::Crash, node: &Node) -> Result<()> {
    let pidfd = node.running()?.as_fd();
    let whom = format!("pid 1 of `{}` (pid {})", node.name, pid_of_init(node));
    if args.dry_run {
        outln!("kill: {whom}, and with it the node");
        return Ok(());
    }
    process::signal(pidfd, Signal::SIGKILL)?;
    // A v1 freezer lets nobody die. Nothing of the node runs again: its signal comes first.
    halt::thaw(&context.root, node)?;
    wait_until_gone(pidfd, &whom)?;
    let group = node.cgroup(&context.root)?;
    if !group.wait_empty(PATIENCE)? {
        bail!("processes of `{}` are still there: {:?}", node.name, group.processes()?);
    }
    outln!("killed {whom}, and with it the node");
    Ok(())
}

fn postmaster(context: &Context, args: &cli::Crash, node: &Node) -> Result<()> {
    node.running()?;
    if node.frozen {
        // Of all signals only SIGKILL would reach it, and pid 1 could not even notice.
        return Err(advise(
            format!("node `{0}` is frozen", node.name),
            format!(
                "thaw it first: pgbox thaw {0}; or kill it as a whole: pgbox crash {0} --node",
                node.name
            ),
        ));
    }
    node.login()?;
    let Some((pid, pidfd)) = node.postmaster(&context.root)? else {
        return Err(advise(
            format!("node `{}` has no postmaster at this moment: it is {}", node.name, node.word()),
            format!("see `pgbox logs {0}`; `pgbox crash {0} --node` kills the whole node", node.name),
        ));
    };
    let whom = format!("the postmaster of `{}` (pid {pid}, {} in the node)", node.name, node.status.pid);
    let signal = args.signal;
    if args.dry_run {
        outln!("send {signal} to {whom}");
        return Ok(());
    }
    if !process::signal(pidfd.as_fd(), signal)? {
        bail!("{whom} ended by itself at this moment");
    }
    if is_deadly(signal) {
        wait_until_gone(pidfd.as_fd(), &whom)?;
        outln!("killed {whom} by {signal}");
    } else {
        outln!("sent {signal} to {whom}");
    }
    Ok(())
}

/// What no Postgres outlives for long; the others have a meaning for it, and it may well go on.
fn is_deadly(signal: Signal) -> bool {
    use Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGKILL, SIGQUIT, SIGSEGV, SIGSYS, SIGTRAP};
    matches!(signal, SIGKILL | SIGABRT | SIGSEGV | SIGBUS | SIGILL | SIGFPE | SIGTRAP | SIGSYS | SIGQUIT)
}

fn wait_until_gone(pidfd: BorrowedFd<'_>, whom: &str) -> Result<()> {
    match process::has_ended(pidfd, PATIENCE)? {
        true => Ok(()),
        false => bail!("{whom} is still there after {} s: it waits in the kernel", PATIENCE.as_secs()),
    }
}

fn pid_of_init(node: &Node) -> i32 {
    node.state.init.map_or(0, |init| init.pid)
}
