//! A command inside the namespaces of a running process: `pgbox exec`. setns(2), pid_namespaces(7), pty(7).
//!
//! One setns with a pidfd joins all namespaces at once or none, and can't hit a process that took over the number. Two
//! things surprise people. Joining a pid namespace counts for children only, so there is always a fork, and the parent
//! stays outside, invisible to the container. And from the setns on every path is the *container's*: whatever comes
//! from the host (cgroup files, /dev/null) is opened before, and this process can't go back, so it ends with the command.
//!
//! What must hold for the command although its surroundings may be hostile:
//! * no descriptor of ours is open when its first path is resolved (CVE-2024-21626);
//! * the host's terminal is not its controlling terminal (TIOCSTI types into it, CVE-2017-5226);
//! * its `/proc/self/exe` was executed through a read-only mount (CVE-2019-5736, [`crate::sys::exe`]);
//! * it gets no capability and no system call that the container's own processes don't have;
//! * it does not outlive us.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fmt};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, pipe2, setsid};
use rustix::fs::{Mode as CreateMode, OFlags};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::image::user::{self, Ids};
use crate::sys::capability::CapabilitySet;
use crate::sys::cgroup;
use crate::sys::child;
use crate::sys::clone::{self, Child};
use crate::sys::credentials::Credentials;
use crate::sys::execute::{self, DEFAULT_PATH};
use crate::sys::process::{ProcessId, has_ended};
use crate::sys::seccomp;
use crate::sys::tty::{self, Pty, Winsize};

mod relay;

/// What a running container is to `exec`.
#[derive(Debug)]
pub struct Target {
    init: ProcessId,
    pidfd: OwnedFd,
    cgroup: Option<OwnedFd>,
    tasks: Vec<File>,
}

/// A command and how to run it.
#[derive(Debug, Clone)]
pub struct EnterRequest {
    /// Program and arguments. A program without a slash is looked up in `env`'s PATH, in the container.
    pub argv: Vec<OsString>,
    /// The whole environment. HOME, and with a terminal TERM, are added if they are missing.
    pub env: Vec<(OsString, OsString)>,
    /// Directory to start in, resolved in the container.
    pub cwd: PathBuf,
    /// Who to be, see [`Target::user`].
    pub user: Ids,
    /// Give it a terminal of its own (`-t`).
    pub tty: bool,
    /// Pass our stdin on (`-i`); otherwise it reads nothing.
    pub stdin: bool,
    /// What it keeps of root's power; usually `plan::CAPABILITIES`. The system call filter goes with them.
    pub capabilities: CapabilitySet,
}

/// A command that could not be started, with the exit code that docker(1) has for it.
#[derive(Debug)]
pub struct NotStarted {
    /// 127: no such program. 126: found, but it (or its directory) can't be used. 125: we failed.
    pub code: i32,
    message: String,
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NotStarted {}

impl Target {
    /// Takes hold of the container whose init is this very process, never of one that has its number now. The command is
    /// born in the cgroup-v2 directory `cgroup`, and moves into the v1 cgroups whose `tasks` files are given.
    pub fn open(init: ProcessId, cgroup: Option<&Path>, tasks: Vec<File>) -> Result<Target> {
        let pidfd = init.open()?.with_context(|| format!("process {} has ended", init.pid))?;
        let cgroup = cgroup.map(open_path).transpose()?;
        Ok(Target { init, pidfd, cgroup, tasks })
    }

    /// Looks up a user in the container's own `/etc/passwd` and `/etc/group`: `postgres`, `999`, `0:0`, ...
    pub fn user(&self, spec: &str) -> Result<Ids> {
        let pid = self.init.pid;
        let root = open_path(Path::new(&format!("/proc/{pid}/root")))?;
        // If it is alive now, the number was still its own when the path above was resolved.
        ensure!(!has_ended(self.pidfd.as_fd(), Duration::ZERO)?, "process {pid} has ended");
        user::lookup(&root, spec)
    }
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, CreateMode::empty()).with_context(|| format!("open {}", path.display()))
}

/// Runs a command in a container and returns its exit code, 128 + n if signal n ended it.
///
/// For a process with a single thread whose last act this is: afterwards it is in the container's namespaces, with
/// signals blocked. Call [`crate::sys::exe::reexec_read_only`] first.
///
/// # Errors
/// [`NotStarted`] (by downcast) if the command itself could not be started.
pub fn enter(target: &Target, request: &EnterRequest) -> Result<i32> {
    clone::ensure_single_threaded()?;
    let signals = relay::Signals::block()?;
    let silence =
        (!request.stdin && !request.tty).then(|| File::open("/dev/null")).transpose().context("/dev/null")?;
    let command = Command::prepare(request)?;

    setns(&target.pidfd, NAMESPACES)
        .with_context(|| format!("join the namespaces of process {}: setns", target.init.pid))?;
    let pty = request.tty.then(|| open_terminal(request.user.uid)).transpose()?;
    let (report, failure) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let stdio = Stdio { silence: silence.as_ref(), terminal: pty.as_ref().map(|pty| &pty.terminal) };
    // `failure` moves into the closure, so that clone3 closes it on this side.
    let cgroup = target.cgroup.as_ref().map(AsFd::as_fd);
    let child = clone::clone3(0, cgroup, || command.run(target, &stdio, failure))?;

    let controller = pty.map(|pty| pty.controller);
    wait_for_execve(report, &child)?;
    match controller {
        Some(controller) => relay::with_terminal(controller, &child, &signals, request.stdin),
        None => relay::without_terminal(&child, &signals),
    }
}

/// Only here, by the child: where namespaces are boundaries of delegation (the mount option `nsdelegate`, which systemd
/// sets), a process in this namespace could have no child in a cgroup unless it were below its root itself.
fn join_cgroup_namespace(target: &Target) -> Result<()> {
    setns(&target.pidfd, CloneFlags::CLONE_NEWCGROUP).context("join the cgroup namespace: setns")
}

const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWNET);

/// Carries bytes between our terminal and that of a node's pid 1, until it ends; gives its exit code.
pub fn attend(controller: OwnedFd, pid1: &Child, interactive: bool) -> Result<i32> {
    relay::with_terminal(controller, pid1, &relay::Signals::block()?, interactive)
}

/// A terminal of the container's own devpts, as large as ours. It belongs to the user, who may open it by name.
pub fn open_terminal(uid: u32) -> Result<Pty> {
    let pty = tty::open_pty(Path::new("/dev/pts/ptmx")).context("a terminal in the container")?;
    fchown(&pty.terminal, Some(Uid::from_raw(uid)), None).context("chown the terminal")?;
    tty::set_window_size(&pty.controller, own_size())?;
    Ok(pty)
}

fn own_size() -> Winsize {
    const USUAL: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let size = if stdin().is_terminal() { tty::window_size(stdin()) } else { tty::window_size(stdout()) };
    size.unwrap_or(USUAL)
}

/// Waits until the child has executed the command, which closes its end of the pipe, or says why it could not.
fn wait_for_execve(report: OwnedFd, child: &Child) -> Result<()> {
    let mut said = Vec::new();
    File::from(report).read_to_end(&mut said).context("read what the child reports")?;
    let Some((code, message)) = said.split_first() else { return Ok(()) };
    relay::exit_code(child)?;
    let message = String::from_utf8_lossy(message).into_owned();
    Err(NotStarted { code: i32::from(*code), message }.into())
}

/// What the child's stdin, stdout and stderr are, where not ours.
struct Stdio<'a> {
    silence: Option<&'a File>,
    terminal: Option<&'a OwnedFd>,
}

/// An [`EnterRequest`] in the form the kernel wants, made before there is a child.
struct Command {
    program: execute::Command,
    cwd: PathBuf,
    credentials: Credentials,
    filter: Vec<libc::sock_filter>,
}

impl Command {
    fn prepare(request: &EnterRequest) -> Result<Command> {
        let program = request.argv.first().context("no command given")?;
        let env = environment(request);
        let path =
            env.iter().find(|(key, _)| key == "PATH").map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value);
        let words = request.argv.iter().map(|arg| arg.as_bytes().to_vec());
        let vars = env.iter().map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat());
        let user = &request.user;
        Ok(Command {
            program: execute::Command::new(&execute::candidates(program, path), words, vars)?,
            cwd: request.cwd.clone(),
            credentials: Credentials {
                uid: user.uid,
                gid: user.gid,
                groups: user.groups.clone(),
                keep: request.capabilities,
            },
            filter: seccomp::program(request.capabilities),
        })
    }

    /// The child's whole life. Returns an exit code only if it failed, having said why.
    fn run(&self, target: &Target, stdio: &Stdio<'_>, failure: OwnedFd) -> i32 {
        let alone = || {
            join_cgroup_namespace(target)?;
            cgroup::enter(&target.tasks)?;
            stdio.install()?;
            // Before the first path is resolved, not at the execve: /proc/self/fd/7 may be a directory of the host.
            let (input, output, errors) = (stdin(), stdout(), stderr());
            child::close_all_but(&[input.as_fd(), output.as_fd(), errors.as_fd(), failure.as_fd()])
        };
        let error = alone().map_or_else(ours, |()| self.start(&failure));
        let report = [&[error.code as u8], error.message.as_bytes()].concat();
        // If the parent is gone, so is everybody who could be told.
        let _ = File::from(failure).write_all(&report);
        error.code
    }

    fn start(&self, failure: &OwnedFd) -> NotStarted {
        match self.change_directory().and_then(|()| self.drop_privileges(failure).map_err(ours)) {
            Ok(()) => not_executed(&self.program.word(), self.program.execute()),
            Err(error) => error,
        }
    }

    fn change_directory(&self) -> Result<(), NotStarted> {
        let shown = self.cwd.display();
        let changed = env::set_current_dir(&self.cwd).and_then(|()| env::current_dir());
        match changed {
            // getcwd(3) shows a directory outside our root like this; no lawful way leads to one.
            Ok(path) if path.is_absolute() => Ok(()),
            Ok(path) => {
                Err(NotStarted { code: 126, message: format!("{shown} leads out to {}", path.display()) })
            }
            Err(error) => {
                Err(NotStarted { code: 126, message: format!("chdir to {shown} in the container: {error}") })
            }
        }
    }

    fn drop_privileges(&self, parent: &OwnedFd) -> Result<()> {
        child::block_signals()?;
        child::unblock_signals()?;
        umask(Mode::from_bits_truncate(0o022));
        self.credentials.assume()?;
        // After the change of user, which clears it.
        set_parent_process_death_signal(Some(Signal::KILL)).context("prctl(PR_SET_PDEATHSIG)")?;
        // If the parent ended before that, no signal comes. getppid() is 0 either way, as it is in another pid namespace;
        // but the pipe has lost its reader.
        let mut pipe = [PollFd::new(parent.as_fd(), PollFlags::empty())];
        ensure!(poll(&mut pipe, PollTimeout::ZERO).context("poll")? == 0, "the parent has ended");
        // Last: every call above would have to be in the profile.
        seccomp::load(&self.filter)
    }
}

impl Stdio<'_> {
    /// In a session of its own in any case: the host's terminal, if that is our stdout, must not be its controlling
    /// terminal.
    fn install(&self) -> Result<()> {
        if let Some(terminal) = self.terminal {
            tty::begin_session(terminal)?;
            dup2_stdin(terminal).and_then(|()| dup2_stdout(terminal)).and_then(|()| dup2_stderr(terminal))?;
            return Ok(());
        }
        setsid().context("setsid")?;
        self.silence.map_or(Ok(()), dup2_stdin).context("dup2")
    }
}

fn ours(error: anyhow::Error) -> NotStarted {
    NotStarted { code: 125, message: format!("{error:#}") }
}

fn not_executed(program: &str, errno: Errno) -> NotStarted {
    match errno {
        Errno::ENOENT => NotStarted { code: 127, message: format!("{program}: not found in the container") },
        errno => {
            NotStarted { code: 126, message: format!("execute {program} in the container: {}", errno.desc()) }
        }
    }
}

fn environment(request: &EnterRequest) -> Vec<(OsString, OsString)> {
    let mut env = request.env.clone();
    let mut default = |key: &str, value: &OsStr| {
        if !env.iter().any(|(k, _)| k == key) {
            env.push((key.into(), value.to_owned()));
        }
    };
    default("HOME", &request.user.home);
    if request.tty {
        default("TERM", OsStr::new("xterm"));
    }
    env
}
