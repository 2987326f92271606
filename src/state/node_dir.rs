//! The directory of one node, and the files in it.

use std::{
    fs::{self, OpenOptions},
    io,
    net::SocketAddrV4,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{NodeState, Progress, load, remove_tree, save};
use crate::{
    postgres::{launch::Orders, report::Status},
    sql::Login,
    sys,
};

/// The directory of one node.
#[derive(Debug, Clone)]
pub struct NodeDir(pub(super) PathBuf);

/// Which of the files it was that a node's state has been in: each change of it makes a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    written: (i64, i64),
}

/// The log of a node, in its directory.
pub const LOG: &str = "log";

impl NodeDir {
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn log(&self) -> PathBuf {
        self.0.join(LOG)
    }

    /// Where the log goes when it has reached its size.
    pub fn previous_log(&self) -> PathBuf {
        self.0.join("log.1")
    }

    /// What pgbox remembers of the node.
    pub fn state_file(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Kept by the node's pid 1: how far it is, and how it ended.
    pub fn status_file(&self) -> PathBuf {
        self.0.join("status.json")
    }

    /// What the node's pid 1 said last.
    pub fn status(&self) -> Result<Status> {
        let path = self.status_file();
        // Written in place, but one short line at a time.
        let text = match sys::fs::read_text_at_once(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        Status::parse(&text).with_context(|| format!("read {}", path.display()))
    }

    /// How to talk to the node's server as its superuser.
    pub fn login(&self, address: SocketAddrV4) -> Result<Login> {
        let status = self.status()?;
        let user = status.superuser.unwrap_or_else(|| "postgres".to_owned());
        let database = status.database.unwrap_or_else(|| user.clone());
        Ok(Login { address, user, database, secret: self.secret_file() })
    }

    /// What the node's pid 1 reads again: one line of JSON, rewritten in place because pid 1 keeps it open.
    pub fn orders_file(&self) -> PathBuf {
        self.0.join("orders.json")
    }

    /// The replication role's password and nothing else, mode 0600; empty as long as there is none. Kept open like that.
    pub fn replicator_file(&self) -> PathBuf {
        self.0.join("replicator")
    }

    /// Writes down what pid 1 is to go by from its next look on. The whole new line first, then the end of the file.
    pub fn give_orders(&self, orders: &Orders) -> Result<()> {
        let path = self.orders_file();
        let line = serde_json::to_string(orders).context("orders")? + "\n";
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new();
            let file = file.create(true).truncate(false).write(true).mode(0o600).open(&path)?;
            file.write_all_at(line.as_bytes(), 0)?;
            file.set_len(line.len() as u64)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// The superuser's password and nothing else, mode 0600.
    pub fn secret_file(&self) -> PathBuf {
        self.0.join("password")
    }

    /// Where a node is put together before it takes its name. What a killed command left there is thrown away.
    pub fn draft(&self) -> Result<NodeDir> {
        let draft = NodeDir(self.draft_path());
        if let Err(error) = fs::create_dir(&draft.0) {
            if error.kind() == io::ErrorKind::AlreadyExists {
                remove_tree(&draft.0)?;
            }
            fs::create_dir_all(&draft.0).with_context(|| format!("mkdir {}", draft.0.display()))?;
        }
        Ok(draft)
    }

    /// Gives a finished draft its name, in one step: a node is there as a whole or not at all.
    pub fn adopt(&self, draft: NodeDir) -> Result<()> {
        fs::rename(&draft.0, &self.0)
            .with_context(|| format!("rename {} to {}", draft.0.display(), self.0.display()))
    }

    pub fn load(&self) -> Result<Option<NodeState>> {
        load(&self.state_file())?.map(|state| self.with_last_start(state)).transpose()
    }

    fn with_last_start(&self, mut state: NodeState) -> Result<NodeState> {
        if let Some(start) = Progress::last_start(&self.progress_file())? {
            state.was_started(start);
        }
        Ok(state)
    }

    /// The node as it is now, without reading all of it again if it is `known` from when its file had this stamp.
    pub fn load_again(&self, known: &NodeState, stamp: Option<Stamp>) -> Result<Option<NodeState>> {
        match stamp.is_some() && stamp == self.stamp().ok() {
            true => self.with_last_start(known.clone()).map(Some),
            false => self.load(),
        }
    }

    /// Tells the state file that is there from any other. For whoever holds the lab's lock.
    pub fn stamp(&self) -> Result<Stamp> {
        let path = self.state_file();
        let meta = fs::metadata(&path).with_context(|| format!("stat {}", path.display()))?;
        Ok(Stamp { inode: meta.ino(), written: (meta.mtime(), meta.mtime_nsec()) })
    }

    pub fn save(&self, state: &NodeState) -> Result<()> {
        save(&self.state_file(), state, state.data.is_some())
    }

    /// Removes the directory, and the lab's with the last one. Its name goes first, in one step: a command that is
    /// killed on the way leaves no node that is there by half.
    pub fn remove(&self) -> Result<()> {
        let gone = self.draft_path();
        let rename = || match fs::rename(&self.0, &gone) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        let renamed = match rename() {
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                remove_tree(&gone)?;
                rename()
            }
            other => other,
        };
        renamed.with_context(|| format!("rename {}", self.0.display()))?;
        remove_tree(&gone)?;
        match self.0.parent().filter(|nodes| fs::remove_dir(nodes).is_ok()).and_then(Path::parent) {
            Some(lab) => remove_tree(lab),
            None => Ok(()),
        }
    }

    /// No node can be called so: a name begins with a letter or digit.
    fn draft_path(&self) -> PathBuf {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        self.0.with_file_name(format!(".{name}.new"))
    }

    fn progress_file(&self) -> PathBuf {
        self.0.join("progress")
    }

    /// The journal of a walk through the host steps.
    pub fn progress(&self) -> Result<Progress> {
        Progress::open(self.progress_file())
    }
}
