//! A node of a lab file, in the terms that `run` and `replica` have for one.

use std::path::Path;

use anyhow::Result;
use toml::Spanned;

use super::{
    LabFile,
    raw::{RawNode, Text},
};
use crate::{
    lab::wanted::{SHM_SIZE, STOP_TIMEOUT, WantedNode},
    postgres::{
        contract::{self, Contract},
        parameter, settings,
    },
    spec::{
        Copying, Follow, Name, NodeLimits, NodeSpec, Volume, VolumeSource,
        quantity::{self, Bound},
    },
};

/// The image of a node of which nothing else is said; the same as that of `run`.
pub const DEFAULT_IMAGE: &str = "postgres:latest";

/// Makes a node of what is said of it, everything that it takes over included.
pub fn wanted(file: &LabFile, lab: &Name, name: &Name, said: &RawNode, dir: &Path) -> Result<WantedNode> {
    let read = Reader { file, key: format!("nodes.{name}") };
    let env = said.env.iter().map(|(key, value)| read.variable(key, value)).collect::<Result<Vec<_>>>()?;
    let contract = Contract::parse(&env)?;
    let each = |value: &Spanned<Text>| read.one("volumes", value, |text| volume(text, dir));
    let follow = match &said.of {
        None => None,
        Some(of) => Some(Follow {
            of: of.get_ref().clone(),
            delay_ms: read
                .some("delay", &said.delay, quantity::duration)?
                .map(|delay| delay.as_millis() as u64),
            rate_kb: read.some("rate", &said.rate, quantity::bytes)?.map(|rate| (rate / 1024).max(32)),
            copy: read.some("copy", &said.copy, str::parse)?.unwrap_or_default(),
        }),
    };
    if let Some(copy) = said.copy.as_ref().filter(|_| {
        follow.as_ref().is_some_and(|follow| follow.copy == Copying::Reflink && follow.rate_kb.is_some())
    }) {
        let why = "clones are made at once: rate is for a copy over the network";
        return Err(file.wrong(&format!("nodes.{name}.copy"), copy.span(), why));
    }
    let spec = NodeSpec {
        lab: lab.clone(),
        node: name.clone(),
        image: said.image.as_ref().map_or(DEFAULT_IMAGE.to_owned(), |image| image.get_ref().0.clone()),
        env: env.into_iter().filter(|(name, _)| !contract::is_secret(name)).collect(),
        volumes: said.volumes.iter().map(each).collect::<Result<_>>()?,
        publish: said
            .publish
            .iter()
            .map(|value| read.one("publish", value, str::parse))
            .collect::<Result<_>>()?,
        settings: said
            .settings
            .iter()
            .map(|(name, value)| read.setting(name, value))
            .collect::<Result<_>>()?,
        limits: limits(&read, said)?,
        restart: read.some("restart", &said.restart, str::parse)?.unwrap_or_default(),
        stop_timeout: read
            .some("stop-timeout", &said.stop_timeout, quantity::duration)?
            .map_or(STOP_TIMEOUT, |time| time.as_secs().max(1)),
        tune: read.some("tune", &said.tune, tune)?.unwrap_or(false),
        args: Vec::new(),
        subnet: file.subnet()?,
        offline: false,
        follow,
    };
    if let Some(text) = spec.contradiction().or_else(|| spec.deaf_port()) {
        anyhow::bail!("{}: nodes.{name}: {text}", file.shown);
    }
    if let Some((why, way_out)) = spec.too_little() {
        anyhow::bail!("{}: nodes.{name}: {why}; {way_out}", file.shown);
    }
    Ok(WantedNode { spec, secret: contract.secret })
}

fn limits(read: &Reader<'_>, said: &RawNode) -> Result<NodeLimits> {
    let bound = |key, value, quantity| {
        let bound = read.some(key, value, |text| Bound::parse(text, quantity))?;
        anyhow::Ok(bound.and_then(Bound::limit))
    };
    Ok(NodeLimits {
        memory: bound("memory", &said.memory, quantity::bytes)?,
        memory_high: bound("memory-high", &said.memory_high, quantity::bytes)?,
        swap: read.some("swap", &said.swap, quantity::bytes)?,
        milli_cpus: bound("cpus", &said.cpus, quantity::milli_cpus)?,
        pids: bound("pids", &said.pids, quantity::count)?,
        shm_size: read.some("shm-size", &said.shm_size, quantity::bytes)?.unwrap_or(SHM_SIZE),
    })
}

/// Reads values of one node, and names them where they are wrong.
struct Reader<'f> {
    file: &'f LabFile,
    key: String,
}

impl Reader<'_> {
    fn one<T>(
        &self,
        key: &str,
        value: &Spanned<Text>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T> {
        parse(&value.get_ref().0)
            .map_err(|why| self.file.wrong(&format!("{}.{key}", self.key), value.span(), &why))
    }

    fn some<T>(
        &self,
        key: &str,
        value: &Option<Spanned<Text>>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>> {
        value.as_ref().map(|value| self.one(key, value, parse)).transpose()
    }

    fn setting(&self, name: &str, value: &Spanned<Text>) -> Result<(String, String)> {
        let parse = |text: &str| {
            let setting = settings::parse(&format!("{name}={text}")).map_err(|error| error.to_string())?;
            match parameter::refusal(&setting.0) {
                Some(why) => Err(format!("it can't be set: {why}")),
                None => Ok(setting),
            }
        };
        self.one(&format!("settings.{name}"), value, parse)
    }

    fn variable(&self, name: &str, value: &Spanned<Text>) -> Result<(String, String)> {
        let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let is_name = begins && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        self.one(&format!("env.{name}"), value, |text| match is_name {
            true => Ok((name.to_owned(), text.to_owned())),
            false => Err("it can't be the name of an environment variable".to_owned()),
        })
    }
}

/// Paths are meant from the file's own directory.
fn volume(text: &str, dir: &Path) -> Result<Volume, String> {
    let mut volume: Volume = text.parse()?;
    if let VolumeSource::Path(path) = &mut volume.source {
        *path = dir.join(&path).components().filter(|c| *c != std::path::Component::CurDir).collect();
    }
    Ok(volume)
}

fn tune(text: &str) -> Result<bool, String> {
    match text {
        "auto" | "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{text}` is no way to tune; write auto or off")),
    }
}
