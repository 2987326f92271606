//! The one place where pid 1 waits: signals, the end of children, the payload's output. signalfd(2), poll(2),
//! wait(2).
//!
//! The rule that surprises people: several pending signals of one number are one signal. One SIGCHLD can
//! mean many children, so each time *all* that have ended are reaped, our own and every orphan.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

use super::log::Log;
use super::oom::{self, OomCounter};
use crate::postgres::report::Exit;
use crate::sys::memory;

/// After this time in which nothing happened, the memory is let go that is only needed when something does.
const QUIET_MILLIS: u16 = 1000;

/// What every postmaster's line has in it about a child that died of SIGKILL, whatever its language.
const KILLED: &[u8] = b"ignal 9";

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A signal for us.
    Signal(Told),
    /// A child has ended, ours or an orphan.
    Ended(Pid, Exit),
    /// The time that was given is over.
    Timeout,
}

/// A signal, and what was sent along with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub signal: Signal,
    /// How long a shutdown may take, where the sender says that (sigqueue(3), a number of seconds).
    pub patience: Option<Duration>,
}

impl Told {
    /// Real-time signals have no meaning here.
    fn read(info: &siginfo) -> Option<Told> {
        let signal = Signal::try_from(info.ssi_signo as i32).ok()?;
        let seconds = (info.ssi_code == libc::SI_QUEUE).then(|| u64::try_from(info.ssi_int).ok()).flatten();
        Some(Told { signal, patience: seconds.map(Duration::from_secs) })
    }

    /// True for a signal that asks pid 1 to end the container.
    pub fn stops(self) -> bool {
        use Signal::{SIGINT, SIGQUIT, SIGTERM, SIGUSR2};
        matches!(self.signal, SIGINT | SIGTERM | SIGQUIT | SIGUSR2)
    }
}

/// A stop was asked for before the payload was up. Travels as an error: everything in between gives up.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    /// The signal that asked.
    pub signal: i32,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by signal {} before the server was up", self.signal)
    }
}

impl std::error::Error for Stopped {}

/// The event loop's descriptors.
pub struct Events {
    signals: SignalFd,
    /// Both ends of the pipe that children write their output to. Ours of the writing end stays open, so
    /// that the reading end never reports its end.
    pipe: Option<(File, OwnedFd)>,
    log: Log,
    oom: OomCounter,
    ended: VecDeque<(Pid, Exit)>,
    watched: Option<(Pid, Option<Exit>)>,
    put_back: Option<Told>,
}

impl Events {
    /// To be called with all signals blocked.
    pub fn new(log: Log, oom: OomCounter) -> Result<Events> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&SigSet::all(), flags).context("signalfd")?;
        let pipe = match log.is_file() {
            true => Some(output_pipe()?),
            false => None,
        };
        Ok(Events { signals, pipe, log, oom, ended: VecDeque::new(), watched: None, put_back: None })
    }

    /// Where a child's stdout and stderr go; `None`: to our own.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(|(_, writer)| writer.as_fd())
    }

    /// The log, for the tail of it.
    pub fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Writes a line of our own to the log, after what children have written by now.
    pub fn log_line(&mut self, text: &str) {
        self.drain();
        self.log.line(text);
    }

    /// Waits for the next event, at most until `deadline`.
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<Event> {
        if let Some(told) = self.put_back.take() {
            return Ok(Event::Signal(told));
        }
        loop {
            if let Some((pid, exit)) = self.ended.pop_front() {
                if let Some((watched, kept)) = &mut self.watched
                    && *watched == pid
                {
                    *kept = Some(exit);
                }
                return Ok(Event::Ended(pid, exit));
            }
            self.wait(deadline)?;
            match self.signals.read_signal().context("read signalfd")? {
                Some(info) if info.ssi_signo == libc::SIGCHLD as u32 => self.reap()?,
                Some(info) => {
                    if let Some(told) = Told::read(&info) {
                        return Ok(Event::Signal(told));
                    }
                }
                None if deadline.is_some_and(|at| Instant::now() >= at) => return Ok(Event::Timeout),
                None => {}
            }
        }
    }

    /// Sleeps until a signal is there or the time is over, copying output meanwhile.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<()> {
        let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            None => PollTimeout::from(QUIET_MILLIS),
            // Rounded up: waking too early would turn the last millisecond into a busy loop.
            Some(left) => {
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some((reader, _)) = &self.pipe {
            fds.push(PollFd::new(reader.as_fd(), PollFlags::POLLIN));
        }
        let mut ready = poll(&mut fds, timeout);
        if ready == Ok(0) && deadline.is_none() {
            // What comes next may be days away.
            memory::settle();
            ready = poll(&mut fds, PollTimeout::NONE);
        }
        match ready {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        if fds.get(1).is_some_and(|fd| fd.any() == Some(true)) {
            self.drain();
        }
        Ok(())
    }

    /// Copies what is in the pipe to the log, at most a pipe's worth: a payload that floods its output must
    /// not keep signals waiting.
    pub fn drain(&mut self) {
        let Some((reader, _)) = &mut self.pipe else { return };
        let mut buffer = [0; 8192];
        let mut somebody_died = false;
        for _ in 0..8 {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => {
                    somebody_died |= buffer[..len].windows(KILLED.len()).any(|word| word == KILLED);
                    self.log.write(&buffer[..len]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if somebody_died && let Some(who) = oom::victim(&self.log.tail()).map(str::to_owned) {
            self.note_oom(&who);
        }
    }

    /// Says in the log that it was the kernel's OOM killer, if it was, that has ended somebody of whom is known that he died of
    /// SIGKILL. `None` where that can't be known.
    pub fn note_oom(&mut self, who: &str) -> Option<bool> {
        let was_it = self.oom.has_grown()?;
        if was_it {
            self.log.line(&format!("the kernel's OOM killer has ended {who}: the node was out of memory"));
        }
        Some(was_it)
    }

    /// The counter of the OOM killer.
    pub fn oom(&self) -> &OomCounter {
        &self.oom
    }

    fn reap(&mut self) -> Result<()> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended.push_back((pid, Exit::Code(code))),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended.push_back((pid, Exit::Signal(signal as i32)));
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("waitpid"),
            }
        }
    }

    /// Leaves a signal to the next who waits: for something that must come to its end first.
    pub fn put_back(&mut self, told: Told) {
        self.put_back = Some(told);
    }

    /// Keeps the exit of this child, whoever waits for what when it ends.
    pub fn watch(&mut self, child: Pid) {
        self.watched = Some((child, None));
    }

    /// How the watched child has ended, once it has.
    pub fn watched_exit(&self) -> Option<Exit> {
        self.watched.and_then(|(_, exit)| exit)
    }

    /// As [`Events::wait_for_all`] for one child.
    pub fn wait_for(&mut self, child: Pid, patience: Duration) -> Result<Exit> {
        Ok(self.wait_for_all(&[child], patience)?[0])
    }

    /// Waits for the end of children that are only a means to an end (initdb, psql, a script). A stop that is
    /// asked for meanwhile ends them, by SIGTERM to their process groups and after `patience` by SIGKILL
    /// (nothing that they were making is kept), and comes back as [`Stopped`].
    pub fn wait_for_all(&mut self, children: &[Pid], patience: Duration) -> Result<Vec<Exit>> {
        let mut exits: Vec<Option<Exit>> = vec![None; children.len()];
        let mut stopped: Option<Stopped> = None;
        let mut deadline = None;
        while exits.contains(&None) {
            match self.next(deadline)? {
                Event::Ended(pid, exit) => {
                    if let Some(at) = children.iter().position(|child| *child == pid) {
                        exits[at] = Some(exit);
                    }
                }
                Event::Signal(told) if told.stops() => {
                    stopped = Some(Stopped { signal: told.signal as i32 });
                    let patience = match told.signal {
                        Signal::SIGQUIT => Duration::ZERO,
                        _ => told.patience.unwrap_or(patience),
                    };
                    deadline = Some(Instant::now() + patience);
                    signal_groups(children, &exits, Signal::SIGTERM);
                }
                Event::Timeout => {
                    signal_groups(children, &exits, Signal::SIGKILL);
                    deadline = None;
                }
                Event::Signal(_) => {}
            }
        }
        self.drain();
        match stopped {
            Some(stopped) => Err(stopped.into()),
            None => Ok(exits.into_iter().flatten().collect()),
        }
    }
}

/// Signals the process groups of those children that have not ended; each leads its own.
fn signal_groups(children: &[Pid], exits: &[Option<Exit>], signal: Signal) {
    for (child, _) in children.iter().zip(exits).filter(|(_, exit)| exit.is_none()) {
        // One that ends in this moment is no error.
        let _ = kill(Pid::from_raw(-child.as_raw()), signal);
    }
}

fn output_pipe() -> Result<(File, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context("pipe2")?;
    // Only our end: children expect to write without EAGAIN.
    fcntl_setfl(&reader, OFlags::NONBLOCK).context("fcntl(O_NONBLOCK)")?;
    Ok((reader.into(), writer))
}
