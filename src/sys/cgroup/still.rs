//! Whether anybody in a group can still run code of its own, also where a task waits in the kernel for something that never
//! comes: a dead disk, a server of NFS, memory that nobody gives back. proc_pid_stat(5), fields 3, 9 and 31.
//!
//! The surprises: such a task (state D) takes no signal and joins no freeze, so `frozen` is never reported of its group, and its
//! pid namespace's first process does not end. But what was asked of it is done before it returns to its own code. One
//! system call that it has begun may be finished, and no other one begun.

use std::{fs, io, path::PathBuf};

use anyhow::{Context, Result};
use nix::{errno::Errno, sys::signal::Signal, unistd::Pid};

use super::{Cgroup, os};

/// `PF_EXITING` of the kernel's sched.h: it has begun to end, and never leaves the kernel again.
const EXITING: u64 = 0x4;

impl Cgroup {
    /// For a group that was asked to freeze: whether nobody in it runs until it thaws. Who is frozen already sleeps; who sleeps
    /// otherwise was woken, and runs.
    pub fn is_still(&self) -> Result<bool> {
        self.is_each(|task| task.state != 'R')
    }

    /// For a group that was killed: whether nobody in it will run again. Somebody may be left who waits in the kernel, and takes
    /// the signal after that.
    pub fn is_dead(&self) -> Result<bool> {
        let kill = 1 << (Signal::SIGKILL as u64 - 1);
        self.is_each(|task| {
            let waits = task.state == 'D' && task.pending & kill != 0;
            waits || matches!(task.state, 'Z' | 'X') || task.flags & EXITING != 0
        })
    }

    fn is_each(&self, is: impl Fn(&Task) -> bool) -> Result<bool> {
        for pid in self.processes()? {
            if !tasks(pid)?.iter().all(&is) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// One thread.
#[derive(Debug, PartialEq)]
struct Task {
    state: char,
    flags: u64,
    /// The signals that wait for it, the first at bit 0.
    pending: u64,
}

impl Task {
    fn parse(stat: &str) -> Option<Task> {
        // The name stands in parentheses and may hold any character.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3);
        Some(Task {
            state: field(3)?.chars().next()?,
            flags: field(9)?.parse().ok()?,
            pending: field(31)?.parse().ok()?,
        })
    }
}

/// The threads of a process; none of one that has ended meanwhile.
fn tasks(pid: Pid) -> Result<Vec<Task>> {
    let place = PathBuf::from(format!("/proc/{pid}/task"));
    let has_ended = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
    };
    let entries = match fs::read_dir(&place) {
        Err(error) if has_ended(&error) => return Ok(Vec::new()),
        entries => entries.map_err(os).with_context(|| format!("list {}", place.display()))?,
    };
    let mut tasks = Vec::new();
    for path in entries.flatten().map(|entry| entry.path().join("stat")) {
        let stat = match crate::sys::fs::read(&path) {
            Err(error) if has_ended(&error) => continue,
            stat => stat.map_err(os).with_context(|| format!("read {}", path.display()))?,
        };
        let task = Task::parse(&String::from_utf8_lossy(&stat));
        tasks.push(task.with_context(|| format!("{} has not what it should", path.display()))?);
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_read_whatever_its_name() {
        let stat =
            "42 (a) R b) D 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 1 2 3 4 5 6 7 8 256 0 0 0 1";
        assert_eq!(Task::parse(stat), Some(Task { state: 'D', flags: 4_194_560, pending: 256 }));
        assert_eq!(Task::parse("42 (a"), None);
        let own = tasks(Pid::this()).unwrap();
        assert!(own.iter().any(|task| task.state == 'R' && task.flags & EXITING == 0), "{own:?}");
    }
}
