//! `pgbox wait`: until a node is ready, has ended, or is in its cluster what it is to be.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Error, Result};

use super::Context;
use crate::{
    cli::{self, Goal},
    engine::{goal, ready},
    facts::node::{self, Node},
    hint::advise,
    spec::Name,
    sys::process,
};

pub fn run(context: &Context, args: &cli::Wait) -> Result<i32> {
    let node = node::find(&context.root, &context.lab, &args.node)?;
    let why = match args.goal {
        Goal::Ready => until_it_answers(context, &node, args.timeout)?,
        Goal::Stopped => match &node.pidfd {
            Some(pidfd) if !process::has_ended(pidfd.as_fd(), args.timeout)? => Some("it runs".to_owned()),
            _ => None,
        },
        _ => in_cluster(context, args, Instant::now() + args.timeout),
    };
    why.map_or(Ok(0), |why| Err(too_late(&args.node, args.goal, args.timeout, &why)))
}

/// Waits until a node that runs answers.
pub fn until_ready(context: &Context, name: &Name, timeout: Duration) -> Result<()> {
    let node = node::find(&context.root, &context.lab, name)?;
    let why = until_it_answers(context, &node, timeout)?;
    why.map_or(Ok(()), |why| Err(too_late(name, Goal::Ready, timeout, &why)))
}

fn too_late(name: &Name, goal: Goal, timeout: Duration, why: &str) -> Error {
    let (goal, timeout) = (word(goal), humantime::format_duration(timeout));
    advise(
        format!("`{name}` is not {goal} after {timeout}: {why}"),
        match why {
            FROZEN => format!("to let it go on: pgbox thaw {name}"),
            _ => format!("see `pgbox logs {name}`"),
        },
    )
}

/// Gives the reason when it did not in time.
fn until_it_answers(context: &Context, node: &Node, timeout: Duration) -> Result<Option<String>> {
    let pidfd = node.running()?;
    let Some(address) = node.state.server() else {
        return Ok(None);
    };
    let group = node.cgroup(&context.root)?;
    let deadline = Instant::now() + timeout;
    loop {
        let answer = match group.frozen()? {
            true => ready::Answer::NotYet(FROZEN.to_owned()),
            false => {
                let left = deadline.saturating_duration_since(Instant::now());
                ready::probe_within(&node.dir, address, left.max(LEAST))?
            }
        };
        match answer {
            ready::Answer::NotYet(why) if Instant::now() >= deadline => return Ok(Some(why)),
            ready::Answer::NotYet(_) => {}
            _ => return Ok(None),
        }
        if process::has_ended(pidfd.as_fd(), Duration::from_millis(20))? {
            return Ok(Some("it has ended".to_owned()));
        }
    }
}

const FROZEN: &str = "it is frozen";

/// What a server that is well needs for its answer, however short the time is.
const LEAST: Duration = Duration::from_millis(100);

fn word(goal: Goal) -> &'static str {
    match goal {
        Goal::Ready => "ready",
        Goal::Stopped => "stopped",
        Goal::Streaming => "streaming",
        Goal::CaughtUp => "caught up",
        Goal::Primary => "a primary",
        Goal::Standby => "a standby",
    }
}

/// Waits for what a node is to others. It may stop, start and change its role meanwhile: another command is at work. Gives
/// the reason when it was not so in time.
fn in_cluster(context: &Context, args: &cli::Wait, deadline: Instant) -> Option<String> {
    let mut wanted = None;
    let mut look = || -> Result<()> {
        if wanted.is_none() {
            wanted = Some(lookup(context, args)?);
        }
        match wanted.flatten() {
            Some(goal) => goal::reached(&context.root, &context.lab, &args.node, goal),
            None => Ok(()),
        }
    };
    loop {
        match look() {
            Ok(()) => return None,
            Err(why) if Instant::now() >= deadline => return Some(format!("{why:#}")),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The goal, with what had been written when the wait began. `None`: a primary is always where it is itself.
fn lookup(context: &Context, args: &cli::Wait) -> Result<Option<goal::Goal>> {
    Ok(match args.goal {
        Goal::Streaming => Some(goal::Goal::Streaming),
        Goal::CaughtUp => goal::written(&context.root, &context.lab, &args.node)?.map(goal::Goal::Replayed),
        Goal::Primary => Some(goal::Goal::Primary),
        _ => Some(goal::Goal::Standby),
    })
}
