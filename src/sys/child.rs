//! Starting a program in a child, with every failure before the execve reported to the parent exactly.
//! fork(2), vfork(2), execve(2), close_range(2), signal(7).
//!
//! The rule that surprises people: signal dispositions "ignored" and the blocked mask survive execve. A parent
//! that blocks everything for signalfd(2), or Rust's ignored SIGPIPE, would pass both on.

use std::convert::Infallible;
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::slice;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, clone};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};

/// Descriptor numbers from here on are out of the way of those that [`place_fds`] gives out.
const OUT_OF_THE_WAY: RawFd = 64;

/// What went wrong in a child before its execve.
#[derive(Debug)]
pub struct SpawnError {
    /// The innermost errno, 0 where there was none.
    pub errno: i32,
    /// The chain of contexts, as `a: b: c`.
    pub message: String,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SpawnError {}

/// Forks a child that runs `body` and exits with what it returns, without running the parent's exit handlers.
/// The caller has a single thread, or `body` does nothing that depends on another one.
pub fn fork(body: impl FnOnce() -> i32) -> Result<Pid> {
    // SAFETY: the child has its own copy of all memory and goes on in this frame; no other thread held a lock
    // (single-threaded by contract; glibc repairs malloc's own).
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // Unwinding would run the caller's code a second time, in the child.
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            exit_now(code)
        }
    }
}

/// Ends the process at once: no destructor, no exit handler, no flush of what a parent has buffered.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any number and returns never.
    unsafe { libc::_exit(code) }
}

/// Starts a child whose `body` ends in an execve. Returns once the new program runs, or with what `body` failed at as a
/// [`SpawnError`] (the child is reaped then).
///
/// Until its execve the child has the memory of this process, which waits (vfork(2)): a copy of it, and of every page that
/// either of them writes to, would be a good part of what a start costs. So `body` leaves nothing on the heap that is not there
/// before it, and no other thread changes its user or group meanwhile. Whatever a change of user makes of the memory's
/// dumpable flag is undone.
pub fn spawn(body: impl Fn() -> Result<Infallible>) -> Result<Pid> {
    let before = match dumpable_behavior().context("prctl(PR_GET_DUMPABLE)")? {
        DumpableBehavior::Dumpable => DumpableBehavior::Dumpable,
        // The third is the kernel's alone to set.
        _ => DumpableBehavior::NotDumpable,
    };
    let mut failed = None;
    let mut stack = Stack::new()?;
    let live = Box::new(|| {
        let ended = catch_unwind(AssertUnwindSafe(&body));
        let Err(error) = ended.unwrap_or_else(|_| Err(anyhow::anyhow!("panic before the execve")));
        failed = Some(error);
        127
    });
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: this process goes on when the child has executed or ended, and is done with its stack and with `failed`.
    let pid = unsafe { clone(live, stack.usable(), flags, Some(libc::SIGCHLD)) }.context("fork")?;
    // Neither of the two is ever refused, and the child is there.
    let _ = set_dumpable_behavior(before);
    match failed {
        None => Ok(pid),
        Some(error) => {
            nix::sys::wait::waitpid(pid, None).context("waitpid")?;
            Err(SpawnError::of(&error).into())
        }
    }
}

/// Memory for the child of [`spawn`] to call functions on. What it leaves alone is never taken, and below it lies a page that
/// ends whoever touches it.
struct Stack(NonNull<c_void>);

impl Stack {
    const SIZE: usize = 256 << 10;
    const GUARD: usize = 64 << 10; // of the largest pages that there are

    fn new() -> Result<Self> {
        let all = NonZeroUsize::new(Self::SIZE + Self::GUARD).context("no stack at all")?;
        // SAFETY: new memory, where the kernel has room; the guard is a part of it that nobody uses.
        unsafe {
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_STACK;
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let stack = Self(mmap_anonymous(None, all, access, flags).context("mmap a stack")?);
            mprotect(stack.0, Self::GUARD, ProtFlags::PROT_NONE).context("mprotect")?;
            Ok(stack)
        }
    }

    fn usable(&mut self) -> &mut [u8] {
        // SAFETY: it was mapped so, all zero, and lives as long as `self`.
        unsafe { slice::from_raw_parts_mut(self.0.as_ptr().cast::<u8>().add(Self::GUARD), Self::SIZE) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to it any more. A failure would leave it mapped.
        let _ = unsafe { munmap(self.0, Self::SIZE + Self::GUARD) };
    }
}

impl SpawnError {
    fn of(error: &anyhow::Error) -> Self {
        Self { errno: error.chain().find_map(errno_of).unwrap_or(0), message: format!("{error:#}") }
    }
}

fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let nix = error.downcast_ref::<Errno>().map(|errno| *errno as i32);
    let rustix = || error.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error());
    let std = || error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    nix.or_else(rustix).or_else(std)
}

/// Makes `fds` the descriptors 0, 1, 2, … of this process, open across execve, and all others
/// close-on-exec. Only for a child before its execve: whoever owned those low numbers here is left with
/// somebody else's.
pub fn place_fds(fds: &[BorrowedFd<'_>]) -> Result<()> {
    let first = OUT_OF_THE_WAY.max(fds.len() as RawFd);
    let in_place = |(number, fd): (usize, &BorrowedFd<'_>)| fd.as_raw_fd() == number as RawFd;
    // The standard streams alone: they came through an execve, and go through the next one.
    if fds.len() <= 3 && fds.iter().enumerate().all(in_place) {
        return close_range(fds.len() as u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    // First all away, then all down: a source may be the target of an earlier one.
    let away: Vec<OwnedFd> = fds
        .iter()
        .map(|fd| fcntl_dupfd_cloexec(fd, first).context("fcntl(F_DUPFD_CLOEXEC)"))
        .collect::<Result<_>>()?;
    for (number, fd) in away.iter().enumerate() {
        // SAFETY: plain numbers; by contract nothing that owns a low one is used again.
        let rc = unsafe { libc::dup2(fd.as_raw_fd(), number as RawFd) };
        Errno::result(rc).with_context(|| format!("dup2 to {number}"))?;
    }
    close_range(fds.len() as u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor of this process but `kept`. For a process that goes on after a clone and must
/// not hold on to what its parent had open: a host directory's descriptor is a way out of any root
/// directory (CVE-2024-21626). Whatever owned the others is left with stale numbers.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> Result<()> {
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    numbers.sort_unstable();
    let mut from = 0;
    for number in numbers {
        if number > from {
            close_range(from, number - 1, 0)?;
        }
        from = number + 1;
    }
    close_range(from, u32::MAX, 0)
}

/// Makes stdin, stdout and stderr copies of `file`.
pub fn replace_stdio(file: BorrowedFd<'_>) -> Result<()> {
    for number in 0..=2 {
        // SAFETY: plain numbers; the standard streams hold no state that a new file would contradict.
        Errno::result(unsafe { libc::dup2(file.as_raw_fd(), number) }).context("dup2")?;
    }
    Ok(())
}

fn close_range(first: u32, last: u32, flags: u32) -> Result<()> {
    // SAFETY: plain numbers; by contract of the callers nothing that owns one of them is used again.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    Errno::result(rc).map(drop).with_context(|| format!("close_range({first}, {last})"))
}

/// Blocks no signal. For a child of a process that has called [`block_signals`]: the actions are the default ones
/// since then, and a fork copies them.
pub fn unblock_signals() -> Result<()> {
    SigSet::empty().thread_set_mask().context("sigprocmask")
}

/// Gives every ignored signal its default action and blocks all of them; they stay pending for a signalfd(2), also
/// those that were pending before.
pub fn block_signals() -> Result<()> {
    SigSet::all().thread_set_mask().context("sigprocmask")?;
    /// `struct sigaction` as the kernel has it, large enough on every architecture: all zero is SIG_DFL.
    const DEFAULT: [u64; 4] = [0; 4];
    let ignored = ignored_signals();
    for number in (1..=64).filter(|number| ignored & 1 << (number - 1) != 0) {
        // SAFETY: DEFAULT outlives the call and runs no code of ours. SIGKILL and SIGSTOP answer EINVAL, which
        // changes nothing. Not through the C library: it hides the numbers 32 and 33, which a parent may
        // have ignored as well as any other.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, DEFAULT.as_ptr(), 0, 8) };
    }
    Ok(())
}

/// The signals that this process ignores, as a mask: of all actions only this one survives an execve. All of them
/// when /proc does not tell.
fn ignored_signals() -> u64 {
    let status = super::fs::read_text_at_once("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{SigHandler, Signal};
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::sync::Mutex;

    /// One at a time: a sibling's child would hold the pipes of this one open for a while.
    static ONE: Mutex<()> = Mutex::new(());

    fn sh(script: &str) -> Result<Infallible> {
        let words = [c"sh".to_owned(), c"-c".to_owned(), std::ffi::CString::new(script)?];
        Ok(nix::unistd::execve(c"/bin/sh", &words, &[] as &[std::ffi::CString])?)
    }

    #[test]
    fn an_exec_failure_comes_back_with_errno_and_context() {
        let _one = ONE.lock();
        let error = spawn(|| {
            let words: [std::ffi::CString; 0] = [];
            nix::unistd::execve(c"/nonexistent", &words, &words).context("execute /nonexistent")
        })
        .unwrap_err();
        let error = error.downcast_ref::<SpawnError>().unwrap();
        assert_eq!(error.errno, libc::ENOENT);
        assert!(error.message.starts_with("execute /nonexistent: ENOENT"), "{error}");
    }

    #[test]
    fn what_the_child_does_to_the_dumpable_flag_is_undone() {
        let _one = ONE.lock();
        let before = dumpable_behavior().unwrap();
        for (flag, other) in [
            (DumpableBehavior::Dumpable, DumpableBehavior::NotDumpable),
            (DumpableBehavior::NotDumpable, DumpableBehavior::Dumpable),
        ] {
            set_dumpable_behavior(flag).unwrap();
            let pid = spawn(|| {
                set_dumpable_behavior(other)?;
                sh("exit 7")
            })
            .unwrap();
            assert_eq!(dumpable_behavior().unwrap(), flag);
            let ended = nix::sys::wait::waitpid(pid, None).unwrap();
            assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(pid, 7));
        }
        set_dumpable_behavior(before).unwrap();
    }

    #[test]
    fn the_program_has_the_descriptors_given_and_no_other() {
        let _one = ONE.lock();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let leak = rustix::io::dup(&null).unwrap(); // not close-on-exec
        let pid = spawn(|| {
            place_fds(&[null.as_fd(), writer.as_fd(), null.as_fd(), writer.as_fd()])?;
            sh("cd /proc/self/fd; echo * >&3")
        })
        .unwrap();
        drop((writer, leak));
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        nix::sys::wait::waitpid(pid, None).unwrap();
        // sh itself opens the directory that it lists.
        assert!(text.starts_with("0 1 2 3"), "{text}");
        assert!(text.split_whitespace().count() <= 5, "{text}");
    }

    #[test]
    fn the_program_has_default_signals() {
        let _one = ONE.lock();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let pid = spawn(|| {
            // SAFETY: SIG_IGN runs no code of ours.
            unsafe { nix::sys::signal::signal(Signal::SIGHUP, SigHandler::SigIgn)? };
            block_signals()?;
            unblock_signals()?;
            place_fds(&[writer.as_fd(), writer.as_fd(), writer.as_fd()])?;
            sh("grep -E 'Sig(Blk|Ign)' /proc/self/status")
        })
        .unwrap();
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        nix::sys::wait::waitpid(pid, None).unwrap();
        assert_eq!(text.matches("0000000000000000").count(), 2, "{text}");
    }
}
