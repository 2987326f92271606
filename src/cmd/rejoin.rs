//! `pgbox rejoin` and `pgbox reinit`: a node comes back as a standby of the primary that there is now.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Context, collation, need_root, start, stop};
use crate::{
    cli,
    engine::{
        follower,
        halt::{self, Shutdown},
        orders, slots, takeover,
    },
    facts::{
        cluster::{self, Cluster},
        history::{self, WayBack},
        node::{self, Node},
        stray,
        wal::Place,
    },
    hint::advise,
    plan::follow,
    postgres::launch::RenewHow,
    spec::{Follow, Name},
    sql,
    state::{NodeState, Role},
};

pub fn run(context: &Context, args: &cli::Rejoin) -> Result<i32> {
    need_root("pgbox rejoin")?;
    match args.clone {
        true => renew(context, &args.node, RenewHow::Clone, args.dry_run, args.timeout),
        false => rejoin(context, &args.node, args.dry_run, args.timeout),
    }
}

/// Brings a node back with as much of its data as can be kept, unless nothing is to be done.
pub fn rejoin(context: &Context, name: &Name, dry_run: bool, timeout: Duration) -> Result<i32> {
    if let Some(of) = streams_from(context, name)? {
        outln!("{name} streams from {of} already");
        return Ok(0);
    }
    renew(context, name, RenewHow::Rewind, dry_run, timeout)
}

/// The server that a node streams from, if it does: then there is nothing to mend.
fn streams_from(context: &Context, name: &Name) -> Result<Option<Name>> {
    let cluster = cluster::by_data(&context.root, &context.lab, name)?;
    let node = cluster.member(name)?;
    let Role::Standby { of } = node.state.role() else { return Ok(None) };
    let Some(server) = cluster.node(&of).filter(|of| of.can_answer()) else {
        return Ok(None);
    };
    let streams = node.can_answer() && follower::streams(&server.login()?, name.as_str()).is_ok();
    // One that is ahead of a new primary is seen to stream the end of the old timeline, for a moment.
    Ok((streams && !stray::leads_away(&cluster.nodes, node)).then_some(of))
}

pub fn reinit(context: &Context, args: &cli::Reinit) -> Result<i32> {
    need_root("pgbox reinit")?;
    renew(context, &args.node, RenewHow::Clone, args.dry_run, args.timeout)
}

fn renew(context: &Context, name: &Name, how: RenewHow, dry_run: bool, timeout: Duration) -> Result<i32> {
    crate::sys::exe::reexec_read_only()?;
    let before = cluster::by_data(&context.root, &context.lab, name)?;
    let node = before.member(name)?;
    check(context, &before, node)?;
    check_origin(before.head(), node, how)?;
    collation::warn_of_upstream(context, &node.state, &before.head().state);
    if dry_run {
        let (how, why) = choose(how, &node.state, before.head(), upstream(&before, node))?;
        outln!("{}: `{name}` becomes a standby of `{}`", shown(how), before.head().name);
        super::note(context, &why);
        return Ok(0);
    }
    checkpoint(before.head())?;
    let lock = context.lock()?;
    let cluster = cluster::by_data(&context.root, &context.lab, name)?;
    let (node, primary) = (cluster.member(name)?, cluster.head());
    check(context, &cluster, node)?;
    check_origin(primary, node, how)?;
    ensure!(
        primary.name == before.head().name,
        "`{}` has become the primary at this moment; try again",
        primary.name
    );
    stop::end(context, node, Shutdown::Fast, None)?;
    let mut state = node.state.clone();
    let old = state.spec.follow.clone();
    let of = upstream(&cluster, node);
    let follow = Follow::turned(old.as_ref(), of.name.clone());
    takeover::share_replicator(&context.root, node, &primary.name)?;
    let upstream = of.upstream(primary)?;
    let (how, why) = choose(how, &node.state, primary, of)?;
    super::note(context, &why);
    let renew = orders::renewal(how);
    follow::follow(&mut state, follow, &upstream, Some(renew), node.dir.replicator_file());
    orders::save(&node.dir, &state)?;
    // The server that it followed before keeps nothing for it any more.
    slots::settle(&cluster::of(&context.root, &context.lab, &primary.name)?)?;
    halt::take_down(&node::find(&context.root, &context.lab, name)?)?;
    drop(lock);
    start::start(context, name, timeout, timeout)?;
    Ok(0)
}

/// Whom a node follows when it comes back: another standby, if it was so, or the primary.
fn upstream<'c>(cluster: &'c Cluster, node: &Node) -> &'c Node {
    let of = node.state.spec.follow.as_ref().and_then(|follow| cluster.node(&follow.of));
    of.filter(|of| of.pidfd.is_some()).unwrap_or(cluster.head())
}

/// What is done to a node's data so that it follows, and why.
fn choose(asked: RenewHow, node: &NodeState, primary: &Node, of: &Node) -> Result<(RenewHow, String)> {
    let name = &node.spec.node;
    let back = || -> Result<WayBack> {
        let (own, theirs, upstream) = (Place::of(node)?, Place::of(&primary.state)?, Place::of(&of.state)?);
        Ok(history::way_back((name, own), (&primary.name, theirs), (&of.name, upstream)))
    };
    if asked != RenewHow::Rewind {
        // Also where nothing of the old data can be found: they are not needed.
        let loss = back().ok().and_then(|back| back.loss);
        let why = format!("a new base backup of `{}` takes the place of the data of `{name}`", of.name);
        return Ok((asked, history::with_loss(why, loss.as_deref())));
    }
    let back = back()?;
    Ok((back.how, back.why))
}

/// pg_rewind looks for the new timeline in the control file, which has it from the first checkpoint on. That may take long,
/// and for ever if the primary freezes meanwhile: nobody waits for the lab's lock as long.
fn checkpoint(primary: &Node) -> Result<()> {
    let server = primary.login()?;
    // One that says nothing now has nothing to give either.
    server.ask(sql::PATIENCE, |client| client.batch_execute("SELECT"))?;
    server.ask(Duration::from_secs(300), |client| client.batch_execute("CHECKPOINT"))
}

/// The same for a node that is yet to be made and will follow `of`.
pub fn checkpoint_above(context: &Context, of: &Name) -> Result<()> {
    checkpoint(cluster::of(&context.root, &context.lab, of)?.head())
}

fn check(context: &Context, cluster: &Cluster, node: &Node) -> Result<()> {
    let (name, primary) = (&node.name, cluster.head());
    match primary.state.role() {
        Role::Superseded { by } => Err(takeover::without_successor(&context.root, cluster, &by)?),
        _ if primary.name == *name && primary.pidfd.is_none() => Err(advise(
            format!("`{name}` is the primary, and does not run"),
            format!("`pgbox start {name}`; or a standby takes its place first: `pgbox failover STANDBY`"),
        )),
        _ if primary.name == *name => Err(advise(
            format!("`{name}` is the primary"),
            "switch over to a standby first: `pgbox switchover STANDBY`",
        )),
        _ if primary.pidfd.is_none() => Err(advise(
            format!("the primary `{}` does not run", primary.name),
            format!("start it first: `pgbox start {}`", primary.name),
        )),
        _ => primary
            .awake()
            .map(drop)
            .and_then(|()| stray::refuse(&cluster.nodes, upstream(cluster, node), Some(name))),
    }
}

/// Refuses to keep anything of data that come from another initdb. Where that can't be read, pg_rewind finds out.
fn check_origin(primary: &Node, node: &Node, how: RenewHow) -> Result<()> {
    match (node.origin(), primary.origin()) {
        (Some(own), Some(theirs)) if own != theirs && how != RenewHow::Clone => Err(advise(
            format!(
                "the data of `{}` are of another cluster, {own}, than those of `{}`, {theirs}: nothing of them can be kept",
                node.name, primary.name
            ),
            format!("to put a new base backup in their place: `pgbox reinit {}`", node.name),
        )),
        _ => Ok(()),
    }
}

fn shown(how: RenewHow) -> &'static str {
    match how {
        RenewHow::Sign => "as it is",
        RenewHow::Rewind => "pg_rewind, or else a new base backup",
        RenewHow::Clone => "a new base backup in place of its data",
    }
}
