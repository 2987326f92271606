//! `pgbox promote`: as `failover`, for a lab whose primary does not run or is gone. And an old primary comes back as it was,
//! where nobody is left who has more.

use std::time::Duration;

use anyhow::{Error, Result};

use super::{Context, failover::take_over, need_root, start, which};
use crate::{
    cli,
    engine::{leftover, orders},
    facts::{
        cluster::{self, Cluster},
        node::{self, Node},
        rival::{self, Rival},
        stray,
    },
    hint::{self, advise},
    plan::follow,
    spec::Name,
    state::{Lock, Role},
};

/// How long an old primary may take to come up: it may have much to replay.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run(context: &Context, args: &cli::Failover) -> Result<i32> {
    need_root("pgbox promote")?;
    let name = which::standby(context, args.node.as_ref())?;
    let lock = context.lock()?;
    if let Ok(cluster) = cluster::by_data(&context.root, &context.lab, name) {
        let head = cluster.head();
        if let Some(node) = half_done(&cluster, name) {
            return come_back(context, args, lock, node, &head.name);
        }
        match (cluster.node(name).map(|node| node.state.role()), head.state.role()) {
            (Some(Role::Standby { of }), Role::Primary) if head.pidfd.is_some() => {
                return Err(there_would_be_two(&cluster, name, &of));
            }
            (_, Role::Superseded { by }) if head.name == *name && cluster.node(&by).is_none() => {
                return come_back(context, args, lock, head, &by);
            }
            _ => {}
        }
    } else {
        // Somebody has promoted it already, when whom it followed was gone: nothing starts it as a standby.
        let node = node::find(&context.root, &context.lab, name)?;
        if let (Role::Standby { of }, None) = (node.state.role(), &node.pidfd)
            && stray::has_left(&node)
        {
            return come_back(context, args, lock, &node, &of);
        }
    }
    take_over(context, args, name)
}

/// The node of this name, if a takeover ended when it had been promoted already, and it has gone down since: nothing starts it as
/// a standby, and its old primary does not start, either.
pub fn half_done<'c>(cluster: &'c Cluster, name: &Name) -> Option<&'c Node> {
    let heir = cluster.heir().filter(|heir| heir.name == *name)?;
    let is_down = heir.pidfd.is_none() && cluster.head().pidfd.is_none();
    (is_down && stray::has_left(heir)).then_some(heir)
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
    start::start(context, name, PATIENCE, PATIENCE)?;
    Ok(0)
}

fn there_would_be_two(cluster: &Cluster, name: &Name, of: &Name) -> Error {
    let head = &cluster.head().name;
    let way_out = match cluster.node(of) {
        Some(_) => {
            format!("planned: `pgbox switchover {name}`; if `{head}` is broken: `pgbox failover {name}`")
        }
        None => {
            format!("let it follow that: `pgbox rejoin {name}`; then `pgbox switchover {name}` if need be")
        }
    };
    advise(format!("`{name}` follows `{of}`, and the primary `{head}` runs: there would be two"), way_out)
}

/// Why nobody can follow the head of a cluster, an old primary, in whose place `by` was to be promoted or was.
///
/// # Errors
/// When the lab can't be looked at.
pub fn without_successor(context: &Context, cluster: &Cluster, by: &Name) -> Result<Error> {
    let old = &cluster.head().name;
    if cluster.heir().is_some() {
        let (what, way_out) = hint::unfinished(old, by);
        return Ok(advise(what, way_out));
    }
    let rivals = rival::of(&context.root, &node::all(&context.root, &context.lab)?, cluster.head())?;
    let way_out = rivals.first().map_or_else(
        || format!("`pgbox promote {old}` makes it the primary again, as it was"),
        Rival::way_out,
    );
    Ok(advise(format!("`{by}`, which was promoted in the place of `{old}`, is gone"), way_out))
}
