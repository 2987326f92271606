//! The data directory before anything runs on it: the lock, what is in it, and the stale lock file of a
//! server that is no more. flock(2).
//!
//! The rule that surprises people: Postgres' own interlocks (the pid in postmaster.pid, System V shared
//! memory) see nothing of another container, so two servers on one volume both start and destroy it
//! (docker-library/postgres#171). The lock here is on the *directory*, and is inherited by the server: when
//! pid 1 dies the kernel closes its files before it kills the rest, and a lock that only pid 1 had would be
//! free while backends still write. It is gone with the last process that has the descriptor.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, openat, unlinkat};
use rustix::io::Errno;

use super::{aside, at};
use crate::postgres::launch::User;
use crate::postgres::postmaster;
use crate::postgres::version::parse_pg_version;

/// No small file of a data directory is larger.
const LARGEST: u64 = 1 << 10;

/// The data directory is locked: another container, or another init, uses it.
#[derive(Debug)]
pub struct InUse(PathBuf);

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the data directory {} is in use by another container (flock: EWOULDBLOCK)",
            self.0.display()
        )
    }
}

impl std::error::Error for InUse {}

/// A data directory, locked.
pub struct DataDir {
    /// Where the server finds it.
    pub path: PathBuf,
    /// The directory itself, whatever is mounted over its path later; holds the lock.
    fd: File,
}

/// What a data directory contains.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing yet.
    Empty,
    /// A cluster of this major version.
    Cluster(u32),
}

impl DataDir {
    /// Opens the directory, making it where it is missing, and locks it or fails with [`InUse`].
    pub fn lock(path: &Path, user: &User) -> Result<DataDir> {
        make(path, user)?;
        let fd = at(File::open(path), "open", path)?;
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DataDir { path: path.to_owned(), fd }),
            Err(Errno::WOULDBLOCK) => Err(InUse(path.to_owned()).into()),
            Err(errno) => at(Err(errno), "lock the data directory: flock", path),
        }
    }

    /// The descriptor that holds the lock, to be inherited by whatever writes to the directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What is in the directory. An error for a directory that holds something, but no cluster.
    pub fn content(&self) -> Result<Content> {
        if let Some(text) = self.read("PG_VERSION")? {
            return Ok(Content::Cluster(at(parse_pg_version(&text), "read", &self.path)?));
        }
        let foreign: Vec<OsString> = self
            .entries()?
            .into_iter()
            .filter(|name| name != "lost+found" && !aside::is_ours(name))
            .collect();
        match foreign.first() {
            None => Ok(Content::Empty),
            Some(first) => bail!(
                "{} is not a data directory: it has no PG_VERSION, but {} entries, {first:?} among them",
                self.path.display(),
                foreign.len()
            ),
        }
    }

    /// Removes the lock file of a server that is gone. Only to be called before the first server of this
    /// container: nobody else can be using the directory while we hold its lock, and the number in the file
    /// belongs to a pid namespace that has ended. Returns true if there was one.
    pub fn remove_stale_lock_file(&self) -> Result<bool> {
        match unlinkat(&self.fd, postmaster::FILE, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => at(Err(errno), "remove the stale postmaster.pid of", &self.path),
        }
    }

    /// The names in the directory.
    pub fn entries(&self) -> Result<Vec<OsString>> {
        self.entries_of(".")
    }

    /// The names in one of its subdirectories.
    pub fn entries_of(&self, name: &str) -> Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let list = || -> rustix::io::Result<Vec<OsString>> {
            let mut names = Vec::new();
            for entry in Dir::new(openat(&self.fd, name, flags, Mode::empty())?)? {
                let entry = entry?;
                names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
            }
            Ok(names)
        };
        let mut names = at(list(), "list", &self.path.join(name))?;
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    /// A small file in the directory, `None` where it does not exist. Neither a symlink nor a fifo, which has no end.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>> {
        let read = |file| {
            let content = crate::sys::fs::read_plain(file, LARGEST)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&content).into_owned())
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => at(read(fd.into()), "read", &self.path.join(name)).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => at(Err(errno), "open", &self.path.join(name)),
        }
    }

    /// Writes all of the directory's file system to the disk.
    pub fn sync(&self) -> Result<()> {
        at(rustix::fs::syncfs(&self.fd), "syncfs", &self.path)
    }

    /// Bytes free for an ordinary user on the directory's file system.
    pub fn free_bytes(&self) -> Result<u64> {
        let fs = rustix::fs::fstatvfs(&self.fd).context("fstatvfs of the data directory")?;
        Ok(fs.f_bavail * fs.f_frsize)
    }
}

/// Makes a directory and what is missing above it, for the user. (`PGDATA` may be below the mount point.)
fn make(path: &Path, user: &User) -> Result<()> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => bail!("the data directory {} is not a directory", path.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return at(Err(error), "stat", path),
    }
    if let Some(parent) = path.parent() {
        make(parent, user)?;
    }
    at(DirBuilder::new().mode(0o700).create(path), "mkdir", path)?;
    at(chown(path, Some(user.uid), Some(user.gid)), "chown", path)
}

/// Makes a directory of the user's where it is missing, e.g. that of the server's socket (/run may be a new
/// tmpfs).
pub fn make_owned_dir(path: &Path, user: &User) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        at(fs::create_dir_all(parent), "mkdir", parent)?;
    }
    at(DirBuilder::new().mode(0o755).create(path), "mkdir", path)?;
    at(chown(path, Some(user.uid), Some(user.gid)), "chown", path)
}
