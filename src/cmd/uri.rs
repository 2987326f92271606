//! `pgbox uri`: how to connect to a node. The password is named by its file, which libpq reads itself: it
//! then stands in no command line and no shell history.

use std::{fs, net::SocketAddrV4};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Context;
use crate::{
    cli,
    facts::node::{self, Node},
    hint::advise,
    plan::POSTGRES_PORT,
    postgres::uri::{Target, encode},
    sql::Login,
};

#[derive(Serialize)]
struct Json {
    host: String,
    port: u16,
    user: String,
    database: String,
    uri: String,
}

pub fn run(context: &Context, args: &cli::Uri) -> Result<i32> {
    let node = node::find(&context.root, &context.lab, &args.node)?;
    let address = address(&node, args.published)?;
    let Login { user, database, .. } = node.login()?;
    let host = address.ip().to_string();
    let pass_file = node.dir.pass_file();
    let passfile = pass_file.exists().then_some(pass_file.as_path()).filter(|_| !args.with_password);
    let target = Target { host: &host, port: address.port(), user: &user, database: &database, passfile };
    let mut uri = target.uri();
    if args.with_password {
        let path = node.dir.secret_file();
        if !path.exists() {
            return Err(advise(
                format!("pgbox knows no password of node `{}`", args.node),
                "leave --with-password out",
            ));
        }
        let password = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        uri = uri.replacen('@', &format!(":{}@", encode(&password)), 1);
    }
    if args.json {
        let port = address.port();
        println!("{}", serde_json::to_string_pretty(&Json { host, port, user, database, uri })?);
    } else {
        println!("{uri}");
    }
    Ok(0)
}

/// Where the server of a node is reached from this host.
pub fn address(node: &Node, published: bool) -> Result<SocketAddrV4> {
    match (published, node.state.spec.publish.iter().find(|p| p.port == POSTGRES_PORT)) {
        (false, _) => Ok(node.login()?.address),
        (true, Some(port)) => Ok(SocketAddrV4::new(port.reachable_at(), port.host_port)),
        (true, None) => Err(advise(
            format!("node `{}` publishes no port {POSTGRES_PORT}", node.name),
            "leave --published out",
        )),
    }
}
