//! The journal of a node: how far its making has come, and its last start. Written in place, a short line at a time.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::sys::{self, process::ProcessId};

/// When a node was started last, and what came of it. All of it is over with the boot at the latest, so that it need not outlive
/// a power cut, as the state must: that has it of the first start, and other ones change it here alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastStart {
    pub init: ProcessId,
    /// The boot in which it was.
    pub boot_id: String,
    /// In seconds since 1970.
    pub started: u64,
}

/// The bytes of the count, with the end of its line.
const COUNT: usize = 5;
/// At least the bytes of any [`LastStart`].
const LINE: usize = 160;

/// How many host steps were begun. Written *before* a step is applied: whatever may exist is in the number, and it may be too
/// large, because undoing an absent thing is Ok. It counts in the list that the plan had when the node was made: of one that
/// was whole, or that got another plan, it says no more than [`ALL`](Self::ALL).
pub struct Progress {
    file: File,
    path: PathBuf,
}

impl Progress {
    /// More steps than any plan has.
    pub const ALL: usize = 9999;

    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        Ok(Self { file: file.with_context(|| format!("open {}", path.display()))?, path })
    }

    pub fn set(&self, begun: usize) -> Result<()> {
        let text = format!("{begun:4}\n");
        self.file.write_all_at(text.as_bytes(), 0).with_context(|| format!("write {}", self.path.display()))
    }

    pub fn get(&self) -> Result<usize> {
        let mut text = [0; 4];
        match self.file.read_exact_at(&mut text, 0) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            other => other.with_context(|| format!("read {}", self.path.display()))?,
        }
        let text = String::from_utf8_lossy(&text);
        text.trim().parse().with_context(|| format!("{} holds `{text}`", self.path.display()))
    }

    /// Writes down that the node is started, behind the count. What stands there of an earlier start is as long, or blanks cover
    /// it.
    pub fn started(&self, start: &LastStart) -> Result<()> {
        let line = format!("{:<LINE$}\n", serde_json::to_string(start).context("a node's start")?);
        self.file
            .write_all_at(line.as_bytes(), COUNT as u64)
            .with_context(|| format!("write {}", self.path.display()))
    }

    /// The start that was written down last in the journal at `path`, if there was one. What can't be read is none either: a
    /// power cut may leave a file whose end was never written.
    pub(super) fn last_start(path: &Path) -> Result<Option<LastStart>> {
        let text = match sys::fs::read_at_once(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        Ok(text.get(COUNT..).and_then(|line| serde_json::from_slice(line).ok()))
    }
}
