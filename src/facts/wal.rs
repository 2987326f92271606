//! What is on a data directory's disk, read without its server. A container writes there: nothing is followed out of it.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::postgres::{
    lsn::Lsn,
    timeline::{self, Switch},
    wal::{self, Pages, Scan},
};

/// Where the checkpoint of `pg_control` (`catalog/pg_control.h`) is, and its redo.
const CHECKPOINT: usize = 32;
const REDO: usize = 40;

/// Where the last checkpoint record of a data directory begins: in one that was shut down, its last record.
pub fn last_checkpoint(data: &Path) -> Result<Lsn> {
    Ok(Lsn(number(&control(data)?, CHECKPOINT)))
}

/// What a data directory has in its log that ends after `from`.
///
/// # Errors
/// When its control file or its log can't be read.
pub fn lost(data: &Path, from: Lsn) -> Result<Scan> {
    let control = control(data)?;
    let redo = Lsn(number(&control, REDO));
    let mut segments = Segments::list(data.join("pg_wal"))?;
    ensure!(segments.size > 0, "{} has no segment in it", segments.directory.display());
    Ok(wal::scan(&mut segments, redo, from))
}

/// The timeline of a data directory: that of its newest segment, which is there before the control file says it.
pub fn timeline(data: &Path) -> Result<u32> {
    let segments = Segments::list(data.join("pg_wal"))?;
    let newest = segments.newest.values().max();
    let newest = newest.with_context(|| format!("{} has no segment in it", segments.directory.display()))?;
    u32::try_from(*newest).context("a timeline")
}

/// How a data directory has come to this timeline of its; the first one has no history.
pub fn history(data: &Path, timeline: u32) -> Result<Vec<Switch>> {
    if timeline == 1 {
        return Ok(Vec::new());
    }
    let path = data.join("pg_wal").join(format!("{timeline:08X}.history"));
    let mut text = String::new();
    let read = plain(&path).and_then(|file| file.take(1 << 20).read_to_string(&mut text));
    read.with_context(|| format!("read {}", path.display()))?;
    Ok(timeline::parse_history(&text))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

fn control(data: &Path) -> Result<Vec<u8>> {
    let path = data.join("global/pg_control");
    let mut bytes = Vec::new();
    let read = plain(&path).and_then(|file| file.take(8192).read_to_end(&mut bytes));
    read.with_context(|| format!("read {}", path.display()))?;
    ensure!(bytes.len() >= 512, "{} is too short", path.display());
    Ok(bytes)
}

fn plain(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// The segments of a log.
struct Segments {
    directory: PathBuf,
    /// The timelines of each segment, by the two numbers in its name. A timeline begins with a copy of the segment in which
    /// it leaves the one before, so the newest has everything; the control file may still say the old one.
    newest: BTreeMap<(u64, u64), u64>,
    /// Bytes of each; 0 where there is none.
    size: u64,
    open: Option<((u64, u64), File)>,
}

impl Segments {
    fn list(directory: PathBuf) -> Result<Self> {
        let is_directory = std::fs::symlink_metadata(&directory).is_ok_and(|meta| meta.is_dir());
        ensure!(is_directory, "{} is no directory: the log is elsewhere", directory.display());
        let (mut newest, mut size) = (BTreeMap::new(), 0);
        let entries =
            std::fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("read {}", directory.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let part = |range| name.get(range).and_then(|digits| u64::from_str_radix(digits, 16).ok());
            if let (24, Some(timeline), Some(high), Some(low)) =
                (name.len(), part(0..8), part(8..16), part(16..24))
            {
                let known = newest.entry((high, low)).or_insert(timeline);
                *known = timeline.max(*known);
                size = entry.metadata().map_or(size, |meta| meta.len().max(size));
            }
        }
        Ok(Self { directory, newest, size, open: None })
    }

    fn open(&self, (high, low): (u64, u64)) -> Option<File> {
        let timeline = self.newest.get(&(high, low))?;
        plain(&self.directory.join(format!("{timeline:08X}{high:08X}{low:08X}"))).ok()
    }
}

impl Pages for Segments {
    fn page(&mut self, at: Lsn) -> Option<[u8; 8192]> {
        let (number, each) = (at.0 / self.size, (1u64 << 32) / self.size);
        let name = (number / each, number % each);
        if self.open.as_ref().is_none_or(|(open, _)| *open != name) {
            self.open = Some((name, self.open(name)?));
        }
        let mut page = [0; 8192];
        self.open.as_ref()?.1.read_exact_at(&mut page, at.0 % self.size).ok()?;
        Some(page)
    }

    fn segment_size(&self) -> u64 {
        self.size
    }
}
