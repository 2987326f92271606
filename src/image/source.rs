//! Where an image is imported from, and which image of it: a layout directory, an OCI archive or a saved image.
//!
//! The surprising rule: `docker save` archives have no manifest with digests. Their `manifest.json` only names
//! files, so an OCI manifest is made up from the configuration: what identifies the image is then its diffIDs.

use super::archive::{Archive, SavedImage};
use super::blob::Blob;
use super::decompress::Decoder;
use super::digest::{DiffId, Digest};
use super::layout::{Layout, blob_name};
use super::limits::Limits;
use super::manifest::{self, Descriptor, Document, Index, Manifest};
use super::reference::{Reference, valid_tag};
use crate::sys::fs;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// An opened source.
pub struct Source {
    path: PathBuf,
    form: Form,
}

enum Form {
    Layout(Layout),
    Archive(Archive),
}

/// One image of a source, its documents verified, its layers not yet opened.
pub struct Picked {
    /// The names that the source gives to it, or the one of them that was asked for.
    pub names: Vec<String>,
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    /// Index documents on the way to the manifest.
    pub indexes: Vec<Vec<u8>>,
    pub layers: Vec<LayerBlob>,
}

/// How to find and check one layer.
#[derive(Clone, Debug)]
pub struct LayerBlob {
    member: String,
    /// Digest and size as stored; `None` in a saved image, which only has the diffID.
    pub stored: Option<(Digest, u64)>,
}

/// Documents that are at hand already, by digest.
pub type Known<'a> = &'a dyn Fn(&Digest) -> Option<Vec<u8>>;

impl Source {
    /// Opens a directory or an archive; a compressed archive is inflated into a nameless file in `scratch`.
    pub fn open(path: &Path, scratch: &Path, limits: &Limits) -> Result<Source> {
        let meta = std::fs::metadata(path).with_context(|| format!("open {}", path.display()))?;
        let form = if meta.is_dir() {
            Form::Layout(Layout::open(path)?)
        } else if meta.is_file() {
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            let plain =
                inflated(file, scratch, limits).with_context(|| format!("read {}", path.display()))?;
            Form::Archive(Archive::open(plain, limits).with_context(|| {
                format!(
                    "{} is not an archive that pgbox can read (an OCI archive or a saved image)",
                    path.display()
                )
            })?)
        } else {
            bail!("{} is neither a directory nor a file; an image can't be read from a pipe", path.display());
        };
        Ok(Source { path: path.to_owned(), form })
    }

    /// Chooses an image and reads its documents. `select` is a name in the source; without it there must be only one.
    pub fn pick(&self, select: Option<&str>, known: Known<'_>, limits: &Limits) -> Result<Picked> {
        if let Some(index) = self.member("index.json")? {
            return self.pick_indexed(index, select, known, limits);
        }
        if let (Form::Archive(_), Some(list)) = (&self.form, self.member("manifest.json")?) {
            return self.pick_saved(&list.bytes(limits.document).context("manifest.json")?, select, limits);
        }
        bail!("{} is neither an OCI image layout (no index.json) nor a saved image", self.path.display())
    }

    /// Opens the blob of a layer and compares its size.
    pub fn layer(&self, layer: &LayerBlob) -> Result<Blob> {
        let blob = self
            .member(&layer.member)?
            .with_context(|| format!("{} is missing in {}", layer.member, self.path.display()))?;
        if let Some((_, size)) = layer.stored.filter(|(_, size)| *size != blob.len) {
            bail!("it has {} bytes, the manifest says {size}: it was cut off or changed", blob.len);
        }
        Ok(blob)
    }

    fn member(&self, name: &str) -> Result<Option<Blob>> {
        match &self.form {
            Form::Layout(layout) => layout.member(name),
            Form::Archive(archive) => archive.member(name),
        }
    }

    fn pick_indexed(
        &self,
        index: Blob,
        select: Option<&str>,
        known: Known<'_>,
        limits: &Limits,
    ) -> Result<Picked> {
        if self.member("oci-layout")?.is_none() {
            bail!("{} has an index.json but no oci-layout: not an OCI image layout", self.path.display());
        }
        let bytes = index.bytes(limits.document).context("index.json")?;
        let top: Index = serde_json::from_slice(&bytes).context("read index.json")?;
        let mut found = self.choose(&top, select)?.clone();
        let same = top.manifests.iter().filter(|d| d.digest == found.digest && select.is_none());
        let named = same.chain(select.is_some().then_some(&found)).filter_map(Descriptor::name);
        let names: Vec<String> = named.map(|n| self.full_name(n)).collect();
        let mut indexes = Vec::new();
        for _ in 0..4 {
            let bytes = self.document(&found, known, limits)?;
            let shown =
                || format!("{} {}", found.media_type.rsplit('.').nth(1).unwrap_or("document"), found.digest);
            match manifest::document(&bytes, &found).with_context(|| format!("blob {}", found.digest))? {
                Document::Index(index) => {
                    found = index.for_platform().with_context(shown)?.clone();
                    indexes.push(bytes);
                }
                Document::Manifest(manifest) => {
                    return self
                        .layers(&manifest, bytes, known, limits)
                        .map(|p| Picked { names, indexes, ..p })
                        .with_context(shown);
                }
            }
        }
        bail!("{}: its indexes point to one another, more than 4 deep", self.path.display())
    }

    /// Reads a document from the source, unless it is at hand.
    fn document(&self, descriptor: &Descriptor, known: Known<'_>, limits: &Limits) -> Result<Vec<u8>> {
        let digest = descriptor.digest()?;
        if let Some(bytes) = known(&digest) {
            return Ok(bytes);
        }
        let blob = self.member(&blob_name(&digest))?;
        let blob = blob.with_context(|| format!("blob {digest} is missing in {}", self.path.display()))?;
        blob.verified(&digest, Some(descriptor.size), limits.document)
            .with_context(|| format!("blob {digest}"))
    }

    fn layers(
        &self,
        manifest: &Manifest,
        bytes: Vec<u8>,
        known: Known<'_>,
        limits: &Limits,
    ) -> Result<Picked> {
        manifest.check_config_type()?;
        let config = self.document(&manifest.config, known, limits)?;
        let layers = manifest.layers.iter().map(|l| {
            let digest = l.digest()?;
            Ok(LayerBlob { member: blob_name(&digest), stored: Some((digest, l.size)) })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        Ok(Picked { names: Vec::new(), manifest: bytes, config, indexes: Vec::new(), layers })
    }

    fn choose<'i>(&self, index: &'i Index, select: Option<&str>) -> Result<&'i Descriptor> {
        let all = &index.manifests;
        if let Some(select) = select {
            let fits = |d: &&Descriptor| {
                [manifest::REF_NAME, manifest::CONTAINERD_NAME]
                    .iter()
                    .any(|k| d.annotations.get(*k).is_some_and(|n| same_name(n, select)))
            };
            return all
                .iter()
                .find(fits)
                .with_context(|| self.unknown(select, all.iter().filter_map(Descriptor::name)));
        }
        match &all[..] {
            [] => bail!("the index.json of {} lists no image", self.path.display()),
            [only] => Ok(only),
            // One image under several names.
            [first, rest @ ..] if rest.iter().all(|d| d.digest == first.digest) => Ok(first),
            several if several.iter().all(|d| d.platform.is_some() && d.name() == several[0].name()) => {
                index.for_platform()
            }
            several => bail!(self.ambiguous(several.iter().filter_map(Descriptor::name))),
        }
    }

    fn pick_saved(&self, list: &[u8], select: Option<&str>, limits: &Limits) -> Result<Picked> {
        let images: Vec<SavedImage> = serde_json::from_slice(list).context("read manifest.json")?;
        let names = || images.iter().flat_map(|i| i.repo_tags.iter().flatten()).map(String::as_str);
        let tagged = |i: &&SavedImage, name: &str| i.repo_tags.iter().flatten().any(|t| same_name(t, name));
        let image = match (select, &images[..]) {
            (_, []) => bail!("the manifest.json of {} lists no image", self.path.display()),
            (None, [only]) => only,
            (None, _) => bail!(self.ambiguous(names())),
            (Some(name), all) => {
                all.iter().find(|i| tagged(i, name)).with_context(|| self.unknown(name, names()))?
            }
        };
        let missing = |name: &str| format!("manifest.json names {name:?}, which is not in the archive");
        let config = self.member(&image.config)?.with_context(|| missing(&image.config))?;
        let config = config.bytes(limits.document).with_context(|| image.config.clone())?;
        check_own_name(&image.config, &config)?;
        let (_, diffs) = super::config::ImageConfig::parse(&config).with_context(|| image.config.clone())?;
        let mut layers = Vec::new();
        let mut sizes = Vec::new();
        for member in image.layers.iter().flatten() {
            sizes.push(self.member(member)?.with_context(|| missing(member))?.len);
            layers.push(LayerBlob { member: member.clone(), stored: None });
        }
        if layers.len() != diffs.len() {
            bail!(
                "manifest.json lists {} layers, {} has {} diff_ids",
                layers.len(),
                image.config,
                diffs.len()
            );
        }
        let asked = |tag: &&String| select.is_none_or(|name| same_name(tag, name));
        let names = image.repo_tags.iter().flatten().filter(asked).cloned().collect();
        let manifest = made_up_manifest(&config, &diffs, &sizes)?;
        Ok(Picked { names, manifest, config, indexes: Vec::new(), layers })
    }

    /// A mere tag, which is what many tools write into a layout, belongs to the layout's own name.
    fn full_name(&self, name: &str) -> String {
        match valid_tag(name).then(|| self.own_name()).flatten() {
            Some(repository) => format!("{repository}:{name}"),
            None => name.to_string(),
        }
    }

    /// What the source would be called after its file name: `tiny` for `/tmp/tiny.tar`.
    pub fn own_name(&self) -> Option<String> {
        let path = self.path.canonicalize().ok()?;
        let name = path.file_name()?.to_str()?.to_lowercase();
        let stem = name.trim_end_matches(".gz").trim_end_matches(".zst").trim_end_matches(".tar").to_string();
        Reference::parse(&stem).ok().map(|_| stem)
    }

    fn unknown<'n>(&self, select: &str, names: impl Iterator<Item = &'n str>) -> String {
        format!(
            "{} has no image {select:?}, only [{}]",
            self.path.display(),
            names.collect::<Vec<_>>().join(", ")
        )
    }

    fn ambiguous<'n>(&self, names: impl Iterator<Item = &'n str>) -> String {
        let (path, names) = (self.path.display(), names.collect::<Vec<_>>().join(", "));
        format!("{path} has several images, [{names}]: choose one with {path}:NAME")
    }
}

/// Whether an index's name for an image is the one the user gave, perhaps only its tag.
fn same_name(name: &str, select: &str) -> bool {
    let parsed = |text| Reference::parse(text).ok();
    name == select
        || parsed(name)
            .is_some_and(|n| Some(&n) == parsed(select).as_ref() || (name.contains(':') && n.tag() == select))
}

/// A configuration that is named by its digest must have it.
fn check_own_name(member: &str, config: &[u8]) -> Result<()> {
    let stem = member.rsplit('/').next().unwrap_or(member).trim_end_matches(".json");
    if let Ok(digest) = format!("sha256:{stem}").parse::<Digest>() {
        let found = Digest::of(config);
        if found != digest {
            bail!("{member} has the digest {found}, not the one it is named by: it was changed or damaged");
        }
    }
    Ok(())
}

/// The manifest that a saved image lacks: its layers by their diffIDs, as uncompressed tars.
fn made_up_manifest(config: &[u8], diffs: &[DiffId], sizes: &[u64]) -> Result<Vec<u8>> {
    let descriptor = |kind: &str, digest: Digest, size| Descriptor {
        media_type: kind.to_string(),
        digest: digest.to_string(),
        size,
        annotations: Default::default(),
        platform: None,
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(manifest::OCI_MANIFEST.to_string()),
        config: descriptor(manifest::OCI_CONFIG, Digest::of(config), config.len() as u64),
        layers: diffs.iter().zip(sizes).map(|(d, s)| descriptor(manifest::OCI_LAYER, d.0, *s)).collect(),
    };
    Ok(serde_json::to_vec(&manifest)?)
}

/// The archive itself, or if it is compressed, what it inflates to.
fn inflated(file: File, scratch: &Path, limits: &Limits) -> Result<File> {
    let blob = Blob::whole(file.try_clone()?)?;
    let mut decoder = Decoder::new(blob.reader())?;
    if matches!(decoder, Decoder::Plain(_)) {
        return Ok(file);
    }
    let mut plain = fs::nameless_file(scratch).context("open(O_TMPFILE)")?;
    let mut buf = vec![0; 256 << 10];
    let mut made = 0;
    loop {
        let got = decoder.read(&mut buf).context("inflate")?;
        if got == 0 {
            return Ok(plain);
        }
        made += got as u64;
        limits.inflated(decoder.source().position(), made)?;
        plain.write_all(&buf[..got])?;
    }
}
