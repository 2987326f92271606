//! Data that nodes have left which are gone. A node that starts on them as they are is what the one was that left them: a
//! primary, and perhaps the second one.

use std::{cmp::Reverse, path::PathBuf};

use anyhow::Result;

use super::{failover, takeover};
use crate::{
    facts::{
        history::counted,
        node::{self, Node},
        rival::{self, Unused},
        volume::Content,
        wal::Place,
    },
    spec::Name,
    state::{self, Role, Root, VolumeState},
};

/// Notes beside every volume of this cluster that no node uses, and that a primary has left, that `promoted` is about to take
/// its place. That one need not run.
///
/// # Errors
/// When a volume can't be marked, or nobody knows which ones are of the cluster.
pub fn note(root: &Root, promoted: &Node) -> Result<()> {
    let lab = &promoted.lab;
    let system = Place::of(&promoted.state)?.control()?.system;
    for Unused { volume, content, .. } in rival::unused(root, lab, &node::all(root, lab)?, Some(system))? {
        if content == Content::Standby {
            continue;
        }
        let home = root.volume_dir(lab, &volume);
        let known = state::load_volume(&home)?.unwrap_or_else(VolumeState::unknown);
        state::save_volume(&home, &VolumeState { superseded_by: Some(promoted.name.clone()), ..known })?;
    }
    Ok(())
}

/// Keeps beside the data of an old primary that is to be removed that another one has taken its place: they stay when it goes, and
/// must not come up under the next one.
pub fn mark(root: &Root, node: &Node) -> Result<()> {
    let Role::Superseded { by } = node.state.role() else { return Ok(()) };
    let home = root.home_of(&node.state);
    let Some(volume) = home.filter(|home| home.exists()) else { return Ok(()) };
    state::save_volume(&volume, &VolumeState::of(&node.state, Some(by)))
}

/// Somebody of a cluster without a primary who has more than the one that is to be promoted, or may have.
pub struct Ahead {
    /// A volume that no node uses, and where in it the data are; or else a standby.
    pub volume: Option<PathBuf>,
    pub name: Name,
    /// How many transactions more; an error: nobody knows.
    pub commits: Result<u64>,
}

impl Ahead {
    pub fn told(&self, target: &Name) -> String {
        let what = if self.volume.is_some() { "the volume " } else { "" };
        let name = &self.name;
        match &self.commits {
            Ok(commits) => {
                format!("{what}`{name}` has {} that `{target}` lacks", counted(*commits, "transaction"))
            }
            Err(error) => format!("nobody knows what {what}`{name}` has and `{target}` lacks: {error:#}"),
        }
    }
}

/// Those who have more than a standby whose primary is gone, most first, and then those of whom nobody knows.
///
/// # Errors
/// When the standby can't be asked, or the volumes can't be listed.
pub fn ahead(root: &Root, target: &Node) -> Result<Vec<Ahead>> {
    let received = takeover::received(target)?;
    let system = Place::of(&target.state)?.control()?.system;
    let count = |place: Place<'_>| place.unreceived(received).map(|scan| scan.missed());
    let mut ahead = Vec::new();
    for one in rival::unused(root, &target.lab, &node::all(root, &target.lab)?, Some(system))? {
        let known = state::load_volume(&root.volume_dir(&target.lab, &one.volume))?;
        // What one has more whose place was taken was given up then.
        if known.is_none_or(|known| known.superseded_by.is_none()) {
            let commits = count(one.place());
            ahead.push(Ahead { volume: Some(one.below), name: one.volume, commits });
        }
    }
    for node in failover::orphans(root, target)? {
        let commits = Place::of(&node.state).and_then(count);
        ahead.push(Ahead { volume: None, name: node.name, commits });
    }
    ahead.retain(|other| !matches!(other.commits, Ok(0)));
    ahead.sort_by_key(|other| Reverse(other.commits.as_ref().map_or(0, |commits| *commits)));
    Ok(ahead)
}
