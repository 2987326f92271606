//! This process's memory and the machine's. malloc_trim(3), madvise(2), dl_iterate_phdr(3), sysinfo(2).
//!
//! The rule that surprises people: the pages of a program file that a process has used stay mapped, and so count as
//! its own, for as long as it lives, also those of an initialisation that is long over. The kernel takes them away
//! only when memory is short.

use std::ptr;

use anyhow::{Context, Result};

/// All of the machine's memory in bytes: MemTotal of proc_meminfo(5).
pub fn total() -> Result<u64> {
    let info = nix::sys::sysinfo::sysinfo().context("sysinfo")?;
    Ok(info.ram_total())
}

/// Has threads that begin from now on share the heap of the first one. What is free at the top of a heap of their own is never
/// given back, not by malloc_trim(3) and not when they end (mallopt(3), `M_ARENA_MAX`).
pub fn share_heap() {
    // SAFETY: a parameter and its value.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Bytes of a page.
pub fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok().flatten().map_or(4096, |size| size as u64)
}

/// For a process that now waits for a long time: gives unused heap back, and lets go of all pages of its program
/// file. Those that it needs after all come back from the page cache, 16 at a time and without reading a disk.
pub fn settle() {
    // SAFETY: malloc_trim takes a number of bytes to keep and has no other precondition. The callback of
    // dl_iterate_phdr is called before it returns, with pointers that are valid during the call.
    unsafe {
        libc::malloc_trim(0);
        libc::dl_iterate_phdr(Some(forget_program), ptr::null_mut());
    }
}

/// Forgets the pages of each segment of the program that is mapped without permission to write. What is in them is
/// what is in the file: nothing is lost. (Read-only data that the loader has relocated is part of a writable segment.)
///
/// The program is the first object. It is also the last that is looked at: the next one is the vDSO, which is no file,
/// and whose base may be an offset that wraps around.
///
/// # Safety
/// Only for dl_iterate_phdr, whose object is valid during the call.
unsafe extern "C" fn forget_program(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: dl_iterate_phdr gives a valid object whose `dlpi_phdr` points to `dlpi_phnum` headers.
    let (base, headers) = unsafe {
        ((*object).dlpi_addr, std::slice::from_raw_parts((*object).dlpi_phdr, (*object).dlpi_phnum.into()))
    };
    let page = page_size();
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let start = base.wrapping_add(header.p_vaddr).next_multiple_of(page);
        let end = base.wrapping_add(header.p_vaddr).wrapping_add(header.p_memsz) / page * page;
        if start < end {
            // SAFETY: whole pages of one mapping of a file. They were never written to, so that reading them again
            // gives what was there, this function's own instructions included. An error leaves them mapped.
            unsafe { libc::madvise(start as *mut _, (end - start) as usize, libc::MADV_DONTNEED) };
        }
    }
    1
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
    fn a_settled_process_has_let_go_of_its_program_and_goes_on() {
        fn program_pages() -> u64 {
            // Of statm's fields the third is what is resident of files.
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(2).unwrap().parse().unwrap()
        }
        let before = program_pages();
        settle();
        let after = program_pages();
        assert!(after < before, "{before} pages before, {after} after");
    }
}
