//! A writer's ledger: an append-only file of records of 16 bytes, one `write(2)` each.
//!
//! ```text
//! bits 56-63  40-55  0-39         8 bytes
//!      kind   rows   first seq    microseconds since 1970, by the run's clock
//! ```
//!
//! The rule that surprises people: what a process has written is the kernel's, and survives its SIGKILL; fsync(2)
//! would only be needed against a crash of the host, which takes the servers along as well. So a record costs
//! microseconds, and a writer that is killed leaves at most its last row in doubt.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Bytes of a record.
const SIZE: usize = 16;

/// The highest number that a row can have.
pub const MAX_SEQ: u64 = (1 << 40) - 1;

/// What has become of some rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Their commit is about to be sent.
    Sent = 1,
    /// The server has said that they are committed.
    Acked,
    /// The server has said that they are not.
    Refused,
    /// It was given up: nobody knows.
    Unknown,
    /// No rows: the writer has ended in order.
    Ended,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Sent, Self::Acked, Self::Refused, Self::Unknown, Self::Ended]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// One line of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    /// How many rows, with numbers from `seq` on.
    pub rows: u16,
    pub seq: u64,
    /// Microseconds since 1970.
    pub time: u64,
}

impl Record {
    pub fn encode(&self) -> [u8; SIZE] {
        let what = u64::from(self.kind as u8) << 56 | u64::from(self.rows) << 40 | self.seq & MAX_SEQ;
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(&what.to_le_bytes());
        bytes[8..].copy_from_slice(&self.time.to_le_bytes());
        bytes
    }

    /// `None` if that is no record.
    pub fn decode(bytes: &[u8; SIZE]) -> Option<Self> {
        let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        let what = word(0);
        let kind = Kind::from_byte((what >> 56) as u8)?;
        Some(Self { kind, rows: (what >> 40) as u16, seq: what & MAX_SEQ, time: word(8) })
    }
}

/// The writing end.
pub struct Ledger(File);

impl Ledger {
    /// Makes the file, which must not be there yet.
    pub fn create(path: &Path) -> io::Result<Self> {
        OpenOptions::new().append(true).create_new(true).mode(0o600).open(path).map(Self)
    }

    /// # Errors
    /// As write(2). Then nothing more may be sent: it could not be remembered.
    pub fn append(&mut self, record: Record) -> io::Result<()> {
        self.0.write_all(&record.encode())
    }
}

/// The reading end. At the end of the file it can be asked again: the file may have grown.
pub struct Records<R> {
    source: R,
    bytes: [u8; SIZE],
    filled: usize,
}

impl Records<BufReader<File>> {
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(|file| Self::new(BufReader::with_capacity(1 << 16, file)))
    }
}

impl<R: Read> Records<R> {
    pub fn new(source: R) -> Self {
        Self { source, bytes: [0; SIZE], filled: 0 }
    }

    /// The next record; `None` where there is none yet. What a write left half is not one; nor are the zeros that
    /// a file system may leave after a power cut.
    ///
    /// # Errors
    /// As read(2), and `InvalidData` for bytes that no writer has written: to skip them could hide a loss.
    pub fn read(&mut self) -> io::Result<Option<Record>> {
        while self.filled < SIZE {
            match self.source.read(&mut self.bytes[self.filled..]) {
                Ok(0) => return Ok(None),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.bytes == [0; SIZE] {
            return Ok(None);
        }
        self.filled = 0;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a record is damaged");
        Record::decode(&self.bytes).map(Some).ok_or_else(damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        prop::sample::select(vec![Kind::Sent, Kind::Acked, Kind::Refused, Kind::Unknown, Kind::Ended])
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(kind in kinds(), rows: u16, seq in 0..=MAX_SEQ, time: u64) {
            let record = Record { kind, rows, seq, time };
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn bytes_are_a_record_or_not(bytes: [u8; SIZE]) {
            if let Some(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_torn_end_is_no_record_until_the_rest_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let record = Record { kind: Kind::Sent, rows: 1, seq: 7, time: 9 };
        Ledger::create(&path).unwrap().append(record).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&record.encode()[..11]).unwrap();
        let mut records = Records::open(&path).unwrap();
        assert_eq!(records.read().unwrap(), Some(record));
        assert_eq!((records.read().unwrap(), records.read().unwrap()), (None, None));
        file.write_all(&record.encode()[11..]).unwrap();
        assert_eq!((records.read().unwrap(), records.read().unwrap()), (Some(record), None));
    }

    #[test]
    fn zeros_end_a_ledger_and_anything_else_is_damage() {
        assert_eq!(Records::new(&[0; 48][..]).read().unwrap(), None);
        let error = Records::new(&[0xff; 16][..]).read().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
