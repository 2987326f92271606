//! A lab as a user wants it: what `pgbox up` compares with what is there. Pure.

use crate::spec::{Follow, Name, NodeLimits, NodeSpec, Publish, Restart, SyncRule};

/// Everything that a user said about a lab.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub nodes: Vec<WantedNode>,
    pub users: Vec<User>,
    pub databases: Vec<Database>,
    pub init: Vec<Sql>,
    /// Whom commits are to wait for; `Some(None)`: for nobody. `None`: nothing was said.
    pub sync: Option<Option<SyncRule>>,
    /// Ports of the host for the endpoints; `Some(None)`: none. `None`: nothing was said.
    pub publish_rw: Option<Option<Publish>>,
    pub publish_ro: Option<Option<Publish>>,
    /// Nodes that exist are to be like this, too. Without a file only their names were meant.
    pub exact: bool,
}

/// A node, with the password of its superuser apart from all that is remembered of it.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedNode {
    pub spec: NodeSpec,
    pub secret: Option<String>,
}

/// A role that can log in.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    pub name: String,
    /// `None`: pgbox makes one up and keeps it in a file.
    pub password: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    pub name: String,
    pub owner: Option<String>,
}

/// A piece of SQL that is to run once.
#[derive(Debug, Clone, PartialEq)]
pub struct Sql {
    /// The file that it comes from, or its place in the lab file.
    pub shown: String,
    /// What it is called, whatever is in it: its file, or its number.
    pub place: String,
    /// `None`: the superuser's.
    pub database: Option<String>,
    pub text: String,
}

/// Bytes of /dev/shm, unless something else is said.
pub const SHM_SIZE: u64 = 256 << 20;

/// Seconds that a fast shutdown may take, unless something else is said.
pub const STOP_TIMEOUT: u64 = 60;

impl Wanted {
    /// What is wanted without a file: a primary and a standby; in a lab that has other nodes, those.
    pub fn without_file(lab: &Name, image: &str, there: &[Name]) -> Result<Self, String> {
        let (primary, replica): (Name, Name) = ("primary".parse()?, "replica".parse()?);
        let own = there.iter().all(|name| [&primary, &replica].contains(&name));
        let mut nodes: Vec<NodeSpec> = match own {
            true => vec![node(lab, &primary, image), node(lab, &replica, image)],
            false => there.iter().map(|name| node(lab, name, image)).collect(),
        };
        if own {
            nodes[1].follow = Some(Follow::of(primary));
        }
        let nodes = nodes.into_iter().map(|spec| WantedNode { spec, secret: None }).collect();
        Ok(Self {
            nodes,
            users: Vec::new(),
            databases: Vec::new(),
            init: Vec::new(),
            sync: None,
            publish_rw: None,
            publish_ro: None,
            exact: false,
        })
    }
}

/// A node of which nothing was said but its name and its image.
pub fn node(lab: &Name, name: &Name, image: &str) -> NodeSpec {
    NodeSpec {
        lab: lab.clone(),
        node: name.clone(),
        image: image.to_owned(),
        env: Vec::new(),
        volumes: Vec::new(),
        publish: Vec::new(),
        settings: Vec::new(),
        limits: NodeLimits { shm_size: SHM_SIZE, ..NodeLimits::default() },
        restart: Restart::No,
        stop_timeout: STOP_TIMEOUT,
        tune: false,
        args: Vec::new(),
        subnet: None,
        offline: false,
        follow: None,
    }
}
