//! A node that a command holds still for a moment, on record *before* it is: the freezer knows no owner (cgroup-v2.rst,
//! cgroup.freeze), so a command that is killed meanwhile would leave the node frozen for ever.
//!
//! Nobody holds a node without the lab's lock. So whoever gets the lock and finds a record knows that its command is gone,
//! and lets the node go on. What a user has frozen has no record, and stays.

use std::{fs, io, path::PathBuf};

use anyhow::{Context, Result};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Role, Root, VERSION, load, save};
use crate::{
    spec::{Name, ObjectNames},
    sys::{
        cgroup::{self, Cgroup},
        process::ProcessId,
    },
};

/// Which node is held still, and by whom.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hold {
    pub version: u32,
    pub node: Name,
    pub holder: ProcessId,
}

impl Hold {
    /// Whether the command that holds it is at work.
    pub fn is_at_work(&self) -> bool {
        // One that can't be asked is there.
        !self.holder.open().is_ok_and(|pidfd| pidfd.is_none())
    }
}

/// What has become of a node whose holder is gone.
#[derive(Debug, Clone)]
pub struct LetGo {
    pub node: Name,
    /// Its place was taken: it was ended instead.
    pub by: Option<Name>,
}

impl LetGo {
    /// In words.
    pub fn text(&self) -> String {
        let held = format!("a command that is gone had left `{}` held still", self.node);
        match &self.by {
            None => format!("{held}: it goes on"),
            Some(by) => format!("{held}: it is ended, for `{by}` has its place"),
        }
    }
}

impl Root {
    /// Writes down that this process holds a node still. The caller has the lab's lock.
    pub fn hold(&self, lab: &Name, node: &Name) -> Result<()> {
        let holder = ProcessId::of(Pid::this())?;
        save(&self.hold_file(lab), &Hold { version: VERSION, node: node.clone(), holder }, false)
    }

    /// The node of a lab that is held still, if one is.
    pub fn held(&self, lab: &Name) -> Result<Option<Hold>> {
        load(&self.hold_file(lab))
    }

    /// Nobody holds a node of this lab any more; or somebody holds it for good, who has frozen it by hand.
    pub fn unhold(&self, lab: &Name) -> Result<()> {
        let path = self.hold_file(lab);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn hold_file(&self, lab: &Name) -> PathBuf {
        self.lab_dir(lab).join("held.json")
    }

    /// Lets go what the last one who had this lab's lock has held still.
    pub(super) fn let_go(&self, lab: &Name) -> Result<Option<LetGo>> {
        let node = match self.held(lab) {
            Ok(None) => return Ok(None),
            Ok(Some(hold)) => hold.node,
            // After a power cut there may be a file with nothing in it, and nothing that is frozen.
            Err(_) => return self.unhold(lab).map(|()| None),
        };
        let group = Cgroup::new(&cgroup::detect()?, ObjectNames::new(self.path(), lab, &node).cgroup)?;
        // One that can't be read keeps nobody from removing it.
        let state = self.node(lab, &node).load().ok().flatten();
        let by = match state.as_ref().map(|state| state.role()) {
            Some(Role::Superseded { by }) => Some(by),
            _ => None,
        };
        let was_frozen = group.exists() && group.frozen()?;
        if group.exists() {
            // All of it before any of it thaws: it must not acknowledge anything any more.
            if by.is_some() {
                group.kill()?;
            }
            // Also where the freeze was only begun.
            group.thaw()?;
        }
        self.unhold(lab)?;
        Ok(was_frozen.then_some(LetGo { node, by }))
    }
}
