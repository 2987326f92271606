//! The running program's own file, made unwritable for whoever finds a way to it. proc(5) `/proc/PID/exe`,
//! open_tree(2), mount_setattr(2), execveat(2).
//!
//! A process that enters somebody else's root directory and executes a file there can be made to execute *itself*:
//! the file may be a script that begins `#!/proc/self/exe`, or a link to it. `/proc/PID/exe` of that process is then a
//! handle on the host's binary in the hands of whoever owns that root directory; kept open with O_PATH, it can be
//! opened for writing as soon as the program has ended and ETXTBSY is over, and the next start of the program is the
//! attacker's (CVE-2019-5736). File modes are no help against root.
//!
//! A read-only mount is. The kernel remembers through *which mount* a program was executed, and `/proc/PID/exe` goes
//! through that one. So the program executes itself once more through a read-only clone of its mount that is attached
//! nowhere: nothing is copied, nothing appears in any mount table, and it is gone with the last process.

use std::env;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::AtFlags;
use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount;

const SELF: &str = "/proc/self/exe";

/// Makes sure that this process was executed through a read-only mount, by executing the same program with the
/// same arguments and environment again if it was not. Returns when it is so; costs one statfs(2) then.
///
/// The mount's own flag is the test, so there is no marker variable that could be forged or leak to children.
/// Afterwards the link `/proc/self/exe` works, but `current_exe()` shows a path within the clone, not on the host:
/// execute the link, never that path. Call it before there is anything to lose by execve.
///
/// # Errors
/// Without CAP_SYS_ADMIN, without /proc, and before Linux 5.12.
pub fn reexec_read_only() -> Result<()> {
    let flags = statvfs(SELF).with_context(|| format!("statfs {SELF}"))?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        return restore_name();
    }
    let file = read_only_clone(Path::new(SELF))?;
    let args = env::args_os().map(|arg| c_string(arg.into_vec())).collect::<Result<Vec<_>>>()?;
    let vars = env::vars_os()
        .map(|(key, value)| c_string([key.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<Result<Vec<_>>>()?;
    let Err(errno) = nix::unistd::execveat(&file, c"", &args, &vars, AtFlags::AT_EMPTY_PATH);
    Err(errno).with_context(|| format!("execute {SELF} again through a read-only mount: execveat"))
}

/// A handle on `path` through a read-only clone of the mount it is on, attached nowhere.
fn read_only_clone(path: &Path) -> Result<OwnedFd> {
    let shown = path.display();
    let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .with_context(|| format!("clone the mount of {shown}: open_tree(OPEN_TREE_CLONE)"))?;
    mount::set_read_only(tree.as_fd()).with_context(|| format!("make the clone of {shown} read-only"))?;
    Ok(tree)
}

/// Before Linux 6.14 execveat names the process after the descriptor's number: `ps` would show "3".
fn restore_name() -> Result<()> {
    let Some(program) = env::args_os().next() else { return Ok(()) };
    let name = Path::new(&program).file_name().unwrap_or(OsStr::new("")).as_bytes().to_vec();
    rustix::thread::set_name(&c_string(name)?).context("prctl(PR_SET_NAME)")
}

fn c_string(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes).context("a NUL byte in own arguments or environment")
}
