//! How pid 1 tells the outside what it does: [`Report`] lines in a pipe to the caller, and the status file.
//!
//! The rule that surprises people: the reader of the pipe may be gone (Ctrl-C on `pgbox run`). SIGPIPE is
//! blocked here, so a write then only fails with EPIPE, and a container does not end because nobody listens.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::log::Log;
use super::oom::OomCounter;
use super::{InitFds, LogFds};
use crate::postgres::launch::Orders;
use crate::postgres::report::{Exit, Phase, Reason, Report, Status};

/// The ways out.
pub struct Talk {
    report: Option<File>,
    status_file: Option<File>,
    status_len: usize,
    secret: Option<OwnedFd>,
    orders: Option<File>,
    replicator: Option<File>,
    log: Option<Option<LogFds>>,
    oom: Option<OwnedFd>,
    upstream: Option<Result<OwnedFd, String>>,
    /// What the status file says.
    pub status: Status,
}

impl Talk {
    /// Takes the descriptors over.
    pub fn new(fds: InitFds) -> Talk {
        let mut talk = Talk {
            report: fds.report.map(File::from),
            status_file: fds.status.map(File::from),
            status_len: 0,
            secret: fds.secret,
            orders: fds.orders.map(File::from),
            replicator: fds.replicator.map(File::from),
            log: Some(fds.log),
            oom: fds.oom,
            upstream: fds.upstream,
            status: Status::default(),
        };
        talk.record();
        talk
    }

    /// Hands the log over to the event loop.
    pub fn take_log(&mut self) -> Result<Log> {
        let log = self.log.take().context("the log is in use already")?;
        Log::new(log).context("fstat of the log")
    }

    /// Hands the counter of the OOM killer over to the event loop.
    pub fn take_oom_counter(&mut self) -> OomCounter {
        OomCounter::new(self.oom.take())
    }

    /// Reads the password and closes its descriptor.
    pub fn read_secret(&mut self) -> Result<Option<String>> {
        let Some(secret) = self.secret.take() else { return Ok(None) };
        let mut bytes = Vec::new();
        File::from(secret).read_to_end(&mut bytes).context("read the password's descriptor")?;
        crate::postgres::contract::file_value(&bytes, "the password").map(Some)
    }

    /// The data directory of the server that is followed, on this host, or why there is none.
    pub fn upstream(&self) -> Result<BorrowedFd<'_>, &str> {
        match &self.upstream {
            Some(Ok(tree)) => Ok(tree.as_fd()),
            Some(Err(why)) => Err(why),
            None => Err("no clones were asked for"),
        }
    }

    /// Closes what only the making of the data needs.
    pub fn drop_sources(&mut self) {
        (self.secret, self.upstream) = (None, None);
    }

    /// The orders as they are now. A file that is being written at this moment is read again, and one that can't be read
    /// leaves what was decided when the node was made.
    pub fn orders(&self, first: &Orders) -> Orders {
        for _ in 0..10 {
            let text = self.orders.as_ref().and_then(|file| read_all(file).ok()).unwrap_or_default();
            let line = text.lines().next().unwrap_or_default();
            if let Ok(orders) = serde_json::from_str(line) {
                return orders;
            }
            if line.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        first.clone()
    }

    /// The replication role's password, once there is one.
    pub fn replicator(&self) -> Result<Option<String>> {
        let Some(file) = &self.replicator else { return Ok(None) };
        let text = read_all(file).context("read the replication password's descriptor")?;
        Ok(Some(text.trim_end().to_owned()).filter(|password| !password.is_empty()))
    }

    /// A new phase, in both places.
    pub fn phase(&mut self, phase: Phase) {
        self.status.phase = phase;
        self.record();
        self.send(&Report::Phase(phase));
    }

    /// Something the user should know.
    pub fn note(&mut self, text: &str) {
        self.send(&Report::Note(text.to_owned()));
    }

    /// The caller has learned all it wants to know at a start.
    pub fn close_report(&mut self) {
        self.report = None;
    }

    /// The payload has ended for good.
    pub fn ended(&mut self, exit: Exit, reason: Reason) {
        self.status.last_exit = Some(exit);
        self.finish(reason, exit.code());
    }

    /// The payload never came up.
    pub fn failed(&mut self, error: &str, code: i32, in_use: bool) {
        self.status.error = Some(error.to_owned());
        self.finish(Reason::Failed, code);
        self.send(&Report::Failed { error: error.to_owned(), code, in_use });
    }

    fn finish(&mut self, reason: Reason, code: i32) {
        self.status.reason = Some(reason);
        self.status.code = Some(code);
        self.status.phase = Phase::Ended;
        self.status.pid = 0;
        self.record();
    }

    /// Rewrites the status file, in one call: where the line before was longer, blanks cover the rest of it.
    pub fn record(&mut self) {
        let (Some(file), Some(mut line)) = (&self.status_file, line(&self.status)) else { return };
        line.pop();
        line.resize(line.len().max(self.status_len), b' ');
        self.status_len = line.len();
        line.push(b'\n');
        // A full host disk must not end the server; the reader then has the status from before.
        let _ = file.write_all_at(&line, 0);
    }

    fn send(&mut self, report: &Report) {
        if let (Some(pipe), Some(line)) = (&mut self.report, line(report))
            && pipe.write_all(&line).is_err()
        {
            self.report = None;
        }
    }
}

/// The whole of a file, wherever its descriptor stands.
fn read_all(file: &File) -> std::io::Result<String> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    String::from_utf8(bytes).map_err(std::io::Error::other)
}

fn line(value: &impl serde::Serialize) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(value).ok()?;
    line.push(b'\n');
    Some(line)
}
