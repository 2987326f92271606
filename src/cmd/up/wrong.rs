//! What the actions of an `up` would fail with, looked for before the first of them: settings, images, limits, mounts, ports.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::{
    cmd::{Context, create, trial},
    engine::limits,
    facts::{
        self, node,
        ports::{self, Asker},
    },
    hint,
    image::Store,
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
pub fn settings(context: &Context, wanted: &Wanted, actions: &[Action]) -> Result<Vec<String>> {
    let mut images: BTreeMap<&str, Asked<'_>> = BTreeMap::new();
    for (spec, settings) in actions.iter().filter_map(|action| new_settings(wanted, action)) {
        let asked = images.entry(&spec.image).or_default();
        for setting in settings {
            asked.entry(setting).or_default().insert(&spec.node);
        }
    }
    let mut texts = Vec::new();
    for (image, asked) in images {
        if let Some(nodes) = without_server(context, image, actions)? {
            texts.push(format!("image of {nodes}: {image} has no Postgres in it"));
            continue;
        }
        let settings: Vec<trial::Setting> = asked.keys().cloned().collect();
        for ((name, value), why) in trial::wrong(context, image, &settings)? {
            let nodes: Vec<String> =
                asked[&(name.clone(), value.clone())].iter().map(|n| format!("`{n}`")).collect();
            texts.push(format!("settings of {}: {name}={value}: {why}", nodes.join(", ")));
        }
    }
    Ok(texts)
}

/// Servers that are to be made from an image that has none.
fn without_server(context: &Context, image: &str, actions: &[Action]) -> Result<Option<String>> {
    let found = Store::open(context.root.path())?.resolve(image)?;
    let is_server = |spec: &&NodeSpec| spec.image == image && spec.command().is_none();
    let servers: BTreeSet<String> =
        actions.iter().filter_map(made).filter(is_server).map(|spec| format!("`{}`", spec.node)).collect();
    if servers.is_empty() || facts::image::facts(&context.root, &found)?.postgres.is_some() {
        return Ok(None);
    }
    Ok(Some(servers.into_iter().collect::<Vec<_>>().join(", ")))
}

/// What is wrong with ports of this host that nodes or endpoints are to get: what others than this lab have, the file alone does
/// not tell.
pub fn ports(context: &Context, actions: &[Action]) -> Vec<String> {
    let mut texts = Vec::new();
    for action in actions {
        let (whose, ports) = match action {
            Action::Publish { node, publish } => (format!("publish of `{node}`"), publish.clone()),
            Action::Endpoints { rw, ro } => (
                "publish-rw, publish-ro".to_owned(),
                [rw, ro].into_iter().copied().flatten().flatten().collect(),
            ),
            _ => match made(action) {
                Some(spec) => (format!("publish of `{}`", spec.node), spec.publish.clone()),
                None => continue,
            },
        };
        if let Err(error) = ports::check_free(&context.root, &ports, Asker::Lab(&context.lab)) {
            texts.push(format!("{whose}: {error}"));
        }
    }
    texts
}

/// What is wrong with the limits of nodes that are to be made or changed.
pub fn limits(context: &Context, wanted: &Wanted, actions: &[Action]) -> Vec<String> {
    let mut texts = Vec::new();
    for action in actions {
        let (name, checked) = match action {
            Action::Create { node, .. } => (&node.spec.node, limits::check(&node.spec).map(drop)),
            Action::Remake { spec, .. } => (&spec.node, limits::check(spec).map(drop)),
            Action::Limit { node, limits, .. } => {
                let spec = wanted.nodes.iter().map(|wanted| &wanted.spec).find(|spec| spec.node == *node);
                let checked = spec.map_or(Ok(()), |spec| limits::check(spec).map(drop));
                let now = || {
                    let node = node::find(&context.root, &context.lab, node)?;
                    limits::check_now(&context.root, &node, limits)
                };
                (node, checked.and_then(|()| now()))
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

/// What is wrong with the mounts of nodes that are to be made or changed.
pub fn mounts(actions: &[Action]) -> Vec<String> {
    let wrong = |action: &Action| {
        let spec = made(action)?;
        let error = create::check_sources(spec).err()?;
        Some(format!("volumes of `{}`: {}", spec.node, hint::with_way_out(&error)))
    };
    actions.iter().filter_map(wrong).collect()
}

/// What a container is to be made for, also in the place of another one.
fn made(action: &Action) -> Option<&NodeSpec> {
    match action {
        Action::Create { node, .. } => Some(&node.spec),
        Action::Remake { spec, .. } => Some(spec),
        _ => None,
    }
}

/// The settings that a node gets by an action, and what else is wanted of it.
fn new_settings<'a>(wanted: &'a Wanted, action: &'a Action) -> Option<(&'a NodeSpec, Vec<trial::Setting>)> {
    match action {
        Action::Set { node, settings, .. } => {
            let wanted = wanted.nodes.iter().find(|wanted| wanted.spec.node == *node)?;
            let set = settings.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
            Some((&wanted.spec, set.collect()))
        }
        _ => made(action).map(|spec| (spec, spec.settings.clone())),
    }
}
