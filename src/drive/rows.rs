//! The table, row by row: `COPY ... TO STDOUT (FORMAT binary)`, see "COPY" in the PostgreSQL manual.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use postgres::{Client, error::SqlState};

use super::{TABLE, comparison::Row};
use crate::sql::{self, Login};

/// A server that sends nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Rows that are handed over at once.
const BATCH: usize = 8192;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// The rows of the table as they are in one snapshot, while they come.
pub struct Table {
    batches: Receiver<Result<Vec<Row>>>,
}

impl Table {
    /// Asks for the rows. When this returns, the snapshot is taken. `None` where there is no table.
    ///
    /// # Errors
    /// When the server can't be reached, refuses, or says nothing for some seconds.
    pub fn open(login: &Login) -> Result<Option<Self>> {
        let (sender, batches) = sync_channel(4);
        let (opened, open) = sync_channel(1);
        let login = login.clone();
        // Left behind when the server is silent; the command ends soon.
        thread::spawn(move || match login.connect() {
            Ok(mut client) => read(&mut client, &opened, &sender),
            Err(error) => drop(opened.send(Err(error))),
        });
        match open.recv_timeout(PATIENCE) {
            Ok(Ok(())) => Ok(Some(Self { batches })),
            Ok(Err(error)) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(None),
            Ok(Err(error)) => bail!("{}", sql::reason(&error)),
            Err(_) => bail!("the server gave no answer for {} s", PATIENCE.as_secs()),
        }
    }

    /// Hands out all rows.
    pub fn each(self, mut f: impl FnMut(Row)) -> Result<()> {
        loop {
            let batch = self.batches.recv_timeout(PATIENCE).ok().with_context(|| {
                format!("the server sent nothing for {} s in the middle of the table", PATIENCE.as_secs())
            })??;
            if batch.is_empty() {
                return Ok(());
            }
            batch.into_iter().for_each(&mut f);
        }
    }
}

/// Sends the rows in batches; an empty one is the end.
fn read(
    client: &mut Client,
    opened: &SyncSender<Result<(), postgres::Error>>,
    sender: &SyncSender<Result<Vec<Row>>>,
) {
    let query = format!("COPY (SELECT writer, seq FROM {TABLE}) TO STDOUT (FORMAT binary)");
    let stream = match client.copy_out(&query) {
        Ok(stream) => stream,
        Err(error) => return drop(opened.send(Err(error))),
    };
    // Whoever listens no longer needs no rows: each send that fails ends this thread.
    if opened.send(Ok(())).is_err() {
        return;
    }
    let mut stream = Rows::new(stream);
    loop {
        let batch = stream.by_ref().take(BATCH).collect::<io::Result<Vec<Row>>>();
        let last = !matches!(&batch, Ok(rows) if !rows.is_empty());
        if sender.send(batch.context("read the table")).is_err() || last {
            return;
        }
    }
}

/// The rows in a stream of that format, with an `int4` and an `int8` each.
struct Rows<R> {
    source: R,
    begun: bool,
    ended: bool,
}

impl<R: Read> Rows<R> {
    fn new(source: R) -> Self {
        Self { source, begun: false, ended: false }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes).map(|()| bytes)
    }

    fn header(&mut self) -> io::Result<()> {
        let signature: [u8; 11] = self.bytes()?;
        let _flags: [u8; 4] = self.bytes()?;
        let extension = u32::from_be_bytes(self.bytes()?);
        let skipped = io::copy(&mut self.source.by_ref().take(extension.into()), &mut io::sink())?;
        if signature != *SIGNATURE || skipped != u64::from(extension) {
            return Err(strange());
        }
        Ok(())
    }

    fn row(&mut self) -> io::Result<Option<Row>> {
        if !self.begun {
            self.header()?;
            self.begun = true;
        }
        match i16::from_be_bytes(self.bytes()?) {
            -1 => return Ok(None),
            2 => {}
            _ => return Err(strange()),
        }
        let fields: [u8; 20] = self.bytes()?;
        let (writer, seq) = fields.split_at(8);
        let (Some((&[0, 0, 0, 4], writer)), Some((&[0, 0, 0, 8], seq))) =
            (writer.split_first_chunk(), seq.split_first_chunk())
        else {
            return Err(strange());
        };
        let (Ok(writer), Ok(seq)) = (writer.try_into(), seq.try_into()) else { return Err(strange()) };
        Ok(Some(Row { writer: i32::from_be_bytes(writer), seq: i64::from_be_bytes(seq) }))
    }
}

impl<R: Read> Iterator for Rows<R> {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<io::Result<Row>> {
        if self.ended {
            return None;
        }
        let row = self.row().transpose();
        self.ended = !matches!(row, Some(Ok(_)));
        row
    }
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "these are not rows of pgbox's table")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(rows: &[(i32, i64)]) -> Vec<u8> {
        let mut bytes = [&SIGNATURE[..], &[0; 8]].concat();
        for (writer, seq) in rows {
            bytes.extend([0, 2, 0, 0, 0, 4]);
            bytes.extend(writer.to_be_bytes());
            bytes.extend([0, 0, 0, 8]);
            bytes.extend(seq.to_be_bytes());
        }
        bytes.extend([0xff, 0xff]);
        bytes
    }

    #[test]
    fn rows_are_read_and_half_a_stream_is_an_error() {
        let rows = [(1, 1), (-2, i64::MAX), (7, -1)];
        let bytes = stream(&rows);
        let read = |bytes: &[u8]| Rows::new(bytes).collect::<io::Result<Vec<Row>>>();
        let found: Vec<_> = read(&bytes).unwrap().iter().map(|row| (row.writer, row.seq)).collect();
        assert_eq!(found, rows);
        assert!((0..bytes.len()).all(|end| read(&bytes[..end]).is_err()));
    }
}
