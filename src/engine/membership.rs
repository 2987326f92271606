//! What follows from who is in a cluster: a slot for each standby on the server that it follows and no other, and commits
//! that wait for those standbys of the lab's rule that are there. Settled whenever a node comes, goes or comes back.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{follower, slots, sync, takeover};
use crate::{
    facts::{
        cluster::{self, Cluster},
        node::{self, Node},
    },
    spec::{Name, SyncRule},
    state::{Role, Root},
};

/// A primary whose commits wait for others than before.
pub struct Change {
    pub primary: Name,
    /// As the server is told it; empty: for nobody.
    pub waits_for: String,
}

/// What became of the lab's rule when a node was taken out of it.
pub struct Departure {
    /// The rule that is left, if the node was in the old one; `Some(None)`: nobody was left in it.
    pub rule: Option<Option<SyncRule>>,
    pub change: Option<Change>,
}

/// Lets no commit wait for a node that is to go, before it goes. The caller holds the lab's lock.
pub fn leave(root: &Root, lab: &Name, name: &Name) -> Result<Departure> {
    let mut departure = Departure { rule: None, change: None };
    let Some(mut state) = root.load_lab(lab)? else { return Ok(departure) };
    let Some(rule) = state.sync.clone() else { return Ok(departure) };
    // Of a node that can't be looked at the name is enough.
    let cluster = cluster::of(root, lab, name).ok();
    let heirs = cluster.iter().flat_map(|cluster| cluster.followers(name));
    let heirs = heirs.filter(|node| !node.state.applies_late()).map(|node| node.name.clone());
    state.sync = rule.clone().without(name, &heirs.collect::<Vec<_>>());
    if state.sync.as_ref() != Some(&rule) {
        root.save_lab(lab, &state)?;
        departure.rule = Some(state.sync.clone());
    }
    if let Some(mut cluster) = cluster.filter(|cluster| cluster.head().name != *name) {
        cluster.nodes.retain(|node| node.name != *name);
        let head = cluster.head();
        let waits_for = match state.sync {
            // Also a node that is in no rule may sit in a seat that is free.
            Some(_) => due(root, &cluster, Duration::ZERO)?,
            None => Some(String::new()).filter(|_| !sync::told(&head.state).is_empty()),
        };
        match (&waits_for, state.sync) {
            (_, None) => sync::forget(cluster.nodes.iter())?,
            (Some(value), _) => sync::give(head, value)?,
            (None, _) => {}
        }
        departure.change = waits_for.map(|waits_for| Change { primary: head.name.clone(), waits_for });
    }
    Ok(departure)
}

/// Has the standbys of a standby that is to go follow the server that it followed itself. Those of a primary can only be told
/// of: true if there are any. `others` are the nodes that stay.
pub fn hand_on(root: &Root, node: &Node, others: &[Node], mut tell: impl FnMut(&str)) -> Result<bool> {
    let gone = &node.name;
    let followers: Vec<&Node> = others.iter().filter(|other| other.state.role().follows(gone)).collect();
    let upstream = match node.state.role() {
        Role::Standby { of } => node::find(root, &node.lab, &of).ok(),
        _ => None,
    };
    for follower in &followers {
        let name = &follower.name;
        let text = match &upstream {
            Some(of) => {
                takeover::turn(root, follower, of)?;
                format!("`{name}` follows `{}` now", of.name)
            }
            None => format!("`{name}` followed `{gone}`; {}", cluster::way_out(others, follower)),
        };
        tell(&text);
    }
    if let (Some(of), false) = (&upstream, followers.is_empty()) {
        // While the slot of the one that goes still keeps what they may lack.
        slots::settle(&cluster::below(root, &node.lab, &of.name)?)?;
    }
    Ok(upstream.is_none() && !followers.is_empty())
}

/// How long a standby that runs may take to stream. One that has just come to a new primary is seen to stream the end of the
/// old timeline, and then for a moment not at all, before it streams the new one.
const TURN: Duration = Duration::from_secs(1);

/// Settles every cluster of a lab as it is at this moment. The caller holds the lab's lock.
pub fn settle(root: &Root, lab: &Name) -> Result<Vec<Change>> {
    settle_within(root, lab, Duration::ZERO)
}

fn settle_within(root: &Root, lab: &Name, patience: Duration) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for cluster in cluster::all(root, lab)? {
        slots::settle(&cluster)?;
        if let Some(waits_for) = due(root, &cluster, patience)? {
            let head = cluster.head();
            sync::give(head, &waits_for)?;
            changes.push(Change { primary: cluster.head().name.clone(), waits_for });
        }
        sync::confirm(cluster.head())?;
    }
    Ok(changes)
}

/// The same for who does not hold the lock, and has just started a node. It is taken only if there is something to do:
/// whoever has it may wait for a server that hangs.
pub fn settle_unlocked(root: &Root, lab: &Name) -> Result<Vec<Change>> {
    let clusters = cluster::all(root, lab)?;
    let is_settled = |cluster: &Cluster| {
        let head = &cluster.head().state;
        slots::unsettled(cluster).next().is_none()
            && due(root, cluster, TURN).is_ok_and(|due| due.is_none())
            && (head.sync_since.is_some() || sync::told(head).is_empty() || cluster.head().pidfd.is_none())
    };
    if clusters.iter().all(is_settled) {
        return Ok(Vec::new());
    }
    let _lock = root.lock(lab)?;
    settle_within(root, lab, TURN)
}

/// What a primary is to be told about whom its commits wait for, unless it knows. They begin to wait for a standby when
/// it streams, and not while its base backup is being made; and stop to wait when it leaves, and not when it is away.
fn due(root: &Root, cluster: &Cluster, patience: Duration) -> Result<Option<String>> {
    let head = cluster.head();
    if head.state.role() != Role::Primary {
        return Ok(None);
    }
    let server = head.login()?;
    let answers = head.can_answer();
    let deadline = Instant::now() + patience;
    let streams = |node: &Node| loop {
        let is_over = !node.can_answer() || Instant::now() >= deadline;
        match follower::streams(&server, node.name.as_str()).is_ok() {
            false if !is_over => std::thread::sleep(Duration::from_millis(10)),
            streams => return streams,
        }
    };
    let followers: Vec<&Node> = cluster.followers(&head.name).collect();
    let told = sync::told(&head.state);
    let value = sync::due(root, head, &followers, told, |node, _| answers && streams(node))?;
    Ok(value.filter(|value| value != told))
}
