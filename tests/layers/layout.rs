//! Writing OCI layouts, right and wrong ones.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;

pub fn sha256(bytes: &[u8]) -> String {
    let sum: [u8; 32] = Sha256::digest(bytes).into();
    format!("sha256:{}", sum.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

#[derive(Clone, Copy)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn pack(self, data: &[u8]) -> Vec<u8> {
        match self {
            Compression::Plain => data.to_vec(),
            Compression::Gzip => gzip(data),
            Compression::Zstd => zstd::stream::encode_all(data, 3).unwrap(),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Compression::Plain => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        }
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A layer as it is stored, and the digest of the tar in it.
#[derive(Clone)]
pub struct Layer {
    pub blob: Vec<u8>,
    pub diff_id: String,
    pub media_type: String,
}

/// A layout of one image. Its documents can be changed before they are written.
#[derive(Clone)]
pub struct Layout {
    pub layers: Vec<Layer>,
    pub name: Option<String>,
    pub edit_config: fn(&mut Value),
    pub edit_manifest: fn(&mut Value),
    pub edit_index: fn(&mut Value),
}

impl Layout {
    pub fn of(tars: &[Vec<u8>]) -> Layout {
        Layout::packed(tars, Compression::Gzip)
    }

    pub fn packed(tars: &[Vec<u8>], with: Compression) -> Layout {
        let layer = |tar: &Vec<u8>| Layer {
            blob: with.pack(tar),
            diff_id: sha256(tar),
            media_type: format!("application/vnd.oci.image.layer.v1.tar{}", with.suffix()),
        };
        Layout {
            layers: tars.iter().map(layer).collect(),
            name: None,
            edit_config: |_| {},
            edit_manifest: |_| {},
            edit_index: |_| {},
        }
    }

    /// A layout of one layer, stored as `blob`, which inflates to `tar`.
    pub fn stored(blob: Vec<u8>, tar: &[u8], media_type: &str) -> Layout {
        let mut layout = Layout::of(&[tar.to_vec()]);
        layout.layers[0].blob = blob;
        layout.layers[0].media_type = media_type.to_string();
        layout
    }

    pub fn config(&self) -> Value {
        let diffs: Vec<_> = self.layers.iter().map(|l| l.diff_id.clone()).collect();
        let mut config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        (self.edit_config)(&mut config);
        config
    }

    pub fn manifest(&self) -> Value {
        let config = self.config().to_string();
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|l| json!({"mediaType": l.media_type, "digest": sha256(&l.blob), "size": l.blob.len()}))
            .collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(config.as_bytes()), "size": config.len(),
            },
            "layers": layers,
        });
        (self.edit_manifest)(&mut manifest);
        manifest
    }

    pub fn index(&self) -> Value {
        let manifest = self.manifest();
        let text = manifest.to_string();
        let media_type = &manifest["mediaType"];
        let mut descriptor =
            json!({"mediaType": media_type, "digest": sha256(text.as_bytes()), "size": text.len()});
        if let Some(name) = &self.name {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        let mut index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        (self.edit_index)(&mut index);
        index
    }

    /// The files of the layout by path.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let blob = |bytes: Vec<u8>| (format!("blobs/sha256/{}", &sha256(&bytes)[7..]), bytes);
        let mut files = vec![
            ("oci-layout".to_string(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_string(), self.index().to_string().into_bytes()),
            blob(self.manifest().to_string().into_bytes()),
            blob(self.config().to_string().into_bytes()),
        ];
        files.extend(self.layers.iter().map(|l| blob(l.blob.clone())));
        files
    }

    pub fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for (name, bytes) in self.files() {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
}
