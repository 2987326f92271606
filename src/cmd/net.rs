//! `pgbox net`: faults between the nodes of a lab, and taking them away.

use anyhow::Result;
use serde::Serialize;

use super::{Context, need_root};
use crate::{
    cli::{self, Net},
    engine::faults,
    facts::node,
    hint::misuse,
    lab::fault::{End, Fault, Kind},
    show::table,
    spec::Name,
};

pub fn run(context: &Context, args: &Net) -> Result<i32> {
    need_root("pgbox net")?;
    match args {
        Net::Cut(pair) => add(context, pair, Kind::Cut),
        Net::Loss { pair, share } => add(context, pair, Kind::Loss(*share)),
        Net::Rate { pair, rate } => add(context, pair, Kind::Rate(*rate)),
        Net::Delay { pair, time } => add(context, pair, Kind::Delay(*time)),
        Net::Heal(args) => heal(context, args),
        Net::Ls { json } => list(context, *json),
    }
}

fn add(context: &Context, pair: &cli::Pair, kind: Kind) -> Result<i32> {
    check_two(&pair.a, &pair.b)?;
    let _lock = context.lock()?;
    let (a, b) = (running(context, &pair.a)?, running(context, &pair.b)?);
    let there = Fault { from: a.clone(), to: b.clone(), kind };
    let back = Fault { from: b, to: a, kind };
    let both = [there, back];
    let faults = if pair.one_way { &both[..1] } else { &both };
    faults::add(&context.root, &context.lab, faults)?;
    faults.iter().for_each(|fault| outln!("{fault}"));
    Ok(0)
}

fn heal(context: &Context, args: &cli::Heal) -> Result<i32> {
    let _lock = context.lock()?;
    let (root, lab) = (&context.root, &context.lab);
    let (healed, none) = match (&args.a, &args.b) {
        (Some(a), Some(b)) => {
            check_two(a, b)?;
            let (a, b) = (end(context, a)?, end(context, b)?);
            let healed = faults::heal(root, lab, |fault| fault.is_between(&a, &b))?;
            (healed, format!("there is no fault between {a} and {b}"))
        }
        _ => (faults::heal(root, lab, |_| true)?, format!("there is no fault in lab `{lab}`")),
    };
    if healed.is_empty() {
        super::note(context, &none);
    }
    healed.iter().for_each(|fault| outln!("healed {fault}"));
    Ok(0)
}

/// A row; the names are those of the JSON output.
#[derive(Serialize)]
struct Row {
    from: End,
    to: End,
    fault: &'static str,
    value: Option<String>,
}

fn list(context: &Context, json: bool) -> Result<i32> {
    let mut faults: Vec<Fault> =
        faults::list(&context.root, &context.lab)?.into_iter().map(|s| s.fault).collect();
    faults.sort_by(|x, y| (&x.from, &x.to, x.kind.word()).cmp(&(&y.from, &y.to, y.kind.word())));
    let row = |f: Fault| Row { from: f.from, to: f.to, fault: f.kind.word(), value: f.kind.amount() };
    let rows: Vec<Row> = faults.into_iter().map(row).collect();
    if json {
        outln!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(0);
    }
    let cells = |row: &Row| {
        let value = row.value.clone().unwrap_or_default();
        vec![row.from.to_string(), row.to.to_string(), row.fault.to_owned(), value]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(cells).collect();
    out!("{}", table::render(&["FROM", "TO", "FAULT", "VALUE"], &lines));
    Ok(0)
}

/// A node called `host` is meant before the host itself.
fn end(context: &Context, name: &Name) -> Result<End> {
    match node::find(&context.root, &context.lab, name) {
        Err(_) if name.as_str() == "host" => Ok(End::Host),
        found => found.map(|node| End::Node(node.name)),
    }
}

fn running(context: &Context, name: &Name) -> Result<End> {
    let end = end(context, name)?;
    if let End::Node(name) = &end {
        node::find(&context.root, &context.lab, name)?.running()?;
    }
    Ok(end)
}

fn check_two(a: &Name, b: &Name) -> Result<()> {
    match a == b {
        true => Err(misuse(format!("{a} and {b} are the same"), "name two nodes, or a node and `host`")),
        false => Ok(()),
    }
}
