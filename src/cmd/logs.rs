//! `pgbox logs`: what a node has written, and what it writes.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::Context;
use crate::{
    cli,
    facts::node,
    sys::{process, tail},
};

pub fn run(context: &Context, args: &cli::Logs) -> Result<i32> {
    let node = node::find(&context.root, &context.lab, &args.node)?;
    let is_command = node.state.postgres().is_none();
    if is_command && fs::metadata(node.dir.log()).map_or(0, |meta| meta.size()) == 0 {
        let text = format!(
            "what `{}` writes in the foreground is only shown there; with `run -d` it goes to the log",
            node.name
        );
        super::note(context, &text);
        if !node.dir.log().exists() {
            return Ok(0);
        }
    }
    let mut log = Follower::open(&node.dir.log(), 0)?;
    match args.tail {
        Some(lines) => {
            let latest = tail::lines(&node.dir.log(), lines);
            // The log was moved aside some time ago, and has not as many lines yet.
            let before = tail::lines(&node.dir.previous_log(), lines - latest.len());
            before.iter().chain(&latest).for_each(|line| outln!("{line}"));
            log.skip_to_end()?;
        }
        None => {
            if let Ok(mut previous) = File::open(node.dir.previous_log()) {
                io::copy(&mut previous, &mut io::stdout()).context("print the log")?;
            }
            log.copy()?;
        }
    }
    if let (true, Some(pidfd)) = (args.follow, &node.pidfd) {
        while !process::has_ended(pidfd.as_fd(), Duration::from_millis(100))? {
            log.copy()?;
        }
        log.copy()?;
    }
    Ok(0)
}

/// Reads a log that grows, and that shrinks to nothing when it has reached its size.
pub struct Follower {
    file: File,
    at: u64,
}

impl Follower {
    /// `shown`: so many bytes are not copied.
    pub fn open(path: &Path, shown: u64) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { file, at: shown })
    }

    pub fn skip_to_end(&mut self) -> Result<()> {
        self.at = self.file.metadata().context("stat the log")?.size();
        Ok(())
    }

    /// Copies what is new to standard output.
    pub fn copy(&mut self) -> Result<()> {
        if self.file.metadata().context("stat the log")?.size() < self.at {
            self.at = 0;
        }
        self.file.seek(SeekFrom::Start(self.at)).context("seek in the log")?;
        let mut text = Vec::new();
        self.file.read_to_end(&mut text).context("read the log")?;
        self.at += text.len() as u64;
        io::stdout().write_all(&text).context("print the log")?;
        io::stdout().flush().context("print the log")
    }
}
