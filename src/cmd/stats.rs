//! `pgbox stats`: what nodes use, from the files of their cgroups and the counters of their interfaces.

use anyhow::Result;
use serde::Serialize;

use super::Context;
use crate::{
    cli,
    facts::node::{self, Node},
    show::table,
    spec::quantity::human_bytes,
    sys::{cgroup::Stats, link},
};

#[derive(Serialize)]
struct Row {
    node: String,
    state: String,
    #[serde(flatten)]
    usage: Stats,
    /// Bytes into and out of the node.
    received_bytes: Option<u64>,
    sent_bytes: Option<u64>,
}

pub fn run(context: &Context, args: &cli::Listing) -> Result<i32> {
    let nodes = match args.nodes.is_empty() {
        true => node::all(&context.root, &context.lab)?,
        false => {
            args.nodes.iter().map(|n| node::find(&context.root, &context.lab, n)).collect::<Result<_>>()?
        }
    };
    let rows = nodes.iter().map(|node| row(context, node)).collect::<Result<Vec<Row>>>()?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        out!("{}", render(&rows));
    }
    Ok(0)
}

fn row(context: &Context, node: &Node) -> Result<Row> {
    let (usage, traffic) = match &node.pidfd {
        // What leaves the node enters the host by the other end of the cable.
        Some(_) => (node.cgroup(&context.root)?.stats()?, link::stats(&node.names(&context.root).veth).ok()),
        None => (Stats::default(), None),
    };
    Ok(Row {
        node: node.name.to_string(),
        state: node.word().to_owned(),
        usage,
        received_bytes: traffic.as_ref().map(|t| t.tx_bytes),
        sent_bytes: traffic.as_ref().map(|t| t.rx_bytes),
    })
}

fn render(rows: &[Row]) -> String {
    let bytes = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), human_bytes);
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let cells = |row: &Row| {
        let usage = &row.usage;
        let limit =
            usage.memory_max.filter(|m| *m < u64::MAX >> 1).map_or_else(|| "max".to_owned(), human_bytes);
        vec![
            row.node.clone(),
            row.state.clone(),
            format!("{} / {limit}", bytes(usage.memory_current)),
            usage.cpu_usage_usec.map_or_else(|| "-".to_owned(), |us| format!("{:.2}s", us as f64 / 1e6)),
            number(usage.nr_throttled),
            number(usage.pids_current),
            number(usage.oom_kills),
            format!("{} / {}", bytes(row.received_bytes), bytes(row.sent_bytes)),
        ]
    };
    let header = ["NODE", "STATE", "MEMORY", "CPU TIME", "THROTTLED", "PIDS", "OOM KILLS", "NET IN / OUT"];
    table::render(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}
