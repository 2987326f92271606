//! The parent's part while the command runs: bytes between two terminals, sizes, signals, and the exit code. poll(2),
//! signalfd(2), pty(7).
//!
//! Ours is in raw mode, so Ctrl-C is a byte that the *inner* terminal turns into SIGINT for its foreground process.
//! Nothing may end this process before the terminal is restored, so every signal that could is read from a signalfd; SIGPIPE
//! too, for `exec -t ... | head`.

use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{read, write};
use rustix::process::pidfd_send_signal;

use super::own_size;
use crate::sys::clone::Child;
use crate::sys::tty::{self, RawMode};

/// What somebody may send to us and means for the command.
const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// Ctrl-D, which to a terminal in line mode is the end of input.
const END_OF_INPUT: u8 = 4;

/// Blocked signals, to be read as data. They stay blocked: one that is pending when the command ends must not
/// replace its exit code.
pub struct Signals(SignalFd);

impl Signals {
    pub fn block() -> Result<Signals> {
        let mut set = SigSet::from_iter(FORWARDED);
        set.add(Signal::SIGWINCH);
        set.add(Signal::SIGPIPE);
        set.thread_block().context("block signals: sigprocmask")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Signals(SignalFd::with_flags(&set, flags).context("signalfd")?))
    }

    fn next(&self) -> Result<Option<Signal>> {
        let info = self.0.read_signal().context("read the signalfd")?;
        Ok(info.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok()))
    }
}

/// Waits for the command, passing signals on.
pub fn without_terminal(child: &Child, signals: &Signals) -> Result<i32> {
    loop {
        let mut ready = [readable(child.pidfd.as_fd()), readable(signals.0.as_fd())];
        wait(&mut ready)?;
        if is_ready(&ready[0]) {
            return exit_code(child);
        }
        while let Some(signal) = signals.next()? {
            forward(child, signal)?;
        }
    }
}

/// Carries bytes between our terminal and the command's until it ends.
pub fn with_terminal(
    controller: OwnedFd,
    child: &Child,
    signals: &Signals,
    interactive: bool,
) -> Result<i32> {
    let _raw = (interactive && stdin().is_terminal()).then(|| RawMode::enter(stdin().as_fd())).transpose()?;
    let mut relay = Relay { controller, typed: Vec::new(), input: interactive, output: true };
    loop {
        let [signal, ended, controller, input] = relay.wait(child, signals)?;
        if signal {
            while let Some(signal) = signals.next()? {
                match signal {
                    Signal::SIGWINCH => tty::set_window_size(&relay.controller, own_size())?,
                    // Our terminal is gone. Closing the controller hangs up the inner one.
                    Signal::SIGHUP => return Ok(128 + Signal::SIGHUP as i32),
                    other => forward(child, other)?,
                }
            }
        }
        if controller {
            relay.pass_on()?;
        }
        if ended {
            // What it wrote last is still in the terminal; whoever else holds that terminal open is not waited for.
            while relay.output && relay.pass_on()? {}
            return exit_code(child);
        }
        if input {
            relay.take_input()?;
        }
    }
}

struct Relay {
    controller: OwnedFd,
    /// Typed but not yet taken by the inner terminal, whose buffer is 4 KiB.
    typed: Vec<u8>,
    /// Whether there may be more to read from stdin.
    input: bool,
    /// Whether there may be more to read from the controller.
    output: bool,
}

impl Relay {
    /// Which of the signals, the child's end, the controller and stdin are ready.
    fn wait(&self, child: &Child, signals: &Signals) -> Result<[bool; 4]> {
        let stdin = stdin();
        let mut controller = PollFlags::empty();
        controller.set(PollFlags::POLLIN, self.output);
        controller.set(PollFlags::POLLOUT, !self.typed.is_empty());
        // A descriptor that is asked nothing still reports a hang-up, for ever: leave it out instead.
        let mut ready = vec![readable(signals.0.as_fd()), readable(child.pidfd.as_fd())];
        let listens = !controller.is_empty();
        if listens {
            ready.push(PollFd::new(self.controller.as_fd(), controller));
        }
        let reads = self.input && self.typed.is_empty();
        if reads {
            ready.push(readable(stdin.as_fd()));
        }
        wait(&mut ready)?;
        let input = reads && ready.last().is_some_and(is_ready);
        Ok([is_ready(&ready[0]), is_ready(&ready[1]), listens && is_ready(&ready[2]), input])
    }

    /// Moves what there is: typed bytes in, one buffer of output out. False when there is no more output now.
    fn pass_on(&mut self) -> Result<bool> {
        self.type_on()?;
        let mut buffer = [0; 16 * 1024];
        match read(&self.controller, &mut buffer) {
            Ok(0) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Ok(count) => write_all(stdout().as_fd(), &buffer[..count]).map(|()| true),
            // Nobody has the inner terminal open. The command may still run without it.
            Err(Errno::EIO) => {
                self.output = false;
                self.typed.clear();
                Ok(false)
            }
            Err(errno) => Err(errno).context("read the command's terminal"),
        }
    }

    fn take_input(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        match read(stdin(), &mut buffer) {
            Ok(0) => {
                self.input = false;
                self.typed.push(END_OF_INPUT);
            }
            Ok(count) => self.typed.extend(&buffer[..count]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // A terminal that is gone, or that we are in the background of.
            Err(Errno::EIO) => self.input = false,
            Err(errno) => return Err(errno).context("read stdin"),
        }
        self.type_on()
    }

    fn type_on(&mut self) -> Result<()> {
        if self.typed.is_empty() {
            return Ok(());
        }
        match write(&self.controller, &self.typed) {
            Ok(count) => drop(self.typed.drain(..count)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::EIO) => self.typed.clear(),
            Err(errno) => return Err(errno).context("write to the command's terminal"),
        }
        Ok(())
    }
}

/// Collects the child: its exit code, or 128 + n if signal n ended it.
pub fn exit_code(child: &Child) -> Result<i32> {
    loop {
        match waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("wait for process {}: waitid", child.pid));
            }
        }
    }
}

fn forward(child: &Child, signal: Signal) -> Result<()> {
    if !FORWARDED.contains(&signal) {
        return Ok(());
    }
    let raw = rustix::process::Signal::from_named_raw(signal as i32).context("a signal without a name")?;
    match pidfd_send_signal(&child.pidfd, raw) {
        // It has just ended.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("pass {signal} on: pidfd_send_signal")),
    }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.any().unwrap_or(true)
}

fn wait(ready: &mut [PollFd<'_>]) -> Result<()> {
    match poll(ready, PollTimeout::NONE) {
        // After a stop and continue; revents are untouched, that is, empty.
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno).context("poll"),
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            // Our stdout may have been made non-blocking by whoever shares it.
            Err(Errno::EAGAIN) => wait(&mut [PollFd::new(fd, PollFlags::POLLOUT)])?,
            Err(errno) => return Err(errno).context("write to stdout"),
        }
    }
    Ok(())
}
