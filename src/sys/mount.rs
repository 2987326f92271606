//! Mounts: mount(2), the file-descriptor interface to it (open_tree(2), move_mount(2), mount_setattr(2)), and pivot_root(2).
//!
//! The rule that surprises people: a path is resolved at every call, so "check, then mount" is a race and a
//! symlink away from mounting somewhere else. Targets inside a foreign tree are therefore opened once with
//! openat2(2) `RESOLVE_IN_ROOT`, and the mount is moved onto that descriptor.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    NixPath,
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    mount::{MoveMountFlags, OpenTreeFlags},
};

/// Makes every mount of this mount namespace private, so that nothing done here shows outside
/// (mount_namespaces(7): a new namespace begins as a copy whose mounts still propagate).
pub fn make_private() -> Result<()> {
    propagation("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)
}

fn propagation(path: &str, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("mount {path} {flags:?}"))
}

/// Attributes of a new mount, as mount(8) names them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes {
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
}

impl Attributes {
    /// `nosuid,nodev,noexec`
    pub const INERT: Self = Self { read_only: false, nosuid: true, nodev: true, noexec: true };

    fn classic(self) -> MsFlags {
        let mut flags = MsFlags::empty();
        flags.set(MsFlags::MS_RDONLY, self.read_only);
        flags.set(MsFlags::MS_NOSUID, self.nosuid);
        flags.set(MsFlags::MS_NODEV, self.nodev);
        flags.set(MsFlags::MS_NOEXEC, self.noexec);
        flags
    }
}

/// A mount that is attached nowhere yet (open_tree(2) with `OPEN_TREE_CLONE`).
pub struct Detached(OwnedFd);

impl Detached {
    /// A copy of the tree mounted at `source` (a bind mount that has no place yet).
    pub fn bind(source: &Path, read_only: bool) -> Result<Self> {
        if read_only && let Ok(tree) = open_tree_read_only(source) {
            return Ok(Self(tree));
        }
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, source, flags)
            .with_context(|| format!("open_tree {}", source.display()))?;
        if read_only {
            set_read_only(tree.as_fd())?;
        }
        Ok(Self(tree))
    }

    /// A copy of the tree at an opened directory.
    pub fn bind_opened(source: BorrowedFd<'_>) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(Self(rustix::mount::open_tree(source, "", flags).context("open_tree")?))
    }

    /// The root of the tree, for names relative to it: `..` does not lead out of it.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Shows what is of one owner as another's, as the user namespace `map` has it; not what is mounted further below. Nothing
    /// changes where the file system has no such mounts, or this mount has a map already.
    pub fn map_ids(&self, map: BorrowedFd<'_>) -> Result<()> {
        let attr = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: map.as_raw_fd() as u64,
        };
        match set_attributes(self.0.as_raw_fd(), Path::new(""), &attr, libc::AT_EMPTY_PATH) {
            Err(Errno::EINVAL | Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            other => other.context("mount_setattr idmap"),
        }
    }

    /// Makes the mount and all below it read-only.
    pub fn set_read_only(&self) -> Result<()> {
        set_read_only(self.0.as_fd())
    }

    /// Attaches the mount at an opened place.
    pub fn attach(&self, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(self.0.as_fd(), "", target, "", flags)
    }
}

/// open_tree(2) and mount_setattr(2) in one call, since Linux 6.15: open_tree_attr(2).
fn open_tree_read_only(source: &Path) -> nix::Result<OwnedFd> {
    const OPEN_TREE_ATTR: i64 = 467;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32;
    let size = size_of::<libc::mount_attr>();
    let fd = source.with_nix_path(|path| {
        // SAFETY: the path is a C string that outlives the call, and so does `READ_ONLY`, whose size is passed with it.
        unsafe {
            libc::syscall(OPEN_TREE_ATTR, libc::AT_FDCWD, path.as_ptr(), flags, &raw const READ_ONLY, size)
        }
    })?;
    // SAFETY: a new descriptor, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(Errno::result(fd)? as RawFd) })
}

static READ_ONLY: libc::mount_attr =
    libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };

/// Mounts a new instance of a file system at a path of this process's own root, which must be no symbolic link: the
/// classic mount(2), one call for the six of fsopen(2) and its kin.
///
/// `read_only` is the file system's own here, not the mount's alone: for one that is shared (sysfs in a network
/// namespace) EBUSY when it is in use with another setting.
pub fn mount_new(fs: &str, target: &Path, options: &str, attributes: Attributes) -> Result<()> {
    mount(Some(fs), target, Some(fs), attributes.classic(), Some(options))
        .with_context(|| format!("mount -t {fs} -o '{options}' {}", target.display()))
}

/// Makes the mount of `tree`, and all below it, read-only (mount_setattr(2)).
pub fn set_read_only(tree: BorrowedFd<'_>) -> Result<()> {
    set_attributes_read_only(tree.as_raw_fd(), Path::new("")).context("mount_setattr read-only")
}

/// The same of the mount at a path of this process's own root, which must be no symbolic link.
pub fn set_read_only_at(path: &Path) -> Result<()> {
    set_attributes_read_only(libc::AT_FDCWD, path)
        .with_context(|| format!("mount_setattr read-only {}", path.display()))
}

/// The same of the mount at `path`, or of `tree` itself where that is empty.
fn set_attributes_read_only(tree: RawFd, path: &Path) -> nix::Result<()> {
    set_attributes(tree, path, &READ_ONLY, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE)
}

fn set_attributes(tree: RawFd, path: &Path, attr: &libc::mount_attr, flags: i32) -> nix::Result<()> {
    let size = size_of::<libc::mount_attr>();
    let rc = path.with_nix_path(|path| {
        // SAFETY: the path is a C string that outlives the call, and so does `attr`, whose size is passed with it.
        unsafe { libc::syscall(libc::SYS_mount_setattr, tree, path.as_ptr(), flags, &raw const *attr, size) }
    });
    Errno::result(rc?).map(drop)
}

/// Makes `new_root` (a mount point) the root of this mount namespace and detaches the old one.
pub fn pivot_root(new_root: &Path) -> Result<()> {
    let shown = new_root.display();
    nix::unistd::chdir(new_root).with_context(|| format!("chdir {shown}"))?;
    // With "." for both, the old root is stacked on the new one and needs no directory of its own
    // (pivot_root(2), NOTES).
    nix::unistd::pivot_root(".", ".").with_context(|| format!("pivot_root {shown}"))?;
    umount2(".", MntFlags::MNT_DETACH).context("umount the old root")?;
    nix::unistd::chdir("/").context("chdir /")
}

/// Binds `source` onto itself or another place of this process's own root, neither of them a symbolic link; optionally
/// read-only, which it is a moment later. One call of mount(2) for the three of [`Detached::bind`].
pub fn bind(source: &Path, target: &Path, read_only: bool) -> nix::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    match read_only {
        true => set_attributes_read_only(libc::AT_FDCWD, target),
        false => Ok(()),
    }
}

/// Whether something is mounted below a directory, as this process sees it.
pub fn has_mounts_below(dir: &Path) -> io::Result<bool> {
    let dir = dir.canonicalize()?;
    let table = super::fs::read("/proc/self/mountinfo")?;
    let table = String::from_utf8_lossy(&table);
    let mut points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).map(PathBuf::from);
    Ok(points.any(|point| point != dir && point.starts_with(&dir)))
}

/// Takes back mountinfo's octal escapes of space, tab, newline and backslash (`\040`).
pub fn unescape(field: &str) -> OsString {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(out)
}

/// A directory whose inside must not be trusted: every path is resolved as if it were `/`
/// (openat2(2) `RESOLVE_IN_ROOT`), so neither `..` nor a symlink leads out of it.
pub struct Jail(OwnedFd);

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Directory,
    File,
}

impl Jail {
    pub fn open(dir: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(dir, flags, Mode::empty()).with_context(|| format!("open {}", dir.display()))?;
        Ok(Self(fd))
    }

    /// Opens `path` below the jail with `O_PATH`.
    pub fn resolve(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open_at(path, OFlags::PATH | OFlags::CLOEXEC)
    }

    /// Opens `path` below the jail.
    pub fn open_at(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        super::fs::open_in_root(&self.0, path, flags)
    }

    /// Opens `path` as a mount point, and makes it, with its parents, when it is absent.
    pub fn place(&self, path: &Path, kind: Place) -> Result<OwnedFd> {
        // Most images lack the files that are bound into them, and have a directory for them.
        if kind == Place::File
            && let Ok(made) = self.open_at(path, NEW_FILE)
        {
            return Ok(made);
        }
        match self.resolve(path) {
            Err(rustix::io::Errno::NOENT) => {}
            place => return place.with_context(|| format!("open mount point {}", path.display())),
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let parent_fd = self.place(parent, Place::Directory)?;
        let name = path.file_name().with_context(|| format!("{} names no mount point", path.display()))?;
        let made = match make(parent_fd.as_fd(), Path::new(name), kind) {
            // A symlink that leads nowhere, as /etc/resolv.conf often is, gives way.
            Err(rustix::io::Errno::EXIST) => rustix::fs::unlinkat(&parent_fd, name, AtFlags::empty())
                .and_then(|()| make(parent_fd.as_fd(), Path::new(name), kind)),
            made => made,
        };
        made.with_context(|| format!("make mount point {}", path.display()))
    }
}

/// Where there is nothing yet, not even a symlink that leads nowhere.
const NEW_FILE: OFlags = OFlags::CREATE.union(OFlags::EXCL).union(OFlags::WRONLY);

/// Makes a mount point that was not there, and opens it.
fn make(parent: BorrowedFd<'_>, name: &Path, kind: Place) -> rustix::io::Result<OwnedFd> {
    let own = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        Place::Directory => {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            rustix::fs::openat(parent, name, own | OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
        }
        Place::File => rustix::fs::openat(parent, name, own | NEW_FILE, Mode::from_raw_mode(0o644)),
    }
}

/// Whether there is a directory at `path`, and not a symlink to one.
pub fn is_real_directory(path: &Path) -> bool {
    rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir())
}

/// Makes character device nodes, given as name, major and minor number, with exactly this mode.
pub fn make_devices(dir: &Path, devices: &[(&str, u32, u32)], mode: u32) -> Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
    // mknod(2) takes the umask off the mode.
    let before = umask(Mode::empty());
    let made = devices.iter().try_for_each(|(name, major, minor)| {
        let number = makedev((*major).into(), (*minor).into());
        mknod(&dir.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(mode), number)
            .with_context(|| format!("mknod {}/{name} c {major} {minor}", dir.display()))
    });
    umask(before);
    made
}
