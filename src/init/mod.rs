//! pgbox's own pid 1 inside the container. pid_namespaces(7), signalfd(2), flock(2).
//!
//! The rule that surprises people: Postgres must not be pid 1. Orphans of a pid namespace become children of
//! its pid 1, and a postmaster takes an unknown child that exits with code 2 for a crashed backend and throws
//! all sessions out (docker-library/postgres#1349). This init adopts and forgets them.
//!
//! It runs in a fork of the command that made the container, without an execve: nothing of pgbox has to be
//! inside the image. So its first acts are to let go of what it inherited: descriptors, signal actions, the
//! command line in `/proc/1/cmdline`. It is single-threaded, and its loop allocates nothing that stays.

mod aside;
mod clone;
mod command;
mod datadir;
mod events;
mod first;
mod full;
mod log;
mod oom;
mod ownership;
mod private;
mod program;
mod server;
mod sql;
mod standby;
mod start;
mod talk;
mod waldir;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{OFlags, fcntl_setfl};

use crate::postgres::launch::{Payload, User};
use crate::postgres::report::{Exit, Phase, Reason};
use crate::sys::{child, fs::read_open, title};

pub use crate::postgres::launch::InitConfig;
pub use crate::postgres::report::{Report, Status};

use events::{Events, Stopped};
use talk::Talk;

/// See proc(5), `oom_score_adj`.
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// The descriptors that `init` is given. All were opened on the host: after pivot_root it cannot reach the
/// node's directory.
#[derive(Debug)]
pub struct InitFds {
    /// The log files, always for a server (its last words are in every error); `None`: the payload has the
    /// standard streams of the caller.
    pub log: Option<LogFds>,
    /// The standard streams are a terminal that is the payload's alone.
    pub terminal: bool,
    /// The status file, read-write. One line of JSON, see [`Status`].
    pub status: Option<OwnedFd>,
    /// From here the superuser's password is read; then it is closed.
    pub secret: Option<OwnedFd>,
    /// One line of JSON, see [`Orders`](crate::postgres::launch::Orders): read again whenever they may have changed.
    pub orders: Option<OwnedFd>,
    /// The replication role's password, or nothing as long as there is none.
    pub replicator: Option<OwnedFd>,
    /// The writing end of a pipe to the caller: lines of [`Report`], closed when the server is up.
    pub report: Option<OwnedFd>,
    /// The file of the node's cgroup that counts whom the kernel's OOM killer has ended.
    pub oom: Option<OwnedFd>,
    /// The data directory of the server that is followed, for as long as this one has none of its own, or why it could not be
    /// opened. `None`: it is not to be cloned.
    pub upstream: Option<Result<OwnedFd, String>>,
}

/// The log and the file that it is copied to when it has reached its cap.
#[derive(Debug)]
pub struct LogFds {
    /// The log, opened for reading and appending.
    pub current: OwnedFd,
    /// The one before it, opened for reading and writing, not appending.
    pub previous: OwnedFd,
}

/// Turns the calling process, still root, into the payload's user with all limits on its power
/// (capabilities, no_new_privs, seccomp). Called in each child just before its execve.
pub type Assume<'a> = &'a dyn Fn(&User) -> Result<()>;

/// Runs the payload as pid 1 and returns the exit code of the container, with which the caller ends at once.
///
/// To be called by root in the container's own namespaces and root directory, with a single thread, and with
/// all signals blocked *since before the clone*: a signal that reaches a pid 1 which neither handles nor blocks
/// it is thrown away (pid_namespaces(7)), so a stop in the first milliseconds would be lost.
/// It closes every descriptor that is not in `fds` and not a standard stream.
pub fn run(config: &InitConfig, fds: InitFds, assume: Assume<'_>) -> i32 {
    let terminal = fds.terminal;
    let prepared = prepare(&fds);
    let mut talk = Talk::new(fds);
    let result = prepared
        .and_then(|()| Init::new(config, &mut talk, assume, terminal))
        .and_then(|mut init| init.payload());
    match result {
        Ok(ended) => {
            talk.ended(ended.exit, ended.reason);
            ended.exit.code()
        }
        Err(error) => {
            // Of a command, 1 would be its own.
            let code = if matches!(config.payload, Payload::Command { .. }) { 125 } else { 1 };
            give_up(&mut talk, &error, code)
        }
    }
}

/// How the payload ended for good.
struct Ended {
    exit: Exit,
    reason: Reason,
}

/// Lets go of everything that the caller had and this process must not have.
fn prepare(fds: &InitFds) -> Result<()> {
    child::block_signals()?;
    // Out of the caller's terminal: Ctrl-C there is for the caller, who passes on what it wants to. EPERM: it
    // was made a session leader already.
    let _ = nix::unistd::setsid();
    close_foreign(fds)?;
    if fds.log.is_some() {
        leave_terminal()?;
    }
    title::set(c"pgbox-init");
    match &fds.report {
        // A caller that was stopped (Ctrl-Z) must not stop the container.
        Some(report) => fcntl_setfl(report, OFlags::NONBLOCK).context("fcntl(O_NONBLOCK)"),
        None => Ok(()),
    }
}

/// Lets go of the caller's standard streams: whoever reads the caller's output waits for its end.
fn leave_terminal() -> Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    child::replace_stdio(null.as_fd())
}

fn close_foreign(fds: &InitFds) -> Result<()> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut kept: Vec<BorrowedFd<'_>> = vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    if let Some(log) = &fds.log {
        kept.extend([log.current.as_fd(), log.previous.as_fd()]);
    }
    for fd in [&fds.status, &fds.secret, &fds.orders, &fds.replicator, &fds.report, &fds.oom] {
        kept.extend(fd.as_ref().map(AsFd::as_fd));
    }
    kept.extend(fds.upstream.iter().flatten().map(AsFd::as_fd));
    child::close_all_but(&kept)
}

/// Reports why the payload never came up, and gives the exit code for it.
fn give_up(talk: &mut Talk, error: &anyhow::Error, code: i32) -> i32 {
    if let Some(stopped) = error.downcast_ref::<Stopped>() {
        talk.ended(Exit::Signal(stopped.signal), Reason::Stopped);
        return 128 + stopped.signal;
    }
    let code = error.downcast_ref::<command::NotExecuted>().map_or(code, |failure| failure.code);
    let in_use = error.downcast_ref::<datadir::InUse>().is_some();
    talk.failed(&format!("{error:#}"), code, in_use);
    code
}

/// Everything pid 1 has in hand.
struct Init<'a> {
    config: &'a InitConfig,
    talk: &'a mut Talk,
    assume: Assume<'a>,
    terminal: bool,
    /// Its standing with the OOM killer is not the usual one, and its children's neither until they give it up.
    shielded: bool,
    /// The data are a base backup of just now, and what came with it is not applied late: see `standby`.
    fresh: bool,
    events: Events,
}

impl<'a> Init<'a> {
    fn new(
        config: &'a InitConfig,
        talk: &'a mut Talk,
        assume: Assume<'a>,
        terminal: bool,
    ) -> Result<Init<'a>> {
        let mut log = talk.take_log()?;
        log.set_cap(config.log_cap);
        let events = Events::new(log, talk.take_oom_counter())?;
        // Not killed before the payload, where that is allowed: lowering it needs CAP_SYS_RESOURCE.
        let score = File::options().read(true).write(true).open(OOM_SCORE_ADJ);
        let shielded = score.is_ok_and(|mut score| {
            score.write_all(b"-1000").is_ok()
                // It may have come with another one, from whoever has started pgbox.
                || read_open(&score).is_ok_and(|score| score.trim() != "0")
        });
        Ok(Init { config, talk, assume, terminal, shielded, fresh: false, events })
    }

    fn payload(&mut self) -> Result<Ended> {
        // An image may name a working directory that it does not have. Where it can't be made, the chdir says what is wrong.
        let _ = std::fs::create_dir_all(&self.config.cwd);
        let ended = match &self.config.payload {
            Payload::Postgres(postgres) => self.postgres(postgres),
            Payload::Command { argv } => self.command(argv),
        };
        self.talk.status.oom_kills = self.events.oom().total();
        ended
    }

    /// Says something in the log and to the caller.
    fn note(&mut self, text: &str) {
        self.events.log_line(text);
        self.talk.note(text);
    }

    fn phase(&mut self, phase: Phase) {
        self.talk.status.oom_kills = self.events.oom().total();
        self.talk.phase(phase);
    }
}

/// Adds the object to an errno, as `open /x: No such file or directory`.
fn at<T, E>(result: std::result::Result<T, E>, what: &str, path: &std::path::Path) -> Result<T>
where
    std::result::Result<T, E>: Context<T, E>,
{
    result.with_context(|| format!("{what} {}", path.display()))
}
