//! Whom commits wait for: the lab's rule, brought to the primary as far as its standbys are there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{follower, orders, proof};
use crate::{
    facts::{
        self,
        cluster::{self, Cluster},
        node::{self, Node},
        stray,
        wal::Place,
    },
    postgres::{launch::Orders, question, report::Phase},
    spec::{Name, SyncRule},
    sql::Session,
    state::{LabState, NodeState, Role, Root},
};

/// With `off` or `local` a commit waits for no standby.
pub const COMMIT: &str = "synchronous_commit";

/// The setting, as every server of the cluster is told it: a standby has no use for it until it is promoted.
pub const SETTING: &str = "synchronous_standby_names";

/// Brings the rule to the primary as the user has just said it. Returns what is in effect. Those of the rule are waited for from
/// now on whether they stream or not, if they are standbys by now; who would only sit in a free seat, if it streams.
pub fn settle(root: &Root, cluster: &Cluster) -> Result<String> {
    let head = cluster.head();
    let server = head.login()?;
    let answers = head.can_answer();
    let streams = |node: &Node| answers && follower::streams(&server, node.name.as_str()).is_ok();
    let followers: Vec<&Node> = cluster.followers(&head.name).collect();
    let value = due(root, head, &followers, "", |node, is_named| match is_named {
        true => is_made(node),
        false => streams(node),
    })?;
    let Some(value) = value else { return Ok(told(&head.state).to_owned()) };
    give(head, &value)?;
    Ok(value)
}

/// Has a primary go by this value, unless it does.
pub fn give(head: &Node, value: &str) -> Result<()> {
    let mut state = head.state.clone();
    if state.role() == Role::Primary && told(&state) != value {
        tell(&mut state, value);
        orders::give(&head.dir, &state, head.pidfd.as_ref())?;
    }
    Ok(())
}

/// Notes from where on a primary goes by what it was told last, if that is not known. True if it does go by it. The caller holds
/// the lab's lock.
pub fn confirm(head: &Node) -> Result<bool> {
    let Some(mut state) = head.dir.load()? else { return Ok(false) };
    let value = told(&state).to_owned();
    let may_answer = state.role() == Role::Primary && head.can_answer();
    if state.sync_since.is_some() || value.is_empty() || !may_answer {
        return Ok(state.sync_since.is_some());
    }
    let server = head.login()?;
    let since = server.ask(proof::PATIENCE, |client| match await_setting(client, &value)? {
        true => proof::see_a_commit_wait(&server, client),
        false => Ok(None),
    })?;
    state.sync_since = since.map(|lsn| lsn.parse()).transpose()?;
    orders::save(&head.dir, &state)?;
    Ok(state.sync_since.is_some())
}

/// Waits until a server goes by what it was told; one second is plenty for a file of some lines. Its senders read the file
/// each for itself, so that they are asked, too. False also where its commits wait for nobody, whatever the rule says; a
/// session that has chosen that for itself is not seen.
pub(super) fn await_setting(client: &mut Session, value: &str) -> Result<bool, postgres::Error> {
    let names: Vec<String> = value
        .parse()
        .map_or(Vec::new(), |rule: SyncRule| rule.names.iter().map(ToString::to_string).collect());
    let begun = Instant::now();
    while !client.query_one(question::GOES_BY, &[&value, &names])?.get::<_, bool>(0) {
        if begun.elapsed() > Duration::from_secs(1) {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(client.query_one(question::COMMITS_WAIT, &[])?.get(0))
}

/// Makes a standby one of those that commits wait for. It should stream by now: they wait for it from here on.
pub fn join(root: &Root, lab: &Name, name: &Name) -> Result<SyncRule> {
    let mut state = load(root, lab)?;
    let rule = match state.sync.take() {
        Some(rule) => rule.with(name),
        None => SyncRule::any(vec![name.clone()]),
    };
    state.sync = Some(rule.clone());
    root.save_lab(lab, &state)?;
    let cluster = cluster::of(root, lab, name)?;
    settle(root, &cluster)?;
    confirm(cluster.head())?;
    Ok(rule)
}

/// Takes the rule from every server: a standby may have it from a time when it was the primary.
pub fn forget<'n>(nodes: impl Iterator<Item = &'n Node>) -> Result<()> {
    for node in nodes.filter(|node| !told(&node.state).is_empty()) {
        let mut state = node.state.clone();
        tell(&mut state, "");
        orders::give(&node.dir, &state, node.pidfd.as_ref())?;
    }
    Ok(())
}

fn load(root: &Root, lab: &Name) -> Result<LabState> {
    root.load_lab(lab)?.with_context(|| format!("nothing is remembered of lab `{lab}`"))
}

/// What a primary with these followers is to be told about whom its commits wait for, see [`SyncRule::due`]. `None` without a
/// rule: then it is the user's own affair.
pub fn due(
    root: &Root,
    primary: &Node,
    followers: &[&Node],
    told: &str,
    joins: impl Fn(&Node, bool) -> bool,
) -> Result<Option<String>> {
    let Some(rule) = root.load_lab(&primary.lab)?.and_then(|lab| lab.sync) else { return Ok(None) };
    let left = left(root, &primary.lab, &primary.name)?;
    let named = |name: &Name| followers.iter().find(|node| node.name == *name);
    // Who has gone its own way may be seen to stream, and acknowledges what it has not.
    let is_part =
        |node: &Node| node::all(root, &node.lab).is_ok_and(|nodes| stray::parted(&nodes, node).is_none());
    let joins =
        |name: &Name, is_named: bool| named(name).is_some_and(|node| joins(node, is_named) && is_part(node));
    let followers = followers.iter().map(|node| (&node.name, node.state.applies_late()));
    Ok(Some(rule.due(&left, told, followers, joins)))
}

/// Whether a node has the data of a standby, and is not about to get others. To wait for one before would be to wait for its base
/// backup.
pub fn is_made(node: &Node) -> bool {
    let works = matches!(
        node.status.phase,
        Phase::Preparing | Phase::BaseBackup | Phase::Clone | Phase::Rewind | Phase::Initdb | Phase::Scripts
    );
    !(works && node.pidfd.is_some()) && Place::of(&node.state).and_then(Place::control).is_ok()
}

/// The primary, and those whose place it has taken and who are not back yet.
fn left(root: &Root, lab: &Name, primary: &Name) -> Result<Vec<Name>> {
    let by = Role::Superseded { by: primary.clone() };
    let old =
        facts::nodes(root, lab)?.into_iter().filter(|(_, state)| state.role() == by).map(|(name, _)| name);
    Ok(old.chain([primary.clone()]).collect())
}

/// What a node's server was told last.
pub fn told(state: &NodeState) -> &str {
    let settings = state.postgres().map_or(&[][..], |postgres| &postgres.orders.settings);
    settings.iter().rev().find(|(name, _)| name == SETTING).map_or("", |(_, value)| value)
}

/// Changes what a node's server is told; its orders are still to be given.
pub fn tell(state: &mut NodeState, value: &str) {
    if told(state) != value {
        state.sync_since = None;
    }
    let Some(postgres) = state.postgres_mut() else { return };
    let Orders { settings, .. } = &mut postgres.orders;
    settings.retain(|(name, _)| name != SETTING);
    if !value.is_empty() {
        settings.push((SETTING.to_owned(), value.to_owned()));
    }
}
