//! Whose files are on disk, and whose a mount shows them to be.

use serde::{Deserialize, Serialize};

use crate::sys::idmap::{self, Extent};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// A mount shows what is of the one as the other's, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    pub disk: Owner,
    pub shown: Owner,
}

impl IdMap {
    pub fn uids(&self) -> Vec<Extent> {
        idmap::swap(self.disk.uid, self.shown.uid)
    }

    pub fn gids(&self) -> Vec<Extent> {
        idmap::swap(self.disk.gid, self.shown.gid)
    }

    /// As an option of mount(8), since util-linux 2.39.
    pub fn option(&self) -> String {
        let words = |kind: &str, map: Vec<Extent>| {
            let word = |e: &Extent| format!("{kind}:{}:{}:{}", e.disk, e.shown, e.count);
            map.iter().map(word).collect::<Vec<_>>().join(" ")
        };
        format!("X-mount.idmap='{} {}'", words("u", self.uids()), words("g", self.gids()))
    }
}
