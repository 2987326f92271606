//! `pgbox verify`: all ledgers of a lab beside the table of one server.

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    comparison::{Comparison, Difference},
    gaps::Gap,
    report::{millis, moment},
    rows::Table,
    run::{self, Run, Story},
};
use crate::{
    facts::node::Node,
    hint::advise,
    postgres::timeline::{self, Switch},
    sql,
    state::Root,
};

/// What the comparison has come to.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The server that was asked.
    pub node: String,
    /// Whether every acknowledged row is there.
    pub complete: bool,
    /// Whether writers were at work meanwhile.
    pub running: bool,
    /// Whether there is a table at all.
    pub table: bool,
    #[serde(flatten)]
    pub difference: Difference,
    /// Rows that were sent, and of which nobody knows.
    pub unknown: u64,
    pub refused: u64,
    /// The longest time without an acknowledgement in one run.
    pub longest_gap_ms: f64,
    pub longest_gap_at: String,
    /// The timeline that the server writes.
    pub timeline: u32,
    /// How it came to that one.
    pub history: Vec<Switch>,
}

/// Compares what all runs remember with what the node has.
///
/// # Errors
/// When nothing is remembered, or the server does not answer.
pub fn verify(root: &Root, node: &Node) -> Result<Verdict> {
    let runs = run::all(root, &node.lab)?;
    if runs.is_empty() {
        return Err(advise(
            format!("there is nothing to compare: no driver has written to lab `{}`", node.lab),
            "`pgbox drive start` begins to write",
        ));
    }
    let login = node.login()?;
    let (timeline, history) = timelines(&login)?;
    let running = runs.iter().map(Run::is_running).collect::<Result<Vec<bool>>>()?.contains(&true);
    let mut stories = runs.iter().map(Story::read).collect::<Result<Vec<Story>>>()?;
    let awaited: Vec<_> = stories.iter().flat_map(|s| s.fates.iter().map(|f| f.acked.clone())).collect();
    let rows = Table::open(&login)?;
    for story in &mut stories {
        story.read_on().context("read the ledgers")?;
    }
    let fates = stories.iter().flat_map(|story| story.fates.iter().cloned());
    let writers = runs.iter().flat_map(Run::writers).zip(awaited).zip(fates);
    let mut comparison = Comparison::new(writers.map(|((writer, awaited), fates)| (writer, awaited, fates)));
    let table = rows.is_some();
    if let Some(rows) = rows {
        rows.each(|row| comparison.saw(row))?;
    }
    let difference = comparison.finish();
    let gaps = runs.iter().zip(&stories).map(|(run, story)| story.gap(run)).collect::<Result<Vec<Gap>>>()?;
    let gap = gaps.into_iter().fold(Gap::default(), Gap::or_longer);
    let sum = |f: fn(&super::fates::Fates) -> u64| stories.iter().flat_map(|s| &s.fates).map(f).sum();
    Ok(Verdict {
        node: node.name.to_string(),
        complete: difference.missing == 0,
        running,
        table,
        difference,
        unknown: sum(|fates| fates.unknown()),
        refused: sum(|fates| fates.refused.len()),
        longest_gap_ms: millis(gap.micros),
        longest_gap_at: moment(gap.from),
        timeline,
        history,
    })
}

fn timelines(login: &sql::Login) -> Result<(u32, Vec<Switch>)> {
    let answer = login.ask(sql::PATIENCE, |client| client.query_one(timeline::QUERY, &[]))?;
    let number: i32 = answer.try_get(0).context("the timeline")?;
    let history: Option<String> = answer.try_get(1).context("the timeline's history")?;
    let (number, history) = (number as u32, history.unwrap_or_default());
    Ok((number, timeline::parse_history(&history, number)?))
}
