//! Settings derived from the container's limits, as `--tune auto` does it.
//!
//! The rule that surprises people: inside a container the server still sees the whole machine's memory; only
//! the cgroup knows the limit, and whoever exceeds it is killed, not refused. `work_mem` counts for every
//! sort of every connection at once, so it is derived from what `shared_buffers` leaves, not from the limit.

use anyhow::{Result, bail};

use super::settings::Setting;

const MB: u64 = 1 << 20;

/// The least memory limit, in bytes, with which a server and its start have been seen to work.
pub const LEAST_MEMORY: u64 = 64 * MB;

/// The least number of processes: pid 1, the postmaster, its five helpers, and as many clients and workers of theirs
/// as one session may have. With fewer the server starts, forks in vain for ever, and never answers.
pub const LEAST_PIDS: u64 = 10;

/// What there is for a server, in bytes.
#[derive(Debug, Clone, Copy)]
pub enum Memory {
    /// The node's limit.
    Limit(u64),
    /// All of the machine's: the node has no limit.
    Machine(u64),
}

/// Settings for this memory, and a CPU limit in CPUs; without one there is nothing to derive from it.
pub fn tune(available: Memory, cpus: Option<f64>) -> Vec<Setting> {
    let mut settings = memory(available).to_vec();
    if let Some(cpus) = cpus {
        settings.extend(workers(cpus));
    }
    settings
}

fn memory(available: Memory) -> [Setting; 4] {
    const CONNECTIONS: u64 = 100;
    let (Memory::Limit(limit) | Memory::Machine(limit)) = available;
    let buffers = (limit / 4).clamp(16 * MB, 16 << 30);
    // Half of what is left, for the sorts; the other half is for the backends themselves and the page cache.
    let work = (limit.saturating_sub(buffers) / 2 / CONNECTIONS).clamp(MB, 256 * MB);
    let set = |name, bytes, why| Setting { name, value: megabytes(bytes), why };
    let (quarter, half, sixteenth) = match available {
        Memory::Limit(_) => (
            "a quarter of the memory limit",
            "half of the limit is page cache, roughly",
            "a sixteenth of the memory limit",
        ),
        Memory::Machine(_) => (
            "a quarter of this machine's memory, as there is no limit",
            "half of it is page cache, roughly",
            "a sixteenth of this machine's memory",
        ),
    };
    [
        set("shared_buffers", buffers, quarter),
        set("effective_cache_size", (limit / 2).max(32 * MB), half),
        set("maintenance_work_mem", (limit / 16).clamp(8 * MB, 2 << 30), sixteenth),
        set("work_mem", work, "half of what shared_buffers leaves, over 100 connections"),
    ]
}

fn workers(cpus: f64) -> [Setting; 3] {
    let cpus = cpus.ceil().max(1.0) as u64;
    let set = |name, value: u64, why| Setting { name, value: value.to_string(), why };
    [
        set("max_worker_processes", cpus.max(8), "the CPU limit, at least the default of 8"),
        set("max_parallel_workers", cpus, "the CPU limit"),
        set("max_parallel_workers_per_gather", (cpus / 2).min(4), "half of the CPU limit"),
    ]
}

fn megabytes(bytes: u64) -> String {
    format!("{}MB", bytes / MB)
}

/// A warning if `shared_buffers`, as it stands in the settings, is more than half of the memory limit.
pub fn buffers_warning(shared_buffers: &str, memory_limit: u64) -> Result<Option<String>> {
    let bytes = parse_memory(shared_buffers, 8192)?;
    Ok((bytes > memory_limit / 2).then(|| {
        format!(
            "shared_buffers = {shared_buffers} is more than half of the memory limit of {}: the kernel \
             may kill the server when sorts and connections need the rest",
            megabytes(memory_limit)
        )
    }))
}

/// Why a server with `huge_pages = on` would not start, and how it would; `value` gives its settings, `meminfo` is the text of
/// /proc/meminfo. It takes somewhat more than its shared_buffers, which only a server can say: less is certainly too little. `holds`: it
/// runs, and may have taken those already that are not free.
pub fn huge_pages_missing(
    value: impl Fn(&str) -> Option<String>,
    meminfo: &str,
    holds: bool,
) -> Result<Option<(String, String)>> {
    let on = value("huge_pages")
        .is_some_and(|on| ["on", "true", "yes", "1"].contains(&on.to_lowercase().as_str()));
    // Pages of another size have counters of their own.
    if !on || value("huge_page_size").is_some_and(|size| size != "0") {
        return Ok(None);
    }
    let field = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let page = field("Hugepagesize") << 10;
    if page == 0 {
        let way_out = "leave it out, or huge_pages=try takes some where there are any".to_owned();
        return Ok(Some(("this kernel has no huge pages for huge_pages=on".to_owned(), way_out)));
    }
    let buffers = value("shared_buffers").unwrap_or_else(|| "128MB".to_owned());
    let needed = parse_memory(&buffers, 8192)?.div_ceil(page);
    let (total, free) =
        (field("HugePages_Total"), field("HugePages_Free").saturating_sub(field("HugePages_Rsvd")));
    let available = if holds { total } else { free };
    Ok((available < needed).then(|| {
        let page = megabytes(page);
        // A tenth is for what else is in shared memory.
        let enough = total - available + needed + needed.div_ceil(10) + 8;
        (
            format!("huge_pages=on needs more than {needed} huge pages of {page} for shared_buffers, and {free} of {total} are free"),
            format!("sysctl vm.nr_hugepages={enough}; or huge_pages=try takes them only where there are enough"),
        )
    }))
}

/// Bytes of a memory setting (PostgreSQL manual 20.1.1): units are B, kB, MB, GB and TB, powers of 1024; a
/// bare number counts in `unit` bytes.
pub fn parse_memory(text: &str, unit: u64) -> Result<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, suffix) = text.split_at(digits);
    let factor = match suffix.trim() {
        "" => unit,
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => MB,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => bail!("{text:?} has no unit that PostgreSQL knows: B, kB, MB, GB, TB"),
    };
    match number.parse::<f64>() {
        Ok(number) => Ok((number * factor as f64) as u64),
        Err(_) => bail!("{text:?} is not an amount of memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_counted_before_they_are_missed() {
        let missing_where = |settings: &[(&str, &str)], free: u64, holds: bool| {
            let value = |name: &str| {
                settings.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            let meminfo = format!(
                "HugePages_Total:  80\nHugePages_Free:  {free}\nHugePages_Rsvd:  2\nHugepagesize:  2048 kB\n"
            );
            huge_pages_missing(value, &meminfo, holds).unwrap()
        };
        let missing = |settings: &[(&str, &str)], free: u64| missing_where(settings, free, false);
        assert_eq!(missing(&[("huge_pages", "off"), ("huge_pages", "try")], 0), None);
        assert_eq!(missing(&[("huge_pages", "on")], 66), None);
        let (why, way_out) = missing(&[("huge_pages", "ON"), ("shared_buffers", "200MB")], 70).unwrap();
        assert!(
            why.contains("more than 100 huge pages of 2MB") && why.contains("68 of 80 are free"),
            "{why}"
        );
        assert!(way_out.contains("vm.nr_hugepages=130"), "{way_out}");
        assert!(missing(&[("huge_pages", "on")], 65).is_some());
        // Those that it has already it gets again, and no more than there are.
        assert_eq!(missing_where(&[("huge_pages", "on")], 0, true), None);
        let more = [("huge_pages", "on"), ("shared_buffers", "200MB")];
        assert!(missing_where(&more, 0, true).unwrap().1.contains("vm.nr_hugepages=118"));
    }

    fn value(limit: u64, name: &str) -> u64 {
        let settings = tune(Memory::Limit(limit), None);
        parse_memory(&settings.iter().find(|s| s.name == name).unwrap().value, 1).unwrap()
    }

    #[test]
    fn everything_fits_in_the_limit() {
        for limit in [LEAST_MEMORY, 256 * MB, 1 << 30, 3 << 30, 64 << 30, 1 << 40] {
            assert!(value(limit, "shared_buffers") <= limit / 2, "{limit}");
            let sorts = 100 * value(limit, "work_mem");
            let fits = value(limit, "shared_buffers") + sorts <= limit;
            assert!(fits || value(limit, "work_mem") == MB, "{limit}");
        }
        assert_eq!(value(1 << 30, "shared_buffers"), 256 * MB);
    }

    #[test]
    fn without_a_limit_it_is_derived_from_the_machine() {
        let all = tune(Memory::Machine(1 << 30), None);
        assert!(all.iter().all(|s| !s.why.contains("the memory limit")) && all.len() == 4, "{all:?}");
        let half = tune(Memory::Machine(1 << 30), Some(0.5));
        assert!(half.iter().any(|s| s.name == "max_parallel_workers" && s.value == "1"));
        assert!(half.iter().any(|s| s.name == "max_parallel_workers_per_gather" && s.value == "0"));
    }

    #[test]
    fn memory_amounts_and_the_warning() {
        assert_eq!(parse_memory("128MB", 8192).unwrap(), 128 * MB);
        assert_eq!(parse_memory("16384", 8192).unwrap(), 128 * MB);
        assert_eq!(parse_memory("1.5 GB", 1).unwrap(), 1536 * MB);
        assert!(parse_memory("1gb", 1).is_err() && parse_memory("MB", 1).is_err());
        assert!(buffers_warning("600MB", 1 << 30).unwrap().is_some());
        assert!(buffers_warning("512MB", 1 << 30).unwrap().is_none());
    }
}
