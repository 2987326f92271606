//! Control groups: one group with memory, CPU and task limits, on v2, hybrid and v1 hosts. cgroups(7),
//! Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
//!
//! The rules that surprise people:
//!
//! * A limit is a file, and a write that "worked" proves nothing: values are rounded, a parent may lack the
//!   controller, v1 refuses combinations. Everything written here is read back ([`Cgroup::apply`]).
//! * A v2 group has either processes or children with controllers ("no internal processes"), so enabling
//!   controllers in a group where somebody sits is EBUSY.
//! * Joining by writing cgroup.procs costs milliseconds; being born there (clone3 with CLONE_INTO_CGROUP and
//!   [`Cgroup::dir_fd`]) costs nothing, and on v1 a thread can move itself ([`enter`]). **libc's `CLONE_INTO_CGROUP` is 0 on Linux** (the value does not fit
//!   its type), which puts the child silently elsewhere: define it as `0x2_0000_0000u64`, and check with
//!   [`Cgroup::verify`].
//! * On a hybrid host one group is several directories: one in each v1 hierarchy that limits something, and
//!   one in the cgroup2 mount for kill, freeze and events.
//!
//! # What cgroups-rs does here
//!
//! Its typed controllers set the limits that they know (`apply.rs`) and drive the v1 freezer. It does not create or delete groups: its `create` only logs a failed mkdir, accepts a
//! directory that exists, and ignores a refused cgroup.subtree_control, and its `delete` recurses into
//! whatever it finds. Its getters turn a missing file into 0, and its whole-group calls (`apply`, `builder`)
//! drop errors of single limits, so those are not used either.

mod apply;
mod hierarchy;
mod life;
mod limits;
mod stats;
mod still;

pub use hierarchy::{Controller, Hierarchy, Kind, Missing, Mount, detect};
pub use limits::{CpuQuota, Limits, UNLIMITED, Unmet, Value, Write, unmet, writes};
pub use stats::Stats;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkdir};

/// How long a directory may answer EBUSY to rmdir after its last process is gone.
const RMDIR_PATIENCE: Duration = Duration::from_millis(500);

/// A group, by its path below the root of every hierarchy; it need not exist.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    relative: PathBuf,
}

impl Cgroup {
    /// Names a group; touches nothing.
    ///
    /// # Errors
    /// When `relative` is not a plain relative path (`a/b/c`, no `..`).
    pub fn new(hierarchy: &Hierarchy, relative: impl AsRef<Path>) -> Result<Cgroup> {
        let relative = relative.as_ref();
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if relative.as_os_str().is_empty() || !plain {
            bail!("`{}` is not a relative cgroup path", relative.display());
        }
        Ok(Cgroup { hierarchy: hierarchy.clone(), relative: relative.to_owned() })
    }

    /// The path below the mount roots.
    pub fn relative(&self) -> &Path {
        &self.relative
    }

    /// The hierarchies that this group lives in.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Every directory of the group: v1 ones first, the v2 one last.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.hierarchy.mounts().iter().map(|mount| mount.path.join(&self.relative)).collect()
    }

    /// The directory that holds `controller`'s files.
    pub fn dir_of(&self, controller: Controller) -> Result<PathBuf> {
        let mount = self.hierarchy.mount_of(controller);
        mount
            .map(|m| m.path.join(&self.relative))
            .with_context(|| format!("no cgroup controller {controller}"))
    }

    /// The directory in the cgroup2 mount, if there is such a mount.
    pub fn unified_dir(&self) -> Option<PathBuf> {
        self.hierarchy.unified().map(|mount| mount.path.join(&self.relative))
    }

    /// Whether any of its directories exists.
    pub fn exists(&self) -> bool {
        self.directories().iter().any(|dir| dir.exists())
    }

    /// Makes the group: every directory, parents included, and on v2 the controllers enabled in each parent's
    /// `cgroup.subtree_control` (read back). What this call made is removed again when it fails.
    ///
    /// # Errors
    /// `Errno::EEXIST` at the root of the chain when one of its directories exists already. A v2 parent that
    /// holds processes is EBUSY, and the message names them.
    pub fn create(&self) -> Result<()> {
        let mut made = Vec::new();
        let result = self.hierarchy.mounts().iter().try_for_each(|mount| self.create_in(mount, &mut made));
        if result.is_err() {
            // Best effort: the first error is the one to tell, and a directory in use is not ours any more.
            made.iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
        }
        result
    }

    fn create_in(&self, mount: &Mount, made: &mut Vec<PathBuf>) -> Result<()> {
        let dir = mount.path.join(&self.relative);
        let controllers = if mount.v2 { self.hierarchy.controllers_of(mount) } else { Vec::new() };
        let make = || mkdir(&dir, Mode::from_bits_truncate(0o755));
        let mut prepare = || match dir.parent() {
            Some(parent) => make_parent(parent, &mount.path, &controllers, made),
            None => Ok(()),
        };
        // A v2 parent has to hand its controllers on; on v1 it only has to be there.
        if !controllers.is_empty() {
            prepare()?;
        }
        let result = match make() {
            Err(Errno::ENOENT) => {
                prepare()?;
                make()
            }
            result => result,
        };
        result.with_context(|| format!("create cgroup {}: mkdir", dir.display()))?;
        made.push(dir);
        Ok(())
    }

    /// What [`create`](Self::create) writes on v2 so that the group has its controllers: files and texts, from the top down.
    pub fn delegations(&self) -> Vec<(PathBuf, String)> {
        let mut writes = Vec::new();
        for mount in self.hierarchy.mounts().into_iter().filter(|mount| mount.v2) {
            let request = request(&self.hierarchy.controllers_of(mount));
            let above = self.relative.ancestors().skip(1).filter(|_| !request.is_empty());
            let file =
                |above: &Path| (mount.path.join(above).join("cgroup.subtree_control"), request.clone());
            writes.extend(above.map(file));
        }
        writes.reverse();
        writes
    }

    /// A descriptor of the group's v2 directory for `clone_args.cgroup` of clone3(2); `None` on a v1 host.
    pub fn dir_fd(&self) -> Result<Option<OwnedFd>> {
        let Some(dir) = self.unified_dir() else { return Ok(None) };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(&dir, flags, Mode::empty()).with_context(|| format!("open {}", dir.display()))?;
        Ok(Some(fd))
    }

    /// The `tasks` files of the group's v1 directories, which nothing is born in: for [`enter`]. Opened by whoever makes
    /// the process, because it may not see them any more.
    pub fn tasks(&self) -> Result<Vec<File>> {
        let v1 = self.hierarchy.mounts().into_iter().filter(|mount| !mount.v2);
        let open = |mount: &Mount| {
            let file = mount.path.join(&self.relative).join("tasks");
            File::options()
                .write(true)
                .open(&file)
                .map_err(os)
                .with_context(|| format!("open {}", file.display()))
        };
        v1.map(open).collect()
    }

    /// Reads /proc/PID/cgroup and checks that `pid` is in this group in every hierarchy.
    ///
    /// # Errors
    /// Names the first hierarchy in which it is elsewhere, and where it is.
    pub fn verify(&self, pid: Pid) -> Result<()> {
        let there = Membership::read(pid)?;
        for mount in self.hierarchy.mounts() {
            let wanted = mount.proc_path(&self.relative);
            let got = there.path_in(mount, &self.hierarchy);
            if got != Some(&wanted) {
                let got = got.map_or("no group at all", String::as_str);
                let mount = mount.path.display();
                bail!(
                    "process {pid} is not in its cgroup: below {mount} wanted {wanted}, /proc/{pid}/cgroup says {got}"
                );
            }
        }
        Ok(())
    }

    /// Removes the group and the groups that its processes may have made below it. Absent is Ok.
    ///
    /// # Errors
    /// EBUSY, with the processes named, when some are still in it after half a second.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + RMDIR_PATIENCE;
        self.directories().iter().try_for_each(|dir| remove_tree(dir, deadline))
    }

    /// Removes the group's parents, from the nearest up to and including `top`, as long as they are empty.
    ///
    /// # Errors
    /// When `top` is not a parent of this group, or rmdir fails for another reason than "in use".
    pub fn prune(&self, top: impl AsRef<Path>) -> Result<()> {
        let top = top.as_ref();
        if top.as_os_str().is_empty() || top == self.relative || !self.relative.starts_with(top) {
            bail!("cgroup {} is not a parent of {}", top.display(), self.relative.display());
        }
        for parent in self.relative.ancestors().skip(1).take_while(|p| p.starts_with(top)) {
            for mount in self.hierarchy.mounts() {
                let dir = mount.path.join(parent);
                match nix_rmdir(&dir) {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    // On a read-only mount that is the answer for what is not there, too.
                    Err(Errno::EROFS) if !dir.exists() => {}
                    // Others are in it, in every hierarchy, and will come by here.
                    Err(Errno::EBUSY | Errno::ENOTEMPTY) => return Ok(()),
                    Err(errno) => {
                        return Err(errno).with_context(|| format!("remove cgroup {}", dir.display()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Sees to it that `dir` is there and hands `controllers` on to its children. Its own parents are only looked at
/// when it does not yet: a group has no more than its parent gives.
fn make_parent(dir: &Path, top: &Path, controllers: &[Controller], made: &mut Vec<PathBuf>) -> Result<()> {
    let there = match controllers {
        [] => dir.is_dir(),
        _ => match missing(dir, controllers) {
            Ok(missing) if missing.is_empty() => return Ok(()),
            Ok(_) => true,
            Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => false,
            Err(error) => return Err(error),
        },
    };
    if let Some(parent) = dir.parent().filter(|_| dir != top && (!there || !controllers.is_empty())) {
        make_parent(parent, top, controllers, made)?;
    }
    if !there {
        match mkdir(dir, Mode::from_bits_truncate(0o755)) {
            Ok(()) => made.push(dir.to_owned()),
            Err(Errno::EEXIST) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("create cgroup {}: mkdir", dir.display()));
            }
        }
    }
    enable(dir, controllers)
}

/// Those of `controllers` that the children of the v2 group `dir` don't have.
fn missing(dir: &Path, controllers: &[Controller]) -> Result<Vec<Controller>> {
    let now = read(&dir.join("cgroup.subtree_control"))?;
    let on = |c: &Controller| now.split_whitespace().any(|name| name == c.name());
    Ok(controllers.iter().copied().filter(|c| !on(c)).collect())
}

/// Moves the calling thread, the only one of its process, into the groups of these `tasks` files.
///
/// Writing a process id to cgroup.procs makes the kernel stop all forks and exits of the machine for a moment, and wait
/// 11 ms for that. A thread that moves itself can't do either meanwhile: 0.1 ms (since Linux 5.5). "0" is whoever
/// writes; a number would be looked up in a pid namespace.
pub fn enter(tasks: &[File]) -> Result<()> {
    tasks
        .iter()
        .try_for_each(|mut file| file.write_all(b"0"))
        .map_err(os)
        .context("write 0 to a cgroup's tasks file")
}

/// Enables `controllers` for the children of the v2 group `dir`, and reads that back.
fn enable(dir: &Path, controllers: &[Controller]) -> Result<()> {
    let wanted = if controllers.is_empty() { Vec::new() } else { missing(dir, controllers)? };
    if wanted.is_empty() {
        return Ok(()); // all that works where this file is not ours to write
    }
    let file = dir.join("cgroup.subtree_control");
    let request = request(&wanted);
    std::fs::write(&file, &request).map_err(os).with_context(|| refused(dir, &file, &request))?;
    let still = missing(dir, controllers)?;
    if !still.is_empty() {
        bail!("{}: wrote `{request}`, but it reads without {still:?}", file.display());
    }
    Ok(())
}

/// What to write to cgroup.subtree_control to enable these.
fn request(controllers: &[Controller]) -> String {
    controllers.iter().map(|c| format!("+{c}")).collect::<Vec<_>>().join(" ")
}

/// Why cgroup.subtree_control did not take `request`, with the processes that stand in the way.
fn refused(dir: &Path, file: &Path, request: &str) -> String {
    let pids = read(&dir.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<_> = pids.split_whitespace().collect();
    let mut message = format!("enable controllers: write `{request}` to {}", file.display());
    if !pids.is_empty() {
        message += &format!(
            " (processes {} are directly in this group; a v2 group has either processes or \
             controllers for its children: move them into a child group)",
            pids.join(", ")
        );
    }
    message
}

/// rmdir from the leaves upwards; a cgroup directory's files go with it.
fn remove_tree(dir: &Path, deadline: Instant) -> Result<()> {
    loop {
        match nix_rmdir(dir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            // Groups below it, or processes: it stays busy for some milliseconds after the last one was reaped.
            Err(Errno::EBUSY) if Instant::now() < deadline => {
                if !remove_children(dir, deadline)? {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            Err(errno) => {
                let pids = read(&dir.join("cgroup.procs")).unwrap_or_default();
                let pids = pids.split_whitespace().collect::<Vec<_>>().join(", ");
                return Err(errno).with_context(|| {
                    format!("remove cgroup {} (processes in it: [{pids}]): rmdir", dir.display())
                });
            }
        }
    }
}

/// Removes the groups below `dir`; false if there are none.
fn remove_children(dir: &Path, deadline: Instant) -> Result<bool> {
    let entries =
        std::fs::read_dir(dir).map_err(os).with_context(|| format!("list cgroup {}", dir.display()))?;
    let mut any = false;
    for entry in entries {
        let entry = entry.map_err(os).with_context(|| format!("list cgroup {}", dir.display()))?;
        if entry.file_type().map_err(os)?.is_dir() {
            remove_tree(&entry.path(), deadline)?;
            any = true;
        }
    }
    Ok(any)
}

fn nix_rmdir(dir: &Path) -> Result<(), Errno> {
    std::fs::remove_dir(dir).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// The lines of /proc/PID/cgroup: `ID:CONTROLLERS:PATH`, v2's being `0::PATH`.
struct Membership(Vec<(String, String)>);

impl Membership {
    fn read(pid: Pid) -> Result<Membership> {
        Ok(Self::parse(&read_record(Path::new(&format!("/proc/{pid}/cgroup")))?))
    }

    fn parse(text: &str) -> Membership {
        let line = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1).map(str::to_owned);
            Some((fields.next()?, fields.next()?))
        };
        Membership(text.lines().filter_map(line).collect())
    }

    /// The process's path in the hierarchy of `mount`, as the kernel prints it.
    fn path_in(&self, mount: &Mount, hierarchy: &Hierarchy) -> Option<&String> {
        let controllers = hierarchy.controllers_of(mount);
        let is_there = |names: &str| match mount.v2 {
            true => names.is_empty(),
            false => names.split(',').any(|name| controllers.iter().any(|c| c.name() == name)),
        };
        self.0.iter().find(|(names, _)| is_there(names)).map(|(_, path)| path)
    }
}

fn read(file: &Path) -> Result<String> {
    super::fs::read_to_string(file).map_err(os).with_context(|| format!("read {}", file.display()))
}

/// The same of a file that the kernel writes as one record, whatever is in it.
fn read_record(file: &Path) -> Result<String> {
    super::fs::read_text_at_once(file).map_err(os).with_context(|| format!("read {}", file.display()))
}

/// An I/O error as a bare `Errno`, so that callers find one type at the root of every chain.
fn os(error: io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(raw) => Errno::from_raw(raw).into(),
        None => error.into(),
    }
}

/// The errno inside an error of cgroups-rs; its own message names no path and repeats the cause.
fn crate_error(error: cgroups_rs::error::Error) -> anyhow::Error {
    let source = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(raw) => Errno::from_raw(raw).into(),
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_are_groups() {
        let h = Hierarchy::parse("1 1 0:1 / /c rw - cgroup2 cgroup2 rw", |_| Ok("memory cpu pids".into()))
            .unwrap();
        assert!(Cgroup::new(&h, "a/b").is_ok());
        for bad in ["", "/a", "a/../b", "..", "./a"] {
            assert!(Cgroup::new(&h, bad).is_err(), "{bad}");
        }
        let group = Cgroup::new(&h, "a/b").unwrap();
        for bad in ["", "a/b", "b", "a/b/c"] {
            assert!(group.prune(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn membership_finds_each_hierarchy() {
        let mountinfo = "1 1 0:1 / /m rw - cgroup cgroup rw,memory\n2 1 0:1 / /c rw - cgroup cgroup rw,cpu,cpuacct\n\
                         3 1 0:1 /k /p rw - cgroup cgroup rw,pids\n4 1 0:1 / /u rw - cgroup2 cgroup2 rw\n";
        let h = Hierarchy::parse(mountinfo, |_| Ok(String::new())).unwrap();
        let there = Membership::parse("9:pids:/k/a\n4:memory:/odd:name\n3:cpu,cpuacct:/b\n0::/u\n");
        let paths: Vec<_> = h.mounts().iter().map(|m| there.path_in(m, &h).unwrap().as_str()).collect();
        assert_eq!(paths, ["/odd:name", "/b", "/k/a", "/u"]);
        assert_eq!(h.mounts()[2].proc_path(Path::new("a")), "/k/a");
    }
}
