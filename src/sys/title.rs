//! What others see of this process: its name, its command line and its environment. proc(5), prctl(2).
//!
//! The rule that surprises people: `/proc/PID/cmdline` and `/proc/PID/environ` show the memory in which the kernel put them at
//! the execve. A process that was forked shows those of whoever was executed, with all that a user typed or exported there; and
//! what a program changes of its environment later is not seen.

use std::ffi::CStr;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

/// Overwrites the inherited command line with `name` and the environment with nothing, and makes the process's memory unreadable
/// for others (except with CAP_SYS_PTRACE).
pub fn set(name: &CStr) {
    // All of this is only hiding what others should not see; without /proc there is nothing to see.
    let _ = nix::sys::prctl::set_name(name);
    let _ = overwrite(Some(name.to_bytes()));
    // A core dump or /proc/1/mem would otherwise have what the caller had in its heap. Last: it also makes
    // /proc/self/mem unwritable.
    let _ = nix::sys::prctl::set_dumpable(false);
}

/// Overwrites the inherited environment alone. What reads a variable later finds it empty.
pub fn forget_environment() {
    let _ = overwrite(None);
}

fn overwrite(name: Option<&[u8]>) -> Option<()> {
    let stat = super::fs::read_text_at_once("/proc/self/stat").ok()?;
    // The name in parentheses can contain blanks; the fields after it are counted from 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (arg_start, env_start, env_end) = (field(48)?, field(50)?, field(51)?);
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").ok()?;
    if let Some(name) = name {
        let mut arguments = vec![0; field(49)?.checked_sub(arg_start)? as usize];
        // One byte stays free: the kernel takes a region without a final NUL for one that was overwritten and
        // then shows the environment's region too.
        let len = arguments.len().saturating_sub(1).min(name.len());
        arguments[..len].copy_from_slice(&name[..len]);
        memory.write_all_at(&arguments, arg_start).ok()?;
    }
    memory.write_all_at(&vec![0; env_end.checked_sub(env_start)? as usize], env_start).ok()
}
