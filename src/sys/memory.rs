//! This process's memory and the machine's. malloc_trim(3), madvise(2), dl_iterate_phdr(3), sysinfo(2).
//!
//! The rule that surprises people: the pages of a program file that a process has used stay mapped, and so count as
//! its own, for as long as it lives, also those of an initialisation that is long over. The kernel takes them away
//! only when memory is short.

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

/// For a process that now waits for a long time: gives unused heap back, and lets go of all pages of its program
/// file. Those that it needs after all come back from the page cache, a few dozen at a time and without reading a disk.
pub fn settle() {
    let mut segments: Vec<Segment> = Vec::new();
    // SAFETY: the callback is called before dl_iterate_phdr returns, with pointers that are valid during the call;
    // `segments` outlives it. malloc_trim takes a number of bytes to keep and has no other precondition.
    unsafe {
        libc::dl_iterate_phdr(Some(collect), (&raw mut segments).cast());
        libc::malloc_trim(0);
    }
    // Nothing but this loop after the first one is gone: whatever runs now comes back at once.
    for (start, length) in segments {
        // SAFETY: whole pages of one mapping of a file. They were never written to, so that reading them again gives
        // what was there, this function's own instructions included. An error leaves them mapped.
        unsafe { libc::madvise(start as *mut _, length, libc::MADV_DONTNEED) };
    }
}

/// Where a segment begins, and its length in bytes.
type Segment = (usize, usize);

/// Finds the whole pages of each segment that is mapped without permission to write: what is in them is what is in
/// the file. (Read-only data that the loader has relocated is part of a writable segment.)
// SAFETY: only for dl_iterate_phdr, with a pointer to a vector of segments as its data.
unsafe extern "C" fn collect(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    segments: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: dl_iterate_phdr gives a valid object whose `dlpi_phdr` points to `dlpi_phnum` headers, and passes on the
    // pointer to the vector that only settle() has.
    let (base, headers, segments) = unsafe {
        let object = &*object;
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
        (object.dlpi_addr, headers, &mut *segments.cast::<Vec<Segment>>())
    };
    let page = page_size();
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        if start < end {
            segments.push((start as usize, (end - start) as usize));
        }
    }
    0
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

    #[test]
    fn settling_lets_go_of_program_pages_and_loses_nothing() {
        static TABLE: [u64; 1 << 17] = [7; 1 << 17];
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        assert_eq!(std::hint::black_box(&TABLE).iter().sum::<u64>(), 7 << 17);
        let before = resident();
        settle();
        let after = resident();
        assert!(after + 512 < before, "{before} kB, then {after} kB");
        assert_eq!(std::hint::black_box(&TABLE).iter().sum::<u64>(), 7 << 17);
    }
}
