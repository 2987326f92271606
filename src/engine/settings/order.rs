//! Which of two values is the higher one, and what a single node of a cluster must not be told alone: see
//! [`parameter`](crate::postgres::parameter).

use anyhow::{Context as _, Result};

use super::{Change, find, number};
use crate::{
    engine::goal,
    facts::{cluster::Cluster, node::Node},
    hint::advise,
    postgres::{
        parameter::{self, Parameter},
        settings,
    },
    state::Role,
};

/// What a parameter of a node will be: as the generated file will say, or as it is without that.
pub fn planned(node: &Node, change: Option<&Change>, name: &str, known: &[Parameter]) -> Result<i64> {
    let mut asked = node.state.spec.settings.clone();
    let mut orders = node.state.postgres().map_or_else(Vec::new, |postgres| postgres.orders.settings.clone());
    if let Some(change) = change {
        settings::change(&mut orders, &mut asked, name, change.value.as_deref());
    }
    let fallback = || find(known, name).and_then(|parameter| parameter.fallback.clone());
    let value = settings::value(&orders, name).map(str::to_owned).or_else(fallback);
    let value = value.with_context(|| format!("what {name} would be is not known"))?;
    value.trim().parse().with_context(|| format!("{name}={value} is no whole number"))
}

/// The changes whose order counts.
fn ordered(changes: &[Change]) -> impl Iterator<Item = &Change> {
    changes.iter().filter(|change| parameter::is_ordered(&change.name))
}

/// The names of what becomes lower on a primary.
///
/// # Errors
/// When the primary does not run and the order counts: nobody knows then what its standbys have yet to replay.
pub fn lowered(head: &Node, changes: &[Change], known: &[Parameter]) -> Result<Vec<String>> {
    let mut lowered = Vec::new();
    for change in ordered(changes) {
        primary_runs(head, &change.name)?;
        if planned(head, Some(change), &change.name, known)? < number(head, &change.name)? {
            lowered.push(change.name.clone());
        }
    }
    Ok(lowered)
}

/// Whether a server has more of all of these than it will have after a restart, and may need it.
pub fn are_lowered(node: &Node, parameters: &[&Parameter], known: &[Parameter]) -> Result<bool> {
    for parameter in parameters {
        if !parameter::is_ordered(&parameter.name)
            || planned(node, None, &parameter.name, known)? >= parameter.setting.parse()?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn primary_runs(head: &Node, name: &str) -> Result<()> {
    head.running()
        .map(drop)
        .with_context(|| format!("{name} is changed in an order that begins or ends there"))
}

/// Refuses what would leave a standby with less than its primary.
pub fn refuse_alone(cluster: &Cluster, node: &Node, changes: &[Change], known: &[Parameter]) -> Result<()> {
    for change in ordered(changes) {
        let value = planned(node, Some(change), &change.name, known)?;
        match node.state.role() {
            Role::Standby { .. } => refuse_on_standby(cluster, node, change, value)?,
            _ => refuse_on_primary(cluster, node, change, value, known)?,
        }
    }
    Ok(())
}

fn refuse_on_standby(cluster: &Cluster, node: &Node, change: &Change, value: i64) -> Result<()> {
    let (name, head) = (&change.name, cluster.head());
    if node.pidfd.is_some() && value >= number(node, name)? {
        return Ok(());
    }
    primary_runs(head, name)?;
    let needed = number(head, name)?;
    if value < needed {
        return Err(advise(
            format!(
                "with {name}={value} `{}` could not replay: its primary `{}` has {needed}",
                node.name, head.name
            ),
            format!("lower it on the primary first, or everywhere: pgbox set --all {name}={value}"),
        ));
    }
    // The primary may have had more a moment ago. To that a start sees itself.
    if node.pidfd.is_none() || node.state.applies_late() {
        return Ok(());
    }
    goal::write_lsn(head).and_then(|written| goal::has_replayed(node, written)).map_err(|why| {
        advise(
            format!("`{}` may have to replay a time when its primary had more: {why:#}", node.name),
            format!("`pgbox wait {} --for caught-up`, then again", node.name),
        )
    })
}

fn refuse_on_primary(
    cluster: &Cluster,
    node: &Node,
    change: &Change,
    value: i64,
    known: &[Parameter],
) -> Result<()> {
    let name = &change.name;
    for standby in cluster.nodes.iter().filter(|other| matches!(other.state.role(), Role::Standby { .. })) {
        let has = match standby.pidfd {
            Some(_) => number(standby, name)?,
            None => planned(standby, None, name, known)?,
        };
        if value > has {
            return Err(advise(
                format!(
                    "with {name}={value} on `{}` its standby `{}`, which has {has}, could not replay",
                    node.name, standby.name
                ),
                format!("raise it on the standbys first, or everywhere: pgbox set --all {name}={value}"),
            ));
        }
    }
    Ok(())
}
