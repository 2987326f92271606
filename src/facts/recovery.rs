//! How far a server is that recovers and answers nobody yet: from the title of its startup process, which the kernel shows
//! as that process' command line (proc_pid_cmdline(5)), and from the node's log.

use anyhow::{Error, Result};
use serde::Serialize;

use super::{
    node::{Life, Node},
    wal::Place,
};
use crate::{
    postgres::{lsn::Lsn, recovery},
    spec::Name,
    state::{Role, Root},
    sys::{
        fs::{self, Kind},
        tail,
    },
};

/// How far a recovery is. Where it will end is only known when it is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recovery {
    pub began_at: Option<Lsn>,
    /// What is replayed now: to the WAL file, or more exactly where the log says so.
    pub at: Option<Lsn>,
}

/// So much of a log is read: recoveries write little.
const PART: u64 = 64 << 10;

/// Looks at a node whose server was started and does not answer yet. `None` when there is nothing to see of a recovery.
pub fn of(root: &Root, node: &Node) -> Result<Option<Recovery>> {
    let log = tail::bytes(&node.dir.log(), PART).unwrap_or_default();
    let began_at = recovery::began_at(&log);
    let at = replaying(root, node)?.max(recovery::progress(&log));
    Ok((began_at.is_some() || at.is_some()).then_some(Recovery { began_at, at }))
}

/// What to say of a standby that runs and asks in vain: what it needs the server that it follows has no more.
pub fn stuck(nodes: &[Node], node: &Node) -> Option<String> {
    let Role::Standby { of } = node.state.role() else { return None };
    let upstream = nodes.iter().find(|other| other.name == of)?;
    (node.life == Life::Running && upstream.life == Life::Running).then_some(())?;
    let log = tail::bytes(&node.dir.log(), PART).ok()?;
    let file = recovery::gone(&log)?;
    let theirs = Place::of(&upstream.state).ok()?;
    let needed = recovery::begins_at(file, theirs.control().ok()?.segment.into())?;
    let name = &node.name;
    (theirs.begin().ok()? > needed)
        .then(|| format!("`{name}` can't follow `{of}`, which has not kept the WAL that it needs, {file}"))
}

/// The same with what to type.
pub fn with_way_out(why: &str, name: &Name) -> String {
    format!("{why}; to give it a new base backup: `pgbox reinit {name}`")
}

/// The start of the WAL file that the startup process is at.
fn replaying(root: &Root, node: &Node) -> Result<Option<Lsn>> {
    for pid in node.cgroup(root)?.processes()? {
        let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title).replace('\0', " ");
        if let Some(file) = recovery::wal_file(&title) {
            return Ok(recovery::begins_at(file, segment_size(node, file)));
        }
    }
    Ok(None)
}

/// A WAL file is as long as every other of its cluster.
fn segment_size(node: &Node, file: &str) -> u64 {
    const USUAL: u64 = 16 << 20;
    let size = || fs::lstatat(Place::of(&node.state)?.log()?, file.as_bytes()).map_err(Error::from);
    match size() {
        Ok(stat) if stat.kind == Kind::File && stat.size > 0 => stat.size,
        _ => USUAL,
    }
}
