//! What a WAL record says (backend code: `xlogrecord.h`, `heapam_xlog.h`, `xact.h`, `standbydefs.h`).
//!
//! The rule that surprises people: with `full_page_writes` the first change of a page after a checkpoint may
//! bring the page's whole image *instead* of the row. What is always there is the main data at the record's end.

use super::Table;
use crate::postgres::native::Fields;

// Resource managers: whose record it is.
const XLOG: u8 = 0;
const TRANSACTION: u8 = 1;
const STORAGE: u8 = 2;
const COMMIT_LOG: u8 = 3;
const MULTIXACT: u8 = 6;
const STANDBY: u8 = 8;
const HEAP2: u8 = 9;
const HEAP: u8 = 10;
const BTREE: u8 = 11;

/// In the fixed part of a record, at its end.
pub const CHECKSUM_AT: usize = 20;

/// The page magics since which a format is what it is.
const SINCE_15: u16 = 0xD110;
const SINCE_18: u16 = 0xD118;

/// Bytes in the header of a prepared transaction; since 15 it has the numbers of statistics to forget, too.
const PREPARE_HEADER: usize = 64;
const PREPARE_HEADER_15: usize = 72;

/// What a record means to one who counts what transactions did.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Rows of a table changed; fewer than none where an insert was taken back (`ON CONFLICT`).
    Rows(Table, i64),
    /// This transaction, and these of its own, are done. With the time in microseconds since 2000.
    Commit {
        xid: u32,
        children: Vec<u32>,
        time: i64,
    },
    Abort {
        xid: u32,
        children: Vec<u32>,
    },
    /// Done as far as their session goes, and to be committed by any other: whoever asked for it was told so.
    Prepare {
        xid: u32,
        children: Vec<u32>,
    },
    /// No transaction from this number on has begun before this record.
    NextXid(u32),
    /// Something that a transaction leaves behind and that is not a row.
    Content,
    /// Locks, hints, indexes: nothing that anybody would miss.
    Nothing,
}

/// The transaction that wrote a record; 0 for none.
pub fn xid(record: &[u8]) -> u32 {
    Fields(record).from(4).and_then(|mut fields| fields.u32()).unwrap_or(0)
}

/// What the server has computed from all the rest of a record.
pub fn checksum(record: &[u8]) -> Option<u32> {
    Fields(record).from(CHECKSUM_AT)?.u32()
}

/// Whether the log goes on in the next segment after this record (`pg_switch_wal`).
pub fn is_switch(record: &[u8]) -> bool {
    matches!(kind(record), Some((XLOG, 0x40)))
}

/// Resource manager and the bits that are its own.
fn kind(record: &[u8]) -> Option<(u8, u8)> {
    let mut fields = Fields(record).from(16)?;
    let info = fields.u8()?;
    Some((fields.u8()?, info & 0xF0))
}

/// What a record says, by the version that wrote it. `None` if it can't be understood.
pub fn meaning(record: &[u8], magic: u16) -> Option<Meaning> {
    let (manager, info) = kind(record)?;
    let parts = || Parts::parse(record, magic);
    match (manager, info) {
        (XLOG, 0x00) => Some(Meaning::NextXid(Fields(parts()?.main).from(24)?.u32()?)),
        (STANDBY, 0x10) => Some(Meaning::NextXid(Fields(parts()?.main).from(12)?.u32()?)),
        (TRANSACTION, _) => ending(xid(record), info, parts()?.main, magic),
        (HEAP | HEAP2, _) => rows(manager, info, &parts()?),
        (XLOG | STORAGE | COMMIT_LOG | MULTIXACT | STANDBY | BTREE, _) => Some(Meaning::Nothing),
        _ => Some(Meaning::Content),
    }
}

fn rows(manager: u8, info: u8, parts: &Parts) -> Option<Meaning> {
    let count = match (manager, info & 0x70) {
        (HEAP, 0x00 | 0x20 | 0x40) => 1,
        // A row that `ON CONFLICT` had put there before it saw the conflict, and nobody else has seen.
        (HEAP, 0x10) if Fields(parts.main).from(7)?.u8()? & 0x08 != 0 => -1,
        (HEAP, 0x10) => 1,
        (HEAP2, 0x50) => i64::from(Fields(parts.main).from(2)?.u16()?),
        (HEAP, 0x30) => return Some(Meaning::Content),
        _ => return Some(Meaning::Nothing),
    };
    Some(Meaning::Rows(parts.table?, count))
}

/// Commit and abort, also of what was prepared before.
fn ending(mut xid: u32, info: u8, main: &[u8], magic: u16) -> Option<Meaning> {
    let operation = info & 0x70;
    match operation {
        0x00 | 0x20 | 0x30 | 0x40 => {}
        0x10 => return prepare(main, magic),
        _ => return Some(Meaning::Nothing),
    }
    let mut fields = Fields(main);
    let time = fields.u64()? as i64;
    let parts = if info & 0x80 != 0 { fields.u32()? } else { 0 };
    let has = |bit: u32| parts & (1 << bit) != 0;
    if has(0) {
        fields.bytes(8)?;
    }
    let mut children = Vec::new();
    if has(1) {
        let mut list = Fields(list(&mut fields, 4)?);
        children.extend(std::iter::from_fn(|| list.u32()));
    }
    // Files to remove, statistics to forget, caches to invalidate: only to get to what is behind them.
    let statistic = if magic >= SINCE_18 { 16 } else { 12 };
    for (bit, size) in [(2, 12), (8, statistic), (3, 16)] {
        if has(bit) {
            list(&mut fields, size)?;
        }
    }
    // The session that says COMMIT PREPARED has another number than the transaction.
    if has(4) {
        xid = fields.u32()?;
    }
    Some(match operation {
        0x00 | 0x30 => Meaning::Commit { xid, children, time },
        _ => Meaning::Abort { xid, children },
    })
}

/// PREPARE TRANSACTION (`xl_xact_prepare`): a header of fixed size, the name, the children.
fn prepare(main: &[u8], magic: u16) -> Option<Meaning> {
    let at = |place| Fields(main).from(place);
    let (xid, count) = (at(8)?.u32()?, at(28)?.u32()?);
    let header = if magic >= SINCE_15 { PREPARE_HEADER_15 } else { PREPARE_HEADER };
    // Its length is right before a replication origin's position and time, which end the header.
    let name = usize::from(at(header - 18)?.u16()?);
    let mut list = at(header + name.next_multiple_of(8))?;
    let children = (0..count).map(|_| list.u32()).collect::<Option<Vec<u32>>>()?;
    Some(Meaning::Prepare { xid, children })
}

/// A count, and that many things of one size.
fn list<'a>(fields: &mut Fields<'a>, size: usize) -> Option<&'a [u8]> {
    let count = fields.u32()? as usize;
    fields.bytes(count.checked_mul(size)?)
}

/// The parts of a record that are read here.
struct Parts<'r> {
    /// The table, index or sequence of its first block.
    table: Option<Table>,
    main: &'r [u8],
}

impl<'r> Parts<'r> {
    /// Goes through the headers, which all stand before the data that they describe.
    fn parse(record: &'r [u8], magic: u16) -> Option<Parts<'r>> {
        let mut fields = Fields(record).from(24)?;
        let mut parts = Parts { table: None, main: &[] };
        // Data that the headers so far have announced: what is left once it is all that is left.
        let mut announced = 0;
        while fields.0.len() > announced {
            match fields.u8()? {
                255 => {
                    let length = usize::from(fields.u8()?);
                    parts.main = last(record, length)?;
                    break;
                }
                254 => {
                    let length = fields.u32()? as usize;
                    parts.main = last(record, length)?;
                    break;
                }
                253 => drop(fields.u16()?),
                252 => drop(fields.u32()?),
                0..=32 => {
                    let (table, length) = block(&mut fields, magic)?;
                    parts.table = parts.table.or(table);
                    announced += length;
                }
                _ => return None,
            }
        }
        Some(parts)
    }
}

fn last(record: &[u8], length: usize) -> Option<&[u8]> {
    record.get(record.len().checked_sub(length)?..)
}

/// A block's header behind its number: the relation, unless it is the previous one's, and the length of its data.
fn block(fields: &mut Fields, magic: u16) -> Option<(Option<Table>, usize)> {
    let flags = fields.u8()?;
    let mut length = usize::from(fields.u16()?);
    if flags & 0x10 != 0 {
        length += usize::from(fields.u16()?);
        fields.u16()?;
        let image = fields.u8()?;
        let compressed = image & if magic >= SINCE_15 { 0x1C } else { 0x02 } != 0;
        // The hole in the middle of an image has a length of its own only where it doesn't follow from the image's.
        if compressed && image & 0x01 != 0 {
            fields.u16()?;
        }
    }
    let mut table = None;
    if flags & 0x80 == 0 {
        fields.u32()?;
        table = Some(Table { database: fields.u32()?, file: fields.u32()? });
    }
    fields.u32()?;
    Some((table, length))
}
