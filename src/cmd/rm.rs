//! `pgbox rm`: the host steps backwards, and the node's directory.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context as _, Error, Result};

use super::{Context, each, endpoint, need_root, which};
use crate::{
    cli,
    engine::{
        halt::{self, Shutdown},
        membership::{self, Departure},
        slots, takeover,
    },
    facts::{
        self, cluster,
        node::{self, Node},
        volume,
    },
    hint::{self, advise},
    spec::Name,
    state::{self, Role, VolumeState},
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
    each(context, &args.nodes, |name| {
        if let (false, Ok(node)) = (args.volumes, node::find(&context.root, &context.lab, name)) {
            refuse_loss(&node)?;
        }
        let volumes = remove(context, args, name)?;
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

/// Refuses to remove a container with a part of the data in it, of which the rest would stay.
pub fn refuse_loss(node: &Node) -> Result<()> {
    let inside = volume::in_no_volume(&node.state.plan).with_context(|| {
        format!("whether `{}` has a part of its data in no volume is not known", node.name)
    })?;
    let shown = |path: &PathBuf| path.display().to_string();
    match inside.iter().map(shown).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => Ok(()),
        inside => Err(advise(
            format!(
                "`{0}` has a part of its data in no volume: {inside} would go with the container, and the rest of the data \
                 be of no use",
                node.name
            ),
            format!(
                "to remove all data: `pgbox rm -f -v {0}`; a tablespace can be emptied and dropped (ALTER TABLE ... SET \
                 TABLESPACE pg_default), the next one be in a volume (`pgbox run -v NAME:DIR`)",
                node.name
            ),
        )),
    }
}

/// Removes one of the nodes that are to go; gives the volumes that it had.
pub fn remove(context: &Context, args: &cli::Rm, name: &Name) -> Result<Vec<PathBuf>> {
    let _lock = context.lock()?;
    let mut node = match node::find(&context.root, &context.lab, name) {
        Err(error) if args.force => {
            return remove_remains(context, args, name, error).map(|()| Vec::new());
        }
        other => other?,
    };
    if node.pidfd.is_some() && !args.force {
        return Err(advise(
            format!("node `{name}` runs"),
            format!("stop it first, or use: pgbox rm --force {name}"),
        ));
    }
    if args.dry_run {
        foretell(context, args, &node);
        return Ok(Vec::new());
    }
    // Before it ends: no commit may hang, and nobody wait for WAL from a node that is gone.
    let departure = let_go(context, name);
    let is_missed = hand_on(context, &node, &args.nodes)?;
    if node.pidfd.is_some() {
        if halt::thaw(&context.root, &node)? {
            super::note(context, &format!("`{name}` was frozen, and is thawed to end"));
        }
        halt::end(&node, Shutdown::Fast, Duration::from_secs(node.state.spec.stop_timeout))?;
    }
    let volumes = volumes(context, &node);
    remember_loser(context, &node)?;
    if is_missed {
        keep_name(&mut node);
    }
    halt::remove(&context.root, &node)?;
    settle(context, departure);
    endpoint::settle(context, None);
    for volume in volumes.iter().filter(|_| args.volumes) {
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

/// Keeps beside the data of an old primary that another one has taken its place: they stay when the node goes, and must
/// not come up under the next one.
fn remember_loser(context: &Context, node: &Node) -> Result<()> {
    let Role::Superseded { by } = node.state.role() else { return Ok(()) };
    let home = node.state.data.as_deref().and_then(|data| context.root.volume_home(&node.lab, data));
    let Some(volume) = home.filter(|home| home.exists()) else { return Ok(()) };
    let (image, libc) = (node.state.image.clone(), node.state.libc.clone());
    let state = VolumeState { version: VolumeState::VERSION, image, libc, superseded_by: Some(by) };
    state::save_volume(&volume, &state)
}

/// Has the standbys of a standby follow the server that it followed itself. Those of a primary can only be told of: true if
/// there are any.
fn hand_on(context: &Context, node: &Node, going: &[Name]) -> Result<bool> {
    let mut all = match node::all(&context.root, &context.lab) {
        Ok(all) => all,
        // One that can't be read keeps none from being removed.
        Err(error) => {
            super::warn(context, &format!("`{}` may have standbys: {error:#}", node.name));
            return Ok(false);
        }
    };
    all.retain(|other| other.name != node.name && !going.contains(&other.name));
    let follows = |other: &&Node| other.state.role().follows(&node.name);
    let followers: Vec<&Node> = all.iter().filter(follows).collect();
    let upstream = match node.state.role() {
        Role::Standby { of } => node::find(&context.root, &context.lab, &of).ok(),
        _ => None,
    };
    for follower in &followers {
        let (name, gone) = (&follower.name, &node.name);
        let text = match &upstream {
            Some(of) => {
                takeover::turn(&context.root, follower, &of.name, &of.login()?)?;
                format!("`{name}` follows `{}` now", of.name)
            }
            None => format!("`{name}` followed `{gone}`; {}", cluster::way_out(&all, follower)),
        };
        super::note(context, &text);
    }
    if let (Some(of), false) = (&upstream, followers.is_empty()) {
        // While the slot of the one that goes still keeps what they may lack.
        slots::settle(&cluster::below(&context.root, &context.lab, &of.name)?)?;
    }
    Ok(upstream.is_none() && !followers.is_empty())
}

/// Leaves the name of a server that is gone in the hosts file, for the standbys that go on looking for it: without the line
/// they ask the name servers outside, and hear of no promotion meanwhile: one moment is enough. It goes when its address is another node's.
fn keep_name(node: &mut Node) {
    node.state.plan.host.retain(|step| !matches!(step, HostStep::AddHostName { .. }));
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
    let left = departure.map_or(Ok(()), |departure| membership::leave(root, lab, departure));
    match left.and_then(|()| membership::settle(root, lab)) {
        Ok(changes) => changes.iter().for_each(|change| super::tell_change(context, change)),
        Err(error) => super::warn(context, &format!("a slot may be left on another node: {error:#}")),
    }
}

/// Removes a node by the names of its objects alone: what was remembered of it is lost or damaged.
fn remove_remains(context: &Context, args: &cli::Rm, name: &Name, error: Error) -> Result<()> {
    let found = facts::remains(&context.root, &context.lab, name)?;
    if found.is_empty() {
        if !args.dry_run {
            // One that was killed at its very end has left the directory, without its name, or that of a volume.
            context.root.node(&context.lab, name).remove()?;
            context.root.sweep_volumes(&context.lab)?;
        }
        return Err(error);
    }
    if args.dry_run {
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

fn foretell(context: &Context, args: &cli::Rm, node: &Node) {
    for step in node.state.plan.host.iter().rev().filter(|s| !matches!(s, HostStep::CreateVolume { .. })) {
        outln!("undo: {}", step.lesson().title);
    }
    for volume in volumes(context, node) {
        let what = if args.volumes { "remove with all data, unless another node uses it" } else { "keep" };
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
