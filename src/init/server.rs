//! The server itself: started, watched, told to stop, and started again after a crash.
//! PostgreSQL manual 19.5, "Shutting Down the Server".
//!
//! The rule that surprises people: SIGTERM, the signal of every stop, is a *smart* shutdown to a postmaster:
//! it waits for all clients to go away by themselves. A stop is SIGINT here (fast), then SIGQUIT (immediate,
//! with crash recovery at the next start). Never SIGKILL: the postmaster could not take its backends with it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::datadir::DataDir;
use super::events::{Event, Told};
use super::full;
use super::private::{POLL, accepts, server_argv};
use super::program::Program;
use super::standby::receives;
use super::{Ended, Init};
use crate::postgres::launch::{PostgresPayload, Restart};
use crate::postgres::report::{Exit, Phase, Reason};

/// A run of this length forgives earlier crashes.
const STABLE: Duration = Duration::from_secs(60);

/// The longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a server was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Restart,
    Stop,
}

/// One run of the server.
struct Run {
    exit: Exit,
    asked: Asked,
    /// It has accepted connections.
    came_up: bool,
    lasted: Duration,
}

/// A server in its current run.
struct Server {
    pid: Pid,
    asked: Asked,
    came_up: bool,
    /// When a fast shutdown becomes an immediate one.
    deadline: Option<Instant>,
}

impl Init<'_> {
    /// Runs the server until it ends for good.
    pub(super) fn serve(&mut self, postgres: &PostgresPayload, data: &DataDir) -> Result<Ended> {
        let mut crashes = 0;
        let mut ever_up = false;
        loop {
            let run = self.run_server(postgres, data)?;
            self.talk.status.pid = 0;
            self.talk.status.last_exit = Some(run.exit);
            ever_up |= run.came_up;
            let reason = match run.asked {
                Asked::Restart => continue,
                Asked::Stop => Some(Reason::Stopped),
                Asked::Nothing if run.exit == Exit::Code(0) => Some(Reason::Completed),
                Asked::Nothing => self.judge_crash(data, &run, ever_up, &mut crashes)?,
            };
            if let Some(reason) = reason {
                return Ok(Ended { exit: run.exit, reason });
            }
            self.end_leftovers(postgres)?;
            if self.pause(crashes)? {
                return Ok(Ended { exit: run.exit, reason: Reason::Stopped });
            }
            self.talk.status.restarts += 1;
        }
    }

    /// Decides after a crash: a reason to end the container, or `None` to start again.
    fn judge_crash(
        &mut self,
        data: &DataDir,
        run: &Run,
        ever_up: bool,
        crashes: &mut u32,
    ) -> Result<Option<Reason>> {
        if let Exit::Signal(signal) = run.exit {
            let was_oom =
                (signal == libc::SIGKILL).then(|| self.events.note_oom("the server itself")).flatten();
            let why = match was_oom {
                Some(true) => "the kernel's OOM killer, the node was out of memory",
                Some(false) => "a kill -9, and not the kernel's OOM killer",
                None => "a kill, the kernel's OOM killer or a fault of its own",
            };
            return Ok(self.note_crash(run, crashes, why));
        }
        let words = self.events.log().last_words();
        if full::is_full(data, &self.events.log().tail()) {
            let space = full::space(data);
            let text =
                format!("no space left on the volume of {space}; the server is not started again: {words}");
            self.events.log_line(&text);
            self.talk.status.error = Some(text);
            return Ok(Some(Reason::DiskFull));
        }
        // A server that never came up and ended by itself would only do so again.
        if !ever_up {
            bail!("the server did not start, {}: {words}", run.exit);
        }
        Ok(self.note_crash(run, crashes, &words))
    }

    /// Records a crash and counts it; a reason to end once there were too many in a row.
    fn note_crash(&mut self, run: &Run, crashes: &mut u32, why: &str) -> Option<Reason> {
        let text = format!("the server ended with {}: {why}", run.exit);
        self.events.log_line(&text);
        self.talk.status.error = Some(text);
        *crashes = if run.lasted > STABLE { 1 } else { *crashes + 1 };
        match self.config.restart {
            Restart::OnCrash { max } if *crashes <= max => None,
            _ => Some(Reason::Crashed),
        }
    }

    /// Waits before a restart, longer after each crash. True if a stop came meanwhile.
    fn pause(&mut self, crashes: u32) -> Result<bool> {
        self.phase(Phase::Waiting);
        let pause = Duration::from_millis(100 << crashes.clamp(1, 10)).min(LONGEST_PAUSE);
        let until = Instant::now() + pause;
        loop {
            match self.events.next(Some(until))? {
                Event::Timeout => return Ok(false),
                Event::Signal(told) if told.stops() => return Ok(true),
                Event::Signal(_) | Event::Ended(..) => {}
            }
        }
    }

    /// Runs the server once.
    fn run_server(&mut self, postgres: &PostgresPayload, data: &DataDir) -> Result<Run> {
        self.write_passfile()?;
        self.talk.status.raised = self.write_settings(postgres, true)?;
        self.events.log().forget_tail();
        let mut program = Program::new(server_argv(postgres), self.server_env(postgres));
        program.extra = vec![data.fd()];
        program.protected = true;
        let pid = self.spawn(&program)?;
        drop(program);
        let started = Instant::now();
        self.talk.status.pid = pid.as_raw();
        self.phase(Phase::Starting);
        let mut server = Server { pid, asked: Asked::Nothing, came_up: false, deadline: None };
        loop {
            if !server.came_up && accepts(postgres, pid) {
                server.came_up = true;
                // A stop that was asked for meanwhile stays the phase.
                if server.asked == Asked::Nothing {
                    self.phase(Phase::Running);
                }
                self.talk.close_report();
            }
            if self.fresh && server.came_up && receives() {
                self.fresh = false;
                self.read_again(postgres, pid);
            }
            // A long recovery is no reason to wake up a hundred times a second.
            let pause = (started.elapsed() / 16).clamp(POLL, Duration::from_millis(500));
            let poll = (!server.came_up || self.fresh).then(|| Instant::now() + pause);
            let deadline = [poll, server.deadline].into_iter().flatten().min();
            match self.events.next(deadline)? {
                Event::Ended(ended, exit) if ended == pid => {
                    self.events.drain();
                    let (asked, came_up) = (server.asked, server.came_up);
                    return Ok(Run { exit, asked, came_up, lasted: started.elapsed() });
                }
                Event::Signal(told) => self.tell(postgres, &mut server, told),
                Event::Ended(..) | Event::Timeout => {}
            }
            if server.deadline.is_some_and(|at| Instant::now() >= at) {
                server.deadline = None;
                self.events.log_line("the fast shutdown took too long; it becomes an immediate one");
                let _ = kill(pid, Signal::SIGQUIT);
            }
        }
    }

    /// Translates a signal from outside into the postmaster's own.
    fn tell(&mut self, postgres: &PostgresPayload, server: &mut Server, told: Told) {
        let (asked, signal) = match told.signal {
            Signal::SIGINT | Signal::SIGTERM => (Asked::Stop, Signal::SIGINT),
            Signal::SIGQUIT => (Asked::Stop, Signal::SIGQUIT),
            Signal::SIGUSR2 => (Asked::Stop, Signal::SIGTERM),
            Signal::SIGUSR1 => (Asked::Restart, Signal::SIGINT),
            Signal::SIGHUP => (server.asked, Signal::SIGHUP),
            _ => return,
        };
        // A stop is never turned back into a restart.
        if server.asked != Asked::Stop {
            server.asked = asked;
        }
        if signal == Signal::SIGHUP {
            return self.read_again(postgres, server.pid);
        }
        // It may have ended in this moment; then the loop hears of that next.
        let _ = kill(server.pid, signal);
        // A smart shutdown waits for the clients, however long; an immediate one needs no help.
        let patience = told.patience.unwrap_or(self.patience());
        server.deadline = (signal == Signal::SIGINT).then(|| Instant::now() + patience);
        self.phase(Phase::Stopping);
    }

    /// Has the server go by the settings as they are now.
    fn read_again(&mut self, postgres: &PostgresPayload, server: Pid) {
        if let Err(error) = self.write_settings(postgres, false) {
            self.events.log_line(&format!("the settings stay as they are: {error:#}"));
        }
        let _ = kill(server, Signal::SIGHUP);
    }

    /// Ends what a postmaster that was killed has left behind. Backends in a long computation do not notice
    /// its death, and a new postmaster refuses to start while they hold the old shared memory.
    fn end_leftovers(&mut self, postgres: &PostgresPayload) -> Result<()> {
        let begun = Instant::now();
        let mut stop = None;
        loop {
            let left = leftovers(&postgres.bindir.join("postgres"));
            if left.is_empty() {
                stop.into_iter().for_each(|told| self.events.put_back(told));
                return Ok(());
            }
            // As the postmaster itself does: five seconds for SIGQUIT, then SIGKILL.
            let signal =
                if begun.elapsed() < Duration::from_secs(5) { Signal::SIGQUIT } else { Signal::SIGKILL };
            for pid in left {
                let _ = kill(pid, signal);
            }
            match self.next_event(Duration::from_millis(50))? {
                Event::Signal(told) if told.stops() => stop = Some(told),
                _ => {}
            }
        }
    }
}

/// The orphaned processes (children of pid 1) that execute `server`.
fn leftovers(server: &std::path::Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
        let alive = fields.next().is_some_and(|state| state != "Z" && state != "X");
        let orphan = fields.next() == Some("1");
        alive && orphan && fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| same(&exe, server))
    })
    .map(Pid::from_raw)
    .collect()
}

/// True for the same file; `server` may lead to it through symbolic links.
fn same(exe: &std::path::Path, server: &std::path::Path) -> bool {
    exe == server || fs::canonicalize(server).is_ok_and(|real| exe == real)
}
