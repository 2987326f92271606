//! What is asked before a setting is written anywhere: whether pgbox lets it be set, whether the server knows it, and
//! whether the server's own program takes the value.
//!
//! The rule that surprises people: no SQL checks the value of a parameter that takes a restart. `postgres -C` does: it
//! reads the files and the options as a start would, prints one value, and ends.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{Change, find};
use crate::{
    facts::{cluster::Cluster, node::Node},
    hint::advise,
    postgres::{
        parameter::{self, Parameter},
        tune,
    },
    state::Root,
};

/// Checks changes for a node, and gives what a running server of the same image knows of these parameters.
pub fn everything(root: &Root, cluster: &Cluster, node: &Node, changes: &[Change]) -> Result<Vec<Parameter>> {
    changes.iter().try_for_each(|change| may_be_set(&change.name))?;
    let same = |other: &&Node| other.pidfd.is_some() && other.state.image == node.state.image;
    let Some(witness) = [node].into_iter().chain(&cluster.nodes).find(same) else {
        return Err(advise(
            format!("no server that runs can say whether `{}` would take that", node.name),
            format!("start it first: pgbox start {}", node.name),
        ));
    };
    let names: Vec<String> = changes.iter().map(|change| change.name.clone()).collect();
    let known = super::ask(witness, &names)?;
    for change in changes {
        is_known(change, &known)?;
    }
    run_postgres(root, witness, changes)?;
    fit_together(node, witness, changes)?;
    if changes.iter().any(|change| change.name == "huge_pages") {
        let now = super::ask(witness, &["shared_buffers", "huge_pages"].map(str::to_owned))?;
        let holds = node.pidfd.is_some() && find(&now, "huge_pages").is_some_and(|now| now.setting != "off");
        huge_pages(|name| wanted(changes, &now, name), holds)?;
    }
    Ok(known)
}

/// `postgres -C` ends before the server compares values with one another, and whoever stops it to see that has stopped it.
fn fit_together(node: &Node, witness: &Node, changes: &[Change]) -> Result<()> {
    let is_one = |name: &str| changes.iter().any(|change| change.name == name);
    if !parameter::TOGETHER.iter().any(|name| is_one(name)) {
        return Ok(());
    }
    let known = super::ask(witness, &parameter::TOGETHER.map(str::to_owned))?;
    match parameter::conflict(|name| wanted(changes, &known, name)) {
        Some(why) => bail!("`{}` would not start with that: {why}", node.name),
        None => Ok(()),
    }
}

/// What a parameter will be after the changes.
fn wanted(changes: &[Change], known: &[Parameter], name: &str) -> Option<String> {
    let change = changes.iter().rev().find(|change| change.name == name);
    match change.map(|change| &change.value) {
        Some(Some(value)) => Some(value.clone()),
        Some(None) => find(known, name)?.fallback.clone(),
        None => Some(find(known, name)?.setting.clone()),
    }
}

/// Refuses huge pages that this machine does not have; `value` gives the settings, `holds` is whether a server with some
/// restarts.
pub fn huge_pages(value: impl Fn(&str) -> Option<String>, holds: bool) -> Result<()> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    match tune::huge_pages_missing(value, &meminfo, holds)? {
        Some((why, way_out)) => Err(advise(why, way_out)),
        None => Ok(()),
    }
}

/// Refuses what is pgbox's own matter, with the way that there is instead.
pub fn may_be_set(name: &str) -> Result<()> {
    match parameter::refusal(name) {
        Some(why) => Err(advise(format!("{name} can't be set"), why)),
        None => Ok(()),
    }
}

fn is_known(change: &Change, known: &[Parameter]) -> Result<()> {
    let name = &change.name;
    match find(known, name) {
        // An extension's, which may not be loaded yet.
        None if name.contains('.') => Ok(()),
        None => Err(advise(
            format!("the server knows no parameter {name}; with it, it would not start again"),
            "`SHOW ALL` in psql lists what it knows",
        )),
        Some(parameter) if parameter.context == "internal" => {
            bail!("{name} is fixed when a server is built or its data directory is made")
        }
        Some(_) if name == "wal_level" && change.value.as_deref() == Some("minimal") => {
            bail!("with wal_level=minimal there can be no standbys")
        }
        Some(_) => Ok(()),
    }
}

/// Has the node's own `postgres` read the values, as at a start.
fn run_postgres(root: &Root, node: &Node, changes: &[Change]) -> Result<()> {
    let set = changes.iter().filter_map(|change| Some((&change.name, change.value.as_ref()?)));
    let options: Vec<String> =
        set.flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect();
    let (Some(postgres), false) = (node.state.postgres(), options.is_empty()) else { return Ok(()) };
    // A child of its own: who has entered a node does not come back. By the link: what it leads to has no path where this
    // program was executed through a mount of its own.
    let output = Command::new("/proc/self/exe")
        .arg("--root")
        .arg(root.path())
        .args(["--lab", node.lab.as_str(), "exec", "--user"])
        .arg(node.state.plan.init.user.uid.to_string())
        .args([node.name.as_str(), "--"])
        .arg(postgres.bindir.join("postgres"))
        .arg("-D")
        .arg(&postgres.pgdata)
        .args(&options)
        .args(["-C", "server_version"])
        .stdin(Stdio::null())
        .output()
        .context("start a check in the node")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let fatal = said.lines().filter_map(|line| line.split_once("FATAL:")).map(|(_, why)| why.trim()).next();
    match fatal.or(said.lines().next()) {
        Some(why) => bail!("the server would not start with that: {why}"),
        None => bail!("the server would not start with that ({})", output.status),
    }
}
