//! Starting one program in the container as the payload's user. execve(2), setsid(2), environ(7).
//!
//! The rule that surprises people: fork copies pid 1's protection from the OOM killer. Only the postmaster
//! keeps it (and takes it from its backends by `PG_OOM_ADJUST_*`); every other program gets 0 back.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use super::Init;
use crate::postgres::environment::variable;
use crate::postgres::launch::User;
use crate::sys::execute::{self, DEFAULT_PATH};
use crate::sys::{child, tty};

/// A program to start.
pub struct Program<'a> {
    /// argv; a first word without a slash is looked for in the PATH of `env`, as the payload's user.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Standard input; `None`: /dev/null.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Standard output; `None`: the log.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Descriptors 3, 4, …; the first is the lock on the data directory.
    pub extra: Vec<BorrowedFd<'a>>,
    /// Keeps the protection from the OOM killer.
    pub protected: bool,
}

impl<'a> Program<'a> {
    /// A program with everything else at its default.
    pub fn new(argv: Vec<String>, env: Vec<(String, String)>) -> Program<'a> {
        Program { argv, env, stdin: None, stdout: None, extra: Vec::new(), protected: false }
    }
}

impl Init<'_> {
    /// Starts a program as leader of a session of its own. Returns when it runs; an error is a
    /// [`child::SpawnError`] if it failed between the fork and the execve.
    pub fn spawn(&mut self, program: &Program<'_>) -> Result<Pid> {
        let (config, assume, terminal) = (self.config, self.assume, self.terminal);
        let unshield = self.shielded && !program.protected;
        let null = match program.stdin {
            Some(_) => None,
            None => Some(File::open("/dev/null").context("open /dev/null")?),
        };
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let output = self.events.output();
        let mut fds = vec![
            program.stdin.or(null.as_ref().map(AsFd::as_fd)).unwrap_or(stdin.as_fd()),
            program.stdout.or(output).unwrap_or(stdout.as_fd()),
            output.unwrap_or(stderr.as_fd()),
        ];
        fds.extend(&program.extra);
        let command = command(&program.argv, &program.env)?;
        child::spawn(|| {
            match terminal {
                true => tty::begin_session(fds[0])?,
                false => drop(nix::unistd::setsid().context("setsid")?),
            }
            become_payload(&config.cwd, &config.user, assume, unshield)?;
            child::place_fds(&fds)?;
            child::unblock_signals()?;
            Err(command.execute()).with_context(|| format!("execute {}", command.word()))
        })
    }

    /// Forks a child that runs `body` as the payload's user with `stdout` as its standard output.
    pub fn fork_as_user(&mut self, stdout: BorrowedFd<'_>, body: impl FnOnce() -> Result<()>) -> Result<Pid> {
        let (config, assume, unshield) = (self.config, self.assume, self.shielded);
        let (stdin, stderr) = (std::io::stdin(), std::io::stderr());
        let fds = [stdin.as_fd(), stdout, self.events.output().unwrap_or(stderr.as_fd())];
        child::fork(|| {
            let result = nix::unistd::setsid()
                .context("setsid")
                .and_then(|_| become_payload(&config.cwd, &config.user, assume, unshield))
                .and_then(|()| child::place_fds(&fds))
                .and_then(|()| child::unblock_signals())
                .and_then(|()| body());
            match result {
                Ok(()) => 0,
                Err(error) => {
                    // Standard error is the log by now.
                    let text = format!("pgbox: error: {error:#}\n");
                    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
                    1
                }
            }
        })
    }
}

/// The child's last acts as root.
fn become_payload(cwd: &Path, user: &User, assume: super::Assume<'_>, unshield: bool) -> Result<()> {
    if unshield {
        // Raising it is always allowed.
        let _ = std::fs::write(super::OOM_SCORE_ADJ, "0");
    }
    nix::unistd::chdir(cwd).with_context(|| format!("chdir {}", cwd.display()))?;
    assume(user)
}

/// argv and environment as execve(2) takes them.
fn command(argv: &[String], env: &[(String, String)]) -> Result<execute::Command> {
    let word = argv.first().context("an empty command")?;
    let path = variable(env, "PATH").unwrap_or(DEFAULT_PATH);
    let vars = env.iter().map(|(key, value)| format!("{key}={value}"));
    execute::Command::new(&execute::candidates(word.as_ref(), path.as_ref()), argv.iter().cloned(), vars)
}
