//! What a run has come to, from its ledgers alone: no server is asked, and the driver need not live.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;

use super::{
    fates::Fates,
    run::{Run, Story},
};
use crate::sys::fs;

/// How a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Running,
    Stopped,
    /// Its process is gone without a last word.
    Killed,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
        }
    }
}

/// A run in numbers; all counts are of rows.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub state: State,
    pub run: u64,
    pub pid: Option<i32>,
    pub writers: u32,
    pub rows_per_commit: u16,
    /// When it began.
    pub since: String,
    pub seconds: f64,
    pub sent: u64,
    pub acknowledged: u64,
    pub refused: u64,
    /// The connection was lost, or the answer did not come in time: nobody knows whether they are committed.
    pub unknown: u64,
    /// No answer yet.
    pub in_flight: u64,
    /// Acknowledged rows per second.
    pub rate: f64,
    /// The longest time without an acknowledgement, over all writers.
    pub longest_gap_ms: f64,
    pub longest_gap_at: String,
    /// Since the last acknowledgement, while it runs.
    pub current_gap_ms: Option<f64>,
    /// What it said when it failed.
    pub error: Option<String>,
}

impl Report {
    pub fn of(run: &Run) -> Result<Self> {
        // Asked first: a run that ends meanwhile has all its words in the ledgers.
        let runs = run.is_running()?;
        let story = Story::read(run)?;
        let ended = story.fates.iter().all(|fates| fates.ended);
        let state = match (runs, ended) {
            (true, _) => State::Running,
            (false, true) => State::Stopped,
            (false, false) => State::Killed,
        };
        let now =
            if runs { run.state.clock.now()?.max(story.course.last_word) } else { story.course.last_word };
        let gap = story.course.longest_until(now);
        let sum = |f: fn(&Fates) -> u64| story.fates.iter().map(f).sum::<u64>();
        let in_flight = if runs { sum(|fates| fates.open) } else { 0 };
        let acknowledged = sum(|fates| fates.acked.len());
        let seconds = (now - run.state.clock.began) as f64 / 1e6;
        Ok(Self {
            state,
            run: run.number,
            pid: runs.then_some(run.state.process.pid),
            writers: run.state.writers,
            rows_per_commit: run.state.rows_per_commit,
            since: moment(run.state.clock.began),
            seconds,
            sent: sum(|fates| fates.sent),
            acknowledged,
            refused: sum(|fates| fates.refused.len()),
            unknown: sum(|fates| fates.unknown()) - in_flight,
            in_flight,
            rate: if seconds > 0.0 { acknowledged as f64 / seconds } else { 0.0 },
            longest_gap_ms: millis(gap.micros),
            longest_gap_at: moment(gap.from),
            current_gap_ms: runs.then(|| millis(now - story.course.last_ack)),
            error: if runs || ended { None } else { last_words(run) },
        })
    }
}

/// The driver's log belongs to its last run, of which alone reports are made.
fn last_words(run: &Run) -> Option<String> {
    let text = fs::read_to_string(run.dir.parent()?.join("log")).ok()?;
    text.lines().last().map(str::to_owned)
}

/// Microseconds since 1970 as a date, in UTC.
pub fn moment(micros: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_micros(micros)).to_string()
}

pub fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}
