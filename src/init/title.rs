//! What others see of this process: its name and its command line. proc(5), prctl(2).
//!
//! The rule that surprises people: `/proc/1/cmdline` and `/proc/1/environ` show the memory in which the
//! kernel put them at the execve, and this process was never executed: it would show the command line of
//! the user who typed `pgbox run -e POSTGRES_PASSWORD=...` to everybody in the container.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

/// Overwrites the inherited command line and environment with `pgbox-init`, and makes the process's memory
/// unreadable for others (except with CAP_SYS_PTRACE).
pub fn set() {
    // All of this is only hiding what the container should not see; without /proc there is nothing to see.
    let _ = nix::sys::prctl::set_name(c"pgbox-init");
    let _ = overwrite();
    // A core dump or /proc/1/mem would otherwise have what the caller had in its heap. Last: it also makes
    // /proc/self/mem unwritable.
    let _ = nix::sys::prctl::set_dumpable(false);
}

fn overwrite() -> Option<()> {
    let stat = crate::sys::fs::read_text_at_once("/proc/self/stat").ok()?;
    // The name in parentheses can contain blanks; the fields after it are counted from 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (arg_start, env_start, env_end) = (field(48)?, field(50)?, field(51)?);
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").ok()?;
    let mut arguments = vec![0; field(49)?.checked_sub(arg_start)? as usize];
    // One byte stays free: the kernel takes a region without a final NUL for one that was overwritten and
    // then shows the environment's region too.
    let len = arguments.len().saturating_sub(1).min(b"pgbox-init".len());
    arguments[..len].copy_from_slice(&b"pgbox-init"[..len]);
    memory.write_all_at(&arguments, arg_start).ok()?;
    memory.write_all_at(&vec![0; env_end.checked_sub(env_start)? as usize], env_start).ok()
}
