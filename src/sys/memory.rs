//! This process's memory and the machine's. malloc_trim(3), sysinfo(2).

use anyhow::{Context, Result};

/// All of the machine's memory in bytes: MemTotal of proc_meminfo(5).
pub fn total() -> Result<u64> {
    let info = nix::sys::sysinfo::sysinfo().context("sysinfo")?;
    Ok(info.ram_total())
}

/// Bytes of a page.
pub fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok().flatten().map_or(4096, |size| size as u64)
}

/// For a process that now waits for a long time: gives unused heap back.
///
/// Its program pages stay mapped. Letting go of them by MADV_DONTNEED made a process's share smaller by 3 MB, but the
/// processes that did so were killed when they woke up in a user-mode-linux kernel.
pub fn settle() {
    // SAFETY: malloc_trim takes a number of bytes to keep and has no other precondition.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_what_proc_says() {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        assert_eq!(total().unwrap(), kilobytes << 10);
    }
}
