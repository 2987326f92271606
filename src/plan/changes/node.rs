//! The difference between a node and what it should be, and what each part of it costs.
//!
//! The rule that surprises people: a standby with less of some settings than its primary stops replaying (PostgreSQL manual
//! 27.4.3). So what is raised goes to standbys first, and what is lowered to the primary first.

use std::collections::BTreeMap;

use super::{Action, Actual, Condition, Effect, Existing, order::Steps};
use crate::{
    postgres::{contract, parameter},
    spec::{NodeSpec, quantity::human_bytes},
    state::Role,
};

type Setting = (String, Option<String>);

/// Adds what makes a node that is there run, and be as wanted if that is more than to be there.
pub fn compare(
    wanted: Option<&NodeSpec>,
    node: &Existing,
    actual: &Actual,
    steps: &mut Steps,
    notes: &mut Vec<String>,
) {
    let name = node.spec.node.clone();
    let is_standby = matches!(node.role, Role::Standby { .. });
    match (node.condition, &node.role) {
        (_, Role::Command) => {
            return notes.push(format!("`{name}` runs a command of its own, and is left alone"));
        }
        (Condition::Frozen, _) => {
            return notes.push(format!("`{name}` is frozen, and stays as it is; `pgbox thaw {name}`"));
        }
        (Condition::ComingUp, _) => steps.coming(is_standby).push(Action::Wait { node: name.clone() }),
        _ => {}
    }
    let stopped = node.condition == Condition::Stopped;
    if let Some(wanted) = wanted {
        let wanted = as_far_as_it_counts(wanted, &node.spec, notes);
        change(wanted, node, actual, steps);
    }
    if stopped {
        steps.coming(is_standby).push(Action::Start { node: name });
    }
}

/// Adds the changes of a node, each where its turn is.
fn change(wanted: NodeSpec, node: &Existing, actual: &Actual, steps: &mut Steps) {
    let is_standby = matches!(node.role, Role::Standby { .. });
    let stopped = node.condition == Condition::Stopped;
    let runs = node.condition == Condition::Running;
    let phase = if runs { steps.running(is_standby) } else { steps.coming(is_standby) };
    phase.extend(without_restart(&wanted, &node.spec));
    let mut why = remake_reasons(&wanted, &node.spec);
    let (mut now, mut late) = settings(&wanted, &node.spec);
    let raises = now.iter().any(|(name, _)| parameter::is_ordered(name));
    // A new container has the new settings from its start on; that saves a restart wherever it comes in time.
    let in_time = !is_standby || actual.nodes.iter().any(Existing::is_running_primary);
    let folded = !why.is_empty() && late.is_empty() && (!raises || in_time);
    if !is_standby {
        now.append(&mut late);
    }
    if folded {
        why.extend(now.iter().map(super::shown));
    } else {
        phase.extend(set(node, now, actual));
        steps.late.extend(late_set(node, late, actual));
    }
    if why.is_empty() {
        return;
    }
    let effect = if stopped { Effect::AtStart } else { Effect::Restart };
    let phase = match (stopped, is_standby && folded && raises) {
        (true, _) => steps.coming(is_standby),
        (false, true) => &mut steps.early_remakes,
        (false, false) => steps.remaking(is_standby),
    };
    phase.push(Action::Remake { spec: Box::new(wanted), why, effect });
}

/// What a variable says that counts only when data are made is left as it was.
fn as_far_as_it_counts(wanted: &NodeSpec, there: &NodeSpec, notes: &mut Vec<String>) -> NodeSpec {
    let of = |spec: &NodeSpec, name: &str| {
        spec.env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    let mut wanted = wanted.clone();
    // The words of a command line are no part of a file, nor is the range that a lab once got.
    (wanted.args, wanted.subnet) = (there.args.clone(), there.subnet);
    for name in contract::WHEN_MADE {
        let (old, new) = (of(there, name), of(&wanted, name));
        // A standby's data are another node's.
        if old == new || there.follow.is_some() && new.is_none() {
            continue;
        }
        notes.push(format!("{name} counts when the data of `{}` are made, and is as it was", there.node));
        wanted.env.retain(|(key, _)| key != name);
        wanted.env.extend(old.map(|value| (name.to_owned(), value)));
    }
    wanted
}

/// What a node takes over while it runs.
fn without_restart(wanted: &NodeSpec, there: &NodeSpec) -> Vec<Action> {
    let node = || there.node.clone();
    let mut actions = Vec::new();
    let mut limits = wanted.limits.clone();
    limits.shm_size = there.limits.shm_size;
    if limits != there.limits {
        actions.push(Action::Limit { node: node(), before: there.limits.clone(), limits });
    }
    if wanted.publish != there.publish {
        actions.push(Action::Publish { node: node(), publish: wanted.publish.clone() });
    }
    if let (Some(new), Some(old)) = (&wanted.follow, &there.follow)
        && (new.delay_ms, new.rate_kb, new.copy) != (old.delay_ms, old.rate_kb, old.copy)
    {
        actions.push(Action::Follow { node: node(), follow: new.clone() });
    }
    if (wanted.restart, wanted.stop_timeout) != (there.restart, there.stop_timeout) {
        let (restart, stop_timeout) = (wanted.restart, wanted.stop_timeout);
        actions.push(Action::Policy { node: node(), restart, stop_timeout });
    }
    actions
}

/// What can only be otherwise in a new container.
fn remake_reasons(wanted: &NodeSpec, there: &NodeSpec) -> Vec<String> {
    let mut why = Vec::new();
    if wanted.image != there.image {
        why.push(format!("image {} -> {}", there.image, wanted.image));
    }
    if wanted.limits.shm_size != there.limits.shm_size {
        let sizes = [there, wanted].map(|spec| human_bytes(spec.limits.shm_size));
        why.push(format!("shm-size {} -> {}", sizes[0], sizes[1]));
    }
    if wanted.volumes != there.volumes {
        why.push("volumes".to_owned());
    }
    let sorted = |spec: &NodeSpec| spec.env.iter().cloned().collect::<BTreeMap<_, _>>();
    let (old, new) = (sorted(there), sorted(wanted));
    // Names only: who puts a secret into a variable need not see it on every screen.
    let mut changed: Vec<&str> = old
        .keys()
        .chain(new.keys())
        .filter(|key| old.get(*key) != new.get(*key))
        .map(String::as_str)
        .collect();
    changed.sort_unstable();
    changed.dedup();
    if !changed.is_empty() {
        why.push(format!("env {}", changed.join(", ")));
    }
    if wanted.tune != there.tune {
        why.push(format!("tune {}", if wanted.tune { "auto" } else { "off" }));
    }
    why
}

/// The settings that are otherwise: those that a node can have at once, and lower values, which a standby can only have when
/// its primary has had less for a while.
fn settings(wanted: &NodeSpec, there: &NodeSpec) -> (Vec<Setting>, Vec<Setting>) {
    let by_name = |spec: &NodeSpec| -> BTreeMap<String, String> { spec.settings.iter().cloned().collect() };
    let (old, new) = (by_name(there), by_name(wanted));
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), None));
    let other = new.iter().filter(|(name, value)| old.get(*name) != Some(value));
    let changed = gone.chain(other.map(|(name, value)| (name.clone(), Some(value.clone()))));
    changed.partition(|(name, value)| {
        let Some(default) = parameter::ordered_default(name) else { return true };
        let number = |value: Option<&String>| value.map_or(Some(default), |v| v.trim().parse().ok());
        // What is no number the server refuses by itself.
        number(value.as_ref()) >= number(old.get(name))
    })
}

fn set(node: &Existing, settings: Vec<Setting>, actual: &Actual) -> Option<Action> {
    if settings.is_empty() {
        return None;
    }
    let restarts =
        |name: &String| actual.server.as_ref().and_then(|server| server.parameters.get(name)) == Some(&true);
    let effect = match node.condition {
        Condition::Stopped => Effect::AtStart,
        _ if settings.iter().any(|(name, _)| restarts(name)) => Effect::Restart,
        _ => Effect::Reload,
    };
    Some(Action::Set { node: node.spec.node.clone(), settings, effect })
}

/// As [`set`], when a standby runs and has replayed the time in which its primary had more.
fn late_set(node: &Existing, settings: Vec<Setting>, actual: &Actual) -> Vec<Action> {
    let running = Existing { condition: Condition::Running, ..node.clone() };
    let set = set(&running, settings, actual);
    let replayed = set.is_some().then(|| Action::Replayed { node: node.spec.node.clone() });
    replayed.into_iter().chain(set).collect()
}
