//! The second, short pass over a layer, bottom layer first: what it says about the layers below it.
//!
//! Overlayfs has its own marks for what a layer's tar says by names: a whiteout is a character device 0:0, an opaque
//! directory has an extended attribute. Where they go depends on the layers below. The surprising rules:
//!
//! - A whiteout of something that isn't there would itself be visible, as a device file, in a directory that no
//!   other layer has a part in. It is made only where a layer below has the name.
//! - A directory that a layer only passes through (no entry of its own) covers the one below with its attributes.
//!   It gets those of the one below. The root is such a directory in most layers.
//! - Overlayfs looks for no opaque mark on the root itself: there every name below gets its own whiteout.
//! - A name that this layer passes through may be a symbolic link below. The layer is then unpacked once more, with
//!   the layers below in sight ([`Outcome::Again`]).
//! - A hard link to a file of a layer below is made across the layers' directories, which are on one file system: the
//!   names stay one file, as the archive says, and no byte is copied.

use super::journal::{Dir, Journal, Meta};
use super::name;
use super::resolve;
use super::stack::{Child, OPAQUE, Stack};
use crate::sys::fs::{self, Kind};
use anyhow::{Context, Result, bail};
use std::os::fd::OwnedFd;

/// How the second pass ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Unpack the layer again from its start, with the layers below given to [`super::unpack::unpack`].
    Again,
}

/// Settles everything that unpacking noted, and sets the attributes of the directories. `again` says that this
/// layer has already been unpacked with the layers below in sight.
pub fn settle(root: &OwnedFd, journal: Journal, below: &Stack, again: bool) -> Result<Outcome> {
    let mut layer = Layer { root, below, journal };
    layer.journal.dirs.entry(Vec::new()).or_default();
    layer.mark_opaque()?;
    if !again && (layer.journal.needs_below || layer.passes_through_links()?) {
        return Ok(Outcome::Again);
    }
    layer.describe_parents()?;
    // Links first: a layer may rename a file by linking to the old name and whiting it out.
    layer.make_links()?;
    layer.clear_root()?;
    layer.make_opaque()?;
    layer.make_whiteouts()?;
    layer.drop_needless_marks()?;
    layer.seal()?;
    Ok(Outcome::Done)
}

struct Layer<'a> {
    root: &'a OwnedFd,
    below: &'a Stack,
    journal: Journal,
}

impl Layer<'_> {
    /// A directory of this layer that the same layer also whites out, or calls opaque, hides what is below it.
    fn mark_opaque(&mut self) -> Result<()> {
        for path in self.journal.opaques.clone() {
            if let Some((real, _)) = self.directory(&path)?
                && let Some(dir) = self.journal.dirs.get_mut(&real)
            {
                dir.opaque = true;
            }
        }
        for path in self.journal.whiteouts.clone() {
            if let Some((parent, _)) = self.directory(name::parent(&path))?
                && let Some(dir) = self.journal.dirs.get_mut(&name::join(&parent, name::last(&path)))
            {
                dir.opaque = true;
            }
        }
        Ok(())
    }

    /// Whether a directory that this layer assumed is a symbolic link below.
    fn passes_through_links(&self) -> Result<bool> {
        for (path, dir) in &self.journal.dirs {
            let assumed = dir.meta.is_none() && !dir.opaque && !path.is_empty();
            if assumed && resolve::link_below(self.below, &self.journal, path)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gives the directories without an entry the attributes that they have below.
    fn describe_parents(&mut self) -> Result<()> {
        let paths: Vec<_> =
            self.journal.dirs.iter().filter(|(_, d)| d.meta.is_none()).map(|(p, _)| p.clone()).collect();
        for path in paths {
            let meta = self.inherited(&path)?;
            self.journal.dirs.entry(path).or_default().meta = Some(meta);
        }
        Ok(())
    }

    /// The attributes of a directory below; an opaque marker in it hides what it has, not what it is.
    fn inherited(&self, path: &[u8]) -> Result<Meta> {
        let merged = match path {
            b"" => self.below.root(),
            _ if self.journal.opaques.contains(&b""[..]) => return Ok(Meta::default()),
            _ => match resolve::visible(self.below, &self.journal, name::parent(path))?
                .child(name::last(path))?
            {
                Child::Dir(dir) if !self.journal.whiteouts.contains(path) => dir,
                _ => return Ok(Meta::default()),
            },
        };
        Ok(merged.meta()?.unwrap_or_default())
    }

    /// Opaque markers in directories that this layer doesn't have otherwise.
    fn make_opaque(&mut self) -> Result<()> {
        for path in self.journal.opaques.clone() {
            if let Some((real, merged)) = self.directory(&path)?
                && !merged.is_empty()
                && !real.is_empty()
            {
                self.ensure(&real)?;
                self.journal.dirs.entry(real).or_default().opaque = true;
            }
        }
        Ok(())
    }

    fn make_whiteouts(&mut self) -> Result<()> {
        for path in std::mem::take(&mut self.journal.whiteouts) {
            let Some((parent, merged)) = self.directory(name::parent(&path))? else { continue };
            let child = name::join(&parent, name::last(&path));
            if fs::lookup(self.root, &child)?.is_none() {
                self.whiteout(&parent, &merged, name::last(&path))?;
            }
        }
        Ok(())
    }

    /// Hides `name` in the directory `parent`, if a layer below has it there.
    fn whiteout(&mut self, parent: &[u8], merged: &super::stack::Merged, name: &[u8]) -> Result<()> {
        if matches!(merged.child(name)?, Child::Absent) {
            return Ok(());
        }
        self.ensure(parent)?;
        let dir = fs::dir_handle(self.root, parent)?;
        fs::mknodat(dir, name, Kind::CharDevice, 0, 0, 0)
            .with_context(|| format!("mknod: make the whiteout of {}", name::show(&name::join(parent, name))))
    }

    /// Hard links to files of the layers below.
    fn make_links(&mut self) -> Result<()> {
        for (here, target) in std::mem::take(&mut self.journal.links) {
            let both = || format!("entry {:?}: hard link to {:?}", name::show(&here), name::show(&target));
            let found = match self.directory(name::parent(&target)).with_context(both)? {
                Some((_, merged)) => merged.child(name::last(&target))?,
                None => Child::Absent,
            };
            match found {
                Child::Other(dir, _) => {
                    let to = fs::dir_handle(self.root, name::parent(&here)).with_context(both)?;
                    fs::linkat(dir, name::last(&target), to, name::last(&here)).with_context(both)?;
                }
                Child::Dir(_) => bail!("{}: that is a directory", both()),
                Child::Absent => bail!("{}: neither this layer nor one below it has that file", both()),
            }
        }
        Ok(())
    }

    /// Overlayfs takes no opaque mark on the root: hide everything below name by name.
    fn clear_root(&mut self) -> Result<()> {
        if !self.journal.opaques.contains(&b""[..]) {
            return Ok(());
        }
        let merged = self.below.root();
        for name in merged.names()? {
            match fs::lookup(self.root, &name)? {
                None => self.whiteout(b"", &merged, &name)?,
                Some(stat) if stat.kind == Kind::Dir => {
                    self.journal.dirs.entry(name).or_default().opaque = true
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// An opaque mark is made only where it hides something: the image's bottom layer alone is mounted without
    /// overlayfs, which would show the mark.
    fn drop_needless_marks(&mut self) -> Result<()> {
        let marked: Vec<_> =
            self.journal.dirs.iter().filter(|(_, d)| d.opaque).map(|(p, _)| p.clone()).collect();
        for path in marked {
            let parent = resolve::visible(self.below, &self.journal, name::parent(&path))?;
            let hides = !path.is_empty() && matches!(parent.child(name::last(&path))?, Child::Dir(_));
            self.journal.dirs.entry(path).or_default().opaque = hides;
        }
        Ok(())
    }

    /// Makes the directory `path` with the attributes that it has below.
    fn ensure(&mut self, path: &[u8]) -> Result<()> {
        let mut real = Vec::new();
        for part in name::parts(path) {
            name::push(&mut real, part);
            if !self.journal.dirs.contains_key(&real) {
                let meta = Some(self.inherited(&real)?);
                fs::mkdirat(self.root, &real, 0o755)
                    .with_context(|| format!("mkdir {}", name::show(&real)))?;
                self.journal.dirs.insert(real.clone(), Dir { meta, opaque: false });
            }
        }
        Ok(())
    }

    /// Sets owner, mode, extended attributes, opaque mark and, last, the time of every directory.
    fn seal(&self) -> Result<()> {
        for (path, dir) in &self.journal.dirs {
            self.seal_one(path, dir).with_context(|| format!("directory {}", name::show(path)))?;
        }
        Ok(())
    }

    fn seal_one(&self, path: &[u8], dir: &Dir) -> Result<()> {
        let fd = fs::dir_beneath(self.root, path).context("openat2")?;
        let meta = dir.meta.clone().unwrap_or_default();
        if (meta.uid, meta.gid) != (0, 0) || path.is_empty() {
            fs::fchown(&fd, meta.uid, meta.gid).context("fchown")?;
        }
        // Made by mkdir with these permissions, except the root and what this pass made or found undescribed.
        fs::fchmod(&fd, meta.mode).context("fchmod")?;
        for (key, value) in &meta.xattrs {
            fs::fsetxattr(&fd, key, value).with_context(|| format!("setxattr {}", key.escape_ascii()))?;
        }
        if dir.opaque {
            fs::fsetxattr(&fd, OPAQUE, b"y").context("setxattr trusted.overlay.opaque")?;
        }
        fs::futimens(&fd, meta.mtime).context("futimens")
    }

    fn directory(&self, path: &[u8]) -> Result<Option<(Vec<u8>, super::stack::Merged)>> {
        resolve::directory(self.root, &self.journal, self.below, path)
    }
}
