//! What a script waits for: a standby that streams, that has replayed what the primary had written, a role. Asked of the
//! servers again and again; the node may stop, start and change its role meanwhile.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::follower;
use crate::{
    facts::{
        cluster,
        node::{self, Node},
        stray,
    },
    hint::advise,
    postgres::{lsn::Lsn, question},
    spec::Name,
    sql,
    state::{Role, Root},
};

/// How long standbys may take to replay the change of their primary.
const REPLAY: Duration = Duration::from_secs(60);

/// What a node is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// A standby that the server it follows sends WAL to as it is written.
    Streaming,
    /// A standby that has replayed up to here.
    Replayed(Lsn),
    /// A server that takes writes.
    Primary,
    /// A server that replays what another one writes.
    Standby,
}

/// Looks once. An error is the reason why it is not so yet.
pub fn reached(root: &Root, lab: &Name, name: &Name, goal: Goal) -> Result<()> {
    let node = node::find(root, lab, name)?;
    match goal {
        Goal::Streaming => streams(root, &node),
        Goal::Replayed(lsn) => has_replayed(&node, lsn),
        Goal::Primary => has_role(&node, false),
        Goal::Standby => has_role(&node, true),
    }
}

/// How far the primary has written that a node follows in the end. `None` when the node itself is that primary.
pub fn written(root: &Root, lab: &Name, name: &Name) -> Result<Option<Lsn>> {
    let cluster = cluster::of(root, lab, name)?;
    match cluster.head() {
        head if head.name == *name => Ok(None),
        head => write_lsn(head).map(Some),
    }
}

/// How far a primary has written.
pub fn write_lsn(primary: &Node) -> Result<Lsn> {
    lsn(primary, question::WRITTEN)
}

/// Whether a standby has replayed up to there.
pub fn has_replayed(node: &Node, wanted: Lsn) -> Result<()> {
    let replayed = lsn(node, question::REPLAYED)?;
    anyhow::ensure!(replayed >= wanted, "it has replayed up to {replayed}, and not yet to {wanted}");
    Ok(())
}

/// Waits until a standby knows what its primary had written. For one that applies late nobody waits: it takes less at its next
/// start, if it knows by then (see [`lower`](super::settings::lower)).
pub fn wait_until_replayed(root: &Root, lab: &Name, name: &Name, wanted: Lsn) -> Result<()> {
    if node::find(root, lab, name)?.state.applies_late() {
        return Ok(());
    }
    let deadline = Instant::now() + REPLAY;
    while let Err(why) = reached(root, lab, name, Goal::Replayed(wanted)) {
        if Instant::now() >= deadline {
            return Err(advise(
                format!("`{name}` has not replayed the primary's change, and stays as it is: {why:#}"),
                format!("`pgbox wait {name} --for caught-up`, then again"),
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn lsn(node: &Node, sql: &'static str) -> Result<Lsn> {
    node.running()?;
    let said = node.login()?.ask(sql::PATIENCE, move |client| client.query_one(sql, &[]))?;
    Ok(said.get::<_, String>(0).parse()?)
}

fn streams(root: &Root, node: &Node) -> Result<()> {
    node.running()?;
    let Role::Standby { of } = node.state.role() else { anyhow::bail!("it is no standby") };
    let server = node::find(root, &node.lab, &of)?;
    server.running()?;
    let said = follower::streams(&server.login()?, node.name.as_str());
    // One whose data are no part of the primary's is seen to stream as well.
    let nodes = node::all(root, &node.lab)?;
    if let Some(told) = stray::source(&nodes, node).and_then(|source| stray::said(&nodes, source)) {
        anyhow::bail!(told);
    }
    let Err(why) = said else { return Ok(()) };
    let waits = node.state.applies_late() && follower::applies_late(&node.login()?).1;
    Err(anyhow::Error::msg(if waits { follower::late(&why) } else { why }))
}

fn has_role(node: &Node, standby: bool) -> Result<()> {
    node.running()?;
    let recovers = node.login()?.ask(sql::PATIENCE, |client| client.query_one(question::IN_RECOVERY, &[]))?;
    match (recovers.get::<_, bool>(0), standby) {
        (true, false) => anyhow::bail!("it is a standby"),
        (false, true) => anyhow::bail!("it is a primary"),
        _ => Ok(()),
    }
}
