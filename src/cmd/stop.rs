//! `pgbox stop` and `pgbox restart`.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::Result;

use super::{
    Context, each, endpoint, need_root, start,
    which::{self, Going},
};
use crate::{
    cli,
    engine::{
        halt::{self, Shutdown},
        restart,
    },
    facts::node::{self, Node},
    spec::Name,
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
    end(context, &node, how, timeout)?;
    halt::take_down(&node)?;
    outln!("{name} is stopped");
    endpoint::settle(context, None);
    Ok(())
}

/// Ends a node, if it runs, also a frozen one; in the time that it was made with, unless another one is said.
pub fn end(context: &Context, node: &Node, how: Shutdown, timeout: Option<Duration>) -> Result<()> {
    if node.pidfd.is_none() {
        return Ok(());
    }
    let name = &node.name;
    if halt::thaw(&context.root, node)? {
        super::note(context, &format!("`{name}` was frozen, and is thawed to end"));
    }
    let patience = patience(node, timeout);
    if halt::end(node, how, patience)? {
        let text = format!(
            "`{name}` did not stop in {} and was stopped at once; the next start recovers",
            humantime::format_duration(patience)
        );
        super::warn(context, &text);
    }
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

/// Postgres alone restarts, after a fast shutdown. Gives where it answers, unless all of the node had to be started.
pub(super) fn restart_one(
    context: &Context,
    name: &Name,
    timeout: Option<Duration>,
) -> Result<Option<SocketAddrV4>> {
    let node = node::find(&context.root, &context.lab, name)?;
    if node.pidfd.is_none() {
        return start::start(context, name, start::PATIENCE, start::STREAM).map(|()| None);
    }
    let Some(address) = restart::in_place(&node, patience(&node, timeout))? else {
        stop(context, name, Shutdown::Fast, timeout)?;
        return start::start(context, name, start::PATIENCE, start::STREAM).map(|()| None);
    };
    if let Err(why) = restart::wait_until_it_streams(&context.root, &node, start::STREAM) {
        super::note(context, &why);
    }
    Ok(Some(address))
}
