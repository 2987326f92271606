//! Where the writers write to: looked up again for each connection, because a failover moves it.

use std::net::SocketAddrV4;

use anyhow::{Result, bail};

use crate::{
    facts::{cluster, node},
    spec::Name,
    sql::Login,
    state::Root,
};

/// A lab's read-write place, as the user has said.
#[derive(Debug, Clone)]
pub struct Place {
    pub root: Root,
    pub lab: Name,
    /// This node, whatever it is.
    pub node: Option<Name>,
    /// This address, whoever answers there.
    pub address: Option<SocketAddrV4>,
}

impl Place {
    /// Whom to ask now.
    ///
    /// # Errors
    /// When nobody takes writes at the moment.
    pub fn login(&self) -> Result<Login> {
        let Some(address) = self.address else {
            return cluster::writable(&self.root, &self.lab, self.node.as_ref())?.login();
        };
        // The nodes of one cluster have one superuser and one password; a node need not run to know them.
        for node in node::all(&self.root, &self.lab)? {
            if node.state.postgres().is_some() && node.dir.secret_file().exists() {
                return Ok(Login { address, ..node.login()? });
            }
        }
        bail!("no node of lab `{}` has a Postgres whose password is known", self.lab)
    }

    /// Whether writes belong elsewhere by now. Where nobody takes them at the moment, the old place is as good as any.
    pub fn has_moved_from(&self, address: SocketAddrV4) -> bool {
        self.address.is_none() && self.login().is_ok_and(|login| login.address != address)
    }
}
