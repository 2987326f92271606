//! `pgbox lag`: how far standbys are behind, once or again and again.

use std::{
    io::{IsTerminal, Write, stdout},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde_json::json;

use super::Context;
use crate::{
    cli,
    engine::interrupt::Interrupts,
    facts::replication::{self, Lab},
    show::{lab, table},
};

/// Back to the first line, and nothing left of the look before.
const REDRAW: &str = "\x1b[H\x1b[J";

pub fn run(context: &Context, args: &cli::Lag) -> Result<i32> {
    if !args.watch {
        let lab = replication::look(&context.root, &context.lab)?;
        out!("{}", if args.json { pretty(&lab)? } else { table::render(&lab::LAG, &lab::lag_rows(&lab)) });
        return Ok(0);
    }
    // Before the threads that ask: they must not be ended by it.
    let interrupts = Interrupts::block()?;
    let redraw = stdout().is_terminal() && !args.json;
    loop {
        let begun = Instant::now();
        let lab = replication::look(&context.root, &context.lab)?;
        let text = match args.json {
            true => json!(rows(&lab)).to_string() + "\n",
            false => table::render(&lab::LAG, &lab::lag_rows(&lab)),
        };
        let mut out = stdout().lock();
        write!(out, "{}{text}", if redraw { REDRAW } else { "" })
            .and_then(|()| out.flush())
            .context("print")?;
        drop(out);
        if interrupted(&interrupts, args.interval.saturating_sub(begun.elapsed()))? {
            return Ok(0);
        }
    }
}

fn pretty(lab: &Lab) -> Result<String> {
    Ok(serde_json::to_string_pretty(&rows(lab))? + "\n")
}

/// The standbys, as `status` has them.
fn rows(lab: &Lab) -> Vec<&replication::Member> {
    let members = lab.clusters.iter().flat_map(|cluster| &cluster.nodes).chain(&lab.others);
    members.filter(|member| member.role == "standby").collect()
}

/// Waits; true as soon as Ctrl-C or its kin has come.
fn interrupted(interrupts: &Interrupts, time: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(interrupts.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(interrupts.next()?.is_some()),
        Err(errno) => Err(errno).context("poll"),
    }
}
