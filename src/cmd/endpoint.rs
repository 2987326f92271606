//! `pgbox endpoint`: where the lab's stable addresses lead, and which ports of the host lead there as well. And what every
//! command does with them that changes what a node is.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use serde::Serialize;

use super::{Context, need_root};
use crate::{
    cli,
    engine::{endpoint, ready::Answer},
    facts::{
        cluster::Cluster,
        node::{self, Node},
        ports::{self, Asker},
    },
    hint::advise,
    plan::POSTGRES_PORT,
    show::{self, plan::Depth, table},
    spec::{LabNames, Name, Publish},
    state::{Endpoint, LabState, NodeState, Role},
    step::Lesson,
    sys::nft,
};

/// Lets the endpoints follow what has changed; `promoted` has just become the primary. What has changed has changed, also
/// where they can't follow. The caller holds the lab's lock.
pub fn settle(context: &Context, promoted: Option<&Name>) {
    if let Err(error) = endpoint::settle(&context.root, &context.lab, promoted) {
        let text = format!("the endpoints of lab `{}` do not lead where they should: {error:#}", context.lab);
        super::warn(context, &text);
    }
}

/// The same after something that has happened to a node without the lab's lock. Writes stay where they are, whatever has: only
/// reads can go elsewhere. Whoever has the lock settles them in the end.
pub fn settle_if_free(context: &Context, node: &Node) -> Result<()> {
    if matches!(node.state.role(), Role::Standby { .. })
        && let Some(_lock) = context.root.try_lock(&context.lab)?
    {
        settle(context, None);
    }
    Ok(())
}

/// The same where only this node has changed: one without a server is nothing to them.
pub fn settle_for(context: &Context, state: &NodeState) {
    if state.postgres().is_some() {
        settle(context, None);
    }
}

/// The same after the wait for a node to come up: a standby takes reads from when it answers, and a node that did not come
/// up is gone again. A primary was led to before, while its server started.
pub fn settle_when_up(context: &Context, state: &NodeState, answer: Result<Answer>) -> Result<Answer> {
    let moves = match state.role() {
        Role::Command => false,
        Role::Standby { .. } => true,
        Role::Primary | Role::Superseded { .. } => answer.is_err(),
    };
    if moves {
        let _lock = context.lock()?;
        settle(context, None);
    }
    answer
}

/// Says that the read-write endpoint would be moved, if it leads to this cluster.
pub fn foretell(context: &Context, cluster: &Cluster, to: &Name) -> Result<()> {
    let Some(state) = context.root.load_lab(&context.lab)? else { return Ok(()) };
    if state.leads.head.as_ref().is_some_and(|head| cluster.node(head).is_some()) {
        outln!("move: {} to `{to}`", state.endpoint(Endpoint::Rw));
    }
    Ok(())
}

/// A row; the names are those of the JSON output.
#[derive(Serialize)]
struct Row {
    endpoint: Endpoint,
    address: SocketAddrV4,
    /// Nodes, empty where connections are refused.
    leads_to: Vec<Name>,
    published: Vec<SocketAddrV4>,
}

pub fn run(context: &Context, args: &cli::Endpoint) -> Result<i32> {
    if args.publish_rw.is_some() || args.publish_ro.is_some() {
        need_root("pgbox endpoint")?;
        let [rw, ro] = [args.publish_rw, args.publish_ro].map(|asked| asked.map(|port| port.port()));
        publish(context, rw, ro)?;
    }
    let state = state(context)?;
    if args.explain {
        out!("{}", show::plan::step(1, &lesson(context, &state)?, Depth::Reasons));
        return Ok(0);
    }
    let table = LabNames::new(context.root.path(), &context.lab).endpoint_table;
    let stands = nft::list()?.iter().any(|t| t.name == table);
    let row = |which: Endpoint| Row {
        endpoint: which,
        address: SocketAddrV4::new(state.endpoint(which), POSTGRES_PORT),
        leads_to: if stands { state.led(which).to_vec() } else { Vec::new() },
        published: state.published(which).iter().map(at).collect(),
    };
    let rows = Endpoint::BOTH.map(row);
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(0);
    }
    let list = |texts: Vec<String>| if texts.is_empty() { "-".to_owned() } else { texts.join(", ") };
    let cells = |row: &Row| {
        vec![
            row.endpoint.word().to_owned(),
            row.address.to_string(),
            list(row.leads_to.iter().map(Name::to_string).collect()),
            list(row.published.iter().map(SocketAddrV4::to_string).collect()),
        ]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(cells).collect();
    out!("{}", table::render(&["ENDPOINT", "ADDRESS", "LEADS TO", "PUBLISHED"], &lines));
    Ok(0)
}

fn at(publish: &Publish) -> SocketAddrV4 {
    SocketAddrV4::new(publish.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED), publish.host_port)
}

/// What is remembered of the lab, if it can have endpoints.
///
/// # Errors
/// When there is no such lab, or this kernel has no NAT.
pub fn state(context: &Context) -> Result<LabState> {
    let (root, lab) = (&context.root, &context.lab);
    let Some(state) = root.load_lab(lab)? else {
        return Err(advise(
            format!("lab `{lab}` has no nodes"),
            "make one: `pgbox run primary`; `pgbox ps --all-labs` shows those of all labs",
        ));
    };
    match endpoint::possible(&node::all(root, lab)?) {
        true => Ok(state),
        false => Err(advise(
            "this kernel has no NAT (nf_tables, family ip), so a lab has no endpoints here",
            "let the client look for the node: `pgbox uri --rw --hosts`",
        )),
    }
}

/// Lets ports of this host lead to the endpoints; `Some(None)`: none any more.
pub fn publish(context: &Context, rw: Option<Option<Publish>>, ro: Option<Option<Publish>>) -> Result<()> {
    let _lock = context.lock()?;
    let _shared = context.root.lock_shared()?;
    let mut state = state(context)?;
    let old = state.publish.clone();
    for (asked, ports) in [(rw, &mut state.publish.rw), (ro, &mut state.publish.ro)] {
        if let Some(asked) = asked {
            *ports = asked.into_iter().collect();
        }
    }
    if old == state.publish {
        return Ok(());
    }
    let wanted: Vec<Publish> =
        Endpoint::BOTH.iter().flat_map(|which| state.published(*which)).copied().collect();
    if let [one, other] = wanted[..]
        && one.collides(&other)
    {
        return Err(advise(
            format!("both endpoints can't have port {} of this host", one.host_port),
            "give one of them another port",
        ));
    }
    ports::check_free(&context.root, &wanted, Asker::Endpoints(&context.lab))?;
    context.root.save_lab(&context.lab, &state)?;
    endpoint::settle(&context.root, &context.lab, None)
}

/// What one would type to make them as they are now.
fn lesson(context: &Context, state: &LabState) -> Result<Lesson> {
    let names = LabNames::new(context.root.path(), &context.lab);
    let table = endpoint::decided(&context.root, &context.lab, state)?;
    let (name, text) = (&names.endpoint_table, table.to_nft());
    let [rw, ro] = Endpoint::BOTH.map(|which| state.endpoint(which));
    Ok(Lesson {
        title: format!("lead {rw} to the primary and {ro} to the standbys"),
        why: "Whoever writes should not have to know which node is the primary just now. NAT sends the first packet of a \
              connection to a node, and all later ones after it. So when the primary changes, a filter before NAT \
              refuses the connections that lead to the old one: a client sees an error at once, where it would wait \
              for an answer that never comes. All of it is one transaction: each packet meets the old rules or the new.",
        see: "nft(8), https://wiki.nftables.org/wiki-nftables/index.php/Load_balancing",
        shell: format!(
            "nft -f - <<'END'\ntable ip {name} {{ }}\ndelete table ip {name}\n{text}END\n\
             ip address replace {rw}/32 dev {0}\nip address replace {ro}/32 dev {0}",
            names.bridge
        ),
        look: format!("nft list table ip {name}"),
    })
}
