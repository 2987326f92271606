//! Index, manifest and their descriptors (image-spec: image-index.md, manifest.md, descriptor.md; and Docker's
//! schema 2, which differs in the media types only).
//!
//! The surprising rule: the type of a document is in the descriptor that points to it, and again in the document,
//! and a document can be read as either an index or a manifest. Two tools that decide differently run two different
//! images with one digest (CVE-2021-41190), so a document that could be both is refused.

use super::digest::{DiffId, Digest};
use super::limits::Limits;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// The annotation with the name of an image in an index.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's full name of the image, beside a tag in [`REF_NAME`].
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

const LAYERS: &[&str] = &[
    OCI_LAYER,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A pointer to a blob. The digest is text until it is needed: of an index of many platforms, only one entry is.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A list of manifests, one for each platform or name.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
}

/// A configuration and the layers, bottom first.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub config: Descriptor,
    #[serde(deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
}

/// What a descriptor led to.
pub enum Document {
    Index(Index),
    Manifest(Manifest),
}

impl Descriptor {
    pub fn digest(&self) -> Result<Digest> {
        self.digest.parse()
    }

    /// The name that an index gives to what this points to.
    pub fn name(&self) -> Option<&str> {
        let name = self.annotations.get(CONTAINERD_NAME).or_else(|| self.annotations.get(REF_NAME));
        name.map(String::as_str)
    }

    fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }

    fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST)
    }
}

/// Reads what `descriptor` points to, as the type that the descriptor says and no other.
pub fn document(bytes: &[u8], descriptor: &Descriptor) -> Result<Document> {
    let value: serde_json::Value = serde_json::from_slice(bytes).context("it is not JSON")?;
    let has = |key: &str| value.get(key).is_some();
    if has("manifests") && (has("layers") || has("config")) {
        bail!(
            "it is an index and a manifest in one, so that tools disagree about what it is (CVE-2021-41190)"
        );
    }
    let said = value.get("mediaType").and_then(|m| m.as_str());
    if let Some(said) = said.filter(|s| *s != descriptor.media_type) {
        bail!("it calls itself {said:?}, but the descriptor says {:?}", descriptor.media_type);
    }
    if value.get("schemaVersion").and_then(|v| v.as_u64()) != Some(2) {
        bail!("its schemaVersion is not 2: an image this old must be converted first, for example by skopeo");
    }
    // From the bytes, not from `value`: only this refuses a key that is there twice.
    match (descriptor.is_index(), descriptor.is_manifest()) {
        (true, _) => Ok(Document::Index(serde_json::from_slice(bytes).context("read it as an index")?)),
        (_, true) => Ok(Document::Manifest(serde_json::from_slice(bytes).context("read it as a manifest")?)),
        _ => bail!("its media type {:?} is not that of an image", descriptor.media_type),
    }
}

impl Index {
    /// The manifest for Linux on this machine's processor.
    pub fn for_platform(&self) -> Result<&Descriptor> {
        let arch = architecture();
        let fits =
            |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == arch);
        if let Some(found) = self.manifests.iter().find(fits) {
            return Ok(found);
        }
        match &self.manifests[..] {
            [only] if only.platform.is_none() => Ok(only),
            all => {
                let have: Vec<_> = all
                    .iter()
                    .filter_map(|d| d.platform.as_ref())
                    .map(|p| format!("{}/{}", p.os, p.architecture))
                    .collect();
                bail!("it has nothing for linux/{arch}, only [{}]", have.join(", "))
            }
        }
    }
}

impl Manifest {
    /// Checks what can be checked before a layer is opened: types, digests, and one diffID for each layer.
    pub fn check(&self, diffs: &[DiffId], limits: &Limits) -> Result<()> {
        if self.layers.len() != diffs.len() {
            bail!("it has {} layers, but its configuration has {} diff_ids", self.layers.len(), diffs.len());
        }
        if self.layers.len() > limits.layers {
            bail!("it has {} layers, overlayfs takes at most {}", self.layers.len(), limits.layers);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            layer.digest().with_context(|| format!("layer {}", i + 1))?;
            let kind = layer.media_type.as_str();
            if kind.contains("nondistributable") || kind.contains(".foreign.") {
                bail!(
                    "layer {} is not in the image but elsewhere on the web ({kind}); pgbox doesn't fetch it",
                    i + 1
                );
            }
            if !LAYERS.contains(&kind) {
                bail!("layer {} has the media type {kind:?}, which pgbox doesn't know", i + 1);
            }
        }
        Ok(())
    }

    /// Refuses manifests of things that are no images, like Helm charts and signatures.
    pub fn check_config_type(&self) -> Result<()> {
        match self.config.media_type.as_str() {
            OCI_CONFIG | DOCKER_CONFIG => Ok(()),
            other => bail!("its configuration has the media type {other:?}: this is no container image"),
        }
    }
}

/// This machine's processor by Go's name for it, which the specification uses.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Go writes `null` for an empty list or map.
fn null_is_empty<'de, D, T>(source: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(source)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(kind: &str) -> Descriptor {
        Descriptor {
            media_type: kind.into(),
            digest: Digest::of(b"").to_string(),
            size: 0,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    #[test]
    fn a_document_is_what_its_descriptor_says() {
        let index = br#"{"schemaVersion":2,"manifests":null}"#;
        assert!(matches!(document(index, &descriptor(OCI_INDEX)), Ok(Document::Index(_))));
        assert!(document(index, &descriptor(OCI_MANIFEST)).is_err());
        assert!(document(index, &descriptor("text/plain")).is_err());
    }

    #[test]
    fn a_document_that_is_both_is_refused() {
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(document(both, &descriptor(OCI_INDEX)).is_err());
        let lying = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
        assert!(document(lying.as_bytes(), &descriptor(OCI_INDEX)).is_err());
        let twice = br#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
        assert!(document(twice, &descriptor(OCI_INDEX)).is_err());
    }
}
