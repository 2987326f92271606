//! Which cgroup file systems are mounted, and which of them holds each controller. cgroups(7), proc(5).
//!
//! The surprise: "v1 or v2" is not a property of a host but of each controller. On a hybrid host memory,
//! cpu and pids sit in v1 hierarchies of their own while a cgroup2 mount without any controller exists
//! beside them, and that empty-looking mount still gives every group `cgroup.kill`, `cgroup.freeze`,
//! `cgroup.events` and a place to be born in. So each controller is looked up by itself.
//!
//! cgroups-rs is not asked here: it takes /sys/fs/cgroup for granted, sees either v1 or v2 and never both,
//! and drops the mount's root, without which /proc/PID/cgroup can't be compared with a directory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};

use super::os;
use crate::sys::mount::unescape;

/// A resource controller that this module knows how to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// `memory`: memory.max, memory.high, swap.
    Memory,
    /// `cpu`: bandwidth (cpu.max).
    Cpu,
    /// `pids`: number of tasks.
    Pids,
    /// v1 `cpuacct`: CPU time used. In v2 every group has it in cpu.stat.
    Cpuacct,
    /// v1 `freezer`. In v2 every group has cgroup.freeze.
    Freezer,
}

impl Controller {
    /// Those that limits need; a host without one of them can't keep its word.
    pub const REQUIRED: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    /// The kernel's name, as in cgroup.controllers, /proc/cgroups and v1 mount options.
    pub fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
            Controller::Cpuacct => "cpuacct",
            Controller::Freezer => "freezer",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Which of its groups is seen there: `/`, or a group below when only a part is mounted. What
    /// /proc/PID/cgroup prints begins with it.
    pub root: String,
    /// A cgroup2 mount, or a v1 hierarchy.
    pub v2: bool,
}

impl Mount {
    /// The path of the group `relative` as /proc/PID/cgroup prints it.
    pub fn proc_path(&self, relative: &Path) -> String {
        format!("{}/{}", self.root.trim_end_matches('/'), relative.display())
    }
}

/// How the host's controllers are spread, for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every controller is in the cgroup2 mount.
    Unified,
    /// Some controllers are in v1 hierarchies, and a cgroup2 mount exists beside them.
    Hybrid,
    /// v1 only.
    Legacy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Unified => "cgroup v2",
            Kind::Hybrid => "hybrid: limits through cgroup v1, kill, freeze and events through v2",
            Kind::Legacy => "cgroup v1",
        })
    }
}

/// The mounted hierarchies that hold the controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    unified: Option<Mount>,
    controllers: Vec<(Controller, Mount)>,
}

/// Reads /proc/self/mountinfo and the cgroup2 mount's `cgroup.controllers`, once in the life of this process: every
/// step of a walk must mean the same places, and nobody mounts another cgroup file system meanwhile.
///
/// # Errors
/// When a controller of [`Controller::REQUIRED`] is in no mounted hierarchy: all the missing ones are named.
pub fn detect() -> Result<Hierarchy> {
    static KNOWN: OnceLock<Hierarchy> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let file = "/proc/self/mountinfo";
    let mountinfo = crate::sys::fs::read(file).map_err(os).with_context(|| format!("read {file}"))?;
    let found = Hierarchy::parse(&String::from_utf8_lossy(&mountinfo), |mount| {
        super::read_record(&mount.join("cgroup.controllers"))
    })?;
    Ok(KNOWN.get_or_init(|| found).clone())
}

/// Controllers of [`Controller::REQUIRED`] that no mounted hierarchy has.
#[derive(Debug)]
pub struct Missing(Vec<&'static str>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no mounted cgroup hierarchy has the controller {}", self.0.join(", nor "))
    }
}

impl std::error::Error for Missing {}

impl Hierarchy {
    /// [`detect`] over the text of a mountinfo file (proc(5)); `v2_controllers` reads `cgroup.controllers`
    /// of the cgroup2 mount that it is given.
    pub fn parse(mountinfo: &str, v2_controllers: impl FnOnce(&Path) -> Result<String>) -> Result<Hierarchy> {
        let mounts: Vec<_> = mountinfo.lines().filter_map(parse_mount).collect();
        let unified = mounts.iter().map(|(mount, _)| mount).find(|mount| mount.v2).cloned();
        let in_v2 = match &unified {
            Some(mount) => v2_controllers(&mount.path)?,
            None => String::new(),
        };
        let place = |wanted: Controller| -> Option<(Controller, Mount)> {
            if in_v2.split_whitespace().any(|name| name == wanted.name()) {
                return Some((wanted, unified.clone()?));
            }
            let v1 = mounts.iter().find(|(_, names)| names.iter().any(|n| n == wanted.name()));
            v1.map(|(mount, _)| (wanted, mount.clone()))
        };
        let mut controllers = Vec::new();
        let mut missing = Vec::new();
        for wanted in Controller::REQUIRED {
            match place(wanted) {
                Some(found) => controllers.push(found),
                None => missing.push(wanted.name()),
            }
        }
        if !missing.is_empty() {
            return Err(Missing(missing).into());
        }
        if unified.is_none() {
            // Only here are these two worth a directory (and a slow write of cgroup.procs) of their own:
            // every v2 group, with controllers or without, has cgroup.freeze and usage_usec in cpu.stat.
            controllers.extend([Controller::Cpuacct, Controller::Freezer].into_iter().filter_map(place));
        }
        Ok(Hierarchy { unified, controllers })
    }

    /// How the controllers are spread.
    pub fn kind(&self) -> Kind {
        match &self.unified {
            None => Kind::Legacy,
            Some(_) if self.controllers.iter().all(|(_, mount)| mount.v2) => Kind::Unified,
            Some(_) => Kind::Hybrid,
        }
    }

    /// The cgroup2 mount, if there is one.
    pub fn unified(&self) -> Option<&Mount> {
        self.unified.as_ref()
    }

    /// The mount that holds `controller`.
    pub fn mount_of(&self, controller: Controller) -> Option<&Mount> {
        self.controllers.iter().find(|(c, _)| *c == controller).map(|(_, mount)| mount)
    }

    /// Whether `controller` is one of the cgroup2 mount.
    pub fn is_v2(&self, controller: Controller) -> bool {
        self.mount_of(controller).is_some_and(|mount| mount.v2)
    }

    /// Every mount in which a group needs a directory, each once (v1 controllers may share one), v2 last.
    pub fn mounts(&self) -> Vec<&Mount> {
        let mut mounts: Vec<&Mount> = Vec::new();
        let v1 = self.controllers.iter().map(|(_, mount)| mount).filter(|mount| !mount.v2);
        for mount in v1.chain(&self.unified) {
            if !mounts.contains(&mount) {
                mounts.push(mount);
            }
        }
        mounts
    }

    /// The controllers of one mount.
    pub fn controllers_of(&self, mount: &Mount) -> Vec<Controller> {
        self.controllers.iter().filter(|(_, m)| m == mount).map(|(c, _)| *c).collect()
    }
}

/// One line of mountinfo as a cgroup mount with its v1 controllers; `None` for every other file system.
fn parse_mount(line: &str) -> Option<(Mount, Vec<String>)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, path) = (unescape(left.next()?), unescape(left.next()?));
    let mut right = right.split(' ');
    let v2 = match right.next()? {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    let options = right.nth(1).unwrap_or_default();
    let names = if v2 { Vec::new() } else { options.split(',').map(str::to_owned).collect() };
    let root = root.to_string_lossy().into_owned();
    Some((Mount { path: path.into(), root, v2 }, names))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "34 24 0:29 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn parse(mountinfo: &str, controllers: &str) -> Result<Hierarchy> {
        Hierarchy::parse(mountinfo, |_| Ok(controllers.to_owned()))
    }

    #[test]
    fn unified_host_has_one_mount_for_everything() {
        let h = parse(V2, "cpuset cpu io memory pids\n").unwrap();
        assert_eq!(h.kind(), Kind::Unified);
        assert_eq!(h.mounts().len(), 1);
        assert_eq!(h.controllers_of(h.unified().unwrap()), Controller::REQUIRED);
    }

    #[test]
    fn hybrid_host_keeps_v1_controllers_and_the_empty_v2_mount() {
        let h = parse(HYBRID, "\n").unwrap();
        assert_eq!(h.kind(), Kind::Hybrid);
        assert!(!h.is_v2(Controller::Memory));
        let paths: Vec<_> = h.mounts().iter().map(|m| m.path.to_str().unwrap()).collect();
        let tail = ["/memory", "/cpu,cpuacct", "/pids", "/unified"];
        assert_eq!(paths, tail.map(|t| format!("/sys/fs/cgroup{t}")));
    }

    #[test]
    fn legacy_host_adds_freezer_and_shares_co_mounted_directories() {
        let text: String =
            HYBRID.lines().filter(|l| !l.contains("cgroup2")).map(|l| format!("{l}\n")).collect();
        let h = Hierarchy::parse(&text, |_| panic!("there is no cgroup2 mount to read")).unwrap();
        assert_eq!(h.kind(), Kind::Legacy);
        assert_eq!(h.mount_of(Controller::Cpuacct), h.mount_of(Controller::Cpu));
        assert_eq!(h.mounts().len(), 4); // memory, cpu+cpuacct, pids, freezer
    }

    #[test]
    fn a_controller_in_v2_wins_on_a_mixed_host() {
        let h = parse(HYBRID, "pids\n").unwrap();
        assert!(h.is_v2(Controller::Pids) && !h.is_v2(Controller::Memory));
        assert_eq!(h.kind(), Kind::Hybrid);
    }

    #[test]
    fn every_missing_controller_is_named() {
        let error = parse(V2, "cpu io\n").unwrap_err().to_string();
        assert!(error.contains("memory, nor pids"), "{error}");
        assert!(parse("", "").unwrap_err().to_string().contains("memory, nor cpu, nor pids"));
    }

    #[test]
    fn escaped_mount_points_and_partial_mounts() {
        let line = "34 24 0:29 /a/b /mnt/with\\040space\\134x rw - cgroup2 cgroup2 rw";
        let (mount, _) = parse_mount(line).unwrap();
        assert_eq!(mount.path, Path::new("/mnt/with space\\x"));
        assert_eq!(mount.proc_path(Path::new("x/y")), "/a/b/x/y");
        let whole = Mount { root: "/".into(), ..mount };
        assert_eq!(whole.proc_path(Path::new("x/y")), "/x/y");
    }
}
