//! `pgbox promote`: as `failover`, for a lab whose primary does not run or is gone. And an old primary comes back as it was,
//! where nobody is left who has more.

use anyhow::{Error, Result};

use super::{Context, failover, need_root, which};
use crate::{
    cli,
    engine::takeover,
    facts::{
        cluster::{self, Cluster},
        node, stray,
    },
    hint::advise,
    spec::Name,
    state::Role,
};

pub fn run(context: &Context, args: &cli::Failover) -> Result<i32> {
    need_root("pgbox promote")?;
    let name = which::standby(context, args.node.as_ref())?;
    let lock = context.lock()?;
    if let Ok(cluster) = cluster::by_data(&context.root, &context.lab, name) {
        let head = cluster.head();
        if let Some(node) = takeover::half_done(&cluster, name) {
            return failover::come_back(context, args, lock, node, &head.name);
        }
        match (cluster.node(name).map(|node| node.state.role()), head.state.role()) {
            (Some(Role::Standby { of }), Role::Primary) if head.pidfd.is_some() => {
                return Err(there_would_be_two(&cluster, name, &of));
            }
            (_, Role::Superseded { by }) if head.name == *name && cluster.node(&by).is_none() => {
                return failover::come_back(context, args, lock, head, &by);
            }
            _ => {}
        }
    } else {
        // Somebody has promoted it already, when whom it followed was gone: nothing starts it as a standby.
        let node = node::find(&context.root, &context.lab, name)?;
        if let (Role::Standby { of }, None) = (node.state.role(), &node.pidfd)
            && stray::has_left(&node)
        {
            return failover::come_back(context, args, lock, &node, &of);
        }
    }
    failover::take_over(context, args, name)
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
