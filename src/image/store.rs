//! Images on this machine: `images/` and `layers/` under pgbox's root.
//!
//! ```text
//! images/index.json           names: an OCI image index, one descriptor for each name
//! images/blobs/sha256/<hex>   manifests and configurations as they came
//! images/sha256-<hex>.facts.json  what was found in the image with this manifest, see [`Store::note`]
//! images/lock                 held (flock(2)) by the one import or removal that is under way
//! layers/<key>/               the root directory of one unpacked layer: a lower directory of overlays
//! layers/<key>.json           what it is: both IDs in full, and its size
//! layers/tmp-*                an import under way, or the remains of one
//! ```
//!
//! A layer's blob is not kept: once unpacked and verified it would only double the space. The key of a layer is `d` and
//! 24 digits of its diffID if its content is the same on top of anything, or `c` and 24 digits of its chainID if not:
//! a whiteout, a parent directory or root without an entry of its own, a hard link into a layer below mean different
//! things on different layers. 25 bytes, so that 130 of them fit in the one page of options of mount(2).
//!
//! Nothing is ever changed in place: a directory gets its name when it is complete and on disk, a file replaces its
//! predecessor by rename(2). The surprising rule: a lock file must never be removed, or two processes hold a lock
//! each on two different files of one name.

use super::config::ImageConfig;
use super::digest::{ChainId, DiffId, Digest};
use super::limits::Limits;
use super::manifest::{self, Descriptor, Index, Manifest};
use super::reference::{Reference, Wanted};
use super::{Image, Layer};
use crate::sys::{fs, tree};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The annotation that lists the index documents on the way to a manifest.
const INDEXES: &str = "pgbox.indexes";

/// The images under one root directory.
pub struct Store {
    images: PathBuf,
    pub(super) layers: PathBuf,
    pub(super) limits: Limits,
}

/// What [`Store::remove`] took away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub names: Vec<String>,
    pub manifest: Digest,
    /// `false` if the image still has another name and nothing else was removed.
    pub image: bool,
    /// Layers that no other image has, and the bytes in them.
    pub layers: usize,
    pub bytes: u64,
}

/// `layers/<key>.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Record {
    pub diff_id: String,
    pub chain_id: String,
    pub size: u64,
    pub entries: u64,
}

/// Held while images or layers are added or removed.
pub(super) struct Lock(#[allow(dead_code, reason = "closing it releases the lock")] File);

/// The name of a layer's directory, which says whether it depends on the layers below.
pub(super) fn key(diff: &DiffId, chain: &ChainId, stands_alone: bool) -> String {
    let (letter, digest) = if stands_alone { ('d', &diff.0) } else { ('c', &chain.0) };
    format!("{letter}{}", &digest.hex()[..24])
}

/// An image that is not removed.
#[derive(Debug)]
pub struct InUse {
    /// As it was asked for.
    pub reference: String,
    pub manifest: Digest,
}

impl std::fmt::Display for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "image {} is in use by a container", self.reference)
    }
}

impl std::error::Error for InUse {}

impl Store {
    /// The store under `root`, which need not be there yet.
    pub fn open(root: &Path) -> Result<Store> {
        Store::with_limits(root, Limits::default())
    }

    /// As [`Store::open`], with other caps on what an image may be.
    pub fn with_limits(root: &Path, limits: Limits) -> Result<Store> {
        let root = std::path::absolute(root)?;
        Ok(Store { images: root.join("images"), layers: root.join("layers"), limits })
    }

    fn make_directories(&self) -> Result<()> {
        // Layers hold set-user-ID programs of strangers: nobody but root may reach them by path.
        for (dir, mode) in [(&self.images.join("blobs/sha256"), 0o755), (&self.layers, 0o700)] {
            let made = DirBuilder::new().recursive(true).mode(mode).create(dir);
            made.with_context(|| format!("mkdir {} (the image store is root's)", dir.display()))?;
        }
        Ok(())
    }

    /// Finds an image by name, digest, or the first 12 or more digits of a digest.
    pub fn resolve(&self, reference: &str) -> Result<Image> {
        let index = self.index()?;
        let found = self.matching(&index, reference)?;
        self.image(&index, &found.digest()?)
    }

    /// Makes sure that an image has not been removed since it was resolved.
    pub fn confirm(&self, manifest: &Digest) -> Result<()> {
        self.matching(&self.index()?, &manifest.to_string()).map(drop)
    }

    /// What was noted of the image with this manifest.
    pub fn noted(&self, manifest: &Digest) -> Option<Vec<u8>> {
        fs::read_at_once(self.note_path(&manifest.hex())).ok()
    }

    /// Keeps something with an image, as long as that is there.
    pub fn note(&self, manifest: &Digest, content: &[u8]) -> Result<()> {
        replace(&self.note_path(&manifest.hex()), content)
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<Image>> {
        let index = self.index()?;
        let digests: BTreeSet<&str> = index.manifests.iter().map(|d| d.digest.as_str()).collect();
        let mut images = Vec::new();
        for digest in digests {
            let image = self.image(&index, &digest.parse()?);
            images.push(image.with_context(|| {
                format!(
                    "image {digest} can't be read; if it is damaged, `pgbox image rm {digest}` removes it"
                )
            })?);
        }
        images.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(images)
    }

    /// Takes a name away, and with its last name the image and the layers that no other image has. An image whose
    /// manifest is in `in_use` is refused; that is asked once no other import or removal is under way, which may take
    /// long.
    pub fn remove(&self, reference: &str, in_use: impl FnOnce() -> Result<Vec<Digest>>) -> Result<Removed> {
        let _lock = self.lock()?;
        let mut index = self.index()?;
        let found = self.matching(&index, reference)?.clone();
        let manifest = found.digest()?;
        let by_name = matches!(Wanted::parse(reference)?, Wanted::Name(_));
        let goes = |d: &Descriptor| d.digest == found.digest && (!by_name || d.name() == found.name());
        let names =
            index.manifests.iter().filter(|d| goes(d)).filter_map(|d| d.name().map(str::to_owned)).collect();
        index.manifests.retain(|d| !goes(d));
        let image = !index.manifests.iter().any(|d| d.digest == found.digest);
        if image && in_use()?.contains(&manifest) {
            return Err(InUse { reference: reference.to_owned(), manifest }.into());
        }
        self.write_index(&index)?;
        let (layers, bytes) = if image { self.drop_unused(&index)? } else { (0, 0) };
        Ok(Removed { names, manifest, image, layers, bytes })
    }

    /// Waits until no other import or removal is under way.
    pub(super) fn lock(&self) -> Result<Lock> {
        self.make_directories()?;
        let path = self.images.join("lock");
        let open = || {
            File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .and_then(|f| f.lock().map(|()| f))
        };
        Ok(Lock(open().with_context(|| format!("flock {}", path.display()))?))
    }

    /// A document by its digest, if the store has it undamaged.
    pub(super) fn document(&self, digest: &Digest) -> Option<Vec<u8>> {
        fs::read_at_once(self.blob_path(digest)).ok().filter(|bytes| Digest::of(bytes) == *digest)
    }

    /// Keeps documents, which all have names by their content.
    pub(super) fn keep(&self, documents: &[&[u8]]) -> Result<()> {
        for bytes in documents {
            let digest = Digest::of(bytes);
            if self.document(&digest).is_none() {
                replace(&self.blob_path(&digest), bytes)?;
            }
        }
        Ok(())
    }

    /// Makes `name` mean the image with this manifest.
    pub(super) fn set_name(&self, name: &Reference, manifest: &[u8], indexes: &[Vec<u8>]) -> Result<()> {
        let mut index = self.index()?;
        let digest = Digest::of(manifest).to_string();
        let mut annotations = BTreeMap::from([(manifest::REF_NAME.to_string(), name.to_string())]);
        let indexes: Vec<_> = indexes.iter().map(|i| Digest::of(i).to_string()).collect();
        if !indexes.is_empty() {
            annotations.insert(INDEXES.to_string(), indexes.join(" "));
        }
        let size = manifest.len() as u64;
        let media_type = manifest::OCI_MANIFEST.to_string();
        let old = index.manifests.iter().position(|d| d.name() == Some(&name.to_string()));
        let replaced = old.map(|at| index.manifests.remove(at));
        index.manifests.push(Descriptor { media_type, digest, size, annotations, platform: None });
        index.manifests.sort_by(|a, b| a.name().cmp(&b.name()));
        // An image that loses its last name this way stays, under its digest: containers may run on it.
        if let Some(mut old) = replaced.filter(|old| !index.manifests.iter().any(|d| d.digest == old.digest))
        {
            old.annotations.remove(manifest::REF_NAME);
            index.manifests.push(old);
        }
        let named: BTreeSet<_> =
            index.manifests.iter().filter(|d| d.name().is_some()).map(|d| d.digest.clone()).collect();
        index.manifests.retain(|d| d.name().is_some() || !named.contains(&d.digest));
        self.write_index(&index)
    }

    /// Whether `name` already means the image with this manifest.
    pub(super) fn has_name(&self, name: &Reference, manifest: &Digest) -> Result<bool> {
        let (name, digest) = (name.to_string(), manifest.to_string());
        Ok(self.index()?.manifests.iter().any(|d| d.name() == Some(&name) && d.digest == digest))
    }

    /// The unpacked layer, if it is there: by its own content, or by its chain.
    pub(super) fn layer(&self, diff: &DiffId, chain: &ChainId) -> Result<Option<Layer>> {
        for alone in [true, false] {
            let key = key(diff, chain, alone);
            let dir = self.layers.join(&key);
            let Some(record) = self.record(&key)? else { continue };
            if !dir.is_dir() {
                continue;
            }
            if record.diff_id != diff.to_string() || (!alone && record.chain_id != chain.to_string()) {
                bail!(
                    "layer {diff} would have the same directory as layer {}: {}",
                    record.diff_id,
                    dir.display()
                );
            }
            return Ok(Some(Layer { diff_id: *diff, chain_id: *chain, dir, size: record.size }));
        }
        Ok(None)
    }

    /// Writes down what `layers/<key>` is, before it is there.
    pub(super) fn write_record(&self, key: &str, record: &Record) -> Result<()> {
        replace(&self.record_path(key), &serde_json::to_vec(record)?)
    }

    /// Removes what imports have left that did not end well. The caller holds the lock, so none is under way.
    pub(super) fn sweep(&self, _lock: &Lock) -> Result<()> {
        let dir = fs::open_dir(&self.layers)?;
        for name in tree::names(&dir)?.iter().filter(|n| n.starts_with(b"tmp-")) {
            let removed = tree::remove_tree(&dir, name);
            removed.with_context(|| format!("remove {}/{}", self.layers.display(), name.escape_ascii()))?;
        }
        Ok(())
    }

    fn record(&self, key: &str) -> Result<Option<Record>> {
        let path = self.record_path(key);
        match fs::read_at_once(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        }
    }

    fn record_path(&self, key: &str) -> PathBuf {
        self.layers.join(format!("{key}.json"))
    }

    fn note_path(&self, hex: &str) -> PathBuf {
        self.images.join(format!("sha256-{hex}.facts.json"))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.images.join("blobs/sha256").join(digest.hex())
    }

    fn index(&self) -> Result<Index> {
        let path = self.images.join("index.json");
        match fs::read_at_once(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Index {
                schema_version: 2,
                media_type: Some(manifest::OCI_INDEX.to_string()),
                manifests: Vec::new(),
            }),
            Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        }
    }

    fn write_index(&self, index: &Index) -> Result<()> {
        replace(&self.images.join("index.json"), &serde_json::to_vec_pretty(index)?)
    }

    fn matching<'i>(&self, index: &'i Index, reference: &str) -> Result<&'i Descriptor> {
        let wanted = Wanted::parse(reference)?;
        let fits = |d: &Descriptor| match &wanted {
            Wanted::Name(name) => d.name() == Some(&name.to_string()),
            Wanted::Digest(digest) => d.digest == digest.to_string(),
            Wanted::Prefix(hex) => d.digest["sha256:".len()..].starts_with(hex),
        };
        let found: Vec<_> = index.manifests.iter().filter(|d| fits(d)).collect();
        if found.iter().any(|d| d.digest != found[0].digest) {
            bail!("{reference} is the start of several images' digests: give more of it");
        }
        match found.first() {
            Some(found) => Ok(found),
            None => bail!("there is no image {reference} in {}; {}", self.images.display(), ways_out(index)),
        }
    }

    /// Puts an image together from its documents and layers.
    fn image(&self, index: &Index, digest: &Digest) -> Result<Image> {
        let names = index.manifests.iter().filter(|d| d.digest == digest.to_string());
        let mut names: Vec<String> = names.filter_map(|d| d.name().map(str::to_owned)).collect();
        names.sort();
        let shown = names.first().cloned().unwrap_or_else(|| digest.to_string());
        let damaged = || format!("image {shown} is damaged in {}: import it again", self.images.display());
        let (_, config, diffs) = self.documents(digest).with_context(damaged)?;
        let chains = ChainId::chain(&diffs);
        let mut layers = Vec::with_capacity(diffs.len());
        for (diff, chain) in diffs.iter().zip(&chains) {
            match self.layer(diff, chain).with_context(damaged)? {
                Some(layer) => layers.push(layer),
                None => bail!(
                    "layer {diff} of image {shown} is missing in {}: import the image again",
                    self.layers.display()
                ),
            }
        }
        Ok(Image { names, manifest: *digest, config, layers })
    }

    fn documents(&self, digest: &Digest) -> Result<(Manifest, ImageConfig, Vec<DiffId>)> {
        let read = |digest: &Digest| {
            self.document(digest).with_context(|| format!("blob {digest} is missing or changed"))
        };
        let manifest: Manifest = serde_json::from_slice(&read(digest)?)?;
        let (config, diffs) = ImageConfig::parse(&read(&manifest.config.digest()?)?)?;
        Ok((manifest, config, diffs))
    }

    /// Removes blobs and layers that no image of `index` needs.
    fn drop_unused(&self, index: &Index) -> Result<(usize, u64)> {
        let (mut blobs, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for descriptor in &index.manifests {
            let digest = descriptor.digest()?;
            let (manifest, _, diffs) = self.documents(&digest).with_context(|| format!("image {digest}"))?;
            blobs.extend([digest.hex(), manifest.config.digest()?.hex()]);
            let indexes = descriptor.annotations.get(INDEXES).map_or("", String::as_str);
            blobs.extend(
                indexes.split_whitespace().filter_map(|d| d.strip_prefix("sha256:")).map(str::to_owned),
            );
            for (diff, chain) in diffs.iter().zip(ChainId::chain(&diffs)) {
                keys.extend([key(diff, &chain, true), key(diff, &chain, false)]);
            }
        }
        for name in entries(&self.images.join("blobs/sha256"))?.into_iter().filter(|n| !blobs.contains(n)) {
            std::fs::remove_file(self.images.join("blobs/sha256").join(&name))
                .with_context(|| format!("remove blob {name}"))?;
            // Of a manifest; the others have none.
            let _ = std::fs::remove_file(self.note_path(&name));
        }
        let (mut layers, mut bytes) = (0, 0);
        for name in entries(&self.layers)? {
            let Some(key) = name.strip_suffix(".json").filter(|key| !keys.contains(*key)) else { continue };
            bytes += self.record(key)?.map_or(0, |r| r.size);
            layers += 1;
            self.drop_layer(key)
                .with_context(|| format!("remove layer {}", self.layers.join(key).display()))?;
        }
        Ok((layers, bytes))
    }

    /// The name goes first, then the content, then the record: a removal cut short is finished by the next import.
    fn drop_layer(&self, key: &str) -> io::Result<()> {
        let doomed = self.layers.join(format!("tmp-rm-{key}"));
        match std::fs::rename(self.layers.join(key), &doomed) {
            Ok(()) => std::fs::remove_dir_all(&doomed)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        std::fs::remove_file(self.record_path(key))
    }
}

fn ways_out(index: &Index) -> String {
    let names: Vec<_> = index.manifests.iter().filter_map(Descriptor::name).collect();
    let have = if names.is_empty() {
        "there is none yet".to_string()
    } else {
        format!("there is {}", names.join(", "))
    };
    format!(
        "{have}. `pgbox image build` makes the Postgres image, `pgbox image import FILE` takes one from a file"
    )
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    let read = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in read {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::replace(path, bytes, 0o644, true).with_context(|| format!("write {}", path.display()))
}
