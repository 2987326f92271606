//! `pgbox down`: a whole lab goes; its data stay unless told otherwise.
//!
//! The rule that surprises people: the primary has to *stop* first, and to be *removed* last. A primary that shuts down
//! waits until its standbys have all that it has, so the next `up` finds them level; and a standby takes its slot along,
//! which it can only do while there is somebody to ask.

use std::fs;

use anyhow::{Context as _, Result};

use super::{
    Context, drive, each, need_root,
    rm::{self, Removal},
    stop, up, volume,
};
use crate::{
    cli,
    engine::{halt::Shutdown, sync},
    facts::{
        self, cluster,
        node::{self, Node},
    },
    spec::Name,
};

pub fn run(context: &Context, args: &cli::Down) -> Result<i32> {
    need_root("pgbox down")?;
    let named = args.file.as_deref().map(|file| up::context(context, file)).transpose()?;
    let context = named.as_ref().unwrap_or(context);
    let _up = context.root.lock_up(&context.lab)?;
    let nodes = upstream_first(node::all(&context.root, &context.lab)?);
    let volumes = if args.volumes { context.root.volumes(&context.lab)? } else { Vec::new() };
    if nodes.is_empty() && volumes.is_empty() {
        let kept = context.root.volumes(&context.lab)?;
        if kept.is_empty() {
            facts::lab::check(&context.root, &context.lab)?;
        }
        if args.volumes && !args.dry_run {
            let _lock = context.lock()?;
            context.root.sweep_volumes(&context.lab)?;
            context.root.sweep_lab(&context.lab)?;
        }
        super::note(context, &nothing_there(&context.lab, &kept));
        return Ok(0);
    }
    if !args.volumes {
        nodes.iter().try_for_each(facts::volume::refuse_loss)?;
    }
    if args.dry_run {
        return foretell(context, &nodes, volumes);
    }
    drive::end(context)?;
    stop_all(context, &nodes)?;
    let names: Vec<Name> = nodes.into_iter().rev().map(|node| node.name).collect();
    let removal = Removal { going: &names, force: true, ..Removal::default() };
    let code = each(context, &names, |name| {
        rm::remove(context, name, &removal)?;
        outln!("{name} is removed");
        Ok(())
    })?;
    // What is left of the lab may need its data, and who uses data their passwords.
    if !args.volumes || code != 0 {
        return Ok(code);
    }
    let code = each(context, &volumes, |volume| {
        volume::remove(context, volume, false)?;
        outln!("volume {volume} is removed, with all data");
        Ok(())
    })?;
    if code == 0 {
        forget_users(context)?;
        let _lock = context.lock()?;
        context.root.sweep_lab(&context.lab)?;
    }
    Ok(code)
}

fn nothing_there(lab: &Name, kept: &[Name]) -> String {
    let kept: Vec<&str> = kept.iter().map(Name::as_str).collect();
    match kept.is_empty() {
        true => format!("lab `{lab}` has no nodes"),
        false => {
            format!(
                "lab `{lab}` has no nodes; its data are in the volumes {}, `pgbox down -v` removes them",
                kept.join(", ")
            )
        }
    }
}

fn upstream_first(nodes: Vec<Node>) -> Vec<Node> {
    let depths: Vec<usize> = nodes.iter().map(|node| cluster::depth(&nodes, &node.name)).collect();
    let mut sorted: Vec<(usize, Node)> = depths.into_iter().zip(nodes).collect();
    sorted.sort_by_key(|(depth, _)| *depth);
    sorted.into_iter().map(|(_, node)| node).collect()
}

/// Ends what runs, upstream first. The network stays: who is removed next may ask for a slot, and is told at once that
/// nobody is there.
fn stop_all(context: &Context, nodes: &[Node]) -> Result<()> {
    let _lock = context.lock()?;
    for node in nodes {
        stop::end(context, node, Shutdown::Fast, None)?;
    }
    forget_rule(context)
}

/// The rule is the lab's, and goes with it as a whole: no node leaves it. The caller holds the lab's lock.
fn forget_rule(context: &Context) -> Result<()> {
    let Some(mut lab) = context.root.load_lab(&context.lab)? else { return Ok(()) };
    let Some(rule) = lab.sync.take() else { return Ok(()) };
    context.root.save_lab(&context.lab, &lab)?;
    sync::forget(node::all(&context.root, &context.lab)?.iter())?;
    super::note(
        context,
        &format!(
            "the sync rule {rule} goes with the lab: a file has it for the next `pgbox up`, or `pgbox sync '{rule}'`"
        ),
    );
    Ok(())
}

fn foretell(context: &Context, nodes: &[Node], volumes: Vec<Name>) -> Result<i32> {
    let running = nodes.iter().filter(|node| node.pidfd.is_some());
    running.for_each(|node| outln!("stop: {}", node.name));
    nodes.iter().rev().for_each(|node| outln!("remove: {}", node.name));
    let kept = if volumes.is_empty() { context.root.volumes(&context.lab)? } else { Vec::new() };
    kept.iter().for_each(|volume| outln!("keep: volume {volume}"));
    volumes.iter().for_each(|volume| outln!("remove with all data: volume {volume}"));
    Ok(0)
}

/// The passwords of users that were in the data.
fn forget_users(context: &Context) -> Result<()> {
    let users = context.root.users_dir(&context.lab);
    match fs::remove_dir_all(&users) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", users.display()));
        }
        _ => {}
    }
    // With the last volume the lab's own directory there is empty.
    if let Some(lab) = users.parent() {
        let _ = fs::remove_dir(lab);
    }
    Ok(())
}
