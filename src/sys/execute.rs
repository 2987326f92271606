//! Executing a program by the rules of execvp(3), with an environment that is not our own: where a word without a slash
//! is looked for, and what counts as not found.
//!
//! The rule that surprises people: a file that may not be executed does not end the search, but is remembered: if no
//! later directory has a better one, the error is EACCES and not ENOENT.

use std::borrow::Cow;
use std::env;
use std::ffi::{CString, OsStr, OsString, c_char};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::ptr;

use anyhow::{Context, Result};
use nix::errno::Errno;

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

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).with_context(|| format!("a NUL byte in {:?}", OsString::from_vec(bytes.to_vec())))
}

/// A program with its arguments and environment, in the form that execve(2) takes. Made before there is a child: its
/// heap may be its parent's (vfork(2)), and what it has put there at the execve lies there for good.
pub struct Command {
    candidates: Vec<CString>,
    argv: Strings,
    env: Strings,
}

/// Strings, and the pointers to them with a null behind.
struct Strings {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { strings, pointers }
    }
}

impl Command {
    /// # Errors
    /// When there is a NUL byte in any of the words.
    pub fn new<W: AsRef<[u8]>>(
        candidates: &[PathBuf],
        argv: impl IntoIterator<Item = W>,
        env: impl IntoIterator<Item = W>,
    ) -> Result<Self> {
        let files = candidates.iter().map(|file| c_string(file.as_os_str().as_bytes()));
        let strings = |words: &mut dyn Iterator<Item = W>| {
            words.map(|word| c_string(word.as_ref())).collect::<Result<Vec<_>>>().map(Strings::new)
        };
        Ok(Self {
            candidates: files.collect::<Result<_>>()?,
            argv: strings(&mut argv.into_iter())?,
            env: strings(&mut env.into_iter())?,
        })
    }

    /// The name that the program is called by.
    pub fn word(&self) -> Cow<'_, str> {
        self.argv.strings.first().map_or(Cow::Borrowed(""), |word| word.to_string_lossy())
    }

    /// Executes the first candidate that there is. Returns only if none could be executed, and then why.
    pub fn execute(&self) -> Errno {
        let mut worst = Errno::ENOENT;
        for path in &self.candidates {
            // SAFETY: a C string, and arrays of pointers to C strings that end with a null; `self` owns them all.
            unsafe { libc::execve(path.as_ptr(), self.argv.pointers.as_ptr(), self.env.pointers.as_ptr()) };
            match Errno::last() {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => worst = Errno::EACCES,
                other => return other,
            }
        }
        worst
    }
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
