//! Files relative to directory descriptors: openat2(2) and the *at family.
//!
//! A path that is resolved from `/` by name can be redirected by any symbolic link on the way. Here a
//! directory is opened once and everything below it is named relative to that descriptor, and
//! openat2's RESOLVE_* flags let the kernel itself refuse to leave it. The surprising rule: of the
//! RESOLVE_* flags, `RESOLVE_BENEATH` *fails* on an absolute symlink or a `..` that climbs out, while
//! `RESOLVE_IN_ROOT` treats the directory as `/`, as chroot(2) would.
//!
//! Names are bytes: a Linux file name need not be UTF-8.

use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// All of a file, without asking for its size first: the files of proc(5), sysfs(5) and cgroups(7) say that it is 0,
/// and [`std::fs::read`] then begins with 32 bytes and doubles, ten calls for a mount table.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_until(path.as_ref(), |got, _| got == 0)
}

/// All of a regular file that nobody writes to meanwhile, or of a file of the kernel that has one record: a read that
/// gets less than it asks for has met the end, and no second one is needed to hear so.
pub fn read_at_once(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_until(path.as_ref(), |got, asked| got < asked)
}

/// As [`read_text_at_once`], of a file that is open.
pub fn read_open(file: &File) -> io::Result<String> {
    text(read_fd_until(file.as_fd(), |got, asked| got < asked)?)
}

/// As [`read`], of what is open.
pub fn read_fd(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    read_fd_until(fd, |got, _| got == 0)
}

fn read_until(path: &Path, is_end: impl Fn(usize, usize) -> bool) -> io::Result<Vec<u8>> {
    let fd = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    read_fd_until(fd.as_fd(), is_end)
}

fn read_fd_until(fd: BorrowedFd<'_>, is_end: impl Fn(usize, usize) -> bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(16 << 10);
    loop {
        let asked = bytes.capacity() - bytes.len();
        let got =
            rustix::io::retry_on_intr(|| rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes)))?;
        if is_end(got, asked) {
            return Ok(bytes);
        }
        bytes.reserve(4 << 10);
    }
}

/// As [`read`], for text.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    text(read(path)?)
}

/// As [`read_at_once`], for text.
pub fn read_text_at_once(path: impl AsRef<Path>) -> io::Result<String> {
    text(read_at_once(path)?)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Replaces a file in one step: who reads it meanwhile finds the old content or the new, and so does whoever comes after a
/// crash. One at a time for each path. If `durable`, the new content is there after a power cut, too: rename(2) alone may bring
/// the name back without it, or not at all.
pub fn replace(path: &Path, content: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let new = path.with_added_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = File::options().create(true).truncate(true).write(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        if durable {
            file.sync_all()?;
        }
        std::fs::rename(&new, path)?;
        match path.parent() {
            Some(parent) if durable => Ok(fs::fsync(open_dir(parent)?)?),
            _ => Ok(()),
        }
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&new)))
}

/// What a directory entry is: the S_IFMT part of `st_mode`, see inode(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    CharDevice,
    BlockDevice,
    Socket,
}

/// A point in time as the kernel keeps it for files; seconds may be negative (before 1970).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Time {
    pub sec: i64,
    pub nsec: u32,
}

/// The fields of stat(2) that describe a file rather than its place on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    /// The lower twelve bits: permissions, set-user-ID, set-group-ID, sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Time,
    pub nlink: u64,
    /// The device number of a device node, as makedev(3) packs it.
    pub rdev: u64,
    pub dev: u64,
    pub ino: u64,
}

impl Stat {
    /// Overlayfs's whiteout: a character device with number 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice && self.rdev == 0
    }
}

impl From<fs::Stat> for Stat {
    fn from(s: fs::Stat) -> Stat {
        let kind = match fs::FileType::from_raw_mode(s.st_mode) {
            fs::FileType::Directory => Kind::Dir,
            fs::FileType::Symlink => Kind::Symlink,
            fs::FileType::Fifo => Kind::Fifo,
            fs::FileType::CharacterDevice => Kind::CharDevice,
            fs::FileType::BlockDevice => Kind::BlockDevice,
            fs::FileType::Socket => Kind::Socket,
            _ => Kind::File,
        };
        Stat {
            kind,
            mode: s.st_mode & 0o7777,
            uid: s.st_uid,
            gid: s.st_gid,
            size: s.st_size as u64,
            mtime: Time { sec: s.st_mtime, nsec: s.st_mtime_nsec as u32 },
            nlink: s.st_nlink,
            rdev: s.st_rdev,
            dev: s.st_dev,
            ino: s.st_ino,
        }
    }
}

/// Opens the directory `path` for the calls below. See open(2), O_DIRECTORY.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

const STRICT: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A directory below `dir`, as a handle for names only (O_PATH). No symbolic link is followed anywhere on the way:
/// ELOOP if there is one. An empty path is `dir` itself.
pub fn dir_handle(dir: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    Ok(openat2(dir, path, OFlags::PATH | OFlags::DIRECTORY, STRICT)?)
}

/// A directory below `dir`, open for reading, fchown(2) and the like; symbolic links as in [`dir_handle`].
pub fn dir_beneath(dir: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    Ok(openat2(dir, path, OFlags::RDONLY | OFlags::DIRECTORY, STRICT)?)
}

/// The directory `rest` of the directory `top`: in `top` links are followed, below it none.
pub fn open_dir_below(top: &Path, rest: &Path) -> io::Result<OwnedFd> {
    dir_beneath(open_dir(top)?, rest.as_os_str().as_bytes())
}

/// A regular file below `dir` for reading, no symbolic link anywhere on the way. A FIFO doesn't block the caller:
/// anything but a regular file is refused (EINVAL).
pub fn file_beneath(dir: impl AsFd, path: &[u8]) -> io::Result<File> {
    let fd = openat2(dir, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, STRICT)?;
    let file = File::from(fd);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// The content of a plain file, which need not be one: opened with O_NONBLOCK, a fifo is an error and no wait. Of a
/// longer one the first `most` bytes.
pub fn read_plain(file: File, most: u64) -> io::Result<Vec<u8>> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file"));
    }
    let mut content = Vec::new();
    file.take(most).read_to_end(&mut content)?;
    Ok(content)
}

/// Opens `path` as a process whose root is `root` would: absolute links start at `root`, `..` stops there. What O_CREAT makes has
/// mode 0644, subject to the umask.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat2(root, path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes(), flags, IN_ROOT)
}

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

fn openat2(dir: impl AsFd, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    // Of what is made; another call must say none.
    let mode = if flags.contains(OFlags::CREATE) { 0o644 } else { 0 };
    loop {
        match fs::openat2(&dir, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode), resolve) {
            // A rename or mount anywhere at the same moment, while `..` was followed: the kernel couldn't be sure.
            Err(rustix::io::Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Makes a regular file for writing that did not exist before (EEXIST otherwise, also for a dangling symlink).
/// See open(2), O_EXCL. `mode` is subject to the umask: see [`private_umask`].
pub fn create_file(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(File::from(fs::openat(dir, name, flags, Mode::from_raw_mode(mode))?))
}

/// mkdirat(2); `mode` is subject to the umask.
pub fn mkdirat(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    Ok(fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
}

/// symlinkat(2): makes `name` in `dir`, pointing to `target` (any bytes; nothing is resolved).
pub fn symlinkat(target: &[u8], dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(fs::symlinkat(target, dir, name)?)
}

/// linkat(2) without following: a hard link to a symbolic link is a link to the link.
pub fn linkat(from: impl AsFd, name: &[u8], to: impl AsFd, new: &[u8]) -> io::Result<()> {
    Ok(fs::linkat(from, name, to, new, AtFlags::empty())?)
}

/// mknodat(2) for FIFOs and device nodes; needs CAP_MKNOD for devices other than 0:0.
pub fn mknodat(dir: impl AsFd, name: &[u8], kind: Kind, mode: u32, major: u32, minor: u32) -> io::Result<()> {
    let kind = match kind {
        Kind::Fifo => fs::FileType::Fifo,
        Kind::CharDevice => fs::FileType::CharacterDevice,
        Kind::BlockDevice => fs::FileType::BlockDevice,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    Ok(fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), fs::makedev(major, minor))?)
}

/// Removes a name that is not a directory. See unlinkat(2).
pub fn unlinkat(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// fstatat(2), not following a final symbolic link.
pub fn lstatat(dir: impl AsFd, path: &[u8]) -> io::Result<Stat> {
    Ok(fs::statat(dir, path, AtFlags::SYMLINK_NOFOLLOW)?.into())
}

/// As [`lstatat`], with absence as a value.
pub fn lookup(dir: impl AsFd, path: &[u8]) -> io::Result<Option<Stat>> {
    match lstatat(dir, path) {
        Ok(stat) => Ok(Some(stat)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// fstat(2).
pub fn fstat(fd: impl AsFd) -> io::Result<Stat> {
    Ok(fs::fstat(fd)?.into())
}

/// readlinkat(2): the text of the link, unresolved.
pub fn readlinkat(dir: impl AsFd, path: &[u8]) -> io::Result<Vec<u8>> {
    Ok(fs::readlinkat(dir, path, Vec::new())?.into_bytes())
}

/// fchown(2). It clears set-user-ID and capabilities, so it comes before [`fchmod`] and [`fsetxattr`].
pub fn fchown(fd: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    Ok(fs::fchown(fd, Some(fs::Uid::from_raw(uid)), Some(fs::Gid::from_raw(gid)))?)
}

/// fchownat(2) on the name itself, never on what a link points to.
pub fn lchownat(dir: impl AsFd, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (fs::Uid::from_raw(uid), fs::Gid::from_raw(gid));
    Ok(fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// fchmod(2), all twelve bits.
pub fn fchmod(fd: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(fs::fchmod(fd, Mode::from_raw_mode(mode))?)
}

/// fchmodat(2). The kernel follows a final symlink here: only for a name that the caller has just made.
pub fn chmodat(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    Ok(fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// Sets the access and modification time of an open file. See futimens(3).
pub fn futimens(fd: impl AsFd, time: Time) -> io::Result<()> {
    Ok(fs::futimens(fd, &both(time))?)
}

/// Sets the times of the name itself, never of what a link points to. See utimensat(2).
pub fn lutimensat(dir: impl AsFd, name: &[u8], time: Time) -> io::Result<()> {
    Ok(fs::utimensat(dir, name, &both(time), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn both(time: Time) -> Timestamps {
    let spec = Timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) };
    Timestamps { last_access: spec, last_modification: spec }
}

/// fsetxattr(2): makes or replaces one extended attribute. See xattr(7) for the name spaces.
pub fn fsetxattr(fd: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(fs::fsetxattr(fd, name, value, XattrFlags::empty())?)
}

/// lsetxattr(2) on `name` in `dir`, for what can't be opened for reading (links, devices).
pub fn lsetxattrat(dir: impl AsFd, name: &[u8], key: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(fs::lsetxattr(at_path(dir.as_fd(), name), key, value, XattrFlags::empty())?)
}

/// One extended attribute of an open file; `None` if it has none of this name, or its file system has no such thing.
pub fn fgetxattr(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = Vec::with_capacity(256);
    loop {
        match fs::fgetxattr(&fd, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => return Ok(Some(value)),
            Err(rustix::io::Errno::RANGE) => value = Vec::with_capacity(value.capacity() * 16),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}

/// The names of all extended attributes that the caller may see. See flistxattr(2).
pub fn flistxattr(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::with_capacity(1024);
    loop {
        match fs::flistxattr(&fd, rustix::buffer::spare_capacity(&mut names)) {
            Ok(_) => break,
            Err(rustix::io::Errno::RANGE) => names = Vec::with_capacity(names.capacity() * 16),
            Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(names.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Writes everything of the file system that holds `fd` to its device. See syncfs(2).
pub fn syncfs(fd: impl AsFd) -> io::Result<()> {
    Ok(fs::syncfs(fd)?)
}

/// A nameless file in `dir` that disappears with its descriptor. See open(2), O_TMPFILE.
pub fn nameless_file(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(fs::open(dir, flags, Mode::from_raw_mode(0o600))?))
}

/// Gives the calling thread a umask of its own, set to zero, so that modes given to open(2), mkdir(2) and mknod(2)
/// are the modes of the result. Without unshare(CLONE_FS) the umask belongs to the whole process, and other
/// threads would make world-writable files meanwhile.
pub fn private_umask() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

/// A path to `name` in the open directory `dir`, for calls that have no *at form. The magic link leads to the
/// directory itself, so nothing that happens to its old path can redirect it.
fn at_path(dir: BorrowedFd<'_>, name: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let mut path = std::path::PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name));
    path
}
