//! Capabilities: root's power in about forty parts. capabilities(7), capget(2), prctl(2).
//!
//! A thread has five sets, and the surprising one is the *bounding* set: it is the ceiling for what any
//! later execve can bring back. Dropping the permitted set alone is worth nothing for uid 0, because an
//! execve by root raises permitted to the bounding set again. So the bounding set goes first, while
//! CAP_SETPCAP is still there, and it never comes back for this process or a child.
//!
//! The inheritable set stays empty: a filled one hands capabilities to programs whose file has inheritable
//! bits, for any user (CVE-2022-24769).

use std::fs;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{self, CapabilitySets};

/// A set of capabilities, one bit each, numbered as in `<linux/capability.h>`.
pub use rustix::thread::CapabilitySet;

/// Highest number that fits the kernel's 64-bit masks; the running kernel knows fewer (cap_last_cap).
const MOST: u32 = 63;

/// Parses names separated by commas or blanks: `cap_chown`, `CAP_CHOWN` and `chown` are the same, `all` is
/// every capability known here, an empty list the empty set.
///
/// # Errors
/// A name that is not in capabilities(7).
pub fn parse(list: &str) -> Result<CapabilitySet> {
    let mut set = CapabilitySet::empty();
    for word in list.split([',', ' ', '\t', '\n']).filter(|w| !w.is_empty()) {
        let upper = word.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            set |= known();
        } else {
            set |= CapabilitySet::from_name(name)
                .with_context(|| format!("{word:?} is not a capability; see capabilities(7)"))?;
        }
    }
    Ok(set)
}

/// Every capability that has a name here. (`CapabilitySet::all()` is all 64 bits.)
pub fn known() -> CapabilitySet {
    CapabilitySet::all().iter_names().fold(CapabilitySet::empty(), |set, (_, one)| set | one)
}

/// The names of a set in numerical order, `CAP_CHOWN` and so on; a number that has no name here is shown as
/// capsh(1) does, `41`.
pub fn names(set: CapabilitySet) -> Vec<String> {
    (0..=MOST)
        .map(|number| CapabilitySet::from_bits_retain(1 << number))
        .filter(|one| set.contains(*one))
        .map(|one| match one.iter_names().next() {
            Some((name, _)) => format!("CAP_{name}"),
            None => one.bits().trailing_zeros().to_string(),
        })
        .collect()
}

/// Drops everything but `keep` from the calling thread's bounding set. Needs CAP_SETPCAP.
pub fn drop_bounding(keep: CapabilitySet) -> Result<()> {
    for number in 0..=MOST {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(one) {
            continue;
        }
        match thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Past the last capability this kernel knows. Asking the kernel beats reading
            // /proc/sys/kernel/cap_last_cap: it needs no /proc and drops what is newer than our table.
            Err(Errno::INVAL) => break,
            Err(errno) => {
                return Err(errno).with_context(|| {
                    format!("drop {} from the bounding set: prctl(PR_CAPBSET_DROP)", names(one).concat())
                });
            }
        }
    }
    Ok(())
}

/// Makes `set` the permitted and effective sets of the calling thread, and empties the inheritable one; with that also the
/// ambient one, which would survive an execve by an ordinary user.
///
/// # Errors
/// A capability that the thread does not have (the kernel's EPERM does not say which one).
pub fn set(set: CapabilitySet) -> Result<()> {
    let held = thread::capabilities(None).context("read own capabilities: capget")?.permitted;
    let missing = set.difference(held);
    if !missing.is_empty() {
        bail!("capset: this process does not have {}", names(missing).join(", "));
    }
    let sets = CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, sets).context("capset")
}

/// Sets `no_new_privs`: from now on no execve gains anything by set-user-ID bits or file capabilities. It
/// can't be unset, and an unprivileged thread needs it before [`super::seccomp::load`].
pub fn no_new_privs() -> Result<()> {
    thread::set_no_new_privs(true).context("prctl(PR_SET_NO_NEW_PRIVS)")
}

/// What `/proc/PID/status` says about a process's privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Granted on execve of a file with inheritable bits.
    pub inheritable: CapabilitySet,
    /// What the thread may make effective.
    pub permitted: CapabilitySet,
    /// What the kernel checks.
    pub effective: CapabilitySet,
    /// The ceiling for any later execve.
    pub bounding: CapabilitySet,
    /// Kept over an execve by an ordinary user.
    pub ambient: CapabilitySet,
    /// Whether execve may no longer add privileges.
    pub no_new_privs: bool,
    /// Whether a seccomp filter (mode 2) is loaded.
    pub filtered: bool,
}

/// Reads the privileges of a process in this /proc.
pub fn status(pid: Pid) -> Result<Status> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse_status(&text).with_context(|| format!("read {path}"))
}

fn parse_status(text: &str) -> Result<Status> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .with_context(|| format!("no line {name}"))
    };
    let mask = |name: &str| -> Result<CapabilitySet> {
        let bits = u64::from_str_radix(field(name)?, 16).with_context(|| format!("line {name}"))?;
        Ok(CapabilitySet::from_bits_retain(bits))
    };
    Ok(Status {
        inheritable: mask("CapInh")?,
        permitted: mask("CapPrm")?,
        effective: mask("CapEff")?,
        bounding: mask("CapBnd")?,
        ambient: mask("CapAmb")?,
        no_new_privs: field("NoNewPrivs")? == "1",
        filtered: field("Seccomp")? == "2",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_the_kernel_header() {
        assert_eq!(parse("cap_chown").unwrap().bits(), 1);
        assert_eq!(parse("NET_RAW").unwrap().bits(), 1 << 13);
        assert_eq!(parse("Cap_Checkpoint_Restore").unwrap().bits(), 1 << 40);
        assert_eq!(parse("all").unwrap().bits(), (1 << 41) - 1);
        assert_eq!(parse(" chown,  kill ").unwrap(), CapabilitySet::CHOWN | CapabilitySet::KILL);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn an_unknown_name_is_an_error_that_shows_it() {
        let error = parse("cap_chown,cap_fly").unwrap_err();
        assert!(format!("{error:#}").contains("cap_fly"), "{error:#}");
    }

    #[test]
    fn names_come_back_in_order_with_unknown_numbers_kept() {
        let set = CapabilitySet::from_bits_retain(1 << 50) | CapabilitySet::SYS_ADMIN | CapabilitySet::CHOWN;
        assert_eq!(names(set), ["CAP_CHOWN", "CAP_SYS_ADMIN", "50"]);
    }

    #[test]
    fn reads_every_set_of_a_status_file() {
        let text = "Name:\tx\nCapInh:\t0000000000000001\nCapPrm:\t0000000000000002\nCapEff:\t0000000000000004\n\
                    CapBnd:\t0000000000000008\nCapAmb:\t0000000000000010\nNoNewPrivs:\t1\nSeccomp:\t2\n\
                    Seccomp_filters:\t1\n";
        let status = parse_status(text).unwrap();
        let bits = [status.inheritable, status.permitted, status.effective, status.bounding, status.ambient];
        assert_eq!(bits.map(|set| set.bits()), [1, 2, 4, 8, 16]);
        assert!(status.no_new_privs && status.filtered);
        assert!(parse_status("CapInh:\t0\n").is_err());
    }
}
