//! Writing an OCI image layout: a directory with `oci-layout`, `index.json` and `blobs/sha256/`.
//!
//! Format: image-spec `image-layout.md`. The rule that surprises people: a blob's name is known only
//! when its last byte is written. So a blob is written under a temporary name beside its final one, and
//! `index.json` comes last, by rename: a reader sees the image whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use flate2::GzBuilder;
use oci_spec::image::{
    ANNOTATION_REF_NAME, Descriptor, Digest, ImageIndex, ImageIndexBuilder, MediaType, SCHEMA_VERSION,
};
use serde::Serialize;

use super::pack::{Hashing, Packed, write_diff};

/// How a layer blob is compressed. All three give the same diffID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// Understood by every tool.
    #[default]
    Gzip,
    /// Smaller, and twice as fast to unpack.
    Zstd,
    /// The plain tar.
    None,
}

impl Compression {
    fn media_type(self) -> MediaType {
        match self {
            Compression::Gzip => MediaType::ImageLayerGzip,
            Compression::Zstd => MediaType::ImageLayerZstd,
            Compression::None => MediaType::ImageLayer,
        }
    }
}

/// An image layout that is being written.
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Opens the layout in `dir`, or makes it. Images that are already in it stay.
    ///
    /// # Errors
    /// `dir` cannot be made or written.
    pub fn create(dir: &Path) -> Result<Layout> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("make directory {}", blobs.display()))?;
        let marker = dir.join("oci-layout");
        fs::write(&marker, "{\"imageLayoutVersion\":\"1.0.0\"}\n")
            .with_context(|| format!("write {}", marker.display()))?;
        Ok(Layout { dir: dir.to_owned() })
    }

    /// Packs the tree `tree`, which lies over `lowers`, as a layer blob; see [`write_diff`].
    ///
    /// # Errors
    /// Those of [`write_diff`], and a full disk.
    pub fn add_layer(
        &self,
        tree: &Path,
        lowers: &[PathBuf],
        clamp: SystemTime,
        compression: Compression,
    ) -> Result<(Descriptor, Packed)> {
        let what = format!("layer-{}", tree.file_name().unwrap_or_default().display());
        let mut packed = None;
        let descriptor = self.add_blob(&what, compression.media_type(), |blob| {
            packed = Some(match compression {
                // Neither time nor file name in gzip's header: they would change the digest.
                Compression::Gzip => {
                    let mut gzip = GzBuilder::new().mtime(0).write(blob, flate2::Compression::new(6));
                    let packed = write_diff(tree, lowers, Some(clamp), &mut gzip)?;
                    gzip.finish()?;
                    packed
                }
                Compression::Zstd => {
                    let mut zstd = zstd::Encoder::new(blob, 9)?;
                    zstd.include_checksum(true)?;
                    let packed = write_diff(tree, lowers, Some(clamp), &mut zstd)?;
                    zstd.finish()?;
                    packed
                }
                Compression::None => write_diff(tree, lowers, Some(clamp), blob)?,
            });
            Ok(())
        })?;
        Ok((descriptor, packed.expect("add_blob ran the closure")))
    }

    /// Adds `document` as a JSON blob.
    ///
    /// # Errors
    /// The disk is full or the directory not writable.
    pub fn add_json(&self, media_type: MediaType, document: &impl Serialize) -> Result<Descriptor> {
        let bytes = sorted_json(document)?;
        self.add_blob("json", media_type, |blob| Ok(blob.write_all(&bytes)?))
    }

    fn add_blob(
        &self,
        what: &str,
        media_type: MediaType,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<Descriptor> {
        let partial = self.dir.join(format!("blobs/sha256/.partial-{what}"));
        let (digest, size) = File::create(&partial)
            .map_err(anyhow::Error::from)
            .and_then(|file| {
                let mut blob = Hashing::new(BufWriter::with_capacity(128 * 1024, file));
                write(&mut blob)?;
                blob.flush()?;
                let (_, digest, size) = blob.finish();
                fs::rename(&partial, self.blob(&digest))?;
                Ok((digest, size))
            })
            .with_context(|| format!("write blob {}", partial.display()))?;
        Ok(Descriptor::new(media_type, size, digest))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.digest())
    }

    /// Enters `manifest` into the index under each of `names`, in the place of what had that name.
    ///
    /// # Errors
    /// An `index.json` that is there but is none; a full disk.
    pub fn tag(&self, manifest: &Descriptor, names: &[String]) -> Result<()> {
        let path = self.dir.join("index.json");
        let mut manifests = match ImageIndex::from_file(&path) {
            Ok(index) => index.manifests().clone(),
            Err(oci_spec::OciSpecError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        manifests.retain(|old| !ref_name(old).is_some_and(|name| names.contains(name)));
        for name in names {
            let mut named = manifest.clone();
            named.set_annotations(Some([(ANNOTATION_REF_NAME.to_owned(), name.clone())].into()));
            manifests.push(named);
        }
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests(manifests)
            .build()?;
        let partial = self.dir.join(".partial-index.json");
        fs::write(&partial, sorted_json(&index)?)
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("write {}", path.display()))
    }
}

fn ref_name(descriptor: &Descriptor) -> Option<&String> {
    descriptor.annotations().as_ref()?.get(ANNOTATION_REF_NAME)
}

/// JSON with sorted keys. oci-spec keeps labels and annotations in hash maps, whose order is another
/// one in each process, and with it the digest.
fn sorted_json(document: &impl Serialize) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(document)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}
