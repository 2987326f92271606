//! Data that nodes have left which are gone. A node that starts on them as they are is what the one was that left them: a
//! primary, and perhaps the second one.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::takeover;
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
