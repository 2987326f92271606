//! The two stable addresses of a lab: where they lead, and moving them.
//!
//! The rule that surprises people: a client that waits for an answer sends nothing, and finds out about nothing. So a
//! move resets the connections it leaves behind, of the host, of nodes and of other machines alike.
//!
//! They are no step of a plan. A plan is decided once for one node, and where these lead follows from what all nodes of
//! the lab are at this moment: so whatever changes that calls [`settle`].

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};

use super::passfile;
use crate::{
    facts::{
        cluster::{self, Cluster},
        node::{self, Node},
        stray,
    },
    hint::advise,
    plan::POSTGRES_PORT,
    spec::{LabNames, Name},
    state::{Endpoint, LabState, Leads, Role, Root},
    step::HostStep,
    sys::{conntrack, link, nft},
};

/// Lets the endpoints lead to what the lab's nodes are now, and writes the passwords for them; `promoted` has just become the
/// primary, whether that is written down by now or not. Doing it again changes nothing. A lab that has nothing for them to
/// lead to has none.
///
/// The caller holds the lab's lock.
///
/// # Errors
/// As [`point`]; but it is none when no node runs or the kernel can't do it.
pub fn settle(root: &Root, lab: &Name, promoted: Option<&Name>) -> Result<()> {
    let led = lead(root, lab, promoted);
    match promoted {
        // That changes no password, and somebody waits for it; when it is done this is called once more.
        Some(_) => led,
        None => led.and(passfile::settle(root, lab)),
    }
}

fn lead(root: &Root, lab: &Name, promoted: Option<&Name>) -> Result<()> {
    let Some(mut state) = root.load_lab(lab)? else { return Ok(()) };
    let mut nodes = node::all(root, lab)?;
    if !possible(&nodes) || !link::exists(&LabNames::new(root.path(), lab).bridge)? {
        return Ok(());
    }
    if nodes.iter().all(|node| node.state.postgres().is_none()) {
        return remove(root, lab);
    }
    if let Some(promoted) = promoted {
        promote(&mut nodes, promoted);
    }
    let addresses: Vec<_> = nodes.iter().map(|n| (n.name.clone(), n.state.address.addr())).collect();
    let address =
        |name: &Name| addresses.iter().find(|(other, _)| other == name).map(|(_, address)| *address);
    let Leads { head: before, ro: read, .. } = &state.leads;
    let left = readers(cluster::without_primary(&nodes, read));
    let leads = match cluster::choose(nodes, lab, before.as_ref()) {
        Ok(cluster) => leads(&cluster),
        // There is none, or nobody can say which. Only what is left of one can be read.
        Err(_) => Leads { head: None, rw: None, ro: left },
    };
    let ro: Vec<_> = leads.ro.iter().filter_map(address).collect();
    point(root, lab, leads.rw.as_ref().and_then(address), &ro)?;
    if state.leads != leads {
        state.leads = leads;
        root.save_lab(lab, &state)?;
    }
    Ok(())
}

/// Where the read-only endpoint of this cluster leads, if that is not to the standbys that take reads now.
pub fn astray(root: &Root, lab: &Name, cluster: &Cluster) -> Result<Option<Vec<Name>>> {
    let Some(Leads { head, ro, .. }) = root.load_lab(lab)?.map(|state| state.leads) else { return Ok(None) };
    let differs = head.as_ref() == Some(&cluster.head().name) && ro != leads(cluster).ro;
    // Without the bridge there is no endpoint that could lead anywhere.
    let stands = differs && link::exists(&LabNames::new(root.path(), lab).bridge)?;
    Ok(stands.then_some(ro))
}

/// What the endpoints are made of where they lead to what was decided last.
pub fn decided(root: &Root, lab: &Name, state: &LabState) -> Result<nft::ServiceTable> {
    let nodes = node::all(root, lab)?;
    let address = |name: &Name| nodes.iter().find(|n| n.name == *name).map(|n| n.state.address.addr());
    let ro: Vec<_> = state.leads.ro.iter().filter_map(address).collect();
    Ok(table(state, &LabNames::new(root.path(), lab), state.leads.rw.as_ref().and_then(address), &ro))
}

/// Whether the lab's gateway rewrites addresses; not on a kernel without nf_tables.
pub fn possible(nodes: &[Node]) -> bool {
    let has_nat = |node: &Node| node.state.plan.host.iter().any(|s| matches!(s, HostStep::CreateNat { .. }));
    nodes.iter().any(has_nat)
}

/// What becomes of the roles when this node is promoted.
fn promote(nodes: &mut [Node], promoted: &Name) {
    let Some(node) = nodes.iter_mut().find(|node| node.name == *promoted) else { return };
    node.state.superseded_by = None;
    let Some(follow) = node.state.spec.follow.take() else { return };
    let old = nodes.iter_mut().find(|node| node.name == follow.of && node.state.role() == Role::Primary);
    if let Some(old) = old {
        old.state.superseded_by = Some(promoted.clone());
    }
}

/// Writes go to a primary that runs. A frozen one is still the one: its kernel takes connections, and nobody else can.
fn leads(cluster: &Cluster) -> Leads {
    let head = cluster.head();
    let takes_writes = head.pidfd.is_some() && head.state.role() == Role::Primary;
    Leads {
        head: Some(head.name.clone()),
        rw: takes_writes.then(|| head.name.clone()),
        ro: readers(cluster.nodes.iter().filter(|node| !stray::leads_away(&cluster.nodes, node))),
    }
}

/// Reads go to each standby that answers, but for those that are behind on purpose. Who was promoted behind pgbox' back has gone
/// another way, and has taken along whoever follows it.
fn readers<'n>(nodes: impl IntoIterator<Item = &'n Node>) -> Vec<Name> {
    let takes_reads = |node: &&Node| {
        let at_once = node.state.spec.follow.is_some() && !node.state.applies_late();
        let standby = matches!(node.state.role(), Role::Standby { .. });
        at_once && standby && node.is_up()
    };
    nodes.into_iter().filter(takes_reads).map(|node| node.name.clone()).collect()
}

/// Lets the read-write endpoint lead to `rw` and the read-only one to `ro` in turn; without any `ro`, to `rw` as well.
/// Reads that `rw` has already go on there.
/// An endpoint that leads nowhere refuses connections. All of it changes between two packets, and from then on nothing
/// of an older connection reaches a node that is none of these. Doing it again changes nothing.
///
/// The caller holds the lab's lock.
///
/// # Errors
/// When no node of the lab runs; `EEXIST` when somebody else has a table of that name; when the kernel has no
/// nf_tables. What is left of the way may have been done.
pub fn point(root: &Root, lab: &Name, rw: Option<Ipv4Addr>, ro: &[Ipv4Addr]) -> Result<()> {
    let state = root.load_lab(lab)?.with_context(|| format!("nothing is remembered of lab `{lab}`"))?;
    let names = LabNames::new(root.path(), lab);
    if !link::exists(&names.bridge)? {
        return Err(advise(
            format!("lab `{lab}` has no bridge: none of its nodes runs"),
            "start one: `pgbox start NODE`",
        ));
    }
    let table = table(&state, &names, rw, ro);
    let leftover = nft::replace(&table).with_context(|| format!("move the endpoints of lab `{lab}`"))?;
    // After the table: without it the addresses would be the host's, with all that the host has on that port.
    // Looked for first: to add one waits for whoever takes a network namespace apart, 20 ms and more.
    let there = link::addresses()?;
    for address in Endpoint::BOTH.map(|which| state.endpoint(which)) {
        if !there.iter().any(|a| a.dev == names.bridge && a.address == address) {
            link::add_address(&names.bridge, address, 32)?;
        }
    }
    let tracker = conntrack::Tracker::open()?;
    let mut left = tracker.list()?;
    left.retain(|connection| table.resets(connection.client.to, *connection.server.from.ip()));
    tracker.reset(&left).with_context(|| format!("reset what the endpoints of lab `{lab}` have left"))?;
    drop(leftover);
    Ok(())
}

/// Takes the endpoints away. Connections through them go on. Absent is Ok.
pub fn remove(root: &Root, lab: &Name) -> Result<()> {
    let names = LabNames::new(root.path(), lab);
    if let Some(state) = root.load_lab(lab)? {
        for which in Endpoint::BOTH {
            link::remove_address(&names.bridge, state.endpoint(which), 32)?;
        }
    }
    nft::delete_own(&[&names.endpoint_table], &names.alias)
}

fn table(state: &LabState, names: &LabNames, rw: Option<Ipv4Addr>, ro: &[Ipv4Addr]) -> nft::ServiceTable {
    let servers = |which| match which {
        Endpoint::Ro if !ro.is_empty() => ro,
        _ => rw.as_slice(),
    };
    let service = |which: Endpoint| nft::Service {
        name: which.word().to_owned(),
        at: SocketAddrV4::new(state.endpoint(which), POSTGRES_PORT),
        published: state
            .published(which)
            .iter()
            .map(|p| nft::Front { ip: p.host_ip, port: p.host_port })
            .collect(),
        // Reads are right there, too: who has begun is not sent away because a standby has come.
        keep: rw.filter(|_| which == Endpoint::Ro).into_iter().collect(),
        servers: servers(which).iter().map(|address| SocketAddrV4::new(*address, POSTGRES_PORT)).collect(),
    };
    nft::ServiceTable {
        name: names.endpoint_table.clone(),
        comment: names.alias.clone(),
        subnet: (state.subnet.network(), state.subnet.prefix_len()),
        services: Endpoint::BOTH.map(service).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn without_standbys_reads_go_to_the_primary_and_without_a_primary_writes_go_nowhere() {
        let state = LabState::new("10.0.0.0/24".parse().unwrap());
        let names = LabNames::new(Path::new("/x"), &"l".parse().unwrap());
        let [a, b] = [2, 3].map(|last| Ipv4Addr::new(10, 0, 0, last));
        let lead = |rw, ro: &[Ipv4Addr]| {
            let services = table(&state, &names, rw, ro).services.into_iter();
            services.map(|s| s.servers.iter().map(|s| *s.ip()).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        assert_eq!(lead(Some(a), &[b]), [vec![a], vec![b]]);
        assert_eq!(lead(Some(a), &[]), [vec![a], vec![a]]);
        assert_eq!(lead(None, &[b]), [vec![], vec![b]]);
        assert_eq!(lead(None, &[]), [Vec::<Ipv4Addr>::new(), vec![]]);
    }
}
