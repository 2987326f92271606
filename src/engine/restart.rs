//! A server that restarts by itself: its pid 1, namespaces and address stay.

use std::{
    net::SocketAddrV4,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::{follower, halt, ready};
use crate::{
    facts::node::{self, Node},
    hint::advise,
    postgres::report::Phase,
    state::{Role, Root},
    sys::process,
};

/// How much longer than its end the new beginning of a server may take.
const BEGINNING: Duration = Duration::from_secs(60);

/// Restarts a node's server, with a fast shutdown that may take `patience`. Gives where it answers; `None`: it is no server.
pub fn in_place(node: &Node, patience: Duration) -> Result<Option<SocketAddrV4>> {
    let (name, pidfd) = (&node.name, node.awake()?);
    let Some(address) = node.state.server() else {
        return Ok(None);
    };
    let before = node.status.pid;
    process::signal_with(pidfd.as_fd(), Signal::SIGUSR1, halt::seconds(patience))?;
    let patience = patience.saturating_add(BEGINNING);
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if process::has_ended(pidfd.as_fd(), Duration::from_millis(5))? {
            bail!("node `{name}` ended instead of restarting; `pgbox logs {name}` tells why");
        }
        if is_new(node, before)? && ready::probe(&node.dir, address)?.is_ready() {
            return Ok(Some(address));
        }
    }
    Err(advise(
        format!("node `{name}` did not answer within {} s", patience.as_secs()),
        format!("see `pgbox logs {name}`"),
    ))
}

fn is_new(node: &Node, before: i32) -> Result<bool> {
    let status = node.dir.status().context("ask pid 1")?;
    Ok(status.pid != before && status.phase == Phase::Running)
}

/// Gives a standby the time to stream again.
///
/// # Errors
/// Why it does not, which is no failure: it goes on trying by itself.
pub fn wait_until_it_streams(root: &Root, node: &Node, limit: Duration) -> Result<(), String> {
    let Role::Standby { of } = node.state.role() else { return Ok(()) };
    let server = node::find(root, &node.lab, &of).ok().filter(|server| server.pidfd.is_some());
    let ask = |server: &Node| match server.login() {
        Ok(login) => follower::streams(&login, node.name.as_str()),
        Err(error) => Err(format!("{error:#}")),
    };
    let begun = Instant::now();
    let waits = || node.login().is_ok_and(|own| follower::applies_late(&own).1);
    loop {
        let answer = server.as_ref().map_or_else(|| Err(format!("`{of}` does not run")), ask);
        match answer {
            Ok(()) => return Ok(()),
            Err(why) if node.state.applies_late() && waits() => {
                return Err(format!("`{}` does not stream yet: {}", node.name, follower::late(&why)));
            }
            Err(_) if server.is_some() && begun.elapsed() < limit => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(why) => return Err(format!("`{}` does not stream: {why}", node.name)),
        }
    }
}
