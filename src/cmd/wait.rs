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
            format!("see `pgbox logs {}`", args.node),
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
    let deadline = Instant::now() + args.timeout;
    loop {
        let answer = ready::probe(&node.dir, *address)?;
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

fn word(goal: Goal) -> &'static str {
    match goal {
        Goal::Ready => "ready",
        Goal::Stopped => "stopped",
    }
}
