//! What the guard has seen, decided and done: one line each, for people or as JSON with the same words.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::spec::Name;

/// Something worth a line.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// From now on this primary is watched.
    Watching { primary: Name, standbys: Vec<Name>, detect_ms: u64 },
    /// Other standbys than before follow it.
    Standbys { primary: Name, standbys: Vec<Name> },
    /// A standby does not answer any more.
    StandbyDown { standby: Name, what: String },
    /// It does now.
    StandbyUp { standby: Name },
    /// There is nobody to watch.
    NoPrimary { why: String },
    /// Somebody else has made another node the primary.
    Moved { old: Name, new: Name },
    /// It does not work as it should, and that is no reason to act.
    LetBe { primary: Name, what: String },
    /// A first sign of a failure.
    Trouble { primary: Name, what: String, detect_ms: u64 },
    /// It works again, before anything was done.
    Back { primary: Name, after_ms: u64 },
    /// It has failed.
    Failed { primary: Name, what: String, after_ms: u64 },
    /// It can do nothing any more.
    Fenced { primary: Name, standby: Name, loss: String, ms: u64 },
    /// The standby takes writes. Times are since the first sign of the failure.
    FailedOver {
        old: Name,
        new: Name,
        timeline: u32,
        lsn: String,
        seen_ms: u64,
        fenced_ms: u64,
        total_ms: u64,
    },
    /// The read-only endpoint leads to others than before.
    Reads { standbys: Vec<Name> },
    /// It has failed, and no standby takes its place.
    Refused { primary: Name, why: String, again_ms: u64 },
    /// Something that did not go as it should, and may need a hand.
    Warning { what: String },
    /// Something went wrong on the way.
    Error { what: String },
    /// The guard has ended.
    Ended { why: String },
}

impl Event {
    /// In words.
    pub fn text(&self) -> String {
        match self {
            Self::Watching { primary, standbys, detect_ms } => format!(
                "watching `{primary}`, {}; it may be silent for {}",
                followed_by(standbys),
                shown(*detect_ms)
            ),
            Self::Standbys { primary, standbys } => format!("`{primary}` is {}", followed_by(standbys)),
            Self::StandbyDown { standby, what } => format!("standby `{standby}` is {what}"),
            Self::StandbyUp { standby } => format!("standby `{standby}` is up"),
            Self::NoPrimary { why } => format!("nobody to watch: {why}"),
            Self::Moved { old, new } => {
                format!("`{new}` was made the primary in the place of `{old}`, not by me")
            }
            Self::LetBe { primary, what } => format!("`{primary}` {what}: I do nothing"),
            Self::Trouble { primary, what, detect_ms } => {
                format!("`{primary}` {what}; it has {} to come back", shown(*detect_ms))
            }
            Self::Back { primary, after_ms } => {
                format!("`{primary}` is back after {}: I did nothing", shown(*after_ms))
            }
            // A death needs no time; what it took is the look at it.
            Self::Failed { primary, what, after_ms: 0..10 } => format!("`{primary}` has failed: it {what}"),
            Self::Failed { primary, what, after_ms } => {
                format!("`{primary}` has failed: it {what}, for {}", shown(*after_ms))
            }
            Self::Fenced { primary, standby, loss, ms } => {
                format!("`{primary}` is put out of the way for `{standby}`, in {}; {loss}", shown(*ms))
            }
            Self::FailedOver { old, new, timeline, lsn, seen_ms, fenced_ms, total_ms } => format!(
                "`{new}` is the primary, on timeline {timeline} since {lsn}, {} after the first sign (failure seen at {}, \
                 old primary fenced at {}); `pgbox rejoin {old}` brings `{old}` back",
                shown(*total_ms),
                shown(*seen_ms),
                shown(*fenced_ms)
            ),
            Self::Refused { primary, why, again_ms } => format!(
                "`{primary}` stays where it is, and I do nothing: {why}; I look again in {}",
                shown(*again_ms)
            ),
            Self::Reads { standbys } if standbys.is_empty() => {
                "reads go to the primary: no standby answers".to_owned()
            }
            Self::Reads { standbys } => format!("reads go to {}", listed(standbys)),
            Self::Warning { what } => format!("warning: {what}"),
            Self::Error { what } => format!("error: {what}"),
            Self::Ended { why } => format!("ended: {why}; from now on nothing fails over by itself"),
        }
    }
}

fn followed_by(standbys: &[Name]) -> String {
    match standbys {
        [] => "followed by nobody".to_owned(),
        names => format!("followed by {}", listed(names)),
    }
}

fn listed(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

fn shown(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        _ => humantime::format_duration(Duration::from_millis(ms)).to_string(),
    }
}

/// Whole milliseconds, as events have them.
pub fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// An event with the time at which it was told.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
    text: String,
}

impl<'a> Line<'a> {
    pub fn of(event: &'a Event, at: SystemTime) -> Self {
        Self { time: humantime::format_rfc3339_millis(at).to_string(), event, text: event.text() }
    }

    /// For people.
    pub fn plain(&self) -> String {
        format!("{}  {}", self.time, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_same_for_people_and_for_programs() {
        let event = Event::Back { primary: "p".parse().unwrap(), after_ms: 1250 };
        let line = Line::of(&event, SystemTime::UNIX_EPOCH);
        let text = "`p` is back after 1s 250ms: I did nothing";
        assert_eq!(line.plain(), format!("1970-01-01T00:00:00.000Z  {text}"));
        let json = serde_json::to_value(&line).unwrap();
        let want = serde_json::json!({"time": "1970-01-01T00:00:00.000Z", "event": "back", "primary": "p", "after_ms": 1250, "text": text});
        assert_eq!(json, want);
    }
}
