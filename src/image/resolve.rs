//! Following a path through symbolic links by hand, in a layer and the layers below it.
//!
//! openat2(2) can resolve a path inside one directory, but an image's path goes through many: each part of it may
//! come from another layer. So a path is walked part by part, and a link puts its target in front of what is left
//! to walk; an absolute one starts again at the image's root, and `..` stops there, as chroot(2) would have it.

use super::journal::Journal;
use super::name;
use super::stack::{Child, Merged, Stack};
use crate::sys::fs::{self, Kind};
use anyhow::{Result, bail};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

/// As many links as the kernel follows for one path, see path_resolution(7).
const LINKS: usize = 40;

/// The way still to go.
pub struct Route {
    todo: VecDeque<Vec<u8>>,
    /// How far it has got: a path without links.
    pub real: Vec<u8>,
    links: usize,
}

impl Route {
    pub fn new(path: &[u8]) -> Route {
        Route { todo: name::parts(path).map(<[u8]>::to_vec).collect(), real: Vec::new(), links: 0 }
    }

    /// The next part; only links bring `..`.
    pub fn step(&mut self) -> Option<Vec<u8>> {
        self.todo.pop_front()
    }

    /// Goes on through a link that was found in `real`.
    pub fn follow(&mut self, target: &[u8]) -> Result<()> {
        self.links += 1;
        if self.links > LINKS {
            bail!("the path to it goes through more than {LINKS} symbolic links (a loop?)");
        }
        if target.starts_with(b"/") {
            self.real.clear();
        }
        for part in name::parts(target).rev() {
            self.todo.push_front(part.to_vec());
        }
        Ok(())
    }
}

/// Whether openat2 without links failed in a way that walking could get round.
pub fn needs_walk(error: &io::Error) -> bool {
    const ELOOP: i32 = 40;
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(ELOOP)
}

/// What the layers below have in the directory `real` (a path without links), as far as this layer lets it show.
pub fn visible(below: &Stack, journal: &Journal, real: &[u8]) -> Result<Merged> {
    let mut merged = below.root();
    let mut path = Vec::new();
    for part in name::parts(real) {
        name::push(&mut path, part);
        merged = match merged.child(part)? {
            Child::Dir(dir) if !journal.dirs.get(&path).is_some_and(|d| d.opaque) => dir,
            _ => return Ok(Merged::default()),
        };
    }
    Ok(merged)
}

/// The target of `path` (without links in its parents), if the layers below have a symbolic link there and this
/// layer doesn't clear the whole root.
pub fn link_below(below: &Stack, journal: &Journal, path: &[u8]) -> Result<Option<Vec<u8>>> {
    if journal.opaques.contains(&b""[..]) {
        return Ok(None);
    }
    let name = name::last(path);
    match visible(below, journal, name::parent(path))?.child(name)? {
        Child::Other(dir, stat) if stat.kind == Kind::Symlink => Ok(Some(fs::readlinkat(dir, name)?)),
        _ => Ok(None),
    }
}

/// Finds the directory `path` in this layer on top of `below`: its path without links, and its part below. `None`
/// if there is no such directory.
pub fn directory(
    root: &OwnedFd,
    journal: &Journal,
    below: &Stack,
    path: &[u8],
) -> Result<Option<(Vec<u8>, Merged)>> {
    let mut route = Route::new(path);
    let mut merged = below.root();
    while let Some(part) = route.step() {
        if part == b".." {
            name::pop(&mut route.real);
            merged = visible(below, journal, &route.real)?;
            continue;
        }
        let child = name::join(&route.real, &part);
        match fs::lookup(root, &child)?.map(|s| s.kind) {
            Some(Kind::Dir) => {
                merged = match merged.child(&part)? {
                    Child::Dir(dir) if !journal.dirs.get(&child).is_some_and(|d| d.opaque) => dir,
                    _ => Merged::default(),
                };
                route.real = child;
            }
            Some(Kind::Symlink) => {
                route.follow(&fs::readlinkat(root, &child)?)?;
                merged = visible(below, journal, &route.real)?;
            }
            Some(_) => return Ok(None),
            None => match merged.child(&part)? {
                Child::Dir(dir) => {
                    merged = dir;
                    route.real = child;
                }
                Child::Other(dir, stat) if stat.kind == Kind::Symlink => {
                    route.follow(&fs::readlinkat(dir, &part)?)?;
                    merged = visible(below, journal, &route.real)?;
                }
                _ => return Ok(None),
            },
        }
    }
    Ok(Some((route.real, merged)))
}
