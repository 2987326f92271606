//! `pgbox rm`: the host steps backwards, and the node's directory.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use super::{Context, each, need_root};
use crate::{
    cli,
    engine::halt::{self, Shutdown},
    facts::node::{self, Node},
    hint::advise,
    spec::Name,
    step::HostStep,
};

pub fn run(context: &Context, args: &cli::Rm) -> Result<i32> {
    need_root("pgbox rm")?;
    each(&args.nodes, |name| remove(context, args, name))
}

fn remove(context: &Context, args: &cli::Rm, name: &Name) -> Result<()> {
    let _lock = context.root.lock(&context.lab)?;
    let node = node::find(&context.root, &context.lab, name)?;
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
        halt::end(&node, Shutdown::Fast, Duration::from_secs(node.state.spec.stop_timeout))?;
    }
    let volumes = volumes(context, &node);
    halt::remove(&context.root, &node)?;
    for volume in volumes.into_iter().filter(|_| args.volumes) {
        fs::remove_dir_all(&volume).with_context(|| format!("remove volume {}", volume.display()))?;
    }
    Ok(())
}

fn foretell(context: &Context, args: &cli::Rm, node: &Node) {
    for step in node.state.plan.host.iter().rev().filter(|s| !matches!(s, HostStep::CreateVolume { .. })) {
        println!("undo: {}", step.lesson().title);
    }
    for volume in volumes(context, node) {
        let what = if args.volumes { "remove with all data" } else { "keep" };
        println!("{what}: volume {}", volume.display());
    }
}

/// The named volumes of a node; what it has of the host's own directories is never touched.
fn volumes(context: &Context, node: &Node) -> Vec<PathBuf> {
    let home = context.root.path().join("volumes");
    let made = node.state.plan.host.iter().filter_map(|step| match step {
        HostStep::CreateVolume { dir } => dir.parent().filter(|v| v.starts_with(&home)).map(PathBuf::from),
        _ => None,
    });
    made.filter(|volume| volume.exists()).collect()
}
