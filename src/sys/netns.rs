//! Network namespaces pinned by name, network_namespaces(7) and ip-netns(8).
//!
//! A namespace lives as long as something refers to it: a process, an open file or a mount. The name
//! that `ip netns` shows is a bind mount of the namespace's file over an empty file in /run/netns. The
//! rule that surprises people: `unshare` and `setns` move the calling *thread* only, and
//! `/proc/self/ns` goes on showing the main thread's, so everything here goes through `/proc/thread-self`.
//! A function that enters another namespace has left it again when it returns; a thread of its own for that
//! would cost 30 system calls and a stack.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open as open_file};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;
use nix::unistd::{mkdir, unlink};

/// Where `ip netns` looks for names.
const DIRECTORY: &str = "/run/netns";

/// Makes a new namespace and pins it as `name`, so that `ip netns exec NAME` finds it.
///
/// The namespace is empty except for a `lo` that is down.
///
/// # Errors
/// `EEXIST` when the name is taken, also by the empty file that an interrupted `create` left behind
/// ([`delete`] removes both).
pub fn create(name: &str) -> Result<()> {
    let path = checked_path(name)?;
    share_directory()?;
    let flags = OFlag::O_RDONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    open_file(&path, flags, Mode::empty())
        .with_context(|| format!("create network namespace {}: open", path.display()))?;
    pin_new_namespace(&path).inspect_err(|_| {
        // The error of the mount is the one to tell; an empty file that stays is what `delete` removes.
        let _ = unlink(&path);
    })
}

/// Takes the name away. The namespace itself ends with its last process, and the kernel then removes
/// its interfaces, and the other ends of its veths, some 30 ms later. Absent is Ok.
pub fn delete(name: &str) -> Result<()> {
    let path = checked_path(name)?;
    // A loop, because mounts stack: unlink says EBUSY as long as one is left.
    loop {
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL) => {} // EINVAL: not a mount point (any more)
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| format!("umount {}", path.display())),
        }
        match unlink(&path) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(errno).with_context(|| format!("unlink {}", path.display())),
        }
    }
}

/// Opens the namespace called `name`, for [`run_in`], `setns` or `IFLA_NET_NS_FD`.
///
/// # Errors
/// `ENOENT` when there is none; an error without errno when the file is there but nothing is mounted
/// on it (an interrupted [`create`], or a name that was made in another mount namespace).
pub fn open(name: &str) -> Result<OwnedFd> {
    let path = checked_path(name)?;
    let describe = || format!("open network namespace {}", path.display());
    let fd = open_file(&path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).with_context(describe)?;
    let kind = fstatfs(&fd).with_context(describe)?.filesystem_type();
    if kind != nix::sys::statfs::NSFS_MAGIC {
        bail!("{} is an empty file, no namespace is mounted on it", path.display());
    }
    Ok(fd)
}

/// The file that stands for the namespace `name`, whether it exists or not.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// All names, sorted; what `ip netns list` shows. Without /run/netns there are none.
pub fn list() -> Result<Vec<String>> {
    let mut names = match super::tree::names_in(Path::new(DIRECTORY)) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_errno(&error)).context(format!("read {DIRECTORY}")),
    };
    names.sort();
    Ok(names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

/// Runs `f` in the namespace `ns`, and comes back. A socket that `f` opens stays in that namespace wherever it is
/// used later: open there, use here.
///
/// # Errors
/// When `setns` fails; what `f` returns is passed through.
pub fn run_in<T>(ns: BorrowedFd, f: impl FnOnce() -> T) -> Result<T> {
    let _home = Home::remember()?;
    setns(ns, CloneFlags::CLONE_NEWNET).context("enter network namespace: setns")?;
    Ok(f())
}

/// Runs `f` in a new namespace that ends with it, empty except for a `lo` that is down.
///
/// # Errors
/// When `unshare` fails; what `f` returns is passed through.
pub fn run_in_new<T>(f: impl FnOnce() -> T) -> Result<T> {
    let _home = Home::remember()?;
    unshare(CloneFlags::CLONE_NEWNET).context("create network namespace: unshare")?;
    Ok(f())
}

fn pin_new_namespace(path: &Path) -> Result<()> {
    let _home = Home::remember()?;
    unshare(CloneFlags::CLONE_NEWNET).context("create network namespace: unshare")?;
    mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mount {OWN} on {}", path.display()))
}

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// The network namespace to come back to, also when an error or a panic leads out of the other one.
struct Home(OwnedFd);

impl Home {
    fn remember() -> Result<Home> {
        let fd = open_file(OWN, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        Ok(Home(fd.with_context(|| format!("open {OWN}"))?))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Whatever came next would happen to the wrong network: end here, where nothing but the step at hand is lost.
        setns(&self.0, CloneFlags::CLONE_NEWNET).expect("come back to the own network namespace");
    }
}

/// Makes /run/netns a shared mount point, as `ip netns add` does: only then does a name that is made
/// or deleted here also appear and vanish in every other mount namespace. Without it a daemon started
/// earlier would keep a copy of the mount, and with it the namespace, alive for ever.
fn share_directory() -> Result<()> {
    if share(DIRECTORY).is_ok() {
        return Ok(());
    }
    match mkdir(DIRECTORY, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).context(format!("mkdir {DIRECTORY}")),
    }
    // Not a mount point yet. ip-netns(8) takes the same lock: two first callers would stack two mounts, and names made
    // between them would be hidden under the second.
    let directory =
        open_file(DIRECTORY, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .with_context(|| format!("open {DIRECTORY}"))?;
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("flock {DIRECTORY}"))?;
    if share(DIRECTORY) == Err(Errno::EINVAL) {
        // EINVAL: not a mount point yet.
        mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .with_context(|| format!("bind mount {DIRECTORY} on itself"))?;
    }
    share(DIRECTORY).with_context(|| format!("mount --make-rshared {DIRECTORY}"))
}

fn share(directory: &str) -> nix::Result<()> {
    let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount(None::<&str>, directory, None::<&str>, flags, None::<&str>)
}

/// A name with a slash would reach out of the directory.
fn checked_path(name: &str) -> Result<PathBuf> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        bail!("{name:?} can't be the name of a network namespace");
    }
    Ok(path(name))
}

fn io_errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_directory() {
        for bad in ["", ".", "..", "a/b", "../x", "a\0b"] {
            assert!(checked_path(bad).is_err(), "{bad:?}");
        }
        assert_eq!(checked_path("lab-a.b").unwrap(), Path::new("/run/netns/lab-a.b"));
    }
}
