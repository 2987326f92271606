//! Who follows whom, as far as it is to be decided: of nodes that are there it is what it is, and new ones follow those
//! whom the file means, which after a switchover are others than those whom it names.

use std::collections::BTreeSet;

use super::{Action, Actual, Changes, Data, Existing, Left};
use crate::{
    hint,
    lab::wanted::{Wanted, WantedNode},
    postgres::standby::SIGNAL,
    spec::{self, Follow, Name},
    state::Role,
};

/// The wanted nodes with the roles that they can have, upstream first.
pub fn settle(wanted: &Wanted, actual: &Actual, changes: &mut Changes) -> Vec<WantedNode> {
    let mut nodes = wanted.nodes.clone();
    let roots =
        wanted.nodes.iter().filter(|node| node.spec.follow.is_none() && node.spec.command().is_none());
    let mut heads: Vec<(&Name, Name)> = Vec::new();
    for root in roots.map(|node| &node.spec.node) {
        heads.push((root, settle_cluster(root, wanted, actual, &mut nodes, changes)));
    }
    if wanted.exact {
        let stays = |node| stays_as_it_is(node, actual);
        changes.notes.extend(nodes.iter().filter_map(stays));
    }
    for node in &mut nodes {
        // Of those that are there, what they do counts.
        match actual.node(&node.spec.node).map(|there| &there.role) {
            Some(Role::Standby { of }) => {
                node.spec.follow = Some(Follow::turned(node.spec.follow.as_ref(), of.clone()));
            }
            Some(Role::Primary) => node.spec.follow = None,
            _ => {}
        }
    }
    nodes.retain(|node| is_member(&node.spec.node, actual, changes));
    for (root, head) in heads {
        let is_below = |node: &WantedNode| leads_to(wanted, &node.spec.node, root);
        follow_who_is_there(&head, is_below, actual, &mut nodes, changes);
    }
    let depth = |node: &WantedNode| {
        spec::upward(&node.spec.node, nodes.len(), |name| follows(&nodes, name).cloned()).count()
    };
    let depths: Vec<usize> = nodes.iter().map(depth).collect();
    let mut sorted: Vec<(usize, WantedNode)> = depths.into_iter().zip(nodes).collect();
    sorted.sort_by_key(|(depth, _)| *depth);
    sorted.into_iter().map(|(_, node)| node).collect()
}

/// What to say of a node that follows another one than the file has above it by now.
fn stays_as_it_is(wanted: &WantedNode, actual: &Actual) -> Option<String> {
    let name = &wanted.spec.node;
    let (is, means) = match (&actual.node(name)?.role, wanted.spec.follow.as_ref().map(|follow| &follow.of)) {
        (Role::Standby { of }, Some(meant)) if of != meant => {
            (format!("follows `{of}`"), format!("`{meant}`"))
        }
        (Role::Standby { of }, None) => (format!("follows `{of}`"), "nobody".to_owned()),
        (Role::Primary, Some(meant)) => ("is a primary".to_owned(), format!("a standby of `{meant}`")),
        _ => return None,
    };
    Some(format!(
        "`{name}` {is}, and not {means} as the file says, and stays so; made anew it is as the file says: \
         `pgbox rm -f -v {name}`, which removes its data, then `pgbox up` again"
    ))
}

/// Finds the primary of the cluster that the file has below `root`, and lets everybody follow that. Returns who it is.
fn settle_cluster(
    root: &Name,
    wanted: &Wanted,
    actual: &Actual,
    nodes: &mut Vec<WantedNode>,
    changes: &mut Changes,
) -> Name {
    let members: Vec<&Name> =
        wanted.nodes.iter().map(|node| &node.spec.node).filter(|name| leads_to(wanted, name, root)).collect();
    let is_primary = |name: &&&Name| actual.node(name).is_some_and(|node| node.role == Role::Primary);
    let has_primary_data = |name: &&&Name| actual.data.get(**name) == Some(&Data::Primary);
    let root_data = actual.data.get(root).copied().unwrap_or_default();
    let head = match actual.node(root).map(|node| &node.role) {
        Some(Role::Primary | Role::Command) => return root.clone(),
        Some(Role::Standby { of }) => Some(of.clone()),
        Some(Role::Superseded { by }) => Some(by.clone()),
        None if actual.left.contains_key(root) => actual.above(root),
        None => members.iter().find(is_primary).map(|name| (*name).clone()),
    };
    let head = head.or_else(|| {
        let one = members.iter().filter(has_primary_data).collect::<Vec<_>>();
        (root_data != Data::Primary && one.len() == 1).then(|| (*one[0]).clone())
    });
    let head = head.map(|name| top(actual, name));
    let meant = head.as_ref().unwrap_or(root);
    if refuse_orphans(meant, actual, nodes, changes) || refuse_empty(meant, &members, actual, nodes, changes)
    {
        return meant.clone();
    }
    let Some(head) = head else {
        refuse_second(root, wanted, actual, changes);
        return root.clone();
    };
    // Without a file nobody has said who it should be of nodes that only happen to be there.
    if wanted.exact || members.len() > 1 {
        changes.notes.push(format!(
            "`{head}` is the primary now, and not `{root}` as it was meant; to change that: `pgbox switchover {root}`"
        ));
    }
    for node in nodes.iter_mut().filter(|node| leads_to(wanted, &node.spec.node, root)) {
        if node.spec.node == head {
            node.spec.follow = None;
            continue;
        }
        let follow = node.spec.follow.get_or_insert(Follow::of(head.clone()));
        if follow.of == *root {
            follow.of = head.clone();
        }
    }
    head
}

/// Where only standbys have left data, an empty primary would be another cluster, and theirs would be nobody's. Where several
/// primaries have, nobody knows who is meant. True if that is so.
fn refuse_empty(
    head: &Name,
    members: &[&Name],
    actual: &Actual,
    nodes: &mut Vec<WantedNode>,
    changes: &mut Changes,
) -> bool {
    let data = |name: &Name| actual.data.get(name).copied().unwrap_or_default();
    let left: Vec<&Name> = members.iter().copied().filter(|name| data(name) != Data::None).collect();
    let [first, ..] = left[..] else { return false };
    if actual.node(head).is_some() || data(head) == Data::Primary {
        return false;
    }
    let names = |of: &[&Name]| of.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let primaries: Vec<&Name> = left.iter().copied().filter(|name| data(name) == Data::Primary).collect();
    let signal = |name: &str| actual.volumes.join(name).join("data").join(SIGNAL).display().to_string();
    let what = "are no primary's, and an empty one would be another cluster";
    changes.refused.push(match (&primaries[..], left.len()) {
        ([], _) if let Some(way_out) = &actual.elsewhere => {
            format!("the data of {} {what}: {way_out}", names(&left))
        }
        ([], 1) => format!(
            "the data of `{first}` {what}; without {} they are a primary's: then `pgbox up` again",
            signal(first.as_str())
        ),
        // On one timeline, whoever has more would go on after other records than its own.
        ([], _) => format!(
            "the data of {} {what}. Choose those that have most: without {} they are a primary's, which `pgbox run NAME` \
             starts. When that is up, the others need a new base backup: `pgbox volume rm` for each, then `pgbox up`",
            names(&left),
            signal("NAME")
        ),
        _ => format!(
            "the data of {} are a primary's each, and those of `{head}` are not: nobody knows who is meant; name that one in \
             the file",
            names(&primaries)
        ),
    });
    nodes.retain(|node| actual.node(&node.spec.node).is_some() || !members.contains(&&node.spec.node));
    true
}

/// Where the lab has a primary that the file does not name, an empty one under another name is most often a slip: that one was
/// renamed in the file.
fn refuse_second(root: &Name, wanted: &Wanted, actual: &Actual, changes: &mut Changes) {
    let is_named = |name: &Name| wanted.nodes.iter().any(|node| node.spec.node == *name);
    let mut primaries =
        actual.nodes.iter().filter(|node| node.role == Role::Primary).map(|node| &node.spec.node);
    let (Some(other), None) =
        (primaries.find(|name| !is_named(name)), actual.data.get(root).filter(|data| **data != Data::None))
    else {
        return;
    };
    changes.wrong.push(format!(
        "`{root}` would be a new primary, and empty: the lab's primary is `{other}`, which the file does not name. A node keeps its \
         name: write [nodes.{other}]; if `{root}` is meant to be another cluster, give it a lab of its own (`lab = \"NAME\"`), or \
         first: `pgbox rm -f {other}`, which keeps the data"
    ));
}

/// Lets the new nodes of a cluster follow its primary where the one that they are to follow does not come up, and leaves those
/// out that can't.
fn follow_who_is_there(
    head: &Name,
    is_below: impl Fn(&WantedNode) -> bool,
    actual: &Actual,
    nodes: &mut Vec<WantedNode>,
    changes: &mut Changes,
) {
    let is_new = |node: &WantedNode| actual.node(&node.spec.node).is_none() && is_below(node);
    loop {
        let comes: BTreeSet<Name> = nodes.iter().map(|node| node.spec.node.clone()).collect();
        let serves = |name: &Name| {
            let role = actual.node(name).map(|node| &node.role);
            comes.contains(name) || matches!(role, Some(Role::Primary | Role::Standby { .. }))
        };
        for node in nodes.iter_mut().filter(|node| is_new(node) && serves(head)) {
            let name = &node.spec.node;
            let Some(follow) = node.spec.follow.as_mut().filter(|follow| !serves(&follow.of)) else {
                continue;
            };
            changes
                .notes
                .push(format!("`{name}` follows `{head}`, and not `{}`, which does not come up", follow.of));
            follow.of = head.clone();
        }
        nodes.retain(|node| {
            let refusal = if is_new(node) { refusal(node, head, actual, serves) } else { None };
            let stays = refusal.is_none();
            changes.refused.extend(refusal);
            stays
        });
        // Who was left out may be followed by others.
        if nodes.len() == comes.len() {
            return;
        }
    }
}

/// Why a new node can't follow whom it is to follow, with the data that it has.
fn refusal(
    node: &WantedNode,
    head: &Name,
    actual: &Actual,
    serves: impl Fn(&Name) -> bool,
) -> Option<String> {
    let (name, of) = (&node.spec.node, &node.spec.follow.as_ref()?.of);
    let why = match actual.data.get(name).copied().unwrap_or_default() {
        _ if !serves(of) => format!("`{of}`, which it is to follow, does not come up"),
        Data::None => return None,
        _ if actual.are_strange(name, head) => format!(
            "the data in its volume are of another cluster than those of `{head}`, and stay; under another name a standby gets \
             data of its own"
        ),
        Data::Primary => format!(
            "the data in its volume are a primary's; `pgbox replica {name} --of {of}` says what it takes until they follow"
        ),
        Data::Standby | Data::Superseded(_) => return None,
    };
    Some(format!("`{name}` is left out: {why}"))
}

/// A new primary of that name would be another cluster than the one that its standbys are of. True if that is so.
fn refuse_orphans(head: &Name, actual: &Actual, nodes: &mut Vec<WantedNode>, changes: &mut Changes) -> bool {
    let data = actual.data.get(head).copied().unwrap_or_default();
    let is_wanted = nodes.iter().any(|node| node.spec.node == *head);
    let orphan = actual.nodes.iter().find(|node| node.role.follows(head));
    let (None, Data::None, true, Some(orphan)) = (actual.node(head), data, is_wanted, orphan) else {
        return false;
    };
    changes.refused.push(format!(
        "`{head}` is gone with its data, and `{0}` follows it: an empty `{head}` would be no primary for it; \
         first: `pgbox promote {0}`",
        orphan.spec.node
    ));
    nodes.retain(|node| node.spec.node != *head);
    true
}

/// Leaves out who has what nobody else has: an old primary, or who was promoted by somebody else.
fn is_member(name: &Name, actual: &Actual, changes: &mut Changes) -> bool {
    let left = actual.left.get(name);
    if let Some(Left { by, .. }) = left
        && actual.node(by).is_some_and(|node| node.role.follows(name))
    {
        let (what, way_out) = hint::unfinished(name, by);
        changes.refused.push(format!("{what}: {way_out}"));
        return false;
    }
    let there = actual.node(name);
    if let Some(text) = there.and_then(|there| there.stray.as_ref()) {
        changes.refused.push(text.clone());
        return false;
    }
    if let (Some(Existing { role: Role::Superseded { .. }, alone: Some(text), .. }), None) = (there, left) {
        changes.refused.push(text.clone());
        return false;
    }
    let Some(Left { by, loss: Some(loss) }) = left else { return true };
    let way_out = match actual.node(name) {
        Some(_) => format!("to give that up: `pgbox rejoin {name}`"),
        None => format!("to give that up: `pgbox volume rm {name}`, then `pgbox up` again"),
    };
    changes.refused.push(format!(
        "`{name}` was the primary; `{by}` was promoted in its place and lacks {loss}; {way_out}"
    ));
    false
}

/// Whether somebody takes writes when these are done.
pub fn has_primary(actual: &Actual, actions: &[Action]) -> bool {
    let is_primary =
        |action: &Action| matches!(action, Action::Create { node, .. } if node.spec.follow.is_none());
    actual.nodes.iter().any(|node| node.role == Role::Primary) || actions.iter().any(is_primary)
}

/// Standbys that get nothing new from anybody.
pub fn orphans(wanted: &Wanted, actual: &Actual) -> Vec<String> {
    let comes = |name: &Name| wanted.nodes.iter().any(|node| node.spec.node == *name);
    let orphan = |node: &Existing| match &node.role {
        Role::Standby { of } if !comes(of) => node.alone.clone(),
        _ => None,
    };
    actual.nodes.iter().filter_map(orphan).collect()
}

/// Goes up from a node as far as it goes.
fn top(actual: &Actual, name: Name) -> Name {
    let limit = actual.nodes.len() + actual.left.len();
    spec::upward(&name, limit, |name| actual.above(name)).last().unwrap_or(name)
}

/// How many nodes are above one that is there.
pub fn depth(actual: &Actual, name: &Name) -> usize {
    let of = |name: &Name| match actual.node(name).map(|node| &node.role) {
        Some(Role::Standby { of }) => Some(of.clone()),
        _ => None,
    };
    spec::upward(name, actual.nodes.len(), of).count()
}

fn follows<'w>(nodes: &'w [WantedNode], name: &Name) -> Option<&'w Name> {
    let node = nodes.iter().find(|node| node.spec.node == *name)?;
    node.spec.follow.as_ref().map(|follow| &follow.of)
}

/// Whether the way up from a node ends at `root`.
fn leads_to(wanted: &Wanted, name: &Name, root: &Name) -> bool {
    let of = |name: &Name| follows(&wanted.nodes, name).cloned();
    let top = spec::upward(name, wanted.nodes.len(), of).last();
    of(root).is_none() && top.as_ref().unwrap_or(name) == root
}
