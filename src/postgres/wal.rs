//! The write-ahead log as it lies on the disk: `access/xlogrecord.h` and `access/xlog_internal.h` of PostgreSQL 13 to 18,
//! in which nothing that is read here has changed.
//!
//! The rule that surprises people: WAL has no end mark. Segments are used again, and behind the last record lies an older
//! one that looks just as good. A record counts only if it says where the record before it began, and its page says its
//! own address.

use super::lsn::Lsn;

const PAGE: u64 = 8192;
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;
const RECORD_HEADER: usize = 24;

/// `XLP_LONG_HEADER` of a page's flags: the first of a segment.
const IS_LONG: u16 = 2;

/// Resource managers (`access/rmgrlist.h`), and what their records do (the high bits of `xl_info`).
const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const RM_HEAP2: u8 = 9;
const RM_HEAP: u8 = 10;
const XLOG_SWITCH: u8 = 0x40;
const OPERATION: u8 = 0x70;

/// Where the bytes of the log come from.
pub trait Pages {
    /// The page that begins at this position, `None` where there is no more.
    fn page(&mut self, at: Lsn) -> Option<[u8; PAGE as usize]>;

    /// Bytes of a segment.
    fn segment_size(&self) -> u64;
}

/// What was found between two positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scan {
    /// Behind the last record.
    pub end: Lsn,
    /// Transactions that were committed.
    pub commits: u64,
    /// Rows that were inserted, changed or deleted. Rows of a COPY count by the page.
    pub rows: u64,
}

/// Reads records from `start`, which is the beginning of one, to the end of the log, and counts those that end after `from`.
pub fn scan(pages: &mut impl Pages, start: Lsn, from: Lsn) -> Scan {
    let mut reader = Reader { pages, page: None };
    let mut found = Scan { end: from.max(start), ..Scan::default() };
    let (mut at, mut before) = (start, None);
    while let Some(record) = reader.record(at, before) {
        if record.end > from {
            found.commits += u64::from(record.is_commit());
            found.rows += u64::from(record.changes_row());
            found.end = record.end;
        }
        before = Some(record.begin);
        at = reader.after(&record);
    }
    found
}

struct Record {
    info: u8,
    manager: u8,
    /// Its first byte, behind the header of its page.
    begin: Lsn,
    /// Behind its last byte, and behind the padding after that.
    end: Lsn,
}

impl Record {
    fn is_commit(&self) -> bool {
        // COMMIT and COMMIT PREPARED.
        self.manager == RM_XACT && [0x00, 0x30].contains(&(self.info & OPERATION))
    }

    fn changes_row(&self) -> bool {
        let operation = self.info & OPERATION;
        match self.manager {
            // INSERT, DELETE, UPDATE, HOT UPDATE.
            RM_HEAP => [0x00, 0x10, 0x20, 0x40].contains(&operation),
            // MULTI INSERT.
            RM_HEAP2 => operation == 0x50,
            _ => false,
        }
    }
}

struct Reader<'p, P> {
    pages: &'p mut P,
    page: Option<(Lsn, [u8; PAGE as usize])>,
}

impl<P: Pages> Reader<'_, P> {
    /// The record at this position, if one is there that follows the one at `before`.
    fn record(&mut self, at: Lsn, before: Option<Lsn>) -> Option<Record> {
        let mut at = self.skip_header(at)?;
        let mut header = Vec::with_capacity(RECORD_HEADER);
        let begin = at;
        self.take(&mut at, RECORD_HEADER, &mut header)?;
        let number =
            |range: std::ops::Range<usize>| u64::from_le_bytes(header[range].try_into().unwrap_or_default());
        let length = u32::from_le_bytes(header[0..4].try_into().ok()?) as usize;
        let (info, manager, prev) = (header[16], header[17], Lsn(number(8..16)));
        let plausible =
            (RECORD_HEADER..1 << 30).contains(&length) && manager < 128 || manager >= 128 && length > 0;
        if !plausible
            || length < RECORD_HEADER
            || prev >= begin
            || before.is_some_and(|before| before != prev)
        {
            return None;
        }
        self.pass(&mut at, length - RECORD_HEADER)?;
        Some(Record { info, manager, begin, end: Lsn(at.0.next_multiple_of(8)) })
    }

    /// Where the next record begins: after a switch in the next segment.
    fn after(&mut self, record: &Record) -> Lsn {
        match record.manager == RM_XLOG && record.info & 0xf0 == XLOG_SWITCH {
            true => Lsn(record.end.0.next_multiple_of(self.pages.segment_size())),
            false => record.end,
        }
    }

    /// At the beginning of a page, the place behind its header.
    fn skip_header(&mut self, at: Lsn) -> Option<Lsn> {
        let page = self.load(at)?;
        let flags = u16::from_le_bytes(page[2..4].try_into().ok()?);
        let header = if flags & IS_LONG != 0 { LONG_HEADER } else { SHORT_HEADER };
        Some(if at.0.is_multiple_of(PAGE) { at + header } else { at })
    }

    /// Copies so many bytes, over page headers where they are in the way.
    fn take(&mut self, at: &mut Lsn, mut bytes: usize, into: &mut Vec<u8>) -> Option<()> {
        while bytes > 0 {
            *at = self.skip_header(*at)?;
            let offset = (at.0 % PAGE) as usize;
            let count = bytes.min(PAGE as usize - offset);
            into.extend_from_slice(&self.load(*at)?[offset..offset + count]);
            (*at, bytes) = (*at + count as u64, bytes - count);
        }
        Some(())
    }

    /// As [`take`](Self::take), without a copy.
    fn pass(&mut self, at: &mut Lsn, mut bytes: usize) -> Option<()> {
        while bytes > 0 {
            *at = self.skip_header(*at)?;
            let count = bytes.min((PAGE - at.0 % PAGE) as usize);
            (*at, bytes) = (*at + count as u64, bytes - count);
        }
        Some(())
    }

    /// The page that a position is in, if it is the one that it should be.
    fn load(&mut self, at: Lsn) -> Option<&[u8; PAGE as usize]> {
        let begin = Lsn(at.0 - at.0 % PAGE);
        if self.page.as_ref().is_none_or(|(known, _)| *known != begin) {
            let page = self.pages.page(begin)?;
            let address = u64::from_le_bytes(page[8..16].try_into().ok()?);
            if address != begin.0 {
                return None;
            }
            self.page = Some((begin, page));
        }
        self.page.as_ref().map(|(_, page)| page)
    }
}
