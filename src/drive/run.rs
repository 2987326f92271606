//! Runs of the driver, on disk: `labs/LAB/drive/NUMBER/` with `run.json` and a ledger for each writer. A run is
//! never continued: the next one has writers of its own, so that each ledger is the whole story of one writer.

use std::{
    fs,
    io::{self, BufReader},
    net::SocketAddrV4,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{
    fates::Fates,
    gaps::{self, Course, Gap},
    ledger::Records,
};
use crate::{
    spec::Name,
    state::{self, Root},
    sys::process::{self, ProcessId},
};

/// A run, as remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunState {
    pub version: u32,
    pub process: ProcessId,
    pub boot_id: String,
    pub clock: Clock,
    /// Writers have consecutive numbers, from this one on.
    pub first_writer: i32,
    pub writers: u32,
    pub rows_per_commit: u16,
    /// Commits per second and writer, if limited.
    pub rate: Option<f64>,
    pub patience_ms: u64,
    /// Where it writes to, if that is not the lab's primary.
    pub node: Option<Name>,
    pub address: Option<SocketAddrV4>,
}

/// The time of a run: that of the calendar when it began, and from there on one that nobody sets.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Clock {
    /// Microseconds since 1970 at the begin.
    pub began: u64,
    /// CLOCK_MONOTONIC then, in microseconds since boot.
    monotonic: u64,
}

impl Clock {
    pub fn start() -> Result<Self> {
        Ok(Self { began: micros(ClockId::CLOCK_REALTIME)?, monotonic: micros(ClockId::CLOCK_MONOTONIC)? })
    }

    /// Microseconds since 1970. Only in the boot in which it was started.
    pub fn now(&self) -> Result<u64> {
        Ok(self.began + micros(ClockId::CLOCK_MONOTONIC)?.saturating_sub(self.monotonic))
    }
}

fn micros(clock: ClockId) -> Result<u64> {
    let time = clock_gettime(clock).context("clock_gettime")?;
    Ok(time.tv_sec() as u64 * 1_000_000 + time.tv_nsec() as u64 / 1000)
}

/// A run of the driver.
pub struct Run {
    pub number: u64,
    pub dir: PathBuf,
    pub state: RunState,
}

impl Run {
    pub fn writers(&self) -> impl Iterator<Item = i32> {
        self.state.first_writer..self.state.first_writer + self.state.writers as i32
    }

    pub fn ledger(&self, writer: i32) -> PathBuf {
        self.dir.join(format!("ledger.{writer}"))
    }

    /// Whether its process lives.
    pub fn is_running(&self) -> Result<bool> {
        Ok(process::boot_id()? == self.state.boot_id && self.state.process.open()?.is_some())
    }
}

/// The ledgers of a run, as far as they were read.
pub struct Story {
    pub course: Course,
    /// One for each writer.
    pub fates: Vec<Fates>,
    ledgers: Vec<Records<BufReader<fs::File>>>,
}

impl Story {
    pub fn read(run: &Run) -> Result<Self> {
        let open = |writer| {
            let path = run.ledger(writer);
            Records::open(&path).with_context(|| format!("open {}", path.display()))
        };
        let mut ledgers = run.writers().map(open).collect::<Result<Vec<_>>>()?;
        let mut fates = vec![Fates::default(); ledgers.len()];
        let course = gaps::read(run.state.clock.began, &mut ledgers, &mut fates)
            .with_context(|| format!("read the ledgers in {}", run.dir.display()))?;
        Ok(Self { course, fates, ledgers })
    }

    /// Until when the story is told: now, or the last word of a process that is gone. Microseconds since 1970.
    pub fn end(&self, run: &Run) -> Result<u64> {
        Ok(if run.is_running()? {
            run.state.clock.now()?.max(self.course.last_word)
        } else {
            self.course.last_word
        })
    }

    /// The longest time without an acknowledgement, the present one included.
    pub fn gap(&self, run: &Run) -> Result<Gap> {
        Ok(self.course.longest_until(self.end(run)?))
    }

    /// Reads what was added since then; the course stays.
    pub fn read_on(&mut self) -> io::Result<()> {
        for (ledger, fates) in self.ledgers.iter_mut().zip(&mut self.fates) {
            while let Some(record) = ledger.read()? {
                fates.note(record);
            }
        }
        Ok(())
    }
}

/// All runs of a lab, oldest first.
pub fn all(root: &Root, lab: &Name) -> Result<Vec<Run>> {
    let dir = root.drive_dir(lab);
    let mut runs = Vec::new();
    for number in numbers(&dir)? {
        let dir = dir.join(number.to_string());
        if let Some(state) = state::load(&dir.join("run.json"))? {
            runs.push(Run { number, dir, state });
        }
    }
    Ok(runs)
}

/// Gives a run its place. Without `run.json` a directory is no run: it is written last.
pub fn create(root: &Root, lab: &Name, make: impl FnOnce(&Path) -> Result<RunState>) -> Result<Run> {
    let drive = root.drive_dir(lab);
    let number = numbers(&drive)?.last().map_or(1, |last| last + 1);
    let dir = drive.join(number.to_string());
    fs::create_dir_all(&dir).with_context(|| format!("mkdir {}", dir.display()))?;
    let state = make(&dir)?;
    state::save(&dir.join("run.json"), &state, false)?;
    Ok(Run { number, dir, state })
}

/// Forgets all runs.
pub fn forget(root: &Root, lab: &Name) -> Result<()> {
    let drive = root.drive_dir(lab);
    for number in numbers(&drive)? {
        let dir = drive.join(number.to_string());
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}

fn numbers(dir: &Path) -> Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", dir.display()))?,
    };
    let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let mut numbers: Vec<u64> = entries.filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}
