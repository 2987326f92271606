//! Blobs: a range of bytes in a file, and a reader that hashes what goes through it.
//!
//! A blob of an image layout is a file, a blob of an archive a stretch of that archive; both are read at an offset
//! (pread(2)), so several layers can be read from one archive at the same time. The surprising rule: a decompressor
//! stops where *it* sees the end, but the digest covers the whole blob, so what is left must be read as well.

use super::digest::{Digest, Hasher};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// `len` bytes of `file` from `offset`.
#[derive(Clone)]
pub struct Blob {
    pub file: Arc<File>,
    pub offset: u64,
    pub len: u64,
}

impl Blob {
    /// The whole of an open regular file.
    pub fn whole(file: File) -> Result<Blob> {
        let len = file.metadata()?.len();
        Ok(Blob { file: Arc::new(file), offset: 0, len })
    }

    /// All bytes, if there are at most `most`.
    pub fn bytes(&self, most: u64) -> Result<Vec<u8>> {
        if self.len > most {
            bail!("it has {} bytes, a document of an image may have {most}", self.len);
        }
        let mut all = Vec::with_capacity(self.len as usize);
        self.reader().read_to_end(&mut all)?;
        Ok(all)
    }

    /// All bytes of a document that must have this digest and size.
    pub fn verified(&self, digest: &Digest, size: Option<u64>, most: u64) -> Result<Vec<u8>> {
        if let Some(size) = size.filter(|s| *s != self.len) {
            bail!("it has {} bytes where its descriptor says {size}: it was cut off or changed", self.len);
        }
        let bytes = self.bytes(most)?;
        let found = Digest::of(&bytes);
        if found != *digest {
            bail!("its content has the digest {found}: it was changed or damaged");
        }
        Ok(bytes)
    }

    pub fn reader(&self) -> BlobReader {
        BlobReader { blob: self.clone(), pos: 0, hash: None }
    }

    /// A reader that adds up the digest of what was read.
    pub fn hashing(&self) -> BlobReader {
        BlobReader { blob: self.clone(), pos: 0, hash: Some(Hasher::default()) }
    }
}

/// Reads a [`Blob`] from its start.
pub struct BlobReader {
    blob: Blob,
    pos: u64,
    hash: Option<Hasher>,
}

impl BlobReader {
    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.pos
    }

    /// Reads what is left and returns the digest of the whole blob.
    pub fn finish(mut self) -> Result<Digest> {
        let mut rest = vec![0; 64 << 10];
        while self.read(&mut rest).context("read the rest of the blob")? > 0 {}
        Ok(self.hash.unwrap_or_default().finish())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.blob.len - self.pos;
        let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = self.blob.file.read_at(&mut buf[..want], self.blob.offset + self.pos)?;
        self.pos += got as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(&buf[..got]);
        }
        Ok(got)
    }
}
