//! Settings, images and limits that the actions of an `up` would fail with, looked for before the first of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::{
    cmd::{Context, limit, trial},
    hint,
    lab::wanted::Wanted,
    plan::changes::Action,
    spec::{Name, NodeSpec},
};

/// Which nodes are to have a setting.
type Asked<'a> = BTreeMap<trial::Setting, BTreeSet<&'a Name>>;

/// What is wrong with the settings of nodes that are to be made or changed.
///
/// # Errors
/// When an image is not there.
pub fn wrong(context: &Context, wanted: &Wanted, actions: &[Action]) -> Result<Vec<String>> {
    let mut images: BTreeMap<&str, Asked<'_>> = BTreeMap::new();
    for (spec, settings) in actions.iter().filter_map(|action| new_settings(wanted, action)) {
        let asked = images.entry(&spec.image).or_default();
        for setting in settings {
            asked.entry(setting).or_default().insert(&spec.node);
        }
    }
    let mut texts = Vec::new();
    for (image, asked) in images {
        let settings: Vec<trial::Setting> = asked.keys().cloned().collect();
        for ((name, value), why) in trial::wrong(context, image, &settings)? {
            let nodes: Vec<String> =
                asked[&(name.clone(), value.clone())].iter().map(|n| format!("`{n}`")).collect();
            texts.push(format!("settings of {}: {name}={value}: {why}", nodes.join(", ")));
        }
    }
    Ok(texts)
}

/// What is wrong with the limits of nodes that are to be made or changed.
pub fn wrong_limits(context: &Context, wanted: &Wanted, actions: &[Action]) -> Vec<String> {
    let mut texts = Vec::new();
    for action in actions {
        let (name, checked) = match action {
            Action::Create { node, .. } => (&node.spec.node, limit::check(&node.spec).map(drop)),
            Action::Remake { spec, .. } => (&spec.node, limit::check(spec).map(drop)),
            Action::Limit { node, limits, .. } => {
                let spec = wanted.nodes.iter().map(|wanted| &wanted.spec).find(|spec| spec.node == *node);
                let checked = spec.map_or(Ok(()), |spec| limit::check(spec).map(drop));
                (node, checked.and_then(|()| limit::check_now(context, node, limits)))
            }
            _ => continue,
        };
        if let Err(error) = checked {
            texts.push(format!("limits of `{name}`: {}", hint::with_way_out(&error)));
        }
    }
    texts.dedup();
    texts
}

/// The settings that a node gets by an action, and what else is wanted of it.
fn new_settings<'a>(wanted: &'a Wanted, action: &'a Action) -> Option<(&'a NodeSpec, Vec<trial::Setting>)> {
    match action {
        Action::Create { node, .. } => Some((&node.spec, node.spec.settings.clone())),
        Action::Remake { spec, .. } => Some((spec, spec.settings.clone())),
        Action::Set { node, settings, .. } => {
            let wanted = wanted.nodes.iter().find(|wanted| wanted.spec.node == *node)?;
            let set = settings.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
            Some((&wanted.spec, set.collect()))
        }
        _ => None,
    }
}
