//! What a server that can't be asked any more left behind: its control file and its write-ahead log.
//!
//! The rule that surprises people: the directory belongs to the container, which may put anything there. So no
//! symbolic link is followed below it, and nothing but a regular file is read.

use std::{fs::File, io, io::Read, os::fd::OwnedFd, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{
    hint::advise,
    postgres::{
        control::Control,
        lsn::Lsn,
        timeline::{Switch, parse_history},
        wal::{self, PAGE, Scan, Timelines},
    },
    sys::fs::{self, Kind},
};

/// The control file of a data directory.
///
/// # Errors
/// When it is missing, damaged or of an unknown version.
pub fn control(data: &Path) -> Result<Control> {
    let dir = fs::open_dir(data).with_context(|| format!("open {}", data.display()))?;
    control_in(&dir, data)
}

/// What a server had committed after `from`: what a standby that has received the log up to there would lose if it
/// became the primary. For a server that doesn't run; of one that does, this is what it had written at some moment.
///
/// # Errors
/// When the directory can't be read, or its log is damaged before the latest checkpoint.
pub fn lost(data: &Path, from: Lsn) -> Result<Scan> {
    scan(data, from, wal::committed_since)
}

/// The same without the rows, which may take a look at all that was written since the latest checkpoint.
///
/// # Errors
/// As [`lost`].
pub fn unreceived(data: &Path, from: Lsn) -> Result<Scan> {
    scan(data, from, wal::commits_since)
}

/// One of the ways to read a log.
type Reading = fn(&Control, u32, Lsn, &mut wal::Pages) -> Result<Scan>;

fn scan(data: &Path, from: Lsn, read: Reading) -> Result<Scan> {
    let dir = fs::open_dir(data).with_context(|| format!("open {}", data.display()))?;
    let control = control_in(&dir, data)?;
    let mut segments = Segments::open(&dir, data, &control)?;
    let timeline = segments.timeline;
    read(&control, timeline, from, &mut |at, page| segments.page(at, page))
        .with_context(|| format!("read the WAL in {}/pg_wal", data.display()))
}

/// The timeline that a server has written or received last, and how it has come to that. The newest segment says it: the
/// control file has it from the next checkpoint on only.
///
/// # Errors
/// When the directory can't be read.
pub fn timeline(data: &Path) -> Result<(u32, Vec<Switch>)> {
    let dir = fs::open_dir(data).with_context(|| format!("open {}", data.display()))?;
    let segments = Segments::open(&dir, data, &control_in(&dir, data)?)?;
    Ok((segments.timeline, parse_history(&history(&segments.dir, segments.timeline)?)))
}

/// Where the log that a data directory still has begins.
///
/// # Errors
/// When the directory can't be read.
pub fn begin(data: &Path) -> Result<Lsn> {
    let dir = fs::open_dir(data).with_context(|| format!("open {}", data.display()))?;
    let segments = Segments::open(&dir, data, &control_in(&dir, data)?)?;
    let names = fs::names(&segments.dir).with_context(|| format!("read {}/pg_wal", data.display()))?;
    let first = names.iter().filter_map(|name| wal::position_of(name, segments.size)).min();
    first.with_context(|| format!("{}/pg_wal has no segment", data.display()))
}

/// What ALTER SYSTEM has written.
///
/// # Errors
/// When it can't be read.
pub fn altered(data: &Path) -> Result<String> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        fs::file_beneath(&fs::open_dir(data)?, b"postgresql.auto.conf")?
            .take(1 << 20)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    read().with_context(|| format!("read {}/postgresql.auto.conf", data.display()))
}

fn control_in(dir: &OwnedFd, data: &Path) -> Result<Control> {
    let whole = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::file_beneath(dir, b"global/pg_control")?.take(8192).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let name = || format!("read {}/global/pg_control", data.display());
    Control::parse(&whole().with_context(name)?).with_context(name)
}

/// The segment files, by position.
struct Segments {
    dir: OwnedFd,
    timelines: Timelines,
    timeline: u32,
    size: u64,
    /// The last one asked for, by number: `None` if there is no such file.
    open: Option<(u64, Option<File>)>,
}

impl Segments {
    fn open(data: &OwnedFd, path: &Path, control: &Control) -> Result<Segments> {
        let name = || format!("open {}/pg_wal", path.display());
        // initdb --waldir: where the link leads is a matter of the container's mounts, which are gone with it.
        if fs::lstatat(data, b"pg_wal").with_context(name)?.kind == Kind::Symlink {
            return Err(advise(
                format!(
                    "{}/pg_wal is a symbolic link: the WAL is elsewhere (POSTGRES_INITDB_WALDIR)",
                    path.display()
                ),
                "pgbox reads it only inside the data directory; leave that variable out for new nodes",
            ));
        }
        let dir = fs::dir_beneath(data, b"pg_wal").with_context(name)?;
        let names = fs::names(&dir).with_context(name)?;
        let newest = names.iter().filter_map(|name| wal::timeline_of(name)).max();
        let timeline = newest.with_context(|| format!("{}/pg_wal has no segment", path.display()))?;
        ensure!(
            timeline >= control.timeline,
            "{}/pg_wal has no segment of timeline {}, on which the latest checkpoint is",
            path.display(),
            control.timeline
        );
        let timelines = Timelines::parse(&history(&dir, timeline)?, timeline)?;
        Ok(Segments { dir, timelines, timeline, size: control.segment.into(), open: None })
    }

    fn page(&mut self, at: Lsn, page: &mut [u8; PAGE]) -> Result<bool> {
        let number = at.0 / self.size;
        if self.open.as_ref().is_none_or(|(open, _)| *open != number) {
            let name = self.timelines.file(at, self.size);
            let file = found(fs::file_beneath(&self.dir, name.as_bytes()));
            self.open = Some((number, file.with_context(|| format!("open the WAL segment {name}"))?));
        }
        let Some((_, Some(file))) = &self.open else { return Ok(false) };
        match file.read_exact_at(page, at.0 % self.size) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e).with_context(|| format!("read the WAL at {at}")),
        }
    }
}

/// The history file of a timeline; empty for the first one, which has none.
fn history(dir: &OwnedFd, timeline: u32) -> Result<String> {
    let name = format!("{timeline:08X}.history");
    let read = || -> io::Result<String> {
        let mut text = String::new();
        fs::file_beneath(dir, name.as_bytes())?.take(1 << 20).read_to_string(&mut text)?;
        Ok(text)
    };
    Ok(found(read()).with_context(|| format!("read {name}"))?.unwrap_or_default())
}

/// Absence as a value.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
