//! The write-ahead log as it lies in `pg_wal`: what a server that can't be asked any more had committed
//! (PostgreSQL manual, 30.6; backend code: `xlog_internal.h`). pg_waldump(1) prints the same records.
//!
//! The rule that surprises people: a commit that is in the log need not have been acknowledged. With synchronous
//! replication a client hears of it only once the standby has it. What is counted here is what *may* have been
//! acknowledged; whatever was, is among it, unless `synchronous_commit` is off.

mod reader;
mod record;

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, ensure};

use super::{control::Control, lsn::Lsn, timeline::Switch};
pub use reader::Pages;
use reader::Reader;
use record::Meaning;

/// The size of a WAL page in bytes (XLOG_BLCKSZ), as everybody builds PostgreSQL.
pub const PAGE: usize = 8192;

/// Files with smaller numbers are of the system catalogs, as initdb made them (FirstNormalObjectId).
const FIRST_USER_FILE: u32 = 16384;
/// The file of `pg_statistic`, where autovacuum notes what the planner may want to know.
const STATISTIC_FILE: u32 = 2619;

/// Which log it is that is read.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// System identifier, in every segment's first page.
    pub system: u64,
    /// Bytes in a segment.
    pub segment: u64,
    /// The newest timeline to follow.
    pub timeline: u32,
}

impl Log {
    fn of(control: &Control, timeline: u32) -> Log {
        Log { system: control.system, segment: control.segment.into(), timeline }
    }

    /// The first byte of the next segment; `lsn` itself where it is one.
    fn segment_end(&self, lsn: Lsn) -> Lsn {
        Lsn(lsn.0.next_multiple_of(self.segment))
    }
}

/// A table, by what the log calls it: the names are in the catalog (`pg_class.relfilenode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// OID of its database; 0 for the tables that all databases share.
    pub database: u32,
    /// Number of its file, `pg_relation_filenode()`.
    pub file: u32,
}

/// What was committed after some position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Where the log could be read from. After the position that was asked for, if the segments before are gone: all
    /// numbers are then "at least".
    pub since: Lsn,
    /// Where the log ends.
    pub end: Lsn,
    /// Transactions that committed, or that are prepared to (PREPARE TRANSACTION).
    pub commits: u64,
    /// Those among them that are prepared, and neither committed nor rolled back later.
    pub prepared: u64,
    /// Those among them that left nothing which anybody would miss: they only took locks, or were autovacuum's
    /// statistics for the planner.
    pub idle: u64,
    /// Rows that they inserted, updated and deleted, by table. Values too large for a row (TOAST) are rows of a
    /// table of their own, whose number only a catalog knows: see [`Scan::rows_but`].
    pub tables: BTreeMap<Table, u64>,
    /// False if the numbers are "at least": segments are gone that were asked for, or a transaction had begun before those
    /// that are left, and rows of it are missing in `tables`.
    pub exact: bool,
    /// When the first and the last of them committed, in microseconds since 1970.
    pub first_commit: Option<i64>,
    pub last_commit: Option<i64>,
}

impl Scan {
    /// Transactions that somebody would miss.
    pub fn missed(&self) -> u64 {
        self.commits - self.idle
    }

    /// Rows inserted, updated and deleted, without those of system catalogs.
    pub fn rows(&self) -> u64 {
        self.rows_but(|_| false)
    }

    /// As [`Scan::rows`], without tables such as those of TOAST.
    pub fn rows_but(&self, without: impl Fn(Table) -> bool) -> u64 {
        let counted = self.tables.iter().filter(|(t, _)| t.file >= FIRST_USER_FILE && !without(**t));
        counted.map(|(_, rows)| rows).sum()
    }
}

/// Counts what was committed by records that end after `from`, for example a standby's
/// `pg_last_wal_receive_lsn()`, which may be in the middle of one.
///
/// # Errors
/// When the log can't be read, or doesn't reach the checkpoint that the control file names.
pub fn committed_since(control: &Control, timeline: u32, from: Lsn, pages: &mut Pages) -> Result<Scan> {
    // The rows of a transaction may be far before its commit: only if there is one to lose, it is worth it to read
    // from the checkpoint on.
    scan_since(control, timeline, from, pages, |near| near.commits == 0)
}

/// Counts the commits alone: of a transaction that began much earlier it knows neither rows nor whether it is idle.
///
/// # Errors
/// As [`committed_since`].
pub fn commits_since(control: &Control, timeline: u32, from: Lsn, pages: &mut Pages) -> Result<Scan> {
    scan_since(control, timeline, from, pages, |_| true)
}

/// Reads from shortly before `from`, which takes a page or two where nothing is missing, as nearly always; and, where
/// that is not enough, from the checkpoint on.
fn scan_since(
    control: &Control,
    timeline: u32,
    from: Lsn,
    pages: &mut Pages,
    enough: fn(&Scan) -> bool,
) -> Result<Scan> {
    let log = Log::of(control, timeline);
    let scan = |start: Option<Lsn>, pages: &mut Pages| -> Result<Option<Scan>> {
        let mut reader = Reader::new(log, pages);
        let start = match start {
            Some(start) => Some(start),
            None => reader.begin_before(from)?,
        };
        start.map(|start| count(&mut reader, start, from)).transpose()
    };
    let near = scan(None, pages)?;
    let scan = match near {
        Some(near) if enough(&near) || near.since <= control.redo => near,
        _ => scan(Some(control.redo), pages)?.unwrap_or_default(),
    };
    ensure!(
        scan.end > control.checkpoint,
        "the WAL ends at {}, before the latest checkpoint at {} is over",
        scan.end,
        control.checkpoint
    );
    Ok(scan)
}

/// The checksum of the record that a byte of the log belongs to, if that is there.
///
/// # Errors
/// When the log can't be read.
pub fn checksum_at(control: &Control, timeline: u32, byte: Lsn, pages: &mut Pages) -> Result<Option<u32>> {
    let mut reader = Reader::new(Log::of(control, timeline), pages);
    let Some(start) = reader.begin_before(byte)? else { return Ok(None) };
    reader.go(start);
    let mut sum = None;
    while reader.at() <= byte {
        let Some(record) = reader.next()? else { return Ok(None) };
        sum = record::checksum(record.bytes);
    }
    Ok(sum)
}

/// What a transaction did so far.
#[derive(Default)]
struct Work {
    tables: BTreeMap<Table, i64>,
    content: bool,
}

fn count(reader: &mut Reader, start: Lsn, from: Lsn) -> Result<Scan> {
    let mut scan = Scan { since: start, exact: true, ..Scan::default() };
    let mut running: HashMap<u32, Work> = HashMap::new();
    let mut prepared: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut whole_from = None;
    // Numbers wrap around, so that only their distance tells which is later.
    let whole = |from: Option<u32>, xid: u32| from.is_some_and(|first| xid.wrapping_sub(first) < 1 << 31);
    reader.go(start);
    loop {
        let Some(record) = reader.next()? else { break };
        let xid = record::xid(record.bytes);
        match record::meaning(record.bytes, record.magic) {
            Some(Meaning::Commit { xid, children, time }) => {
                prepared.remove(&xid);
                let family = || children.iter().copied().chain([xid]);
                let work: Vec<Work> = family().filter_map(|xid| running.remove(&xid)).collect();
                if record.end > from {
                    scan.add(work, family().all(|xid| whole(whole_from, xid)));
                    scan.note(time);
                }
            }
            Some(Meaning::Abort { xid, children }) => {
                prepared.remove(&xid);
                children.iter().chain([&xid]).for_each(|xid| drop(running.remove(xid)));
            }
            Some(Meaning::Prepare { xid, children }) if record.end > from => {
                prepared.insert(xid, children);
            }
            Some(Meaning::NextXid(next)) => drop(whole_from.get_or_insert(next)),
            Some(Meaning::Nothing | Meaning::Prepare { .. }) => {}
            _ if xid == 0 => {}
            Some(Meaning::Rows(table, rows)) => {
                *running.entry(xid).or_default().tables.entry(table).or_default() += rows;
            }
            Some(Meaning::Content) | None => running.entry(xid).or_default().content = true,
        }
    }
    for (xid, children) in prepared {
        let family = || children.iter().copied().chain([xid]);
        let mut work: Vec<Work> = family().filter_map(|xid| running.remove(&xid)).collect();
        // Somebody counts on it, whatever it did.
        work.push(Work { content: true, ..Work::default() });
        scan.add(work, family().all(|xid| whole(whole_from, xid)));
        scan.prepared += 1;
    }
    scan.end = reader.at();
    scan.exact &= scan.since <= from;
    Ok(scan)
}

impl Scan {
    fn add(&mut self, work: Vec<Work>, whole: bool) {
        let mut idle = whole;
        for work in work {
            idle &= !work.content;
            for (table, rows) in work.tables.into_iter().filter(|(_, rows)| *rows > 0) {
                idle &= table.file == STATISTIC_FILE;
                *self.tables.entry(table).or_default() += rows as u64;
            }
        }
        self.commits += 1;
        self.idle += u64::from(idle);
        self.exact &= whole;
    }

    fn note(&mut self, time: i64) {
        let unix = time + 946_684_800_000_000;
        self.first_commit = self.first_commit.or(Some(unix));
        self.last_commit = Some(unix);
    }
}

/// Timelines along the log, oldest first: where each begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timelines(Vec<(u32, Lsn)>);

impl Timelines {
    /// A timeline and its ancestors.
    pub fn new(history: &[Switch], newest: u32) -> Timelines {
        let begins = [Lsn(0)].into_iter().chain(history.iter().map(|switch| switch.end));
        let numbers = history.iter().map(|switch| switch.timeline).chain([newest]);
        Timelines(numbers.zip(begins).collect())
    }

    /// The name of the segment file with `lsn` in it. Where a timeline begins within a segment, the new one's file
    /// has the old one's part as well.
    pub fn file(&self, lsn: Lsn, segment: u64) -> String {
        let number = lsn.0 / segment;
        let begun = self.0.iter().rev().find(|(_, begins)| begins.0 / segment <= number);
        let per_log = (1 << 32) / segment;
        format!("{:08X}{:08X}{:08X}", begun.map_or(1, |(id, _)| *id), number / per_log, number % per_log)
    }
}

/// The timeline of a segment file, by its name; `None` for every other file.
pub fn timeline_of(name: &[u8]) -> Option<u32> {
    let digit = |b: &u8| b.is_ascii_digit() || (b'A'..=b'F').contains(b);
    let name = std::str::from_utf8(name).ok().filter(|n| n.len() == 24 && n.as_bytes().iter().all(digit))?;
    u32::from_str_radix(&name[..8], 16).ok()
}

/// Where a segment file begins, by its name; `None` for every other file.
pub fn position_of(name: &[u8], size: u64) -> Option<Lsn> {
    timeline_of(name)?;
    let part = |from: usize| u64::from_str_radix(std::str::from_utf8(&name[from..from + 8]).ok()?, 16).ok();
    Some(Lsn((part(8)? << 32) + part(16)? * size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::timeline::parse_history;

    #[test]
    fn a_segment_begins_where_its_name_says() {
        assert_eq!(position_of(b"0000000300000002000000FE", 16 << 20), Some(Lsn(0x2_FE00_0000)));
        assert_eq!(position_of(b"00000003.history", 16 << 20), None);
    }

    #[test]
    fn segments_have_the_names_that_postgres_gives_them() {
        let first = Timelines::new(&[], 1);
        assert_eq!(first.file(Lsn(0x16B_3748), 16 << 20), "000000010000000000000001");
        assert_eq!(first.file(Lsn(0x2A_FF00_0000), 16 << 20), "000000010000002A000000FF");
        assert_eq!(first.file(Lsn(0x2A_FF10_0000), 1 << 20), "000000010000002A00000FF1");
        assert_eq!(timeline_of(b"0000001A0000002A000000FF"), Some(26));
        for name in [&b"0000001A0000002A000000FF.partial"[..], b"00000002.history", b"archive_status", b""] {
            assert_eq!(timeline_of(name), None);
        }
    }

    #[test]
    fn each_segment_is_looked_for_on_the_timeline_that_has_it() {
        let history = "1\t0/3001234\tno recovery target specified\n\n# x\n2\t0/5000000\twhy not\n";
        let lines = Timelines::new(&parse_history(history, 3).unwrap(), 3);
        assert_eq!(lines, Timelines(vec![(1, Lsn(0)), (2, Lsn(0x300_1234)), (3, Lsn(0x500_0000))]));
        let timeline = |lsn| timeline_of(lines.file(Lsn(lsn), 16 << 20).as_bytes()).unwrap();
        assert_eq!([0x2FF_FFFF, 0x300_0000, 0x4FF_FFFF, 0x500_0000].map(timeline), [1, 2, 2, 3]);
    }
}
