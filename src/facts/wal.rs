//! What a server that can't be asked any more left behind: its control file and its write-ahead log.
//!
//! The rule that surprises people: the directory belongs to the container, which may put anything there. So no
//! symbolic link is followed below it, and nothing but a regular file is read.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    plan::{self, Below},
    postgres::{
        control::Control,
        lsn::Lsn,
        standby::RENEWED,
        timeline::{Switch, parse_history},
        wal::{self, PAGE, Scan, Timelines},
    },
    state::{NodeState, Plan},
    sys::{
        fs::{self, Kind},
        tree,
    },
};

/// Where the files of a server are on this host.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    data: &'a Path,
    /// The directory above it that a node had no hand in, where the node is gone and its data were not at the top of a volume.
    top: Option<&'a Path>,
    /// How the node sees the host, where that is known.
    plan: Option<&'a Plan>,
}

/// One of the ways to read a log.
type Reading<T> = fn(&Control, u32, Lsn, &mut wal::Pages) -> Result<T>;

/// Whether data of these origins are of one cluster. `None`: nobody knows.
pub fn are_kin(one: Option<u64>, other: Option<u64>) -> Option<bool> {
    Some(one? == other?)
}

impl<'a> Place<'a> {
    /// Those of a node.
    ///
    /// # Errors
    /// When it runs no server.
    pub fn of(state: &'a NodeState) -> Result<Place<'a>> {
        let data = state.data.as_deref().context("it has no data directory")?;
        Ok(Place { data, top: None, plan: Some(&state.plan) })
    }

    /// Those that a node with this plan will have.
    pub fn planned(data: &'a Path, plan: &'a Plan) -> Place<'a> {
        Place { data, top: None, plan: Some(plan) }
    }

    /// Those of a server that has nothing outside its data directory.
    pub fn alone(data: &'a Path) -> Place<'a> {
        Place { data, top: None, plan: None }
    }

    /// The same, somewhere below the top of a volume.
    pub fn below(top: &'a Path, data: &'a Path) -> Place<'a> {
        Place { data, top: Some(top), plan: None }
    }

    /// The control file.
    ///
    /// # Errors
    /// When it is missing, damaged or of an unknown version.
    pub fn control(self) -> Result<Control> {
        self.control_in(&self.open()?)
    }

    /// What some data have in common with those of their cluster and of no other: initdb's number, where it can be read.
    pub fn origin(self) -> Option<u64> {
        Some(self.control().ok()?.system)
    }

    /// What the server had committed after `from`: what a standby that has received the log up to there would lose if it
    /// became the primary. For a server that doesn't run; of one that does, this is what it had written at some moment.
    ///
    /// # Errors
    /// When the directory can't be read, or its log is damaged before the latest checkpoint.
    pub fn lost(self, from: Lsn) -> Result<Scan> {
        self.read(from, wal::committed_since)
    }

    /// The same without the rows, which may take a look at all that was written since the latest checkpoint.
    ///
    /// # Errors
    /// As [`lost`](Self::lost).
    pub fn unreceived(self, from: Lsn) -> Result<Scan> {
        self.read(from, wal::commits_since)
    }

    /// Where the log ends, looked for from a position that it has; never before that.
    ///
    /// # Errors
    /// As [`lost`](Self::lost).
    pub fn end(self, from: Lsn) -> Result<Lsn> {
        Ok(self.unreceived(from)?.end.max(from))
    }

    /// The checksum of the record that a byte of the log belongs to, if that is there.
    ///
    /// # Errors
    /// As [`lost`](Self::lost).
    pub fn checksum_at(self, byte: Lsn) -> Result<Option<u32>> {
        self.read(byte, wal::checksum_at)
    }

    fn read<T>(self, from: Lsn, read: Reading<T>) -> Result<T> {
        let control = self.control()?;
        let mut segments = self.segments()?;
        let timeline = segments.timeline;
        read(&control, timeline, from, &mut |at, page| segments.page(at, page))
            .with_context(|| format!("read the WAL in {}/pg_wal", self.data.display()))
    }

    /// The timeline that the server has written or received last, and how it has come to that. The newest segment says it:
    /// the control file has it from the next checkpoint on only.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn timeline(self) -> Result<(u32, Vec<Switch>)> {
        let segments = self.segments()?;
        Ok((segments.timeline, segments.history))
    }

    /// Where the log that is still there begins.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn begin(self) -> Result<Lsn> {
        let segments = self.segments()?;
        let names = tree::names(&segments.dir).with_context(|| self.wal())?;
        let first = names.iter().filter_map(|name| wal::position_of(name, segments.size)).min();
        first.with_context(|| format!("{}/pg_wal has no segment", self.data.display()))
    }

    /// What ALTER SYSTEM has written.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn altered(self) -> Result<String> {
        self.text("postgresql.auto.conf")
    }

    /// The stamp of the last order to renew the data that was carried out.
    ///
    /// # Errors
    /// When it can't be read, or there was none.
    pub fn renewed(self) -> Result<String> {
        Ok(self.text(RENEWED)?.trim().to_owned())
    }

    pub(super) fn text(self, name: &str) -> Result<String> {
        let read = || -> io::Result<String> {
            let mut text = String::new();
            fs::file_beneath(&self.opened()?, name.as_bytes())?.take(1 << 20).read_to_string(&mut text)?;
            Ok(text)
        };
        read().with_context(|| format!("read {}/{name}", self.data.display()))
    }

    /// The directory of the log, which may be another volume's (initdb --waldir, `POSTGRES_INITDB_WALDIR`): then `pg_wal` is
    /// a link, to what only the node sees there.
    ///
    /// # Errors
    /// When it can't be opened, or the link leads to nothing of the node's.
    pub fn log(self) -> Result<OwnedFd> {
        let dir = self.open()?;
        if fs::lstatat(&dir, b"pg_wal").with_context(|| self.wal())?.kind != Kind::Symlink {
            return fs::dir_beneath(dir, b"pg_wal").with_context(|| self.wal());
        }
        let link = fs::readlinkat(&dir, b"pg_wal").with_context(|| self.wal())?;
        let inside = Path::new(OsStr::from_bytes(&link));
        let Below { top, rest } =
            self.plan.and_then(|plan| plan::found_below(plan, inside)).with_context(|| {
                let data = self.data.display();
                format!("{data}/pg_wal leads to {}, and that is no directory of the node", inside.display())
            })?;
        fs::open_dir_below(&top, &rest)
            .with_context(|| format!("open {} in {}", rest.display(), top.display()))
    }

    fn segments(self) -> Result<Segments> {
        let control = self.control()?;
        let dir = self.log()?;
        let names = tree::names(&dir).with_context(|| self.wal())?;
        let newest = names.iter().filter_map(|name| wal::timeline_of(name)).max();
        let timeline = newest.with_context(|| format!("{}/pg_wal has no segment", self.data.display()))?;
        ensure!(
            timeline >= control.timeline,
            "{}/pg_wal has no segment of timeline {}, on which the latest checkpoint is",
            self.data.display(),
            control.timeline
        );
        let history = history(&dir, timeline)?;
        let timelines = Timelines::new(&history, timeline);
        Ok(Segments { dir, history, timelines, timeline, size: control.segment.into(), open: None })
    }

    pub(super) fn open(self) -> Result<OwnedFd> {
        self.opened().with_context(|| format!("open {}", self.data.display()))
    }

    /// The data directory too may be a link that the node has made, where it lies below the top of a volume.
    fn opened(self) -> io::Result<OwnedFd> {
        match (self.plan.and_then(plan::data_below), self.top) {
            (Some(Below { top, rest }), _) => fs::open_dir_below(&top, &rest),
            (None, Some(top)) => fs::open_dir_below(top, self.data.strip_prefix(top).unwrap_or(self.data)),
            (None, None) => fs::open_dir(self.data),
        }
    }

    fn control_in(self, dir: &OwnedFd) -> Result<Control> {
        let whole = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            fs::file_beneath(dir, b"global/pg_control")?.take(8192).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let name = || format!("read {}/global/pg_control", self.data.display());
        // One that is written at this moment may be seen half old, half new (get_controlfile, controldata_utils.c).
        for _ in 0..5 {
            if let Ok(control) = Control::parse(&whole().with_context(name)?) {
                return Ok(control);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Control::parse(&whole().with_context(name)?).with_context(name)
    }

    /// What an error is about.
    fn wal(self) -> String {
        format!("open {}/pg_wal", self.data.display())
    }
}

/// The segment files, by position.
struct Segments {
    dir: OwnedFd,
    history: Vec<Switch>,
    timelines: Timelines,
    timeline: u32,
    size: u64,
    /// The last one asked for, by number: `None` if there is no such file.
    open: Option<(u64, Option<File>)>,
}

impl Segments {
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

/// How a timeline has come to be.
fn history(dir: &OwnedFd, timeline: u32) -> Result<Vec<Switch>> {
    let name = format!("{timeline:08X}.history");
    let read = || -> io::Result<String> {
        let mut text = String::new();
        fs::file_beneath(dir, name.as_bytes())?.take(1 << 20).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = found(read()).with_context(|| format!("read {name}"))?.unwrap_or_default();
    parse_history(&text, timeline).with_context(|| format!("read {name}"))
}

/// Absence as a value.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
