//! The limits of a node: what is asked for, in the kernel's terms, and what a server could not start under.

use std::path::Path;

use anyhow::Result;

use crate::{
    hint::{advise, misuse},
    spec::NodeSpec,
    step::HostStep,
    sys::cgroup,
};

/// The limits of a node in the kernel's terms. Swap is none unless asked for: a database that swaps is
/// slower than one that is told it has less memory.
pub fn limits(spec: &NodeSpec) -> cgroup::Limits {
    let asked = &spec.limits;
    cgroup::Limits {
        memory_max: asked.memory,
        memory_high: asked.memory_high,
        swap_max: asked.memory.map(|_| asked.swap.unwrap_or(0)),
        cpu: asked.milli_cpus.map(cgroup::CpuQuota::from_millis),
        pids_max: asked.pids,
        // A killed backend must not take the whole node along: Postgres recovers from losing one.
        oom_group: asked.memory.map(|_| false),
    }
}

/// The step that sets these limits.
pub fn set_limits(hierarchy: &cgroup::Hierarchy, path: &Path, limits: cgroup::Limits) -> HostStep {
    let group = cgroup::Cgroup::new(hierarchy, path);
    let files = cgroup::writes(hierarchy, &limits).into_iter().filter_map(|write| {
        let dir = group.as_ref().ok()?.dir_of(write.controller).ok()?;
        Some((dir.join(write.file), write.value.to_string()))
    });
    HostStep::SetLimits { path: path.to_owned(), files: files.collect(), limits }
}

/// Refuses limits under which a server could not start, and what this host does not have.
pub fn check_limits(spec: &NodeSpec, hierarchy: &cgroup::Hierarchy) -> Result<()> {
    if spec.limits.memory_high.is_some() && !hierarchy.is_v2(cgroup::Controller::Memory) {
        return Err(advise(
            "--memory-high can't be held here: only cgroup v2 has memory.high, and memory is under v1 on this host",
            "leave it out, and limit with --memory; or boot with cgroup v2 alone",
        ));
    }
    spec.too_little().map_or(Ok(()), |(why, way_out)| Err(misuse(why, way_out)))
}
