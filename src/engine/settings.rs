//! Other settings for a node that exists: remembered, written by its pid 1, read by its server, and taken back where the
//! server does not like them.
//!
//! The rule that surprises people: a server that runs goes on with its old settings when the new ones are wrong, and says
//! so in its log only; the next start is what fails. So `pg_file_settings` is asked what it thinks of the new file.

pub mod check;
pub mod lower;
pub mod order;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{orders, sync};
use crate::{
    facts::node::{self, Node},
    postgres::{
        parameter::{self, Parameter},
        settings,
    },
    spec::Name,
    sql,
    state::{NodeState, Root},
};

/// How long a server may take to read its files again.
const RELOAD: Duration = Duration::from_secs(10);

/// A setting and its new value; `None`: as if nobody had said anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub name: String,
    pub value: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.name),
            None => write!(f, "{} reset", self.name),
        }
    }
}

/// What the server says of these parameters.
pub fn ask(node: &Node, names: &[String]) -> Result<Vec<Parameter>> {
    let sql = parameter::question(names);
    let said = node.login()?.ask(sql::PATIENCE, move |client| client.query_one(&sql, &[]))?;
    parameter::parse(said.get(0))
}

/// What is known of a parameter. The server's own names may have capitals: `DateStyle`.
pub fn find<'k>(known: &'k [Parameter], name: &str) -> Option<&'k Parameter> {
    known.iter().find(|parameter| parameter.name.eq_ignore_ascii_case(name))
}

/// What a running node has of a parameter, as a number.
pub fn number(node: &Node, name: &str) -> Result<i64> {
    let said = ask(node, &[name.to_owned()])?;
    let parameter = said.first().with_context(|| format!("`{}` knows no {name}", node.name))?;
    parameter.setting.parse().with_context(|| format!("{name} of `{}`", node.name))
}

/// Changes settings of a node and, if it runs, has its server read them. Gives what was remembered before, and what the
/// server thinks of it: nothing where it does not run. What it rejects is taken back.
pub fn change(
    root: &Root,
    lab: &Name,
    name: &Name,
    changes: &[Change],
) -> Result<(NodeState, Option<Vec<Parameter>>)> {
    let lock = root.lock(lab)?;
    let node = node::find(root, lab, name)?;
    let before = node.state.clone();
    let mut state = node.state.clone();
    apply(&mut state, changes);
    let loaded = node.pidfd.as_ref().map(|_| loaded(&node)).transpose()?;
    let reloaded = orders::give(&node.dir, &state, node.pidfd.as_ref())
        .and_then(|()| loaded.as_deref().map(|before| wait_for_reload(&node, before)).transpose());
    drop(lock);
    match reloaded.and_then(|reloaded| reloaded.map(|()| approve(&node, changes)).transpose()) {
        Ok(said) => {
            let _lock = root.lock(lab)?;
            // Where nobody can say so, nobody is waited for: a failover then counts more, not less.
            let _ = sync::confirm(&node::find(root, lab, name)?);
            Ok((before, said))
        }
        Err(error) => {
            restore(root, lab, name, &before, changes)
                .with_context(|| format!("after `{name}` has not taken it ({error:#}), take it back"))?;
            Err(error.context(format!("`{name}` does not take it, and everything is as it was")))
        }
    }
}

/// What the server says of these parameters after it has read its files again, if it has nothing against them.
fn approve(node: &Node, changes: &[Change]) -> Result<Vec<Parameter>> {
    let names: Vec<String> = changes.iter().map(|change| change.name.clone()).collect();
    let said = ask(node, &names)?;
    check(&said, changes)?;
    Ok(said)
}

/// Brings back what was remembered of these settings before. Of others somebody else may have said something meanwhile.
pub fn restore(root: &Root, lab: &Name, name: &Name, before: &NodeState, changes: &[Change]) -> Result<()> {
    let _lock = root.lock(lab)?;
    let node = node::find(root, lab, name)?;
    let mut state = node.state.clone();
    let before = |name: &str| settings::value(&before.spec.settings, name).map(str::to_owned);
    let old = |change: &Change| Change { name: change.name.clone(), value: before(&change.name) };
    apply(&mut state, &changes.iter().map(old).collect::<Vec<_>>());
    orders::give(&node.dir, &state, node.pidfd.as_ref())
}

fn apply(state: &mut NodeState, changes: &[Change]) {
    // Whom commits wait for is to be seen anew.
    if changes.iter().any(|change| change.name == sync::COMMIT) {
        state.sync_since = None;
    }
    let mut asked = std::mem::take(&mut state.spec.settings);
    if let Some(postgres) = state.postgres_mut() {
        for change in changes {
            settings::change(
                &mut postgres.orders.settings,
                &mut asked,
                &change.name,
                change.value.as_deref(),
            );
        }
    }
    state.spec.settings = asked;
}

fn loaded(node: &Node) -> Result<String> {
    let said = node.login()?.ask(sql::PATIENCE, |client| client.query_one(parameter::LOADED, &[]))?;
    Ok(said.get(0))
}

fn wait_for_reload(node: &Node, before: &str) -> Result<()> {
    let deadline = Instant::now() + RELOAD;
    while loaded(node)? == before {
        if Instant::now() >= deadline {
            bail!("the server has not read its files again for {} s", RELOAD.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// What the server has against its new file. Of a parameter that takes a restart it always says that it was not applied.
fn check(said: &[Parameter], changes: &[Change]) -> Result<()> {
    for change in changes {
        let Some(known) = said.iter().find(|known| known.name.eq_ignore_ascii_case(&change.name)) else {
            continue;
        };
        if let (Some(error), false) = (&known.file_error, known.needs_restart()) {
            bail!("{change}: {error}");
        }
        if change.value.is_some() && known.told.as_ref() != change.value.as_ref() {
            bail!("{change}: the node's pid 1 has not written it; its log tells why");
        }
    }
    Ok(())
}
