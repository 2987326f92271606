//! Who owns the data directory and who may read it. chown(2), chmod(2).
//!
//! The rule that surprises people: `postgres` is uid 999 in one image and 101 in another, and a volume knows
//! only the number. A server refuses a data directory that is not its user's, or that others can read. Where the file system
//! can, its mount shows the data as the server's (see `plan::owner`), and there is nothing to change here.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use anyhow::{Result, bail};

use super::at;
use crate::postgres::launch::User;

/// Gives an existing cluster to `user` if it is somebody else's, and takes away what others may do in it.
/// Returns what was changed, in words.
pub fn ensure(pgdata: &Path, user: &User) -> Result<Vec<String>> {
    if user.uid == 0 {
        bail!("PostgreSQL refuses to run as root: the image has no user for it");
    }
    let mut notes = Vec::new();
    let before = at(fs::metadata(pgdata), "stat", pgdata)?;
    if foreign(pgdata, user)? {
        // First, so that one that is interrupted can be told from data that were always somebody else's (`facts::owner`).
        let version = pgdata.join("PG_VERSION");
        let first = if version.symlink_metadata().is_ok() { take(&version, user)? } else { 0 };
        let count = first + take(pgdata, user)?;
        notes.push(format!(
            "{count} files of {} belonged to uid {}; they are now {}'s, uid {} in this image",
            pgdata.display(),
            before.uid(),
            user.name,
            user.uid
        ));
    }
    let mode = before.mode() & 0o7777;
    if !matches!(mode, 0o700 | 0o750) {
        at(fs::set_permissions(pgdata, PermissionsExt::from_mode(0o700)), "chmod", pgdata)?;
        notes.push(format!("{} had mode {mode:04o}; it is now 0700", pgdata.display()));
    }
    Ok(notes)
}

/// Looks at three files instead of all: the directory itself is changed last, see [`take`].
fn foreign(pgdata: &Path, user: &User) -> Result<bool> {
    for name in ["", "PG_VERSION", "global"] {
        let path = pgdata.join(name);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.uid() != user.uid => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return at(Err(error), "stat", &path),
        }
    }
    Ok(false)
}

/// Changes the owner of everything below `path` and then of `path`: one that was interrupted is seen to be
/// unfinished. Symbolic links (table spaces) are not followed. Returns how many files were changed.
fn take(path: &Path, user: &User) -> Result<u64> {
    let mut count = 0;
    let meta = at(fs::symlink_metadata(path), "stat", path)?;
    if meta.is_dir() {
        for entry in at(fs::read_dir(path), "list", path)? {
            count += take(&at(entry, "list", path)?.path(), user)?;
        }
    }
    if meta.uid() != user.uid || meta.gid() != user.gid {
        at(lchown(path, Some(user.uid), Some(user.gid)), "chown", path)?;
        count += 1;
    }
    Ok(count)
}
