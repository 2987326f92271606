//! A planned change of the primary, in which nothing is lost: it is shut down, marked, and only then is the standby promoted
//! that has all it had.
//!
//! The rule that surprises people: a primary that shuts down *fast* waits until its standbys have received everything, the
//! last checkpoint record included. So when it is down, a standby that streamed has all of it, and the old primary can
//! follow it without a rewind.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    follower,
    halt::{self, Shutdown},
    orders,
    takeover::{self, Promoted},
    timelines,
};
use crate::{
    facts::{
        cluster::Cluster,
        node::{self, Node},
        stray,
        wal::Place,
    },
    hint::{self, advise},
    plan::follow,
    postgres::{control::ClusterState, launch::RenewHow, question},
    spec::{Follow, Name},
    sql,
    state::{Role, Root},
};

/// The primary and the standby that is to take its place, if that can be done without a loss.
pub fn check<'c>(root: &Root, cluster: &'c Cluster, target: &Name) -> Result<(&'c Node, &'c Node)> {
    let old = cluster.head();
    let target = cluster.member(target)?;
    target.awake()?;
    if let Some(heir) = cluster.heir() {
        let (what, way_out) = hint::unfinished(&old.name, &heir.name);
        return Err(advise(what, way_out));
    }
    if old.state.role() != Role::Primary || old.pidfd.is_none() {
        return Err(advise(
            format!("the primary `{}` does not run", old.name),
            format!("if it can't be started again: `pgbox failover {}`", target.name),
        ));
    }
    old.awake()?;
    if !target.state.role().follows(&old.name) {
        let way_out = match target.state.role() {
            Role::Standby { of } if cluster.node(&of).is_none() => format!("`pgbox rejoin {}`", target.name),
            _ => format!("switch over to a standby that does, then to `{}`", target.name),
        };
        return Err(advise(format!("`{}` does not follow `{}` itself", target.name, old.name), way_out));
    }
    takeover::lets_in(old, old)?;
    takeover::lets_in(target, old)?;
    // One whose data are no part of the primary's is seen to stream as well.
    stray::refuse(&cluster.nodes, target, None)?;
    follower::streams(&old.login()?, target.name.as_str()).map_err(|why| {
        advise(
            format!("`{}` does not stream, so it would lack what is written now: {why}", target.name),
            format!("see `pgbox logs {0}`; wait for it with `pgbox wait {0} --for streaming`", target.name),
        )
    })?;
    applies(old, target)?;
    timelines::unheard_of(root, target)?;
    Ok((old, target))
}

/// Refuses one that does not apply what it receives: clients would wait until it has, and it is told not to.
fn applies(old: &Node, target: &Node) -> Result<()> {
    let name = &target.name;
    if target.state.applies_late() {
        return Err(advise(
            format!(
                "`{name}` applies late on purpose, and has to apply all that it has before it can be the primary"
            ),
            format!(
                "switch over to a standby that applies at once; a new one: `pgbox replica NAME --of {}`",
                old.name
            ),
        ));
    }
    let is_paused =
        target.login()?.ask(sql::PATIENCE, |client| client.query_one(question::IS_PAUSED, &[]))?;
    if is_paused.get(0) {
        return Err(advise(
            format!("the replay of `{name}` is paused"),
            format!("let it go on: `pgbox psql {name} -c 'SELECT pg_wal_replay_resume()'`"),
        ));
    }
    Ok(())
}

/// How long a standby that keeps up may take to receive a checkpoint.
const SOON: Duration = Duration::from_secs(5);

/// Has the primary write a checkpoint, so that its last one has little left to write, and waits until the other one has received
/// that. A standby that was just cut off is seen to stream for seconds, and a primary that is shut down for it would only be
/// started again.
///
/// # Errors
/// When it has not received it soon. Nothing was done by then.
pub fn prepare(old: &Node, target: &Node, patience: Duration) -> Result<()> {
    old.login()?.ask(patience, |client| client.batch_execute("CHECKPOINT"))?;
    receives(old, target, patience.min(SOON)).map_err(|error| {
        advise(
            format!("{error:#}: it is cut off, or far behind"),
            format!("`{}` was not stopped; see `pgbox status` and `pgbox net ls`", old.name),
        )
    })
}

/// Shuts the primary down, and makes sure that the other one has got its last word.
///
/// # Errors
/// When it has not. The primary is down then, and still the primary.
pub fn shut_down(old: &Node, target: &Node, patience: Duration) -> Result<()> {
    if halt::ask(old.running()?, Shutdown::Fast, patience)? {
        return has_all(old, target, patience);
    }
    halt::end(old, Shutdown::Immediate, Duration::from_secs(10))?;
    anyhow::bail!("`{}` did not shut down in {}", old.name, humantime::format_duration(patience))
}

/// Waits until the standby has received the old primary's shutdown checkpoint, the last that it has written: a promotion replays
/// what was received first. Of one that has ended in another way, nobody knows whether the standby got all that came after its
/// last checkpoint.
fn has_all(old: &Node, target: &Node, patience: Duration) -> Result<()> {
    let state = Place::of(&old.state)?.control()?.state;
    ensure!(state == ClusterState::ShutDown, "`{}` has ended without a clean shutdown", old.name);
    receives(old, target, patience)
}

/// Waits until a standby has received the newest checkpoint of the other one.
fn receives(old: &Node, target: &Node, patience: Duration) -> Result<()> {
    let end = Place::of(&old.state)?.control()?.checkpoint;
    let deadline = Instant::now() + patience;
    loop {
        let received = takeover::received(target)?;
        if received > end {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "`{}` has received up to {received}, and `{}` has written its last checkpoint at {end}",
            target.name,
            old.name
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Puts the other one in the place of the primary that is down. `others` are the standbys that are to follow it from now on;
/// `moved` is called as soon as it takes writes.
pub fn promote(
    root: &Root,
    old: &Node,
    target: &Node,
    others: &[&Node],
    moved: impl FnOnce() -> Result<()>,
) -> Result<Promoted> {
    // Before the other one is a primary: whoever ends this command now must not leave two that could be started.
    takeover::supersede(old, &target.name)?;
    takeover::promote(root, target, others, moved).map_err(|error| {
        advise(
            format!("`{}` is stopped, and `{}` not yet the primary: {error:#}", old.name, target.name),
            format!("finish it: `pgbox failover {}`", target.name),
        )
    })
}

/// Has the old primary follow the new one from its next start on: which has all that it has, so nothing is to be taken back.
pub fn follow_back(root: &Root, old: &Node, target: &Node) -> Result<()> {
    let mut state = old.state.clone();
    let upstream = target.upstream(target)?;
    let follow = Follow::of(target.name.clone());
    takeover::share_replicator(root, old, &target.name)?;
    let renew = orders::renewal(RenewHow::Sign);
    follow::follow(&mut state, follow, &upstream, Some(renew), old.dir.replicator_file());
    orders::save(&old.dir, &state)?;
    // As it is now: it is superseded, and has no process.
    halt::take_down(&node::find(root, &old.lab, &old.name)?)
}
