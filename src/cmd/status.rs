//! `pgbox status`: the lab as a picture, and as JSON.

use std::io::{IsTerminal, stdout};

use anyhow::Result;

use super::Context;
use crate::{
    cli,
    facts::{
        cluster, node,
        replication::{self, Lab},
    },
    hint,
    show::lab::{Strokes, render},
    spec::Name,
};

pub fn run(context: &Context, args: &cli::Status) -> Result<i32> {
    for name in &args.nodes {
        node::find(&context.root, &context.lab, name)?;
    }
    let mut lab = replication::look(&context.root, &context.lab)?;
    keep(&mut lab, &args.nodes);
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&lab)?);
    } else {
        out!("{}", hint::with_options(&render(&lab, strokes()), &context.options));
    }
    let nodes = node::all(&context.root, &context.lab)?;
    if nodes.is_empty() && !args.json {
        super::tell_of_none(context, false);
    }
    nodes
        .iter()
        .filter_map(|node| cluster::left_alone(&context.root, &nodes, node))
        .for_each(|text| super::note(context, &text));
    context.tell_held();
    Ok(0)
}

/// Leaves out what was not asked for.
fn keep(lab: &mut Lab, nodes: &[Name]) {
    if nodes.is_empty() {
        return;
    }
    for cluster in &mut lab.clusters {
        cluster.nodes.retain(|member| nodes.contains(&member.node));
        // Without the lines between them.
        cluster.nodes.iter_mut().for_each(|member| member.depth = 0);
    }
    lab.clusters.retain(|cluster| !cluster.nodes.is_empty());
    lab.others.retain(|member| nodes.contains(&member.node));
}

/// Box drawing characters only where they are seen as such.
fn strokes() -> Strokes {
    let variables = ["LC_ALL", "LC_CTYPE", "LANG"].map(|name| std::env::var(name).unwrap_or_default());
    let locale = variables.into_iter().find(|value| !value.is_empty()).unwrap_or_default().to_lowercase();
    match stdout().is_terminal() && (locale.contains("utf-8") || locale.contains("utf8")) {
        true => Strokes::Unicode,
        false => Strokes::Ascii,
    }
}
