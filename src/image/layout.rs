//! An OCI image layout: a directory with `oci-layout`, `index.json` and `blobs/` (image-spec: image-layout.md).
//!
//! The directory may have come from anywhere, so its files are opened below it without following a symbolic link:
//! a blob that is a link to /etc/shadow, or a FIFO, is not a blob.

use super::blob::Blob;
use super::digest::Digest;
use crate::sys::fs;
use anyhow::{Context, Result};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// An open layout directory.
pub struct Layout {
    dir: OwnedFd,
    path: PathBuf,
}

impl Layout {
    pub fn open(path: &Path) -> Result<Layout> {
        let dir = fs::open_dir(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Layout { dir, path: path.to_owned() })
    }

    /// The file `name` of the layout; `None` if it has none.
    pub fn member(&self, name: &str) -> Result<Option<Blob>> {
        match fs::file_beneath(&self.dir, name.as_bytes()) {
            Ok(file) => Ok(Some(Blob::whole(file)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e)
                .with_context(|| format!("open {} (links are not followed)", self.path.join(name).display())),
        }
    }
}

/// Where a layout keeps a blob.
pub fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
