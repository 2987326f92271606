//! `pgbox limit`: other limits for a node, at once if it runs, and for every later start.

use anyhow::Result;

use super::{Context, need_root};
use crate::{
    cli,
    engine::limits,
    facts::node::{self, Node},
    hint::misuse,
    show,
    spec::{Name, NodeLimits, quantity::Bound},
};

pub fn run(context: &Context, args: &cli::Limit) -> Result<i32> {
    let asked = &args.limits;
    if [asked.memory, asked.memory_high, asked.cpus, asked.pids].iter().all(Option::is_none) {
        return Err(misuse(
            "no limit was given",
            format!("for example: pgbox limit {} --memory 1g --cpus 2", args.node),
        ));
    }
    need_root("pgbox limit")?;
    let name = &args.node;
    let (node, limits) = change(context, name, |limits| lay_over(asked, limits))?;
    match show::changes::limits(&node.state.spec.limits, &limits).as_str() {
        "" => outln!("{name}: its limits are as they were"),
        changed if node.pidfd.is_none() => outln!("{name}: {changed}, from its next start on"),
        changed => outln!("{name}: {changed}"),
    }
    Ok(0)
}

/// Gives a node these limits.
pub fn set(context: &Context, name: &Name, wanted: NodeLimits) -> Result<()> {
    change(context, name, |limits| *limits = NodeLimits { shm_size: limits.shm_size, ..wanted }).map(drop)
}

/// Lays the limits of a command line over those that a node has, or takes over.
pub fn lay_over(asked: &cli::Limits, limits: &mut NodeLimits) {
    if let Some(memory) = asked.memory {
        // Swap is limited together with memory.
        let kept = limits.swap.filter(|_| memory != Bound::Max);
        (limits.memory, limits.swap) = (memory.limit(), asked.swap.or(kept));
    }
    limits.memory_high = asked.memory_high.map_or(limits.memory_high, Bound::limit);
    limits.milli_cpus = asked.cpus.map_or(limits.milli_cpus, Bound::limit);
    limits.pids = asked.pids.map_or(limits.pids, Bound::limit);
}

/// Gives the node as it was, and what its limits are now.
fn change(
    context: &Context,
    name: &Name,
    change_limits: impl FnOnce(&mut NodeLimits),
) -> Result<(Node, NodeLimits)> {
    let _lock = context.lock()?;
    let node = node::find(&context.root, &context.lab, name)?;
    let mut wanted = node.state.spec.limits.clone();
    change_limits(&mut wanted);
    let unmet = limits::change(&context.root, &node, &wanted)?;
    unmet.iter().for_each(|unmet| super::warn(context, &unmet.to_string()));
    Ok((node, wanted))
}
