//! Questions to a server of which each has one answer, and the few words that it is told: the functions of the PostgreSQL
//! manual, 9.27.3 and 9.27.4. What it says of itself as a whole is in [`status`](super::status).
//!
//! The rule that surprises people: a standby that has received nothing since its start says so by NULL, not by 0.

pub const IN_RECOVERY: &str = "SELECT pg_is_in_recovery()";

/// Of a primary: how far it has written.
pub const WRITTEN: &str = "SELECT pg_current_wal_lsn()::text";

/// Of a standby: how far it has replayed.
pub const REPLAYED: &str = "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text";

/// Of a standby: how far it knows that it has got, by its stream or from its archive.
pub const RECEIVED: &str = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text";

/// Of a standby: whether a stream is open, on its side.
pub const RECEIVES: &str = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')";

/// Whether a standby has been told not to replay.
pub const IS_PAUSED: &str = "SELECT pg_is_in_recovery() AND pg_is_wal_replay_paused()";

/// Of a primary: its timeline and how far it has written. Right after a promotion `pg_control_checkpoint()` still says the old one.
pub const TIMELINE: &str = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int, \
                            pg_current_wal_lsn()::text";

/// Without a wait for its end.
pub const PROMOTE: &str = "SELECT pg_promote(false)";

/// Whether a server and each of its senders go by `synchronous_standby_names`, $1, with the names in it, $2.
pub const GOES_BY: &str = "SELECT current_setting('synchronous_standby_names') = $1 AND (pg_is_in_recovery() OR NOT EXISTS \
                           (SELECT FROM pg_stat_replication WHERE state = 'streaming' \
                           AND (sync_priority > 0) <> (application_name = ANY ($2))))";

/// Whether commits of a new session wait for standbys at all.
pub const COMMITS_WAIT: &str = "SELECT current_setting('synchronous_commit') NOT IN ('off', 'local')";
