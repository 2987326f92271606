//! `pgbox limit`: other limits for a node, at once if it runs, and for every later start.

use anyhow::Result;

use super::{Context, need_root};
use crate::{
    cli,
    facts::{
        self,
        node::{self, Node},
    },
    hint::{advise, misuse},
    plan, show,
    spec::{
        Name, NodeLimits, NodeSpec,
        quantity::{Bound, human_bytes},
    },
    step::HostStep,
    sys::cgroup::{self, Cgroup, CpuQuota, Hierarchy, Limits, UNLIMITED, Unmet},
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
    let (before, node) = change_by(context, &args.node, |limits| lay_over(asked, limits))?;
    let name = &args.node;
    match show::changes::limits(&before, &node.state.spec.limits).as_str() {
        "" => outln!("{name}: its limits are as they were"),
        changed if node.pidfd.is_none() => outln!("{name}: {changed}, from its next start on"),
        changed => outln!("{name}: {changed}"),
    }
    Ok(0)
}

/// Gives a node these limits.
pub fn set(context: &Context, name: &Name, wanted: NodeLimits) -> Result<()> {
    change_by(context, name, |limits| *limits = NodeLimits { shm_size: limits.shm_size, ..wanted }).map(drop)
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

/// Gives what the limits were, and the node as it is.
fn change_by(
    context: &Context,
    name: &Name,
    change_limits: impl FnOnce(&mut NodeLimits),
) -> Result<(NodeLimits, Node)> {
    let _lock = context.lock()?;
    let mut node = node::find(&context.root, &context.lab, name)?;
    let before = plan::limits(&node.state.spec);
    let limits = &mut node.state.spec.limits;
    let old = limits.clone();
    change_limits(limits);
    let hierarchy = check(&node.state.spec)?;
    let wanted = plan::limits(&node.state.spec);
    if node.pidfd.is_some() {
        let group = node.cgroup(&context.root)?;
        let unmet = change(&group, &before, &wanted)?;
        unmet.iter().for_each(|unmet| super::warn(context, &unmet.to_string()));
    }
    for step in &mut node.state.plan.host {
        if let HostStep::SetLimits { path, .. } = step {
            *step = plan::set_limits(&hierarchy, path, wanted.clone());
        }
    }
    node.dir.save(&node.state)?;
    Ok((old, node))
}

/// Refuses limits that can't be given to a node on this host.
pub fn check(spec: &NodeSpec) -> Result<Hierarchy> {
    facts::check_cpus(&spec.limits)?;
    if let Some(text) = spec.contradiction() {
        return Err(advise(text, "leave one of them out, or change both"));
    }
    let hierarchy = cgroup::detect()?;
    plan::check_limits(spec, &hierarchy)?;
    Ok(hierarchy)
}

/// Refuses limits that a node can't be given at this moment.
pub fn check_now(context: &Context, name: &Name, limits: &NodeLimits) -> Result<()> {
    let node = node::find(&context.root, &context.lab, name)?;
    let mut spec = node.state.spec.clone();
    spec.limits = limits.clone();
    match node.pidfd {
        Some(_) => check_use(&node.cgroup(&context.root)?, &plan::limits(&spec)),
        None => Ok(()),
    }
}

/// Sets all of the limits, or none.
fn change(group: &Cgroup, before: &Limits, wanted: &Limits) -> Result<Vec<Unmet>> {
    check_use(group, wanted)?;
    group.apply(&group.changes(&replacing(before, wanted))?).map_err(|error| {
        let back = group.changes(&replacing(wanted, before)).and_then(|writes| group.apply(&writes));
        match back {
            Ok(_) => error.context("the limits are as they were"),
            Err(back) => error.context(format!("some limits may have changed ({back:#})")),
        }
    })
}

/// The new limits, in which nothing is left alone that the old ones set: what has a limit no more is set to none.
fn replacing(old: &Limits, new: &Limits) -> Limits {
    let number = |old: Option<u64>, new: Option<u64>| new.or(old.map(|_| UNLIMITED));
    let no_quota = |quota: CpuQuota| CpuQuota { quota_us: UNLIMITED, ..quota };
    Limits {
        memory_max: number(old.memory_max, new.memory_max),
        memory_high: number(old.memory_high, new.memory_high),
        swap_max: number(old.swap_max, new.swap_max),
        cpu: new.cpu.or(old.cpu.map(no_quota)),
        pids_max: number(old.pids_max, new.pids_max),
        ..new.clone()
    }
}

/// Under a limit below what it uses, the kernel would kill a process of the node.
fn check_use(group: &Cgroup, wanted: &Limits) -> Result<()> {
    let stats = group.stats()?;
    let cache = stats.memory_inactive_file.unwrap_or(0);
    let used = stats.memory_current.unwrap_or(0).saturating_sub(cache);
    match wanted.memory_max {
        Some(limit) if limit < used => Err(advise(
            format!("a memory limit of {} is below the {} in use", human_bytes(limit), human_bytes(used)),
            "nothing was changed; give more, or stop the node and limit it then",
        )),
        _ => Ok(()),
    }
}
