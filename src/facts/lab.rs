//! A lab as it is, as far as `up` compares it with what is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::Result;

use super::{
    cluster,
    history::{self, WayBack},
    node::{self, Life, Node},
    recovery,
    rival::{self, Unused},
    stray,
    volume::{self, Content},
    wal::{Place, are_kin},
};
use crate::{
    hint::advise,
    lab::wanted::Wanted,
    plan::changes::{Actual, Condition, Data, Existing, Left, Server},
    postgres::{
        content::{self, Done},
        report::Phase,
    },
    spec::{self, Name, name::DEFAULT_LAB},
    sql,
    state::{self, Role, Root},
};

/// Refuses a lab that there is not: most often its name is mistyped. The default one is merely empty.
///
/// # Errors
/// With the labs that there are.
pub fn check(root: &Root, lab: &Name) -> Result<()> {
    let may_be = root.lab_dir(lab).try_exists();
    // Who may not look is told by the command itself that it needs root.
    if lab.as_str() == DEFAULT_LAB || may_be.unwrap_or(true) {
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
    let mut data: BTreeMap<Name, Data> = missing.map(|name| (name.clone(), data(root, lab, name))).collect();
    let mut there = There { root, lab, nodes: &nodes, gone: BTreeMap::new() };
    for name in data.iter().filter(|(_, data)| **data == Data::Primary).map(|(name, _)| name) {
        if let Some(by) = there.superseded_by(name)? {
            there.gone.insert(name.clone(), by);
        }
    }
    let mut left = BTreeMap::new();
    for node in &nodes {
        if let Role::Superseded { by } = node.state.role()
            && there.is_there(&by)
        {
            let loss = there.way_back(&node.name, &by).loss;
            left.insert(node.name.clone(), Left { by, loss });
        }
    }
    for (name, by) in &there.gone {
        let back = there.way_back(name, by);
        left.insert(name.clone(), Left { by: by.clone(), loss: back.loss });
        data.insert(name.clone(), Data::Superseded(back.how));
    }
    let server = match wanted.exact {
        true => server(root, lab),
        false => None,
    };
    let of_node = |node: &Node| Some((node.name.clone(), node.origin()?));
    let of_volume =
        |name: &Name| Some((name.clone(), Place::alone(&volume::data(root, lab, name)).origin()?));
    let origins = nodes.iter().filter_map(of_node).chain(data.keys().filter_map(of_volume)).collect();
    let volumes = root.volumes_dir(lab);
    let elsewhere = elsewhere(root, lab, &nodes, &data)?;
    let lab = root.load_lab(lab)?;
    Ok(Actual {
        origins,
        volumes,
        elsewhere,
        nodes: nodes.iter().map(|node| existing(root, &nodes, node)).collect(),
        data,
        left,
        publish: lab.as_ref().map(|lab| lab.publish.clone()).unwrap_or_default(),
        sync: lab.and_then(|lab| lab.sync),
        server,
    })
}

/// Says which volume has the primary, or might be gone on with, of which those of wanted nodes are standbys.
fn elsewhere(root: &Root, lab: &Name, nodes: &[Node], data: &BTreeMap<Name, Data>) -> Result<Option<String>> {
    let Some((standby, _)) = data.iter().find(|(_, data)| **data == Data::Standby) else { return Ok(None) };
    let origin = Place::alone(&volume::data(root, lab, standby)).origin();
    let mut others = rival::unused(root, lab, nodes, origin)?;
    others.retain(|other| !data.contains_key(&other.volume));
    let primary = others.iter().find(|other| other.content == Content::Primary);
    Ok(match (primary, others.first()) {
        (Some(Unused { volume, below, .. }), _) => Some(format!(
            "{}; then \
             `pgbox replica {standby} --of {volume}` goes on with them",
            rival::brings_back(volume, below)
        )),
        (None, Some(Unused { volume, .. })) => Some(format!(
            "those in the volume `{volume}`, which no node has, may have more; see `pgbox volume ls`"
        )),
        (None, None) => None,
    })
}

/// The nodes of a lab, and the data of those that are gone.
struct There<'a> {
    root: &'a Root,
    lab: &'a Name,
    nodes: &'a [Node],
    /// Of old primaries that only left their data, who took their place.
    gone: BTreeMap<Name, Name>,
}

impl There<'_> {
    /// The files of a node, or what is left of them in its volume.
    fn place<'p>(&'p self, name: &Name, volume: &'p Path) -> Place<'p> {
        let node = self.nodes.iter().find(|node| node.name == *name);
        node.and_then(|node| Place::of(&node.state).ok()).unwrap_or(Place::alone(volume))
    }

    /// Who has taken the place of the one that the data in a volume were of. Where nothing is left of that one, they may be all
    /// that there is.
    fn superseded_by(&self, name: &Name) -> Result<Option<Name>> {
        let volume_of = |name: &Name| volume::data(self.root, self.lab, name);
        let volume = state::load_volume(&self.root.volume_dir(self.lab, name))?;
        let by = volume.and_then(|volume| volume.superseded_by);
        // What is there under that name may have nothing to do with it any more.
        let origin = |name: &Name| self.place(name, &volume_of(name)).origin();
        let may_be = |by: &Name| are_kin(origin(name), origin(by)) != Some(false);
        Ok(by.filter(|by| self.is_there(by) && may_be(by)))
    }

    fn is_there(&self, name: &Name) -> bool {
        self.nodes.iter().any(|node| node.name == *name)
            || volume::content_of(self.root, self.lab, name) != Content::None
    }

    fn way_back(&self, name: &Name, by: &Name) -> WayBack {
        // Others may have taken the place of that one since.
        let limit = self.nodes.len() + self.gone.len();
        let primary = spec::upward(by, limit, |name| self.above(name)).last().unwrap_or_else(|| by.clone());
        let [own, theirs] = [name, &primary].map(|name| volume::data(self.root, self.lab, name));
        let (own, theirs) = (self.place(name, &own), self.place(&primary, &theirs));
        history::way_back((name, own), (&primary, theirs), (&primary, theirs))
    }

    fn above(&self, name: &Name) -> Option<Name> {
        match self.nodes.iter().find(|node| node.name == *name).map(|node| node.state.role()) {
            Some(Role::Superseded { by: next } | Role::Standby { of: next }) => Some(next),
            Some(_) => None,
            None => self.gone.get(name).cloned(),
        }
    }
}

fn existing(root: &Root, nodes: &[Node], node: &Node) -> Existing {
    let condition = match (node.life, node.status.phase) {
        (Life::Creating, _) => Condition::Half,
        (Life::Stopped, _) => Condition::Stopped,
        (Life::Running, _) if node.frozen => Condition::Frozen,
        (Life::Running, Phase::Running) => Condition::Running,
        (Life::Running, _) => Condition::ComingUp,
    };
    let alone = cluster::left_alone(root, nodes, node);
    let stray = stray::said(nodes, node);
    let stuck = recovery::stuck(nodes, node).map(|why| recovery::with_way_out(&why, &node.name));
    Existing { spec: node.state.spec.clone(), role: node.state.role(), condition, alone, stray, stuck }
}

fn data(root: &Root, lab: &Name, name: &Name) -> Data {
    match volume::content_of(root, lab, name) {
        Content::None => Data::None,
        Content::Primary => Data::Primary,
        Content::Standby => Data::Standby,
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
    let (roles, databases, settings, parameters) = server.ask(sql::PATIENCE, |client| {
        Ok((
            client.query(content::ROLES, &[])?,
            client.query(content::DATABASES, &[])?,
            client.query(content::DATABASE_SETTINGS, &[])?,
            client.query(content::PARAMETERS, &[])?,
        ))
    })?;
    let done: BTreeSet<(String, Done)> = settings
        .iter()
        .filter_map(|row| Some((row.get::<_, String>(0), content::done(row.get(1))?)))
        .flat_map(|(database, done)| done.into_iter().map(move |done| (database.clone(), done)))
        .collect();
    Ok(Server {
        database: server.database.clone(),
        roles: roles.iter().map(|row| (row.get(0), row.get(1))).collect(),
        databases: databases.iter().map(|row| (row.get(0), row.get(1))).collect(),
        done,
        parameters: parameters.iter().map(|row| (row.get(0), row.get(1))).collect(),
    })
}
