//! `pgbox switchover`: a planned change of the primary, in which nothing is lost.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{Context, endpoint, need_root, start, which};
use crate::{
    cli,
    engine::{slots, switchover},
    facts::{cluster, node::Node},
    hint::advise,
    state::Role,
};

pub fn run(context: &Context, args: &cli::Switchover) -> Result<i32> {
    need_root("pgbox switchover")?;
    let name = which::standby(context, args.node.as_ref())?;
    crate::sys::exe::reexec_read_only()?;
    let lock = context.lock()?;
    let cluster = cluster::by_data(&context.root, &context.lab, name)?;
    if cluster.head().name == *name && cluster.head().state.role() == Role::Primary {
        super::note(context, &format!("`{name}` is the primary already"));
        return Ok(0);
    }
    let (old, target) = switchover::check(&context.root, &cluster, name)?;
    let others: Vec<&Node> = cluster.followers(&old.name).filter(|node| node.name != target.name).collect();
    if args.dry_run {
        outln!("stop: `{}`, whose standbys receive all it has", old.name);
        outln!("promote: `{}`", target.name);
        endpoint::foretell(context, &cluster, &target.name)?;
        others.iter().for_each(|node| outln!("follow: `{}` follows `{}`", node.name, target.name));
        outln!("start: `{}` as a standby of `{}`", old.name, target.name);
        tell_of_slots(context, old, target);
        return Ok(0);
    }
    switchover::prepare(old, target, args.timeout)?;
    let begun = Instant::now();
    if let Err(error) = switchover::shut_down(old, target, args.timeout) {
        drop(lock);
        start::start(context, &old.name, start::PATIENCE, start::STREAM)
            .context(format!("{error:#}; starting it again failed too"))?;
        return Err(advise(
            format!("not switched over: {error:#}"),
            format!("`{}` is the primary again; see `pgbox status`", old.name),
        ));
    }
    let promoted = switchover::promote(&context.root, old, target, &others, || {
        endpoint::settle(context, Some(&target.name));
        Ok(())
    })?;
    let gap = begun.elapsed();
    switchover::follow_back(&context.root, old, target)?;
    outln!(
        "{} is the primary, on timeline {} since {}; no writes for {:.0} ms",
        target.name,
        promoted.timeline,
        promoted.lsn,
        gap.as_secs_f64() * 1000.0
    );
    tell_of_slots(context, old, target);
    drop(lock);
    start::start(context, &old.name, args.timeout, args.timeout)?;
    Ok(0)
}

fn tell_of_slots(context: &Context, old: &Node, target: &Node) {
    if let Some(text) = slots::left_behind(old, target) {
        super::warn(context, &text);
    }
}
