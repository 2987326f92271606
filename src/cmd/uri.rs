//! `pgbox uri`: how to connect to a node, or to whichever node has a role. The password is named by its file, which
//! libpq reads itself: it then stands in no command line and no shell history.

use std::net::SocketAddrV4;

use anyhow::Result;
use serde::Serialize;

use super::{
    Context,
    access::{self, Access},
};
use crate::{
    cli,
    facts::{
        cluster,
        node::{self, Node},
        stray,
    },
    hint::advise,
    plan::POSTGRES_PORT,
    postgres::uri::{Target, encode},
    spec::Publish,
    state::{self, Endpoint},
};

#[derive(Serialize)]
struct Json {
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<Endpoint>,
    host: String,
    port: u16,
    /// All of them, if there are several; `host` is the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<SocketAddrV4>,
    user: String,
    database: String,
    uri: String,
}

/// What a connection string is made of.
pub struct Place {
    endpoint: Option<Endpoint>,
    /// Not empty. Several are for the client to try.
    pub hosts: Vec<SocketAddrV4>,
    /// Whose cluster's users and passwords these are.
    pub node: Node,
}

pub fn run(context: &Context, args: &cli::Uri) -> Result<i32> {
    let place = place(context, &args.whom, args.by.published, args.hosts)?;
    let access = access::of(context, &place.node, &args.by)?;
    let passfile = access.passfile.as_deref().filter(|_| !args.with_password);
    let first = place.hosts[0];
    let (host, port) = (first.ip().to_string(), first.port());
    let target = Target { host: &host, port, user: &access.user, database: &access.database, passfile };
    let mut uri = match place.endpoint {
        Some(endpoint) if args.hosts => target.uri_of(&place.hosts, endpoint.session_attrs()),
        _ => target.uri(),
    };
    if args.with_password {
        uri = uri.replacen('@', &format!(":{}@", encode(&password(&place.node, &access)?)), 1);
    }
    if args.json {
        let hosts = if args.hosts { place.hosts } else { Vec::new() };
        let Access { user, database, .. } = access;
        let json = Json { endpoint: place.endpoint, host, port, hosts, user, database, uri };
        outln!("{}", serde_json::to_string_pretty(&json)?);
    } else {
        outln!("{uri}");
    }
    Ok(0)
}

/// Where whoever is meant is reached; the lab's primary, where nobody is named.
pub fn place(context: &Context, whom: &cli::Whom, published: bool, hosts: bool) -> Result<Place> {
    let endpoint = match (whom.rw, whom.ro) {
        (true, _) => Endpoint::Rw,
        (_, true) => Endpoint::Ro,
        _ => {
            let node = access::node(context, whom.node.as_ref())?;
            return Ok(Place { endpoint: None, hosts: vec![address(&node, published)?], node });
        }
    };
    let mut nodes = servers(context, endpoint)?;
    let hosts = match hosts {
        true => nodes.iter().map(|n| Ok(n.login()?.address)).collect::<Result<_>>()?,
        false => vec![stable(context, endpoint, published)?],
    };
    let node = nodes.remove(0);
    if cluster::all(&context.root, &context.lab)?.len() > 1 {
        let text = format!(
            "of several clusters, the endpoints of lab `{}` lead to that of `{}`",
            context.lab, node.name
        );
        super::note(context, &text);
    }
    Ok(Place { endpoint: Some(endpoint), hosts, node })
}

/// The servers of the cluster that an endpoint is of; to be read, also of one that has lost its primary. Not empty.
fn servers(context: &Context, endpoint: Endpoint) -> Result<Vec<Node>> {
    let leads = context.root.load_lab(&context.lab)?.map(|state| state.leads).unwrap_or_default();
    let mut nodes = node::all(&context.root, &context.lab)?;
    let names = |nodes: Vec<&Node>| nodes.into_iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    if endpoint == Endpoint::Ro {
        let left = names(cluster::without_primary(&nodes, &leads.ro));
        if !left.is_empty() {
            nodes.retain(|node| left.contains(&node.name));
            return Ok(nodes);
        }
    }
    let mut nodes = cluster::choose(nodes, &context.lab, leads.head.as_ref())?.nodes;
    let astray = names(nodes.iter().filter(|node| stray::leads_away(&nodes, node)).collect());
    nodes.retain(|node| !astray.contains(&node.name));
    Ok(nodes)
}

/// Where the server of a node is reached from this host.
fn address(node: &Node, published: bool) -> Result<SocketAddrV4> {
    let own = node.login()?.address;
    let port = node.state.spec.publish.iter().find(|p| p.port == POSTGRES_PORT);
    match published {
        false => Ok(own),
        true => published_at(port, &format!("node `{}` publishes no port {POSTGRES_PORT}", node.name)),
    }
}

/// The endpoint's own address, or the port of this host that leads to it.
fn stable(context: &Context, endpoint: Endpoint, published: bool) -> Result<SocketAddrV4> {
    let state = super::endpoint::state(context)?;
    if !published {
        return Ok(SocketAddrV4::new(state.endpoint(endpoint), POSTGRES_PORT));
    }
    let none = format!("the {} endpoint of lab `{}` is not published", endpoint.word(), context.lab);
    published_at(state.published(endpoint).first(), &none)
}

fn published_at(port: Option<&Publish>, none: &str) -> Result<SocketAddrV4> {
    let port = port.ok_or_else(|| advise(none, "leave --published out"))?;
    Ok(SocketAddrV4::new(port.reachable_at(), port.host_port))
}

fn password(node: &Node, access: &Access) -> Result<String> {
    match &access.secret {
        Some(file) => state::read_secret(file),
        None => Err(advise(
            format!("pgbox knows no password of node `{}`", node.name),
            "leave --with-password out",
        )),
    }
}
