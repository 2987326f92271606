//! `pgbox inspect`: everything that is known about nodes, as remembered and as the kernel sees it.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde_json::{Value, json};

use super::Context;
use crate::{
    cli,
    facts::node::{self, Node},
};

pub fn run(context: &Context, args: &cli::Nodes) -> Result<i32> {
    let mut all = Vec::new();
    for name in &args.nodes {
        all.push(describe(context, &node::find(&context.root, &context.lab, name)?)?);
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(0);
    }
    for (i, value) in all.iter().enumerate() {
        if i > 0 {
            outln!("");
        }
        print_tree(value, 0);
    }
    Ok(0)
}

fn describe(context: &Context, node: &Node) -> Result<Value> {
    let names = node.names(&context.root);
    let group = node.cgroup(&context.root)?;
    Ok(json!({
        "node": node.name,
        "lab": node.lab,
        "state": node.word(),
        "role": node.state.role().word(),
        "superseded_by": node.state.superseded_by,
        "status": node.status,
        "pid": node.pidfd.as_ref().and(node.state.init).map(|init| init.pid),
        "image": { "reference": node.state.spec.image, "digest": node.state.image, "libc": node.state.libc },
        "network": {
            "address": node.state.address,
            "bridge": names.bridge,
            "veth": names.veth,
            "netns": names.netns,
            "nat_tables": [names.nat_table, names.publish_table],
            "publish": node.state.spec.publish,
        },
        "cgroup": group.directories(),
        "data": node.state.data,
        "directory": node.dir.path(),
        "spec": node.state.spec,
        "created": node.state.created,
        "created_at": moment(node.state.created),
        "started": node.state.started,
        "started_at": moment(node.state.started),
    }))
}

/// Seconds since 1970 as people read them; none for what has not happened.
fn moment(seconds: u64) -> Option<String> {
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    (seconds > 0).then(|| humantime::format_rfc3339_seconds(time).to_string())
}

pub fn print_tree(value: &Value, depth: usize) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        outln!("{pad}{key}:");
                        print_tree(value, depth + 1);
                    }
                    Value::Array(items) if !items.is_empty() => {
                        outln!("{pad}{key}:");
                        items.iter().for_each(|item| outln!("{pad}  - {}", plain(item)));
                    }
                    _ => outln!("{pad}{key}: {}", plain(value)),
                }
            }
        }
        other => outln!("{pad}{}", plain(other)),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
