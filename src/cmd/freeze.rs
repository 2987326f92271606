//! `pgbox freeze` and `pgbox thaw`: the cgroup freezer. Nothing in a frozen node runs, while its memory, its locks and
//! its connections stay; the kernel goes on to acknowledge what is sent to it.

use anyhow::Result;

use super::{Context, each, endpoint, need_root};
use crate::{cli, facts::node, hint::advise, spec::Name};

pub fn freeze(context: &Context, args: &cli::Freeze) -> Result<i32> {
    need_root("pgbox freeze")?;
    each(context, &args.nodes, |name| set(context, name, true))
}

pub fn thaw(context: &Context, args: &cli::Thaw) -> Result<i32> {
    need_root("pgbox thaw")?;
    let mut nodes = args.nodes.clone();
    if args.all {
        let frozen = node::all(&context.root, &context.lab)?.into_iter().filter(|node| node.frozen);
        nodes.extend(frozen.map(|node| node.name));
        if nodes.is_empty() {
            super::note(context, &format!("no node of lab `{}` is frozen", context.lab));
        }
    }
    each(context, &nodes, |name| set(context, name, false))
}

/// Without the lab's lock: a command that waits for a node holds that, and may wait for the thaw.
fn set(context: &Context, name: &Name, frozen: bool) -> Result<()> {
    let node = node::find(&context.root, &context.lab, name)?;
    node.running()?;
    let hold = context.root.held(&context.lab)?.filter(|hold| hold.node == *name);
    if let Some(hold) = hold.as_ref().filter(|hold| !frozen && hold.is_at_work()) {
        return Err(advise(
            format!(
                "`{name}` is held still by a failover that looks at it now (process {})",
                hold.holder.pid
            ),
            "it goes on when that has ended, unless its place is taken",
        ));
    }
    // From here on it is the user's, and stays frozen when the command that holds it ends.
    hold.map_or(Ok(()), |_| context.root.unhold(&context.lab))?;
    let group = node.cgroup(&context.root)?;
    match frozen {
        _ if frozen == node.frozen => {
            let is = if frozen { "frozen already" } else { "not frozen" };
            super::note(context, &format!("`{name}` is {is}"));
        }
        true => {
            // Half a freeze would be worse than none: some of the node stands, and nobody sees why.
            group.freeze().inspect_err(|_| drop(group.thaw()))?;
            outln!("{name} is frozen");
        }
        false => {
            group.thaw()?;
            outln!("{name} goes on");
        }
    }
    endpoint::settle_if_free(context, &node)
}
