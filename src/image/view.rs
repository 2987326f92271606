//! Looking into an image: a read-only mount of its layers.

use super::Image;
use crate::sys::overlay::{self, Options};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Mounts `image` read-only at the directory `dir`. It stays until [`umount`], also when pgbox has ended.
pub fn mount(image: &Image, dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        bail!("{} is not a directory: make it first (mkdir {0})", dir.display());
    }
    let options = Options { read_only: true, volatile: false };
    overlay::mount(&image.lowers(), None, dir, options)
        .with_context(|| format!("mount image {}", image.name()))
}

/// Where `image` is mounted, as this process sees it.
pub fn mount_points(image: &Image) -> Result<Vec<PathBuf>> {
    overlay::mount_points(&image.lowers())
}

/// Takes a mount away again.
pub fn umount(dir: &Path) -> Result<()> {
    overlay::umount(dir)
}
