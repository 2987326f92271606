//! `pgbox guard`: watches the primary of a lab, and fails over when it dies or is cut off.

use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::{Context, need_root};
use crate::{
    cli,
    engine::interrupt::Interrupts,
    guard::{self, Event, Line, Wish},
    hint::{self, advise, misuse},
};

/// Less than this would take a busy server for a dead one.
const LEAST: Duration = Duration::from_millis(100);

pub fn run(context: &Context, args: &cli::Guard) -> Result<i32> {
    if args.detect < LEAST {
        return Err(misuse(
            format!(
                "--detect {} is too short: a primary that is only busy is silent for as long",
                humantime::format_duration(args.detect)
            ),
            "give 100ms or more",
        ));
    }
    need_root("pgbox guard")?;
    let interrupts = Interrupts::block()?;
    let _lock = match context.root.lock_guard(&context.lab)? {
        Ok(lock) => lock,
        Err(pid) => {
            return Err(advise(
                format!("lab `{}` has a guard already: process {pid}", context.lab),
                format!("end it first: kill {pid}"),
            ));
        }
    };
    let wish = Wish { node: args.node.clone(), detect: args.detect, accept_loss: args.accept_loss };
    guard::watch(&context.root, &context.lab, &wish, &interrupts, &mut |event| say(context, args, event))?;
    Ok(0)
}

/// A line for each event. One that can't be written ends no guard: it may be about to promote somebody.
fn say(context: &Context, args: &cli::Guard, event: &Event) {
    let line = Line::of(event, SystemTime::now());
    match args.json {
        true => outln!("{}", serde_json::json!(line)),
        false => outln!("{}", hint::with_options(&line.plain(), &context.options)),
    }
}
