//! Records out of the pages of the write-ahead log (backend code: `xlogreader.c`, `xlog_internal.h`).
//!
//! The rule that surprises people: nothing in the log says where it ends. It ends before the first record that
//! does not hold: segments are used again under new names with their old content, so that what follows the last
//! record may look like WAL, and is told from it only by page addresses, back pointers and checksums.

use anyhow::Result;

use super::{
    Log, PAGE,
    record::{CHECKSUM_AT, checksum, is_switch},
};
use crate::postgres::{lsn::Lsn, native::Fields};

/// Gives the page that begins at an LSN, or false where there is none.
pub type Pages<'p> = dyn FnMut(Lsn, &mut [u8; PAGE]) -> Result<bool> + 'p;

/// Page magics of the versions 13 to 18.
const MAGICS: [u16; 6] = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];

const CONTINUES: u16 = 1;
const LONG_HEADER: u16 = 2;
const OVERWRITES: u16 = 8;
const KNOWN_FLAGS: u16 = 0xF;

/// The fixed part of a record: length, transaction, back pointer, kind, checksum.
const HEADER: usize = 24;

/// One record, whole.
pub struct Record<'r> {
    /// Where its last byte was, plus one: without the padding to the next record.
    pub end: Lsn,
    pub bytes: &'r [u8],
    /// The magic of its page, which tells the versions apart.
    pub magic: u16,
}

struct PageHeader {
    flags: u16,
    /// Bytes that a record which began earlier still has, from here on.
    remaining: usize,
    length: usize,
}

/// Walks the records of a log.
pub struct Reader<'p> {
    log: Log,
    pages: &'p mut Pages<'p>,
    page: Box<[u8; PAGE]>,
    /// The page in `page`, if it holds.
    loaded: Option<Lsn>,
    /// The newest page seen, and its timeline: timelines only grow along the log.
    newest: (Lsn, u32),
    /// Which version wrote the log: the magic of its pages.
    magic: Option<u16>,
    at: Lsn,
    previous: Option<Lsn>,
    bytes: Vec<u8>,
}

impl<'p> Reader<'p> {
    pub fn new(log: Log, pages: &'p mut Pages<'p>) -> Reader<'p> {
        let page = Box::new([0; PAGE]);
        let newest = (Lsn(0), 0);
        Reader {
            log,
            pages,
            page,
            loaded: None,
            newest,
            magic: None,
            at: Lsn(0),
            previous: None,
            bytes: vec![],
        }
    }

    /// Where the next record would begin. Once [`Reader::next`] returned `None`, the end of the log.
    pub fn at(&self) -> Lsn {
        self.at
    }

    /// Goes to where a record begins.
    pub fn go(&mut self, at: Lsn) {
        (self.at, self.previous) = (at, None);
    }

    /// Where a record begins, such that every record which ends after `lsn` is there or later. `None` where the log
    /// has no such page any more, or not yet.
    pub fn begin_before(&mut self, lsn: Lsn) -> Result<Option<Lsn>> {
        // A record that ends at `lsn`, on a page's first byte, is on the page before.
        let mut page = page_of(Lsn(lsn.0.saturating_sub(1)));
        while let Some(header) = self.load(page)? {
            let first = header.length + header.remaining.next_multiple_of(8);
            if first < PAGE && page + first as u64 <= lsn {
                return Ok(Some(page + first as u64));
            }
            match page.0.checked_sub(PAGE as u64) {
                Some(before) => page = Lsn(before),
                None => break,
            }
        }
        // What is before is gone, and nothing of it goes on there.
        let begins =
            lsn == page_of(lsn) && self.load(lsn)?.is_some_and(|header| header.flags & CONTINUES == 0);
        Ok(begins.then_some(lsn))
    }

    /// The next record; `None` at the end of the log.
    pub fn next(&mut self) -> Result<Option<Record<'_>>> {
        let Some((start, end)) = self.assemble()? else { return Ok(None) };
        if !self.holds(start) {
            return Ok(None);
        }
        self.previous = Some(start);
        let next = Lsn(end.0.next_multiple_of(8));
        self.at = if is_switch(&self.bytes) { self.log.segment_end(next) } else { next };
        Ok(Some(Record { end, bytes: &self.bytes, magic: self.magic.unwrap_or(0) }))
    }

    /// Collects the bytes of the record at `at`: where it begins, behind a page header, and where it ends.
    fn assemble(&mut self) -> Result<Option<(Lsn, Lsn)>> {
        let mut page = page_of(self.at);
        let Some(mut header) = self.load(page)? else { return Ok(None) };
        let mut offset = (self.at.0 % PAGE as u64) as usize;
        if offset == 0 {
            if header.flags & CONTINUES != 0 {
                return Ok(None);
            }
            offset = header.length;
        }
        let mut start = page + offset as u64;
        self.bytes.clear();
        let mut length = self.record_length(offset);
        loop {
            // Zeros follow the last record of a server that was stopped, or killed between two writes.
            if length < HEADER {
                return Ok(None);
            }
            let taken = (length - self.bytes.len()).min(PAGE - offset);
            self.bytes.extend_from_slice(&self.page[offset..offset + taken]);
            if self.bytes.len() == length {
                return Ok(Some((start, page + (offset + taken) as u64)));
            }
            page = page + PAGE as u64;
            match self.load(page)? {
                Some(next) => header = next,
                None => return Ok(None),
            }
            offset = header.length;
            if header.flags & OVERWRITES != 0 {
                // The rest of this record was never written; after the crash the log went on here with another.
                start = page + offset as u64;
                self.bytes.clear();
                length = self.record_length(offset);
            } else if header.flags & CONTINUES == 0 || header.remaining != length - self.bytes.len() {
                return Ok(None);
            }
        }
    }

    /// Records begin on multiples of 8, so that the length is never cut by the page's end.
    fn record_length(&self, offset: usize) -> usize {
        Fields(&self.page[offset..]).u32().unwrap_or(0) as usize
    }

    /// Whether the record in `bytes` is intact, and follows the one before it.
    fn holds(&self, start: Lsn) -> bool {
        let previous = Lsn(Fields(&self.bytes[8..HEADER]).u64().unwrap_or(0));
        let sum = crc32c::crc32c_append(crc32c::crc32c(&self.bytes[HEADER..]), &self.bytes[..CHECKSUM_AT]);
        self.previous.map_or(previous < start, |expected| previous == expected)
            && checksum(&self.bytes) == Some(sum)
    }

    /// Makes a page the current one; `None` if it is missing, or not of this log at this place.
    fn load(&mut self, at: Lsn) -> Result<Option<PageHeader>> {
        if self.loaded != Some(at) {
            self.loaded = None;
            if !(self.pages)(at, &mut self.page)? {
                return Ok(None);
            }
        }
        let header = self.header(at);
        self.loaded = header.is_some().then_some(at);
        Ok(header)
    }

    fn header(&mut self, at: Lsn) -> Option<PageHeader> {
        let mut fields = Fields(&self.page[..]);
        let (magic, flags, timeline) = (fields.u16()?, fields.u16()?, fields.u32()?);
        let (address, remaining) = (Lsn(fields.u64()?), fields.u32()? as usize);
        let first = at.0.is_multiple_of(self.log.segment);
        let version = self.magic.map_or(MAGICS.contains(&magic), |known| known == magic);
        if !version || flags & !KNOWN_FLAGS != 0 || address != at || (flags & LONG_HEADER != 0) != first {
            return None;
        }
        if timeline > self.log.timeline || (at > self.newest.0 && timeline < self.newest.1) {
            return None;
        }
        let mut length = HEADER;
        if first {
            let mut fields = Fields(&self.page[HEADER..]);
            let (system, segment, page) = (fields.u64()?, u64::from(fields.u32()?), fields.u32()? as usize);
            if (system, segment, page) != (self.log.system, self.log.segment, PAGE) {
                return None;
            }
            length = HEADER + 16;
        }
        self.magic = Some(magic);
        self.newest = self.newest.max((at, timeline));
        Some(PageHeader { flags, remaining: if flags & CONTINUES != 0 { remaining } else { 0 }, length })
    }
}

fn page_of(lsn: Lsn) -> Lsn {
    Lsn(lsn.0 - lsn.0 % PAGE as u64)
}
