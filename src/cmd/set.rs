//! `pgbox set`: other settings for servers that exist, checked before they are written, brought to a cluster in the order
//! in which it can take them, and taken back where a server can't live with them.

use std::time::Instant;

use anyhow::Result;

use super::{Context, need_root, start, stop, which};
use crate::{
    cli,
    engine::{
        goal,
        settings::{self as engine, Change, check, order},
        sync,
    },
    facts::{
        cluster::{self, Cluster},
        node::{self, Node},
    },
    hint::{advise, as_misuse},
    postgres::{parameter::Parameter, settings},
    spec::Name,
    state::NodeState,
    sys::tail,
};

pub fn run(context: &Context, args: &cli::Set) -> Result<i32> {
    let (names, changes) = read(args).map_err(as_misuse)?;
    need_root("pgbox set")?;
    // A server that does not come up with it may have to be started anew.
    crate::sys::exe::reexec_read_only()?;
    let clusters = match args.all {
        true => cluster::all(&context.root, &context.lab)?,
        false => Vec::new(),
    };
    which::check(context, &names)?;
    for name in &names {
        one(context, args, name, &changes)?;
    }
    for cluster in &clusters {
        whole(context, args, cluster, &changes)?;
    }
    Ok(0)
}

/// Settings of a command line, each of which pgbox lets be set.
pub fn parse(given: &[String]) -> Result<Vec<(String, String)>> {
    given.iter().map(|setting| one_setting(setting)).collect::<Result<_>>().map_err(as_misuse)
}

fn one_setting(text: &str) -> Result<(String, String)> {
    let (name, value) = settings::parse(text)?;
    check::may_be_set(&name)?;
    Ok((name, value))
}

/// The nodes and the settings of the command line.
fn read(args: &cli::Set) -> Result<(Vec<Name>, Vec<Change>)> {
    let (settings, nodes): (Vec<&String>, Vec<&String>) =
        args.words.iter().partition(|word| word.contains('='));
    let nodes = nodes.into_iter().map(|name| name.parse::<Name>().map_err(anyhow::Error::msg));
    let nodes = nodes.collect::<Result<Vec<Name>>>()?;
    let mut changes = Vec::new();
    for setting in settings {
        let (name, value) = one_setting(setting)?;
        changes.push(Change { name, value: Some(value) });
    }
    for name in &args.reset {
        let (name, _) = one_setting(&format!("{name}=x"))?;
        changes.push(Change { name, value: None });
    }
    let example = "for example: pgbox set primary work_mem=64MB";
    match (nodes.is_empty(), changes.is_empty()) {
        (_, true) => Err(advise("no setting was given", example)),
        (true, _) if !args.all => Err(advise(
            "no node was named: `--lab NAME` says only in which lab",
            format!("name one, or all of them: `pgbox set --all {}`", words(&changes)),
        )),
        (false, _) if args.all => {
            Err(advise("--all already means every node of the lab", "leave the names out"))
        }
        _ => Ok((nodes, changes)),
    }
}

/// Sets one node, as far as the others of its cluster can live with that.
fn one(context: &Context, args: &cli::Set, name: &Name, changes: &[Change]) -> Result<()> {
    let cluster = cluster::of(&context.root, &context.lab, name)?;
    let node = cluster.member(name)?;
    let known = check::everything(&context.root, &cluster, node, changes)?;
    order::refuse_alone(&cluster, node, changes, &known)?;
    if args.dry_run {
        foretell(name, changes, &known);
        return Ok(());
    }
    bring(context, name, changes)
}

/// Sets a whole cluster. What is raised goes to the standbys first, what is lowered to the primary first.
fn whole(context: &Context, args: &cli::Set, cluster: &Cluster, changes: &[Change]) -> Result<()> {
    let head = cluster.head();
    let known = check::everything(&context.root, cluster, head, changes)?;
    let lowered = order::lowered(head, changes, &known)?;
    let (last, first): (Vec<Change>, Vec<Change>) =
        changes.iter().cloned().partition(|change| lowered.contains(&change.name));
    let standbys: Vec<&Node> = cluster.nodes[1..].iter().collect();
    if args.dry_run {
        let and = |name: &Name, changes: &[Change]| foretell(name, changes, &known);
        standbys.iter().for_each(|node| and(&node.name, &first));
        and(&head.name, changes);
        standbys.iter().for_each(|node| and(&node.name, &last));
        return Ok(());
    }
    if !first.is_empty() {
        standbys.iter().try_for_each(|node| bring(context, &node.name, &first))?;
    }
    bring(context, &head.name, changes)?;
    if last.is_empty() || standbys.is_empty() {
        return Ok(());
    }
    let changed = goal::write_lsn(&node::find(&context.root, &context.lab, &head.name)?)?;
    for node in standbys {
        match &node.pidfd {
            Some(_) => {
                goal::wait_until_replayed(&context.root, &context.lab, &node.name, changed)?;
                bring(context, &node.name, &last)?;
            }
            // It has yet to replay the time when the primary had more, and starts with that.
            None => bring(context, &node.name, &last)?,
        }
    }
    Ok(())
}

/// Brings changes to one node of a cluster whose order the caller has worked out. Where no server of its image runs, its
/// start is what tells whether it can live with them.
pub fn in_turn(context: &Context, name: &Name, changes: &[Change]) -> Result<()> {
    let cluster = cluster::of(&context.root, &context.lab, name)?;
    let node = cluster.member(name)?;
    if cluster.nodes.iter().any(|other| other.pidfd.is_some() && other.state.image == node.state.image) {
        check::everything(&context.root, &cluster, node, changes)?;
    }
    bring(context, name, changes)
}

/// Waits until a standby knows what its primary has written by now.
pub fn caught_up(context: &Context, name: &Name) -> Result<()> {
    let cluster = cluster::of(&context.root, &context.lab, name)?;
    goal::wait_until_replayed(&context.root, &context.lab, name, goal::write_lsn(cluster.head())?)
}

fn words(changes: &[Change]) -> String {
    let word = |change: &Change| match &change.value {
        Some(value) => format!("{}={value}", change.name),
        None => format!("--reset {}", change.name),
    };
    changes.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn foretell(name: &Name, changes: &[Change], known: &[Parameter]) {
    for change in changes {
        let restarts = engine::find(known, &change.name).is_some_and(Parameter::needs_restart);
        outln!("{name}: {change}{}", if restarts { ", with a restart in place" } else { "" });
    }
}

/// Brings changes to a node: at once, by a restart in place, or at its next start; says which.
fn bring(context: &Context, name: &Name, changes: &[Change]) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let (before, said) = engine::change(&context.root, &context.lab, name, changes)?;
    let say = |how: &str| changes.iter().for_each(|change| outln!("{name}: {change}, {how}"));
    let Some(said) = said else {
        say("from its next start on");
        return Ok(());
    };
    let node = node::find(&context.root, &context.lab, name)?;
    let pending: Vec<&Parameter> = said.iter().filter(|parameter| parameter.pending_restart).collect();
    let how = if pending.is_empty() {
        "in effect".to_owned()
    } else if node.state.applies_late() && order::are_lowered(&node, &pending, &said)? {
        say("from its next start on: it applies late, and may need what it has until then");
        return Ok(());
    } else {
        let begun = Instant::now();
        restart(context, name, &before, changes)?;
        format!("in effect after a restart in place ({:.1} s)", begun.elapsed().as_secs_f64())
    };
    let names: Vec<String> = changes.iter().map(|change| change.name.clone()).collect();
    let now = engine::ask(&node, &names)?;
    for change in changes {
        match engine::find(&now, &change.name).and_then(Parameter::overruled) {
            None => outln!("{name}: {change}, {how}"),
            Some(overruled) => {
                outln!("{name}: {change}, but not in effect");
                super::warn(context, &format!("on `{name}` {overruled}"));
            }
        }
    }
    if !sync::told(&node.state).is_empty()
        && node.state.sync_since.is_none()
        && names.iter().any(|name| name == sync::COMMIT)
    {
        super::warn(
            context,
            &format!("commits of `{name}` wait for nobody now, whatever the lab's sync rule says"),
        );
    }
    Ok(())
}

fn restart_in_place(context: &Context, name: &Name) -> Result<()> {
    stop::restart_one(context, name, None).map(drop)
}

/// Restarts the server in place. If it does not come up like this, it is started as it was.
fn restart(context: &Context, name: &Name, before: &NodeState, changes: &[Change]) -> Result<()> {
    let Err(error) = restart_in_place(context, name) else { return Ok(()) };
    let log = tail::lines(&context.root.node(&context.lab, name).log(), 40);
    // What a start finds first it says without a level.
    let fatal = log.iter().rev().find_map(|line| line.split_once("FATAL:").or(line.split_once("postgres: ")));
    let fatal = fatal.map_or("see its log", |(_, why)| why.trim());
    engine::restore(&context.root, &context.lab, name, before, changes)?;
    let node = node::find(&context.root, &context.lab, name)?;
    let back = match node.pidfd {
        Some(_) => restart_in_place(context, name),
        None => start::start(context, name, start::PATIENCE, start::STREAM),
    };
    match back {
        Ok(()) => {
            Err(error.context(format!("`{name}` did not come up with it, and runs as it was: {fatal}")))
        }
        Err(back) => Err(back.context(format!("`{name}` came up neither with it nor as it was: {fatal}"))),
    }
}
