//! `pgbox failover` and `pgbox promote`: a standby becomes the primary without the help of the old one.
//!
//! The rule that surprises people: what the old primary acknowledged last may be on its disk alone. Here that disk can be
//! read, so pgbox counts, instead of hoping, and refuses to let acknowledged transactions go unless told to.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Context, endpoint, need_root};
use crate::{
    cli,
    engine::{halt, loss, takeover},
    facts::{
        cluster::{self, Cluster},
        node::{self, Node},
    },
    hint::advise,
    spec::Name,
    state::Role,
};

pub fn failover(context: &Context, args: &cli::Failover) -> Result<i32> {
    need_root("pgbox failover")?;
    let _lock = context.root.lock(&context.lab)?;
    take_over(context, args)
}

pub fn promote(context: &Context, args: &cli::Failover) -> Result<i32> {
    need_root("pgbox promote")?;
    let _lock = context.root.lock(&context.lab)?;
    let node = node::find(&context.root, &context.lab, &args.node)?;
    if let Role::Standby { of } = node.state.role()
        && let Ok(cluster) = cluster::of(&context.root, &context.lab, &args.node)
        && cluster.head().state.role() == Role::Primary
        && cluster.head().pidfd.is_some()
    {
        let head = &cluster.head().name;
        return Err(advise(
            format!("`{}` follows `{of}`, and the primary `{head}` runs: there would be two", args.node),
            format!(
                "planned: `pgbox switchover {0}`; if `{head}` is broken: `pgbox failover {0}`",
                args.node
            ),
        ));
    }
    take_over(context, args)
}

fn take_over(context: &Context, args: &cli::Failover) -> Result<i32> {
    let begun = Instant::now();
    let cluster = cluster::of(&context.root, &context.lab, &args.node)
        .or_else(|_| cluster::below(&context.root, &context.lab, &args.node))?;
    let target = cluster.node(&args.node).context("the cluster has lost a node")?;
    let head = Some(cluster.head()).filter(|head| head.name != target.name);
    if head.is_none() && target.state.role() == Role::Primary {
        super::note(context, &format!("`{}` is the primary already", args.node));
        return Ok(0);
    }
    target.running()?;
    let others: Vec<&Node> = head
        .map_or(Vec::new(), |head| cluster.followers(&head.name).filter(|n| n.name != target.name).collect());
    if let Some(head) = head {
        leave_behind(context, args, &cluster, head, target)?;
    }
    if args.dry_run {
        println!("promote: `{}`", target.name);
        endpoint::foretell(context, &cluster, &target.name)?;
        others.iter().for_each(|node| println!("turn: `{}` to `{}`", node.name, target.name));
        return Ok(0);
    }
    let promoted = takeover::promote(&context.root, target, &others, || {
        endpoint::settle(context, Some(&target.name));
        Ok(())
    })?;
    if let Some(head) = head {
        halt::take_down(&node::find(&context.root, &context.lab, &head.name)?)?;
    }
    endpoint::settle(context, None);
    println!(
        "{} is the primary, on timeline {} since {} ({:.0} ms)",
        target.name,
        promoted.timeline,
        promoted.lsn,
        begun.elapsed().as_secs_f64() * 1000.0
    );
    if let Some(head) = head {
        super::note(context, &format!("`{0}` comes back as a standby with `pgbox rejoin {0}`", head.name));
    }
    Ok(0)
}

/// Puts the old primary out of the way for good, if nothing that it has acknowledged is lost by that.
fn leave_behind(
    context: &Context,
    args: &cli::Failover,
    cluster: &Cluster,
    head: &Node,
    target: &Node,
) -> Result<()> {
    // While it is looked at, it must not acknowledge more; but it may turn out that it is needed.
    let pause = Pause::begin(context, head, args.dry_run)?;
    let loss = loss::assess(cluster, head, target);
    match &loss {
        Ok(loss) => println!("{}", loss.told(&head.name, &target.name)),
        Err(error) => super::warn(context, &format!("nobody knows what would be lost: {error:#}")),
    }
    if args.dry_run {
        println!("end: `{}`, for good", head.name);
        return Ok(());
    }
    if !args.accept_loss && !loss.as_ref().is_ok_and(|loss| loss.acknowledged() == 0) {
        return Err(refusal(cluster, head, &target.name, loss.ok()));
    }
    takeover::fence(&context.root, head)?;
    takeover::supersede(head, &target.name)?;
    pause.over();
    Ok(())
}

fn refusal(cluster: &Cluster, head: &Node, target: &Name, loss: Option<loss::Loss>) -> anyhow::Error {
    let what = match loss {
        Some(loss) => format!(
            "`{target}` lacks {}{} acknowledged transactions with {} rows that are on the disk of `{}`",
            if loss.at_least { "at least " } else { "" },
            loss.acknowledged(),
            loss.rows,
            head.name
        ),
        None => format!("`{target}` may lack what `{}` has acknowledged", head.name),
    };
    let better = loss::most_advanced(cluster, head).filter(|name| name != target);
    let way_out = match better {
        Some(name) => format!("`{name}` has more: `pgbox failover {name}`"),
        None if head.pidfd.is_none() => format!("start it and switch over: `pgbox start {}`", head.name),
        None => format!("switch over: `pgbox switchover {target}`"),
    };
    advise(what, format!("{way_out}; or give them up: `pgbox failover {target} --accept-loss`"))
}

/// A running primary that is held still for a moment, and goes on unless it is over with it.
struct Pause<'a> {
    context: &'a Context,
    node: Option<&'a Node>,
}

impl<'a> Pause<'a> {
    fn begin(context: &'a Context, node: &'a Node, only_looking: bool) -> Result<Self> {
        let held = node.pidfd.is_some() && !only_looking;
        if held {
            node.cgroup(&context.root)?.freeze()?;
            // What it has sent before arrives now.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { context, node: held.then_some(node) })
    }

    fn over(mut self) {
        self.node = None;
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        let Some(node) = self.node else { return };
        if let Err(error) = node.cgroup(&self.context.root).and_then(|group| group.thaw()) {
            super::warn(self.context, &format!("`{}` is still frozen: {error:#}", node.name));
        }
    }
}
