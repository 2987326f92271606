//! Ports of this host that nodes and endpoints are published on.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener},
};

use anyhow::Result;

use super::nodes;
use crate::{
    hint::advise,
    spec::{Name, NodeSpec, Publish},
    state::{Endpoint, Root},
};

/// Refuses ports that are taken, or can't be published at all.
pub fn check(root: &Root, spec: &NodeSpec, nat: bool) -> Result<()> {
    if !nat && !spec.publish.is_empty() {
        return Err(advise(
            "this kernel can't publish ports: it has no nf_tables of the family ip",
            "leave -p out and use the node's own address, or load the modules nf_tables and nft_chain_nat",
        ));
    }
    check_free(root, &spec.publish, Asker::Node(&spec.lab, &spec.node))
}

/// Who wants to publish ports. What is its own already is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker<'a> {
    /// A node of a lab.
    Node(&'a Name, &'a Name),
    /// The endpoints of a lab.
    Endpoints(&'a Name),
    /// A whole lab, whose own ports are compared with one another elsewhere.
    Lab(&'a Name),
}

/// Refuses ports of this host that are taken by somebody else.
pub fn check_free(root: &Root, wanted: &[Publish], asker: Asker<'_>) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    for lab in root.labs()?.into_iter().filter(|lab| asker != Asker::Lab(lab)) {
        let is_other = |name: &Name| asker != Asker::Node(&lab, name);
        for (name, state) in nodes(root, &lab)?.into_iter().filter(|(name, _)| is_other(name)) {
            let other = &state.spec.publish;
            if let Some(port) = wanted.iter().find(|p| other.iter().any(|o| o.collides(p))) {
                return Err(taken(port, &format!("node `{name}` of lab `{lab}` has it")));
            }
        }
        let state = root.load_lab(&lab)?.filter(|_| asker != Asker::Endpoints(&lab));
        let other = state.iter().flat_map(|lab| Endpoint::BOTH.into_iter().flat_map(|e| lab.published(e)));
        if let Some(port) = wanted.iter().find(|p| other.clone().any(|o| o.collides(p))) {
            return Err(taken(port, &format!("an endpoint of lab `{lab}` has it")));
        }
    }
    // A rewritten port never reaches a listener, so a program that listens there would be cut off silently.
    for port in wanted {
        let ip = port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        if let Err(e) = TcpListener::bind((ip, port.host_port)) {
            let why = match e.kind() {
                ErrorKind::AddrInUse => "another program listens there".to_owned(),
                ErrorKind::AddrNotAvailable => {
                    return Err(advise(
                        format!("can't publish on {ip}: it is no address of this host"),
                        "see `ip -brief address`; without an address the port is published on all",
                    ));
                }
                _ => e.to_string(),
            };
            return Err(taken(port, &why));
        }
    }
    Ok(())
}

fn taken(port: &Publish, why: &str) -> anyhow::Error {
    let ip = port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
    advise(
        format!("can't publish on {ip}:{}: {why}", port.host_port),
        format!(
            "publish on another port, for example -p {}{}:{}",
            port.host_ip.map_or(String::new(), |ip| format!("{ip}:")),
            port.host_port.wrapping_add(1).max(1024),
            port.port
        ),
    )
}
