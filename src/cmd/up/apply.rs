//! One action after the other: each is what a command of its own does.

use std::{slice, time::Duration};

use anyhow::Result;

use super::{content, node};
use crate::{
    cmd::{
        self, Context,
        create::{self, How},
        endpoint, limit, rejoin, replica,
        rm::{self, Removal},
        set, start, sync, wait,
    },
    engine::{halt, settings::Change},
    facts,
    hint::{self, Advised},
    lab::wanted::WantedNode,
    plan::changes::{Action, Data},
    show,
    spec::Name,
    state::Role,
};

/// All that is about nodes. A standby that can't go on with data that were left keeps nothing else from being done; true if there
/// is one.
pub fn nodes(context: &Context, actions: &[Action], timeout: Duration) -> Result<bool> {
    let mut refused = false;
    for action in actions {
        match apply(context, action, timeout) {
            Err(error) if error.is::<Advised>() && is_of_standby(context, action) => {
                cmd::warn(context, &hint::with_way_out(&error));
                refused = true;
            }
            other => other?,
        }
    }
    Ok(refused)
}

fn is_of_standby(context: &Context, action: &Action) -> bool {
    match action {
        Action::Create { node, on } => *on != Data::None && node.spec.follow.is_some(),
        Action::Start { node } => facts::node::find(&context.root, &context.lab, node)
            .is_ok_and(|node| matches!(node.state.role(), Role::Standby { .. })),
        _ => false,
    }
}

pub fn apply(context: &Context, action: &Action, timeout: Duration) -> Result<()> {
    match action {
        Action::Clear { node } => return clear(context, node),
        Action::Create { node, on } => return create(context, node, *on, timeout),
        Action::Start { node } => return start::start(context, node, timeout, start::STREAM),
        Action::Rejoin { node } => {
            rejoin::rejoin(context, node, false, timeout)?;
        }
        Action::Wait { node } => {
            // What it comes up from may as well be its end.
            start::wait_while_it_stops(context, node, timeout)?;
            if facts::node::find(&context.root, &context.lab, node)?.pidfd.is_none() {
                return start::start(context, node, timeout, start::STREAM);
            }
            wait::until_ready(context, node, timeout)?;
        }
        Action::Limit { node, limits, .. } => limit::set(context, node, limits.clone())?,
        Action::Publish { node, publish } => node::publish(context, node, publish)?,
        Action::Follow { node, follow } => node::follow(context, node, follow)?,
        Action::Policy { node, restart, stop_timeout } => {
            node::policy(context, node, *restart, *stop_timeout)?;
        }
        Action::Set { node, settings, .. } => return set::in_turn(context, node, &changes(settings)),
        Action::Replayed { node } => return set::caught_up(context, node),
        Action::Remake { spec, effect, .. } => node::remake(context, spec, *effect, timeout)?,
        Action::User { name, password, need } => content::user(context, name, password.as_deref(), *need)?,
        Action::Database { name, owner, need } => content::database(context, name, owner.as_deref(), *need)?,
        Action::Run { sql } => content::run(context, sql)?,
        Action::Sync { rule } => return sync::change(context, rule.clone(), sync::Written::AtFirst),
        Action::Endpoints { rw, ro } => {
            endpoint::publish(context, *rw, *ro)?;
        }
        Action::Remove { node } => remove(context, node)?,
    }
    outln!("{}", show::changes::line(action));
    Ok(())
}

fn create(context: &Context, node: &WantedNode, on: Data, timeout: Duration) -> Result<()> {
    if let Some(follow) = &node.spec.follow {
        replica::check_upstream(context, &follow.of)?;
    }
    let renew = match on {
        Data::Superseded(how) => {
            let of = node.spec.follow.as_ref().map(|follow| &follow.of);
            of.map_or(Ok(()), |of| rejoin::checkpoint_above(context, of))?;
            Some(how)
        }
        _ => None,
    };
    let how = How { timeout, renew, tell_of_data: true, ..How::detached() };
    create::create(context, node.spec.clone(), node.secret.clone(), &how).map(drop)
}

fn changes(settings: &[(String, Option<String>)]) -> Vec<Change> {
    settings.iter().map(|(name, value)| Change { name: name.clone(), value: value.clone() }).collect()
}

/// What would be lost by an action that removes a node.
pub fn loss(context: &Context, action: &Action) -> Option<String> {
    let Action::Remove { node } = action else { return None };
    let node = facts::node::find(&context.root, &context.lab, node).ok()?;
    facts::volume::refuse_loss(&node).err().map(|error| hint::with_way_out(&error))
}

/// Removes what a killed command has left of a node that never had a process.
fn clear(context: &Context, name: &Name) -> Result<()> {
    let _lock = context.lock()?;
    let node = facts::node::find(&context.root, &context.lab, name)?;
    halt::remove(&context.root, &node)
}

fn remove(context: &Context, node: &Name) -> Result<()> {
    let removal = Removal { going: slice::from_ref(node), force: true, ..Removal::default() };
    rm::remove(context, node, &removal).map(drop)
}
