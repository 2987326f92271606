//! System call filters. seccomp(2), and the kernel's `userspace-api/seccomp_filter`.
//!
//! The profile is `seccomp.json` beside this file, which `build.rs` turned into tables. What
//! surprises people is which error a refused call gives. A call the profile does not name is ENOSYS, as
//! on an older kernel, because a C library falls back on ENOSYS but gives up on EPERM (clone3, faccessat2 and
//! statx each broke containers that way). A call it names and refuses is EPERM.
//!
//! A program of another architecture, 32-bit x86 included, is killed: the numbers mean other calls there. A
//! filter can't be removed, and every child has it too.

use anyhow::{Context, Result, ensure};
use libc::sock_filter;

use super::capability::CapabilitySet;

/// A system call that the profile names.
struct Call {
    number: u32,
    /// Any one of these permits it altogether.
    any: CapabilitySet,
    /// Which of [`VERDICTS`] it is without them.
    verdict: usize,
}

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

const UNNAMED: usize = 0;
const ALLOW: usize = 1;

/// Calls from this number on, up to the next span, have the same verdict.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: u32,
    verdict: usize,
}

/// The filter for a program that keeps the capabilities `kept` in its bounding set: mount(2) is open to one that
/// keeps CAP_SYS_ADMIN and EPERM to others.
///
/// It searches the number of the call as a tree of spans. That is not for the calls' sake, whose verdicts the kernel
/// caches: loading a filter runs it once for every number there is, and with a plain list of comparisons that alone took 0.8 ms.
pub fn program(kept: CapabilitySet) -> Vec<sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut code = vec![
        instruction(LOAD, 0, 0, std::mem::offset_of!(libc::seccomp_data, arch) as u32),
        instruction((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 1, 0, AUDIT_ARCH),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, 0, 0, std::mem::offset_of!(libc::seccomp_data, nr) as u32),
    ];
    code.extend(tree(&spans(kept)));
    code
}

/// What happens to every number there is, in as few spans as possible.
fn spans(kept: CapabilitySet) -> Vec<Span> {
    let mut spans = vec![Span { first: 0, verdict: UNNAMED }];
    let mut next = 0;
    for call in CALLS {
        if call.number > next {
            spans.push(Span { first: next, verdict: UNNAMED });
        }
        let verdict = if call.any.intersects(kept) { ALLOW } else { call.verdict };
        spans.push(Span { first: call.number, verdict });
        next = call.number + 1;
    }
    spans.push(Span { first: next, verdict: UNNAMED });
    // The first span begins at 0 whether or not a call has that number, so of two that begin together the later counts.
    spans.dedup_by(|later, earlier| {
        let same_start = later.first == earlier.first;
        if same_start {
            earlier.verdict = later.verdict;
        }
        same_start || later.verdict == earlier.verdict
    });
    spans
}

/// Finds the accumulator among the spans.
fn tree(spans: &[Span]) -> Vec<sock_filter> {
    const NOT_LESS: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const ALWAYS: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
    let (low, high) = match spans {
        [one] => return VERDICTS[one.verdict].to_vec(),
        _ => spans.split_at(spans.len() / 2),
    };
    let (pivot, low) = (high[0].first, tree(low));
    // A conditional jump reaches 255 instructions, an unconditional one all.
    let mut code = match u8::try_from(low.len()) {
        Ok(distance) => vec![instruction(NOT_LESS, distance, 0, pivot)],
        Err(_) => vec![instruction(NOT_LESS, 0, 1, pivot), instruction(ALWAYS, 0, 0, low.len() as u32)],
    };
    code.extend(low);
    code.extend(tree(high));
    code
}

/// Loads a filter into the calling thread, for good. [`super::capability::no_new_privs`] comes first.
///
/// # Errors
/// EACCES without no_new_privs (or CAP_SYS_ADMIN), EINVAL for code the kernel's verifier refuses.
pub fn load(program: &[sock_filter]) -> Result<()> {
    let len = u16::try_from(program.len()).unwrap_or(0);
    ensure!(len > 0, "seccomp: a filter of {} instructions", program.len());
    // Never written to: the type has a *mut because BPF programs share it with other calls.
    let fprog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: fprog points at `len` instructions, alive over the call; the kernel copies them and writes nothing.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const fprog) };
    ensure_zero(rc).context("load the system call filter: seccomp(SECCOMP_SET_MODE_FILTER)")
}

fn ensure_zero(rc: libc::c_long) -> Result<()> {
    if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would for one call, enough of classic BPF for what is generated.
    fn verdict(program: &[sock_filter], number: i64, args: [u64; 6]) -> u32 {
        #[cfg(target_arch = "x86_64")]
        const ARCH: u32 = 0xc000_003e;
        #[cfg(target_arch = "aarch64")]
        const ARCH: u32 = 0xc000_00b7;
        let mut data = Vec::new();
        data.extend(u32::try_from(number).unwrap().to_ne_bytes());
        data.extend(ARCH.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
        let word = |at: u32| u32::from_ne_bytes(data[at as usize..][..4].try_into().unwrap());
        let (mut at, mut acc) = (0usize, 0u32);
        loop {
            let i = program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                0x20 => acc = word(i.k),
                0x54 => acc &= i.k,
                0x05 => at += i.k as usize,
                0x15 => at += jump(acc == i.k),
                0x25 => at += jump(acc > i.k),
                0x35 => at += jump(acc >= i.k),
                0x06 => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    #[test]
    fn a_capability_opens_its_calls_and_no_other() {
        let none = program(CapabilitySet::empty());
        let admin = program(CapabilitySet::SYS_ADMIN);
        let bpf = program(CapabilitySet::BPF);
        for call in [libc::SYS_mount, libc::SYS_unshare, libc::SYS_setns, libc::SYS_open_tree, libc::SYS_bpf]
        {
            assert_eq!(verdict(&none, call, [0; 6]), EPERM, "call {call}");
            assert_eq!(verdict(&admin, call, [0; 6]), ALLOW, "call {call}");
        }
        assert_eq!(verdict(&bpf, libc::SYS_bpf, [0; 6]), ALLOW);
        assert_eq!(verdict(&bpf, libc::SYS_mount, [0; 6]), EPERM);
        assert_eq!(verdict(&admin, libc::SYS_chroot, [0; 6]), EPERM);
    }

    #[test]
    fn named_and_refused_is_eperm_unnamed_is_enosys() {
        let none = program(CapabilitySet::empty());
        assert_eq!(verdict(&none, libc::SYS_read, [0; 6]), ALLOW);
        assert_eq!(verdict(&none, libc::SYS_exit_group, [0; 6]), ALLOW);
        assert_eq!(verdict(&none, libc::SYS_keyctl, [0; 6]), EPERM);
        assert_eq!(verdict(&none, libc::SYS_clone3, [0; 6]), ENOSYS);
        assert_eq!(verdict(&none, 999, [0; 6]), ENOSYS);
        // x32 calls come with bit 30 set and x86_64's own audit number.
        assert_eq!(verdict(&none, 0x4000_0000 | libc::SYS_mount, [0; 6]), ENOSYS);
    }

    #[test]
    fn arguments_are_compared_in_their_low_32_bits() {
        let none = program(CapabilitySet::empty());
        let high = 1 << 40;
        let clone = |flags: i32| verdict(&none, libc::SYS_clone, [flags as u32 as u64, 0, 0, 0, 0, 0]);
        assert_eq!(clone(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND), ALLOW);
        for flag in [libc::CLONE_NEWNS, libc::CLONE_NEWUSER, libc::CLONE_NEWPID, libc::CLONE_NEWNET] {
            assert_eq!(clone(flag | libc::SIGCHLD), EPERM, "flag {flag:#x}");
        }
        let ioctl = |request: u64| verdict(&none, libc::SYS_ioctl, [0, request, 0, 0, 0, 0]);
        assert_eq!(ioctl(libc::TCGETS), ALLOW);
        assert_eq!(ioctl(libc::TIOCSTI), EPERM);
        assert_eq!(ioctl(libc::TIOCSTI | high), EPERM);
        let socket = |family: i32| verdict(&none, libc::SYS_socket, [family as u64, 1, 0, 0, 0, 0]);
        assert_eq!(socket(libc::AF_INET6), ALLOW);
        assert_eq!(socket(libc::AF_ALG), EPERM);
        assert_eq!(socket(libc::AF_VSOCK), EPERM);
        assert_eq!(socket(libc::AF_XDP), ALLOW);
        let personality = |value: u64| verdict(&none, libc::SYS_personality, [value, 0, 0, 0, 0, 0]);
        assert_eq!(personality(0xffff_ffff), ALLOW);
        assert_eq!(personality(libc::ADDR_NO_RANDOMIZE as u64), EPERM);
    }

    #[test]
    fn every_named_call_has_its_verdict_and_every_other_none() {
        for kept in
            [CapabilitySet::empty(), CapabilitySet::SYS_NICE | CapabilitySet::SYS_TIME, CapabilitySet::all()]
        {
            let program = program(kept);
            for number in 0..2000 {
                let call = CALLS.iter().find(|call| call.number == number);
                let code = match call {
                    Some(call) if call.any.intersects(kept) => VERDICTS[super::ALLOW],
                    Some(call) => VERDICTS[call.verdict],
                    None => VERDICTS[UNNAMED],
                };
                let [only] = code else { continue };
                assert_eq!(verdict(&program, number.into(), [0; 6]), only.k, "call {number}");
            }
        }
        // The list is sorted, which the spans rely on.
        assert!(CALLS.is_sorted_by(|a, b| a.number < b.number));
    }

    #[test]
    fn is_small_since_loading_runs_it_for_every_call() {
        for kept in [CapabilitySet::empty(), CapabilitySet::all()] {
            assert!(program(kept).len() < 400, "{}", program(kept).len());
        }
    }
}
