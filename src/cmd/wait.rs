//! `pgbox wait`: until a node is ready, has ended, or is in its cluster what it is to be.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::Context;
use crate::{
    cli::{self, Goal},
    engine::{goal, ready},
    facts::node,
    hint::advise,
    step::AfterStep,
    sys::process,
};

pub fn run(context: &Context, args: &cli::Wait) -> Result<i32> {
    let node = node::find(&context.root, &context.lab, &args.node)?;
    let too_late = |why: &str| {
        Err(advise(
            format!(
                "`{}` is not {} after {}: {why}",
                args.node,
                word(args.goal),
                humantime::format_duration(args.timeout)
            ),
            match why {
                FROZEN => format!("to let it go on: pgbox thaw {}", args.node),
                _ => format!("see `pgbox logs {}`", args.node),
            },
        ))
    };
    if !matches!(args.goal, Goal::Ready | Goal::Stopped) {
        return match in_cluster(context, args, Instant::now() + args.timeout) {
            Some(why) => too_late(&why),
            None => Ok(0),
        };
    }
    if args.goal == Goal::Stopped {
        return match &node.pidfd {
            Some(pidfd) if !process::has_ended(pidfd.as_fd(), args.timeout)? => too_late("it runs"),
            _ => Ok(0),
        };
    }
    let pidfd = node.running()?;
    let Some(AfterStep::WaitUntilReady { address, .. }) = node.state.plan.after.first() else { return Ok(0) };
    let group = node.cgroup(&context.root)?;
    let deadline = Instant::now() + args.timeout;
    loop {
        let answer = match group.frozen()? {
            true => ready::Answer::NotYet(FROZEN.to_owned()),
            false => {
                let left = deadline.saturating_duration_since(Instant::now());
                ready::probe_within(&node.dir, *address, left.max(LEAST))?
            }
        };
        match answer {
            ready::Answer::NotYet(why) if Instant::now() >= deadline => return too_late(&why),
            ready::Answer::NotYet(_) => {}
            _ => return Ok(0),
        }
        if process::has_ended(pidfd.as_fd(), Duration::from_millis(20))? {
            return too_late("it has ended");
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
