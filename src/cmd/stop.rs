//! `pgbox stop` and `pgbox restart`.

use std::{
    net::SocketAddrV4,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::{
    Context, each, endpoint, need_root, start,
    which::{self, Going},
};
use crate::{
    cli,
    engine::{
        follower,
        halt::{self, Shutdown},
        ready,
    },
    facts::node::{self, Node},
    hint::advise,
    postgres::report::Phase,
    spec::Name,
    state::Role,
    step::AfterStep,
    sys::process,
};

pub fn run(context: &Context, args: &cli::Stop) -> Result<i32> {
    need_root("pgbox stop")?;
    // Of a single node its state tells.
    let several = args.which.all || args.which.nodes.len() > 1;
    let _stop = several.then(|| context.root.lock_stop(&context.lab)).transpose()?;
    let nodes = which::nodes(context, &args.which, Going::Down)?;
    each(context, &nodes, |name| stop(context, name, shutdown(args.mode), args.timeout))
}

fn stop(context: &Context, name: &Name, how: Shutdown, timeout: Option<Duration>) -> Result<()> {
    let _lock = context.lock()?;
    let node = node::find(&context.root, &context.lab, name)?;
    if node.pidfd.is_none() {
        // It may have ended by itself: its interface, cgroup and published ports are still there.
        halt::take_down(&node)?;
        endpoint::settle(context, None);
        super::note(context, &format!("`{name}` does not run"));
        return Ok(());
    }
    if halt::thaw(&context.root, &node)? {
        super::note(context, &format!("`{name}` was frozen, and is thawed to stop"));
    }
    let patience = patience(&node, timeout);
    if halt::end(&node, how, patience)? {
        let text = format!(
            "`{name}` did not stop in {} and was stopped at once; the next start recovers",
            humantime::format_duration(patience)
        );
        super::warn(context, &text);
    }
    halt::take_down(&node)?;
    outln!("{name} is stopped");
    endpoint::settle(context, None);
    Ok(())
}

fn patience(node: &Node, timeout: Option<Duration>) -> Duration {
    timeout.unwrap_or(Duration::from_secs(node.state.spec.stop_timeout))
}

fn shutdown(mode: cli::Mode) -> Shutdown {
    match mode {
        cli::Mode::Smart => Shutdown::Smart,
        cli::Mode::Fast => Shutdown::Fast,
        cli::Mode::Immediate => Shutdown::Immediate,
    }
}

pub fn restart(context: &Context, args: &cli::Restart) -> Result<i32> {
    need_root("pgbox restart")?;
    crate::sys::exe::reexec_read_only()?;
    let nodes = which::nodes(context, &args.which, Going::Up)?;
    each(context, &nodes, |name| {
        if let Some(address) = restart_one(context, name, args.timeout)? {
            outln!("{name} is ready at {address}");
        }
        Ok(())
    })
}

/// How long a server that was stopped may take to answer.
const START: Duration = Duration::from_secs(300);

/// Postgres alone restarts, after a fast shutdown: pid 1, namespaces and address stay. Gives where it answers, unless all of
/// the node had to be started.
pub(super) fn restart_one(
    context: &Context,
    name: &Name,
    timeout: Option<Duration>,
) -> Result<Option<SocketAddrV4>> {
    let node = node::find(&context.root, &context.lab, name)?;
    if node.pidfd.is_none() {
        return start::start(context, name, START, start::STREAM).map(|()| None);
    }
    let pidfd = node.awake()?;
    let Some(AfterStep::WaitUntilReady { address, .. }) = node.state.plan.after.first() else {
        stop(context, name, Shutdown::Fast, timeout)?;
        return start::start(context, name, START, start::STREAM).map(|()| None);
    };
    let before = node.status.pid;
    let patience = patience(&node, timeout);
    process::signal_with(pidfd.as_fd(), Signal::SIGUSR1, halt::seconds(patience))?;
    let patience = patience.saturating_add(Duration::from_secs(60));
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if process::has_ended(pidfd.as_fd(), Duration::from_millis(5))? {
            bail!("node `{name}` ended instead of restarting; `pgbox logs {name}` tells why");
        }
        if is_new(&node, before)? && ready::probe(&node.dir, *address)?.is_ready() {
            wait_until_it_streams(context, &node);
            return Ok(Some(*address));
        }
    }
    Err(advise(
        format!("node `{name}` did not answer within {} s", patience.as_secs()),
        format!("see `pgbox logs {name}`"),
    ))
}

/// Gives a standby the time to stream again; that it does not is told, and no failure: it goes on trying by itself.
fn wait_until_it_streams(context: &Context, node: &Node) {
    let Role::Standby { of } = node.state.role() else { return };
    let server = node::find(&context.root, &context.lab, &of).ok().filter(|server| server.pidfd.is_some());
    let ask = |server: &Node| match server.login() {
        Ok(login) => follower::streams(&login, node.name.as_str()),
        Err(error) => Err(format!("{error:#}")),
    };
    let begun = Instant::now();
    let waits = || node.login().is_ok_and(|own| follower::applies_late(&own).1);
    loop {
        let answer = server.as_ref().map_or_else(|| Err(format!("`{of}` does not run")), ask);
        match answer {
            Ok(()) => return,
            Err(why) if node.state.applies_late() && waits() => {
                let text = format!("`{}` does not stream yet: {}", node.name, follower::late(&why));
                return super::note(context, &text);
            }
            Err(_) if server.is_some() && begun.elapsed() < start::STREAM => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(why) => return super::note(context, &format!("`{}` does not stream: {why}", node.name)),
        }
    }
}

fn is_new(node: &Node, before: i32) -> Result<bool> {
    let status = node.dir.status().context("ask pid 1")?;
    Ok(status.pid != before && status.phase == Phase::Running)
}
