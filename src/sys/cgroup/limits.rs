//! Limits: from numbers to files, in an order that the kernel accepts. Pure, so that a dry run can print it.
//! cgroup-v2.rst (memory.max, memory.high, memory.swap.max, memory.oom.group, cpu.max, pids.max), cgroup-v1/memory.rst,
//! sched-bwc.rst.
//!
//! The surprises: v1's `memory.memsw.limit_in_bytes` is memory *plus* swap while v2's `memory.swap.max` is swap
//! alone; memsw may never be below the memory limit, so which of the two comes first depends on the direction;
//! and memory values are rounded down to pages.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Controller, Hierarchy};
use crate::sys::memory::page_size;

/// As a limit: none (`max` in v2, `-1` in v1).
pub const UNLIMITED: u64 = u64::MAX;

/// What to limit; `None` leaves the present value alone, [`UNLIMITED`] takes a limit away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, page cache and shared memory included; above it the kernel reclaims, then kills.
    pub memory_max: Option<u64>,
    /// Bytes above which allocations are slowed down and reclaimed; v2 only.
    pub memory_high: Option<u64>,
    /// Bytes of swap, without memory.
    pub swap_max: Option<u64>,
    /// CPU time.
    pub cpu: Option<CpuQuota>,
    /// Number of tasks (threads count).
    pub pids_max: Option<u64>,
    /// Whether an OOM kill takes the whole group instead of one process; v2 only.
    pub oom_group: Option<bool>,
}

/// CPU bandwidth: `quota_us` of CPU time in each `period_us`, both in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuQuota {
    /// At least 1000, or [`UNLIMITED`].
    pub quota_us: u64,
    /// 1000 to 1,000,000.
    pub period_us: u64,
}

impl CpuQuota {
    /// So many thousandths of one CPU, in the kernel's default period of 100 ms. Below 10 the kernel
    /// refuses (a quota is at least 1 ms).
    pub fn from_millis(cpu_millis: u64) -> CpuQuota {
        CpuQuota { quota_us: cpu_millis.saturating_mul(100), period_us: 100_000 }
    }
}

/// A value as the kernel understands it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Memory, rounded down to whole pages by the kernel; its text depends on v1 or v2.
    Bytes {
        /// Bytes, or [`UNLIMITED`].
        bytes: u64,
        /// How "no limit" is written.
        v2: bool,
    },
    /// A number or `max`.
    Count(u64),
    /// v2's cpu.max: `QUOTA PERIOD` or `max PERIOD`.
    CpuMax(CpuQuota),
    /// v1's cfs files: microseconds, `-1` for none.
    Micros(u64),
    /// `0` or `1`.
    Flag(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: u64, none: &str| if n == UNLIMITED { none.to_owned() } else { n.to_string() };
        match *self {
            Value::Bytes { bytes, v2 } => f.write_str(&number(bytes, if v2 { "max" } else { "-1" })),
            Value::Count(n) => f.write_str(&number(n, "max")),
            Value::CpuMax(cpu) => write!(f, "{} {}", number(cpu.quota_us, "max"), cpu.period_us),
            Value::Micros(n) => f.write_str(&number(n, "-1")),
            Value::Flag(on) => f.write_str(if on { "1" } else { "0" }),
        }
    }
}

impl Value {
    /// Whether the text that the kernel gave back means this value.
    pub(super) fn matches(&self, text: &str, page: u64) -> bool {
        let mut words = text.split_whitespace();
        let mut next = || words.next().and_then(parse_limit);
        match *self {
            Value::Bytes { bytes, .. } => next().map(|got| pages(got, page)) == Some(pages(bytes, page)),
            Value::Count(n) | Value::Micros(n) => next() == Some(n),
            Value::CpuMax(cpu) => (next(), next()) == (Some(cpu.quota_us), Some(cpu.period_us)),
            Value::Flag(on) => next() == Some(u64::from(on)),
        }
    }
}

/// `max` and `-1` are [`UNLIMITED`].
pub(super) fn parse_limit(word: &str) -> Option<u64> {
    match word.trim() {
        "max" | "-1" => Some(UNLIMITED),
        number => number.parse().ok(),
    }
}

/// Bytes as the kernel's page counter holds them; v1 prints its maximum (9223372036854771712) for "no limit".
fn pages(bytes: u64, page: u64) -> u64 {
    (bytes / page).min(i64::MAX as u64 / page)
}

/// [`UNLIMITED`] for a v1 memory value that stands for it.
pub(super) fn memory_limit(bytes: u64) -> u64 {
    if pages(bytes, page_size()) == pages(UNLIMITED, page_size()) { UNLIMITED } else { bytes }
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Whose file it is; [`Cgroup::dir_of`] gives the directory.
    pub controller: Controller,
    /// The file's name, for example `memory.max`.
    pub file: &'static str,
    /// What is written; `to_string` is the exact text.
    pub value: Value,
}

impl Write {
    /// Files that a kernel may lack without breaking the essential limits.
    pub(super) fn optional(&self) -> bool {
        matches!(self.file, "memory.swap.max" | "memory.memsw.limit_in_bytes" | "memory.oom.group")
    }
}

/// A limit that this host can't have; the others hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmet {
    /// The kernel counts no swap (v1: boot with `swapaccount=1`): this file is missing.
    SwapAccounting(PathBuf),
    /// v1 has nothing that means the same as this v2 file.
    NotInV1(&'static str),
    /// v1 limits memory plus swap, so a swap limit needs a memory limit.
    SwapNeedsMemory,
    /// The kernel is too old for this file.
    Missing(PathBuf),
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmet::SwapAccounting(file) => {
                write!(f, "swap is not limited: this kernel counts no swap (no {})", file.display())
            }
            Unmet::NotInV1(file) => write!(f, "{file} is not set: cgroup v1 has no such limit"),
            Unmet::SwapNeedsMemory => {
                write!(f, "swap is not limited: cgroup v1 limits memory plus swap, and memory is unlimited")
            }
            Unmet::Missing(file) => write!(f, "this kernel has no {}", file.display()),
        }
    }
}

/// The memory limits that a v1 group has now.
#[derive(Debug, Clone, Copy)]
pub(super) struct V1Memory {
    pub(super) limit: u64,
    pub(super) memsw: u64,
}

/// The files to write for a *new* group, in order. Pure: what a dry run prints is what [`Cgroup::apply`] does.
/// For a group that has limits already use [`Cgroup::changes`].
pub fn writes(hierarchy: &Hierarchy, limits: &Limits) -> Vec<Write> {
    let fresh = V1Memory { limit: UNLIMITED, memsw: UNLIMITED };
    ordered(hierarchy, limits, fresh)
}

/// Which of `limits` this kind of host can't express at all; [`writes`] leaves those out.
pub fn unmet(hierarchy: &Hierarchy, limits: &Limits) -> Vec<Unmet> {
    let mut unmet = Vec::new();
    if hierarchy.is_v2(Controller::Memory) {
        return unmet;
    }
    if limits.memory_high.is_some_and(|high| high != UNLIMITED) {
        unmet.push(Unmet::NotInV1("memory.high"));
    }
    if limits.oom_group == Some(true) {
        unmet.push(Unmet::NotInV1("memory.oom.group"));
    }
    let unlimited_memory = limits.memory_max.is_none_or(|max| max == UNLIMITED);
    if unlimited_memory && limits.swap_max.is_some_and(|swap| swap != UNLIMITED) {
        unmet.push(Unmet::SwapNeedsMemory);
    }
    unmet
}

pub(super) fn ordered(hierarchy: &Hierarchy, limits: &Limits, now: V1Memory) -> Vec<Write> {
    let mut list = match hierarchy.is_v2(Controller::Memory) {
        true => memory_v2(limits),
        false => memory_v1(limits, now),
    };
    let cpu = |file, value| Write { controller: Controller::Cpu, file, value };
    match limits.cpu {
        Some(quota) if hierarchy.is_v2(Controller::Cpu) => list.push(cpu("cpu.max", Value::CpuMax(quota))),
        Some(quota) => {
            list.push(cpu("cpu.cfs_period_us", Value::Micros(quota.period_us)));
            list.push(cpu("cpu.cfs_quota_us", Value::Micros(quota.quota_us)));
        }
        None => {}
    }
    let pids = limits.pids_max.map(Value::Count);
    list.extend(pids.map(|value| Write { controller: Controller::Pids, file: "pids.max", value }));
    list
}

fn memory(file: &'static str, value: Value) -> Write {
    Write { controller: Controller::Memory, file, value }
}

fn memory_v2(limits: &Limits) -> Vec<Write> {
    let bytes = |file, bytes: Option<u64>| bytes.map(|bytes| memory(file, Value::Bytes { bytes, v2: true }));
    // memory.high after memory.max: a high set first would throttle a group that memory.max is about to relieve.
    let files = [
        bytes("memory.max", limits.memory_max),
        bytes("memory.high", limits.memory_high),
        bytes("memory.swap.max", limits.swap_max),
        limits.oom_group.map(|on| memory("memory.oom.group", Value::Flag(on))),
    ];
    files.into_iter().flatten().collect()
}

fn memory_v1(limits: &Limits, now: V1Memory) -> Vec<Write> {
    let limit = limits.memory_max.unwrap_or(now.limit);
    let swap = match limits.swap_max {
        Some(swap) => Some(swap),
        // Changing memory alone must not change swap, so memsw moves along.
        None if limits.memory_max.is_some() && now.memsw != UNLIMITED => {
            Some(now.memsw.saturating_sub(now.limit))
        }
        None => None,
    };
    let set = |file, bytes| memory(file, Value::Bytes { bytes, v2: false });
    let limit_write = limits.memory_max.map(|_| set("memory.limit_in_bytes", limit));
    let memsw = swap.map(|swap| limit.saturating_add(swap));
    // An unlimited memsw is what a group starts with: nothing to write, also where the file is missing.
    let memsw = memsw.filter(|&memsw| memsw != UNLIMITED || now.memsw != UNLIMITED);
    let memsw_write = memsw.map(|memsw| set("memory.memsw.limit_in_bytes", memsw));
    // The kernel keeps limit <= memsw at every moment: raise memsw first, lower it last.
    match memsw.is_some_and(|memsw| memsw > now.memsw) {
        true => memsw_write.into_iter().chain(limit_write).collect(),
        false => limit_write.into_iter().chain(memsw_write).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn unified() -> Hierarchy {
        Hierarchy::parse("1 1 0:1 / /c rw - cgroup2 cgroup2 rw", |_| Ok("memory cpu pids".into())).unwrap()
    }

    fn legacy() -> Hierarchy {
        let text = ["memory", "cpu", "pids"].map(|c| format!("1 1 0:1 / /c/{c} rw - cgroup cgroup rw,{c}\n"));
        Hierarchy::parse(&text.concat(), |_| Ok(String::new())).unwrap()
    }

    fn lines(writes: &[Write]) -> Vec<String> {
        writes.iter().map(|w| format!("{} {}={}", w.controller, w.file, w.value)).collect()
    }

    fn all() -> Limits {
        Limits {
            memory_max: Some(1 << 30),
            memory_high: Some(900 << 20),
            swap_max: Some(0),
            cpu: Some(CpuQuota::from_millis(1500)),
            pids_max: Some(100),
            oom_group: Some(false),
        }
    }

    #[test]
    fn v2_files_and_values() {
        let want = [
            "memory memory.max=1073741824",
            "memory memory.high=943718400",
            "memory memory.swap.max=0",
            "memory memory.oom.group=0",
            "cpu cpu.max=150000 100000",
            "pids pids.max=100",
        ];
        assert_eq!(lines(&writes(&unified(), &all())), want);
        assert_eq!(unmet(&unified(), &all()), []);
        assert!(writes(&unified(), &Limits::default()).is_empty());
        let none = Limits { memory_max: Some(UNLIMITED), pids_max: Some(UNLIMITED), ..Limits::default() };
        assert_eq!(lines(&writes(&unified(), &none)), ["memory memory.max=max", "pids pids.max=max"]);
    }

    #[test]
    fn v1_files_count_swap_on_top_of_memory() {
        let want = [
            "memory memory.limit_in_bytes=1073741824",
            "memory memory.memsw.limit_in_bytes=1073741824",
            "cpu cpu.cfs_period_us=100000",
            "cpu cpu.cfs_quota_us=150000",
            "pids pids.max=100",
        ];
        assert_eq!(lines(&writes(&legacy(), &all())), want);
        assert_eq!(unmet(&legacy(), &all()), [Unmet::NotInV1("memory.high")]);
        let group = Limits { oom_group: Some(true), swap_max: Some(1), ..Limits::default() };
        assert_eq!(unmet(&legacy(), &group), [Unmet::NotInV1("memory.oom.group"), Unmet::SwapNeedsMemory]);
        assert!(writes(&legacy(), &group).is_empty());
    }

    #[test]
    fn v1_keeps_limit_below_memsw_in_both_directions() {
        let now = V1Memory { limit: 1000 * PAGE, memsw: 1500 * PAGE };
        let to = |pages: u64| Limits { memory_max: Some(pages * PAGE), ..Limits::default() };
        let files = |w: Vec<Write>| w.iter().map(|w| (w.file, w.value.to_string())).collect::<Vec<_>>();
        let (limit, memsw) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        let pages = |n: u64| (n * PAGE).to_string();
        assert_eq!(files(memory_v1(&to(2000), now)), [(memsw, pages(2500)), (limit, pages(2000))]);
        assert_eq!(files(memory_v1(&to(500), now)), [(limit, pages(500)), (memsw, pages(1000))]);
        assert_eq!(
            files(memory_v1(&Limits { memory_max: Some(UNLIMITED), ..Limits::default() }, now)),
            [(memsw, "-1".to_owned()), (limit, "-1".to_owned()),]
        );
        let swap = Limits { swap_max: Some(0), ..Limits::default() };
        assert_eq!(files(memory_v1(&swap, now)), [(memsw, pages(1000))]);
    }

    #[test]
    fn read_back_compares_meanings() {
        let bytes = |bytes| Value::Bytes { bytes, v2: true };
        for (value, text, same) in [
            (bytes(1_000_000), "999424\n", true), // 244 pages
            (bytes(1_000_000), "1003520\n", false),
            (bytes(UNLIMITED), "max\n", true),
            (bytes(UNLIMITED), "9223372036854771712\n", true),
            (bytes(4096), "max\n", false),
            (bytes(4096), "", false),
            (Value::Count(7), "7\n", true),
            (Value::Count(UNLIMITED), "max\n", true),
            (Value::Count(7), "max\n", false),
            (Value::CpuMax(CpuQuota::from_millis(500)), "50000 100000\n", true),
            (Value::CpuMax(CpuQuota::from_millis(500)), "max 100000\n", false),
            (Value::CpuMax(CpuQuota { quota_us: UNLIMITED, period_us: 100_000 }), "max 100000\n", true),
            (Value::Micros(UNLIMITED), "-1\n", true),
            (Value::Micros(50_000), "-1\n", false),
            (Value::Flag(false), "0\n", true),
            (Value::Flag(true), "0\n", false),
        ] {
            assert_eq!(value.matches(text, PAGE), same, "{value:?} against {text:?}");
        }
    }
}
