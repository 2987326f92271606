//! Named volumes as they are on disk: whose they are, what is in them, and how much.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::node::Node;
use crate::{
    hint::advise,
    plan,
    postgres::{datadir, standby},
    spec::Name,
    state::{Plan, Root},
    step::InnerStep,
    sys::{fs as sys, tree},
};

/// A named volume.
pub struct Volume {
    pub lab: Name,
    pub name: Name,
    pub path: PathBuf,
    /// Bytes that it takes on disk.
    pub size: u64,
    /// Major version of the PostgreSQL cluster in it.
    pub version: Option<u32>,
    /// The nodes, of any lab, that have it mounted. They need not run: none could start again without its data.
    pub users: Vec<Name>,
    /// What is kept of first starts that failed.
    pub failed: Vec<PathBuf>,
}

/// The volumes of a lab.
pub fn all(root: &Root, lab: &Name) -> Result<Vec<Volume>> {
    root.volumes(lab)?.iter().map(|name| look(root, lab, name)).collect()
}

fn look(root: &Root, lab: &Name, name: &Name) -> Result<Volume> {
    let path = root.volume_dir(lab, name);
    let data = path.join("data");
    Ok(Volume {
        lab: lab.clone(),
        name: name.clone(),
        size: size(&path).with_context(|| format!("measure {}", path.display()))?,
        // Whatever stands there instead of a version is no reason to hide the other volumes.
        version: super::data_version(&data).ok().flatten(),
        users: users(root, &path)?,
        failed: failed(&data),
        path,
    })
}

/// Directories, as the node sees them, that its data need and that are in no volume, so that they go with the container:
/// tablespaces, and a write-ahead log outside the data directory. Both are symbolic links in the data (PostgreSQL manual 73.1).
///
/// # Errors
/// When the links can't be read: then nobody knows what would go.
pub fn in_no_volume(plan: &Plan) -> Result<Vec<PathBuf>> {
    let Some(data) = plan::data_below(plan) else { return Ok(Vec::new()) };
    let mut linked = Vec::new();
    for path in ["", "pg_tblspc"].map(|dir| data.rest.join(dir)) {
        let found = links(&data.top, &path);
        linked.extend(found.with_context(|| format!("read {}", data.top.join(&path).display()))?);
    }
    // What the node has put there may be anything; what is no directory of its own is none that it would lose.
    let is_in_upper = |target: &PathBuf| match plan::found_below(plan, target) {
        Some(below) => {
            plan::mount_of(plan, target).is_none() && sys::open_dir_below(&below.top, &below.rest).is_ok()
        }
        None => false,
    };
    linked.retain(is_in_upper);
    Ok(linked)
}

/// Where the symbolic links in a directory lead; none, where it is not there.
fn links(top: &Path, path: &Path) -> io::Result<Vec<PathBuf>> {
    let dir = match sys::open_dir_below(top, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        dir => dir?,
    };
    let mut targets = Vec::new();
    for name in tree::names(&dir)? {
        match sys::readlinkat(&dir, &name) {
            Ok(target) => targets.push(PathBuf::from(OsString::from_vec(target))),
            // No link, or gone meanwhile.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(targets)
}

/// Refuses to remove a container with a part of the data in it, of which the rest would stay.
pub fn refuse_loss(node: &Node) -> Result<()> {
    let inside = in_no_volume(&node.state.plan).with_context(|| {
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

/// Where a new node of this name would have its data.
pub fn data(root: &Root, lab: &Name, name: &Name) -> PathBuf {
    root.volume_dir(lab, name).join("data")
}

/// What is in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    None,
    Primary,
    Standby,
}

pub fn content(dir: &Path) -> Content {
    // Only whether they are there counts: a container may have made them anything.
    let has = |file: &str| dir.join(file).symlink_metadata().is_ok();
    match (has("PG_VERSION"), has(standby::SIGNAL)) {
        (false, _) => Content::None,
        (true, false) => Content::Primary,
        (true, true) => Content::Standby,
    }
}

/// What a new node of this name would find.
pub fn content_of(root: &Root, lab: &Name, name: &Name) -> Content {
    content(&data(root, lab, name))
}

/// The nodes of all labs that have the volume or a part of it mounted.
pub fn users(root: &Root, volume: &Path) -> Result<Vec<Name>> {
    let mut users = Vec::new();
    for lab in root.labs()? {
        for (name, state) in super::nodes(root, &lab)? {
            let uses = |step: &InnerStep| match step {
                InnerStep::Bind { source, .. } => source.starts_with(volume) || volume.starts_with(source),
                _ => false,
            };
            if state.plan.inner.iter().any(uses) {
                users.push(name);
            }
        }
    }
    Ok(users)
}

fn failed(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data).into_iter().flatten().flatten();
    let kept = entries.filter(|entry| datadir::failure_number(&entry.file_name()).is_some());
    let mut paths: Vec<PathBuf> = kept.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Bytes on disk below `dir`. What a server removes meanwhile is not counted.
fn size(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    Ok(bytes)
}
