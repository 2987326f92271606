//! Whom commits wait for: the lab's rule, brought to the primary as far as its standbys are there.

use anyhow::{Context, Result};

use super::orders;
use crate::{
    facts::{
        cluster::{self, Cluster},
        node::Node,
    },
    postgres::launch::Orders,
    spec::{Name, SyncRule},
    state::{LabState, NodeState, Role, Root},
};

/// The setting, as every server of the cluster is told it: a standby has no use for it until it is promoted.
pub const SETTING: &str = "synchronous_standby_names";

/// Brings the rule to the primary if what it was told before is not right any more. Returns what is in effect.
pub fn settle(root: &Root, cluster: &Cluster) -> Result<String> {
    let head = cluster.head();
    let followers: Vec<Name> = cluster.followers(&head.name).map(|node| node.name.clone()).collect();
    let Some(value) = in_effect(root, &head.lab, &head.name, &followers)? else {
        return Ok(told(&head.state).to_owned());
    };
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

/// Makes a standby one of those that commits wait for. It should stream by now: they wait for it from here on.
pub fn join(root: &Root, lab: &Name, name: &Name) -> Result<SyncRule> {
    let mut state = load(root, lab)?;
    let rule = match state.sync.take() {
        Some(rule) => rule.with(name),
        None => SyncRule::any(vec![name.clone()]),
    };
    state.sync = Some(rule.clone());
    root.save_lab(lab, &state)?;
    settle(root, &cluster::of(root, lab, name)?)?;
    Ok(rule)
}

/// Takes the rule from every server: a standby may have it from a time when it was the primary.
pub fn forget(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes.iter().filter(|node| !told(&node.state).is_empty()) {
        let mut state = node.state.clone();
        tell(&mut state, "");
        orders::give(&node.dir, &state, node.pidfd.as_ref())?;
    }
    Ok(())
}

fn load(root: &Root, lab: &Name) -> Result<LabState> {
    root.load_lab(lab)?.with_context(|| format!("nothing is remembered of lab `{lab}`"))
}

/// What a primary with these followers is to be told. `None` without a rule: then it is the user's own affair.
pub fn in_effect(root: &Root, lab: &Name, primary: &Name, followers: &[Name]) -> Result<Option<String>> {
    let rule = root.load_lab(lab)?.and_then(|lab| lab.sync);
    Ok(rule.map(|rule| rule.in_effect(primary, followers)))
}

/// What a node's server was told last.
pub fn told(state: &NodeState) -> &str {
    let settings = state.postgres().map_or(&[][..], |postgres| &postgres.orders.settings);
    settings.iter().rev().find(|(name, _)| name == SETTING).map_or("", |(_, value)| value)
}

/// Changes what a node's server is told; its orders are still to be given.
pub fn tell(state: &mut NodeState, value: &str) {
    let Some(postgres) = state.postgres_mut() else { return };
    let Orders { settings, .. } = &mut postgres.orders;
    settings.retain(|(name, _)| name != SETTING);
    if !value.is_empty() {
        settings.push((SETTING.to_owned(), value.to_owned()));
    }
}
