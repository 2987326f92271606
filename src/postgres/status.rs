//! What a server says of itself and of those that follow it: `pg_stat_replication`, `pg_replication_slots` (PostgreSQL
//! manual 28.2, 54.19) and the functions of 9.27.4, asked in one question whose answer is one JSON document. So the views'
//! columns may come and go with versions.
//!
//! The rule that surprises people: right after a promotion `pg_control_checkpoint()` still names the old timeline, and on a
//! standby even until its next restartpoint; the name of the newest WAL file names the new one.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::lsn::Lsn;

/// Everything at once, so that all of it is of one moment.
pub const QUESTION: &str = "
WITH here AS MATERIALIZED (
    SELECT pg_is_in_recovery() AS in_recovery,
           CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                ELSE pg_current_wal_lsn() END AS write)
SELECT jsonb_build_object(
    'in_recovery', in_recovery,
    'timeline', CASE WHEN in_recovery
        THEN greatest((SELECT received_tli FROM pg_stat_wal_receiver),
                      (SELECT max(('x' || left(name, 8))::bit(32)::int) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'),
                      (SELECT timeline_id FROM pg_control_checkpoint()))
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,
    'receiver', (SELECT status FROM pg_stat_wal_receiver),
    'write', write,
    'flush', CASE WHEN in_recovery THEN write ELSE pg_current_wal_flush_lsn() END,
    'replay', CASE WHEN in_recovery THEN pg_last_wal_replay_lsn() END,
    'replayed_ms_ago', CASE WHEN in_recovery
        THEN 1000 * extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END,
    'waiting', (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'),
    'longest_wait_ms', (SELECT coalesce(max(1000 * extract(epoch FROM clock_timestamp() - query_start)), 0)
        FROM pg_stat_activity WHERE wait_event = 'SyncRep'),
    'sync', current_setting('synchronous_standby_names'),
    'commit', current_setting('synchronous_commit'),
    'senders', (SELECT coalesce(jsonb_agg(to_jsonb(s) || jsonb_build_object(
        'replay_lag_ms', 1000 * extract(epoch FROM s.replay_lag))), '[]') FROM pg_stat_replication s),
    'slots', (SELECT coalesce(jsonb_agg(to_jsonb(s) || jsonb_build_object(
        'retained_bytes', greatest(0, pg_wal_lsn_diff(write, s.restart_lsn))::bigint,
        'xmin_age', greatest(age(s.xmin), age(s.catalog_xmin))) ORDER BY s.slot_name), '[]')
        FROM pg_replication_slots s))::text
FROM here";

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Answer {
    pub in_recovery: bool,
    pub timeline: Option<u32>,
    /// What it says itself of its stream from the server that it follows.
    #[serde(default)]
    pub receiver: Option<String>,
    /// How far it has written WAL itself, or received it.
    pub write: Option<Lsn>,
    pub flush: Option<Lsn>,
    /// How far a server in recovery has come.
    pub replay: Option<Lsn>,
    /// How old the last commit is that it has replayed.
    pub replayed_ms_ago: Option<f64>,
    /// Sessions whose commit waits for a synchronous standby.
    pub waiting: u64,
    /// How long ago the oldest of their statements began.
    pub longest_wait_ms: f64,
    /// `synchronous_standby_names`.
    pub sync: String,
    /// `synchronous_commit`.
    #[serde(default)]
    pub commit: String,
    pub senders: Vec<Sender>,
    pub slots: Vec<Slot>,
}

/// A row of `pg_stat_replication`: a stream to a standby, or a base backup.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Sender {
    pub application_name: String,
    pub state: Option<String>,
    pub sync_state: Option<String>,
    pub sent_lsn: Option<Lsn>,
    pub write_lsn: Option<Lsn>,
    pub flush_lsn: Option<Lsn>,
    pub replay_lsn: Option<Lsn>,
    pub replay_lag_ms: Option<f64>,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    pub slot_name: String,
    pub slot_type: String,
    pub active: bool,
    /// A copy of one of the primary's, since PostgreSQL 17: nobody reads from it, and nobody but the server drops it.
    #[serde(default)]
    pub synced: bool,
    /// Bytes of WAL that are kept for its reader.
    pub retained_bytes: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// How many transactions ago those were whose dead rows are kept for its reader, where any are.
    #[serde(default)]
    pub xmin_age: Option<i64>,
    /// Bytes that can still be written until it is in danger of being lost.
    pub safe_wal_size: Option<i64>,
}

impl Slot {
    /// Its reader can't catch up by it any more.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

impl Answer {
    /// Whether its commits wait for nobody, whomever `synchronous_standby_names` names. A session may have chosen otherwise.
    pub fn is_waived(&self) -> bool {
        ["off", "local"].contains(&self.commit.as_str())
    }
}

/// Reads the answer to [`QUESTION`].
pub fn parse(text: &str) -> Result<Answer> {
    serde_json::from_str(text).context("the server's answer about its replication")
}

/// The standbys that a value of `synchronous_standby_names` names: `ANY 1 ("r1", r2)`, `FIRST 2 (a, b)`, `2 (a, b)`, `a, b`.
pub fn sync_names(value: &str) -> Vec<String> {
    let list = match value.split_once('(') {
        Some((_, rest)) => rest.trim_end().trim_end_matches(')'),
        None => value,
    };
    let names = list.split(',').map(|name| name.trim().trim_matches('"').to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_unknown_columns_are_not_minded() {
        let text = r#"{"in_recovery": false, "timeline": 2, "write": "0/3000148", "flush": "0/3000148", "replay": null,
            "replayed_ms_ago": null, "waiting": 3, "longest_wait_ms": 1.5, "sync": "ANY 1 (\"r1\")", "senders": [{"pid": 7, "usename": "x",
            "application_name": "r1", "state": "streaming", "sync_state": "quorum", "sent_lsn": "0/3000148",
            "write_lsn": "0/3000148", "flush_lsn": "0/3000148", "replay_lsn": "0/3000110", "replay_lag": "00:00:00.5",
            "replay_lag_ms": 500.000}], "slots": [{"slot_name": "pgbox_r1", "slot_type": "physical", "active": true,
            "restart_lsn": "0/3000110", "retained_bytes": 56, "wal_status": "reserved", "safe_wal_size": null}]}"#;
        let answer = parse(text).unwrap();
        assert_eq!((answer.waiting, answer.timeline), (3, Some(2)));
        let sender = &answer.senders[0];
        assert_eq!(sender.replay_lsn.unwrap().behind(answer.write.unwrap()), 0x38);
        assert_eq!(sender.replay_lag_ms, Some(500.0));
        assert!(!answer.slots[0].is_lost() && answer.slots[0].retained_bytes == Some(56));
        assert!(parse("{}").is_err());
    }

    #[test]
    fn names_of_every_form_of_the_rule() {
        for (text, want) in [
            ("", &[][..]),
            ("ANY 1 (\"r1\", \"r-2\")", &["r1", "r-2"]),
            ("FIRST 2 (a,b)", &["a", "b"]),
            ("a, b", &["a", "b"]),
            ("*", &["*"]),
        ] {
            assert_eq!(sync_names(text), want, "{text}");
        }
    }
}
