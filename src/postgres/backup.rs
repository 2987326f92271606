//! A base backup by the low-level API: what its session says, and what of a data directory it takes. PostgreSQL manual
//! 26.3.3, Making a Base Backup Using the Low Level API.
//!
//! The rule that surprises people: the files may be copied while they change, and pages torn in the middle. That is what
//! pg_backup_start is for: from there on the WAL has every page that changes as a whole, and replaying it repairs the copy.
//! So a copy without `backup_label`, which says from where on to replay, starts as well, and is corrupt.

use std::path::Path;

use super::{launch::Standby, lsn::Lsn, standby, wal};

/// The file that makes a server begin where the backup did.
pub const LABEL: &str = "backup_label";

/// Of the server's state the last to be copied: in the backup of a standby it says until where to replay.
pub const CONTROL: &str = "global/pg_control";

/// The command line of the session that a backup is made in; the backup ends with it.
pub fn session(bindir: &Path, standby: &Standby) -> Vec<String> {
    let psql = bindir.join("psql").display().to_string();
    let options = ["-XAtq", "--no-password", "--set=ON_ERROR_STOP=1", "--dbname"].map(str::to_owned);
    [vec![psql], options.to_vec(), vec![standby::conninfo(standby)]].concat()
}

/// Begins a backup, at once: a spread checkpoint takes minutes on a busy primary. One line answers it.
pub fn start(major: u32) -> &'static str {
    match major {
        ..15 => "SET client_min_messages = warning; SELECT pg_start_backup('pgbox', true, false);\n",
        15.. => "SET client_min_messages = warning; SELECT pg_backup_start('pgbox', true);\n",
    }
}

/// Ends the backup. The answer is for [`end`].
pub fn stop(major: u32) -> &'static str {
    match major {
        ..15 => "SELECT lsn, labelfile FROM pg_stop_backup(false, false);\n",
        15.. => "SELECT lsn, labelfile FROM pg_backup_stop(false);\n",
    }
}

/// Where the backup ended, and the content of its label.
pub fn end(answer: &str) -> Option<(Lsn, &str)> {
    let (stop, label) = answer.split_once('|')?;
    Some((stop.parse().ok()?, label))
}

/// The functions that the session calls, in any version.
pub const FUNCTIONS: [&str; 4] = ["pg_start_backup", "pg_stop_backup", "pg_backup_start", "pg_backup_stop"];

/// The first file of the write-ahead log that a backup needs, by its label.
pub fn first_segment(label: &str) -> Option<&str> {
    let line = label.lines().find(|line| line.starts_with("START WAL LOCATION:"))?;
    let name = line.split_once("(file ")?.1.trim_end_matches(')');
    is_segment(name).then_some(name)
}

/// Whether a backup that begins with the file `first` needs this one of `pg_wal`. A file of a later position may hold what
/// was there before it was given that name; a server that replays sees that. A standby's label may be of the timeline before
/// that which it follows by now, and until there it is to replay.
pub fn needs_log(name: &str, first: &str) -> bool {
    (is_segment(name) && name[8..] >= first[8..]) || name.ends_with(".history")
}

/// Whether a file of `pg_wal`, of `size` bytes, was finished when a backup ended at `stop`: what comes later grows further, or
/// is only a place for what will.
pub fn is_finished(name: &str, size: u64, stop: Lsn) -> bool {
    wal::position_of(name.as_bytes(), size).is_none_or(|begin| begin.0 + size <= stop.0)
}

fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// How much of an entry of a data directory belongs to a backup.
#[derive(Debug, PartialEq, Eq)]
pub enum Share {
    /// It, and what it holds.
    Whole,
    /// The directory, but nothing in it.
    Empty,
    Nothing,
}

/// What the manual and pg_basebackup leave out, and what is of the one server alone. `path` is relative to the data
/// directory.
pub fn share(path: &str) -> Share {
    let name = path.rsplit('/').next().unwrap_or(path);
    match path {
        "pg_wal" | "pg_replslot" | "pg_dynshmem" | "pg_notify" | "pg_serial" | "pg_snapshots"
        | "pg_stat_tmp" | "pg_subtrans" | "pg_tblspc" => Share::Empty,
        "postmaster.pid"
        | "postmaster.opts"
        | "postgresql.auto.conf.tmp"
        | "current_logfiles"
        | "current_logfiles.tmp"
        | LABEL
        | "tablespace_map"
        | "backup_manifest"
        | "standby.signal"
        | "recovery.signal"
        | "lost+found"
        | CONTROL => Share::Nothing,
        // pgbox's own marks and leftovers.
        _ if path.starts_with(".pgbox-") || path == "pgbox.renewed" => Share::Nothing,
        _ if name.starts_with("pgsql_tmp") || name.starts_with("pg_internal.init") => Share::Nothing,
        _ => Share::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELFILE: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
                             CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n";

    /// Version 15 has renamed the functions and taken away exclusive backups, and with them an argument: the third of
    /// pg_start_backup(label, fast, exclusive), the first of pg_stop_backup(exclusive, wait_for_archive). A backup that is
    /// exclusive would leave its label in the other server's own data directory.
    #[test]
    fn a_session_speaks_to_its_version() {
        for major in [13, 14] {
            assert!(start(major).ends_with(" SELECT pg_start_backup('pgbox', true, false);\n"));
            assert_eq!(stop(major), "SELECT lsn, labelfile FROM pg_stop_backup(false, false);\n");
        }
        for major in [15, 18] {
            assert!(start(major).ends_with(" SELECT pg_backup_start('pgbox', true);\n"));
            assert_eq!(stop(major), "SELECT lsn, labelfile FROM pg_backup_stop(false);\n");
        }
        for called in [13, 15].into_iter().flat_map(|major| [start(major), stop(major)]) {
            assert!(FUNCTIONS.iter().any(|name| called.contains(&format!(" {name}("))), "{called}");
        }
    }

    #[test]
    fn the_log_is_taken_from_where_the_label_says() {
        let first = first_segment(LABELFILE).unwrap();
        for needed in [
            "000000010000000000000002",
            "000000010000000000000003",
            "000000020000000000000003",
            "00000002.history",
        ] {
            assert!(needs_log(needed, first), "{needed}");
        }
        for other in ["000000010000000000000001", "000000020000000000000001", "archive_status", "xlogtemp.1"]
        {
            assert!(!needs_log(other, first), "{other}");
        }
        assert_eq!(first_segment("START TIMELINE: 1\n"), None);
    }

    #[test]
    fn what_the_end_of_a_backup_is_in_is_not_finished() {
        let answer = format!("0/3000138|{LABELFILE}");
        let (stop, label) = end(&answer).unwrap();
        assert_eq!(label, LABELFILE);
        for (name, finished) in [
            ("000000010000000000000002", true),
            ("000000020000000000000003", false),
            ("000000010000000000000004", false),
            ("00000002.history", true),
        ] {
            assert_eq!(is_finished(name, 16 << 20, stop), finished, "{name}");
        }
        assert_eq!(end(""), None);
    }

    #[test]
    fn what_is_of_one_server_alone_stays_there() {
        for nothing in [
            "postmaster.pid",
            "base/5/pg_internal.init",
            "base/pgsql_tmp",
            "base/5/pgsql_tmp1.2",
            "global/pg_control",
            ".pgbox-failed-1",
            "standby.signal",
        ] {
            assert_eq!(share(nothing), Share::Nothing, "{nothing}");
        }
        assert_eq!(share("pg_replslot"), Share::Empty);
        for whole in ["base/5/1259", "global/pg_filenode.map", "pg_hba.conf", "base/5/pg_wal", "log"] {
            assert_eq!(share(whole), Share::Whole, "{whole}");
        }
    }
}
