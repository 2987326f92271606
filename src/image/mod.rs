//! OCI images: from a layout or archive to lower directories of overlayfs (the OCI image specification 1.1).
//!
//! [`store`] is what the rest of pgbox sees: it imports, names, lists and removes images. Below it, in the order in
//! which bytes flow: [`source`] finds an image in a [`layout`] or [`archive`], [`manifest`] and [`config`] read its
//! documents, [`blob`] and [`decompress`] read a layer, [`entry`] (with [`pax`], [`sparse`], [`name`]) parses its
//! tar, [`unpack`] writes it, [`pipeline`] runs these three at once, [`fixup`] settles the layer on those below it
//! (with [`stack`] and [`resolve`]), and [`import`] does all that for all layers.
//!
//! The rule that surprises people: a layer is not a directory tree but a *change* to the layers below, and it comes
//! from strangers. What it means can depend on the layers below, and none of it may reach anything outside.

pub mod archive;
pub mod blob;
pub mod build;
mod build_layout;
mod build_recipe;
pub mod config;
pub mod decompress;
pub mod digest;
pub mod entry;
pub mod fixup;
pub mod import;
pub mod journal;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod name;
pub mod pack;
pub mod pax;
pub mod pipeline;
pub mod progress;
pub mod reference;
pub mod resolve;
pub mod source;
pub mod sparse;
pub mod stack;
pub mod store;
pub mod unpack;
pub mod user;
pub mod view;

pub use config::ImageConfig;
pub use digest::{ChainId, DiffId, Digest};
pub use limits::Limits;
pub use progress::{Progress, Silent};
pub use reference::Reference;
pub use store::{InUse, Removed, Store};
pub use view::{mount, mount_points, umount};

use std::path::PathBuf;

/// An image in the store, ready to be mounted.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its names, sorted; none if another image has taken its last one.
    pub names: Vec<String>,
    /// What identifies it: the digest of its manifest.
    pub manifest: Digest,
    pub config: ImageConfig,
    /// Bottom first, as in the configuration.
    pub layers: Vec<Layer>,
}

/// One unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub diff_id: DiffId,
    pub chain_id: ChainId,
    /// A lower directory. Never write to it: it is shared.
    pub dir: PathBuf,
    /// Bytes in its files.
    pub size: u64,
}

impl Image {
    /// Its first name, or its digest.
    pub fn name(&self) -> String {
        self.names.first().cloned().unwrap_or_else(|| self.manifest.to_string())
    }

    /// The layers' directories, top first as overlayfs wants them.
    pub fn lowers(&self) -> Vec<PathBuf> {
        let mut lowers: Vec<PathBuf> = Vec::with_capacity(self.layers.len());
        for layer in self.layers.iter().rev() {
            // Overlayfs refuses a directory that is there twice. A layer that is shared by its content adds nothing
            // where it is repeated further down: all it has is already on top.
            if !lowers.contains(&layer.dir) {
                lowers.push(layer.dir.clone());
            }
        }
        lowers
    }

    /// Bytes in the files of all layers.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|l| l.size).sum()
    }
}
