//! A lab as it is, as far as `up` compares it with what is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::Result;

use super::{
    cluster,
    node::{self, Life, Node},
};
use crate::{
    hint::advise,
    lab::wanted::Wanted,
    plan::changes::{Actual, Condition, Data, Existing, Server},
    postgres::{content, report::Phase, standby},
    spec::{Name, name::DEFAULT_LAB},
    sql,
    state::Root,
};

/// Refuses a lab that there is not: most often its name is mistyped. The default one is merely empty.
///
/// # Errors
/// With the labs that there are.
pub fn check(root: &Root, lab: &Name) -> Result<()> {
    if lab.as_str() == DEFAULT_LAB || root.lab_dir(lab).exists() {
        return Ok(());
    }
    let list = |names: Vec<Name>| names.iter().map(Name::to_string).collect::<Vec<_>>().join(", ");
    let (labs, volumes) = (list(root.labs()?), list(root.volumes(lab)?));
    Err(match (volumes.as_str(), labs.as_str()) {
        ("", "") => {
            advise(format!("no lab `{lab}`, nor any other"), "the first node makes it: `pgbox run primary`")
        }
        ("", _) => advise(format!("no lab `{lab}`"), format!("there is {labs}")),
        _ => advise(
            format!("lab `{lab}` has no nodes any more"),
            format!("its data are kept in the volumes {volumes}"),
        ),
    })
}

/// Looks at a lab. The caller holds its lock, so what is half made is nobody's work any more.
pub fn look(root: &Root, lab: &Name, wanted: &Wanted) -> Result<Actual> {
    let nodes = node::all(root, lab)?;
    let names = wanted.nodes.iter().map(|node| &node.spec.node);
    let missing = names.filter(|name| nodes.iter().all(|node| node.name != **name));
    let data: BTreeMap<Name, Data> =
        missing.map(|name| (name.clone(), content(&root.volume_dir(lab, name).join("data")))).collect();
    let server = match wanted.exact {
        true => server(root, lab),
        false => None,
    };
    let lab = root.load_lab(lab)?;
    Ok(Actual {
        nodes: nodes.iter().map(existing).collect(),
        data,
        publish: lab.as_ref().map(|lab| lab.publish.clone()).unwrap_or_default(),
        sync: lab.and_then(|lab| lab.sync),
        server,
    })
}

fn existing(node: &Node) -> Existing {
    let condition = match (node.life, node.status.phase) {
        (Life::Creating, _) => Condition::Half,
        (Life::Stopped, _) => Condition::Stopped,
        (Life::Running, _) if node.frozen => Condition::Frozen,
        (Life::Running, Phase::Running) => Condition::Running,
        (Life::Running, _) => Condition::ComingUp,
    };
    Existing { spec: node.state.spec.clone(), role: node.state.role(), condition }
}

/// What is in a data directory.
pub fn content(dir: &Path) -> Data {
    // Only whether they are there counts: a container may have made them anything.
    let has = |file: &str| dir.join(file).symlink_metadata().is_ok();
    match (has("PG_VERSION"), has(standby::SIGNAL)) {
        (false, _) => Data::None,
        (true, false) => Data::Primary,
        (true, true) => Data::Standby,
    }
}

/// What the lab's primary says; nothing while it can't say anything.
fn server(root: &Root, lab: &Name) -> Option<Server> {
    let cluster = cluster::main(root, lab).ok()?;
    let head = cluster.head();
    head.awake().ok()?;
    ask(&head.login().ok()?).ok()
}

/// Asks a server what is in it.
pub fn ask(server: &sql::Login) -> Result<Server> {
    let (roles, databases, settings, restarts) = server.ask(sql::PATIENCE, |client| {
        Ok((
            client.query(content::ROLES, &[])?,
            client.query(content::DATABASES, &[])?,
            client.query(content::DATABASE_SETTINGS, &[])?,
            client.query(content::RESTARTS, &[])?,
        ))
    })?;
    let done: BTreeSet<(String, String)> = settings
        .iter()
        .filter_map(|row| Some((row.get::<_, String>(0), content::done(row.get(1))?)))
        .flat_map(|(database, digests)| digests.into_iter().map(move |digest| (database.clone(), digest)))
        .collect();
    Ok(Server {
        database: server.database.clone(),
        roles: roles.iter().map(|row| (row.get(0), row.get(1))).collect(),
        databases: databases.iter().map(|row| (row.get(0), row.get(1))).collect(),
        done,
        restarts: restarts.iter().map(|row| row.get(0)).collect(),
    })
}
