//! `pgbox limit`: other limits for a node, at once if it runs, and for every later start.

use anyhow::Result;

use super::{Context, need_root};
use crate::{cli, facts::node, hint::advise, plan, step::HostStep, sys::cgroup};

pub fn run(context: &Context, args: &cli::Limit) -> Result<i32> {
    need_root("pgbox limit")?;
    let _lock = context.root.lock(&context.lab)?;
    let mut node = node::find(&context.root, &context.lab, &args.node)?;
    let asked = &args.limits;
    if asked.memory.is_none() && asked.cpus.is_none() && asked.pids.is_none() {
        return Err(advise(
            "no limit was given",
            format!("for example: pgbox limit {} --memory 1g --cpus 2", args.node),
        ));
    }
    let limits = &mut node.state.spec.limits;
    limits.memory = asked.memory.or(limits.memory);
    limits.swap = asked.swap.or(limits.swap);
    limits.milli_cpus = asked.cpus.or(limits.milli_cpus);
    limits.pids = asked.pids.or(limits.pids);
    let wanted = plan::limits(&node.state.spec);
    if node.pidfd.is_some() {
        let group = node.cgroup(&context.root)?;
        let unmet = group.apply(&group.changes(&wanted)?)?;
        unmet.iter().for_each(|unmet| eprintln!("warning: {unmet}"));
    }
    let hierarchy = cgroup::detect()?;
    for step in &mut node.state.plan.host {
        if let HostStep::SetLimits { path, .. } = step {
            *step = plan::set_limits(&hierarchy, path, wanted.clone());
        }
    }
    node.dir.save(&node.state)?;
    Ok(0)
}
