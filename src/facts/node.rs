//! The state of one node, asked of the kernel and of its pid 1, never of a stored status.

use std::{os::fd::OwnedFd, path::Path};

use anyhow::{Error, Result};
use nix::unistd::Pid;
use serde::Serialize;

use super::wal::{self, Place};
use crate::{
    hint::advise,
    plan::{self, follow::Upstream},
    postgres::report::{Phase, Reason, Status},
    spec::{Name, ObjectNames},
    sql::Login,
    state::{NodeDir, NodeState, Role, Root},
    sys::{cgroup, process},
};

/// Where a container is in its life, in the words of the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Life {
    /// Steps were begun, but no pid 1 was recorded: a command is at work, or was killed.
    Creating,
    Running,
    Stopped,
}

impl Life {
    pub fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// A node as it is now.
pub struct Node {
    pub lab: Name,
    pub name: Name,
    pub dir: NodeDir,
    pub state: NodeState,
    pub life: Life,
    /// What pid 1 said last.
    pub status: Status,
    /// Of pid 1, while the node runs.
    pub pidfd: Option<OwnedFd>,
    /// It runs, and all its processes are stopped by the cgroup freezer.
    pub frozen: bool,
}

impl Node {
    pub fn names(&self, root: &Root) -> ObjectNames {
        ObjectNames::new(root.path(), &self.lab, &self.name)
    }

    pub fn cgroup(&self, root: &Root) -> Result<cgroup::Cgroup> {
        cgroup::Cgroup::new(&cgroup::detect()?, self.names(root).cgroup)
    }

    /// How to talk to its server as superuser.
    ///
    /// # Errors
    /// When it runs something else than a Postgres.
    pub fn login(&self) -> Result<Login> {
        let Some(address) = self.state.server() else {
            return Err(advise(
                format!("node `{}` runs no Postgres", self.name),
                format!("its address is {}; `pgbox exec` runs commands in it", self.state.address.addr()),
            ));
        };
        self.dir.login(address)
    }

    /// It as the server that another one follows, in the cluster of this primary.
    ///
    /// # Errors
    /// As [`login`](Self::login).
    pub fn upstream(&self, primary: &Node) -> Result<Upstream> {
        let (server, primary) = (self.login()?, primary.login()?);
        Ok(Upstream { server, primary, data: plan::data_below(&self.state.plan) })
    }

    /// What its data have in common with those of its cluster, see [`Place::origin`].
    pub fn origin(&self) -> Option<u64> {
        Place::of(&self.state).ok()?.origin()
    }

    /// Whether its data and those of another node come from one initdb. `None`: nobody knows.
    pub fn is_kin_of(&self, other: &Node) -> Option<bool> {
        wal::are_kin(self.origin(), other.origin())
    }

    /// The pidfd of pid 1.
    ///
    /// # Errors
    /// When the node does not run, with the command that starts it, or brings it back.
    pub fn running(&self) -> Result<&OwnedFd> {
        let name = &self.name;
        self.pidfd.as_ref().ok_or_else(|| match self.state.role() {
            Role::Superseded { by } => advise(
                format!(
                    "node `{name}` does not run: it was the primary, and `{by}` was promoted in its place"
                ),
                format!("bring it back as a standby: `pgbox rejoin {name}`"),
            ),
            _ if self.status.reason == Some(Reason::DiskFull) => {
                let disk = self.state.data.as_deref().unwrap_or(Path::new("/")).display();
                let why = self.status.error.as_deref().unwrap_or_default();
                advise(
                    format!("node `{name}` does not run: {why}"),
                    format!("make room in {disk}, then: pgbox start {name}; `pgbox slots` shows what standbys have it keep"),
                )
            }
            _ => advise(format!("node `{name}` does not run"), format!("start it: pgbox start {name}")),
        })
    }

    /// The same, of a node that does something.
    ///
    /// # Errors
    /// Also when the node is frozen, with the command that thaws it.
    pub fn awake(&self) -> Result<&OwnedFd> {
        match self.frozen {
            false => self.running(),
            true => Err(advise(
                format!("node `{}` is frozen", self.name),
                format!("thaw it first: pgbox thaw {}", self.name),
            )),
        }
    }

    /// The postmaster: its pid on this host, and a pidfd. `None` when it does not run at this moment.
    pub fn postmaster(&self, root: &Root) -> Result<Option<(Pid, OwnedFd)>> {
        let (Some(init), true) = (self.state.init, self.status.pid > 0) else { return Ok(None) };
        process::open_inside(&self.cgroup(root)?.processes()?, Pid::from_raw(init.pid), self.status.pid)
    }

    /// Whether a question to it may be answered: a frozen server lets one wait for ever.
    pub fn can_answer(&self) -> bool {
        self.pidfd.is_some() && !self.frozen
    }

    /// Whether its server, or its command, is at work.
    pub fn is_up(&self) -> bool {
        self.can_answer() && self.status.phase == Phase::Running
    }

    /// One word for a table, more precise than the life: what pid 1 is doing, or how it ended.
    pub fn word(&self) -> &'static str {
        match (self.life, self.status.phase, &self.status.reason) {
            (Life::Running, ..) if self.frozen => "frozen",
            (Life::Running, phase, _) => during(phase),
            (Life::Stopped, Phase::Ended, Some(reason)) => after(*reason),
            // Its pid 1 is gone and wrote no last word: SIGKILL, the OOM killer, or a power cut.
            (Life::Stopped, phase, _) if phase != Phase::Ended && self.state.init.is_some() => "killed",
            (life, ..) => life.word(),
        }
    }
}

/// The state of a node whose pid 1 is at this.
fn during(phase: Phase) -> &'static str {
    match phase {
        Phase::Preparing => "preparing",
        Phase::Initdb => "initdb",
        Phase::Scripts => "init-scripts",
        Phase::BaseBackup => "base-backup",
        Phase::Clone => "cloning",
        Phase::Rewind => "rewinding",
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
        Phase::Waiting => "restarting",
        Phase::Ended => "ending",
    }
}

/// The state of a node that has ended for this reason.
fn after(reason: Reason) -> &'static str {
    match reason {
        Reason::Stopped => "stopped",
        Reason::Completed => "completed",
        Reason::Crashed => "crashed",
        Reason::DiskFull => "disk-full",
        Reason::Failed => "failed",
    }
}

/// The node of this name.
///
/// # Errors
/// When there is none, with the ones that there are.
pub fn find(root: &Root, lab: &Name, name: &Name) -> Result<Node> {
    let Some(state) = super::load(root, lab, name)? else { return Err(absent(root, lab, name)) };
    look(root, lab, name, state)
}

/// What to say of a node that there is not.
pub fn absent(root: &Root, lab: &Name, name: &Name) -> Error {
    let known = root.nodes(lab).unwrap_or_default();
    let known = known.iter().map(Name::to_string).collect::<Vec<_>>().join(", ");
    let way_out = match known.as_str() {
        "" => format!("lab `{lab}` has no nodes; `pgbox ps --all-labs` shows those of all labs"),
        _ => format!("lab `{lab}` has {known}"),
    };
    advise(format!("no node `{name}` in lab `{lab}`"), way_out)
}

/// All nodes of a lab.
pub fn all(root: &Root, lab: &Name) -> Result<Vec<Node>> {
    let known = super::nodes(root, lab)?.into_iter();
    known.map(|(name, state)| look(root, lab, &name, state)).collect()
}

/// The node whose state was read just now.
pub fn look(root: &Root, lab: &Name, name: &Name, state: NodeState) -> Result<Node> {
    let dir = root.node(lab, name);
    let same_boot = process::boot_id()? == state.boot_id;
    let pidfd = match state.init {
        Some(init) if same_boot => init.open()?,
        _ => None,
    };
    let life = match (&pidfd, state.init) {
        (Some(_), _) => Life::Running,
        (None, Some(_)) => Life::Stopped,
        (None, None) => Life::Creating,
    };
    let status = dir.status()?;
    let mut node =
        Node { lab: lab.clone(), name: name.clone(), dir, state, life, status, pidfd, frozen: false };
    node.frozen = node.pidfd.is_some() && node.cgroup(root)?.frozen()?;
    Ok(node)
}
