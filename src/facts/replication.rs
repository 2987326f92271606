//! What a lab is like at this moment: each node as the kernel shows it, each server as it says itself, all asked at once,
//! and put together into one picture for each cluster.
//!
//! The rule that surprises people: a frozen or cut off server doesn't refuse a question, it says nothing for ever. So
//! every answer has a limit, and a node that gives none is a fact like any other.

use std::{collections::BTreeMap, net::Ipv4Addr, thread, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::{
    cluster::{self, Cluster},
    node::{self, Life, Node},
    recovery::{self, Recovery},
    stray,
};
use crate::{
    postgres::{
        lsn::Lsn,
        report::Phase,
        standby,
        status::{self, Answer, Sender, Slot},
    },
    spec::{Name, SyncRule},
    state::{Role, Root},
    sys::cgroup::Stats,
};

mod warnings;

pub use warnings::{waiting, waits_for_nobody};

/// How long a server may take to say how it is.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A whole lab.
#[derive(Debug, Serialize)]
pub struct Lab {
    pub lab: Name,
    /// Whom commits are to wait for, as `pgbox sync` was told.
    pub sync_rule: Option<String>,
    pub clusters: Vec<Picture>,
    /// Nodes of no cluster: other commands, and standbys of nodes that are gone.
    pub others: Vec<Member>,
    /// What somebody should look at of those.
    pub warnings: Vec<String>,
}

/// A cluster: its primary first, then each node after the one that it follows.
#[derive(Debug, Serialize)]
pub struct Picture {
    pub nodes: Vec<Member>,
    pub sync: Sync,
    /// A standby that was about to take the place of the primary, which is marked and out of the way, when that was interrupted.
    pub unfinished_takeover: Option<Takeover>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

/// A change of the primary that was begun and not finished.
#[derive(Debug, Serialize)]
pub struct Takeover {
    pub old: Name,
    pub new: Name,
    /// Whether it takes writes already; `None` when it can't be asked.
    pub promoted: Option<bool>,
}

/// Whom commits wait for.
#[derive(Debug, Default, Serialize)]
pub struct Sync {
    /// What the primary goes by: `synchronous_standby_names`. `None` when it can't be asked.
    pub in_effect: Option<String>,
    /// `synchronous_commit`, where for that commits wait for nobody all the same.
    pub waived_by: Option<String>,
    /// Commits that wait at this moment.
    pub waiting_commits: u64,
    /// How long ago the oldest of their statements began.
    pub longest_wait_ms: f64,
    /// The standbys that they wait for.
    pub waiting_for: Vec<String>,
}

/// A node. What is not known, or makes no sense for it, is `None`.
#[derive(Debug, Serialize)]
pub struct Member {
    pub node: Name,
    pub role: &'static str,
    /// The node that it follows; of an old primary, the one that took its place.
    pub follows: Option<Name>,
    /// How many nodes are between it and the primary, itself included.
    #[serde(skip)]
    pub depth: usize,
    pub state: String,
    /// What there is to say of a standby that is none any more.
    pub stray: Option<String>,
    pub address: Ipv4Addr,
    pub timeline: Option<u32>,
    pub sent_lsn: Option<Lsn>,
    pub write_lsn: Option<Lsn>,
    pub flush_lsn: Option<Lsn>,
    pub replay_lsn: Option<Lsn>,
    /// How far a standby has received, in its own words: also of one that nobody sends to.
    pub receive_lsn: Option<Lsn>,
    /// What the primary has written and this one has not replayed.
    pub lag_bytes: Option<u64>,
    /// How much later than on the server it follows something is replayed here.
    pub lag_ms: Option<f64>,
    pub sync_state: Option<String>,
    /// Its slot on the server that it follows.
    pub slot: Option<Slot>,
    pub recovery: Option<Recovery>,
    /// Without page cache that is not in use.
    pub memory_bytes: Option<u64>,
    pub memory_limit: Option<u64>,
    pub oom_kills: Option<u64>,
    /// Why it did not answer, or what it ended with.
    pub error: Option<String>,
}

/// What is known of one node before its neighbours are.
struct Seen {
    node: Node,
    /// `None`: it was not asked, for it can't answer.
    answer: Option<Result<Answer>>,
    recovery: Option<Recovery>,
    usage: Stats,
    /// What there is to say of a standby, if it does not stream.
    stuck: Option<String>,
    stray: Option<String>,
}

/// Looks at a whole lab.
pub fn look(root: &Root, lab: &Name) -> Result<Lab> {
    let nodes = node::all(root, lab)?;
    let mut strays: BTreeMap<Name, String> =
        nodes.iter().filter_map(|node| Some((node.name.clone(), stray::said(&nodes, node)?))).collect();
    let mut stuck: BTreeMap<Name, String> =
        nodes.iter().filter_map(|node| Some((node.name.clone(), recovery::stuck(&nodes, node)?))).collect();
    let (clusters, others) = cluster::sort(nodes);
    // All of them at once: several that say nothing must not add up.
    let mut groups: Vec<Vec<Node>> = clusters.into_iter().map(|Cluster { nodes }| nodes).collect();
    groups.push(others);
    let mut seen: Vec<Vec<Seen>> = thread::scope(|scope| {
        let mut ask = |node: Node| {
            let (stray, stuck) = (strays.remove(&node.name), stuck.remove(&node.name));
            scope.spawn(move || Seen { stray, stuck, ..see(root, node) })
        };
        let asked: Vec<Vec<_>> =
            groups.into_iter().map(|nodes| nodes.into_iter().map(&mut ask).collect()).collect();
        let join = |threads: Vec<thread::ScopedJoinHandle<'_, Seen>>| {
            threads.into_iter().map(|t| t.join().expect("no panic while asking")).collect()
        };
        asked.into_iter().map(join).collect()
    });
    let others = seen.pop().unwrap_or_default();
    let others = without_primary(&others);
    let rule = root.load_lab(lab)?.and_then(|lab| lab.sync);
    let clusters = seen.iter().map(|nodes| picture(nodes, rule.as_ref())).collect();
    let (others, warnings) = others;
    Ok(Lab { lab: lab.clone(), sync_rule: rule.map(|rule| rule.to_string()), clusters, others, warnings })
}

fn see(root: &Root, node: Node) -> Seen {
    let answer = (node.is_up() && node.state.postgres().is_some()).then(|| ask(&node));
    let starting = node.life == Life::Running && node.status.phase == Phase::Starting;
    let recovery = if starting { recovery::of(root, &node).ok().flatten() } else { None };
    let usage = node.pidfd.as_ref().and_then(|_| node.cgroup(root).ok()?.stats().ok()).unwrap_or_default();
    Seen { node, answer, recovery, usage, stuck: None, stray: None }
}

/// Asks a node's server how it is.
pub fn ask(node: &Node) -> Result<Answer> {
    let text = node
        .login()?
        .ask(PATIENCE, |client| client.query_one(status::QUESTION, &[]).map(|row| row.get::<_, String>(0)))?;
    status::parse(&text)
}

impl Seen {
    fn said(&self) -> Option<&Answer> {
        self.answer.as_ref()?.as_ref().ok()
    }

    /// The node that it hangs below in the picture.
    fn above(&self) -> Option<Name> {
        match self.node.state.role() {
            Role::Standby { of } => Some(of),
            Role::Superseded { by } => Some(by),
            Role::Primary | Role::Command => None,
        }
    }

    fn sender(&self, name: &Name) -> Option<&Sender> {
        self.said()?.senders.iter().find(|sender| sender.application_name == name.as_str())
    }

    fn slot(&self, name: &Name) -> Option<&Slot> {
        let slot = standby::slot_name(name.as_str());
        self.said()?.slots.iter().find(|row| row.slot_name == slot)
    }
}

fn picture(nodes: &[Seen], rule: Option<&SyncRule>) -> Picture {
    let Some(head) = nodes.first() else {
        let sync = Sync::default();
        return Picture { nodes: Vec::new(), sync, unfinished_takeover: None, warnings: Vec::new() };
    };
    let mut members = vec![member(head, None, Some(head), 0)];
    below(nodes, head, head, 1, &mut members);
    let sync = sync(head, &members);
    let unfinished_takeover = unfinished(nodes, head);
    let mut warnings = warnings::of(nodes, &members, &sync);
    warnings.extend(unfinished_takeover.as_ref().map(warnings::of_takeover));
    warnings.extend(rule.and_then(|rule| warnings::not_in_effect(nodes, rule)));
    warnings.extend(rule.and_then(|_| warnings::waived(&head.node.name, &sync)));
    Picture { nodes: members, sync, unfinished_takeover, warnings }
}

/// Nodes that have no primary: each below the one that it follows, where that is there.
fn without_primary(nodes: &[Seen]) -> (Vec<Member>, Vec<String>) {
    let mut members = Vec::new();
    let is_there = |name: Name| nodes.iter().any(|one| one.node.name == name);
    for one in nodes.iter().filter(|one| !one.above().is_some_and(is_there)) {
        members.push(member(one, None, None, 0));
        below(nodes, one, one, 1, &mut members);
    }
    // Who is part of a circle.
    let drawn: Vec<Name> = members.iter().map(|member| member.node.clone()).collect();
    let rest = nodes.iter().filter(|one| !drawn.contains(&one.node.name));
    members.extend(rest.map(|one| member(one, None, None, 0)));
    let warnings = warnings::of(nodes, &members, &Sync::default());
    (members, warnings)
}

/// Who was to take the place of the head of a cluster, and still follows it.
fn unfinished(nodes: &[Seen], head: &Seen) -> Option<Takeover> {
    let Role::Superseded { by } = head.node.state.role() else { return None };
    let new = nodes.iter().find(|one| one.node.name == by)?;
    let promoted = new.said().map(|said| !said.in_recovery);
    Some(Takeover { old: head.node.name.clone(), new: by, promoted })
}

/// Adds what follows a node, and what follows that.
fn below(nodes: &[Seen], head: &Seen, above: &Seen, depth: usize, members: &mut Vec<Member>) {
    let name = &above.node.name;
    // An old primary stands below the new one, which may be below it in no other way.
    for one in
        nodes.iter().filter(|one| one.above().as_ref() == Some(name) && one.node.name != head.node.name)
    {
        members.push(member(one, Some(above), Some(head), depth));
        below(nodes, head, one, depth + 1, members);
    }
}

fn member(one: &Seen, above: Option<&Seen>, head: Option<&Seen>, depth: usize) -> Member {
    let node = &one.node;
    let said = one.said();
    let sender = above.and_then(|above| above.sender(&node.name));
    let recovers = said.is_some_and(|said| said.in_recovery);
    let own = said.filter(|said| said.in_recovery);
    let replay_lsn = own.and_then(|said| said.replay).or(sender.and_then(|sender| sender.replay_lsn));
    let written = head.and_then(|head| head.said()?.write);
    let lag_bytes = match (above, written, replay_lsn) {
        (Some(_), Some(written), Some(replayed)) => Some(replayed.behind(written)),
        _ => None,
    };
    let usage = &one.usage;
    let cache = usage.memory_inactive_file.unwrap_or(0);
    Member {
        node: node.name.clone(),
        role: node.state.role().word(),
        follows: one.above(),
        depth,
        state: state(one, above, sender),
        stray: one.stray.clone(),
        address: node.state.address.addr(),
        timeline: said.and_then(|said| said.timeline),
        sent_lsn: sender.and_then(|sender| sender.sent_lsn),
        write_lsn: sender.and_then(|sender| sender.write_lsn).or(said.and_then(|said| said.write)),
        flush_lsn: sender.and_then(|sender| sender.flush_lsn).or(said.and_then(|said| said.flush)),
        replay_lsn,
        receive_lsn: own.and_then(|said| said.write),
        lag_bytes,
        lag_ms: lag_ms(sender, said.filter(|_| recovers), lag_bytes),
        sync_state: sender.and_then(|sender| sender.sync_state.clone()),
        slot: above.and_then(|above| above.slot(&node.name)).cloned(),
        recovery: one.recovery.clone(),
        memory_bytes: usage.memory_current.map(|all| all.saturating_sub(cache)),
        memory_limit: usage.memory_max,
        oom_kills: usage.oom_kills.or(Some(one.node.status.oom_kills).filter(|kills| *kills > 0)),
        error: error(one),
    }
}

/// One word: what the server that is followed says of a standby is worth more than that it runs. Where that one says nothing,
/// the standby's own word counts: connections to a frozen server stay open.
fn state(one: &Seen, above: Option<&Seen>, sender: Option<&Sender>) -> String {
    let is_silent = above.is_some_and(|above| above.said().is_none());
    let word = match (&one.answer, sender) {
        (None, _) => one.node.word(),
        (Some(Err(_)), _) => "silent",
        // Seen to stream again and again, and no standby all the same.
        (Some(Ok(said)), _) if one.stray.is_some() && said.in_recovery => "diverged",
        (Some(Ok(_)), Some(sender)) => sender.state.as_deref().unwrap_or("connecting"),
        (Some(Ok(said)), None) if said.in_recovery && is_silent && said.receiver.is_some() => {
            said.receiver.as_deref().unwrap_or_default()
        }
        (Some(Ok(said)), None) if said.in_recovery => "disconnected",
        (Some(Ok(_)), None) if one.stray.is_some() => "promoted",
        (Some(Ok(_)), None) => one.node.word(),
    };
    word.to_owned()
}

/// The server measures a lag only while something happens; with nothing left to replay there is none.
fn lag_ms(sender: Option<&Sender>, standby: Option<&Answer>, lag_bytes: Option<u64>) -> Option<f64> {
    match (sender, lag_bytes) {
        (_, Some(0)) => Some(0.0),
        (Some(sender), _) => sender.replay_lag_ms,
        (None, Some(_)) => standby.and_then(|said| said.replayed_ms_ago),
        (None, None) => None,
    }
}

fn error(one: &Seen) -> Option<String> {
    match &one.answer {
        Some(Err(error)) => Some(format!("{error:#}")),
        Some(Ok(_)) => None,
        None => one.node.status.error.clone(),
    }
}

fn sync(head: &Seen, members: &[Member]) -> Sync {
    let Some(said) = head.said().filter(|said| !said.in_recovery) else { return Sync::default() };
    let names = status::sync_names(&said.sync);
    let holds_up = |name: &String| {
        let streams = members.iter().any(|m| m.node.as_str() == name && m.state == "streaming");
        !streams
    };
    let absent: Vec<String> = names.iter().filter(|name| holds_up(name)).cloned().collect();
    let waiting_for = match (said.waiting, absent.is_empty()) {
        (0, _) => Vec::new(),
        (_, true) => names,
        (_, false) => absent,
    };
    Sync {
        in_effect: Some(said.sync.clone()),
        waived_by: Some(said.commit.clone()).filter(|_| said.is_waived()),
        waiting_commits: said.waiting,
        longest_wait_ms: said.longest_wait_ms,
        waiting_for,
    }
}
