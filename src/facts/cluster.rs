//! Which node of a lab takes writes: found anew each time, because a failover moves it.

use anyhow::Result;

use super::node::{self, Node};
use crate::{hint::advise, plan, spec::Name, state::Root};

/// The node that takes the lab's writes: the one that is named, or the only Postgres that runs.
///
/// # Errors
/// When there is none, or more than one.
pub fn writable(root: &Root, lab: &Name, named: Option<&Name>) -> Result<Node> {
    if let Some(name) = named {
        let node = node::find(root, lab, name)?;
        node.running()?;
        node.login()?;
        return Ok(node);
    }
    let serves = |node: &Node| node.pidfd.is_some() && plan::data_dir(&node.state.plan.init).is_some();
    let mut running: Vec<Node> = node::all(root, lab)?.into_iter().filter(serves).collect();
    match (running.pop(), running.len()) {
        (Some(node), 0) => Ok(node),
        (None, _) => Err(advise(
            format!("no Postgres runs in lab `{lab}`"),
            "`pgbox ps` shows its nodes; `pgbox start NODE` starts one",
        )),
        (Some(last), _) => {
            let names: Vec<String> = running.iter().chain([&last]).map(|n| n.name.to_string()).collect();
            Err(advise(
                format!("several servers run in lab `{lab}`: {}", names.join(", ")),
                "name the one that is meant with --node",
            ))
        }
    }
}
