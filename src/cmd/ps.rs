//! `pgbox ps`: the nodes of a lab.

use anyhow::Result;
use serde::Serialize;

use super::Context;
use crate::{
    cli,
    facts::{
        node::{self, Node},
        stray,
    },
    show::table,
};

/// A row; the names are those of the JSON output.
#[derive(Serialize)]
struct Row {
    lab: String,
    node: String,
    state: String,
    image: String,
    address: String,
    ports: Vec<String>,
    /// Of pid 1 on the host.
    pid: Option<i32>,
    restarts: u32,
}

pub fn run(context: &Context, args: &cli::Ps) -> Result<i32> {
    let labs = if args.all_labs { context.root.labs()? } else { vec![context.lab.clone()] };
    let mut rows = Vec::new();
    let mut code = 0;
    for lab in labs {
        let mut nodes = Vec::new();
        for name in context.root.nodes(&lab)? {
            match node::find(&context.root, &lab, &name) {
                Ok(node) => nodes.push(node),
                // It may be gone by now, or be put together at this moment.
                Err(_) if !context.root.node(&lab, &name).state_file().exists() => {}
                // A damaged one hides no other.
                Err(error) => {
                    crate::show::error::print(&error, &context.options);
                    code = 1;
                }
            }
        }
        rows.extend(nodes.iter().map(|node| row(&nodes, node)));
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&rows)?);
    } else if args.quiet {
        rows.iter().for_each(|row| outln!("{}", row.node));
    } else {
        out!("{}", render(&rows, args.all_labs));
    }
    if rows.is_empty() && !args.json && !args.quiet && code == 0 {
        super::tell_of_none(context, args.all_labs);
    }
    context.tell_held();
    Ok(code)
}

fn row(nodes: &[Node], node: &Node) -> Row {
    Row {
        lab: node.lab.to_string(),
        node: node.name.to_string(),
        state: stray::word(nodes, node).unwrap_or(node.word()).to_owned(),
        image: node.state.spec.image.clone(),
        address: node.state.address.addr().to_string(),
        ports: node.state.spec.publish.iter().map(|p| p.to_string()).collect(),
        pid: node.pidfd.as_ref().and(node.state.init).map(|init| init.pid),
        restarts: node.status.restarts,
    }
}

fn render(rows: &[Row], with_lab: bool) -> String {
    let mut header = vec!["NODE", "STATE", "IMAGE", "ADDRESS", "PORTS"];
    let cells = |row: &Row| {
        let (node, state, image) = (row.node.clone(), row.state.clone(), row.image.clone());
        vec![node, state, image, row.address.clone(), row.ports.join(", ")]
    };
    let mut lines: Vec<Vec<String>> = rows.iter().map(cells).collect();
    if with_lab {
        header.insert(0, "LAB");
        lines.iter_mut().zip(rows).for_each(|(line, row)| line.insert(0, row.lab.clone()));
    }
    table::render(&header, &lines)
}
