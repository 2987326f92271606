//! Timelines: which history of a cluster a write belongs to. See "Timelines" in the PostgreSQL manual (26.3.5).
//!
//! The rule that surprises people: right after a promotion `pg_control_checkpoint()` still names the old timeline,
//! until the first checkpoint. The name of the WAL file that is being written has the new one.

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

/// The lines of a history file; what is no such line is skipped, as the server does with comments.
pub fn parse_history(text: &str) -> Vec<Switch> {
    let switch = |line: &str| {
        let mut fields = line.trim().splitn(3, char::is_whitespace);
        let (timeline, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Switch { timeline, end, reason: fields.next().unwrap_or_default().trim().to_owned() })
    };
    text.lines().filter_map(switch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read() {
        let text =
            "1\t0/A000198\tno recovery target specified\n\n# a comment\n2\t0/10000000\tbefore 2000-01-01\n";
        let found = parse_history(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].timeline, found[0].end), (1, Lsn(0xA00_0198)));
        assert_eq!(found[1].reason, "before 2000-01-01");
    }
}
