//! Other published ports for a node that is there. They are a table of their own in the kernel, so that nothing else has to
//! change for them.

use anyhow::Result;

use super::orders;
use crate::{
    facts::{self, node::Node},
    plan,
    spec::Publish,
    state::Root,
    step::HostStep,
};

/// Changes the ports, at once if the node runs. The caller holds the lab's lock and the shared one.
///
/// # Errors
/// When one of them is taken; everything is then as it was.
pub fn change(root: &Root, node: &Node, wanted: &[Publish]) -> Result<()> {
    let mut state = node.state.clone();
    state.spec.publish = wanted.to_vec();
    facts::ports::check(root, &state.spec, facts::nat(root, &state.spec))?;
    let old = plan::set_publish(&mut state.plan, &state.spec, &node.names(root), state.address.addr());
    let new = state.plan.host.iter().find(|step| matches!(step, HostStep::PublishPorts { .. }));
    let steps = |step: Option<&HostStep>| step.filter(|_| node.pidfd.is_some()).cloned();
    let (old, new) = (steps(old.as_ref()), steps(new));
    old.iter().try_for_each(HostStep::undo)?;
    // In between: of a command that is killed, what is there is in the plan.
    let changed = orders::save(&node.dir, &state).and_then(|()| new.iter().try_for_each(HostStep::apply));
    changed.map_err(|error| {
        let back =
            orders::save(&node.dir, &node.state).and_then(|()| old.iter().try_for_each(HostStep::apply));
        match back {
            Ok(()) => error.context("the published ports are as they were"),
            Err(back) => error.context(format!("nothing is published now ({back:#})")),
        }
    })
}
