//! What else is left of the cluster that some data are of, when they are to be a primary's again.
//!
//! The rule that surprises people: names say nothing here. Others may have taken the place of the one that took theirs, and
//! data outlive their nodes under any name. So whatever has the same origin counts, and whatever nobody knows the origin of:
//! a question too many is better than a second primary.

use std::{
    cmp::Reverse,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{
    cluster,
    node::Node,
    volume::{self, Content, content},
    wal::{Place, are_kin},
};
use crate::{
    hint::advise,
    postgres::{backup, datadir},
    spec::Name,
    state::{Role, Root},
};

/// In the order in which they are asked for what they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Whether it runs or not; also one whose place is about to be taken.
    Primary,
    /// Of a node that is gone.
    Standby,
    /// An old primary in whose place another one was promoted that is gone.
    Superseded,
    /// A volume that a primary has left.
    Volume,
    /// The same of a standby.
    StandbyVolume,
}

/// Somebody who may have more.
#[derive(Debug, Clone)]
pub struct Rival {
    pub what: What,
    /// Of the node, or of the volume.
    pub name: Name,
    /// Where its data are in the volume, if not at its top.
    below: PathBuf,
    /// Where its history has come to, if that can be read.
    timeline: Option<u32>,
}

impl Rival {
    /// What to do with it first.
    pub fn way_out(&self) -> String {
        let name = &self.name;
        match self.what {
            What::Primary => format!("look after `{name}` first; if nobody needs it: `pgbox rm {name}`"),
            What::Standby | What::Superseded => {
                format!("first promote `{name}`, which may have more: `pgbox promote {name}`")
            }
            What::Volume => brings_back(name, &self.below),
            What::StandbyVolume => {
                format!("if nobody needs what is in the volume `{name}`: `pgbox volume rm {name}`")
            }
        }
    }
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = &self.name;
        match self.what {
            What::Primary => write!(f, "the primary `{name}`"),
            What::Standby => write!(f, "the standby `{name}`"),
            What::Superseded => write!(f, "the old primary `{name}`"),
            What::Volume => write!(f, "the volume `{name}`, which a primary has left"),
            What::StandbyVolume => write!(f, "the volume `{name}`, which a standby has left"),
        }
    }
}

/// Who may have more than this node and the nodes that follow it.
///
/// # Errors
/// When the volumes can't be listed.
pub fn of(root: &Root, nodes: &[Node], own: &Node) -> Result<Vec<Rival>> {
    let head = cluster::head_of(nodes, &own.name);
    let is_other = |node: &Node| {
        node.name != own.name && (head.is_none() || cluster::head_of(nodes, &node.name) != head)
    };
    let place = Place::of(&own.state).ok();
    let mut rivals = among_nodes(nodes, place, is_other);
    rivals.extend(among_volumes(root, &own.lab, nodes, place)?);
    Ok(sorted(rivals))
}

/// # Errors
/// When one of these is a primary: nobody else becomes one beside it, whatever is given up.
pub fn refuse_primary(rivals: &[Rival], own: &Node) -> Result<()> {
    match rivals.iter().find(|rival| rival.what == What::Primary) {
        Some(primary) => Err(advise(
            format!(
                "the data of {primary} are of the same cluster as those of `{}`, or nobody can tell: there would be two",
                own.name
            ),
            primary.way_out(),
        )),
        None => Ok(()),
    }
}

/// Who may have more than the data in a directory.
///
/// # Errors
/// As [`of`].
pub fn of_data(root: &Root, lab: &Name, nodes: &[Node], data: &Path) -> Result<Vec<Rival>> {
    let place = Some(Place::alone(data));
    let mut rivals = among_volumes(root, lab, nodes, place)?;
    rivals.retain(|rival| {
        let top = volume::data(root, lab, &rival.name);
        data.strip_prefix(&top).ok() != Some(&rival.below)
    });
    rivals.extend(among_nodes(nodes, place, |node| node.state.data.as_deref() != Some(data)));
    Ok(sorted(rivals))
}

/// Data in a volume that no node has.
pub struct Unused {
    pub volume: Name,
    /// The volume's directory.
    top: PathBuf,
    /// From there on; mostly empty.
    pub below: PathBuf,
    pub data: PathBuf,
    pub content: Content,
}

impl Unused {
    pub fn place(&self) -> Place<'_> {
        Place::below(&self.top, &self.data)
    }
}

/// The command that brings back the node that has left its data there.
pub fn back(volume: &Name, below: &Path) -> String {
    // Where that is mounted in the node is nothing to the data.
    const TARGET: &str = "/var/lib/postgresql/data";
    match below.as_os_str().is_empty() {
        true => format!("`pgbox run {volume}`"),
        false => {
            format!("`pgbox run {volume} -v {volume}:{TARGET} -e PGDATA={TARGET}/{}`", below.display())
        }
    }
}

/// The same, and what for.
pub fn brings_back(volume: &Name, below: &Path) -> String {
    format!("{} brings the primary back that has left the volume `{volume}`", back(volume, below))
}

/// The data in volumes that no node has, of this origin, or of one that can't be read. Data in a directory of the host are not
/// found: only the node knew where.
///
/// # Errors
/// When the volumes can't be listed.
pub fn unused(root: &Root, lab: &Name, nodes: &[Node], origin: Option<u64>) -> Result<Vec<Unused>> {
    let mut all = Vec::new();
    for volume in root.volumes(lab)? {
        let top = volume::data(root, lab, &volume);
        let found = |(below, content): (PathBuf, Content)| {
            let data = if below.as_os_str().is_empty() { top.clone() } else { top.join(&below) };
            Unused { volume: volume.clone(), top: top.clone(), below, data, content }
        };
        all.extend(data_in(&top).into_iter().map(found));
    }
    all.retain(|one| {
        let is_used = nodes.iter().any(|node| node.state.data.as_ref() == Some(&one.data));
        !is_used && are_kin(origin, one.place().origin()) != Some(false)
    });
    Ok(all)
}

/// Where data directories are in a volume, and what is in them: at its top, or not far below (PGDATA in a directory of it, as
/// many do). No link is followed.
fn data_in(top: &Path) -> Vec<(PathBuf, Content)> {
    const DEPTH: usize = 2;
    let mut all = vec![(PathBuf::new(), content(top))];
    let mut found = Vec::new();
    for _ in 0..=DEPTH {
        let (data, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, content)| *content != Content::None);
        found.extend(data.into_iter().filter(|(rest, _)| !is_backup(&top.join(rest))));
        // What is below a data directory is its own.
        let below = others.iter().flat_map(|(rest, _)| directories(top, rest));
        all = below.map(|rest| (rest.clone(), content(&top.join(rest)))).collect();
    }
    found
}

/// Whether a directory holds a base backup that no server has started from: it has nothing that is its own. A primary that crashed
/// in an exclusive backup (before version 15) has such a label, too, and has left its pid.
fn is_backup(data: &Path) -> bool {
    let has = |name: &str| fs::symlink_metadata(data.join(name)).is_ok();
    has(backup::LABEL) && !has("postmaster.pid")
}

fn directories(top: &Path, rest: &Path) -> Vec<PathBuf> {
    // Where there are more, nobody has made it for data directories.
    const MOST: usize = 1000;
    let entries = fs::read_dir(top.join(rest)).into_iter().flatten().flatten().take(MOST);
    let may_be = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        // What failed, or is not finished, has never been anybody's data.
        let is_aside = name.as_encoded_bytes().starts_with(b".") || datadir::failure_number(&name).is_some();
        !is_aside && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    entries.filter(may_be).map(|entry| rest.join(entry.file_name())).collect()
}

fn among_nodes(nodes: &[Node], own: Option<Place>, is_other: impl Fn(&Node) -> bool) -> Vec<Rival> {
    let origin = own.and_then(Place::origin);
    let is_there = |name: &Name| nodes.iter().any(|node| node.name == *name);
    let rival = |node: &Node| {
        // Whoever follows another one has no more than that.
        if cluster::head_of(nodes, &node.name).is_some_and(|head| head != node.name) {
            return None;
        }
        let what = match node.state.role() {
            Role::Primary => What::Primary,
            Role::Superseded { by } if is_there(&by) => What::Primary,
            Role::Superseded { .. } => What::Superseded,
            Role::Standby { .. } => What::Standby,
            Role::Command => return None,
        };
        let place = Place::of(&node.state).ok();
        let may_be = are_kin(origin, node.origin()) != Some(false);
        let rival = Rival { what, name: node.name.clone(), below: PathBuf::new(), timeline: timeline(place) };
        (may_be && may_have_more(&rival, own)).then_some(rival)
    };
    nodes.iter().filter(|node| is_other(node)).filter_map(rival).collect()
}

fn among_volumes(root: &Root, lab: &Name, nodes: &[Node], own: Option<Place>) -> Result<Vec<Rival>> {
    let volumes = unused(root, lab, nodes, own.and_then(Place::origin))?.into_iter();
    let rivals = volumes.map(|one| {
        let what = if one.content == Content::Standby { What::StandbyVolume } else { What::Volume };
        let timeline = timeline(Some(one.place()));
        Rival { what, name: one.volume, below: one.below, timeline }
    });
    Ok(rivals.filter(|rival| may_have_more(rival, own)).collect())
}

/// Whoever is on an earlier timeline has what the later one has as well, or what was given up when that began.
fn may_have_more(rival: &Rival, own: Option<Place>) -> bool {
    let is_earlier = rival.timeline.zip(timeline(own)).is_some_and(|(theirs, own)| theirs < own);
    rival.what == What::Primary || !is_earlier
}

fn sorted(mut rivals: Vec<Rival>) -> Vec<Rival> {
    rivals.sort_by_key(|rival| (rival.what, Reverse(rival.timeline), rival.name.clone()));
    rivals
}

fn timeline(place: Option<Place>) -> Option<u32> {
    Some(place?.timeline().ok()?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_backup_is_nobodys_data() {
        let top = tempfile::tempdir().unwrap();
        for (dir, files) in [
            ("left", &["PG_VERSION"][..]),
            ("backup", &["PG_VERSION", backup::LABEL]),
            ("crashed", &["PG_VERSION", backup::LABEL, "postmaster.pid"]),
        ] {
            fs::create_dir(top.path().join(dir)).unwrap();
            files.iter().for_each(|file| fs::write(top.path().join(dir).join(file), "18\n").unwrap());
        }
        let mut found: Vec<PathBuf> = data_in(top.path()).into_iter().map(|(rest, _)| rest).collect();
        found.sort();
        assert_eq!(found, ["crashed", "left"].map(PathBuf::from));
    }
}
