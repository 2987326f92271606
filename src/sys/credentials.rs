//! Becoming a user with limited power, for good. credentials(7), setresuid(2), capabilities(7).
//!
//! The order is the whole matter: the bounding set needs CAP_SETPCAP and setgroups needs CAP_SETGID, both of which are
//! gone after setresuid; and setresuid from root to another user empties the permitted set by itself. All
//! three ids change, since a saved uid of 0 could be taken back.

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::capability::{self, CapabilitySet};

/// Who a process is to be.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id.
    pub gid: u32,
    /// Supplementary groups; the caller's own ones are dropped.
    pub groups: Vec<u32>,
    /// The bounding set; for uid 0 the permitted and effective set too. Other users start with none.
    pub keep: CapabilitySet,
}

impl Credentials {
    /// Turns the calling thread into this user, with `no_new_privs` set. There is no way back.
    ///
    /// It also clears the parent-death signal and the dumpable flag (prctl(2)), up to the next execve: set the first afterwards.
    pub fn assume(&self) -> Result<()> {
        // To the system call -1 means "leave it as it is": the process would stay root.
        ensure!(self.uid != u32::MAX && self.gid != u32::MAX, "4294967295 is not a user or group id");
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let groups: Vec<_> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        capability::drop_bounding(self.keep)?;
        setgroups(&groups).with_context(|| format!("setgroups({:?})", self.groups))?;
        setresgid(gid, gid, gid).with_context(|| format!("setresgid({gid})"))?;
        setresuid(uid, uid, uid).with_context(|| format!("setresuid({uid})"))?;
        // Once it has no more power than they, whoever has the same id could otherwise read and write this memory, up to the
        // execve: the host's environment is in it, and it may be pid 1's (`child::spawn`). Only now, because a change of user
        // sets the flag where fs.suid_dumpable is 1.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context("prctl(PR_SET_DUMPABLE)")?;
        let held = if uid.is_root() { self.keep } else { CapabilitySet::empty() };
        capability::set(held)?;
        capability::no_new_privs()
    }
}
