//! What is in a directory, and the end of all that. getdents64(2), unlinkat(2).
//!
//! The rule that surprises people: the kind of an entry may be unknown to whoever lists it, and is known to whoever removes it.

use std::{io, os::fd::AsFd, os::unix::ffi::OsStrExt, path::Path};

use rustix::fs::{self, AtFlags, Mode, OFlags};

/// Removes the directory `name` in `dir` with everything below it, following no symbolic link; in six calls and one for each
/// entry, where [`std::fs::remove_dir_all`] takes ten.
pub fn remove_tree(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = fs::openat(&dir, name, flags, Mode::empty())?;
    let mut buffer = Vec::with_capacity(8 << 10);
    let mut entries = fs::RawDir::new(&below, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        let removed = match (name.to_bytes(), entry.file_type()) {
            (b"." | b"..", _) => continue,
            (name, fs::FileType::Directory) => remove_tree(&below, name),
            _ => match fs::unlinkat(&below, name, AtFlags::empty()) {
                // Not every file system says what an entry is.
                Err(rustix::io::Errno::ISDIR) => remove_tree(&below, name.to_bytes()),
                other => other.map_err(io::Error::from),
            },
        };
        absent_is_ok(removed)?;
    }
    Ok(fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Removes a directory with everything below it, or the symbolic link that somebody has put in its place; absent is Ok.
pub fn remove_dir_all(path: &Path) -> io::Result<()> {
    let name = path.as_os_str().as_bytes();
    absent_is_ok(match remove_tree(fs::CWD, name) {
        Err(_) if path.is_symlink() => super::fs::unlinkat(fs::CWD, name),
        other => other,
    })
}

/// What somebody else has removed is as gone as it is to be.
fn absent_is_ok(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The names in a directory, without `.` and `..`, in the kernel's order.
pub fn names(dir: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    all_names(fs::Dir::read_from(dir)?)
}

/// The same of a directory that is not open yet.
pub fn names_in(dir: &Path) -> io::Result<Vec<Vec<u8>>> {
    all_names(fs::Dir::new(super::fs::open_dir(dir)?)?)
}

fn all_names(dir: fs::Dir) -> io::Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for entry in dir {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            all.push(name.to_vec());
        }
    }
    Ok(all)
}
