//! Users of a root file system: passwd(5), group(5), and image-spec's `config.User`.
//!
//! Names mean what *that* root's `/etc/passwd` says, not the host's, and a C library's getpwnam would look at
//! the host's. The root may be hostile: its `/etc/passwd` can be a link to the host's, to a device, or to a file without end. So
//! it is resolved within the root by the kernel (openat2(2), RESOLVE_IN_ROOT), must be a plain file, and is read up to a limit.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Most bytes that are read of a passwd or group file.
const LIMIT: u64 = 1 << 20;

/// A user as setresuid(2) and the environment want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, `/` for a user without an entry.
    pub home: OsString,
    /// Login name, or the number for a user without an entry.
    pub name: String,
}

/// Finds `spec` in the `/etc/passwd` and `/etc/group` of a root directory. A file that is missing counts as empty.
pub fn lookup(root: impl AsFd, spec: &str) -> Result<Ids> {
    let passwd = read_within(&root, "etc/passwd")?;
    let group = read_within(&root, "etc/group")?;
    parse_passwd(&passwd, &group, spec)
}

/// The rule of `docker run --user` and image-spec: `user`, `uid`, `user:group`, `uid:gid`, and mixtures; empty means
/// root. A number need not be in the files. Supplementary groups are those that list the user, but none
/// if `spec` names a group.
pub fn parse_passwd(passwd: &[u8], group: &[u8], spec: &str) -> Result<Ids> {
    let (user, chosen) = match spec.split_once(':') {
        Some((user, group)) if !group.is_empty() => (user, Some(group)),
        Some((user, _)) => (user, None),
        None => (spec, None),
    };
    let mut ids = find_user(passwd, user)?;
    match chosen {
        Some(wanted) => ids.gid = find_group(group, wanted)?,
        None => ids.groups = groups_of(group, &ids.name),
    }
    Ok(ids)
}

fn find_user(passwd: &[u8], user: &str) -> Result<Ids> {
    let wanted = if user.is_empty() { Some(0) } else { number(user.as_bytes()) };
    for fields in entries(passwd) {
        // name:password:uid:gid:comment:home:shell
        let &[name, _, uid, gid, _, home, ..] = fields.as_slice() else { continue };
        let (Some(uid), Some(gid)) = (number(uid), number(gid)) else { continue };
        if name == user.as_bytes() || Some(uid) == wanted {
            let name = String::from_utf8_lossy(name).into_owned();
            let home = if home.is_empty() { OsStr::new("/") } else { OsStr::from_bytes(home) };
            return Ok(Ids { uid, gid, groups: Vec::new(), home: home.to_owned(), name });
        }
    }
    let uid = wanted.with_context(|| format!("no user {user:?} in /etc/passwd"))?;
    Ok(Ids { uid, gid: 0, groups: Vec::new(), home: "/".into(), name: uid.to_string() })
}

fn find_group(group: &[u8], wanted: &str) -> Result<u32> {
    let as_number = number(wanted.as_bytes());
    for fields in entries(group) {
        let &[name, _, gid, ..] = fields.as_slice() else { continue };
        let Some(gid) = number(gid) else { continue };
        if name == wanted.as_bytes() || Some(gid) == as_number {
            return Ok(gid);
        }
    }
    as_number.with_context(|| format!("no group {wanted:?} in /etc/group"))
}

fn groups_of(group: &[u8], user: &str) -> Vec<u32> {
    entries(group)
        .filter(|fields| {
            fields
                .get(3)
                .is_some_and(|list| list.split(|b| *b == b',').any(|member| member == user.as_bytes()))
        })
        .filter_map(|fields| number(fields[2]))
        .collect()
}

/// Lines split at colons; comments and NIS lines (`+`, `-`) have no meaning here.
fn entries(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    text.split(|b| *b == b'\n')
        .filter(|line| !matches!(line.first(), None | Some(b'#' | b'+' | b'-')))
        .map(|line| line.split(|b| *b == b':').collect())
}

/// A user or group id. 4294967295 is not one: as -1 it tells setresuid(2) to leave the id alone, so a
/// program that was to run as that user would run as root.
fn number(field: &[u8]) -> Option<u32> {
    let digits = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    let value = digits.then(|| std::str::from_utf8(field).ok()?.parse().ok()).flatten();
    value.filter(|id| *id != u32::MAX)
}

/// Reads a file below `root`, with every link in it resolved as if `root` were `/`.
fn read_within(root: &impl AsFd, path: &str) -> Result<Vec<u8>> {
    // NONBLOCK and NOCTTY: it may be a fifo or a terminal.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match crate::sys::fs::open_in_root(root, path.as_ref(), flags) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(errno).with_context(|| format!("open /{path} within the root directory")),
    };
    ensure!(file.metadata()?.is_file(), "/{path} within the root directory is not a plain file");
    let mut text = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut text).with_context(|| format!("read /{path}"))?;
    if text.len() as u64 > LIMIT {
        bail!("/{path} within the root directory is larger than {LIMIT} bytes");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n# a comment\n+nis::::::\nbroken:x:1\n\
        minus:x:4294967295:0::/:\npostgres:x:999:998:PostgreSQL:/var/lib/postgresql:/bin/sh\nnohome:x:7:7:::\n";
    const GROUP: &[u8] = b"root:x:0:\nssl-cert:x:101:postgres,www\npostgres:x:998:\nlog:x:102:www,postgres\nbad:x:z:postgres\n";

    fn parse(spec: &str) -> Result<Ids> {
        parse_passwd(PASSWD, GROUP, spec)
    }

    #[test]
    fn a_name_has_its_groups_and_home() {
        let ids = parse("postgres").unwrap();
        assert_eq!((ids.uid, ids.gid, ids.groups.as_slice()), (999, 998, [101, 102].as_slice()));
        assert_eq!((ids.home.to_str().unwrap(), ids.name.as_str()), ("/var/lib/postgresql", "postgres"));
        assert_eq!(parse("999").unwrap(), ids);
    }

    #[test]
    fn empty_is_root_and_a_missing_home_is_the_root_directory() {
        assert_eq!(parse("").unwrap().name, "root");
        assert_eq!(parse_passwd(b"", b"", "").unwrap().uid, 0);
        assert_eq!(parse("nohome").unwrap().home, "/");
    }

    #[test]
    fn a_chosen_group_replaces_all_others() {
        let ids = parse("postgres:ssl-cert").unwrap();
        assert_eq!((ids.uid, ids.gid), (999, 101));
        assert!(ids.groups.is_empty());
        assert_eq!(parse(":5").unwrap().gid, 5);
        assert_eq!(parse("postgres:").unwrap(), parse("postgres").unwrap());
    }

    #[test]
    fn numbers_need_no_entry_but_names_do() {
        let ids = parse("12345:6789").unwrap();
        assert_eq!((ids.uid, ids.gid, ids.home.to_str().unwrap()), (12345, 6789, "/"));
        assert!(format!("{:#}", parse("nobody").unwrap_err()).contains("\"nobody\""));
        assert!(format!("{:#}", parse("root:nogroup").unwrap_err()).contains("\"nogroup\""));
        assert!(parse("broken").is_err());
    }

    #[test]
    fn minus_one_is_never_an_id() {
        for spec in ["4294967295", "minus", "0:4294967295", "4294967296", "-1", "+0", "root:-1"] {
            assert!(parse(spec).is_err(), "{spec}");
        }
        assert_eq!(parse("4294967294").unwrap().uid, u32::MAX - 1);
    }

    #[test]
    fn links_stay_within_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "outsider:x:1:1::/:\n").unwrap();
        std::fs::write(root.join("secret"), "insider:x:2:2::/:\n").unwrap();
        symlink("../../secret", root.join("etc/passwd")).unwrap();
        symlink("/nowhere", root.join("etc/group")).unwrap();
        let handle = File::open(&root).unwrap();
        assert_eq!(lookup(&handle, "insider").unwrap().uid, 2);
        assert!(lookup(&handle, "outsider").is_err());
    }

    #[test]
    fn a_fifo_or_an_endless_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let handle = File::open(dir.path()).unwrap();
        nix::unistd::mkfifo(&etc.join("passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(format!("{:#}", lookup(&handle, "0").unwrap_err()).contains("not a plain file"));
        std::fs::remove_file(etc.join("passwd")).unwrap();
        File::create(etc.join("passwd")).unwrap().set_len(1 << 40).unwrap();
        assert!(format!("{:#}", lookup(&handle, "0").unwrap_err()).contains("larger"));
    }
}
