//! Files with passwords: mode 0600, below directories that only root enters.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::Root;
use crate::{spec::Name, sys};

impl Root {
    /// What connection strings name: the passwords of a lab in libpq's format, as long as it has a node.
    pub fn pass_file(&self, lab: &Name) -> PathBuf {
        self.lab_dir(lab).join("pgpass")
    }

    /// The password of a user that a lab file has made. It outlives the nodes, as the data does whose user it is; no volume
    /// can be called so.
    pub fn user_file(&self, lab: &Name, user: &str) -> PathBuf {
        self.users_dir(lab).join(user)
    }

    pub fn users_dir(&self, lab: &Name) -> PathBuf {
        self.0.join("volumes").join(lab).join(".users")
    }

    /// The users that lab files have made.
    pub fn users(&self, lab: &Name) -> Result<Vec<String>> {
        let dir = self.users_dir(lab);
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.and_then(Iterator::collect::<io::Result<Vec<_>>>),
        };
        let entries = entries.with_context(|| format!("read {}", dir.display()))?;
        let mut users: Vec<String> =
            entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        users.sort();
        Ok(users)
    }
}

/// Writes a file that only its owner may read.
pub fn write_secret(path: &Path, content: &str) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        file.write_all(content.as_bytes())
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// The same in one step: who reads it meanwhile has the old content or the new, and so has everybody if it fails.
pub fn replace_secret(path: &Path, content: &str) -> Result<()> {
    sys::fs::replace(path, content.as_bytes(), 0o600, true)
        .with_context(|| format!("write {}", path.display()))
}

/// The content of such a file; empty if there is none.
pub fn read_secret(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("read {}", path.display())),
    }
}
