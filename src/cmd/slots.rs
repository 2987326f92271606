//! `pgbox slots`: the replication slots of all servers of a lab, and what they keep.

use anyhow::{Result, bail};
use serde::Serialize;

use super::{Context, need_root};
use crate::{
    cli,
    facts::{
        node::{self, Node},
        replication,
    },
    hint::advise,
    postgres::{
        standby,
        status::{Answer, Slot},
    },
    show::table,
    spec::{Name, quantity::human_bytes},
    sql,
};

#[derive(Serialize)]
struct Row {
    /// The server that has it.
    node: Name,
    /// The standby that it is for; `None`: nobody's.
    standby: Option<Name>,
    #[serde(flatten)]
    slot: Slot,
}

pub fn run(context: &Context, args: &cli::Slots) -> Result<i32> {
    let nodes = node::all(&context.root, &context.lab)?;
    let rows = rows(context, &nodes)?;
    match &args.drop {
        Some(slot) => drop_slot(context, args, slot, &nodes, rows)?,
        None if args.json => outln!("{}", serde_json::to_string_pretty(&rows)?),
        None => out!("{}", render(&rows)),
    }
    Ok(0)
}

/// The slots of all servers that answer, asked at once.
fn rows(context: &Context, nodes: &[Node]) -> Result<Vec<Row>> {
    let asked = nodes.iter().filter(|node| node.pidfd.is_some() && node.state.postgres().is_some());
    let asked: Vec<&Node> = asked.collect();
    let answers: Vec<Result<Answer>> = std::thread::scope(|scope| {
        let threads: Vec<_> = asked.iter().map(|node| scope.spawn(|| replication::ask(node))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic while asking")).collect()
    });
    let mut rows = Vec::new();
    for (node, answer) in asked.into_iter().zip(answers) {
        match answer {
            Ok(answer) => rows.extend(answer.slots.into_iter().map(|slot| row(nodes, node, slot))),
            Err(error) => super::warn(context, &format!("`{}` was not asked: {error:#}", node.name)),
        }
    }
    Ok(rows)
}

fn row(nodes: &[Node], node: &Node, slot: Slot) -> Row {
    let owns =
        |other: &&Node| other.name != node.name && standby::slot_name(other.name.as_str()) == slot.slot_name;
    let standby = nodes.iter().find(owns).map(|owner| owner.name.clone());
    Row { node: node.name.clone(), standby, slot }
}

fn render(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let slot = &row.slot;
        vec![
            row.node.to_string(),
            slot.slot_name.clone(),
            row.standby.as_ref().map_or_else(|| "nobody's".to_owned(), Name::to_string),
            slot.slot_type.clone(),
            if slot.active { "yes" } else { "no" }.to_owned(),
            slot.retained_bytes.map_or_else(|| "-".to_owned(), human_bytes),
            slot.wal_status.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let header = ["NODE", "SLOT", "STANDBY", "TYPE", "ACTIVE", "KEEPS", "WAL"];
    table::render(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn drop_slot(context: &Context, args: &cli::Slots, slot: &str, nodes: &[Node], rows: Vec<Row>) -> Result<()> {
    need_root("pgbox slots --drop")?;
    let on = |row: &Row| args.on.as_ref().is_none_or(|node| row.node == *node);
    let mut found: Vec<Row> = rows.into_iter().filter(|row| row.slot.slot_name == slot && on(row)).collect();
    let row = match found.len() {
        0 => {
            return Err(advise(format!("no running server has a slot `{slot}`"), "`pgbox slots` lists them"));
        }
        1 => found.remove(0),
        _ => {
            let names: Vec<&str> = found.iter().map(|row| row.node.as_str()).collect();
            return Err(advise(
                format!("{} have a slot `{slot}`", names.join(" and ")),
                format!("say which: --on {}", names[0]),
            ));
        }
    };
    if !args.force {
        refuse(&row)?;
    }
    if args.dry_run {
        outln!("drop: slot {slot} of {}", row.node);
        return Ok(());
    }
    let Some(node) = nodes.iter().find(|node| node.name == row.node) else { bail!("`{}` is gone", row.node) };
    remove(node, slot)?;
    super::note(context, &format!("slot `{slot}` of `{}` is dropped", row.node));
    Ok(())
}

fn refuse(row: &Row) -> Result<()> {
    let Row { node, slot, standby } = row;
    let name = &slot.slot_name;
    match standby {
        Some(standby) => Err(advise(
            format!("slot `{name}` of `{node}` is that of `{standby}`, which would be cut off from its WAL"),
            format!("`pgbox rm {standby}` drops it with its node; --force drops it all the same"),
        )),
        None if slot.active => Err(advise(
            format!("slot `{name}` of `{node}` is in use at this moment"),
            "end its reader first, or use --force",
        )),
        None => Ok(()),
    }
}

/// Ends the reader of a slot, if it has one, and drops it. A walsender takes a moment to go.
fn remove(node: &Node, slot: &str) -> Result<()> {
    let (release, drop) = (standby::release_slot(slot), standby::drop_slot(slot));
    let dropped = node.login()?.ask(sql::PATIENCE, move |client| {
        for _ in 0..100 {
            client.simple_query(&release)?;
            if !client.query(&drop, &[])?.is_empty() {
                return Ok(true);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(false)
    })?;
    match dropped {
        true => Ok(()),
        false => bail!("slot `{slot}` is taken again and again; stop its reader first"),
    }
}
