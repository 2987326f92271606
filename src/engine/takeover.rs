//! A standby takes the place of a primary that is out of the way: promotion, and everybody else turned to the new one.
//! PostgreSQL manual 27.3.
//!
//! The rule that surprises people: a promotion is quick, but the first commit after it may hang. It waits for
//! synchronous standbys like any other, and the old primary, the one standby that the rule may name now, is dead. What
//! the new primary is told must be right *before* it is promoted.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, ensure};

use super::{
    orders,
    ready::{self, Answer},
    slots, sync, timelines,
};
use crate::{
    facts::{
        cluster::Cluster,
        node::{self, Node},
        rival::{self, Rival},
        stray,
        wal::Place,
    },
    hint::{self, advise},
    plan::follow,
    postgres::{lsn::Lsn, question, standby::slot_name},
    spec::{Follow, Name},
    sql::{Login, PATIENCE, Session},
    state::{Role, Root},
    sys::process,
};

/// How long a promotion may take: it replays what was received first.
const PROMOTION: Duration = Duration::from_secs(120);

/// How long a node may take to die.
const FENCE: Duration = Duration::from_secs(10);

/// A server that has become a primary.
#[derive(Debug, Clone, Copy)]
pub struct Promoted {
    pub timeline: u32,
    /// Where its own timeline has begun to grow.
    pub lsn: Lsn,
}

/// Makes sure that a server can be asked and told anything, before another one is given up for it. `head` is that of its cluster.
///
/// # Errors
/// When it does not let pgbox in, or says nothing.
pub fn lets_in(node: &Node, head: &Node) -> Result<()> {
    match ready::ask(&node.login()?, PATIENCE) {
        Answer::Ready => Ok(()),
        Answer::WrongPassword(why) => Err(locked_out(node, head, &why)),
        Answer::Refused(why) | Answer::NotYet(why) => Err(advise(
            format!("`{}` can't be asked anything: {why}", node.name),
            format!("`pgbox logs {}` may tell why", node.name),
        )),
    }
}

/// What there is to say of a server that asks for another password than pgbox has. Only a primary can be given one.
pub fn locked_out(node: &Node, head: &Node, why: &str) -> Error {
    let head = Some(head).filter(|head| head.state.role() == Role::Primary);
    let back = |head: &Node| hint::give_back(&head.name, &head.dir.secret_file());
    let write = format!(
        "write the one that the server has now to {}, and nothing else",
        node.dir.secret_file().display()
    );
    let way_out = match head {
        Some(head) if head.pidfd.is_some() => format!("give back the one that pgbox knows: {}", back(head)),
        Some(head) => format!(
            "start the primary (`pgbox start {}`) and give back the one that pgbox knows: {}; if it can't be started, {write}",
            head.name,
            back(head)
        ),
        None => write,
    };
    let name = &node.name;
    advise(
        format!(
            "`{name}` does not let pgbox in ({why}): the superuser's password seems to have been changed"
        ),
        way_out,
    )
}

/// Ends a node at once, also a frozen one, so that it can't acknowledge anything any more. Its network stays until it is
/// taken down: its kernel tells its clients that their connections are no more. One of its processes may stay, and with it
/// pid 1, for as long as it waits in the kernel for a dead disk: it is killed as well, and runs no code of its own again.
///
/// # Errors
/// When that is not so after a while.
pub fn fence(root: &Root, node: &Node) -> Result<()> {
    let Some(pidfd) = &node.pidfd else { return Ok(()) };
    let group = node.cgroup(root)?;
    // All of them, before it thaws: pid 1 takes the others along only when it ends, and they would run until then.
    group.kill()?;
    // What is frozen by v1 dies when it thaws.
    group.thaw()?;
    let deadline = Instant::now() + FENCE;
    loop {
        if process::has_ended(pidfd.as_fd(), Duration::from_millis(200))? || group.is_dead()? {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "node `{}` does not end, not even by SIGKILL", node.name);
    }
}

/// Remembers that `by` is primary in the node's place. From here on it does not start again as it is.
pub fn supersede(node: &Node, by: &Name) -> Result<()> {
    let mut state = node.state.clone();
    state.superseded_by = Some(by.clone());
    orders::save(&node.dir, &state)
}

/// Promotes a standby. `others` are the standbys that are to follow it from now on; `moved` is called as soon as it takes
/// writes.
pub fn promote(
    root: &Root,
    target: &Node,
    others: &[&Node],
    moved: impl FnOnce() -> Result<()>,
) -> Result<Promoted> {
    let server = target.login()?;
    let mut state = target.state.clone();
    let own = own_followers(root, target)?;
    let followers: Vec<&Node> = others.iter().copied().chain(&own).collect();
    // Also without a rule: it may have been told one when it was the primary before.
    let rule = sync::due(root, target, &followers, "", |node, is_named| match is_named {
        true => sync::is_made(node),
        // Nobody can stream from it yet, and whoever is away is not to stop commits only because a seat is free.
        false => node.can_answer(),
    })?;
    let is_ruled = rule.is_some() || !sync::told(&state).is_empty();
    let value = rule.unwrap_or_default();
    if is_ruled {
        sync::tell(&mut state, &value);
        state.sync_since = None;
        orders::give(&target.dir, &state, target.pidfd.as_ref())?;
    }
    timelines::take(root, target)?;
    // Who is to follow it does so before it is a primary: its first commits may wait for them, and if this ends here, nobody is
    // left behind with a server that does not come back.
    let slots = followers.iter().map(|node| slot_name(node.name.as_str())).collect();
    slots::settle_one(&server, slots)?;
    for other in others {
        turn(root, other, target)?;
    }
    // One session for all: clients wait, and a login takes longer than most questions.
    let promoted = server.ask(PROMOTION, move |client| {
        let is_told = is_ruled && sync::await_setting(client, &value)?;
        Ok((is_told, promote_in(client)?))
    });
    let (is_told, (timeline, lsn)) = promoted.with_context(|| format!("promote `{}`", target.name))?;
    let promoted = Promoted { timeline, lsn: lsn.parse()? };
    state.sync_since = is_told.then_some(promoted.lsn);
    // If this ends here, it is on record who the primary is, before anybody is sent there.
    follow::lead(&mut state);
    orders::give(&target.dir, &state, target.pidfd.as_ref())?;
    moved()?;
    Ok(promoted)
}

/// The standbys that follow a node already.
fn own_followers(root: &Root, of: &Node) -> Result<Vec<Node>> {
    let follows = |node: &Node| node.state.role().follows(&of.name);
    Ok(node::all(root, &of.lab)?.into_iter().filter(follows).collect())
}

/// Turns a standby to another server, at once if it runs.
pub fn turn(root: &Root, node: &Node, of: &Node) -> Result<()> {
    let mut state = node.state.clone();
    let follow = Follow::turned(state.spec.follow.as_ref(), of.name.clone());
    let upstream = of.upstream(of)?;
    share_replicator(root, node, &of.name)?;
    follow::follow(&mut state, follow, &upstream, None, node.dir.replicator_file());
    orders::give(&node.dir, &state, node.pidfd.as_ref())
}

/// Sees to it that a node has the replication password of the one that it is to follow.
pub fn share_replicator(root: &Root, node: &Node, of: &Name) -> Result<()> {
    let theirs = root.node(&node.lab, of).replicator_file();
    let password = std::fs::read_to_string(&theirs).with_context(|| format!("read {}", theirs.display()))?;
    crate::state::write_secret(&node.dir.replicator_file(), &password)
}

/// Promotes the server of this session, unless it is a primary already, and waits until it takes writes. Gives its timeline, and
/// where its log ends.
fn promote_in(client: &mut Session) -> Result<(u32, String), postgres::Error> {
    let in_recovery = |client: &mut Session| -> Result<bool, postgres::Error> {
        Ok(client.query_one(question::IN_RECOVERY, &[])?.get(0))
    };
    if in_recovery(client)? {
        client.batch_execute(question::PROMOTE)?;
    }
    while in_recovery(client)? {
        std::thread::sleep(Duration::from_millis(1));
    }
    let row = client.query_one(question::TIMELINE, &[])?;
    Ok((row.get::<_, i32>(0) as u32, row.get(1)))
}

/// Whether a stream to a standby is open, on its side. Where it is over, nothing comes after.
///
/// # Errors
/// When it can't be asked.
pub fn receives(server: &Login) -> Result<bool> {
    server.ask(PATIENCE, receives_in)
}

fn receives_in(client: &mut Session) -> Result<bool, postgres::Error> {
    Ok(client.query_one(question::RECEIVES, &[])?.get(0))
}

/// The same, and how far a standby has received what it follows: to the end of the log on its disk, all of which it replays
/// before it is a primary. The server itself does not know that: what it has received counts from its last start, and what it
/// has replayed may be long behind, on purpose or not.
///
/// # Errors
/// When it can't be asked, or its log can't be read.
pub fn reception(standby: &Node) -> Result<(bool, Lsn)> {
    let (receives, known) = standby.login()?.ask(PATIENCE, |client| {
        // In this order: the receiver writes what the kernel has for it, and ends only then.
        let receives = receives_in(client)?;
        Ok((receives, client.query_one(question::RECEIVED, &[])?.get::<_, Option<String>>(0)))
    })?;
    let known = known.with_context(|| format!("`{}` has not replayed anything yet", standby.name))?;
    Ok((receives, Place::of(&standby.state)?.end(known.parse()?)?))
}

/// How far a standby has received what it follows.
pub fn received(standby: &Node) -> Result<Lsn> {
    Ok(reception(standby)?.1)
}

/// The node of this name, if a takeover ended when it had been promoted already, and it has gone down since: nothing starts it as
/// a standby, and its old primary does not start, either.
pub fn half_done<'c>(cluster: &'c Cluster, name: &Name) -> Option<&'c Node> {
    let heir = cluster.heir().filter(|heir| heir.name == *name)?;
    let is_down = heir.pidfd.is_none() && cluster.head().pidfd.is_none();
    (is_down && stray::has_left(heir)).then_some(heir)
}

/// Why nobody can follow the head of a cluster, an old primary, in whose place `by` was to be promoted or was.
///
/// # Errors
/// When the lab can't be looked at.
pub fn without_successor(root: &Root, cluster: &Cluster, by: &Name) -> Result<Error> {
    let old = &cluster.head().name;
    if cluster.heir().is_some() {
        let (what, way_out) = hint::unfinished(old, by);
        return Ok(advise(what, way_out));
    }
    let rivals = rival::of(root, &node::all(root, &cluster.head().lab)?, cluster.head())?;
    let way_out = rivals.first().map_or_else(
        || format!("`pgbox promote {old}` makes it the primary again, as it was"),
        Rival::way_out,
    );
    Ok(advise(format!("`{by}`, which was promoted in the place of `{old}`, is gone"), way_out))
}
