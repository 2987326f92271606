//! Other limits for a node that is there: the kernel takes them while it runs, and its plan has them for every later start.
//! cgroups(7).

use anyhow::Result;

use super::orders;
use crate::{
    facts::{self, node::Node},
    hint::advise,
    plan,
    spec::{NodeLimits, NodeSpec, quantity::human_bytes},
    state::Root,
    step::HostStep,
    sys::cgroup::{self, Cgroup, CpuQuota, Hierarchy, Limits, UNLIMITED, Unmet},
};

/// Changes the limits, at once if the node runs; gives what the kernel did otherwise than it was told. The caller holds the
/// lab's lock.
///
/// # Errors
/// When it can't have them; all of them are then as they were, as far as the error does not say otherwise.
pub fn change(root: &Root, node: &Node, wanted: &NodeLimits) -> Result<Vec<Unmet>> {
    let mut state = node.state.clone();
    state.spec.limits = wanted.clone();
    let hierarchy = check(&state.spec)?;
    let limits = plan::limits(&state.spec);
    let unmet = match node.pidfd {
        Some(_) => give(&node.cgroup(root)?, &plan::limits(&node.state.spec), &limits)?,
        None => Vec::new(),
    };
    for step in &mut state.plan.host {
        if let HostStep::SetLimits { path, .. } = step {
            *step = plan::set_limits(&hierarchy, path, limits.clone());
        }
    }
    orders::save(&node.dir, &state)?;
    Ok(unmet)
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
pub fn check_now(root: &Root, node: &Node, wanted: &NodeLimits) -> Result<()> {
    let spec = NodeSpec { limits: wanted.clone(), ..node.state.spec.clone() };
    match node.pidfd {
        Some(_) => check_use(&node.cgroup(root)?, &plan::limits(&spec)),
        None => Ok(()),
    }
}

/// Sets all of the limits, or none.
fn give(group: &Cgroup, before: &Limits, wanted: &Limits) -> Result<Vec<Unmet>> {
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
