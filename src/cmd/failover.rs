//! `pgbox failover`: a standby becomes the primary without the help of the old one.
//!
//! The rule that surprises people: what the old primary acknowledged last may be on its disk alone. Here that disk can be
//! read, so pgbox counts, instead of hoping, and refuses to let acknowledged transactions go unless told to.

use std::time::Instant;

use anyhow::Result;

use super::{Context, endpoint, need_root, start, which};
use crate::{
    cli,
    engine::{
        failover::{self, Pause},
        leftover::{self, Ahead},
        loss, orders, slots, sync, takeover,
    },
    facts::{
        cluster::{self, Cluster},
        node::{self, Node},
        rival,
    },
    hint::advise,
    plan::follow,
    spec::Name,
    state::{Lock, Role},
};

pub fn failover(context: &Context, args: &cli::Failover) -> Result<i32> {
    need_root("pgbox failover")?;
    let name = which::standby(context, args.node.as_ref())?;
    let lock = context.lock()?;
    if let Ok(cluster) = cluster::by_data(&context.root, &context.lab, name)
        && let Some(node) = takeover::half_done(&cluster, name)
    {
        return come_back(context, args, lock, node, &cluster.head().name);
    }
    take_over(context, args, name)
}

/// What both commands do once they may. The caller holds the lab's lock.
pub fn take_over(context: &Context, args: &cli::Failover, name: &Name) -> Result<i32> {
    let begun = Instant::now();
    let cluster = cluster::by_data(&context.root, &context.lab, name)
        .or_else(|_| cluster::below(&context.root, &context.lab, name))?;
    let target = cluster.member(name)?;
    let head = Some(cluster.head()).filter(|head| head.name != target.name);
    if head.is_none() && target.state.role() == Role::Primary {
        super::note(context, &format!("`{name}` is the primary already"));
        return Ok(0);
    }
    check(&cluster, target)?;
    refuse_second(context, &cluster, target)?;
    match head {
        Some(_) if failover::unfinished(&cluster).is_some() => {
            super::note(context, &format!("`{}` goes on with the takeover that was begun", target.name));
        }
        Some(head) => leave_behind(context, args, &cluster, head, target)?,
        None => spare_others(context, args, target)?,
    }
    if args.dry_run {
        outln!("promote: `{}`", target.name);
        endpoint::foretell(context, &cluster, &target.name)?;
        let orphans = failover::orphans(&context.root, target)?;
        let others = head.into_iter().flat_map(|head| cluster.followers(&head.name));
        others
            .chain(&orphans)
            .filter(|node| node.name != target.name)
            .for_each(|node| outln!("follow: `{}` follows `{}`", node.name, target.name));
        if let Some(text) = head.and_then(|head| slots::left_behind(head, target)) {
            super::warn(context, &text);
        }
        return Ok(0);
    }
    let (promoted, warnings) = failover::promote(&context.root, &cluster, head, target)?;
    warnings.iter().for_each(|text| super::warn(context, text));
    outln!(
        "{} is the primary, on timeline {} since {} ({:.0} ms)",
        target.name,
        promoted.timeline,
        promoted.lsn,
        begun.elapsed().as_secs_f64() * 1000.0
    );
    // Whom it waits for it was told before; that it does can only be seen now, when clients are there again.
    if let Err(error) = sync::confirm(target).and_then(|_| tell_of_rule(context, &target.name)) {
        super::warn(context, &format!("whom commits wait for now can't be told: {error:#}"));
    }
    if let Some(head) = head {
        super::note(context, &format!("`{0}` comes back as a standby with `pgbox rejoin {0}`", head.name));
    }
    Ok(0)
}

/// Starts a node as the primary that it was, or that its data say it is: `by`, who took its place or whom it followed, is gone.
pub fn come_back(context: &Context, args: &cli::Failover, lock: Lock, old: &Node, by: &Name) -> Result<i32> {
    let name = &old.name;
    let rivals = rival::of(&context.root, &node::all(&context.root, &context.lab)?, old)?;
    rival::refuse_primary(&rivals, old)?;
    if let Some(first) = rivals.first().filter(|_| !args.accept_loss) {
        return Err(advise(
            match old.state.role() {
                Role::Standby { .. } => format!("`{name}` may lack what `{by}` has acknowledged"),
                _ => format!(
                    "`{name}` may lack what `{by}`, which was promoted in its place, has acknowledged"
                ),
            },
            format!("{}; or give that up: `pgbox promote {name} --accept-loss`", first.way_out()),
        ));
    }
    if args.dry_run {
        outln!("start: `{name}` as the primary");
        return Ok(0);
    }
    crate::sys::exe::reexec_read_only()?;
    for rival in &rivals {
        super::note(context, &format!("given up: whatever {rival} has and `{name}` lacks"));
    }
    // Before anything can start as a second one.
    leftover::note(&context.root, old)?;
    let mut state = old.state.clone();
    follow::lead(&mut state);
    orders::save(&old.dir, &state)?;
    drop(lock);
    start::start(context, name, start::PATIENCE, start::PATIENCE)?;
    Ok(0)
}

/// Says that the lab's rule means nobody beside the new primary.
fn tell_of_rule(context: &Context, name: &Name) -> Result<()> {
    let rule = context.root.load_lab(&context.lab)?.and_then(|lab| lab.sync);
    let node = node::find(&context.root, &context.lab, name)?;
    if let Some(rule) = rule.filter(|_| sync::told(&node.state).is_empty()) {
        let text = format!(
            "commits on `{name}` wait for nobody until one that the rule {rule} means streams from it"
        );
        super::note(context, &text);
    }
    Ok(())
}

/// Refuses to promote a standby whose primary is gone, if somebody else has more: nobody else would have it then.
fn spare_others(context: &Context, args: &cli::Failover, target: &Node) -> Result<()> {
    let (known, unknown): (Vec<Ahead>, Vec<Ahead>) =
        leftover::ahead(&context.root, target)?.into_iter().partition(|other| other.commits.is_ok());
    unknown.iter().for_each(|other| super::warn(context, &other.told(&target.name)));
    let Some(first) = known.first() else { return Ok(()) };
    let told = known.iter().map(|other| other.told(&target.name)).collect::<Vec<_>>().join("; ");
    if args.dry_run || args.accept_loss {
        outln!("{told}");
        return Ok(());
    }
    let way_out = match (&first.volume, &first.name) {
        (Some(below), name) => format!("{} brings back the node that has left it", rival::back(name, below)),
        (None, name) => format!("`pgbox promote {name}`"),
    };
    Err(advise(told, format!("{way_out}; or give that up: `pgbox promote {} --accept-loss`", target.name)))
}

/// Refuses to promote what is left of a cluster whose primary is gone beside another primary that may be of the same one.
fn refuse_second(context: &Context, cluster: &Cluster, target: &Node) -> Result<()> {
    let nodes = node::all(&context.root, &context.lab)?;
    match cluster.head().state.role() {
        Role::Primary => Ok(()),
        _ if !cluster::is_lost(&nodes, target) => Ok(()),
        _ => rival::refuse_primary(&rival::of(&context.root, &nodes, target)?, target),
    }
}

fn check(cluster: &Cluster, target: &Node) -> Result<()> {
    target.awake()?;
    match failover::unfinished(cluster) {
        Some(other) if other.name != target.name => Err(advise(
            format!("`{0}` was about to take over, and may be a primary already", other.name),
            format!("finish that: `pgbox failover {0}`; or kill it: `pgbox crash {0} --node`", other.name),
        )),
        // Who can't be told anything can't be promoted, and nobody is to be put out of the way for it.
        _ => takeover::lets_in(target, cluster.head()),
    }
}

/// Puts the old primary out of the way, if nothing that it has acknowledged is lost by that.
fn leave_behind(
    context: &Context,
    args: &cli::Failover,
    cluster: &Cluster,
    head: &Node,
    target: &Node,
) -> Result<()> {
    // While it is looked at, it must not acknowledge more; but it may turn out that it is needed.
    let pause = match args.dry_run {
        true => Pause::none(),
        false => failover::hold(&context.root, cluster, head, Some(&target.name), args.accept_loss)?,
    };
    let loss = loss::assess(cluster, head, target);
    let is_refused = !args.accept_loss && !loss.as_ref().is_ok_and(|loss| loss.acknowledged() == 0);
    match &loss {
        Ok(loss) if args.dry_run || !is_refused => outln!("{}", loss.told(&head.name, &target.name)),
        // The refusal says it.
        Ok(_) => {}
        Err(error) => super::warn(context, &format!("nobody knows what would be lost: {error:#}")),
    }
    if args.dry_run {
        outln!("end: `{0}`; it comes back as a standby only, with `pgbox rejoin {0}`", head.name);
        return Ok(());
    }
    if is_refused {
        let refusal = failover::refusal(cluster, head, &target.name, loss.as_ref().ok());
        if let Err(error) = pause.end() {
            super::warn(context, &format!("`{}` is still frozen: {error:#}", head.name));
        }
        return Err(refusal);
    }
    failover::leave_behind(&context.root, head, target, pause)
}
