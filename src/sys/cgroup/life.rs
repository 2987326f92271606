//! Who is in a group, and stopping all of them at once: cgroup.procs, cgroup.events, cgroup.kill, cgroup.freeze
//! (cgroup-v2.rst), cgroup-v1/freezer-subsystem.rst.
//!
//! The surprises: a kill that walks a list of pids races with fork, cgroup.kill (Linux 5.14) does not; a task
//! frozen by v2 still dies of SIGKILL, one frozen by the v1 freezer dies only when thawed; freezing is
//! asynchronous, so the state is read until it has happened, which it never has where a task waits in the kernel (`still`).

use std::fs::File;
use std::io;
use std::os::{fd::AsFd, unix::fs::FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cgroups_rs::freezer::{FreezerController, FreezerState};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Cgroup, Controller, crate_error, os, stats};

/// How long all tasks may take to stop at a freeze.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);
/// From when on a freeze is looked into that does not finish.
const FREEZE_DOUBT: Duration = Duration::from_millis(500);
/// How long a kill by single signals may chase processes that fork.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at something that v1 gives no event for.
const V1_INTERVAL: Duration = Duration::from_millis(5);

impl Cgroup {
    /// The processes in the group and in groups below it, as pids of the reader's pid namespace. An absent group
    /// has none.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let mut pids = Vec::new();
        collect_processes(&self.listing_dir()?, &mut pids)?;
        Ok(pids)
    }

    /// Whether a live process is in the group or below it (a zombie is none). An absent group has none.
    pub fn populated(&self) -> Result<bool> {
        match self.events()? {
            Some(events) => Ok(events.is("populated")?),
            None => Ok(!self.processes()?.is_empty()),
        }
    }

    /// Waits until no live process is left: woken by the kernel (POLLPRI on cgroup.events), on v1 by looking again.
    /// False when `timeout` passed first.
    pub fn wait_empty(&self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        match self.events()? {
            Some(mut events) => events.wait("populated", false, deadline),
            None => wait_until(deadline, || Ok(self.processes()?.is_empty())),
        }
    }

    /// Sends SIGKILL to every process of the group and of groups below it; an absent group is Ok. Returns when the
    /// signals are sent: [`wait_empty`](Self::wait_empty) tells when they have worked.
    pub fn kill(&self) -> Result<()> {
        if let Some(dir) = self.unified_dir() {
            let file = dir.join("cgroup.kill");
            match write_existing(&file, "1") {
                Err(Errno::ENOENT) if !dir.exists() => return Ok(()),
                Err(Errno::ENOENT) => {} // Linux before 5.14: kill one by one
                result => return result.with_context(|| format!("write 1 to {}", file.display())),
            }
        }
        self.kill_each()
    }

    /// SIGKILL by pid until nobody new comes. Frozen for the first round if that is possible, so that nothing forks
    /// away; a freeze that does not finish stops most of them, and the rounds do the rest.
    fn kill_each(&self) -> Result<()> {
        let frozen = self.can_freeze();
        if frozen {
            let _ = self.freeze();
        }
        let deadline = Instant::now() + KILL_PATIENCE;
        let mut killed = Vec::new();
        let all = wait_until(deadline, || {
            let before = killed.len();
            for pid in self.processes()? {
                match kill(pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno).with_context(|| format!("kill process {pid}")),
                }
                if !killed.contains(&pid) {
                    killed.push(pid);
                }
            }
            if frozen && !killed.is_empty() {
                self.thaw()?; // a v1-frozen task takes its SIGKILL only when it runs again
            }
            Ok(killed.len() == before)
        })?;
        if !all {
            bail!("cgroup {}: it does not stop to fork: {:?}", self.relative.display(), self.processes()?);
        }
        Ok(())
    }

    /// Stops every task of the group, and returns when they have stopped. They can't see it, nor catch it.
    ///
    /// # Errors
    /// When the kernel has neither cgroup.freeze nor a v1 freezer, or a task does not stop within 5 s.
    pub fn freeze(&self) -> Result<()> {
        self.done(true, self.set_frozen(true, FREEZE_PATIENCE)?)
    }

    /// As [`freeze`](Self::freeze), and returns as well when those who have not stopped wait in the kernel: none of them runs
    /// before the group thaws.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub fn hold_still(&self) -> Result<()> {
        let deadline = Instant::now() + FREEZE_PATIENCE;
        loop {
            let is_still = self.set_frozen(true, FREEZE_DOUBT)? || self.is_still()?;
            if is_still || Instant::now() >= deadline {
                return self.done(true, is_still);
            }
        }
    }

    /// Lets a frozen group go on.
    pub fn thaw(&self) -> Result<()> {
        self.done(false, self.set_frozen(false, FREEZE_PATIENCE)?)
    }

    fn done(&self, frozen: bool, done: bool) -> Result<()> {
        let verb = if frozen { "freeze" } else { "thaw" };
        ensure!(done, "cgroup {}: it did not {verb} within {FREEZE_PATIENCE:?}", self.relative.display());
        Ok(())
    }

    /// Whether every task of the group is stopped by a freeze. An absent group is not.
    pub fn frozen(&self) -> Result<bool> {
        if let Some(events) = self.events()? {
            return events.is("frozen");
        }
        let Ok(dir) = self.dir_of(Controller::Freezer) else { return Ok(false) };
        let file = dir.join("freezer.state");
        match crate::sys::fs::read_to_string(&file) {
            Ok(state) => Ok(state.trim() == "FROZEN"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(os(error)).with_context(|| format!("read {}", file.display())),
        }
    }

    fn can_freeze(&self) -> bool {
        match self.unified_dir() {
            Some(dir) => dir.join("cgroup.freeze").exists(),
            None => self.hierarchy.mount_of(Controller::Freezer).is_some(),
        }
    }

    /// Asks for it; true if it has happened within `patience`.
    fn set_frozen(&self, frozen: bool, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        let Some(dir) = self.unified_dir() else { return self.set_frozen_v1(frozen, deadline) };
        let file = dir.join("cgroup.freeze");
        write_existing(&file, if frozen { "1" } else { "0" })
            .with_context(|| format!("write to {}", file.display()))?;
        self.events()?.map_or(Ok(false), |mut events| events.wait("frozen", frozen, deadline))
    }

    fn set_frozen_v1(&self, frozen: bool, deadline: Instant) -> Result<bool> {
        let dir = self.dir_of(Controller::Freezer)?;
        let freezer = FreezerController::new(dir.clone(), false);
        // The request is repeated: a group can hang in FREEZING when a task forks at the wrong moment.
        let attempt = || {
            if frozen { freezer.freeze() } else { freezer.thaw() }?;
            Ok(match freezer.state()? {
                FreezerState::Frozen => frozen,
                FreezerState::Thawed => !frozen,
                FreezerState::Freezing => false,
            })
        };
        wait_until(deadline, || {
            attempt().map_err(crate_error).with_context(|| format!("freezer.state of {}", dir.display()))
        })
    }

    /// The directory whose cgroup.procs is asked: v2's, else memory's.
    fn listing_dir(&self) -> Result<PathBuf> {
        self.unified_dir().map_or_else(|| self.dir_of(Controller::Memory), Ok)
    }

    fn events(&self) -> Result<Option<Events>> {
        let Some(dir) = self.unified_dir() else { return Ok(None) };
        let path = dir.join("cgroup.events");
        let file = match File::open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(os(error)).with_context(|| format!("open {}", path.display())),
        };
        Ok(Some(Events { file, path }))
    }
}

/// An open cgroup.events; no file when the group is absent, which counts as neither populated nor frozen.
struct Events {
    file: Option<File>,
    path: PathBuf,
}

impl Events {
    fn is(&self, field: &str) -> Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let mut text = [0; 256];
        match file.read_at(&mut text, 0) {
            Ok(len) => Ok(stats::field(&String::from_utf8_lossy(&text[..len]), field) == Some(1)),
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(false), // removed meanwhile
            Err(error) => Err(os(error)).with_context(|| format!("read {}", self.path.display())),
        }
    }

    /// Waits until `field` is `wanted`; false at the deadline. Reading re-arms the poll, so it comes first.
    fn wait(&mut self, field: &str, wanted: bool, deadline: Instant) -> Result<bool> {
        loop {
            if self.is(field)? == wanted {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(file) = self.file.as_ref().filter(|_| !left.is_zero()) else { return Ok(false) };
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            // Rounded up, so that the last wait does not spin; one beyond the type's range is only cut.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).with_context(|| format!("poll {}", self.path.display())),
            }
        }
    }
}

/// Looks again every few milliseconds; false at the deadline.
fn wait_until(deadline: Instant, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(V1_INTERVAL);
    }
}

/// Writes without O_CREAT, which on a cgroup file system turns "no such file" into EACCES.
fn write_existing(file: &Path, text: &str) -> Result<(), Errno> {
    let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let mut file = File::options().write(true).open(file).map_err(errno)?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(errno)
}

fn collect_processes(dir: &Path, pids: &mut Vec<Pid>) -> Result<()> {
    let absent = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
    };
    let text = match crate::sys::fs::read_to_string(dir.join("cgroup.procs")) {
        Err(error) if absent(&error) => return Ok(()),
        text => text.map_err(os).with_context(|| format!("read {}/cgroup.procs", dir.display()))?,
    };
    pids.extend(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw));
    let entries = match std::fs::read_dir(dir) {
        Err(error) if absent(&error) => return Ok(()),
        entries => entries.map_err(os).with_context(|| format!("list cgroup {}", dir.display()))?,
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), pids)?;
        }
    }
    Ok(())
}
