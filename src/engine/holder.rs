//! Who has a data directory in use. proc(5) `/proc/PID/cwd`.
//!
//! The rule that surprises people: two servers on one data directory destroy it, and what PostgreSQL has against that, the pid
//! in postmaster.pid and System V shared memory, sees nothing beyond its own namespaces. Nodes lock the directory; a server that
//! pgbox has not started, on this host or in another runtime's container, does not. But every server works *in* its
//! data directory, and the kernel tells that of all processes.

use std::{
    fmt,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::Path,
};

use anyhow::{Context, Result};

use crate::{
    facts::node::{self, Node},
    hint::advise,
    postgres::postmaster,
    spec::Name,
    state::Root,
    sys::process,
};

/// What runs on a data directory.
pub enum Holder {
    Node {
        lab: Name,
        name: Name,
    },
    /// A server that is no node's, as a process of this host.
    Server(i32),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { name, .. } => write!(f, "node `{name}` runs on it"),
            Self::Server(pid) => write!(f, "another server runs on it (process {pid} of this host)"),
        }
    }
}

/// Who has the data directory in use, other than the node `except` of a lab. A lab that can't be read names nobody; what runs
/// in it is seen as a process.
pub fn find(root: &Root, data: &Path, except: Option<(&Name, &Name)>) -> Result<Option<Holder>> {
    let Ok(dir) = fs::metadata(data) else { return Ok(None) };
    let is_holder = |node: &Node| {
        let data = node.state.data.as_deref().and_then(|data| fs::metadata(data).ok());
        let is_other = Some((&node.lab, &node.name)) != except;
        node.pidfd.is_some() && is_other && data.is_some_and(|other| same(&other, &dir))
    };
    let labs = root.labs()?;
    let mut nodes = labs.iter().filter_map(|lab| node::all(root, lab).ok()).flatten();
    if let Some(Node { lab, name, .. }) = nodes.find(is_holder) {
        return Ok(Some(Holder::Node { lab, name }));
    }
    if !data.join(postmaster::FILE).exists() {
        return Ok(None);
    }
    let server = process::in_directory("postgres", |cwd| same(cwd, &dir)).context("read /proc")?;
    Ok(server.map(Holder::Server))
}

/// Refuses a data directory that a server runs on, other than that of the node `except` of a lab.
pub fn refuse(root: &Root, data: &Path, except: Option<(&Name, &Name)>) -> Result<()> {
    let Some(holder) = find(root, data, except)? else { return Ok(()) };
    let stop = match &holder {
        Holder::Node { lab, name } => format!("`pgbox --lab {lab} stop {name}`"),
        Holder::Server(_) => format!("`pg_ctl stop -D {}`, or as it was started", data.display()),
    };
    Err(advise(
        format!("the data directory {} is in use: {holder}", data.display()),
        format!(
            "one data directory can serve one server; give the new one a volume of its own, or stop the other: {stop}"
        ),
    ))
}

/// Whether two paths lead to one directory.
pub fn is_same(one: &Path, other: &Path) -> bool {
    matches!((fs::metadata(one), fs::metadata(other)), (Ok(one), Ok(other)) if same(&one, &other))
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}
