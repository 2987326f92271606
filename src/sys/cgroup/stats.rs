//! What a group uses. cgroup-v2.rst (memory.*, cpu.stat, pids.*), cgroup-v1/memory.rst, cpuacct.rst.
//!
//! The surprise: memory "in use" includes the page cache, which goes away under pressure; a database's group sits
//! at its limit for ever and is fine. `memory_inactive_file` is the part to subtract for a useful figure.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::limits::{memory_limit, parse_limit};
use super::{Cgroup, Controller, UNLIMITED, os};

/// A snapshot; a field is `None` where this kernel has no such file (and, for limits, where there is no limit).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Bytes charged now, page cache included.
    pub memory_current: Option<u64>,
    /// The most ever charged, in bytes (v2: Linux 5.19).
    pub memory_peak: Option<u64>,
    /// The limit in bytes, `None` when unlimited.
    pub memory_max: Option<u64>,
    /// Bytes of page cache not used lately, the first to be reclaimed.
    pub memory_inactive_file: Option<u64>,
    /// Bytes of swap in use.
    pub swap_current: Option<u64>,
    /// Processes of the group killed for lack of memory.
    pub oom_kills: Option<u64>,
    /// CPU time used, in microseconds.
    pub cpu_usage_usec: Option<u64>,
    /// Bandwidth periods in which the group wanted to run.
    pub nr_periods: Option<u64>,
    /// Periods in which it ran out of quota.
    pub nr_throttled: Option<u64>,
    /// Time spent out of quota, in microseconds.
    pub throttled_usec: Option<u64>,
    /// Tasks now.
    pub pids_current: Option<u64>,
    /// The limit of tasks, `None` when unlimited.
    pub pids_max: Option<u64>,
    /// How often a fork was refused.
    pub pids_refused: Option<u64>,
}

impl Cgroup {
    /// Reads the group's counters.
    ///
    /// # Errors
    /// When the group does not exist, or a file can't be read for another reason than being absent.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        match self.hierarchy.is_v2(Controller::Memory) {
            true => self.memory_v2(&mut stats)?,
            false => self.memory_v1(&mut stats)?,
        }
        self.cpu(&mut stats)?;
        let pids = self.dir_of(Controller::Pids)?;
        stats.pids_current = number(&pids.join("pids.current"))?;
        stats.pids_max = limit(&pids.join("pids.max"))?;
        stats.pids_refused = text(&pids.join("pids.events"))?.and_then(|t| field(&t, "max"));
        Ok(stats)
    }

    /// The file with the counter of those that were killed for lack of memory, in the line `oom_kill`.
    pub fn oom_counter(&self) -> Option<std::fs::File> {
        let name =
            if self.hierarchy.is_v2(Controller::Memory) { "memory.events" } else { "memory.oom_control" };
        std::fs::File::open(self.dir_of(Controller::Memory).ok()?.join(name)).ok()
    }

    fn memory_v2(&self, stats: &mut Stats) -> Result<()> {
        let dir = self.existing(Controller::Memory)?;
        stats.memory_current = number(&dir.join("memory.current"))?;
        stats.memory_peak = number(&dir.join("memory.peak"))?;
        stats.memory_max = limit(&dir.join("memory.max"))?;
        stats.memory_inactive_file = text(&dir.join("memory.stat"))?.and_then(|t| field(&t, "inactive_file"));
        stats.swap_current = number(&dir.join("memory.swap.current"))?;
        stats.oom_kills = text(&dir.join("memory.events"))?.and_then(|t| field(&t, "oom_kill"));
        Ok(())
    }

    fn memory_v1(&self, stats: &mut Stats) -> Result<()> {
        let dir = self.existing(Controller::Memory)?;
        let stat = text(&dir.join("memory.stat"))?.unwrap_or_default();
        stats.memory_current = number(&dir.join("memory.usage_in_bytes"))?;
        stats.memory_peak = number(&dir.join("memory.max_usage_in_bytes"))?;
        let max = number(&dir.join("memory.limit_in_bytes"))?.map(memory_limit);
        stats.memory_max = max.filter(|&max| max != UNLIMITED);
        stats.memory_inactive_file = field(&stat, "total_inactive_file");
        stats.swap_current = field(&stat, "total_swap");
        stats.oom_kills = text(&dir.join("memory.oom_control"))?.and_then(|t| field(&t, "oom_kill"));
        Ok(())
    }

    fn cpu(&self, stats: &mut Stats) -> Result<()> {
        let stat = text(&self.existing(Controller::Cpu)?.join("cpu.stat"))?.unwrap_or_default();
        stats.nr_periods = field(&stat, "nr_periods");
        stats.nr_throttled = field(&stat, "nr_throttled");
        let v1_nanoseconds = || field(&stat, "throttled_time").map(|ns| ns / 1000);
        stats.throttled_usec = field(&stat, "throttled_usec").or_else(v1_nanoseconds);
        // Every v2 group accounts CPU time, also where the cpu controller itself is a v1 one.
        stats.cpu_usage_usec = match self.unified_dir() {
            Some(dir) => text(&dir.join("cpu.stat"))?.and_then(|t| field(&t, "usage_usec")),
            None if self.hierarchy.mount_of(Controller::Cpuacct).is_none() => None,
            None => number(&self.dir_of(Controller::Cpuacct)?.join("cpuacct.usage"))?.map(|ns| ns / 1000),
        };
        Ok(())
    }

    /// The controller's directory, which must be there: absent files in it then mean "not in this kernel".
    fn existing(&self, controller: Controller) -> Result<std::path::PathBuf> {
        let dir = self.dir_of(controller)?;
        std::fs::metadata(&dir).map_err(os).with_context(|| format!("cgroup {}", dir.display()))?;
        Ok(dir)
    }
}

/// The number after `name` in a `name number` list.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    let line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(line)
}

fn text(file: &Path) -> Result<Option<String>> {
    match crate::sys::fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some).map_err(os).with_context(|| format!("read {}", file.display())),
    }
}

fn number(file: &Path) -> Result<Option<u64>> {
    let Some(text) = text(file)? else { return Ok(None) };
    let number =
        parse_limit(&text).with_context(|| format!("{}: not a number: {}", file.display(), text.trim()))?;
    Ok(Some(number))
}

fn limit(file: &Path) -> Result<Option<u64>> {
    Ok(number(file)?.filter(|&limit| limit != UNLIMITED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_whole_names() {
        let events = "low 0\nhigh 3\nmax 17\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(field(events, "oom"), Some(2));
        assert_eq!(field(events, "oom_kill"), Some(1));
        assert_eq!(field(events, "oo"), None);
        assert_eq!(field("total_inactive_file 5\ninactive_file 9\n", "inactive_file"), Some(9));
    }
}
