//! Steps inside the new namespaces, applied by the process that becomes pid 1 before anything of the image
//! runs. None has an undo: when pid 1 ends, the kernel takes its mount namespace and all in it away.
//!
//! Order matters twice. What comes from the host (overlay, volumes, files) is mounted before pivot_root,
//! while the host's paths still mean something; what the kernel makes (/proc, /dev, /sys) after it, where a
//! symlink of a hostile image can lead nowhere but into the image.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Error, Result};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

mod lesson;
mod payload;

pub use payload::Around;

use super::IdMap;
use crate::sys::{
    self,
    mount::{self, Attributes, Detached, Jail, Place},
    overlay,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum InnerStep {
    /// Made by clone3 itself: without it there is no process to apply the other steps.
    EnterNamespaces {
        netns: PathBuf,
    },
    MakeMountsPrivate,
    MountOverlay {
        lowers: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
        merged: PathBuf,
    },
    Bind {
        root: PathBuf,
        source: PathBuf,
        target: PathBuf,
        read_only: bool,
        place: BindPlace,
        /// Whose the files are shown to be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id_map: Option<IdMap>,
    },
    /// A standby may be made of clones of the files of the server that it follows.
    OpenUpstream {
        node: String,
        /// The directory that the other node has no hand in, and its data below that.
        #[serde(alias = "data")]
        top: PathBuf,
        #[serde(default)]
        rest: PathBuf,
    },
    PivotRoot {
        root: PathBuf,
    },
    MountProc,
    MountDev,
    MountShm {
        size: u64,
    },
    MountSys,
    MaskPaths {
        paths: Vec<PathBuf>,
    },
    ProtectPaths {
        paths: Vec<PathBuf>,
    },
    SetHostname {
        name: String,
    },
    /// Applied by pid 1 to every process of the image, right before its exec.
    DropPrivileges {
        keep: Vec<String>,
    },
    /// A server's first start: initdb, or a standby's base backup. Done by pid 1 where the data directory is empty.
    FillDataDirectory,
    /// The last one: from here on this process is the node's init.
    StartInit {
        command: Vec<String>,
        user: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindPlace {
    Directory,
    File,
}

/// What a process of the image may find in /dev: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const DEV_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

impl InnerStep {
    /// Carries the step out in the calling process, which must be alone in its mount namespace. `ids` is the user namespace
    /// of the one bind that has a map, where there can be one.
    pub fn apply(&self, ids: Option<BorrowedFd<'_>>) -> Result<()> {
        match self {
            // What pid 1 itself is made of: clone3, what it takes along, its exec of the payload, and its own life.
            Self::EnterNamespaces { .. }
            | Self::OpenUpstream { .. }
            | Self::DropPrivileges { .. }
            | Self::FillDataDirectory
            | Self::StartInit { .. } => Ok(()),
            Self::MakeMountsPrivate => mount::make_private(),
            Self::MountOverlay { lowers, upper, work, merged } => mount_overlay(lowers, upper, work, merged),
            Self::Bind { root, source, target, read_only, place, id_map } => {
                bind(root, source, target, *read_only, *place, ids.filter(|_| id_map.is_some()))
            }
            Self::PivotRoot { root } => mount::pivot_root(root),
            Self::MountProc => mount_at("proc", "/proc", "", Attributes::INERT),
            Self::MountSys => mount_sys(),
            Self::MountDev => mount_dev(),
            Self::MountShm { size } => mount_shm(*size),
            Self::MaskPaths { paths } => mask(paths),
            Self::ProtectPaths { paths } => paths.iter().try_for_each(|path| protect(path)),
            Self::SetHostname { name } => {
                nix::unistd::sethostname(name).with_context(|| format!("sethostname {name}"))
            }
        }
    }
}

fn mount_overlay(lowers: &[PathBuf], upper: &Path, work: &Path, merged: &Path) -> Result<()> {
    // The kernel refuses a work directory that a `volatile` mount has left dirty. Nothing in it is worth
    // keeping: it holds half-made copies.
    sys::tree::remove_dir_all(&work.join("work"))
        .with_context(|| format!("clear {}/work", work.display()))?;
    // The merged root shows the upper's own mode and owner, not the image's.
    if let Some(top) = lowers.first() {
        let image = std::fs::metadata(top).with_context(|| format!("stat {}", top.display()))?;
        std::fs::set_permissions(upper, image.permissions())
            .with_context(|| format!("chmod {}", upper.display()))?;
        std::os::unix::fs::chown(upper, Some(image.uid()), Some(image.gid()))
            .with_context(|| format!("chown {}", upper.display()))?;
    }
    let options = overlay::Options { volatile: true, read_only: false };
    overlay::mount(lowers, Some((upper, work)), merged, options)
}

fn bind(
    root: &Path,
    source: &Path,
    target: &Path,
    read_only: bool,
    place: BindPlace,
    ids: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let tree = Detached::bind(source, read_only)?;
    if let Some(ids) = ids {
        tree.map_ids(ids)?;
    }
    let kind = match place {
        BindPlace::Directory => Place::Directory,
        BindPlace::File => Place::File,
    };
    let target_fd = Jail::open(root)?.place(target, kind)?;
    tree.attach(target_fd.as_fd())
        .with_context(|| format!("bind {} to {}", source.display(), target.display()))
}

fn mount_at(kind: &str, target: &str, options: &str, attributes: Attributes) -> Result<()> {
    place(target)?;
    mount::mount_new(kind, Path::new(target), options, attributes)
}

/// The mount is read-only and not the file system: that is one for all of the network namespace, which
/// `ip netns exec` may have mounted writable.
fn mount_sys() -> Result<()> {
    mount_at("sysfs", "/sys", "", Attributes::INERT)?;
    mount::set_read_only_at(Path::new("/sys"))
}

/// A directory to mount on. The image's own symlink is refused: programs would not find the file system
/// where they look for it.
fn place(target: &str) -> Result<()> {
    if mount::is_real_directory(Path::new(target)) {
        return Ok(());
    }
    match std::fs::create_dir(target) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            anyhow::bail!("the image has something else than a directory at {target}")
        }
        made => made.with_context(|| format!("mkdir {target}")),
    }
}

fn mount_dev() -> Result<()> {
    let attributes = Attributes { nosuid: true, noexec: true, ..Attributes::default() };
    mount_at("tmpfs", "/dev", "mode=755,size=64k", attributes)?;
    mount::make_devices(Path::new("/dev"), &DEVICES, 0o666)?;
    for (name, target) in DEV_LINKS {
        std::os::unix::fs::symlink(target, Path::new("/dev").join(name))
            .with_context(|| format!("symlink /dev/{name}"))?;
    }
    mount_at("devpts", "/dev/pts", "ptmxmode=0666,mode=0620,gid=5", attributes)
}

fn mount_shm(size: u64) -> Result<()> {
    mount_at("tmpfs", "/dev/shm", &format!("mode=1777,size={size}"), Attributes::INERT)
}

/// Lays an empty directory or /dev/null over what must not be seen. One tmpfs serves all directories: each
/// further one is a bind of the first.
fn mask(paths: &[PathBuf]) -> Result<()> {
    let mut empty: Option<&PathBuf> = None;
    for path in paths {
        // Asked first: a file can't lie over a directory, and of a mount that fails the kernel waits to be rid.
        let masked = match (fs::metadata(path).map(|there| there.is_dir()), empty) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => continue,
            (Err(error), _) => Err(Error::from(error)),
            (Ok(false), _) => mount::bind(Path::new("/dev/null"), path, false).map_err(Error::from),
            (Ok(true), Some(first)) => mount::bind(first, path, false).map_err(Error::from),
            (Ok(true), None) => {
                empty = Some(path);
                mount::mount_new("tmpfs", path, "size=0", Attributes { read_only: true, ..Attributes::INERT })
            }
        };
        masked.with_context(|| format!("mask {}", path.display()))?;
    }
    Ok(())
}

/// Makes what is there read-only; not every kernel has all of it.
fn protect(path: &Path) -> Result<()> {
    match mount::bind(path, path, true) {
        Err(Errno::ENOENT) => Ok(()),
        other => other.with_context(|| format!("protect {}", path.display())),
    }
}
