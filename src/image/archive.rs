//! Archives of images: an OCI layout in a tar, or what `docker save` and `podman save` write.
//!
//! The archive is read in place: one pass over its headers notes where each file begins, and nothing is unpacked.
//! Old `docker save` archives store a layer that two images share as a symbolic link to the other's `layer.tar`;
//! such links are resolved among the archive's own members, so a name like `../../etc/shadow` finds nothing.

use super::blob::Blob;
use super::entry::{Node, Reader, Tape};
use super::limits::Limits;
use super::name;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// An archive with the places of its members.
pub struct Archive {
    file: Arc<File>,
    members: BTreeMap<Vec<u8>, Member>,
}

enum Member {
    File {
        offset: u64,
        len: u64,
    },
    /// To the path of another member, without `.` and `..`.
    Link(Vec<u8>),
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SavedImage {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub layers: Option<Vec<String>>,
}

impl Archive {
    /// Reads the headers of an uncompressed archive.
    pub fn open(file: File, limits: &Limits) -> Result<Archive> {
        let file = Arc::new(file);
        let len = file.metadata()?.len();
        let mut members = BTreeMap::new();
        let mut reader = Reader::new(FileTape::new(Arc::clone(&file), len), limits);
        while let Some(entry) = reader.next_entry()? {
            let path = name::normal(&entry.name, limits.depth)
                .with_context(|| format!("entry {:?}", name::show(&entry.name)))?;
            let member = match &entry.node {
                Node::File if entry.sparse.is_some() => {
                    bail!("{} is sparse: not the archive of an image", name::show(&path))
                }
                Node::File => Member::File { offset: reader.tape().position(), len: entry.size },
                Node::Symlink(target) => match beside(&path, target) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                Node::HardLink(target) => Member::Link(name::normal(target, limits.depth)?),
                _ => continue,
            };
            let document = path.ends_with(b".json") || path == b"oci-layout";
            if members.insert(path.clone(), member).is_some() && document {
                bail!(
                    "{} is in the archive twice, so that tools disagree about which one counts",
                    name::show(&path)
                );
            }
        }
        Ok(Archive { file, members })
    }

    /// The file `name` of the archive; `None` if it has none.
    pub fn member(&self, name: &str) -> Result<Option<Blob>> {
        let mut path = match name::normal(name.as_bytes(), 64) {
            Ok(path) => path,
            Err(e) => return Err(e.context(format!("{name:?}, a file that the archive's manifest names"))),
        };
        for _ in 0..10 {
            match self.members.get(&path) {
                None => return Ok(None),
                Some(Member::Link(target)) => path = target.clone(),
                Some(Member::File { offset, len }) => {
                    return Ok(Some(Blob { file: Arc::clone(&self.file), offset: *offset, len: *len }));
                }
            }
        }
        bail!("{name} is a loop of links in the archive")
    }
}

/// The path that a link in the same archive leads to; `None` if it leads out of it.
fn beside(link: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    if target.starts_with(b"/") {
        return None;
    }
    let mut path = name::parent(link).to_vec();
    for part in name::parts(target) {
        match part {
            b".." if path.is_empty() => return None,
            b".." => name::pop(&mut path),
            part => name::push(&mut path, part),
        }
    }
    Some(path)
}

/// Reads a file from its start and passes over data without reading it.
struct FileTape {
    file: Arc<File>,
    len: u64,
    /// Of the first byte in `buf[at..]`.
    pos: u64,
    buf: Vec<u8>,
    at: usize,
}

impl FileTape {
    fn new(file: Arc<File>, len: u64) -> FileTape {
        FileTape { file, len, pos: 0, buf: Vec::new(), at: 0 }
    }

    /// Offset of the next byte.
    fn position(&self) -> u64 {
        self.pos
    }
}

impl BufRead for FileTape {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buf.len() {
            let want = 4096.min(self.len.saturating_sub(self.pos)) as usize;
            self.buf.resize(want, 0);
            let got = self.file.read_at(&mut self.buf, self.pos)?;
            self.buf.truncate(got);
            self.at = 0;
        }
        Ok(&self.buf[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
        self.pos += count as u64;
    }
}

impl Read for FileTape {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let count = from.len().min(buf.len());
        buf[..count].copy_from_slice(&from[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl Tape for FileTape {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let buffered = self.buf.len() - self.at;
        if count <= buffered as u64 {
            self.consume(count as usize);
            return Ok(());
        }
        match self.pos.checked_add(count).filter(|end| *end <= self.len) {
            None => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(end) => {
                (self.pos, self.at) = (end, 0);
                self.buf.clear();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_in_the_archive() {
        assert_eq!(beside(b"abc/layer.tar", b"../def/layer.tar").unwrap(), b"def/layer.tar");
        assert_eq!(beside(b"abc/layer.tar", b"../../etc/shadow"), None);
        assert_eq!(beside(b"abc/layer.tar", b"/etc/shadow"), None);
    }
}
