//! Limits set on a real group, each read back. cgroup-v2.rst, cgroup-v1/memory.rst.
//!
//! The surprise: on v2 a memory.max below what is in use is not refused, the kernel *kills* until it fits (v1
//! answers EBUSY). So [`Cgroup::apply`] makes room first, or refuses.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cgroups_rs::{
    MaxValue,
    cpu::CpuController,
    memory::{MemController, SetMemory},
    pid::PidController,
};
use nix::errno::Errno;

use super::limits::{V1Memory, memory_limit, ordered, parse_limit};
use super::{
    Cgroup, Controller, Limits, UNLIMITED, Unmet, Value, Write, crate_error, os, read, read_record, stats,
};
use crate::sys::memory::page_size;

impl Cgroup {
    /// The files to write for this *existing* group, in an order that its present limits allow.
    pub fn changes(&self, limits: &Limits) -> Result<Vec<Write>> {
        let mut now = V1Memory { limit: UNLIMITED, memsw: UNLIMITED };
        if !self.hierarchy.is_v2(Controller::Memory) {
            let dir = self.dir_of(Controller::Memory)?;
            now.limit = read_limit(&dir.join("memory.limit_in_bytes"))?;
            let memsw = dir.join("memory.memsw.limit_in_bytes");
            if memsw.exists() {
                now.memsw = read_limit(&memsw)?;
            }
        }
        Ok(ordered(&self.hierarchy, limits, now))
    }

    /// The full path of the file that `write` is about.
    pub fn file_of(&self, write: &Write) -> Result<PathBuf> {
        Ok(self.dir_of(write.controller)?.join(write.file))
    }

    /// Writes each file and reads it back. Returns what the kernel has no file for, for the caller to warn about.
    ///
    /// A memory.max below the live usage is not written: see [`make_room`](Self::make_room).
    ///
    /// # Errors
    /// A limit that the kernel refused or took differently: the file, what was wanted and what is there. Limits
    /// before it in the list stay set.
    pub fn apply(&self, writes: &[Write]) -> Result<Vec<Unmet>> {
        let mut unmet = Vec::new();
        for write in writes {
            let dir = self.dir_of(write.controller)?;
            let file = self.file_of(write)?;
            if write.optional() && !file.exists() && dir.is_dir() {
                unmet.push(match write.file {
                    "memory.oom.group" => Unmet::Missing(file),
                    _ => Unmet::SwapAccounting(file),
                });
                continue;
            }
            if let ("memory.max", Value::Bytes { bytes, .. }) = (write.file, write.value) {
                self.make_room(bytes)?;
            }
            set(&dir, &file, write)?;
            let got = read_record(&file)?;
            if !write.value.matches(&got, page_size()) {
                bail!(
                    "{}: the kernel did not take the limit: wanted {}, got {}",
                    file.display(),
                    write.value,
                    got.trim()
                );
            }
        }
        Ok(unmet)
    }

    /// Brings a v2 group's usage below `memory_max` before that becomes its limit, or refuses.
    ///
    /// Writing a memory.max below what is in use makes the kernel reclaim and then *kill* (v1 answers EBUSY
    /// instead, so nothing is needed there). So pages are reclaimed first (memory.reclaim, Linux 5.19); older
    /// kernels reclaim page cache as part of the write, so there only the rest is counted. What the group allocates
    /// between this look and the write counts against the new limit, as any later allocation does.
    ///
    /// # Errors
    /// When more than that stays in use; the limit is then as it was.
    pub fn make_room(&self, memory_max: u64) -> Result<()> {
        let dir = self.dir_of(Controller::Memory)?;
        let reclaim = dir.join("memory.reclaim");
        let usage = || read_limit(&dir.join("memory.current"));
        for _ in 0..5 {
            let excess = usage()?.saturating_sub(memory_max);
            if excess == 0 {
                return Ok(());
            }
            if !reclaim.exists() {
                break;
            }
            // EAGAIN means "not all of it"; the next look at memory.current tells how much is left.
            let _ = std::fs::write(&reclaim, excess.to_string());
        }
        let in_use = if reclaim.exists() { usage()? } else { usage()?.saturating_sub(page_cache(&dir)?) };
        if in_use > memory_max {
            let file = dir.join("memory.max");
            bail!(
                "{}: refused to lower it to {memory_max}: {in_use} bytes are in use and can't be reclaimed, the \
                 kernel would kill processes; free memory in the group first",
                file.display()
            );
        }
        Ok(())
    }
}

/// Writes one limit, through the typed controller of cgroups-rs where it has one.
fn set(dir: &Path, file: &Path, write: &Write) -> Result<()> {
    let dir = dir.to_owned();
    let done = match (write.file, write.value) {
        ("memory.max" | "memory.limit_in_bytes", Value::Bytes { bytes, v2 }) => {
            MemController::new(dir, v2).set_limit(signed(bytes)).map_err(crate_error)
        }
        ("memory.swap.max" | "memory.memsw.limit_in_bytes", Value::Bytes { bytes, v2 }) => {
            MemController::new(dir, v2).set_memswap_limit(signed(bytes)).map_err(crate_error)
        }
        ("cpu.cfs_period_us", Value::Micros(us)) => {
            CpuController::new(dir, false).set_cfs_period(us).map_err(crate_error)
        }
        ("cpu.cfs_quota_us", Value::Micros(us)) => {
            CpuController::new(dir, false).set_cfs_quota(signed(us)).map_err(crate_error)
        }
        (_, Value::CpuMax(cpu)) => CpuController::new(dir, true)
            .set_cfs_quota_and_period(Some(signed(cpu.quota_us)), Some(cpu.period_us))
            .map_err(crate_error),
        ("memory.high", Value::Bytes { bytes, .. }) => MemController::new(dir, true)
            .set_mem(SetMemory { high: Some(max_value(bytes)), ..SetMemory::default() })
            .map_err(crate_error),
        (_, Value::Count(max)) => {
            PidController::new(dir, false).set_pid_max(max_value(max)).map_err(crate_error)
        }
        // It has nothing for memory.oom.group.
        (_, value) => std::fs::write(file, value.to_string()).map_err(os),
    };
    done.map_err(|error| match file.exists() {
        true => error,
        // cgroups-rs opens with O_CREAT, which turns "no such file" into EACCES.
        false => Errno::ENOENT.into(),
    })
    .with_context(|| format!("set {} to {}", file.display(), write.value))
}

/// The crate's "no limit" is -1.
fn signed(limit: u64) -> i64 {
    if limit == UNLIMITED { -1 } else { i64::try_from(limit).unwrap_or(i64::MAX) }
}

fn max_value(limit: u64) -> MaxValue {
    if limit == UNLIMITED { MaxValue::Max } else { MaxValue::Value(signed(limit)) }
}

/// A single number of a cgroup file, [`UNLIMITED`] for `max` and for v1's greatest number.
fn read_limit(file: &Path) -> Result<u64> {
    let text = read(file)?;
    let number =
        parse_limit(&text).with_context(|| format!("{}: not a number: {}", file.display(), text.trim()))?;
    Ok(memory_limit(number))
}

/// Bytes on the file LRU lists, which the kernel reclaims without killing anybody.
fn page_cache(dir: &Path) -> Result<u64> {
    let text = read(&dir.join("memory.stat"))?;
    let field = |name| stats::field(&text, name).unwrap_or(0);
    Ok(field("active_file") + field("inactive_file"))
}
