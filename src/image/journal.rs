//! What unpacking a layer leaves for later: the directories' attributes, and all that depends on the layers below.
//!
//! Layers unpack at the same time, so none can look at the one below. What a layer says about the layers below it is
//! written down here and settled afterwards, in order, by [`super::fixup`]. Directories are in it too, because
//! every entry made in a directory changes its mtime, and a default ACL or set-group-ID bit would be inherited.

use crate::sys::fs::Time;
use std::collections::{BTreeMap, BTreeSet};

/// The attributes of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for Meta {
    /// What a directory gets that no layer describes: root's, 0755, and 1970, so that an import gives the same twice.
    fn default() -> Meta {
        Meta { mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: Vec::new() }
    }
}

/// A directory that was made in this layer.
#[derive(Clone, Debug, Default)]
pub struct Dir {
    /// `None` for a parent that has no entry of its own: it keeps the attributes that the layers below give it.
    pub meta: Option<Meta>,
    /// It replaces what the layers below have here instead of merging with it.
    pub opaque: bool,
}

/// See the module. Paths are relative to the root, which is `""`.
#[derive(Debug, Default)]
pub struct Journal {
    pub dirs: BTreeMap<Vec<u8>, Dir>,
    pub whiteouts: BTreeSet<Vec<u8>>,
    pub opaques: BTreeSet<Vec<u8>>,
    /// Hard links to files that only a layer below can have: name to target.
    pub links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A symbolic link went through `..` after a name that the layers below decide: unpack again, with them.
    pub needs_below: bool,
    pub entries: u64,
    /// Bytes of all regular files.
    pub bytes: u64,
}

impl Journal {
    /// Whether the layer is the same on top of whatever layers: it can then be shared by its diffID alone.
    pub fn stands_alone(&self) -> bool {
        let described = |d: &Dir| d.meta.is_some() && !d.opaque;
        self.whiteouts.is_empty()
            && self.opaques.is_empty()
            && self.links.is_empty()
            && !self.needs_below
            && self.dirs.contains_key(&b""[..])
            && self.dirs.values().all(described)
    }

    /// Forgets what was noted about `path` and everything below it, which has just been removed.
    pub fn forget(&mut self, path: &[u8]) {
        let inside = [path, b"/"].concat();
        let gone = |p: &Vec<u8>| p == path || p.starts_with(&inside);
        self.dirs.retain(|p, _| !gone(p));
        self.links.retain(|p, _| !gone(p));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgetting_a_directory_spares_its_siblings() {
        let mut journal = Journal::default();
        for path in ["a", "a/b", "a-b", "ab"] {
            journal.dirs.insert(path.into(), Dir::default());
        }
        journal.forget(b"a");
        let left: Vec<_> = journal.dirs.keys().map(|k| String::from_utf8_lossy(k).into_owned()).collect();
        assert_eq!(left, ["a-b", "ab"]);
    }
}
