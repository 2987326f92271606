//! `pgbox volume`: named volumes, also those that belong to no node any more.

use anyhow::Result;
use serde::Serialize;

use super::{Context, each, need_root};
use crate::{
    cli,
    facts::volume::{self, Volume},
    hint::advise,
    show::table,
    spec::{Name, quantity::human_bytes},
    state,
};

/// A row; the names are those of the JSON output.
#[derive(Serialize)]
struct Row {
    lab: String,
    volume: String,
    /// Bytes on disk.
    size: u64,
    /// Major version of the cluster in it.
    postgres: Option<u32>,
    /// The nodes that have it mounted.
    nodes: Vec<String>,
    /// Directories kept of first starts that failed.
    failed: Vec<String>,
    path: String,
}

pub fn run(context: &Context, command: cli::Volumes) -> Result<i32> {
    match command {
        cli::Volumes::Ls(args) => list(context, &args).map(|()| 0),
        cli::Volumes::Rm { volumes, dry_run } => {
            need_root("pgbox volume rm")?;
            each(context, &volumes, |name| remove(context, name, dry_run))
        }
    }
}

fn list(context: &Context, args: &cli::VolumeLs) -> Result<()> {
    let labs = if args.all_labs { context.root.volume_labs()? } else { vec![context.lab.clone()] };
    let mut rows = Vec::new();
    for lab in labs {
        rows.extend(volume::all(&context.root, &lab)?.iter().map(row));
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&rows)?);
    } else if args.quiet {
        rows.iter().for_each(|row| outln!("{}", row.volume));
    } else {
        out!("{}", render(&rows, args.all_labs));
        for path in rows.iter().flat_map(|row| &row.failed) {
            super::note(context, &format!("{path} is kept of a first start that failed"));
        }
    }
    Ok(())
}

fn row(volume: &Volume) -> Row {
    Row {
        lab: volume.lab.to_string(),
        volume: volume.name.to_string(),
        size: volume.size,
        postgres: volume.version,
        nodes: volume.users.iter().map(Name::to_string).collect(),
        failed: volume.failed.iter().map(|path| path.display().to_string()).collect(),
        path: volume.path.display().to_string(),
    }
}

fn render(rows: &[Row], with_lab: bool) -> String {
    let mut header = vec!["VOLUME", "SIZE", "POSTGRES", "NODES"];
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let cells = |row: &Row| {
        let version = row.postgres.map_or_else(String::new, |version| version.to_string());
        vec![row.volume.clone(), human_bytes(row.size), or_none(version), or_none(row.nodes.join(", "))]
    };
    let mut lines: Vec<Vec<String>> = rows.iter().map(cells).collect();
    if with_lab {
        header.insert(0, "LAB");
        lines.iter_mut().zip(rows).for_each(|(line, row)| line.insert(0, row.lab.clone()));
    }
    table::render(&header, &lines)
}

/// Removes a volume that no node uses, with all data.
pub fn remove(context: &Context, name: &Name, dry_run: bool) -> Result<()> {
    let _lock = context.lock()?;
    let path = context.root.volume_dir(&context.lab, name);
    if !path.exists() {
        let known = context.root.volumes(&context.lab)?.iter().map(Name::to_string).collect::<Vec<_>>();
        let has = if known.is_empty() { "no volumes".to_owned() } else { known.join(", ") };
        return Err(advise(
            format!("no volume `{name}` in lab `{}`", context.lab),
            format!("lab `{}` has {has}", context.lab),
        ));
    }
    if let Some(user) = volume::users(&context.root, &path)?.first() {
        return Err(advise(
            format!("volume `{name}` is in use: node `{user}` has it"),
            format!("remove the node first: `pgbox rm {user}` keeps its data, `pgbox rm -v {user}` does not"),
        ));
    }
    if dry_run {
        outln!("remove with all data: volume {}", path.display());
        return Ok(());
    }
    state::remove_volume(&path)
}
