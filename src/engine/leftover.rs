//! Data that nodes have left which are gone. A node that starts on them as they are is what the one was that left them: a
//! primary, and perhaps the second one.

use std::{
    cmp::Reverse,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{failover, takeover};
use crate::{
    facts::{
        history::counted,
        node::{self, Node},
        rival,
        wal::Place,
    },
    plan::changes::Data,
    postgres::lsn::Lsn,
    spec::Name,
    state::{self, Root, VolumeState},
};

/// Notes beside every volume of this cluster that no node uses, and that a primary has left, that `promoted` is about to take
/// its place. Gives what of them that one lacks, for people.
pub fn mark(root: &Root, promoted: &Node) -> Result<Vec<String>> {
    let received = takeover::received(&promoted.login()?)?;
    let left = note(root, promoted)?;
    Ok(left.iter().filter_map(|(volume, data)| lack(volume, data, promoted, received)).collect())
}

/// The same of a server that need not run. Gives the volumes, and where their data are.
///
/// # Errors
/// When a volume can't be marked, or nobody knows which ones are of the cluster.
pub fn note(root: &Root, promoted: &Node) -> Result<Vec<(Name, PathBuf)>> {
    let lab = &promoted.lab;
    let system = Place::of(&promoted.state)?.control()?.system;
    let mut noted = Vec::new();
    for (volume, data, content) in rival::unused(root, lab, &node::all(root, lab)?, Some(system))? {
        if content == Data::Standby {
            continue;
        }
        let home = root.volume_dir(lab, &volume);
        let known = state::load_volume(&home)?.unwrap_or_else(VolumeState::unknown);
        state::save_volume(&home, &VolumeState { superseded_by: Some(promoted.name.clone()), ..known })?;
        noted.push((volume, data));
    }
    Ok(noted)
}

/// Somebody of a cluster without a primary who has more than the one that is to be promoted.
pub struct Ahead {
    /// A volume that no node uses, or else a standby.
    pub is_volume: bool,
    pub name: Name,
    commits: u64,
}

impl Ahead {
    pub fn told(&self, target: &Name) -> String {
        let what = if self.is_volume { "the volume " } else { "" };
        format!("{what}`{}` has {} that `{target}` lacks", self.name, counted(self.commits, "transaction"))
    }
}

/// Those who have more than a standby whose primary is gone, as far as that can be counted, most first.
///
/// # Errors
/// When the standby can't be asked, or the volumes can't be listed.
pub fn ahead(root: &Root, target: &Node) -> Result<Vec<Ahead>> {
    let received = takeover::received(&target.login()?)?;
    let system = Place::of(&target.state)?.control()?.system;
    let count = |place: Place<'_>| place.unreceived(received).map_or(0, |scan| scan.commits - scan.idle);
    let mut ahead = Vec::new();
    for (name, data, _) in rival::unused(root, &target.lab, &node::all(root, &target.lab)?, Some(system))? {
        let known = state::load_volume(&root.volume_dir(&target.lab, &name))?;
        // What one has more whose place was taken was given up then.
        if known.is_none_or(|known| known.superseded_by.is_none()) {
            ahead.push(Ahead { is_volume: true, name, commits: count(Place::alone(&data)) });
        }
    }
    for node in failover::orphans(root, target)? {
        let commits = count(Place::of(&node.state)?);
        ahead.push(Ahead { is_volume: false, name: node.name, commits });
    }
    ahead.retain(|other| other.commits > 0);
    ahead.sort_by_key(|other| Reverse(other.commits));
    Ok(ahead)
}

/// What the data in a volume have that the promoted one lacks, if anything.
fn lack(volume: &Name, data: &Path, promoted: &Node, received: Lsn) -> Option<String> {
    let name = &promoted.name;
    match Place::alone(data).lost(received).map(|scan| scan.commits - scan.idle) {
        Ok(0) => None,
        Ok(commits) => Some(format!(
            "the volume `{volume}`, which a primary has left, has {} that `{name}` lacks",
            counted(commits, "transaction")
        )),
        Err(error) => Some(format!(
            "nobody knows what the volume `{volume}`, which a primary has left, has and `{name}` lacks: {error:#}"
        )),
    }
}
