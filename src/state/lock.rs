//! Who may change what at this moment: the locks of commands against one another. flock(2).
//!
//! The rule that surprises people: a lock file must never be unlinked. Two processes could then hold "the" lock on two
//! different inodes of one name.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{LetGo, Root};
use crate::{spec::Name, sys::process};

/// Proof that this process may change a lab, or what all labs share.
pub struct Lock {
    /// What the last one who had it has left held still, and what became of that.
    pub let_go: Option<LetGo>,
    _file: File,
}

impl Root {
    /// Closes what nodes write to everybody but root: a set-user-ID program that root in a node has made would be
    /// one for every user of the host. No node is made without [`lock_shared`](Self::lock_shared).
    fn keep_private(&self) -> Result<()> {
        ["labs", "volumes", "locks"].map(|name| self.0.join(name)).iter().try_for_each(|path| {
            private_directory(path).with_context(|| format!("make {} private", path.display()))
        })
    }

    /// Takes the lab's lock, for as long as the returned value lives; waits while another command holds it.
    pub fn lock(&self, lab: &Name) -> Result<Lock> {
        let lock = self.lock_file(&format!("lab-{lab}"))?;
        Ok(Lock { let_go: self.let_go(lab)?, ..lock })
    }

    /// Takes the lock of those who compare a lab with a wanted one and make it so. Before any other lock.
    pub fn lock_up(&self, lab: &Name) -> Result<Lock> {
        self.lock_file(&format!("up-{lab}"))
    }

    /// Says that nodes of a lab are being stopped one after the other, for as long as the returned value lives. `None`: somebody
    /// else says so already, who need not be waited for.
    pub fn lock_stop(&self, lab: &Name) -> Result<Option<Lock>> {
        let (file, path) = self.open_lock(&format!("stop-{lab}"))?;
        Ok(try_lock(&file, &path)?.then_some(Lock { let_go: None, _file: file }))
    }

    /// Takes the lock on what all labs share: ports, address ranges, images. Held from the question whether
    /// something is free until it is written down whose it is. Whoever needs a lab's lock as well takes that one
    /// first.
    pub fn lock_shared(&self) -> Result<Lock> {
        self.keep_private()?;
        self.lock_file("shared")
    }

    /// As [`lock`](Self::lock), without waiting: `None` while another command holds it.
    pub fn try_lock(&self, lab: &Name) -> Result<Option<Lock>> {
        let (file, path) = self.open_lock(&format!("lab-{lab}"))?;
        if !try_lock(&file, &path)? {
            return Ok(None);
        }
        Ok(Some(Lock { let_go: self.let_go(lab)?, _file: file }))
    }

    /// Makes this process the one that guards a lab, for as long as the returned value lives. An error is the pid of the one
    /// that does already, or 0 if it has not said that yet.
    pub fn lock_guard(&self, lab: &Name) -> Result<Result<Lock, i32>> {
        let (mut file, path) = self.open_lock(&format!("guard-{lab}"))?;
        if !try_lock(&file, &path)? {
            let mut text = String::new();
            file.read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
            return Ok(Err(text.trim().parse().unwrap_or(0)));
        }
        let text = format!("{}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
        written.with_context(|| format!("write {}", path.display()))?;
        Ok(Ok(Lock { let_go: None, _file: file }))
    }

    fn lock_file(&self, name: &str) -> Result<Lock> {
        let (file, path) = self.open_lock(name)?;
        file.lock().with_context(|| format!("lock {}", path.display()))?;
        Ok(Lock { let_go: None, _file: file })
    }

    fn open_lock(&self, name: &str) -> Result<(File, PathBuf)> {
        // Whoever has one is about to change something, and must not end halfway because nobody reads what it says.
        process::outlive_closed_pipe();
        let path = self.0.join("locks").join(name);
        let open = || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.keep_private()?;
                open()
            }
            file => file,
        };
        Ok((file.with_context(|| format!("open {}", path.display()))?, path))
    }
}

/// Takes a lock that nobody has.
fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Makes a directory that only root may enter.
fn private_directory(path: &Path) -> io::Result<()> {
    let is_private =
        |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_dir() && m.permissions().mode() & 0o077 == 0);
    if is_private(path) {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
}
