//! `pgbox rm`: the host steps backwards, and the node's directory.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Error, Result};

use super::{Context, each, endpoint, need_root};
use crate::{
    cli,
    engine::{
        halt::{self, Shutdown},
        sync,
    },
    facts::{
        self, cluster,
        node::{self, Node},
        volume,
    },
    hint::advise,
    spec::Name,
    step::HostStep,
};

pub fn run(context: &Context, args: &cli::Rm) -> Result<i32> {
    need_root("pgbox rm")?;
    each(context, &args.nodes, |name| remove(context, args, name))
}

fn remove(context: &Context, args: &cli::Rm, name: &Name) -> Result<()> {
    let _lock = context.root.lock(&context.lab)?;
    let node = match node::find(&context.root, &context.lab, name) {
        Err(error) if args.force => return remove_remains(context, args, name, error),
        other => other?,
    };
    if args.dry_run {
        foretell(context, args, &node);
        return Ok(());
    }
    if node.pidfd.is_some() {
        if !args.force {
            return Err(advise(
                format!("node `{name}` runs"),
                format!("stop it first, or use: pgbox rm --force {name}"),
            ));
        }
        if halt::thaw(&context.root, &node)? {
            super::note(context, &format!("`{name}` was frozen, and is thawed to end"));
        }
        halt::end(&node, Shutdown::Fast, Duration::from_secs(node.state.spec.stop_timeout))?;
    }
    let volumes = if args.volumes { volumes(context, &node) } else { Vec::new() };
    let primary = cluster::of(&context.root, &context.lab, name).map(|cluster| cluster.head().name.clone());
    halt::remove(&context.root, &node)?;
    endpoint::settle(context, None);
    // No commit may wait for a standby that never comes back.
    if let Ok(primary) = primary.as_ref()
        && let Ok(cluster) = cluster::of(&context.root, &context.lab, primary)
    {
        sync::settle(&context.root, &cluster)?;
    }
    for volume in volumes {
        match volume::users(&context.root, &volume)?.first() {
            Some(other) => {
                let text = format!("the volume {} is kept: node `{other}` uses it too", volume.display());
                super::note(context, &text);
            }
            None => {
                fs::remove_dir_all(&volume).with_context(|| format!("remove volume {}", volume.display()))?
            }
        }
    }
    Ok(())
}

/// Removes a node by the names of its objects alone: what was remembered of it is lost or damaged.
fn remove_remains(context: &Context, args: &cli::Rm, name: &Name, error: Error) -> Result<()> {
    let found = facts::remains(&context.root, &context.lab, name)?;
    if found.is_empty() {
        return Err(error);
    }
    if args.dry_run {
        found.iter().for_each(|what| println!("remove: {what}"));
        return Ok(());
    }
    halt::remove_remains(&context.root, &context.lab, name)?;
    endpoint::settle(context, None);
    let text = format!(
        "nothing was remembered of `{name}`: its processes were killed, and volumes are kept; see `pgbox volume ls`"
    );
    super::note(context, &text);
    Ok(())
}

fn foretell(context: &Context, args: &cli::Rm, node: &Node) {
    for step in node.state.plan.host.iter().rev().filter(|s| !matches!(s, HostStep::CreateVolume { .. })) {
        println!("undo: {}", step.lesson().title);
    }
    for volume in volumes(context, node) {
        let what = if args.volumes { "remove with all data, unless another node uses it" } else { "keep" };
        println!("{what}: volume {}", volume.display());
    }
}

/// The named volumes of a node; what it has of the host's own directories is never touched.
fn volumes(context: &Context, node: &Node) -> Vec<PathBuf> {
    let made = node.state.plan.host.iter().filter_map(|step| match step {
        HostStep::CreateVolume { dir } => context.root.volume_home(&node.lab, dir),
        _ => None,
    });
    // One volume may be mounted at several places.
    let volumes: BTreeSet<PathBuf> = made.filter(|volume| volume.exists()).collect();
    volumes.into_iter().collect()
}
