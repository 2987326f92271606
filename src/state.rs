//! What pgbox remembers, on disk: small JSON files below the root, written whole and renamed into place, so
//! that a reader sees the old one or the new one; beside them a node's journal, short lines in place. Changes
//! happen under the lab's lock, and under that of the root where they take something that all labs share (flock(2)).
//!
//! The rule that surprises people: what is *running* is never read from here; the kernel is asked (see `facts`).

use std::{
    fs, io,
    net::SocketAddrV4,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

mod hold;
mod lab;
mod lock;
mod node_dir;
mod progress;
mod secret;
mod volume;

pub use hold::{Hold, LetGo};
pub use lab::{Endpoint, LabState, Leads, PublishedEndpoints};
pub use lock::Lock;
pub use node_dir::{LOG, NodeDir, Stamp};
pub use progress::{LastStart, Progress};
pub use secret::{read_secret, replace_secret, write_secret};
pub use volume::{VolumeState, load_volume, remove_volume, save_volume};

use crate::{
    postgres::{
        launch::{InitConfig, Payload, PostgresPayload},
        lsn::Lsn,
    },
    spec::{Name, NodeSpec, SERVER_PORT},
    step::{AfterStep, HostStep, InnerStep},
    sys::{self, process::ProcessId},
};

/// The version of the files below; a newer one is refused, not guessed at.
pub const VERSION: u32 = 2;

/// Everything that was decided about a node before its first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub host: Vec<HostStep>,
    pub inner: Vec<InnerStep>,
    pub after: Vec<AfterStep>,
    /// What the node's pid 1 is to do.
    pub init: InitConfig,
}

/// A node, as remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeState {
    pub version: u32,
    pub spec: NodeSpec,
    /// The image's manifest digest.
    pub image: String,
    /// The C library of that image; its collations shape every index on text.
    #[serde(default)]
    pub libc: Option<String>,
    /// The node's address for life, with the lab's prefix.
    pub address: Ipv4Net,
    /// Where PGDATA is on the host, unless the node runs another command.
    pub data: Option<PathBuf>,
    pub plan: Plan,
    /// pid 1 of the node when it was started last. This, [`boot_id`](Self::boot_id) and [`started`](Self::started) are what the
    /// journal has as its [`LastStart`].
    pub init: Option<ProcessId>,
    /// The boot in which it was started last.
    pub boot_id: String,
    /// The node that was promoted in this one's place.
    #[serde(default)]
    pub superseded_by: Option<Name>,
    /// From where on its commits wait for whom it was told last: what is before may have been acknowledged without them.
    /// `None` while nobody has seen it go by that.
    #[serde(default)]
    pub sync_since: Option<Lsn>,
    /// When it was created and started last, in seconds since 1970.
    pub created: u64,
    pub started: u64,
}

/// What a node is in its cluster: a primary with everything that follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    Primary,
    /// It follows another node, which may be a standby itself.
    Standby {
        of: Name,
    },
    /// An old primary whose place another one has taken. It must not come up again as it is.
    Superseded {
        by: Name,
    },
    /// It runs something else than a server.
    Command,
}

impl Role {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby { .. } => "standby",
            Self::Superseded { .. } => "superseded",
            Self::Command => "command",
        }
    }

    /// Whether it is a standby of this node.
    pub fn follows(&self, of: &Name) -> bool {
        matches!(self, Self::Standby { of: above } if above == of)
    }
}

impl NodeState {
    pub const VERSION: u32 = VERSION;

    /// Takes over what the journal has.
    pub fn was_started(&mut self, start: LastStart) {
        (self.init, self.boot_id, self.started) = (Some(start.init), start.boot_id, start.started);
    }

    pub fn role(&self) -> Role {
        match (self.postgres(), &self.superseded_by, &self.spec.follow) {
            (None, ..) => Role::Command,
            (_, Some(by), _) => Role::Superseded { by: by.clone() },
            (_, None, Some(follow)) => Role::Standby { of: follow.of.clone() },
            (_, None, None) => Role::Primary,
        }
    }

    /// Whether it is a standby that is behind on purpose. Commits do not begin to wait for it unless the user says so.
    pub fn applies_late(&self) -> bool {
        self.spec.follow.as_ref().and_then(|follow| follow.delay_ms).is_some_and(|delay| delay > 0)
    }

    /// The server that the node runs, unless it runs another command.
    pub fn postgres(&self) -> Option<&PostgresPayload> {
        match &self.plan.init.payload {
            Payload::Postgres(postgres) => Some(postgres),
            Payload::Command { .. } => None,
        }
    }

    /// Where that one answers.
    pub fn server(&self) -> Option<SocketAddrV4> {
        self.postgres().map(|_| SocketAddrV4::new(self.address.addr(), SERVER_PORT))
    }

    /// As [`postgres`](Self::postgres), to be changed.
    pub fn postgres_mut(&mut self) -> Option<&mut PostgresPayload> {
        match &mut self.plan.init.payload {
            Payload::Postgres(postgres) => Some(postgres),
            Payload::Command { .. } => None,
        }
    }
}

/// The directories below one root.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn lab_dir(&self, lab: &Name) -> PathBuf {
        self.0.join("labs").join(lab)
    }

    pub fn node(&self, lab: &Name, node: &Name) -> NodeDir {
        NodeDir(self.lab_dir(lab).join("nodes").join(node))
    }

    /// What the lab's writers acknowledged (see `drive`).
    pub fn drive_dir(&self, lab: &Name) -> PathBuf {
        self.lab_dir(lab).join("drive")
    }

    /// The file that all nodes of a lab see as /etc/hosts.
    pub fn hosts_file(&self, lab: &Name) -> PathBuf {
        self.lab_dir(lab).join("hosts")
    }

    /// A named volume: its data is in `data`, what is known of it beside that.
    pub fn volume_dir(&self, lab: &Name, volume: &Name) -> PathBuf {
        self.volumes_dir(lab).join(volume)
    }

    /// Where all volumes of a lab are.
    pub fn volumes_dir(&self, lab: &Name) -> PathBuf {
        self.0.join("volumes").join(lab)
    }

    /// The directory of the named volume whose data is at `data`, where pgbox keeps what it knows of it. `None` for
    /// any other place: beside it would be a directory of the user, or one that the container itself can write,
    /// where a symlink would lead root anywhere.
    pub fn volume_home(&self, lab: &Name, data: &Path) -> Option<PathBuf> {
        let home = data.parent()?;
        let named = home.parent() == Some(&self.0.join("volumes").join(lab));
        (named && data.file_name()? == "data").then(|| home.to_owned())
    }

    /// The same of the data of a node.
    pub fn home_of(&self, node: &NodeState) -> Option<PathBuf> {
        self.volume_home(&node.spec.lab, node.data.as_deref()?)
    }

    pub fn labs(&self) -> Result<Vec<Name>> {
        names_in(&self.0.join("labs"))
    }

    pub fn nodes(&self, lab: &Name) -> Result<Vec<Name>> {
        names_in(&self.lab_dir(lab).join("nodes"))
    }

    /// Removes what killed commands have left of a lab that has no nodes any more. The caller holds its lock.
    pub fn sweep_lab(&self, lab: &Name) -> Result<()> {
        match self.nodes(lab)?.is_empty() {
            true => remove_tree(&self.lab_dir(lab)),
            false => Ok(()),
        }
    }

    /// The named volumes of a lab, also of one that has no nodes any more.
    pub fn volumes(&self, lab: &Name) -> Result<Vec<Name>> {
        names_in(&self.volumes_dir(lab))
    }

    /// The labs that have volumes.
    pub fn volume_labs(&self) -> Result<Vec<Name>> {
        names_in(&self.0.join("volumes"))
    }

    pub fn lab_file(&self, lab: &Name) -> PathBuf {
        self.lab_dir(lab).join("lab.json")
    }

    pub fn load_lab(&self, lab: &Name) -> Result<Option<LabState>> {
        load(&self.lab_file(lab))
    }

    pub fn save_lab(&self, lab: &Name, state: &LabState) -> Result<()> {
        save(&self.lab_file(lab), state, false)
    }
}

/// Reads a state file; `None` if there is none.
///
/// # Errors
/// When it is of another version than this pgbox knows, or damaged.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    // Replaced by rename, never written to.
    let text = match sys::fs::read_at_once(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
    };
    let found: Versioned = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a state file of pgbox", path.display()))?;
    if found.version > VERSION {
        bail!("{} has version {}, this pgbox knows none beyond {VERSION}", path.display(), found.version);
    }
    serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is damaged", path.display()))
}

/// Replaces a state file, whose value has a field `version`, in one step. Data and address outlive a power cut, and the file
/// that tells of them must, too.
pub fn save<T: Serialize>(path: &Path, value: &T, durable: bool) -> Result<()> {
    let content = serde_json::to_vec_pretty(value)?;
    with_parent(path, || sys::fs::replace(path, &content, 0o644, durable))
        .with_context(|| format!("write {}", path.display()))
}

/// Makes the directory of `path` if `f` fails for want of it.
fn with_parent<T>(path: &Path, f: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match (f(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(parent)?;
            f()
        }
        (result, _) => result,
    }
}

fn names_in(dir: &Path) -> Result<Vec<Name>> {
    let names = match sys::tree::names_in(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", dir.display()))?,
    };
    let mut names: Vec<Name> =
        names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect();
    names.sort();
    Ok(names)
}

fn remove_tree(dir: &Path) -> Result<()> {
    sys::tree::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_survives_and_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeDir(dir.path().to_owned());
        assert_eq!(node.progress().unwrap().get().unwrap(), 0);
        node.progress().unwrap().set(12).unwrap();
        node.progress().unwrap().set(3).unwrap();
        assert_eq!(node.progress().unwrap().get().unwrap(), 3);
    }

    #[test]
    fn a_start_is_the_last_one_and_stands_while_steps_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let last = || {
            Progress::last_start(&path).unwrap().map(|start| (start.init.pid, start.boot_id, start.started))
        };
        assert_eq!(last(), None);
        let journal = Progress::open(path.clone()).unwrap();
        journal.set(1).unwrap();
        assert_eq!(last(), None);
        let boot_id = "ed9cbbb6-e5a9-4ff2-90f4-fadd1c4f1f2e".to_owned();
        for (pid, start_time, started) in [(i32::MAX, u64::MAX, u64::MAX), (2, 3, 4)] {
            let init = ProcessId { pid, start_time };
            journal.started(&LastStart { init, boot_id: boot_id.clone(), started }).unwrap();
            journal.set(Progress::ALL).unwrap();
            assert_eq!(last(), Some((pid, boot_id.clone(), started)));
        }
        assert_eq!(journal.get().unwrap(), Progress::ALL);
        // As a power cut may leave it.
        fs::write(&path, b"9999\n\0\0\0\0\0\0").unwrap();
        assert_eq!(last(), None);
    }

    #[test]
    fn a_state_file_has_another_stamp_once_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeDir(dir.path().to_owned());
        let saved = || save(&node.state_file(), &"the same", false).and_then(|()| node.stamp()).unwrap();
        let first = saved();
        assert_eq!(node.stamp().unwrap(), first);
        assert_ne!(saved(), first);
    }

    #[test]
    fn files_of_another_version_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let lab: Name = "l".parse().unwrap();
        assert!(root.load_lab(&lab).unwrap().is_none());
        root.save_lab(&lab, &LabState::new("10.0.0.0/24".parse().unwrap())).unwrap();
        assert_eq!(root.load_lab(&lab).unwrap().unwrap().gateway(), std::net::Ipv4Addr::new(10, 0, 0, 1));
        fs::write(root.lab_dir(&lab).join("lab.json"), r#"{"version": 99, "new": true}"#).unwrap();
        assert!(root.load_lab(&lab).unwrap_err().to_string().contains("version 99"));
    }
}
