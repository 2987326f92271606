//! As whom a client connects, and where the password for that is: what `uri`, `env` and `with` have in common.

use std::path::PathBuf;

use anyhow::Result;

use super::Context;
use crate::{
    cli,
    engine::passfile,
    facts::{
        cluster,
        node::{self, Node},
    },
    hint::advise,
    spec::Name,
    state,
};

pub struct Access {
    pub user: String,
    pub database: String,
    /// The file with the user's password and nothing else, if pgbox knows it.
    pub secret: Option<PathBuf>,
    /// The file that libpq reads it from.
    pub passfile: Option<PathBuf>,
}

/// The node that is named, or else the lab's primary.
pub fn node(context: &Context, name: Option<&Name>) -> Result<Node> {
    match name {
        Some(name) => node::find(&context.root, &context.lab, name),
        None => Ok(cluster::main(&context.root, &context.lab)?.nodes.remove(0)),
    }
}

/// Who is meant by the options, with a server that has this node in its cluster.
///
/// # Errors
/// For a user of whom pgbox knows nothing, with those whom it knows.
pub fn of(context: &Context, node: &Node, asked: &cli::As) -> Result<Access> {
    let (root, lab) = (&context.root, &context.lab);
    let login = node.login()?;
    let superuser = login.user;
    let user = asked.user.clone().unwrap_or_else(|| superuser.clone());
    let secret = if user == superuser {
        // A cluster has one superuser with one password; whoever of it was told knows it.
        let peers = cluster::of(root, lab, &node.name).map_or(Vec::new(), |cluster| cluster.nodes);
        let is_one = |file: &PathBuf| state::read_secret(file).is_ok_and(|secret| !secret.is_empty());
        std::iter::once(node).chain(&peers).map(|node| node.dir.secret_file()).find(is_one)
    } else {
        let users = root.users(lab)?;
        if !users.contains(&user) {
            return Err(stranger(&user, &superuser, &users, node));
        }
        Some(root.user_file(lab, &user))
    };
    if secret.is_some() {
        passfile::settle_if_free(root, lab)?;
    }
    let passfile = secret.is_some().then(|| root.pass_file(lab));
    let database = asked.dbname.clone().unwrap_or(login.database);
    Ok(Access { user, database, secret, passfile })
}

fn stranger(user: &str, superuser: &str, users: &[String], node: &Node) -> anyhow::Error {
    let known: Vec<&str> = std::iter::once(superuser).chain(users.iter().map(String::as_str)).collect();
    advise(
        format!("pgbox knows no password of a user `{user}`, but of {}", known.join(", ")),
        format!(
            "who has a role that was made by hand knows its password: `psql -h {0} -U {user}`; `[users.{user}]` in a lab file lets \
             `pgbox up` make one; `pgbox psql {1} -- -U {user}` asks for none",
            node.state.address.addr(),
            node.name
        ),
    )
}
