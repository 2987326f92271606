//! A payload that is not Postgres: one command, whose exit code becomes the container's.
//!
//! The rule that surprises people: 126 and 127 are also codes that a command itself may exit with; `docker
//! run` gives them for "found but not executable" and "not found", and scripts rely on it.

use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

use super::events::Event;
use super::program::Program;
use super::{Ended, Init};
use crate::postgres::environment;
use crate::postgres::report::{Exit, Phase, Reason};
use crate::sys::child::SpawnError;

/// The command could not be executed.
#[derive(Debug)]
pub struct NotExecuted {
    /// 127 if there is no such file, else 126.
    pub code: i32,
    message: String,
}

impl fmt::Display for NotExecuted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NotExecuted {}

impl Init<'_> {
    /// Runs a command to its end, passing every signal on to it.
    pub(super) fn command(&mut self, argv: &[String]) -> Result<Ended> {
        let word = argv.first().context("an empty command")?;
        let stdin = std::io::stdin();
        let mut program = Program::new(argv.to_vec(), environment::with_home(self.config));
        program.stdin = Some(std::os::fd::AsFd::as_fd(&stdin));
        let pid = self.spawn(&program).map_err(|error| match error.downcast_ref::<SpawnError>() {
            Some(spawn) if spawn.message.starts_with("execute ") => not_executed(spawn.errno, word).into(),
            _ => error,
        })?;
        self.talk.status.pid = pid.as_raw();
        self.phase(Phase::Running);
        self.talk.close_report();
        let mut asked = false;
        loop {
            match self.events.next(None::<Instant>)? {
                Event::Ended(ended, exit) if ended == pid => {
                    self.events.drain();
                    if exit == Exit::Signal(libc::SIGKILL) {
                        self.events.note_oom(&format!("`{word}`"));
                    }
                    return Ok(Ended { exit, reason: reason(exit, asked) });
                }
                Event::Signal(told) if told.signal == Signal::SIGPIPE => {}
                Event::Signal(told) => {
                    asked |= told.stops();
                    // It may have ended in this moment; then the loop hears of that next.
                    let _ = kill(pid, told.signal);
                }
                Event::Ended(..) | Event::Timeout => {}
            }
        }
    }
}

fn reason(exit: Exit, asked: bool) -> Reason {
    match (exit, asked) {
        (_, true) => Reason::Stopped,
        (Exit::Code(0), false) => Reason::Completed,
        (_, false) => Reason::Crashed,
    }
}

fn not_executed(errno: i32, word: &str) -> NotExecuted {
    let code = if errno == libc::ENOENT { 127 } else { 126 };
    NotExecuted { code, message: format!("execute {word}: {}", Errno::from_raw(errno)) }
}
