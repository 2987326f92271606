//! What others see of this process: its name, its command line and its environment. proc(5), prctl(2).
//!
//! The rule that surprises people: `/proc/PID/cmdline` and `/proc/PID/environ` show the memory in which the kernel put them at
//! the execve. A process that was forked shows those of whoever was executed, with all that a user typed or exported there; and
//! what a program changes of its environment later is not seen.

use std::ffi::CStr;
use std::ptr;

/// Overwrites the inherited command line with `name` and the environment with nothing, and makes the process's memory unreadable
/// for others (except with CAP_SYS_PTRACE).
pub fn set(name: &CStr) {
    // All of this is only hiding what others should not see; without /proc there is nothing to see.
    let _ = nix::sys::prctl::set_name(name);
    let _ = overwrite(Some(name.to_bytes()));
    // A core dump or /proc/1/mem would otherwise have what the caller had in its heap.
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
    let field = |number: usize| fields.get(number - 3)?.parse::<usize>().ok();
    let (arguments, environment) = (field(48)?..field(49)?, field(50)?..field(51)?);
    // SAFETY: there the kernel has put the strings, which are this process's own to write and nobody's by reference: what Rust
    // has of them are copies. The C library reads a variable that is empty.
    unsafe {
        if let Some(name) = name {
            let at = ptr::with_exposed_provenance_mut::<u8>(arguments.start);
            at.write_bytes(0, arguments.len());
            // One byte stays free: the kernel takes a region without a final NUL for one that was overwritten and
            // then shows the environment's region too.
            at.copy_from_nonoverlapping(name.as_ptr(), arguments.len().saturating_sub(1).min(name.len()));
        }
        ptr::with_exposed_provenance_mut::<u8>(environment.start).write_bytes(0, environment.len());
    }
    Some(())
}
