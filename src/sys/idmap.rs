//! Id maps of mounts: whose a file is on disk, and whose it is where it is shown. mount_setattr(2), "ID-mapped mounts".
//!
//! The rule that surprises people: the kernel takes such a map from a user namespace only, and this one serves for nothing
//! else. And an id that is not in the map can't write (EOVERFLOW), so it covers all of them.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::{
    fcntl::OFlag,
    sys::wait::waitpid,
    unistd::{Pid, pipe2},
};

use super::{child, clone};

/// Ids in a row, as a line of user_namespaces(7) `uid_map` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub disk: u32,
    pub shown: u32,
    pub count: u32,
}

/// Two ids exchanged, and all others as they are. The last number there is means "no id", and can't be in a map.
pub fn swap(one: u32, other: u32) -> Vec<Extent> {
    let same = |from: u32, to: u32| Extent { disk: from, shown: from, count: to - from };
    let (low, high) = (one.min(other), one.max(other));
    let all = match low == high {
        true => vec![same(0, u32::MAX)],
        false => vec![
            same(0, low),
            Extent { disk: low, shown: high, count: 1 },
            same(low + 1, high),
            Extent { disk: high, shown: low, count: 1 },
            same(high + 1, u32::MAX),
        ],
    };
    all.into_iter().filter(|extent| extent.count > 0).collect()
}

/// A user namespace with these maps and nobody in it; `None` where this machine lets us have none. The caller has a single
/// thread, and /proc shows its own pid namespace.
pub fn carrier(uids: &[Extent], gids: &[Extent]) -> Result<Option<OwnedFd>> {
    match make(uids, gids) {
        Ok(namespace) => Ok(Some(namespace)),
        Err(error) if error.downcast_ref().is_some_and(is_refused) => Ok(None),
        Err(error) => Err(error.context("make a user namespace")),
    }
}

/// Forbidden, more than there may be (`user.max_user_namespaces`), or unknown to this kernel.
fn is_refused(error: &io::Error) -> bool {
    let errno = error.raw_os_error().unwrap_or(0);
    [libc::EPERM, libc::EACCES, libc::ENOSPC, libc::EUSERS, libc::EINVAL, libc::ENOSYS].contains(&errno)
}

fn make(uids: &[Extent], gids: &[Extent]) -> Result<OwnedFd> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    // Its own copy of the writing end is closed with all else, so it ends with us at the latest.
    let dweller = clone::clone3(libc::CLONE_NEWUSER as u64, None, || {
        let waited = child::close_all_but(&[reader.as_fd()]).map(|()| nix::unistd::read(&reader, &mut [0]));
        i32::from(waited.is_err())
    })?;
    let namespace = furnish(dweller.pid, uids, gids);
    drop(writer);
    waitpid(dweller.pid, None).context("waitpid")?;
    namespace
}

fn furnish(dweller: Pid, uids: &[Extent], gids: &[Extent]) -> Result<OwnedFd> {
    let of = |name: &str| format!("/proc/{dweller}/{name}");
    for (name, map) in [("uid_map", uids), ("gid_map", gids)] {
        let lines = map.iter().map(|e| format!("{} {} {}\n", e.disk, e.shown, e.count));
        fs::write(of(name), lines.collect::<String>()).with_context(|| format!("write {name}"))?;
    }
    Ok(File::open(of("ns/user")).context("open ns/user")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an id is shown as.
    fn shown(map: &[Extent], id: u32) -> Vec<u32> {
        let holds = |e: &&Extent| (e.disk..e.disk + e.count).contains(&id);
        map.iter().filter(holds).map(|e| e.shown + (id - e.disk)).collect()
    }

    #[test]
    fn two_ids_change_places_and_every_other_one_stays() {
        let last = u32::MAX - 1;
        for (a, b) in
            [(1234, 999), (101, 999), (999, 1000), (0, 5), (0, 1), (last, 0), (7, 7), (last, last - 1)]
        {
            let map = swap(a, b);
            assert_eq!((shown(&map, a), shown(&map, b)), (vec![b], vec![a]), "{a} {b}");
            for id in [0, 1, 2, 500, 998, 1001, 65534, last].into_iter().filter(|id| ![a, b].contains(id)) {
                assert_eq!(shown(&map, id), [id], "{a} {b}");
            }
            assert_eq!(map.iter().map(|e| e.count as u64).sum::<u64>(), u64::from(u32::MAX));
        }
    }
}
