//! What is to be done so that a lab becomes as it is wanted: the difference between a [`Wanted`] lab and the [`Actual`] one
//! as a list of actions, in the order in which they can be done. Pure; the second time the list is empty.
//!
//! Every action is something that a command of its own does as well: `run`, `replica`, `start`, `limit`, `set`, `rm`. Roles
//! are no part of the difference: who is the primary is decided by `switchover` and `failover`, and what a file says of it
//! counts when nodes are made.

mod content;
mod node;
mod order;
mod roles;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

pub use content::done;

use crate::{
    lab::wanted::{Sql, Wanted, WantedNode},
    postgres::{content::Done, launch::RenewHow},
    spec::{Follow, Name, NodeLimits, NodeSpec, Publish, Restart, SyncRule},
    state::{PublishedEndpoints, Role},
};

/// A lab as it is.
#[derive(Debug, Clone, Default)]
pub struct Actual {
    pub nodes: Vec<Existing>,
    /// What the volumes of wanted nodes have that are not there.
    pub data: BTreeMap<Name, Data>,
    /// What tells the data of one cluster from those of another, of nodes and of such volumes, as far as it can be read.
    pub origins: BTreeMap<Name, u64>,
    /// Where the volumes are.
    pub volumes: PathBuf,
    /// How to go on where a volume that nobody has or wants may have more than those of wanted nodes.
    pub elsewhere: Option<String>,
    /// Those who were primaries before, whether they are there or only their data.
    pub left: BTreeMap<Name, Left>,
    pub sync: Option<SyncRule>,
    /// Ports of the host that lead to the endpoints.
    pub publish: PublishedEndpoints,
    /// What the primary says; `None` while nobody can be asked.
    pub server: Option<Server>,
}

/// A node that is there.
#[derive(Debug, Clone)]
pub struct Existing {
    pub spec: NodeSpec,
    pub role: Role,
    pub condition: Condition,
    /// What to say of it where the one that it follows, or that took its place, is gone.
    pub alone: Option<String>,
    /// What to say of it where it was promoted behind pgbox' back.
    pub stray: Option<String>,
    /// What to say of a standby that can't go on by itself.
    pub stuck: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// A command that made it was killed, and left it without a process.
    Half,
    Stopped,
    /// It runs, and its server is not up yet.
    ComingUp,
    Running,
    Frozen,
}

/// What is in the volume of a node that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Data {
    #[default]
    None,
    Primary,
    Standby,
    /// A primary's whose place another one has taken; that is how they become a standby's.
    Superseded(RenewHow),
}

/// An old primary, or its data, whose place another one has taken.
#[derive(Debug, Clone)]
pub struct Left {
    pub by: Name,
    /// What would be given up if it came back as a standby.
    pub loss: Option<String>,
}

/// What a primary says of what is in it.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// The superuser's database.
    pub database: String,
    /// Roles, with the verifier of their password.
    pub roles: BTreeMap<String, Option<String>>,
    /// Databases, with their owner.
    pub databases: BTreeMap<String, String>,
    /// The SQL that has run, and where.
    pub done: BTreeSet<(String, Done)>,
    /// Parameters, and whether they take a restart.
    pub parameters: BTreeMap<String, bool>,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Remove what a killed command has left; data stay.
    Clear {
        node: Name,
    },
    Create {
        node: Box<WantedNode>,
        on: Data,
    },
    Start {
        node: Name,
    },
    /// Bring an old primary back as a standby.
    Rejoin {
        node: Name,
    },
    /// Wait until a server that comes up by itself is up.
    Wait {
        node: Name,
    },
    Limit {
        node: Name,
        before: NodeLimits,
        limits: NodeLimits,
    },
    Publish {
        node: Name,
        publish: Vec<Publish>,
    },
    /// How a standby follows.
    Follow {
        node: Name,
        follow: Follow,
    },
    /// What pid 1 does when the server ends, and how long a stop may take.
    Policy {
        node: Name,
        restart: Restart,
        stop_timeout: u64,
    },
    Set {
        node: Name,
        settings: Vec<(String, Option<String>)>,
        effect: Effect,
    },
    /// Wait until a standby has replayed what its primary has written.
    Replayed {
        node: Name,
    },
    /// Plan a node anew: same name, same address, same data. If it runs, it restarts.
    Remake {
        spec: Box<NodeSpec>,
        why: Vec<String>,
        effect: Effect,
    },
    User {
        name: String,
        password: Option<String>,
        need: Need,
    },
    Database {
        name: String,
        owner: Option<String>,
        need: Need,
    },
    Run {
        sql: Sql,
    },
    Sync {
        rule: Option<SyncRule>,
    },
    /// Ports of the host for the endpoints, as far as they are to change.
    Endpoints {
        rw: Option<Option<Publish>>,
        ro: Option<Option<Publish>>,
    },
    Remove {
        node: Name,
    },
}

/// What a change costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Live,
    /// The server reads its files again.
    Reload,
    Restart,
    /// The node does not run, and takes it over when it starts.
    AtStart,
}

/// Why something in the database is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Missing,
    /// It is there, but otherwise.
    Differs,
    /// Nobody can be asked yet.
    Unknown,
}

/// A difference.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    pub actions: Vec<Action>,
    /// What is otherwise, and stays so.
    pub notes: Vec<String>,
    /// What can't be done.
    pub refused: Vec<String>,
    /// What the file has wrong, so that nothing is done.
    pub wrong: Vec<String>,
}

impl Action {
    /// Whether it is about what is in the database, and not about a node.
    pub fn is_content(&self) -> bool {
        matches!(
            self,
            Self::User { .. }
                | Self::Database { .. }
                | Self::Run { .. }
                | Self::Sync { .. }
                | Self::Endpoints { .. }
        )
    }
}

/// A setting and what becomes of it.
pub fn shown((name, value): &(String, Option<String>)) -> String {
    match value {
        Some(value) => format!("{name}={value}"),
        None => format!("{name} as it was before"),
    }
}

impl Existing {
    fn is_running_primary(&self) -> bool {
        self.role == Role::Primary && self.condition == Condition::Running
    }
}

impl Actual {
    fn node(&self, name: &Name) -> Option<&Existing> {
        self.nodes.iter().find(|node| node.spec.node == *name)
    }

    /// Whether the data of two are known to be of two clusters.
    fn are_strange(&self, one: &Name, other: &Name) -> bool {
        let origins = self.origins.get(one).zip(self.origins.get(other));
        origins.is_some_and(|(one, other)| one != other)
    }

    /// Whom a node follows, or who has taken its place.
    fn above(&self, name: &Name) -> Option<Name> {
        match self.node(name).map(|node| &node.role) {
            Some(Role::Standby { of: next } | Role::Superseded { by: next }) => Some(next.clone()),
            Some(_) => None,
            None => self.left.get(name).map(|left| left.by.clone()),
        }
    }
}

/// What makes `actual` as `wanted`. Nodes that are not wanted go only if `prune` says so.
pub fn changes(wanted: &Wanted, actual: &Actual, prune: bool) -> Changes {
    let mut changes = Changes::default();
    let nodes = roles::settle(wanted, actual, &mut changes);
    let mut steps = order::Steps::default();
    for wanted_node in &nodes {
        let name = &wanted_node.spec.node;
        match actual.node(name) {
            None => steps.create(wanted_node.clone(), actual.data.get(name).copied().unwrap_or_default()),
            Some(node) if node.condition == Condition::Half => {
                steps.clear(name, wanted_node.spec.follow.is_some());
                steps.create(wanted_node.clone(), Data::None);
            }
            Some(Existing { role: Role::Superseded { .. }, .. }) => {
                steps.standbys.push(Action::Rejoin { node: name.clone() });
            }
            Some(node) => {
                node::compare(
                    wanted.exact.then_some(&wanted_node.spec),
                    node,
                    actual,
                    &mut steps,
                    &mut changes.notes,
                );
            }
        }
    }
    changes.actions = steps.in_order();
    content::compare(wanted, actual, &mut changes);
    content::owners(wanted, actual, &mut changes);
    content::bases(wanted, actual, &mut changes);
    let orphans = roles::orphans(wanted, actual);
    match roles::has_primary(actual, &changes.actions) {
        true => changes.notes.extend(orphans),
        // A lab that takes no writes is not as anybody wants it.
        false => changes.refused.extend(orphans),
    }
    changes.refused.extend(actual.nodes.iter().filter_map(|node| node.stuck.clone()));
    remove(wanted, actual, prune, &mut changes);
    changes
}

/// Nodes that the file does not name.
fn remove(wanted: &Wanted, actual: &Actual, prune: bool, changes: &mut Changes) {
    if !wanted.exact {
        return;
    }
    let is_wanted = |name: &Name| wanted.nodes.iter().any(|node| node.spec.node == *name);
    let mut gone: Vec<&Existing> = actual.nodes.iter().filter(|node| !is_wanted(&node.spec.node)).collect();
    // Standbys first: their slots go with them.
    gone.sort_by_key(|node| std::cmp::Reverse(roles::depth(actual, &node.spec.node)));
    for node in gone {
        let name = &node.spec.node;
        let follower =
            actual.nodes.iter().find(|other| is_wanted(&other.spec.node) && other.role.follows(name));
        match follower {
            _ if !prune => changes.notes.push(format!(
                "`{name}` is not in the file, and stays; `pgbox up FILE --prune` removes it and keeps its data"
            )),
            Some(follower) => changes.refused.push(format!(
                "`{name}` can't be removed: `{0}` follows it; first: `pgbox switchover {0}`",
                follower.spec.node
            )),
            None => changes.actions.push(Action::Remove { node: name.clone() }),
        }
    }
}

#[cfg(test)]
mod tests;
