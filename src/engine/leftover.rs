//! Data that nodes have left which are gone. A node that starts on them as they are is what the one was that left them: a
//! primary, and perhaps the second one.

use anyhow::Result;

use super::takeover;
use crate::{
    facts::{
        history::counted,
        lab::content,
        node::{self, Node},
        wal::Place,
    },
    plan::changes::Data,
    state::{self, Root, VolumeState},
};

/// Notes beside every volume of this cluster that no node uses, and that a primary has left, that `promoted` is about to take
/// its place. Gives what of them that one lacks, for people. Data that did not begin at the top of their volume are not found:
/// only the node knew where.
pub fn mark(root: &Root, promoted: &Node) -> Result<Vec<String>> {
    let (name, lab) = (&promoted.name, &promoted.lab);
    let system = Place::of(&promoted.state)?.control()?.system;
    let received = takeover::received(&promoted.login()?)?;
    let nodes = node::all(root, lab)?;
    let mut lacks = Vec::new();
    for volume in root.volumes(lab)? {
        let home = root.volume_dir(lab, &volume);
        let data = home.join("data");
        let place = Place::alone(&data);
        let is_used = nodes.iter().any(|node| node.state.data.as_ref() == Some(&data));
        let is_ours = place.control().is_ok_and(|control| control.system == system);
        if is_used || !is_ours || content(&data) == Data::Standby {
            continue;
        }
        let known = state::load_volume(&home)?.unwrap_or_else(VolumeState::unknown);
        state::save_volume(&home, &VolumeState { superseded_by: Some(name.clone()), ..known })?;
        match place.lost(received).map(|scan| scan.commits - scan.idle) {
            Ok(0) => {}
            Ok(commits) => lacks.push(format!(
                "the volume `{volume}`, which a primary has left, has {} that `{name}` lacks",
                counted(commits, "transaction")
            )),
            Err(error) => lacks.push(format!(
                "nobody knows what the volume `{volume}`, which a primary has left, has and `{name}` lacks: {error:#}"
            )),
        }
    }
    Ok(lacks)
}
