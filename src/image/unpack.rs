//! Writing one layer's entries into an empty directory (layer.md, "Applying Changesets").
//!
//! Every entry is made by name in a directory that was opened without following a single symbolic link
//! (openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), and made new (O_EXCL): neither `..`, nor a link planted by
//! an earlier entry, can lead a later one elsewhere. Where a parent *is* a link of this layer, the link is followed
//! by hand, with the layer as its root. The parent of the last entry is kept open, since tars are written directory
//! by directory; an ordinary file then costs open, write, futimens and close.
//!
//! The surprising rule: order. chown(2) takes set-user-ID away and write(2) takes capabilities away, so a file is
//! written, then chowned, then chmodded, then given its extended attributes, then its time.

use super::entry::{Entry, Node, Reader, Tape};
use super::journal::{Dir, Journal, Meta};
use super::limits::Limits;
use super::name::{self, Name};
use super::resolve;
use super::stack::{OVERLAY, Stack};
use crate::sys::fs::{self, Kind};
use crate::sys::tree;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Unpacks the tar on `tape` into the empty directory `root`. `below` is only needed for a layer whose first
/// unpacking asked for it ([`super::fixup::Outcome::Again`]): links of the layers below are then followed.
///
/// The attributes of directories are not yet set: that is [`super::fixup::settle`]'s, last of all.
/// The calling thread gets a umask of its own.
pub fn unpack<T: Tape>(tape: T, root: &OwnedFd, below: Option<&Stack>, limits: &Limits) -> Result<Journal> {
    fs::private_umask().context("unshare(CLONE_FS)")?;
    let owner = fs::fstat(root)?;
    let owner = (owner.uid, owner.gid);
    let mut unpacker = Unpacker { root, below, limits, owner, parent: None, journal: Journal::default() };
    let mut reader = Reader::new(tape, limits);
    while let Some(entry) = reader.next_entry()? {
        let shown = || format!("entry {:?}", entry.name.escape_ascii().to_string());
        unpacker.entry(&entry, &mut reader).with_context(shown)?;
    }
    unpacker.journal.entries = reader.count();
    let mut tape = reader.into_tape();
    loop {
        // What follows the end of the archive still counts for the digest, and for nothing else.
        let rest = tape.fill_buf()?.len();
        if rest == 0 {
            return Ok(unpacker.journal);
        }
        tape.consume(rest);
    }
}

struct Unpacker<'a> {
    root: &'a OwnedFd,
    below: Option<&'a Stack>,
    limits: &'a Limits,
    /// Whom files belong to that are made here: those need no chown.
    owner: (u32, u32),
    parent: Option<Rc<Parent>>,
    journal: Journal,
}

/// An open directory, by the name that the archive used and by its real path in the layer.
struct Parent {
    asked: Vec<u8>,
    real: Vec<u8>,
    fd: OwnedFd,
}

/// Where an entry goes.
struct Place {
    parent: Rc<Parent>,
    name: Vec<u8>,
}

impl Place {
    fn path(&self) -> Vec<u8> {
        name::join(&self.parent.real, &self.name)
    }

    fn dir(&self) -> &OwnedFd {
        &self.parent.fd
    }
}

impl Unpacker<'_> {
    fn entry<T: Tape>(&mut self, entry: &Entry, reader: &mut Reader<'_, T>) -> Result<()> {
        let path = match name::understand(&entry.name, self.limits.depth)? {
            Name::Ignored => return Ok(()),
            Name::Whiteout(path) => {
                self.journal.whiteouts.insert(path);
                return Ok(());
            }
            Name::Opaque(path) => {
                self.journal.opaques.insert(path);
                return Ok(());
            }
            Name::Path(path) => path,
        };
        if path.is_empty() {
            return self.root_entry(entry);
        }
        let place = Place { parent: self.enter(name::parent(&path))?, name: name::last(&path).to_vec() };
        match &entry.node {
            Node::Dir => self.dir(entry, &place),
            Node::File => self.file(entry, &place, reader),
            Node::Symlink(target) => {
                self.make(&place, |dir, name| fs::symlinkat(target, dir, name)).context("symlink")?;
                self.finish_name(entry, &place, false)
            }
            Node::HardLink(target) => self.hard_link(target, &place),
            Node::Special(kind, major, minor) => {
                if (*kind, *major, *minor) == (Kind::CharDevice, 0, 0) {
                    bail!("it is a character device 0:0, which overlayfs would take for a whiteout");
                }
                self.make(&place, |dir, name| {
                    fs::mknodat(dir, name, *kind, entry.mode & 0o777, *major, *minor)
                })
                .context("mknod")?;
                self.finish_name(entry, &place, true)
            }
        }
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.node != Node::Dir {
            bail!("it would make the root something other than a directory");
        }
        let opaque = self.journal.dirs.get(&b""[..]).is_some_and(|d| d.opaque);
        self.journal.dirs.insert(Vec::new(), Dir { meta: Some(meta(entry)), opaque });
        Ok(())
    }

    fn dir(&mut self, entry: &Entry, place: &Place) -> Result<()> {
        let path = place.path();
        let mut opaque = self.journal.dirs.get(&path).is_some_and(|d| d.opaque);
        self.journal.links.remove(&path);
        match fs::mkdirat(place.dir(), &place.name, entry.mode & 0o777) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if fs::lstatat(place.dir(), &place.name)?.kind != Kind::Dir {
                    // The file that this layer had here before hid what is below; so must its successor.
                    opaque = true;
                    self.clear(place)?;
                    fs::mkdirat(place.dir(), &place.name, entry.mode & 0o777).context("mkdir")?;
                }
            }
            other => other.context("mkdir")?,
        }
        self.journal.dirs.insert(path, Dir { meta: Some(meta(entry)), opaque });
        Ok(())
    }

    fn file<T: Tape>(&mut self, entry: &Entry, place: &Place, reader: &mut Reader<'_, T>) -> Result<()> {
        let mut file =
            self.make(place, |dir, name| fs::create_file(dir, name, entry.mode & 0o777)).context("create")?;
        if entry.sparse.is_some() {
            reader.data(entry, |at, bytes| file.write_all_at(bytes, at).context("write"))?;
            file.set_len(entry.size).context("ftruncate")?;
        } else {
            reader.data(entry, |_, bytes| file.write_all(bytes).context("write"))?;
        }
        self.journal.bytes += reader_size(entry);
        self.finish_file(entry, &file)
    }

    fn finish_file(&self, entry: &Entry, file: &File) -> Result<()> {
        if (entry.uid, entry.gid) != self.owner {
            fs::fchown(file, entry.uid, entry.gid).context("fchown")?;
        }
        if entry.mode & 0o7000 != 0 {
            fs::fchmod(file, entry.mode).context("fchmod")?;
        }
        for (key, value) in xattrs(entry) {
            fs::fsetxattr(file, key, value).with_context(|| xattr_failed(key))?;
        }
        fs::futimens(file, entry.mtime).context("futimens")
    }

    /// As [`Self::finish_file`], for what can't be opened: links and devices, by their names.
    fn finish_name(&self, entry: &Entry, place: &Place, has_mode: bool) -> Result<()> {
        if (entry.uid, entry.gid) != self.owner {
            fs::lchownat(place.dir(), &place.name, entry.uid, entry.gid).context("fchownat")?;
        }
        if has_mode && entry.mode & 0o7000 != 0 {
            fs::chmodat(place.dir(), &place.name, entry.mode).context("fchmodat")?;
        }
        for (key, value) in xattrs(entry) {
            fs::lsetxattrat(place.dir(), &place.name, key, value).with_context(|| xattr_failed(key))?;
        }
        fs::lutimensat(place.dir(), &place.name, entry.mtime).context("utimensat")
    }

    /// Links to a file of this layer, or notes the link if only a layer below can have the target.
    fn hard_link(&mut self, target: &[u8], place: &Place) -> Result<()> {
        let target = name::normal(target, self.limits.depth).context("the target of the hard link")?;
        let here = place.path();
        if target == here {
            return Ok(());
        }
        if let Some(further) = self.journal.links.get(&target).cloned() {
            return self.link_below(here, further, place);
        }
        let Some(found) = self.find(name::parent(&target))? else {
            return self.link_below(here, target, place);
        };
        let (dir, last) = (&found.fd, name::last(&target));
        if name::join(&found.real, last) == here {
            return Ok(());
        }
        match fs::lookup(dir, last)? {
            None => self.link_below(here, target, place),
            Some(stat) if stat.kind == Kind::Dir => {
                bail!("it is a hard link to the directory {}", name::show(&target))
            }
            Some(_) => self.make(place, |to, name| fs::linkat(dir, last, to, name)).context("link"),
        }
    }

    fn link_below(&mut self, here: Vec<u8>, target: Vec<u8>, place: &Place) -> Result<()> {
        if fs::lookup(place.dir(), &place.name)?.is_some() {
            self.clear(place)?;
        }
        self.journal.links.insert(here, target);
        Ok(())
    }

    /// Makes something at `place`, in the place of what an earlier entry of this layer made there.
    fn make<R>(
        &mut self,
        place: &Place,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> io::Result<R>,
    ) -> io::Result<R> {
        use std::os::fd::AsFd;
        if !self.journal.links.is_empty() {
            self.journal.links.remove(&place.path());
        }
        match make(place.dir().as_fd(), &place.name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.clear(place)?;
                make(place.dir().as_fd(), &place.name)
            }
            other => other,
        }
    }

    /// Removes what is at `place`, with all that is in it.
    fn clear(&mut self, place: &Place) -> io::Result<()> {
        if fs::lstatat(place.dir(), &place.name)?.kind == Kind::Dir {
            tree::remove_tree(place.dir(), &place.name)?;
            self.journal.forget(&place.path());
        } else {
            fs::unlinkat(place.dir(), &place.name)?;
        }
        // The parent kept open may be in what was removed, or have been reached through the link that was.
        self.parent = None;
        Ok(())
    }

    /// Opens the directory `path`, making what is missing of it.
    fn enter(&mut self, path: &[u8]) -> Result<Rc<Parent>> {
        let parent = self.open(path, true)?.context("a directory that was just made is missing")?;
        self.parent = Some(Rc::clone(&parent));
        Ok(parent)
    }

    /// Finds the directory `path` in this layer without making anything.
    fn find(&mut self, path: &[u8]) -> Result<Option<Rc<Parent>>> {
        self.open(path, false)
    }

    fn open(&mut self, path: &[u8], create: bool) -> Result<Option<Rc<Parent>>> {
        if let Some(parent) = self.parent.as_ref().filter(|p| p.asked == path) {
            return Ok(Some(Rc::clone(parent)));
        }
        let (real, fd) = match fs::dir_handle(self.root, path) {
            Ok(fd) => (path.to_vec(), fd),
            Err(e) if resolve::needs_walk(&e) => {
                let Some(real) = self.walk(path, create)? else { return Ok(None) };
                let fd = fs::dir_handle(self.root, &real).context("openat2")?;
                (real, fd)
            }
            Err(e) => return Err(e).with_context(|| format!("openat2 {}", name::show(path))),
        };
        Ok(Some(Rc::new(Parent { asked: path.to_vec(), real, fd })))
    }

    /// Follows `path` part by part, with the layer as the root of its symbolic links, and returns the real path.
    /// Missing directories are made if `create`, otherwise the result is `None`.
    fn walk(&mut self, path: &[u8], create: bool) -> Result<Option<Vec<u8>>> {
        let mut route = resolve::Route::new(path);
        while let Some(part) = route.step() {
            if part == b".." {
                self.doubt(&route.real);
                name::pop(&mut route.real);
                continue;
            }
            let child = name::join(&route.real, &part);
            match fs::lookup(self.root, &child)?.map(|s| s.kind) {
                Some(Kind::Dir) => route.real = child,
                Some(Kind::Symlink) => route.follow(&fs::readlinkat(self.root, &child)?)?,
                Some(_) => bail!("its parent {} is not a directory", name::show(&child)),
                None => match self.link_of_below(&child)? {
                    Some(target) => route.follow(&target)?,
                    None if create => {
                        fs::mkdirat(self.root, &child, 0o755).context("mkdir")?;
                        self.journal.dirs.insert(child.clone(), Dir::default());
                        route.real = child;
                    }
                    None => return Ok(None),
                },
            }
        }
        Ok(Some(route.real))
    }

    /// `..` after a directory that only has been assumed: below, it could be a symbolic link.
    fn doubt(&mut self, real: &[u8]) {
        let sure = real.is_empty() || self.journal.dirs.get(real).is_some_and(|d| d.meta.is_some());
        self.journal.needs_below |= !sure && self.below.is_none();
    }

    /// The target, if `path` is a symbolic link of the layers below that this layer leaves in place.
    fn link_of_below(&self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.below {
            Some(below) if !self.journal.whiteouts.contains(path) => {
                resolve::link_below(below, &self.journal, path)
            }
            _ => Ok(None),
        }
    }
}

fn meta(entry: &Entry) -> Meta {
    let xattrs = xattrs(entry).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
    Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs }
}

/// The entry's extended attributes without overlayfs's own: a layer that brought an opaque mark, a redirect or a
/// whiteout of its own making would hide or show files behind the back of what its names say.
fn xattrs(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    entry.xattrs.iter().filter(|(k, _)| !k.starts_with(OVERLAY)).map(|(k, v)| (&k[..], &v[..]))
}

fn reader_size(entry: &Entry) -> u64 {
    match &entry.sparse {
        Some(map) => map.iter().map(|s| s.len).sum(),
        None => entry.size,
    }
}

fn xattr_failed(key: &[u8]) -> String {
    format!(
        "setxattr {} (does the file system of the pgbox root take extended attributes?)",
        key.escape_ascii()
    )
}
