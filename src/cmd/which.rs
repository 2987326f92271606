//! Which nodes a command is about, and in which order it takes all of a lab.
//!
//! The rule that surprises people: also to *stop* a cluster one begins with the primary. A primary that shuts down waits
//! until its standbys have received everything; if they are gone by then, they come back behind it, and one that has to
//! take its place lacks what was written last.

use anyhow::Result;

use super::{Context, note};
use crate::{
    cli,
    facts::{
        self, cluster,
        node::{self, Node},
    },
    hint::misuse,
    postgres::report::Reason,
    spec::Name,
    state::Role,
};

/// What is done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Going {
    Down,
    Up,
}

/// The nodes that are named, as they are named; or all, each server after the one that it follows.
pub fn nodes(context: &Context, which: &cli::Which, going: Going) -> Result<Vec<Name>> {
    if !which.all {
        check(context, &which.nodes)?;
        return Ok(which.nodes.clone());
    }
    let nodes = node::all(&context.root, &context.lab)?;
    if nodes.is_empty() {
        note(context, &format!("lab `{}` has no nodes", context.lab));
    }
    // Other commands are the servers' clients: gone before them, there after them.
    let place = |node: &Node| match (node.state.role(), going) {
        (Role::Command, Going::Down) => 0,
        (Role::Command, Going::Up) => usize::MAX,
        _ => 1 + cluster::depth(&nodes, &node.name),
    };
    let mut chosen: Vec<(usize, &Node)> = nodes.iter().map(|node| (place(node), node)).collect();
    chosen.sort_by(|(a, left), (b, right)| (a, &left.name).cmp(&(b, &right.name)));
    let chosen = chosen
        .into_iter()
        .map(|(_, node)| node)
        .filter(|node| going == Going::Down || is_to_be_up(context, &nodes, node));
    Ok(chosen.map(|node| node.name.clone()).collect())
}

/// Refuses names that no node has, before anything is done to the others. A node whose state is damaged is one: its error is its own.
pub fn check(context: &Context, names: &[Name]) -> Result<()> {
    let (root, lab) = (&context.root, &context.lab);
    let mut missing = names.iter().filter(|name| matches!(facts::load(root, lab, name), Ok(None)));
    missing.try_for_each(|name| node::find(root, lab, name).map(drop))
}

/// The standby that is to become the primary. It is never chosen: the primary may be well.
///
/// # Errors
/// Of usage, with those that there are, when none is named.
pub fn standby<'n>(context: &Context, named: Option<&'n Name>) -> Result<&'n Name> {
    if let Some(name) = named {
        return Ok(name);
    }
    let mut nodes = node::all(&context.root, &context.lab)?;
    nodes.retain(|node| matches!(node.state.role(), Role::Standby { .. }));
    let names = nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
    let way_out = match names.as_str() {
        "" => format!("lab `{}` has none; `pgbox replica r1 --of NODE` makes one", context.lab),
        _ => format!("name one: {names}; with --dry-run it says what would be done"),
    };
    Err(misuse("which standby is to become the primary?", way_out))
}

/// Whether `--all` means a node to run: not one whose place was taken, nor a command that has done what it had to.
fn is_to_be_up(context: &Context, nodes: &[Node], node: &Node) -> bool {
    match node.state.role() {
        Role::Superseded { .. } => {
            let (what, way_out) = cluster::stays_down(&context.root, nodes, node).unwrap_or_default();
            note(context, &format!("`{}` stays down: {what}; {way_out}", node.name));
            false
        }
        Role::Command => node.pidfd.is_some() || node.status.reason != Some(Reason::Completed),
        _ => true,
    }
}
