//! `pgbox wait`: until a node is ready, or has ended.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::Context;
use crate::{
    cli::{self, Goal},
    engine::ready,
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
    }
}
