//! Mounting overlayfs (Documentation/filesystems/overlayfs.rst; fsopen(2), fsconfig(2), move_mount(2)).
//!
//! Surprising rules: mount(2) takes one page of options, which about 40 long lower directories overflow, so each is
//! then given alone with fsconfig's `lowerdir+` (Linux 6.8), or, on older kernels, by a short name relative to the
//! working directory. An overlay without an upper needs two lower directories: a single one is bound read-only.
//! What fsconfig(2) refuses, it explains in a log that is read from the context's descriptor.

use anyhow::{Context, Result, bail};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mount::unescape;

/// How to mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Never sync the upper directory: faster, and after a crash it must be thrown away.
    pub volatile: bool,
    pub read_only: bool,
}

/// fsconfig(2) takes strings up to this length.
const LONGEST_STRING: usize = 255;

/// Mounts `lowers` (topmost first) at the directory `target`, with `upper` and work directory if given. The upper
/// directory's own attributes become those of the merged root.
///
/// No device node in a layer can be opened through the mount: a number is all that it takes to reach the host's disk. Without
/// an upper the mount is for looking, and runs no program with rights of its owner either.
pub fn mount(
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    target: &Path,
    options: Options,
) -> Result<()> {
    match (lowers, upper) {
        ([], _) => bail!("mount at {}: there is no lower directory", target.display()),
        ([only], None) => bind_read_only(only, target),
        // What one call refuses, the long way explains.
        _ => match mount_at_once(lowers, upper, target, options) {
            true => Ok(()),
            false => match mount_by_parts(lowers, upper, target, options) {
                Err(e) if lacks_lowerdir_plus(&e) => mount_by_string(lowers, upper, target, options),
                other => other,
            },
        },
    }
}

/// Unmounts what is mounted at `target`, not following a final symbolic link. See umount2(2).
pub fn umount(target: &Path) -> Result<()> {
    mount::unmount(target, UnmountFlags::NOFOLLOW)
        .map_err(std::io::Error::from)
        .with_context(|| format!("umount {}", target.display()))
}

/// Where exactly these directories (topmost first) are mounted, as this process sees it: by an overlay, or the only one by a bind.
pub fn mount_points(lowers: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let lowers: Vec<PathBuf> = lowers.iter().map(|lower| real(lower)).collect();
    let home = lowers.first().and_then(|lower| lower.parent()).unwrap_or(Path::new("/"));
    let table = super::fs::read("/proc/thread-self/mountinfo").context("read mountinfo")?;
    let table = String::from_utf8_lossy(&table);
    let only = match &lowers[..] {
        [only] => Some((only, device(only, &table)?)),
        _ => None,
    };
    // Not of every mount point: one of a server that is gone would never answer.
    let is_bound = |point: &Path, on: Option<&str>| {
        only.as_ref().filter(|(_, device)| device.as_deref() == on).is_some_and(|(only, _)| {
            let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
            identity(only).is_ok_and(|own| identity(point).is_ok_and(|seen| own == seen))
        })
    };
    let mut points = Vec::new();
    for line in table.lines() {
        let Some((mount, overlay)) = line.split_once(" - ") else { continue };
        let point = PathBuf::from(unescape(mount.split(' ').nth(4).unwrap_or_default()));
        // A name alone is one beside the others.
        let seen: Vec<PathBuf> = match overlay.strip_prefix("overlay ") {
            Some(rest) => lower_directories(rest).map(|lower| real(&home.join(lower))).collect(),
            None => Vec::new(),
        };
        if seen == lowers || is_bound(&point, mount.split(' ').nth(2)) {
            points.push(point);
        }
    }
    Ok(points)
}

/// The number that mountinfo (`table`) has for the filesystem of a directory: stat(2) has another one on Btrfs. `None`: the
/// directory is not there.
fn device(path: &Path, table: &str) -> Result<Option<String>> {
    let directory = match super::fs::open_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        directory => directory.with_context(|| format!("open {}", path.display()))?,
    };
    let about = PathBuf::from(format!("/proc/self/fdinfo/{}", directory.as_raw_fd()));
    let about = std::fs::read_to_string(&about).with_context(|| format!("read {}", about.display()))?;
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim();
    let line = table.lines().find(|line| line.split(' ').next() == Some(id));
    let Some(number) = line.and_then(|line| line.split(' ').nth(2)) else {
        // What is mounted at or above the root of a chroot is not in the table.
        let number = rustix::fs::fstat(&directory).map_err(std::io::Error::from)?.st_dev;
        return Ok(Some(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))));
    };
    Ok(Some(number.to_owned()))
}

/// The lower directories in the source and options of an overlay, proc_pid_mountinfo(5).
fn lower_directories(text: &str) -> impl Iterator<Item = PathBuf> {
    let options = text.split(' ').nth(1).unwrap_or_default().split(',');
    let values = options.filter_map(|option| match option.split_once('=')? {
        ("lowerdir+", one) => Some(vec![one]),
        ("lowerdir", all) => Some(all.split(':').collect()),
        _ => None,
    });
    values.flatten().map(|value| PathBuf::from(unescape(value)))
}

/// Removes the work directory of an overlay that is mounted nowhere any more. What a `volatile` mount leaves in it is
/// known, so no directory has to be read for that; what else is there goes as well.
pub fn remove_work(work: &Path) -> std::io::Result<()> {
    let _ = std::fs::remove_file(work.join("work/incompat/volatile/dirty"));
    for known in ["work/incompat/volatile", "work/incompat", "work"] {
        let _ = std::fs::remove_dir(work.join(known));
    }
    std::fs::remove_dir(work).or_else(|_| super::tree::remove_dir_all(work))
}

/// Marks the error of a kernel that doesn't know `lowerdir+`.
#[derive(Debug)]
struct NoLowerdirPlus;

impl std::fmt::Display for NoLowerdirPlus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("overlayfs of this kernel has no lowerdir+")
    }
}

impl std::error::Error for NoLowerdirPlus {}

fn lacks_lowerdir_plus(error: &anyhow::Error) -> bool {
    error.downcast_ref::<NoLowerdirPlus>().is_some()
}

/// One call for a dozen, where there are few directories and nothing in their names has a meaning; false if it can't be done so.
fn mount_at_once(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, target: &Path, options: Options) -> bool {
    let is_plain =
        |path: &Path| path.is_absolute() && !path.as_os_str().as_bytes().iter().any(|b| b"\\:,".contains(b));
    let (above, beside) = upper.unzip();
    if !lowers.iter().map(PathBuf::as_path).chain(above).chain(beside).all(is_plain) {
        return false;
    }
    let data = one_string(lowers, upper, options);
    // The kernel cuts off what is beyond a page of at least this size.
    data.len() < 4096 && classic_mount(target, data, upper, options).is_ok()
}

/// One option at a time, through the mount API of Linux 5.2.
fn mount_by_parts(
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    target: &Path,
    options: Options,
) -> Result<()> {
    let context = match mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::NOSYS) => return Err(NoLowerdirPlus.into()),
        Err(e) => return Err(std::io::Error::from(e)).context("fsopen overlay"),
    };
    // Long paths go in as /proc/self/fd/N: the descriptors must live until the superblock is made.
    let mut held = Vec::new();
    for (i, lower) in lowers.iter().enumerate() {
        let path = short(lower, &mut held)?;
        match mount::fsconfig_set_string(&context, "lowerdir+", &path) {
            Err(Errno::INVAL) if i == 0 => return Err(NoLowerdirPlus.into()),
            result => told(&context, result, || format!("overlay: lowerdir+={}", lower.display()))?,
        }
    }
    if let Some((upper, work)) = upper {
        for (key, path) in [("upperdir", upper), ("workdir", work)] {
            let value = escaped(&short(path, &mut held)?, b"\\");
            let result = mount::fsconfig_set_string(&context, key, &value[..]);
            told(&context, result, || format!("overlay: {key}={}", path.display()))?;
        }
    }
    for (key, value) in settings(upper.is_some()) {
        let result = mount::fsconfig_set_string(&context, *key, *value);
        told(&context, result, || format!("overlay: {key}={value}"))?;
    }
    if options.volatile && upper.is_some() {
        told(&context, mount::fsconfig_set_flag(&context, "volatile"), || "overlay: volatile".into())?;
    }
    let created = mount::fsconfig_create(&context);
    let said = if created.is_err() { log_of(&context) } else { String::new() };
    // Before Linux 6.5 overlayfs takes any option, and refuses what it does not know only now, without a word.
    if created == Err(Errno::INVAL) && said.is_empty() {
        return Err(NoLowerdirPlus.into());
    }
    created
        .map_err(std::io::Error::from)
        .with_context(|| format!("create the overlay for {}{said}", target.display()))?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, upper.is_none());
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only(upper, options));
    let made = mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
    let made = told(&context, made, || "fsmount overlay".into())?;
    mount::move_mount(&made, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(std::io::Error::from)
        .with_context(|| format!("move_mount the overlay to {}", target.display()))
}

/// One string of options, through mount(2), for Linux before 6.8.
fn mount_by_string(
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    target: &Path,
    options: Options,
) -> Result<()> {
    // The working directory changes: in a thread of its own, with a working directory of its own.
    std::thread::scope(|scope| {
        let job = scope.spawn(|| string_mount(lowers, upper, target, options));
        job.join().unwrap_or_else(|_| bail!("the mounting thread panicked"))
    })
}

fn string_mount(
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    target: &Path,
    options: Options,
) -> Result<()> {
    // Relative paths of the caller mean something only before the change of directory.
    let target = &std::path::absolute(target)?;
    let parent = lowers[0].parent().unwrap_or(Path::new("/"));
    let absolute = |path: &Path| std::path::absolute(path);
    let lowers = match lowers.iter().all(|l| l.parent() == Some(parent)) {
        true => lowers.iter().filter_map(|l| l.file_name()).map(PathBuf::from).collect(),
        false => lowers.iter().map(|l| absolute(l)).collect::<std::io::Result<Vec<_>>>()?,
    };
    let upper = upper
        .map(|(upper, work)| Ok::<_, std::io::Error>((absolute(upper)?, absolute(work)?)))
        .transpose()?;
    let upper = upper.as_ref().map(|(upper, work)| (&**upper, &**work));
    let data = one_string(&lowers, upper, options);
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).context("unshare(CLONE_FS)")?;
    nix::unistd::chdir(parent).with_context(|| format!("chdir {}", parent.display()))?;
    classic_mount(target, data, upper, options)
        .map_err(std::io::Error::from)
        .with_context(|| format!("mount an overlay of {} directories at {}", lowers.len(), target.display()))
}

/// The options in the form of mount(2).
fn one_string(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, options: Options) -> Vec<u8> {
    let mut data = b"lowerdir=".to_vec();
    for (i, lower) in lowers.iter().enumerate() {
        data.extend(if i > 0 { &b":"[..] } else { b"" });
        data.extend(escaped(lower.as_os_str().as_bytes(), b"\\:,"));
    }
    if let Some((upper, work)) = upper {
        for (key, path) in [("upperdir", upper), ("workdir", work)] {
            data.extend(format!(",{key}=").into_bytes());
            data.extend(escaped(path.as_os_str().as_bytes(), b"\\,"));
        }
    }
    for (key, value) in settings(upper.is_some()) {
        data.extend(format!(",{key}={value}").into_bytes());
    }
    if options.volatile && upper.is_some() {
        data.extend(b",volatile");
    }
    data
}

fn classic_mount(
    target: &Path,
    data: Vec<u8>,
    upper: Option<(&Path, &Path)>,
    options: Options,
) -> rustix::io::Result<()> {
    let mut flags = MountFlags::NODEV;
    flags.set(MountFlags::NOSUID, upper.is_none());
    flags.set(MountFlags::RDONLY, read_only(upper, options));
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    mount::mount("overlay", target, "overlay", flags, Some(data.as_c_str()))
}

/// Options that must not depend on how the kernel was built.
fn settings(upper: bool) -> &'static [(&'static str, &'static str)] {
    // With metacopy a lower layer's attribute could redirect to any file; an index would tie an upper directory to
    // the file handles of its lowers, which a copied or re-imported store no longer has.
    if upper { &[("metacopy", "off"), ("index", "off")] } else { &[("metacopy", "off")] }
}

fn read_only(upper: Option<(&Path, &Path)>, options: Options) -> bool {
    options.read_only || upper.is_none()
}

fn bind_read_only(source: &Path, target: &Path) -> Result<()> {
    let shown = || format!("bind {} read-only at {}", source.display(), target.display());
    mount::mount_bind(source, target).map_err(std::io::Error::from).with_context(shown)?;
    // The bind itself ignores these flags; only a remount of it sets them.
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    let result = mount::mount_remount(target, flags, "");
    if result.is_err() {
        umount(target)?;
    }
    result.map_err(std::io::Error::from).with_context(shown)
}

/// The path, or if it is too long for fsconfig(2), a short one to the same directory.
fn short(path: &Path, held: &mut Vec<OwnedFd>) -> Result<Vec<u8>> {
    let bytes = path.as_os_str().as_bytes();
    // Every escape makes the value longer by one.
    if bytes.len() + bytes.iter().filter(|b| **b == b'\\').count() <= LONGEST_STRING {
        return Ok(bytes.to_vec());
    }
    let fd = super::fs::open_dir(path).with_context(|| format!("open {}", path.display()))?;
    let short = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
    held.push(fd);
    Ok(short)
}

fn escaped(path: &[u8], special: &[u8]) -> Vec<u8> {
    path.iter().flat_map(|b| special.contains(b).then_some(b'\\').into_iter().chain([*b])).collect()
}

/// Adds what the kernel wrote to the context's log.
fn told<T>(context: impl AsFd, result: rustix::io::Result<T>, what: impl FnOnce() -> String) -> Result<T> {
    let error = match result {
        Ok(value) => return Ok(value),
        Err(e) => std::io::Error::from(e),
    };
    Err(error).with_context(|| format!("{}{}", what(), log_of(&context)))
}

/// What the kernel has to say of a context, in parentheses.
fn log_of(context: impl AsFd) -> String {
    let mut log = [0; 1024];
    let mut said = String::new();
    while let Ok(len) = rustix::io::read(&context, &mut log) {
        if len == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&log[..len]).into_owned();
        let _ = write!(said, " ({})", line.trim_end().trim_start_matches(['e', 'w', 'i', ' ']));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 130 directories with long paths on a tmpfs in a mount namespace of its own.
    fn lowers() -> Option<(tempfile::TempDir, Vec<PathBuf>, PathBuf)> {
        if !nix::unistd::geteuid().is_root() {
            assert!(
                std::env::var_os("CI").or(std::env::var_os("PGBOX_REQUIRE_ROOT")).is_none(),
                "this test needs root"
            );
            eprintln!("SKIPPED: needs root to mount");
            return None;
        }
        use nix::mount::{MsFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let parent = dir.path().join("a,b:c\\d").join("x".repeat(200)).join("y".repeat(100));
        let target = dir.path().join("merged");
        std::fs::create_dir(&target).unwrap();
        let lowers: Vec<_> = (0..130).map(|i| parent.join(format!("layer-{i:015}"))).collect();
        for (i, lower) in lowers.iter().enumerate() {
            std::fs::create_dir_all(lower).unwrap();
            std::fs::write(lower.join(format!("f{i}")), "").unwrap();
            std::fs::write(lower.join("top"), i.to_string()).unwrap();
        }
        Some((dir, lowers, target))
    }

    fn check(dir: tempfile::TempDir, target: &Path, files: usize) {
        assert_eq!(std::fs::read_dir(target).unwrap().count(), files);
        assert_eq!(std::fs::read_to_string(target.join("top")).unwrap(), "0");
        umount(target).unwrap();
        nix::mount::umount(dir.path()).unwrap();
    }

    #[test]
    fn long_paths_one_by_one() {
        let Some((dir, lowers, target)) = lowers() else { return };
        mount(&lowers, None, &target, Options::default()).unwrap();
        check(dir, &target, 131);
    }

    #[test]
    fn a_single_directory_is_found_where_it_is_bound() {
        let Some((dir, lowers, target)) = lowers() else { return };
        mount(&lowers[..1], None, &target, Options::default()).unwrap();
        assert_eq!(mount_points(&lowers[..1]).unwrap(), [target.canonicalize().unwrap()]);
        assert!(mount_points(&lowers[1..2]).unwrap().is_empty());
        assert!(mount_points(&[dir.path().join("nothing")]).unwrap().is_empty());
        umount(&target).unwrap();
        nix::mount::umount(dir.path()).unwrap();
    }

    #[test]
    fn short_names_in_one_page_as_on_older_kernels() {
        let Some((dir, lowers, target)) = lowers() else { return };
        let before = std::env::current_dir().unwrap();
        mount_by_string(&lowers, None, &target, Options::default()).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
        check(dir, &target, 131);
    }

    #[test]
    fn an_upper_with_special_characters_both_ways() {
        for by_string in [false, true] {
            let Some((dir, lowers, target)) = lowers() else { return };
            let (upper, work) = (dir.path().join("u\\p,p:er"), dir.path().join("w,o:r\\k"));
            std::fs::create_dir(&upper).unwrap();
            std::fs::create_dir(&work).unwrap();
            let options = Options { volatile: true, read_only: false };
            let mount = if by_string { mount_by_string } else { mount_by_parts };
            mount(&lowers[..3], Some((&upper, &work)), &target, options).unwrap();
            std::fs::write(target.join("new"), "x").unwrap();
            assert!(upper.join("new").exists());
            check(dir, &target, 5);
        }
    }

    #[test]
    fn the_kernel_s_reason_is_told() {
        let Some((dir, lowers, target)) = lowers() else { return };
        let error = format!(
            "{:#}",
            mount(&[lowers[0].clone(), dir.path().join("nothing")], None, &target, Options::default())
                .unwrap_err()
        );
        assert!(error.contains("nothing") && error.contains("No such file"), "{error}");
        nix::mount::umount(dir.path()).unwrap();
    }
}
