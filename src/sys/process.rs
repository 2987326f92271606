//! Processes: pidfd_open(2), and the identity of a process beyond its number.
//!
//! The rule that surprises people: a pid is reused. A process is named here by pid *and* start time
//! (proc_pid_stat(5), field 22), checked again through a pidfd that keeps the number from being reused.

use std::{
    fs::{self, Metadata},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Once, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitStatus, waitpid},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// A process that can't be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Clock ticks between boot and its start.
    pub start_time: u64,
}

impl ProcessId {
    pub fn of(pid: Pid) -> Result<Self> {
        let start_time = start_time(pid.as_raw())?.with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid: pid.as_raw(), start_time })
    }

    /// A pidfd for the process if it is still alive (not even a zombie).
    pub fn open(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("pidfd_open {}", self.pid)),
        };
        // The descriptor was opened first: if the start time still fits, it is this very process.
        let same = start_time(self.pid)? == Some(self.start_time);
        Ok((same && !has_ended(pidfd.as_fd(), Duration::ZERO)?).then_some(pidfd))
    }
}

fn start_time(pid: i32) -> Result<Option<u64>> {
    let Ok(stat) = super::fs::read_text_at_once(format!("/proc/{pid}/stat")) else { return Ok(None) };
    // The command name stands in parentheses and may hold any character, so count from its end.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    match after_name.split_whitespace().nth(19).map(str::parse) {
        Some(Ok(ticks)) => Ok(Some(ticks)),
        _ => bail!("/proc/{pid}/stat has no start time"),
    }
}

/// Waits until the process has ended, at most `timeout`. Works for any process, not just a child.
pub fn has_ended(pidfd: BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno).context("poll a pidfd"),
            Ok(ready) => return Ok(ready > 0),
        }
    }
}

/// Sends a signal to the very process of the pidfd; false if it is gone.
pub fn signal(pidfd: BorrowedFd<'_>, signal: nix::sys::signal::Signal) -> Result<bool> {
    // SAFETY: plain integers; a null siginfo asks for the usual one.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as i32,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    sent(rc, signal)
}

/// As [`signal`], with a number that the receiver finds in `ssi_int` of its signalfd(2), next to an `ssi_code` of
/// `SI_QUEUE` (sigqueue(3)).
pub fn signal_with(pidfd: BorrowedFd<'_>, signal: nix::sys::signal::Signal, number: i32) -> Result<bool> {
    /// `siginfo_t` as it is for SI_QUEUE on 64-bit machines; libc has no names for the fields behind the first three.
    #[repr(C)]
    struct Queued {
        signo: i32,
        errno: i32,
        code: i32,
        gap: i32,
        pid: i32,
        uid: u32,
        number: i32,
        rest: [i32; 25],
    }
    const { assert!(size_of::<Queued>() == size_of::<libc::siginfo_t>()) };
    let info = Queued {
        signo: signal as i32,
        errno: 0,
        code: libc::SI_QUEUE,
        gap: 0,
        pid: Pid::this().as_raw(),
        uid: nix::unistd::getuid().as_raw(),
        number,
        rest: [0; 25],
    };
    // SAFETY: `info` is of the size that the kernel reads, wholly set, and outlives the call.
    let rc = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), info.signo, &raw const info, 0)
    };
    sent(rc, signal)
}

fn sent(rc: libc::c_long, signal: nix::sys::signal::Signal) -> Result<bool> {
    match Errno::result(rc) {
        Ok(_) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(errno).with_context(|| format!("pidfd_send_signal {signal}")),
    }
}

/// The process of these `candidates` that has the pid `inside` in the pid namespace of `init`, a child of which it is:
/// its pid here, and a pidfd.
pub fn open_inside(candidates: &[Pid], init: Pid, inside: i32) -> Result<Option<(Pid, OwnedFd)>> {
    for &pid in candidates {
        let Some(number) = rustix::process::Pid::from_raw(pid.as_raw()) else { continue };
        let pidfd = match rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => continue,
            Err(errno) => return Err(errno).with_context(|| format!("pidfd_open {pid}")),
        };
        let Ok(status) = super::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        // Numbers may repeat: the descriptor was opened before the file was read, and must be alive after it.
        if is_child_inside(&status, init, inside) && !has_ended(pidfd.as_fd(), Duration::ZERO)? {
            return Ok(Some((pid, pidfd)));
        }
    }
    Ok(None)
}

/// proc_pid_status(5): `NSpid` has one number for each pid namespace, the innermost last.
fn is_child_inside(status: &str, init: Pid, inside: i32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let parent = field("PPid:").and_then(|text| text.trim().parse().ok());
    let innermost = field("NSpid:").and_then(|text| text.split_whitespace().last()?.parse().ok());
    parent == Some(init.as_raw()) && innermost == Some(inside)
}

/// Waits for a child and gives its exit code as a shell would: 128 + the signal that ended it.
pub fn exit_code_of(child: Pid) -> Result<i32> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).with_context(|| format!("wait for process {child}")),
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) => {}
        }
    }
}

/// A process with this name (proc_pid_comm(5)) whose working directory is the one that is meant. As this process sees them:
/// those of its own pid namespace and of the ones below it. One that ends meanwhile is none.
pub fn in_directory(name: &str, is_meant: impl Fn(&Metadata) -> bool) -> io::Result<Option<i32>> {
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        let is_named = || fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        if fs::metadata(process.join("cwd")).is_ok_and(|cwd| is_meant(&cwd)) && is_named() {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// What a program that begins with [`begin_with`](crate::begin_with) needs of Rust's own preparations.
///
/// The standard streams are there, or the first file would be one, and what is said would end up in it. And writing to a closed
/// pipe ends this process, as it does every other program, also where whoever started it ignores that.
pub fn prepare() {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: three entries, which outlive the call.
    unsafe { libc::poll(streams.as_mut_ptr(), 3, 0) };
    for _ in streams.iter().filter(|stream| stream.revents & libc::POLLNVAL != 0) {
        // SAFETY: the path is a C string. The lowest number that is free is that of the stream.
        unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
    }
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe {
        nix::sys::signal::signal(nix::sys::signal::Signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl)
    };
}

/// Has writing to a closed pipe fail with EPIPE and nothing else, from now on. Programs that are started have the default again.
pub fn outlive_closed_pipe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: nor does ignoring.
        let _ = unsafe {
            nix::sys::signal::signal(nix::sys::signal::Signal::SIGPIPE, nix::sys::signal::SigHandler::SigIgn)
        };
    });
}

/// The kernel's name for this boot (random(4)): what was made in another one is gone. Read once: no process lives
/// through a boot.
pub fn boot_id() -> Result<&'static str> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known);
    }
    let path = "/proc/sys/kernel/random/boot_id";
    let text = super::fs::read_text_at_once(path).with_context(|| format!("read {path}"))?;
    Ok(KNOWN.get_or_init(|| text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_alive(process: ProcessId) -> bool {
        process.open().unwrap().is_some()
    }

    #[test]
    fn a_process_is_recognised_and_a_reused_number_is_not() {
        let me = ProcessId::of(Pid::this()).unwrap();
        assert!(is_alive(me));
        let other = ProcessId { start_time: me.start_time + 1, ..me };
        assert!(!is_alive(other));
        assert!(!is_alive(ProcessId { pid: i32::MAX, start_time: 1 }));
    }

    #[test]
    fn a_process_is_found_by_its_number_inside() {
        let status = "Name:\tpostgres\nPid:\t900\nPPid:\t800\nNSpid:\t900\t7\n";
        assert!(is_child_inside(status, Pid::from_raw(800), 7));
        assert!(!is_child_inside(status, Pid::from_raw(800), 900));
        assert!(!is_child_inside(status, Pid::from_raw(1), 7));
        assert!(!is_child_inside("", Pid::from_raw(800), 7));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = ProcessId::of(Pid::from_raw(child.id() as i32)).unwrap();
        let fd = rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(id.pid).unwrap(),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        assert!(has_ended(fd.as_fd(), Duration::from_secs(5)).unwrap());
        assert!(!is_alive(id));
        child.wait().unwrap();
    }
}
