//! Standbys that are none any more: somebody has promoted them without pgbox, by `pg_promote()` or pg_ctl.
//!
//! The rule that surprises people: what tells of it is a file that is *not* there. Postgres removes standby.signal before the
//! first write that is its own, and neither it nor pid 1 makes it again; so it is known also of a server that does not run, or
//! is frozen, and without a question.

use super::{cluster, history, lab, node::Node, wal::Place};
use crate::{plan::changes::Data, state::Role};

/// Whether a node was to follow another one of these, and has been promoted behind pgbox' back. A takeover that was not finished
/// may have promoted it, too: that is another thing.
pub fn is_one(nodes: &[Node], node: &Node) -> bool {
    let Some(head) = cluster::head_of(nodes, &node.name).filter(|head| *head != node.name) else {
        return false;
    };
    let head = nodes.iter().find(|other| other.name == head);
    let is_to_be = head.is_some_and(|head| head.state.role() == Role::Superseded { by: node.name.clone() });
    !is_to_be && matches!(node.state.role(), Role::Standby { .. }) && has_left(node)
}

/// Whether what a node has comes from one that was promoted so: itself, or one that it follows.
pub fn leads_away(nodes: &[Node], node: &Node) -> bool {
    let mut name = Some(node.name.clone());
    for _ in 0..=nodes.len() {
        let Some(node) = name.and_then(|name| nodes.iter().find(|node| node.name == name)) else {
            return false;
        };
        if is_one(nodes, node) {
            return true;
        }
        name = match node.state.role() {
            Role::Standby { of } => Some(of),
            _ => None,
        };
    }
    false
}

/// What to say of a node that was promoted behind pgbox' back, in one line.
pub fn said(nodes: &[Node], node: &Node) -> Option<String> {
    told(nodes, node).map(|(what, way_out)| format!("{what}; {way_out}"))
}

/// The same, and what to type.
pub fn told(nodes: &[Node], node: &Node) -> Option<(String, String)> {
    if !is_one(nodes, node) {
        return None;
    }
    let head = cluster::head_of(nodes, &node.name)?;
    let head = nodes.iter().find(|other| other.name == head)?;
    let [name, primary] = [&node.name, &head.name];
    let what = format!("`{name}` was promoted behind pgbox' back, and is no standby of `{primary}` any more");
    let rejoin = format!("`pgbox rejoin {name}`");
    let has = match loss(node, head) {
        Ok(None) => {
            let what = format!("{what}; it has nothing that anybody would miss");
            return Some((what, format!("to bring it back: {rejoin}")));
        }
        Ok(Some(loss)) => format!("it has {loss} that `{primary}` lacks"),
        Err(error) => format!("nobody knows what it has that `{primary}` lacks ({error:#})"),
    };
    Some((format!("{what}; {has}"), format!("to give that up: {rejoin}{}", instead(node, head))))
}

/// The other way out, as long as it runs: nothing starts it as a primary.
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
    let is_primary = node.state.data.as_deref().is_some_and(|data| lab::content(data) == Data::Primary);
    let standby = node.state.postgres().and_then(|postgres| postgres.orders.standby.as_ref());
    let is_renewed = || match standby.and_then(|standby| standby.renew.as_ref()) {
        Some(renew) => Place::of(&node.state)
            .and_then(Place::renewed)
            .is_ok_and(|stamp| stamp == renew.stamp.to_string()),
        None => true,
    };
    is_primary && is_renewed()
}
