//! The configuration of an image: what to run and how (image-spec: config.md).
//!
//! Read by a structure of our own, since Docker's images carry fields that the specification lacks (Healthcheck).
//! The bytes are kept beside it: writing the structure out again would be another document with another digest.
//! The surprising rule: nearly every field may be absent or `null`, and its name may be in any case for Go's sake
//! (only the canonical case is accepted here).

use super::digest::DiffId;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// What an image says about the processes that run in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageConfig {
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    pub user: String,
    /// Empty for `/`.
    pub working_dir: String,
    pub volumes: Vec<String>,
    /// A name or a number, like `SIGINT`.
    pub stop_signal: Option<String>,
    /// Like `5432/tcp`.
    pub exposed_ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub created: Option<String>,
    /// Go's name of the processor: `amd64`.
    pub architecture: String,
    pub os: String,
    /// Docker's Healthcheck, as JSON.
    pub healthcheck: Option<serde_json::Value>,
    /// The document itself, with all that pgbox doesn't know.
    pub raw: Vec<u8>,
}

#[derive(Deserialize)]
struct Document {
    architecture: String,
    os: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<Process>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    volumes: BTreeMap<String, serde_json::Value>,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    healthcheck: Option<serde_json::Value>,
}

impl ImageConfig {
    /// Reads a configuration; the second part are the diffIDs of the layers, bottom first.
    pub fn parse(bytes: &[u8]) -> Result<(ImageConfig, Vec<DiffId>)> {
        let document: Document = serde_json::from_slice(bytes).context("read the configuration")?;
        if document.os != "linux" {
            bail!("the image is for {:?}, pgbox runs images for linux", document.os);
        }
        if document.rootfs.kind != "layers" {
            bail!("its root file system is of the type {:?}, not \"layers\"", document.rootfs.kind);
        }
        let diffs =
            document.rootfs.diff_ids.iter().map(|d| Ok(DiffId(d.parse()?))).collect::<Result<Vec<_>>>();
        let process = document.config.unwrap_or_default();
        let config = ImageConfig {
            env: process.env,
            entrypoint: process.entrypoint,
            cmd: process.cmd,
            user: process.user,
            working_dir: process.working_dir,
            volumes: process.volumes.into_keys().collect(),
            stop_signal: process.stop_signal,
            exposed_ports: process.exposed_ports.into_keys().collect(),
            labels: process.labels,
            created: document.created,
            architecture: document.architecture,
            os: document.os,
            healthcheck: process.healthcheck,
            raw: bytes.to_vec(),
        };
        Ok((config, diffs.context("rootfs.diff_ids")?))
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(source: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(source)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_fields_are_lawful() {
        let text = br#"{"architecture":"amd64","os":"linux","x":1,"rootfs":{"type":"layers","diff_ids":null},
            "config":{"Env":["A=b"],"Cmd":null,"Healthcheck":{"Test":["NONE"]},"ExposedPorts":{"5432/tcp":{}}}}"#;
        let (config, diffs) = ImageConfig::parse(text).unwrap();
        assert!(diffs.is_empty() && config.cmd.is_empty());
        assert_eq!(config.env, ["A=b"]);
        assert_eq!(config.exposed_ports, ["5432/tcp"]);
        assert_eq!(config.healthcheck.unwrap()["Test"][0], "NONE");
        assert_eq!(config.raw, text);
    }

    #[test]
    fn other_systems_are_refused() {
        let text = br#"{"architecture":"amd64","os":"windows","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert!(ImageConfig::parse(text).unwrap_err().to_string().contains("windows"));
    }
}
