//! `pgbox replica`: a standby of a running node, by a base backup over the lab's own bridge.

use anyhow::Result;

use super::{Context, need_root, run};
use crate::{
    cli,
    engine::sync,
    facts::node,
    hint::advise,
    postgres::{settings, standby},
    spec::{Follow, NodeSpec, Volume, VolumeSource, quantity::Bound},
};

pub fn run(context: &Context, args: &cli::Replica) -> Result<i32> {
    need_root("pgbox replica")?;
    crate::sys::exe::reexec_read_only()?;
    let how = run::How {
        dry_run: args.dry_run,
        explain: args.explain,
        timeout: args.timeout,
        foreground: false,
        remove: false,
        detach: true,
        tty: false,
        interactive: false,
    };
    let code = run::create(context, spec(context, args)?, None, &how)?;
    if !args.dry_run && !args.explain {
        sync::joined(&context.root, &context.lab, &args.node)?;
    }
    Ok(code)
}

/// As the node that it follows was asked for, but for what would collide with that, and for what is said here.
fn spec(context: &Context, args: &cli::Replica) -> Result<NodeSpec> {
    let of = node::find(&context.root, &context.lab, &args.of)?;
    of.login()?;
    let major = of.state.postgres().map_or(0, |postgres| postgres.major);
    if major < standby::LEAST_MAJOR {
        return Err(advise(
            format!("`{}` runs PostgreSQL {major}; standbys need {} or later", args.of, standby::LEAST_MAJOR),
            "make the primary from an image with a later version",
        ));
    }
    let mut spec = of.state.spec.clone();
    spec.node = args.node.clone();
    spec.publish = args.publish.clone();
    // What both may read can be shared; what one of them writes is its own.
    spec.volumes.retain(|volume| volume.read_only);
    spec.volumes.extend(args.volumes.iter().cloned().map(absolute).collect::<Result<Vec<_>>>()?);
    for setting in &args.settings {
        spec.settings.push(settings::parse(setting)?);
    }
    let limits = &mut spec.limits;
    limits.memory = args.limits.memory.map_or(limits.memory, Bound::limit);
    limits.swap = args.limits.swap.or(limits.swap);
    limits.milli_cpus = args.limits.cpus.map_or(limits.milli_cpus, Bound::limit);
    limits.pids = args.limits.pids.map_or(limits.pids, Bound::limit);
    limits.shm_size = args.shm_size.unwrap_or(limits.shm_size);
    spec.restart = args.restart.unwrap_or(spec.restart);
    spec.subnet = None;
    spec.follow = Some(Follow {
        of: args.of.clone(),
        delay_ms: args.delay.map(|delay| delay.as_millis() as u64),
        rate_kb: args.rate.map(|rate| (rate / 1024).max(32)),
    });
    Ok(spec)
}

fn absolute(mut volume: Volume) -> Result<Volume> {
    if let VolumeSource::Path(path) = &volume.source {
        volume.source = VolumeSource::Path(std::path::absolute(path)?);
    }
    Ok(volume)
}
