//! Layers on top of one another, seen as overlayfs would merge them (Documentation/filesystems/overlayfs.rst).
//!
//! The kernel's rules, read off the unpacked directories: a whiteout hides the name below, a non-directory hides
//! everything below it, directories merge down to the first one that is opaque. They are read here rather than
//! through a mount because the answer that matters is *which layer* has a file: a hard link must be made to that
//! one, and mounts would need privileges that importing into a directory otherwise doesn't.

use super::journal::Meta;
use crate::sys::fs::{self, Kind, Stat};
use crate::sys::tree;
use anyhow::{Context, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Overlayfs's mark on a directory that hides the directories below it.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// The names of overlayfs's own marks. None of them may come from a layer's tar.
pub const OVERLAY: &[u8] = b"trusted.overlay.";

/// The root directories of layers.
#[derive(Default)]
pub struct Stack {
    /// Top first, as overlayfs counts.
    roots: Vec<Arc<OwnedFd>>,
}

/// A directory of the stack: one real directory for each layer that has a part in it, top first. Empty when no
/// layer has it.
#[derive(Clone, Default)]
pub struct Merged {
    parts: Vec<Arc<OwnedFd>>,
}

/// What a name in a merged directory is.
pub enum Child {
    Absent,
    Dir(Merged),
    /// Anything else, with the real directory that has it.
    Other(Arc<OwnedFd>, Stat),
}

impl Stack {
    /// Puts a layer on top.
    pub fn push(&mut self, root: OwnedFd) {
        self.roots.insert(0, Arc::new(root));
    }

    pub fn root(&self) -> Merged {
        Merged { parts: self.roots.clone() }
    }
}

impl Merged {
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Looks `name` up through the layers.
    pub fn child(&self, name: &[u8]) -> Result<Child> {
        let mut found = Merged::default();
        for part in &self.parts {
            let Some(stat) =
                fs::lookup(part, name).with_context(|| format!("stat {}", name.escape_ascii()))?
            else {
                continue;
            };
            if stat.kind != Kind::Dir {
                return Ok(match (found.is_empty(), stat.is_whiteout()) {
                    (false, _) => Child::Dir(found),
                    (true, true) => Child::Absent,
                    (true, false) => Child::Other(Arc::clone(part), stat),
                });
            }
            let dir = fs::dir_beneath(part, name).with_context(|| format!("open {}", name.escape_ascii()))?;
            let opaque = fs::fgetxattr(&dir, OPAQUE)?.is_some_and(|v| v == b"y");
            found.parts.push(Arc::new(dir));
            if opaque {
                break;
            }
        }
        Ok(if found.is_empty() { Child::Absent } else { Child::Dir(found) })
    }

    /// The names that are visible here.
    pub fn names(&self) -> Result<Vec<Vec<u8>>> {
        let mut all = std::collections::BTreeSet::new();
        for part in &self.parts {
            all.extend(tree::names(part)?);
        }
        let mut visible = Vec::new();
        for name in all {
            if !matches!(self.child(&name)?, Child::Absent) {
                visible.push(name);
            }
        }
        Ok(visible)
    }

    /// The attributes that a merged directory shows: those of its topmost part.
    pub fn meta(&self) -> Result<Option<Meta>> {
        let Some(top) = self.parts.first() else { return Ok(None) };
        let stat = fs::fstat(top)?;
        let mut xattrs = Vec::new();
        for name in fs::flistxattr(top)?.into_iter().filter(|n| !n.starts_with(OVERLAY)) {
            if let Some(value) = fs::fgetxattr(top, &name)? {
                xattrs.push((name, value));
            }
        }
        Ok(Some(Meta { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs }))
    }
}
