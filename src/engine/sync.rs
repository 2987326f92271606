//! Whom commits wait for: the lab's rule, brought to the primary as far as its standbys are there.

use anyhow::Result;

use super::{goal, orders, takeover};
use crate::{
    facts::cluster::{self, Cluster},
    postgres::launch::Orders,
    spec::Name,
    state::{NodeState, Role, Root},
};

/// The setting, as every server of the cluster is told it: a standby has no use for it until it is promoted.
pub const SETTING: &str = "synchronous_standby_names";

/// Brings the rule to the primary if what it was told before is not right any more. Returns what is in effect.
pub fn settle(root: &Root, cluster: &Cluster) -> Result<String> {
    let head = cluster.head();
    let followers: Vec<Name> = cluster.followers(&head.name).map(|node| node.name.clone()).collect();
    let mut state = head.state.clone();
    let Some(value) = in_effect(root, &head.lab, &head.name, &followers)? else {
        return Ok(told(&state).to_owned());
    };
    if state.role() == Role::Primary && told(&state) != value {
        tell(&mut state, &value);
        orders::give(&head.dir, &state, head.pidfd.as_ref())?;
    }
    Ok(value)
}

/// A standby has come up: if the rule is to wait for it and it streams, commits do so from now on. One that does not stream
/// yet would only make them hang.
pub fn joined(root: &Root, lab: &Name, name: &Name) -> Result<()> {
    if root.load_lab(lab)?.is_none_or(|lab| lab.sync.is_none())
        || goal::reached(root, lab, name, goal::Goal::Streaming).is_err()
    {
        return Ok(());
    }
    let _lock = root.lock(lab)?;
    let cluster = cluster::of(root, lab, name)?;
    let value = settle(root, &cluster)?;
    match cluster.head().pidfd {
        Some(_) => takeover::wait_for_setting(&cluster.head().login()?, value),
        None => Ok(()),
    }
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
