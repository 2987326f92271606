//! Timelines: which history of a cluster a write belongs to. See "Timelines" in the PostgreSQL manual (26.3.5).
//!
//! The rule that surprises people: right after a promotion `pg_control_checkpoint()` still names the old timeline,
//! until the first checkpoint. The name of the WAL file that is being written has the new one.

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::lsn::Lsn;

/// Where a server's history left one timeline for the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Switch {
    /// The timeline that ended.
    pub timeline: u32,
    /// Its last position.
    pub end: Lsn,
    /// Why, in the server's words.
    pub reason: String,
}

/// Asks for the timeline of a server, standby or not, and for the content of its history file, as two columns.
pub const QUERY: &str = "SELECT tli, pg_read_file('pg_wal/' || lpad(upper(to_hex(tli)), 8, '0') || '.history', 0, 1000000, true) \
     FROM (SELECT CASE WHEN pg_is_in_recovery() \
       THEN greatest((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint()), \
         (SELECT max(('x' || left(name, 8))::bit(32)::int) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$')) \
       ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS tli) AS t";

/// The history file of a timeline: its ancestors, oldest first. A first timeline has none.
///
/// # Errors
/// When the server would not take it either (readTimeLineHistory): a line that is none and no comment, or numbers that do
/// not rise up to the timeline's own.
pub fn parse_history(text: &str, timeline: u32) -> Result<Vec<Switch>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let history = lines.map(switch).collect::<Result<Vec<Switch>>>()?;
    let numbers: Vec<u32> = history.iter().map(|switch| switch.timeline).chain([timeline]).collect();
    ensure!(numbers.is_sorted_by(|a, b| a < b), "timelines {numbers:?} do not rise");
    Ok(history)
}

fn switch(line: &str) -> Result<Switch> {
    let read = || {
        let mut fields = line.splitn(3, char::is_whitespace);
        let (timeline, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Switch { timeline, end, reason: fields.next().unwrap_or_default().trim().to_owned() })
    };
    read().with_context(|| format!("no line of a timeline history: {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read() {
        let text =
            "1\t0/A000198\tno recovery target specified\n\n# a comment\n2\t0/10000000\tbefore 2000-01-01\n";
        let found = parse_history(text, 3).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].timeline, found[0].end), (1, Lsn(0xA00_0198)));
        assert_eq!(found[1].reason, "before 2000-01-01");
        assert_eq!(parse_history("", 1).unwrap(), []);
        assert_eq!(parse_history("1\t0/A000198", 2).unwrap()[0].reason, "");
    }

    #[test]
    fn what_the_server_would_not_take_is_no_history() {
        for (text, timeline) in [
            ("1\n", 2),
            ("1\tx\n", 2),
            ("x\t0/1\n", 2),
            ("1\t0/1\nwhat\n", 2),
            ("2\t0/1\n1\t0/2\n", 3),
            ("1\t0/1\n1\t0/2\n", 3),
            ("1\t0/1\n2\t0/2\n", 2),
        ] {
            assert!(parse_history(text, timeline).is_err(), "{text:?}");
        }
    }
}
