//! The guard: a process in the foreground, one a lab, that fails over by itself when the primary dies or is cut off.
//!
//! What counts as a failure, and what does not ([`sight`] decides, without touching anything):
//!
//! * **It is dead**: its pid 1 has ended, and nobody asked it to. A pidfd says so within a millisecond.
//! * **It is silent**: for the whole of `--detect` it answered no query that came from this host, whether it is frozen, cut
//!   off from the host, or its postmaster has crashed and the restart policy did not bring it back by then.
//! * **It is cut off from its standbys**: by the synchronous rule its commits wait, and standbys that run and answer say
//!   that they do not hear it. Without such a rule a primary that has lost its standbys does its work, and is let be.
//! * A primary that was *asked* to stop or to restart, by whatever command, is not touched, nor one that was started and
//!   has not come up yet, nor one that a host's reboot has ended.
//!
//! The rule that surprises people: what was seen may be over by the time that the lab's lock is held, because the command
//! that held it was a switchover. So everything is looked at again under the lock, before the old primary is held still.

mod act;
mod event;
mod probe;
mod readers;
mod sight;
mod standbys;
mod watch;

use std::time::Duration;

use crate::spec::Name;

pub use event::{Event, Line};
pub use watch::watch;

/// What a guard is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// A node of the cluster that is meant, where a lab has several.
    pub node: Option<Name>,
    /// How long a primary may be silent.
    pub detect: Duration,
    /// Fail over also when acknowledged transactions are lost by that.
    pub accept_loss: bool,
}
