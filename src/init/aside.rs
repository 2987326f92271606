//! Initialising aside: a data directory is whole or empty, never half made. mount(2) MS_BIND, rename(2).
//!
//! A first start fills `.pgbox-init` inside the data directory, which is bind-mounted *over* it, so that
//! initdb, the scripts and the server see the path that they will always see. When all has succeeded it is
//! renamed to `.pgbox-done`, which is the moment that counts, and its content moves up, `PG_VERSION` last.
//! Whatever happens in between, the next start knows from the names what to do.
//!
//! The rule that surprises people: rename(2) between two *mounts* of one file system fails (EXDEV). All
//! renames here are therefore relative to a descriptor of the directory below the bind mount.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode, RenameFlags, fsync, mkdirat, renameat, renameat_with, syncfs, unlinkat};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::at;
use super::datadir::DataDir;
use crate::postgres::datadir::{DONE, MAKING, SAMPLE, failure_name, failure_number};
use crate::postgres::launch::User;

/// A complete base backup that is to take the place of what is there.
const NEW: &str = ".pgbox-new";
/// What it takes the place of.
const OLD: &str = ".pgbox-old";

/// So many failed first starts are kept for inspection; each may be 40 MB.
const KEPT: usize = 3;

/// True for the names that this file uses.
pub fn is_ours(name: &OsStr) -> bool {
    [MAKING, DONE, NEW, OLD, SAMPLE].contains(&&*name.to_string_lossy()) || failure_number(name).is_some()
}

/// What a start finds that an earlier one left behind.
#[derive(Debug, PartialEq, Eq)]
pub enum Leftover {
    /// Nothing.
    None,
    /// A complete cluster that was not moved up to its end; it is now.
    Completed,
    /// A half made one, now kept under this name.
    SetAside(String),
}

impl DataDir {
    /// Puts the directory in order after a start that was killed.
    pub fn recover(&self, waldir: Option<&Path>) -> Result<Leftover> {
        let names = self.entries()?;
        let has = |name: &str| names.iter().any(|other| other == name);
        if has(SAMPLE) {
            at(unlinkat(self.fd(), SAMPLE, AtFlags::empty()), "remove", &self.path.join(SAMPLE))?;
        }
        if has(NEW) {
            self.take_place()?;
            return Ok(Leftover::Completed);
        }
        if has(DONE) {
            self.move_up()?;
            self.remove_old()?;
            return Ok(Leftover::Completed);
        }
        self.remove_old()?;
        match has(MAKING) {
            true => Ok(Leftover::SetAside(self.set_aside(waldir)?)),
            false => Ok(Leftover::None),
        }
    }

    /// Makes the empty directory aside and mounts it over the data directory.
    pub fn begin_aside(&self, user: &User) -> Result<()> {
        let making = self.path.join(MAKING);
        at(mkdirat(self.fd(), MAKING, Mode::RWXU), "mkdir", &making)?;
        at(std::os::unix::fs::chown(&making, Some(user.uid), Some(user.gid)), "chown", &making)?;
        at(mount_bind(&making, &self.path), "mount the directory to be initialised over", &self.path)
    }

    /// The cluster aside is complete: makes it the data directory, once all of it is on disk.
    pub fn commit_aside(&self, waldir: Option<&Path>) -> Result<()> {
        at(syncfs(self.fd()), "syncfs", &self.path)?;
        if let Some(waldir) = waldir {
            let directory = at(fs::File::open(waldir), "open", waldir)?;
            at(syncfs(&directory), "syncfs", waldir)?;
        }
        at(renameat(self.fd(), MAKING, self.fd(), DONE), "rename .pgbox-init in", &self.path)?;
        at(fsync(self.fd()), "fsync", &self.path)?;
        self.uncover()?;
        self.move_up()
    }

    /// What was made aside takes the place of the cluster that is there, once all of it is on disk. The old one is whole
    /// until the new one is.
    pub fn commit_over(&self, waldir: Option<&Path>) -> Result<()> {
        self.sync()?;
        if let Some(waldir) = waldir {
            let directory = at(fs::File::open(waldir), "open", waldir)?;
            at(syncfs(&directory), "syncfs", waldir)?;
        }
        at(renameat(self.fd(), MAKING, self.fd(), NEW), "rename .pgbox-init in", &self.path)?;
        at(fsync(self.fd()), "fsync", &self.path)?;
        self.uncover()?;
        self.take_place()
    }

    /// Moves the old cluster out of the way, and the new one up. Can be repeated: as long as the new one has this name,
    /// everything beside it is old.
    fn take_place(&self) -> Result<()> {
        match mkdirat(self.fd(), OLD, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return at(Err(errno), "mkdir .pgbox-old in", &self.path),
        }
        for name in self.entries()?.iter().filter(|name| !is_ours(name) && *name != "lost+found") {
            let aside = Path::new(OLD).join(name);
            at(renameat(self.fd(), name, self.fd(), &aside), "move the old cluster aside in", &self.path)?;
        }
        at(renameat(self.fd(), NEW, self.fd(), DONE), "rename .pgbox-new in", &self.path)?;
        self.move_up()?;
        self.remove_old()
    }

    fn remove_old(&self) -> Result<()> {
        let old = self.path.join(OLD);
        match fs::remove_dir_all(&old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => at(Err(error), "remove", &old),
            _ => Ok(()),
        }
    }

    /// Takes the mount over the data directory away. Detached: a script may have left a process in it.
    pub fn uncover(&self) -> Result<()> {
        at(unmount(&self.path, UnmountFlags::DETACH), "umount", &self.path)
    }

    /// Keeps what was made so far for inspection; returns the name under which it is found.
    pub fn set_aside(&self, waldir: Option<&Path>) -> Result<String> {
        self.clear_waldir(waldir)?;
        let mut numbers: Vec<u32> = self.entries()?.iter().filter_map(|name| failure_number(name)).collect();
        numbers.sort_unstable();
        for old in &numbers[..(numbers.len() + 1).saturating_sub(KEPT)] {
            let path = self.path.join(failure_name(*old));
            at(fs::remove_dir_all(&path), "remove", &path)?;
        }
        let name = failure_name(numbers.last().map_or(1, |last| last.saturating_add(1)));
        let renamed = renameat_with(self.fd(), MAKING, self.fd(), &name, RenameFlags::NOREPLACE);
        at(renamed, "rename .pgbox-init in", &self.path)?;
        Ok(self.path.join(name).display().to_string())
    }

    /// Removes what was made so far: there is nothing in it but what initdb would make again.
    pub fn discard_aside(&self, waldir: Option<&Path>) -> Result<()> {
        self.clear_waldir(waldir)?;
        let making = self.path.join(MAKING);
        at(fs::remove_dir_all(&making), "remove", &making)
    }

    /// Empties the write-ahead log's own directory after a failed first start; initdb would refuse it. Only
    /// if that start had got as far as linking to it: initdb does so only where it found it empty.
    fn clear_waldir(&self, waldir: Option<&Path>) -> Result<()> {
        let Some(waldir) = waldir else { return Ok(()) };
        let link = rustix::fs::readlinkat(self.fd(), format!("{MAKING}/pg_wal"), Vec::new());
        if link.is_ok_and(|target| target.as_bytes() == waldir.as_os_str().as_encoded_bytes()) {
            for entry in at(fs::read_dir(waldir), "list", waldir)? {
                let path = at(entry, "list", waldir)?.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                at(removed, "remove", &path)?;
            }
        }
        Ok(())
    }

    /// Moves the content of `.pgbox-done` up, `PG_VERSION` last, and removes it. Can be repeated.
    fn move_up(&self) -> Result<()> {
        let mut names = self.entries_of(DONE)?;
        names.sort_by_key(|name| name == "PG_VERSION");
        for name in &names {
            let from = Path::new(DONE).join(name);
            renameat_with(self.fd(), &from, self.fd(), name, RenameFlags::NOREPLACE).with_context(|| {
                format!("rename {} to the directory above in {}", from.display(), self.path.display())
            })?;
        }
        at(unlinkat(self.fd(), DONE, AtFlags::REMOVEDIR), "rmdir .pgbox-done in", &self.path)?;
        at(fsync(self.fd()), "fsync", &self.path)
    }

    /// Mounts `text` over the file `sample` until the returned value is dropped: the one way to give a
    /// server setting to an old initdb.
    pub fn replace_file(&self, sample: &Path, text: &str) -> Result<Replaced<'_>> {
        let copy = self.path.join(SAMPLE);
        at(fs::write(&copy, text), "write", &copy)?;
        at(mount_bind(&copy, sample), "mount over", sample)?;
        Ok(Replaced { dir: self, sample: sample.to_owned() })
    }
}

/// A file that another one is mounted over.
pub struct Replaced<'a> {
    dir: &'a DataDir,
    sample: std::path::PathBuf,
}

impl Drop for Replaced<'_> {
    fn drop(&mut self) {
        // If it stays, it is in this container's mount namespace only, and the next start removes the copy.
        let _ = unmount(&self.sample, UnmountFlags::DETACH);
        let _ = unlinkat(self.dir.fd(), SAMPLE, AtFlags::empty());
    }
}
