//! Making a child that goes on in this program, and what such a child does before it executes another one.
//! clone(2) (`clone3`), close_range(2), signal(7).
//!
//! clone3 copies the calling thread alone: a lock that another thread held at that moment stays locked in the child
//! for ever, malloc's included (glibc repairs that for its own fork only). So there must be no other thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::unistd::Pid;

/// libc's constant of this name is 0: the value does not fit the `c_int` that it has there, and a child would silently
/// stay in its parent's cgroup.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child process, held by a descriptor that can't come to mean another process.
#[derive(Debug)]
pub struct Child {
    /// Its number in our own pid namespace.
    pub pid: Pid,
    /// Readable when it has ended. pidfd_open(2)
    pub pidfd: OwnedFd,
}

/// Errors out if this process has more than one thread. Needs /proc.
///
/// A thread that was joined is still listed for a moment: join waits for its last memory access, not for its end in
/// the kernel. It holds no lock any more, but only its absence proves that.
pub fn ensure_single_threaded() -> Result<()> {
    const PATIENCE: Duration = Duration::from_millis(200);
    let begun = Instant::now();
    loop {
        // As in any directory, each entry below counts as a link: two for itself and one for each thread.
        let tasks = std::fs::metadata("/proc/self/task").context("stat /proc/self/task")?.nlink() - 2;
        if tasks == 1 {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "{tasks} threads are running where one may: a clone would inherit their locks"
        );
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Starts a child that runs `body` and exits with what it returns, born in the cgroup-v2 directory `cgroup` if there
/// is one (0.1 ms; joining it later costs about 10).
///
/// `flags` are CLONE_* bits, `CLONE_NEW*` among them; the child shares no memory with us. The caller has a single
/// thread, see [`ensure_single_threaded`].
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> Result<Child> {
    let mut pidfd: RawFd = -1;
    // SAFETY: a clone_args of zeroes is valid: each field is a number or a null pointer.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(directory) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = directory.as_raw_fd() as u64;
    }
    // SAFETY: args is of the size given and `pidfd` outlives the call. Without CLONE_VM the child has its own copy of
    // the stack and of all memory, so it may go on in this very frame.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    match pid {
        -1 => Err(io::Error::last_os_error()).context("clone3"),
        0 => {
            // Unwinding would run the caller's code a second time, in the child.
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: ends the process, without the parent's exit handlers and unwritten buffers.
            unsafe { libc::_exit(code) }
        }
        // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD); nobody else owns it.
        pid => Ok(Child { pid: Pid::from_raw(pid as i32), pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Closes every descriptor but stdin, stdout, stderr and `kept`, which becomes number 3 and closes on execve.
///
/// A descriptor of a host directory that slips through is a way out of any root directory (CVE-2024-21626:
/// `chdir("/proc/self/fd/7")`), so they go before the first path is resolved, not at the execve. Only for a child that
/// is about to execute another program: whatever owned those descriptors here is left with stale numbers.
pub fn close_all_but(kept: OwnedFd) -> Result<OwnedFd> {
    const FIRST: RawFd = 3;
    let number = kept.into_raw_fd();
    // SAFETY: plain numbers. FIRST may belong to an object of this process, which by contract is not used again.
    if number != FIRST && unsafe { libc::dup3(number, FIRST, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error()).context("dup3");
    }
    // SAFETY: plain numbers; by contract nothing that owns one of them is used again.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, FIRST + 1, libc::c_uint::MAX, 0) };
    Errno::result(rc).context("close_range")?;
    // SAFETY: FIRST was opened above (or was `kept` itself, given up by into_raw_fd) and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(FIRST) })
}

/// Makes stdin, stdout and stderr copies of `file`.
pub fn replace_stdio(file: BorrowedFd<'_>) -> Result<()> {
    for number in 0..=2 {
        // SAFETY: plain numbers; the standard streams hold no state that a new file would contradict.
        Errno::result(unsafe { libc::dup2(file.as_raw_fd(), number) }).context("dup2")?;
    }
    Ok(())
}

/// Undoes what an executed program would inherit: blocked signals, and Rust's ignored SIGPIPE, with which
/// `command | head` never ends.
pub fn reset_signals() -> Result<()> {
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }.context("signal(SIGPIPE)")?;
    SigSet::empty().thread_set_mask().context("unblock all signals: sigprocmask")
}
