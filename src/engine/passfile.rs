//! The lab's password file, in libpq's format (PostgreSQL manual 34.16): the one that connection strings name. It is the
//! lab's and no node's: a primary that is removed after a failover must not take away what all clients log in with.
//!
//! The rule that surprises people: libpq takes the *first* line that fits. So an address comes before a port that any
//! address may have, and what belongs to one cluster before what belongs to the lab.
//!
//! It is made of what else is there, by whoever changes that, as the endpoints are.

use anyhow::Result;

use crate::{
    facts::{
        cluster::{self, Cluster},
        node::{self, Node},
    },
    plan::POSTGRES_PORT,
    postgres::{launch::Source, uri::passfile_line},
    spec::{Name, Publish},
    state::{self, Endpoint, LabState, Root},
};

/// Writes what the lab's clients need now, if it is not what stands there. The caller holds the lab's lock.
pub fn settle(root: &Root, lab: &Name) -> Result<()> {
    // With the last node the lab's directory goes, and this file with it.
    let Some(state) = root.load_lab(lab)? else { return Ok(()) };
    let path = root.pass_file(lab);
    let text = text(root, lab, &state)?;
    match state::read_secret(&path)? == text {
        true => Ok(()),
        false => state::replace_secret(&path, &text),
    }
}

/// The same for who does not hold the lock, which is taken only if there is something to write.
pub fn settle_unlocked(root: &Root, lab: &Name) -> Result<()> {
    if is_due(root, lab)? {
        let _lock = root.lock(lab)?;
        settle(root, lab)?;
    }
    Ok(())
}

/// The same, unless somebody is at work on the lab: that one does it in the end, and a command that only reads does not wait.
pub fn settle_if_free(root: &Root, lab: &Name) -> Result<()> {
    if is_due(root, lab)?
        && let Some(_lock) = root.try_lock(lab)?
    {
        settle(root, lab)?;
    }
    Ok(())
}

fn is_due(root: &Root, lab: &Name) -> Result<bool> {
    let Some(state) = root.load_lab(lab)? else { return Ok(false) };
    Ok(state::read_secret(&root.pass_file(lab))? != text(root, lab, &state)?)
}

/// Who logs in where with which password. The exact places first.
#[derive(Default)]
struct Lines {
    exact: Vec<String>,
    any_address: Vec<String>,
}

impl Lines {
    fn add(&mut self, host: &str, port: u16, user: &str, password: &str) {
        if password.is_empty() {
            return;
        }
        let lines = if host == "*" { &mut self.any_address } else { &mut self.exact };
        lines.push(passfile_line(&format!("{host}:{port}"), user, password));
    }

    /// A port of this host is reached by each of its names, unless it is an outer address's alone.
    fn publish<'p>(&mut self, ports: impl Iterator<Item = &'p Publish>, user: &str, password: &str) {
        for port in ports.filter(|port| port.port == POSTGRES_PORT) {
            let any = port.host_ip.is_none_or(|ip| ip.is_loopback()).then(|| "*".to_owned());
            for host in port.host_ip.map(|ip| ip.to_string()).into_iter().chain(any) {
                self.add(&host, port.host_port, user, password);
            }
        }
    }

    fn node(&mut self, node: &Node, password: &str) {
        let Some(user) = superuser(node) else { return };
        self.add(&node.state.address.addr().to_string(), POSTGRES_PORT, &user, password);
        self.publish(node.state.spec.publish.iter(), &user, password);
    }

    fn endpoints(&mut self, state: &LabState, head: &Node, password: &str) {
        let Some(user) = superuser(head) else { return };
        for which in Endpoint::BOTH {
            self.add(&state.endpoint(which).to_string(), POSTGRES_PORT, &user, password);
            self.publish(state.published(which).iter(), &user, password);
        }
    }
}

fn text(root: &Root, lab: &Name, state: &LabState) -> Result<String> {
    let mut lines = Lines::default();
    let (clusters, alone) = cluster::sort(node::all(root, lab)?);
    for cluster in &clusters {
        let password = password(cluster)?;
        cluster.nodes.iter().for_each(|node| lines.node(node, &password));
        if state.leads.head.as_ref().is_some_and(|head| cluster.node(head).is_some()) {
            lines.endpoints(state, cluster.head(), &password);
        }
    }
    for node in &alone {
        let password = state::read_secret(&node.dir.secret_file())?;
        lines.node(node, &password);
        if state.leads.ro.contains(&node.name) {
            lines.endpoints(state, node, &password);
        }
    }
    // By who is the primary now, nothing here changes.
    for lines in [&mut lines.exact, &mut lines.any_address] {
        lines.sort();
        lines.dedup();
    }
    let mut text = lines.exact.concat() + &lines.any_address.concat();
    for user in root.users(lab)? {
        text += &passfile_line("*:*", &user, &state::read_secret(&root.user_file(lab, &user))?);
    }
    Ok(text)
}

/// A cluster has one superuser with one password; whoever of it was told knows it. Empty if nobody was.
fn password(cluster: &Cluster) -> Result<String> {
    for node in &cluster.nodes {
        let known = state::read_secret(&node.dir.secret_file())?;
        if !known.is_empty() {
            return Ok(known);
        }
    }
    Ok(String::new())
}

fn superuser(node: &Node) -> Option<String> {
    match &node.state.postgres()?.superuser {
        Source::Value(user) => Some(user.clone()),
        // pid 1 reads that file, and says so.
        Source::File(_) => node.status.superuser.clone(),
    }
}
