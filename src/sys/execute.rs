//! Executing a program by the rules of execvp(3), with an environment that is not our own: where a word without a slash
//! is looked for, and what counts as not found.
//!
//! The rule that surprises people: a file that may not be executed does not end the search, but is remembered: if no
//! later directory has a better one, the error is EACCES and not ENOENT.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::unistd::execve;

/// The PATH where none is set.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a program may be: itself if it has a slash, else in each directory of PATH; an empty one is the current
/// directory.
pub fn candidates(program: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') || program.is_empty() {
        return vec![program.into()];
    }
    env::split_paths(path).map(|directory| directory.join(program)).collect()
}

/// The first candidate that is a file with an execute bit.
pub fn find(program: &str, path: &str) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| {
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    candidates(program.as_ref(), path.as_ref()).into_iter().find(is_program)
}

/// What execve(2) takes: no NUL byte may be in it.
pub fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).with_context(|| format!("a NUL byte in {:?}", OsString::from_vec(bytes.to_vec())))
}

/// Executes the first candidate that there is. Returns only if none could be executed, and then why.
pub fn execute(candidates: &[CString], argv: &[CString], env: &[CString]) -> Errno {
    let mut worst = Errno::ENOENT;
    for path in candidates {
        let Err(errno) = execve(path, argv, env);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => worst = errno,
            other => return other,
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_is_a_path_and_an_empty_directory_is_the_current_one() {
        let found = |program: &str, path: &str| candidates(program.as_ref(), path.as_ref());
        assert_eq!(found("./a", "/bin"), [PathBuf::from("./a")]);
        assert_eq!(found("a", "/x::/y"), ["/x/a", "a", "/y/a"].map(PathBuf::from));
        assert_eq!(found("", "/bin"), [PathBuf::new()]);
    }

    #[test]
    fn only_a_file_that_may_be_executed_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = format!("/nonexistent:{}:/bin", dir.path().display());
        std::fs::create_dir(dir.path().join("sh")).unwrap();
        assert_eq!(find("sh", &path), Some("/bin/sh".into()));
        std::fs::write(dir.path().join("text"), "").unwrap();
        assert_eq!(find("text", &path), None);
    }
}
