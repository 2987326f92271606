//! Clusters: a primary with everything that follows it, directly or through another standby. A lab may have several.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{
    node::{self, Node},
    rival::{self, Rival, What},
};
use crate::{
    hint::{self, advise},
    spec::{self, Name},
    state::{Role, Root},
};

/// The nodes of one cluster, its head first.
pub struct Cluster {
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// The node that all others follow: the primary, or what is left of one.
    pub fn head(&self) -> &Node {
        &self.nodes[0]
    }

    pub fn node(&self, name: &Name) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == *name)
    }

    /// The same of one that was asked for by name.
    ///
    /// # Errors
    /// When it is of another cluster.
    pub fn member(&self, name: &Name) -> Result<&Node> {
        self.node(name).with_context(|| format!("`{name}` is not of the cluster of `{}`", self.head().name))
    }

    /// Who was to take the head's place, and still follows it: that was not finished.
    pub fn heir(&self) -> Option<&Node> {
        let Role::Superseded { by } = self.head().state.role() else { return None };
        self.node(&by)
    }

    /// The nodes that follow this one directly.
    pub fn followers<'c>(&'c self, of: &Name) -> impl Iterator<Item = &'c Node> {
        self.nodes.iter().filter(move |node| node.state.role().follows(of))
    }
}

/// The cluster that a node belongs to.
///
/// # Errors
/// When there is no such node, it runs no Postgres, or the node that everything follows is gone.
pub fn of(root: &Root, lab: &Name, name: &Name) -> Result<Cluster> {
    among(root, lab, node::all(root, lab)?, name)
}

/// The same among the nodes of one look at the lab.
fn among(root: &Root, lab: &Name, nodes: Vec<Node>, name: &Name) -> Result<Cluster> {
    let node = nodes.iter().find(|node| node.name == *name);
    let node = node.ok_or_else(|| node::absent(root, lab, name))?;
    node.login()?;
    if head_of(&nodes, name).is_none() {
        return Err(advise(format!("`{name}` follows a node that is gone"), way_out(&nodes, node)));
    }
    let mut clusters = sort(nodes).0.into_iter();
    clusters
        .find(|cluster| cluster.node(name).is_some())
        .with_context(|| format!("`{name}` is in no cluster"))
}

/// As [`of`]; but a node is also of the cluster that its data are of, where whom it follows is gone, or who took its place.
///
/// # Errors
/// As [`of`], when there is no primary with such data.
pub fn by_data(root: &Root, lab: &Name, name: &Name) -> Result<Cluster> {
    let mut nodes = node::all(root, lab)?;
    let lost = nodes.iter().position(|node| node.name == *name && is_lost(&nodes, node));
    let found = lost.and_then(|at| Some((at, kin(&nodes, &nodes[at])?.name.clone())));
    let Some((at, primary)) = found else { return among(root, lab, nodes, name) };
    let node = nodes.remove(at);
    let mut cluster = among(root, lab, nodes, &primary)?;
    cluster.nodes.push(node);
    Ok(cluster)
}

/// Whether no way leads from a node to a primary, nor to one whose place is about to be taken.
pub fn is_lost(nodes: &[Node], node: &Node) -> bool {
    match head_of(nodes, &node.name).and_then(|head| role_of(nodes, &head)) {
        Some(Role::Superseded { by }) => role_of(nodes, &by).is_none(),
        Some(_) => false,
        None => true,
    }
}

/// The primary among these nodes whose data have the same origin as those of `node`.
fn kin<'n>(nodes: &'n [Node], node: &Node) -> Option<&'n Node> {
    let is_primary =
        |other: &&Node| other.state.role() == Role::Primary && other.is_kin_of(node) == Some(true);
    let mut primaries: Vec<&Node> = nodes.iter().filter(is_primary).collect();
    if primaries.iter().any(|primary| primary.pidfd.is_some()) {
        primaries.retain(|primary| primary.pidfd.is_some());
    }
    match primaries[..] {
        [primary] => Some(primary),
        _ => None,
    }
}

/// The standbys of a lab that has nothing of a primary left, if all are of one cluster; else those of the cluster that `known`
/// are of.
pub fn without_primary<'n>(nodes: &'n [Node], known: &[Name]) -> Vec<&'n Node> {
    if nodes.iter().any(|node| head_of(nodes, &node.name).is_some()) {
        return Vec::new();
    }
    let left: Vec<(&Node, u64)> = nodes.iter().filter_map(|node| Some((node, node.origin()?))).collect();
    let led = left.iter().find(|(node, _)| known.contains(&node.name));
    let Some((_, own)) = led.or(left.first()) else { return Vec::new() };
    let (ours, others): (Vec<_>, Vec<_>) = left.iter().partition(|(_, other)| other == own);
    match led.is_some() || others.is_empty() {
        true => ours.into_iter().map(|(node, _)| node).collect(),
        false => Vec::new(),
    }
}

/// What to type about a standby of a node that is gone, among these.
pub fn way_out(nodes: &[Node], node: &Node) -> String {
    let name = &node.name;
    match kin(nodes, node) {
        Some(primary) => format!("to make it follow the primary, `{}`: `pgbox rejoin {name}`", primary.name),
        None => format!("to make it the primary: `pgbox promote {name}`"),
    }
}

/// What to say of an old primary that is not to start as it is, and what to type.
pub fn stays_down(root: &Root, nodes: &[Node], node: &Node) -> Option<(String, String)> {
    let Role::Superseded { by } = node.state.role() else { return None };
    let name = &node.name;
    if role_of(nodes, &by).is_some_and(|role| role.follows(name)) {
        return Some(hint::unfinished(name, &by));
    }
    let what = format!(
        "`{name}` was the primary, and `{by}` was promoted in its place: two primaries would grow apart"
    );
    let way_out = left_alone(root, nodes, node);
    let way_out = way_out.unwrap_or_else(|| format!("bring it back as a standby: `pgbox rejoin {name}`"));
    Some((what, way_out))
}

/// What to say of a node if the one that it follows, or that took its place, is gone.
pub fn left_alone(root: &Root, nodes: &[Node], node: &Node) -> Option<String> {
    let name = &node.name;
    let (gone, what) = match node.state.role() {
        Role::Standby { of } => (of.clone(), format!("`{name}` follows `{of}`, which is gone")),
        Role::Superseded { by } => {
            (by.clone(), format!("`{by}`, which was promoted in the place of `{name}`, is gone"))
        }
        Role::Primary | Role::Command => return None,
    };
    if role_of(nodes, &gone).is_some() {
        return None;
    }
    let rivals = rival::of(root, nodes, node).unwrap_or_default();
    // Of standbys that are left, one is as good as another, as far as anybody knows.
    let is_ahead =
        |rival: &&Rival| rival.what == What::Primary || matches!(node.state.role(), Role::Superseded { .. });
    match rivals.iter().find(is_ahead) {
        Some(rival) if kin(nodes, node).is_none() => Some(format!("{what}; {}", rival.way_out())),
        _ => Some(format!("{what}; {}", way_out(nodes, node))),
    }
}

/// The clusters of a lab, in the order of their heads' names.
pub fn all(root: &Root, lab: &Name) -> Result<Vec<Cluster>> {
    Ok(sort(node::all(root, lab)?).0)
}

/// Sorts the nodes of a lab into clusters, and those that belong to none: other commands, and standbys of nodes that are
/// gone. All of one look: a node whose role changes meanwhile must not be in two of them.
pub fn sort(nodes: Vec<Node>) -> (Vec<Cluster>, Vec<Node>) {
    let heads: Vec<Option<Name>> = nodes.iter().map(|node| head_of(&nodes, &node.name)).collect();
    let mut clusters: BTreeMap<Name, Vec<Node>> = BTreeMap::new();
    let mut rest = Vec::new();
    for (node, head) in nodes.into_iter().zip(heads) {
        head.map_or(&mut rest, |head| clusters.entry(head).or_default()).push(node);
    }
    let head_first = |(head, mut nodes): (Name, Vec<Node>)| {
        nodes.sort_by_key(|node| node.name != head);
        Cluster { nodes }
    };
    (clusters.into_iter().map(head_first).collect(), rest)
}

/// The servers that a node gets its data through, nearest first.
pub fn above(nodes: &[Node], name: &Name) -> impl Iterator<Item = Name> {
    spec::upward(name, nodes.len(), |name| match role_of(nodes, name) {
        Some(Role::Standby { of }) => Some(of),
        _ => None,
    })
}

/// How many servers a node gets its data through: none for a primary, and for whatever follows nobody.
pub fn depth(nodes: &[Node], name: &Name) -> usize {
    above(nodes, name).count()
}

/// A standby whose upstream is gone, with everything that follows it.
pub fn below(root: &Root, lab: &Name, name: &Name) -> Result<Cluster> {
    let node = node::find(root, lab, name)?;
    node.login()?;
    let mut nodes = vec![node];
    let mut rest = node::all(root, lab)?;
    loop {
        let follows = |other: &mut Node| match other.state.role() {
            Role::Standby { of } => nodes.iter().any(|node| node.name == of),
            _ => false,
        };
        let found: Vec<Node> = rest.extract_if(.., follows).filter(|other| other.name != *name).collect();
        if found.is_empty() {
            return Ok(Cluster { nodes });
        }
        nodes.extend(found);
    }
}

/// The cluster that is meant when none is named: the one with standbys, or the only one.
pub fn main(root: &Root, lab: &Name) -> Result<Cluster> {
    choose(node::all(root, lab)?, lab, None)
}

/// The same, of the nodes of one look at the lab: it may change meanwhile. Where several could be meant, it is the one of
/// the node `before`.
pub fn choose(nodes: Vec<Node>, lab: &Name, before: Option<&Name>) -> Result<Cluster> {
    let (mut clusters, rest) = sort(nodes);
    let has_standbys = |cluster: &Cluster| cluster.nodes.len() > 1;
    // What is left of an old primary is nothing to choose.
    if clusters.iter().any(|cluster| cluster.head().state.role() == Role::Primary) {
        clusters.retain(|cluster| has_standbys(cluster) || cluster.head().state.role() == Role::Primary);
    }
    if clusters.iter().filter(|cluster| has_standbys(cluster)).count() == 1 {
        clusters.retain(has_standbys);
    }
    let of = |name: &Name| clusters.iter().position(|cluster| cluster.node(name).is_some());
    let heads: Vec<&str> = clusters.iter().map(|cluster| cluster.head().name.as_str()).collect();
    match (clusters.len(), before.and_then(of)) {
        (0, _) => Err(no_primary(&rest, lab)),
        (1, _) => Ok(clusters.remove(0)),
        (_, Some(at)) => Ok(clusters.remove(at)),
        (_, None) => Err(advise(
            format!("lab `{lab}` has several clusters, of {}", heads.join(", ")),
            "name a node of the one that is meant (`drive` and `guard`: with --node), or keep each in a lab of its own \
             with --lab",
        )),
    }
}

fn no_primary(nodes: &[Node], lab: &Name) -> anyhow::Error {
    let is_there = |name: &Name| role_of(nodes, name).is_some();
    let is_left = |node: &&Node| match node.state.role() {
        Role::Standby { of: above } | Role::Superseded { by: above } => !is_there(&above),
        Role::Primary | Role::Command => node.state.postgres().is_some(),
    };
    let servers = nodes.iter().filter(is_left);
    let left: Vec<&str> = servers.map(|node| node.name.as_str()).collect();
    match left.first() {
        None => advise(
            format!("no Postgres runs in lab `{lab}`"),
            "make one: `pgbox run primary`; `pgbox ps` shows what there is",
        ),
        Some(first) => advise(
            format!("lab `{lab}` has no primary: what {} followed is gone", left.join(", ")),
            format!("name the node that is meant, or make it the primary: `pgbox promote {first}`"),
        ),
    }
}

/// Goes up from a node as far as it goes: `None` where the way leads to a node that is gone, or in a circle.
pub fn head_of(nodes: &[Node], name: &Name) -> Option<Name> {
    let mut name = name.clone();
    for _ in 0..=nodes.len() {
        let node = nodes.iter().find(|node| node.name == name)?;
        match node.state.role() {
            Role::Primary => return Some(name),
            Role::Standby { of } => name = of,
            // Its place was to be taken by one that still follows it: somebody was killed on the way, or failed.
            Role::Superseded { by } if role_of(nodes, &by).is_some_and(|role| role.follows(&name)) => {
                return Some(name);
            }
            Role::Superseded { by } if nodes.iter().any(|node| node.name == by) => name = by,
            Role::Superseded { .. } => return Some(name),
            Role::Command => return None,
        }
    }
    None
}

fn role_of(nodes: &[Node], name: &Name) -> Option<Role> {
    nodes.iter().find(|node| node.name == *name).map(|node| node.state.role())
}

/// The node that takes the lab's writes, or those of the cluster of the node that is named. Found anew each time, because
/// a failover moves it.
///
/// # Errors
/// When there is none, or more than one.
pub fn writable(root: &Root, lab: &Name, named: Option<&Name>) -> Result<Node> {
    let mut cluster = match named {
        Some(name) => of(root, lab, name)?,
        None => main(root, lab)?,
    };
    let head = cluster.nodes.remove(0);
    head.running()?;
    match head.state.role() {
        Role::Superseded { by } => Err(advise(
            format!("`{}` is no primary any more: `{by}` was promoted in its place", head.name),
            format!("`pgbox rejoin {}`", head.name),
        )),
        _ => Ok(head),
    }
}
