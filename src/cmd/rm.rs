//! `pgbox rm`: the host steps backwards, and the node's directory.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Error, Result};

use super::{Context, each, endpoint, need_root, stop, which};
use crate::{
    cli,
    engine::{
        halt::{self, Shutdown},
        leftover,
        membership::{self, Departure},
    },
    facts::{
        self,
        node::{self, Node},
        volume,
    },
    hint::{self, advise},
    show::plan::commands,
    spec::Name,
    state,
    step::HostStep,
};

pub fn run(context: &Context, args: &cli::Rm) -> Result<i32> {
    need_root("pgbox rm")?;
    // By force whatever is there goes, as far as it is, also where nobody remembers it. A single name is looked for when it is due.
    let is_nobody = |name: &&Name| {
        facts::remains(&context.root, &context.lab, name).is_ok_and(|remains| remains.is_empty())
    };
    let looked_for: Vec<Name> = match (args.force, args.nodes.len()) {
        (false, _) => args.nodes.clone(),
        (true, 1) => Vec::new(),
        (true, _) => args.nodes.iter().filter(is_nobody).cloned().collect(),
    };
    which::check(context, &looked_for)?;
    let removal =
        Removal { going: &args.nodes, force: args.force, volumes: args.volumes, dry_run: args.dry_run };
    each(context, &args.nodes, |name| {
        if let (false, Ok(node)) = (args.volumes, node::find(&context.root, &context.lab, name)) {
            volume::refuse_loss(&node)?;
        }
        let volumes = remove(context, name, &removal)?;
        if !args.dry_run {
            outln!("{}", hint::with_options(&removed(name, &volumes), &context.options));
        }
        Ok(())
    })
}

/// What has become of a node and its volumes.
fn removed(name: &Name, volumes: &[PathBuf]) -> String {
    let shown = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (kept, gone): (Vec<&PathBuf>, Vec<&PathBuf>) = volumes.iter().partition(|path| path.exists());
    let names = |of: Vec<&PathBuf>| of.into_iter().map(shown).collect::<Vec<_>>();
    let (kept, gone) = (names(kept), names(gone));
    match kept.is_empty() {
        true if gone.is_empty() => format!("{name} is removed"),
        true => format!("{name} is removed, with all data"),
        false => {
            let kept = kept.join(" ");
            format!("{name} is removed; its data are kept: `pgbox volume rm {kept}` removes them")
        }
    }
}

/// What is to go, and how.
#[derive(Default)]
pub struct Removal<'a> {
    pub going: &'a [Name],
    /// Also what runs, and what nobody remembers.
    pub force: bool,
    pub volumes: bool,
    pub dry_run: bool,
}

/// Removes one of the nodes that are to go; gives the volumes that it had.
pub fn remove(context: &Context, name: &Name, removal: &Removal<'_>) -> Result<Vec<PathBuf>> {
    let _lock = context.lock()?;
    let mut node = match node::find(&context.root, &context.lab, name) {
        Err(error) if removal.force => {
            return remove_remains(context, name, removal, error).map(|()| Vec::new());
        }
        other => other?,
    };
    if node.pidfd.is_some() && !removal.force {
        return Err(advise(
            format!("node `{name}` runs"),
            format!("stop it first, or use: pgbox rm --force {name}"),
        ));
    }
    if removal.dry_run {
        foretell(context, &node, removal);
        return Ok(Vec::new());
    }
    // Before it ends: no commit may hang, and nobody wait for WAL from a node that is gone.
    let departure = let_go(context, name);
    let is_missed = match node::all(&context.root, &context.lab) {
        Ok(mut others) => {
            others.retain(|other| other.name != *name && !removal.going.contains(&other.name));
            membership::hand_on(&context.root, &node, &others, |text| super::note(context, text))?
        }
        // One that can't be read keeps none from being removed.
        Err(error) => {
            super::warn(context, &format!("`{name}` may have standbys: {error:#}"));
            false
        }
    };
    stop::end(context, &node, Shutdown::Fast, None)?;
    let volumes = volumes(context, &node);
    leftover::mark(&context.root, &node)?;
    if is_missed {
        halt::keep_name(&mut node);
    }
    halt::remove(&context.root, &node)?;
    settle(context, departure);
    endpoint::settle(context, None);
    for volume in volumes.iter().filter(|_| removal.volumes) {
        match volume::users(&context.root, volume)?.first() {
            Some(other) => {
                let text = format!("the volume {} is kept: node `{other}` uses it too", volume.display());
                super::note(context, &text);
            }
            None => state::remove_volume(volume)?,
        }
    }
    Ok(volumes)
}

/// Lets no commit wait for a node that is to go, and says so.
fn let_go(context: &Context, name: &Name) -> Option<Departure> {
    let departure = match membership::let_go(&context.root, &context.lab, name) {
        Ok(departure) => departure,
        Err(error) => {
            let text = format!(
                "commits may wait for `{name}` for ever: {error:#}; to let them go: `pgbox sync off`"
            );
            super::warn(context, &text);
            return None;
        }
    };
    match &departure.rule {
        None => {}
        Some(Some(rule)) => {
            super::note(context, &format!("`{name}` leaves the lab's sync rule, which is {rule} now"))
        }
        Some(None) => {
            super::note(context, &format!("`{name}` was the last in the lab's sync rule, which goes with it"))
        }
    }
    if let Some(change) = &departure.change {
        super::tell_change(context, change);
    }
    Some(departure)
}

/// Takes a node that is gone out of the rule, and puts in order what the servers that are left keep for it.
fn settle(context: &Context, departure: Option<Departure>) {
    let (root, lab) = (&context.root, &context.lab);
    if let Some(Err(error)) = departure.map(|departure| membership::leave(root, lab, departure)) {
        super::warn(context, &format!("the lab's sync rule is as it was: {error:#}"));
    }
    match membership::settle(root, lab) {
        Ok(changes) => changes.iter().for_each(|change| super::tell_change(context, change)),
        Err(error) => super::warn(context, &format!("a slot may be left on another node: {error:#}")),
    }
}

/// Removes a node by the names of its objects alone: what was remembered of it is lost or damaged.
fn remove_remains(context: &Context, name: &Name, removal: &Removal<'_>, error: Error) -> Result<()> {
    let found = facts::remains(&context.root, &context.lab, name)?;
    if found.is_empty() {
        if !removal.dry_run {
            // One that was killed at its very end has left the directory, without its name, or that of a volume.
            context.root.node(&context.lab, name).remove()?;
            context.root.sweep_volumes(&context.lab)?;
            let departure = let_go(context, name).filter(|departure| departure.rule.is_some());
            departure.into_iter().for_each(|departure| settle(context, Some(departure)));
        }
        return Err(error);
    }
    if removal.dry_run {
        found.iter().for_each(|what| outln!("remove: {what}"));
        return Ok(());
    }
    let departure = let_go(context, name);
    halt::remove_remains(&context.root, &context.lab, name)?;
    settle(context, departure);
    endpoint::settle(context, None);
    let text = format!(
        "nothing was remembered of `{name}`: its processes were killed, and volumes are kept; see `pgbox volume ls`"
    );
    super::note(context, &text);
    Ok(())
}

fn foretell(context: &Context, node: &Node, removal: &Removal<'_>) {
    for step in node.state.plan.host.iter().rev().filter(|s| !matches!(s, HostStep::CreateVolume { .. })) {
        // Some go with others: limits with their cgroup.
        let shell = step.way_back();
        if !shell.is_empty() {
            outln!("undo: {}", step.lesson().title);
            out!("{}", commands(&shell));
        }
    }
    for volume in volumes(context, node) {
        let what = if removal.volumes { "remove with all data, unless another node uses it" } else { "keep" };
        outln!("{what}: volume {}", volume.display());
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
