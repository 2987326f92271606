//! The program's first instructions, before those of the C library. elf(5) `e_entry`, execve(2), proc(5) `/proc/PID/exe`.
//!
//! A command that enters somebody else's root directory executes this program once more, through a read-only mount
//! ([`super::exe`] has the reason). The start of a static C library is most of what that costs: it asks the CPU about
//! itself with dozens of `cpuid`, and each of these is a trap where the CPU is a virtual one. So the second execve comes
//! before the first such start. Whatever keeps it from that is left to [`super::exe::reexec_read_only`], which reports it.
//!
//! Nothing has been set up here: no thread-local storage, no relocations, and a call of `memcpy` or `strlen` would jump
//! to an address that nobody has filled in yet. So this is arithmetic on pointers and five system calls. The linker is
//! told of the entry in `build.rs`; on other architectures the program begins as all do.

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};
use core::ptr;

use libc::{
    AT_EMPTY_PATH, AT_FDCWD, MOUNT_ATTR_RDONLY, OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE, SYS_access, SYS_close,
    SYS_execveat, SYS_mount_setattr, SYS_open_tree, W_OK, mount_attr,
};

/// Makes a function, which gives the exit code, what the C library calls first, in place of Rust's own preparations
/// (`#![no_main]`). Those are for programs that may do anything: they read /proc/self/maps for the bounds of the stack, and
/// have a handler with a stack of its own name an overflow, for 18 system calls. What is wanted of them is in
/// [`prepare`](super::process::prepare).
#[macro_export]
macro_rules! begin_with {
    ($run:path) => {
        #[cfg(not(target_env = "gnu"))]
        compile_error!("only glibc hands the arguments over without Rust's own preparations");

        // SAFETY: nothing else of the program is called so.
        #[unsafe(no_mangle)]
        extern "C" fn main() -> i32 {
            // It writes out what print! has kept; a return would not.
            std::process::exit($run())
        }
    };
}

const SELF: &CStr = c"/proc/self/exe";

// The stack pointer is what the kernel hands over, and rdx (x86-64 psABI, 3.4.1); the C library's `_start` wants both.
global_asm!(
    ".pushsection .text.pgbox_entry, \"ax\", @progbits",
    ".globl pgbox_entry",
    "pgbox_entry:",
    "mov rbx, rsp",
    "mov r12, rdx",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {before}",
    "mov rsp, rbx",
    "mov rdx, r12",
    "xor ebp, ebp",
    "jmp _start",
    ".popsection",
    before = sym before_libc,
);

/// Executes the program again through a read-only mount if its words ask for what needs that, and if it has not happened
/// yet. `stack` is as execve leaves it: argc, the arguments, a null, the environment, a null.
extern "C" fn before_libc(stack: *const usize) {
    // SAFETY: the kernel has written argc and that many pointers to strings, a null after them, and the same for the
    // environment; nobody has changed them yet.
    unsafe {
        let argc = *stack;
        let args = stack.add(1).cast::<*const c_char>();
        let vars = args.add(argc + 1);
        if enters_a_foreign_root(args) && is_writable() {
            execute_read_only(args, vars);
        }
    }
}

/// Whether a command line may execute what lies in somebody else's root directory, as far as its words tell. One execve that
/// need not be costs a moment, and one that is missed comes later.
///
/// # Safety
/// `args` are pointers to strings, and a null.
unsafe fn enters_a_foreign_root(mut args: *const *const c_char) -> bool {
    // SAFETY: reads up to the null, by the caller's promise.
    unsafe {
        while !(*args).is_null() {
            let word = *args;
            if is(word, c"--") {
                return false;
            }
            if is(word, c"run") || is(word, c"exec") || is(word, c"start") || is(word, c"replica") {
                return true;
            }
            args = args.add(1);
        }
    }
    false
}

/// # Safety
/// `word` is a string.
unsafe fn is(word: *const c_char, name: &CStr) -> bool {
    let name = name.as_ptr();
    let mut at = 0;
    // SAFETY: both are read up to the first byte that differs, or to the NUL of both.
    unsafe {
        while *word.add(at) == *name.add(at) {
            if *name.add(at) == 0 {
                return true;
            }
            at += 1;
        }
    }
    false
}

/// Whether the mount lets write to the program, file modes aside, which are no help against root (access(2), EROFS).
fn is_writable() -> bool {
    // SAFETY: the call reads a string.
    unsafe { call(SYS_access, [SELF.as_ptr() as usize, W_OK as usize, 0, 0, 0]) == 0 }
}

/// Returns only if it failed.
///
/// # Safety
/// `args` and `vars` are pointers to strings, and a null each.
unsafe fn execute_read_only(args: *const *const c_char, vars: *const *const c_char) {
    let read_only = mount_attr { attr_set: MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let (empty, attributes) = (c"".as_ptr() as usize, ptr::from_ref(&read_only) as usize);
    let clone = (OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC) as usize;
    // SAFETY: every pointer is to what the call reads, and outlives it.
    unsafe {
        let tree = call(SYS_open_tree, [AT_FDCWD as usize, SELF.as_ptr() as usize, clone, 0, 0]);
        if tree < 0 {
            return;
        }
        let at = AT_EMPTY_PATH as usize;
        if call(SYS_mount_setattr, [tree as usize, empty, at, attributes, size_of::<mount_attr>()]) == 0 {
            call(SYS_execveat, [tree as usize, empty, args as usize, vars as usize, at]);
        }
        call(SYS_close, [tree as usize, 0, 0, 0, 0]);
    }
}

/// A system call without the C library: gives what the kernel does, a negative errno if it failed.
///
/// # Safety
/// That of the call.
unsafe fn call(number: i64, [a, b, c, d, e]: [usize; 5]) -> isize {
    let result;
    // SAFETY: the kernel changes rax, rcx and r11, and memory as the caller permits.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}
