//! The lab file as it is written, before anything in it means something: which keys there are, and where each value stands.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use crate::spec::Name;

/// The keys of a lab file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Raw {
    pub lab: Option<Name>,
    pub subnet: Option<Spanned<Text>>,
    pub sync: Option<Spanned<Text>>,
    pub publish_rw: Option<Spanned<Text>>,
    pub publish_ro: Option<Spanned<Text>>,
    #[serde(default)]
    pub defaults: RawNode,
    pub nodes: BTreeMap<Name, RawNode>,
    #[serde(default)]
    pub users: BTreeMap<String, RawUser>,
    #[serde(default)]
    pub databases: BTreeMap<String, RawDatabase>,
    #[serde(default)]
    pub init: Vec<Spanned<RawSql>>,
}

/// The keys of a node, and of what is said for all nodes.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawNode {
    pub image: Option<Spanned<Text>>,
    pub of: Option<Spanned<Name>>,
    pub delay: Option<Spanned<Text>>,
    pub rate: Option<Spanned<Text>>,
    pub copy: Option<Spanned<Text>>,
    pub memory: Option<Spanned<Text>>,
    pub memory_high: Option<Spanned<Text>>,
    pub swap: Option<Spanned<Text>>,
    pub cpus: Option<Spanned<Text>>,
    pub pids: Option<Spanned<Text>>,
    pub shm_size: Option<Spanned<Text>>,
    pub restart: Option<Spanned<Text>>,
    pub stop_timeout: Option<Spanned<Text>>,
    pub tune: Option<Spanned<Text>>,
    #[serde(default)]
    pub publish: Vec<Spanned<Text>>,
    #[serde(default)]
    pub volumes: Vec<Spanned<Text>>,
    #[serde(default)]
    pub env: BTreeMap<String, Spanned<Text>>,
    #[serde(default)]
    pub settings: BTreeMap<String, Spanned<Text>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawUser {
    pub password: Option<Spanned<Text>>,
    pub password_file: Option<Spanned<Text>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawDatabase {
    pub owner: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawSql {
    pub database: Option<String>,
    pub sql: Option<String>,
    pub file: Option<Spanned<Text>>,
}

/// A value as one would write it on the command line: `2`, `0.5`, `true` and `"1g"` alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar)
    }
}

struct Scalar;

impl de::Visitor<'_> for Scalar {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number, true or false")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.to_owned()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Text, E> {
        Ok(Text(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Text, E> {
        Ok(Text(number.to_string()))
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Text, E> {
        // As postgresql.conf writes it.
        Ok(Text(if flag { "on" } else { "off" }.to_owned()))
    }
}

impl RawNode {
    /// This node's own words, and where it has none those of `base`.
    pub fn over(&self, base: &Self) -> Self {
        let or = |own: &Option<Spanned<Text>>, base: &Option<Spanned<Text>>| own.clone().or(base.clone());
        let both = |own: &BTreeMap<String, Spanned<Text>>, base: &BTreeMap<String, Spanned<Text>>| {
            base.iter().chain(own).map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        Self {
            image: or(&self.image, &base.image),
            of: self.of.clone(),
            delay: or(&self.delay, &base.delay),
            rate: or(&self.rate, &base.rate),
            copy: or(&self.copy, &base.copy),
            memory: or(&self.memory, &base.memory),
            memory_high: or(&self.memory_high, &base.memory_high),
            swap: or(&self.swap, &base.swap),
            cpus: or(&self.cpus, &base.cpus),
            pids: or(&self.pids, &base.pids),
            shm_size: or(&self.shm_size, &base.shm_size),
            restart: or(&self.restart, &base.restart),
            stop_timeout: or(&self.stop_timeout, &base.stop_timeout),
            tune: or(&self.tune, &base.tune),
            publish: self.publish.clone(),
            volumes: base.volumes.iter().chain(&self.volumes).cloned().collect(),
            env: both(&self.env, &base.env),
            settings: both(&self.settings, &base.settings),
        }
    }

    /// What a standby of this node takes over.
    pub fn for_standbys(&self) -> Self {
        let read_only = |volume: &&Spanned<Text>| volume.get_ref().0.ends_with(":ro");
        Self {
            volumes: self.volumes.iter().filter(read_only).cloned().collect(),
            delay: None,
            rate: None,
            copy: None,
            ..self.clone()
        }
    }
}
