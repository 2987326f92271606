//! Whom the kernel's OOM killer has ended in this node. cgroup-v2.rst (`memory.events`), cgroup-v1/memory.rst
//! (`memory.oom_control`).
//!
//! The rule that surprises people: nothing tells the parent of one that was killed. A SIGKILL is a SIGKILL; only the group's
//! counter grows, and that goes with the group. So it is compared whenever somebody has died of one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The group's counter, opened on the host.
pub struct OomCounter {
    file: Option<File>,
    seen: u64,
}

impl OomCounter {
    /// Counts from now on.
    pub fn new(file: Option<OwnedFd>) -> OomCounter {
        let mut counter = OomCounter { file: file.map(File::from), seen: 0 };
        counter.seen = counter.read().unwrap_or_default();
        counter
    }

    /// True if the OOM killer was at work since this was last asked; `None` where that can't be known.
    pub fn has_grown(&mut self) -> Option<bool> {
        let now = self.read()?;
        Some(now > std::mem::replace(&mut self.seen, now))
    }

    /// How many it has ended.
    pub fn total(&self) -> u64 {
        self.read().unwrap_or(self.seen)
    }

    fn read(&self) -> Option<u64> {
        let mut text = [0; 512];
        let read = self.file.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = String::from_utf8_lossy(&text[..read]).into_owned();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }
}

/// The process that died of signal 9, by the last line in which a postmaster says so in whatever language:
/// `server process (PID 44)`.
pub fn victim(log: &str) -> Option<&str> {
    let line = log.lines().rev().find(|line| line.contains("ignal 9") && line.contains("(PID "))?;
    let text = line.rsplit_once(":  ").map_or(line, |(_, text)| text);
    text.find(')').map(|end| &text[..=end])
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_victim_is_named_as_the_server_names_it() {
        let log = "x [1] LOG:  server process (PID 44) was terminated by signal 9: Killed\nx [1] DETAIL:  Failed process";
        assert_eq!(super::victim(log), Some("server process (PID 44)"));
        let log = "x LOG:  Serverprozess (PID 7) wurde von Signal 9 beendet: Get\u{f6}tet";
        assert_eq!(super::victim(log), Some("Serverprozess (PID 7)"));
        assert_eq!(super::victim("x LOG:  server process (PID 44) was terminated by signal 11"), None);
    }
}
