//! `pgbox verify`: whether every acknowledged row is there.

use anyhow::Result;

use super::Context;
use crate::{
    cli,
    drive::{
        comparison::Row,
        verify::{self, Verdict},
    },
    facts::cluster,
};

pub fn run(context: &Context, args: &cli::Verify) -> Result<i32> {
    let node = cluster::writable(&context.root, &context.lab, args.node.as_ref())?;
    let verdict = verify::verify(&context.root, &node)?;
    match args.json {
        true => outln!("{}", serde_json::to_string_pretty(&verdict)?),
        false => out!("{}", render(&verdict)),
    }
    Ok(if verdict.complete { 0 } else { 1 })
}

fn render(verdict: &Verdict) -> String {
    let difference = &verdict.difference;
    let named = |count: u64, rows: &[Row]| {
        let names: Vec<String> = rows.iter().map(|row| format!("{}/{}", row.writer, row.seq)).collect();
        let more = if count > rows.len() as u64 { ", ..." } else { "" };
        if count == 0 { "0".to_owned() } else { format!("{count} (writer/seq {}{more})", names.join(", ")) }
    };
    let mut lines = vec![
        ("acknowledged", difference.acknowledged.to_string()),
        ("missing", named(difference.missing, &difference.missing_rows)),
        ("present", difference.present.to_string()),
        ("  unacknowledged", format!("{} of {} unknown", difference.present_unacknowledged, verdict.unknown)),
    ];
    if difference.present_refused > 0 {
        lines.push(("  refused", format!("{} of {}", difference.present_refused, verdict.refused)));
    }
    if difference.foreign > 0 {
        lines.push(("  never sent", named(difference.foreign, &difference.foreign_rows)));
    }
    lines.push(("longest gap", format!("{:.1} ms, from {}", verdict.longest_gap_ms, verdict.longest_gap_at)));
    lines.push(("timeline", timeline(verdict)));
    let result = match (verdict.complete, verdict.table) {
        (true, _) => format!("every acknowledged row is on {}", verdict.node),
        (false, true) => format!("{} acknowledged rows are LOST on {}", difference.missing, verdict.node),
        (false, false) => {
            format!("{} has no table pgbox_drive: every acknowledged row is LOST", verdict.node)
        }
    };
    let table: String = lines.iter().map(|(name, value)| format!("{name:<18}{value}\n")).collect();
    format!("{table}{result}\n")
}

fn timeline(verdict: &Verdict) -> String {
    let before =
        verdict.history.iter().map(|switch| format!(", {} ended at {}", switch.timeline, switch.end));
    format!("{}{}", verdict.timeline, before.collect::<String>())
}
