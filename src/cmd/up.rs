//! `pgbox up`: a whole lab as it is wanted. What is there is compared with that, and only the difference is done, by the
//! same functions as the commands for single nodes have; so a second `up` does nothing, and one that was interrupted goes
//! on.

use std::time::Instant;

use anyhow::Result;

use super::{Context, need_root};
use crate::{
    cli, facts,
    lab::wanted::Wanted,
    plan::changes::{self, Action, Changes},
    show,
};

mod apply;
mod content;
mod node;

/// The image of nodes of which nothing else is said; the same as that of `run`.
pub const DEFAULT_IMAGE: &str = "postgres:latest";

pub fn run(context: &Context, args: &cli::Up) -> Result<i32> {
    need_root("pgbox up")?;
    crate::sys::exe::reexec_read_only()?;
    let wanted = without_file(context)?;
    bring(context, args, &wanted)
}

fn without_file(context: &Context) -> Result<Wanted> {
    let servers =
        facts::nodes(&context.root, &context.lab)?.into_iter().filter(|(_, s)| s.postgres().is_some());
    let there: Vec<_> = servers.map(|(name, _)| name).collect();
    Wanted::without_file(&context.lab, DEFAULT_IMAGE, &there).map_err(anyhow::Error::msg)
}

fn bring(context: &Context, args: &cli::Up, wanted: &Wanted) -> Result<i32> {
    // Two at once would both make what is missing.
    let _up = context.root.lock_up(&context.lab)?;
    let begun = Instant::now();
    let first = difference(context, args, wanted)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&show::changes::json(&first))?);
        return Ok(0);
    }
    first.notes.iter().for_each(|note| super::note(context, note));
    first.refused.iter().for_each(|text| super::warn(context, text));
    let code = i32::from(!first.refused.is_empty());
    if first.actions.is_empty() {
        println!("nothing to do: lab `{}` is as it is wanted", context.lab);
        return Ok(code);
    }
    if args.diff {
        print!("{}", show::changes::render(&first));
        return Ok(code);
    }
    let (content, nodes): (Vec<Action>, Vec<Action>) =
        first.actions.into_iter().partition(Action::is_content);
    nodes.iter().try_for_each(|action| apply::apply(context, action, args.timeout))?;
    if !content.is_empty() {
        // Now there is somebody who says what is missing.
        let rest = difference(context, args, wanted)?.actions.into_iter().filter(Action::is_content);
        rest.into_iter().try_for_each(|action| apply::apply(context, &action, args.timeout))?;
    }
    println!("lab `{}` is as it is wanted ({:.1} s)", context.lab, begun.elapsed().as_secs_f64());
    Ok(code)
}

fn difference(context: &Context, args: &cli::Up, wanted: &Wanted) -> Result<Changes> {
    let actual = {
        let _lock = context.root.lock(&context.lab)?;
        facts::lab::look(&context.root, &context.lab, wanted)?
    };
    Ok(changes::changes(wanted, &actual, args.prune))
}

/// The context of the lab that a file is about.
pub fn context(context: &Context, file: Option<&std::path::Path>) -> Result<Context> {
    let _ = file;
    Ok(Context { root: context.root.clone(), lab: context.lab.clone(), options: context.options.clone() })
}
