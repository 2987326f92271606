//! Standbys that are none any more: somebody has promoted them without pgbox, by `pg_promote()` or pg_ctl; or they have more of
//! an old timeline than the primary had when it left that, mostly because they were away when it was promoted.
//!
//! The rule that surprises people: what tells of a promotion is a file that is *not* there. Postgres removes standby.signal before
//! the first write that is its own, and neither it nor pid 1 makes it again; so it is known also of a server that does not run, or
//! is frozen, and without a question.
//!
//! Another one: who has more than the primary had may be seen to stream, again and again for a moment, and so may whoever
//! follows him, for ever. So no server is asked for that either: the logs on the disks tell it.

use std::iter;

use anyhow::Result;

use super::{
    cluster, history,
    node::Node,
    volume::{self, Content},
    wal::Place,
};
use crate::{hint::advise, postgres::lsn::Lsn, spec::Name, state::Role};

/// Whether a node was to follow another one of these, and has been promoted behind pgbox' back. A takeover that was not finished
/// may have promoted it, too: that is another thing.
pub fn is_one(nodes: &[Node], node: &Node) -> bool {
    let Some(head) = head(nodes, node).filter(|head| head.name != node.name) else { return false };
    let is_to_be = head.state.role() == Role::Superseded { by: node.name.clone() };
    !is_to_be && matches!(node.state.role(), Role::Standby { .. }) && has_left(node)
}

/// The head of a node's cluster.
fn head<'n>(nodes: &'n [Node], node: &Node) -> Option<&'n Node> {
    let head = cluster::head_of(nodes, &node.name)?;
    nodes.iter().find(|other| other.name == head)
}

/// Where a standby has left the history of its cluster's primary, if it has, also where it follows another standby. `None` where
/// nobody can tell: before a takeover is finished, or where the disks can't be read.
pub fn parted(nodes: &[Node], node: &Node) -> Option<Lsn> {
    let head = head(nodes, node)?;
    let is_standby = matches!(node.state.role(), Role::Standby { .. }) && is_renewed(node);
    if !is_standby || head.state.role() != Role::Primary {
        return None;
    }
    history::left(Place::of(&node.state).ok()?, Place::of(&head.state).ok()?).ok()?
}

/// Whether a standby is none any more, however that has come.
pub fn is_astray(nodes: &[Node], node: &Node) -> bool {
    is_one(nodes, node) || parted(nodes, node).is_some()
}

/// The standby that is none any more and that what a node has comes from: itself, or one that it follows, the uppermost of them.
pub fn source<'n>(nodes: &'n [Node], node: &Node) -> Option<&'n Node> {
    let all = iter::once(node.name.clone()).chain(cluster::above(nodes, &node.name));
    let there = all.filter_map(|name| nodes.iter().find(|node| node.name == name));
    there.filter(|node| is_astray(nodes, node)).last()
}

/// Whether there is one.
pub fn leads_away(nodes: &[Node], node: &Node) -> bool {
    source(nodes, node).is_some()
}

/// One word for a table, of one whose server is at work.
pub fn word(nodes: &[Node], node: &Node) -> Option<&'static str> {
    match node {
        node if !node.is_up() => None,
        node if is_one(nodes, node) => Some("promoted"),
        node => parted(nodes, node).map(|_| "diverged"),
    }
}

/// Refuses a server whose data are no part of the primary's, nor would be those of anybody who follows it; `follower` does.
///
/// # Errors
/// That.
pub fn refuse(nodes: &[Node], of: &Node, follower: Option<&Name>) -> Result<()> {
    let Some(source) = source(nodes, of) else { return Ok(()) };
    let Some((what, _)) = told(nodes, source) else { return Ok(()) };
    let then = follower.map_or(String::new(), |name| format!(", then `pgbox rejoin {name}`"));
    Err(advise(what, format!("first `pgbox rejoin {}`{then}", source.name)))
}

/// What to say of a standby that is none any more, in one line.
pub fn said(nodes: &[Node], node: &Node) -> Option<String> {
    told(nodes, node).map(|(what, way_out)| format!("{what}; {way_out}"))
}

/// The same, and what to type.
pub fn told(nodes: &[Node], node: &Node) -> Option<(String, String)> {
    let is_promoted = is_one(nodes, node);
    let how = match is_promoted {
        true => "was promoted behind pgbox' back".to_owned(),
        false => format!("has gone its own way since {}", parted(nodes, node)?),
    };
    let head = head(nodes, node)?;
    let [name, primary] = [&node.name, &head.name];
    let what = format!("`{name}` {how}, and is no standby of `{primary}` any more");
    let rejoin = match source(nodes, node).filter(|source| source.name != *name) {
        Some(source) => format!("first `pgbox rejoin {}`, then `pgbox rejoin {name}`", source.name),
        None => format!("`pgbox rejoin {name}`"),
    };
    let has = match loss(node, head) {
        Ok(None) => {
            let what = format!("{what}; it has nothing that anybody would miss");
            return Some((what, format!("to bring it back: {rejoin}")));
        }
        Ok(Some(loss)) => format!("it has {loss} that `{primary}` lacks"),
        Err(error) => format!("nobody knows what it has that `{primary}` lacks ({error:#})"),
    };
    let instead = if is_promoted { instead(node, head) } else { String::new() };
    Some((format!("{what}; {has}"), format!("to give that up: {rejoin}{instead}")))
}

/// The other way out of a promotion, as long as it runs: nothing starts it as a primary.
fn instead(node: &Node, head: &Node) -> String {
    match node.pidfd {
        Some(_) => format!("; to keep that, in the place of `{}`: `pgbox failover {}`", head.name, node.name),
        None => String::new(),
    }
}

fn loss(node: &Node, head: &Node) -> anyhow::Result<Option<String>> {
    let (own, theirs) = (Place::of(&node.state)?, Place::of(&head.state)?);
    Ok(history::compare(own, theirs)?.loss())
}

/// Whether the data of a standby are not a standby's, and are not about to become that.
pub fn has_left(node: &Node) -> bool {
    let is_primary = node.state.data.as_deref().is_some_and(|data| volume::content(data) == Content::Primary);
    is_primary && is_renewed(node)
}

/// Whether nothing is due that makes other data of a standby's.
fn is_renewed(node: &Node) -> bool {
    let standby = node.state.postgres().and_then(|postgres| postgres.orders.standby.as_ref());
    match standby.and_then(|standby| standby.renew.as_ref()) {
        Some(renew) => Place::of(&node.state)
            .and_then(Place::renewed)
            .is_ok_and(|stamp| stamp == renew.stamp.to_string()),
        None => true,
    }
}
