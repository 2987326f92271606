//! `pgbox drive`: writers that remember what was acknowledged.

use std::time::Duration;

use anyhow::Result;

use super::{Context, need_root, note};
use crate::{
    cli,
    drive::{
        place::Place,
        process::{self, Wish},
        report::Report,
        run::{self, Run},
    },
    hint::advise,
};

pub fn run(context: &Context, command: &cli::Drive) -> Result<i32> {
    match command {
        cli::Drive::Start(args) => start(context, args),
        cli::Drive::Stop(args) => stop(context, args),
        cli::Drive::Report(args) => show(args, &last(context)?),
    }
}

fn start(context: &Context, args: &cli::DriveStart) -> Result<i32> {
    need_root("pgbox drive start")?;
    let wish = Wish {
        place: Place {
            root: context.root.clone(),
            lab: context.lab.clone(),
            node: args.node.clone(),
            address: args.address,
        },
        writers: args.writers,
        rate: args.rate,
        rows_per_commit: args.rows_per_commit,
        patience: args.patience.max(Duration::from_millis(1)),
        time: args.time,
        fresh: args.fresh,
    };
    let lock = context.lock()?;
    let login = wish.place.login()?;
    if !process::start(lock, &wish)? {
        note(context, "nothing was acknowledged yet; the writers go on");
    }
    let many = if args.writers == 1 {
        "1 writer writes".to_owned()
    } else {
        format!("{} writers write", args.writers)
    };
    note(context, &format!("{many} to {}; `pgbox drive report` tells how far they are", login.address));
    Ok(0)
}

fn stop(context: &Context, args: &cli::DriveReport) -> Result<i32> {
    need_root("pgbox drive stop")?;
    let run = last(context)?;
    if run.is_running()? && !process::stop(&run)? {
        note(context, "the writers did not end when asked, and were killed");
    }
    show(args, &run)
}

/// Ends the writers of a lab, if there are any; their lab goes.
pub fn end(context: &Context) -> Result<()> {
    let Some(run) = run::all(&context.root, &context.lab)?.pop() else { return Ok(()) };
    if run.is_running()? {
        process::stop(&run)?;
        note(context, "the writers are stopped; their ledger goes with the lab");
    }
    Ok(())
}

/// The run that began last.
fn last(context: &Context) -> Result<Run> {
    run::all(&context.root, &context.lab)?.pop().ok_or_else(|| {
        advise(
            format!("no driver has written to lab `{}`", context.lab),
            "`pgbox drive start` begins to write",
        )
    })
}

fn show(args: &cli::DriveReport, run: &Run) -> Result<i32> {
    let report = Report::of(run)?;
    match args.json {
        true => outln!("{}", serde_json::to_string_pretty(&report)?),
        false => out!("{}", render(&report)),
    }
    Ok(0)
}

fn render(report: &Report) -> String {
    let rows = match report.rows_per_commit {
        1 => String::new(),
        rows => format!(", {rows} rows a commit"),
    };
    let mut lines = vec![
        (
            "state",
            format!("{}, {} writers{rows}, {:.1} s", report.state.word(), report.writers, report.seconds),
        ),
        ("sent", report.sent.to_string()),
        ("acknowledged", format!("{} ({:.0} rows/s)", report.acknowledged, report.rate)),
        ("refused", report.refused.to_string()),
        ("unknown", report.unknown.to_string()),
        ("in flight", report.in_flight.to_string()),
        ("longest gap", format!("{:.1} ms, from {}", report.longest_gap_ms, report.longest_gap_at)),
    ];
    lines.extend(report.current_gap_ms.map(|gap| ("current gap", format!("{gap:.1} ms"))));
    lines.extend(report.error.clone().map(|error| ("error", error)));
    lines.iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}
