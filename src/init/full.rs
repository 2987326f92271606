//! A volume that is full: how that is noticed, and what has eaten the space. statvfs(3).
//!
//! The rule that surprises people: it is seldom the tables. A slot whose standby is away keeps all WAL since, and pg_wal
//! grows until nothing is left.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::datadir::DataDir;
use crate::spec::quantity::human_bytes;

/// Less than this free on the volume and a crash is taken for a full one: a WAL segment cannot be made.
const SEGMENT: u64 = 16 << 20;

/// True if the server ended because its volume is full. The log only counts where the server itself gave up:
/// a client's failed INSERT is an ERROR.
pub fn is_full(data: &DataDir, tail: &str) -> bool {
    data.free_bytes().is_ok_and(|free| free < SEGMENT) || tail.lines().any(gave_up)
}

fn gave_up(line: &str) -> bool {
    let ended = line.contains("PANIC:") || line.contains("FATAL:");
    let is_full = line.contains("No space left on device") || line.contains("Disk quota exceeded");
    // Shared memory is in /dev/shm.
    ended && is_full && !line.contains("shared memory segment")
}

/// The directory, what is free there, and what takes the most below it: `/data (1.2M of 90M free; pg_wal 48M, base 22M; slots
/// r1)`.
pub fn space(data: &DataDir) -> String {
    let size = |name: &str| bytes_below(&data.path.join(name));
    let names = data.entries().unwrap_or_default();
    let mut parts: Vec<(u64, String)> = names
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .map(|name| (size(&name), name))
        .filter(|(size, _)| *size >= 1 << 20)
        .collect();
    parts.sort_by(|a, b| b.cmp(a));
    parts.truncate(3);
    let parts: Vec<String> =
        parts.iter().map(|(size, name)| format!("{name} {}", human_bytes(*size))).collect();
    let slots = data.entries_of("pg_replslot").unwrap_or_default();
    let slots: Vec<_> = slots.iter().map(|name| name.to_string_lossy()).collect();
    let kept =
        if slots.is_empty() { String::new() } else { format!("; slots that keep WAL: {}", slots.join(", ")) };
    let free = rustix::fs::statvfs(&data.path).map_or_else(
        |_| String::new(),
        |fs| {
            format!(
                "{} of {} free; ",
                human_bytes(fs.f_bavail * fs.f_frsize),
                human_bytes(fs.f_blocks * fs.f_frsize)
            )
        },
    );
    format!("{} ({free}{}{kept})", data.path.display(), parts.join(", "))
}

/// What a file, or everything below a directory, takes on the disk. A link is what it is itself; nobody writes any more.
fn bytes_below(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let entries = if meta.is_dir() { fs::read_dir(path).ok() } else { None };
    let below = entries.into_iter().flatten().flatten().map(|entry| bytes_below(&entry.path()));
    meta.blocks() * 512 + below.sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_server_itself_counts_and_shared_memory_is_no_volume() {
        let reason = "could not write to file \"pg_wal/xlogtemp.7\": No space left on device";
        assert!(gave_up(&format!("PANIC:  {reason}")) && !gave_up(&format!("ERROR:  {reason}")));
        assert!(!gave_up(
            "FATAL:  could not resize shared memory segment \"/PostgreSQL.1\" to 1048576 bytes: No space left on device"
        ));
    }
}
