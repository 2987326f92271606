//! Looking into an image: a read-only mount of its layers.

use super::Image;
use crate::sys::overlay::{self, Options};
use anyhow::{Context, Result, bail};
use std::path::Path;

/// Mounts `image` read-only at the directory `dir`. It stays until [`umount`], also when pgbox has ended.
pub fn mount(image: &Image, dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        bail!("{} is not a directory: make it first (mkdir {0})", dir.display());
    }
    let options = Options { read_only: true, volatile: false };
    overlay::mount(&image.lowers(), None, dir, options)
        .with_context(|| format!("mount image {}", image.name()))
}

/// Takes a mount away again.
pub fn umount(dir: &Path) -> Result<()> {
    overlay::umount(dir)
}
