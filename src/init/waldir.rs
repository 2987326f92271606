//! A write-ahead log outside the data directory (`POSTGRES_INITDB_WALDIR`): `pg_wal` is a symlink to it.
//!
//! The rule that surprises people: such a directory can't be exchanged together with the data, by one rename: it may be on
//! another file system. So a base backup that replaces a cluster puts its log into a new directory *below* that one, and
//! the symlink, which is exchanged with the data, decides which of the two counts. What it does not lead to is removed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::at;
use super::datadir::DataDir;

/// How such a directory is called; its number follows.
const PREFIX: &str = ".pgbox-wal-";

impl DataDir {
    /// Where the log of a base backup goes that is to replace this cluster; `None`: into the data directory.
    pub fn next_waldir(&self, waldir: Option<&Path>, number: u64) -> Option<PathBuf> {
        let waldir = waldir.filter(|waldir| self.log_is_in(waldir).is_some())?;
        Some(waldir.join(format!("{PREFIX}{number}")))
    }

    /// Removes the log of a cluster that was replaced, or of one that did not come to that.
    pub fn tidy_waldir(&self, waldir: Option<&Path>) -> Result<()> {
        let Some((waldir, log)) = waldir.and_then(|waldir| Some((waldir, self.log_is_in(waldir)?))) else {
            return Ok(());
        };
        for entry in at(fs::read_dir(waldir), "list", waldir)? {
            let path = at(entry, "list", waldir)?.path();
            let name = path.file_name().unwrap_or_default();
            let is_ours = name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
            if path != log && (is_ours || (log != waldir && is_log(name))) {
                let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
                let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                at(removed, "remove", &path)?;
            }
        }
        Ok(())
    }

    /// Where the cluster's log is, if that is this directory or one of ours below it.
    fn log_is_in(&self, waldir: &Path) -> Option<PathBuf> {
        let link = rustix::fs::readlinkat(self.fd(), "pg_wal", Vec::new()).ok()?;
        let log = PathBuf::from(std::ffi::OsString::from_vec(link.into_bytes()));
        (log == waldir || log.parent() == Some(waldir)).then_some(log)
    }
}

/// Whether initdb or a server has made it: PostgreSQL manual 66.1 and 28.2. The directory may hold other things by now.
fn is_log(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let (stem, _) = name.split_once('.').unwrap_or((&name, ""));
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    name == "archive_status"
        || name == "summaries"
        || name.starts_with("xlogtemp.")
        || (stem.len() == 24 && is_hex(stem))
        || (stem.len() == 8 && is_hex(stem) && name.ends_with(".history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_server_makes_is_its_log() {
        for log in ["000000010000000000000001", "00000002.history", "archive_status", "xlogtemp.12"] {
            assert!(is_log(OsStr::new(log)), "{log}");
        }
        assert!(is_log(OsStr::new("000000010000000000000002.00000028.backup")));
        for other in ["lost+found", "notes.txt", "00000002.txt", "00000001000000000000000g", ".pgbox-wal-1"] {
            assert!(!is_log(OsStr::new(other)), "{other}");
        }
    }
}
