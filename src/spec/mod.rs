//! What a user asked for: names, quantities, volumes, published ports, and the [`NodeSpec`] they make.
//! Pure: parsing and meaning only; nothing here looks at the machine.

pub mod name;
pub mod publish;
pub mod quantity;
pub mod sync;
pub mod volume;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use name::{LabNames, Name, ObjectNames};
pub use publish::Publish;
pub use sync::SyncRule;
pub use volume::{Volume, VolumeSource};

use crate::postgres::{contract, tune};

/// The servers that a node gets its data through, nearest first, where `of` names the one that each follows. A circle, which
/// somebody can have made, ends at `limit`.
pub fn upward(name: &Name, limit: usize, of: impl Fn(&Name) -> Option<Name>) -> impl Iterator<Item = Name> {
    std::iter::successors(of(name), move |above| of(above)).take(limit)
}

/// Everything a user said about one node. Stored with the node, so that `start` and `explain` can go by
/// it later. It never holds a password: those go to a 0600 file before the spec is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub lab: Name,
    pub node: Name,
    /// The image reference as given, for example `postgres:15`.
    pub image: String,
    /// `-e`, and the entries of `--env-file`; without the variables that carry a password.
    pub env: Vec<(String, String)>,
    pub volumes: Vec<Volume>,
    pub publish: Vec<Publish>,
    /// `-c name=value`, handed to the server.
    pub settings: Vec<(String, String)>,
    pub limits: NodeLimits,
    pub restart: Restart,
    /// How long a fast shutdown may take before an immediate one follows, in seconds.
    pub stop_timeout: u64,
    /// Derive memory settings from the memory limit (`--tune auto`).
    pub tune: bool,
    /// The words after `--`.
    pub args: Vec<String>,
    /// An address range the user insists on for a new lab.
    pub subnet: Option<Ipv4Net>,
    /// No network but its own loopback: for a look into an image that lasts milliseconds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offline: bool,
    /// The node that it follows, for a standby.
    #[serde(default)]
    pub follow: Option<Follow>,
}

/// What makes a node a standby.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// The node that it follows.
    pub of: Name,
    /// Milliseconds by which it applies changes later than the primary.
    pub delay_ms: Option<u64>,
    /// Kilobytes a second that a base backup may take.
    pub rate_kb: Option<u64>,
    /// How its data directory is made.
    #[serde(default)]
    pub copy: Copying,
}

/// How a standby gets its data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copying {
    /// By clones of the other server's files where that can be done, and else by pg_basebackup.
    #[default]
    Auto,
    /// By clones, or not at all.
    Reflink,
    /// By pg_basebackup.
    Basebackup,
}

impl std::str::FromStr for Copying {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "reflink" => Ok(Self::Reflink),
            "basebackup" => Ok(Self::Basebackup),
            _ => Err(format!("`{text}` is no way to copy; use auto, reflink or basebackup")),
        }
    }
}

impl Follow {
    /// With nothing else said of it.
    pub fn of(of: Name) -> Self {
        Self { of, delay_ms: None, rate_kb: None, copy: Copying::Auto }
    }

    /// Whether its data may be clones of the other server's files: those need no time that could be stretched.
    pub fn may_clone(&self) -> bool {
        self.copy != Copying::Basebackup && self.rate_kb.is_none()
    }

    /// As before, if it was a standby before, but of this node.
    pub fn turned(old: Option<&Self>, of: Name) -> Self {
        match old {
            Some(old) => Self { of, ..old.clone() },
            None => Self::of(of),
        }
    }
}

/// Bytes with which pid 1 and a small program come to life: with one megabyte they do, with half of one not each time.
const LEAST_MEMORY: u64 = 2 << 20;

/// Where each server listens in its node.
pub const SERVER_PORT: u16 = 5432;

impl NodeSpec {
    /// Why a server could not start under its limits, or a command, and what would do.
    pub fn too_little(&self) -> Option<(String, String)> {
        let (whom, memory, pids) = match self.command() {
            None => ("Postgres to start", tune::LEAST_MEMORY, tune::LEAST_PIDS),
            // One process too few is told when it is there.
            Some(_) => ("pid 1 and a command", LEAST_MEMORY, 0),
        };
        let (what, least) = match (self.limits.memory, self.limits.pids) {
            (Some(given), _) if given < memory => {
                let least = quantity::human_bytes(memory).to_ascii_lowercase();
                (format!("a memory limit of {}", quantity::human_bytes(given)), format!("--memory {least}"))
            }
            (_, Some(given)) if given < pids => {
                (format!("a limit of {given} processes"), format!("--pids {pids}"))
            }
            _ => return None,
        };
        Some((format!("{what} is too small for {whom}"), format!("give at least {least}")))
    }

    /// What in it excludes something else in it.
    pub fn contradiction(&self) -> Option<String> {
        let volumes = pairs(&self.volumes).find(|(a, b)| a.target == b.target);
        let ports = pairs(&self.publish).find(|(a, b)| a.collides(b));
        let place = volumes.map(|(a, b)| {
            format!("{} and {} can't both be mounted at {}", a.source, b.source, a.target.display())
        });
        let port = || {
            ports.map(|(a, b)| match a == b {
                true => format!("{a} is published twice"),
                false => format!("{a} and {b} can't both be published: one port leads to one place"),
            })
        };
        let swap = || {
            let alone = self.limits.swap.is_some() && self.limits.memory.is_none();
            alone.then(|| "a limit on swap and no limit on memory exclude each other".to_owned())
        };
        let high = || {
            let (high, memory) = (self.limits.memory_high?, self.limits.memory?);
            (high > memory).then(|| {
                let [high, memory] = [high, memory].map(quantity::human_bytes);
                format!("memory.high of {high} would be above the limit of {memory}, and never reached")
            })
        };
        place.or_else(port).or_else(swap).or_else(high)
    }

    /// A published port that no server would answer on, said as a sentence: the node's own is always 5432.
    pub fn deaf_port(&self) -> Option<String> {
        if self.command().is_some() {
            return None;
        }
        let deaf = self.publish.iter().find(|publish| publish.port != SERVER_PORT)?;
        Some(format!("nothing would answer on {deaf}: a server's port is {SERVER_PORT}"))
    }

    /// The command to run instead of a server, if the words after `--` are one.
    pub fn command(&self) -> Option<Vec<String>> {
        contract::command(&self.args)
    }

    /// Options for `postgres` from the words after `--`.
    pub fn server_args(&self) -> &[String] {
        contract::server_args(&self.args).unwrap_or_default()
    }
}

/// Resource limits of a node, in the units of cgroup v2. `None` means no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeLimits {
    /// Bytes of `memory.max`.
    pub memory: Option<u64>,
    /// Bytes above which the kernel reclaims and slows down (`memory.high`), before it kills.
    pub memory_high: Option<u64>,
    /// Bytes of swap beyond `memory` (`memory.swap.max`); zero unless asked for.
    pub swap: Option<u64>,
    /// Thousandths of a CPU.
    pub milli_cpus: Option<u64>,
    /// Processes and threads (`pids.max`).
    pub pids: Option<u64>,
    /// Bytes of the private `/dev/shm`.
    pub shm_size: u64,
}

/// What pid 1 does when the server ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    No,
    /// Start it again after a crash, at most this many times in a row.
    OnCrash { max: u32 },
}

impl std::str::FromStr for Restart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "no" => Ok(Self::No),
            None if text == "on-crash" => Ok(Self::OnCrash { max: 5 }),
            Some(("on-crash", count)) => count
                .parse()
                .map(|max| Self::OnCrash { max })
                .map_err(|_| format!("`{count}` is not a number of restarts")),
            _ => Err(format!("`{text}` is not a restart policy; use no, on-crash or on-crash:N")),
        }
    }
}

/// Every two of a list.
fn pairs<T>(list: &[T]) -> impl Iterator<Item = (&T, &T)> {
    list.iter().enumerate().flat_map(|(i, a)| list[i + 1..].iter().map(move |b| (a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies_parse() {
        assert_eq!("no".parse(), Ok(Restart::No));
        assert_eq!("on-crash".parse(), Ok(Restart::OnCrash { max: 5 }));
        assert_eq!("on-crash:3".parse(), Ok(Restart::OnCrash { max: 3 }));
        assert!("always".parse::<Restart>().unwrap_err().contains("always"));
    }
}
