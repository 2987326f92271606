//! Making a child that goes on in this program. clone(2) (`clone3`); what it does then is in `child`.
//!
//! clone3 copies the calling thread alone: a lock that another thread held at that moment stays locked in the child
//! for ever, malloc's included (glibc repairs that for its own fork only). So there must be no other thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use super::child;

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
            child::exit_now(code)
        }
        // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD); nobody else owns it.
        pid => Ok(Child { pid: Pid::from_raw(pid as i32), pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}
