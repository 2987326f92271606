//! What an image may ask for before it is refused.
//!
//! A layer is data from strangers: one megabyte of gzip inflates to a gigabyte of zeros, of zstd to far more, and a
//! header of 512 bytes makes a file. The caps are far above every image in use, and each error names its cap.

use anyhow::{Result, bail};

/// Caps on the size of what is read and made. [`Limits::default`] is what `pgbox` uses.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a manifest, index or configuration. Registries refuse manifests above 4 MiB.
    pub document: u64,
    /// Bytes of one layer's tar.
    pub layer: u64,
    /// Bytes of tar that any blob may inflate to, however small it is: `free + ratio * blob`.
    pub free: u64,
    pub ratio: u64,
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of one file with its holes.
    pub file: u64,
    /// Levels of directories.
    pub depth: usize,
    /// Bytes of one pax header, long name or sparse map.
    pub header: u64,
    /// Layers of an image: overlayfs takes at most 500.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            document: 4 << 20,
            layer: 64 << 30,
            free: 512 << 20,
            ratio: 100,
            entries: 1_000_000,
            file: 1 << 40,
            depth: 256,
            header: 1 << 20,
            layers: 499,
        }
    }
}

impl Limits {
    /// Refuses a blob that inflates to too much: `read` bytes of blob have become `made` bytes of tar.
    pub fn inflated(&self, read: u64, made: u64) -> Result<()> {
        if made > self.layer {
            bail!("it inflates to more than {} bytes, the most that a layer may have", self.layer);
        }
        let most = self.free.saturating_add(self.ratio.saturating_mul(read));
        if made > most {
            bail!(
                "it is a decompression bomb: {read} bytes have inflated to {made}, more than {} times as much",
                self.ratio
            );
        }
        Ok(())
    }
}
