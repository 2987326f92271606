//! The lab file: a whole lab in TOML, read into what is [`Wanted`]. Pure but for the files that it names, which the caller
//! reads.
//!
//! The rule that surprises people: a standby is made of its primary's data, and so it takes over what is said of the node
//! that it follows, as with `pgbox replica`, unless something else is said of it. What can only exist once it does not take
//! over: published ports, and volumes that are written.

use std::{io, ops::Range, path::Path};

use anyhow::{Error, Result, anyhow, bail};
use ipnet::Ipv4Net;
use toml::Spanned;

mod node;
mod raw;

pub use node::DEFAULT_IMAGE;

use super::wanted::{Database, Sql, User, Wanted, WantedNode};
use crate::{
    postgres::{contract, hba},
    spec::{Name, Publish, SyncRule},
};
use raw::{Raw, RawNode, RawSql, RawUser, Text};

/// A lab file whose keys are known and whose values are still to be understood.
#[derive(Debug)]
pub struct LabFile {
    /// Its name, for messages.
    shown: String,
    text: String,
    raw: Raw,
}

/// Reads a file that the lab file names.
pub type Read<'r> = &'r dyn Fn(&Path) -> io::Result<String>;

impl LabFile {
    /// # Errors
    /// When it is no TOML, or has keys that mean nothing, with file, line and key.
    pub fn parse(shown: &str, text: &str) -> Result<Self> {
        let raw = toml::from_str(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            let line = text[..span.start].matches('\n').count();
            let source = text.lines().nth(line).unwrap_or_default().trim();
            // The key alone: the value may be a password.
            let key = source.split_once('=').map_or("", |(key, _)| key.trim());
            let message = without_value(error.message().trim());
            let named = key.is_empty() || message.contains(key);
            let key = if named { String::new() } else { format!("{key}: ") };
            anyhow!("{shown}:{}: {key}{message}", line + 1)
        })?;
        Ok(Self { shown: shown.to_owned(), text: text.to_owned(), raw })
    }

    /// The lab that it is about, if it says so.
    pub fn lab(&self) -> Option<&Name> {
        self.raw.lab.as_ref()
    }

    /// Whether a password is in the file itself.
    pub fn has_passwords(&self) -> bool {
        let in_node = |node: &RawNode| node.env.keys().any(|name| contract::is_secret(name));
        self.raw.users.values().any(|user| user.password.is_some())
            || self.raw.nodes.values().chain([&self.raw.defaults]).any(in_node)
    }

    /// The lab as it is wanted. `dir` is the file's own directory, absolute: what the file names is there.
    ///
    /// # Errors
    /// What is wrong, with file, line and key.
    pub fn wanted(&self, lab: &Name, dir: &Path, read: Read<'_>) -> Result<Wanted> {
        self.check_defaults()?;
        let mut nodes = Vec::new();
        for name in self.raw.nodes.keys() {
            let said = self.said(name, 0)?;
            nodes.push(node::wanted(self, lab, name, &said, dir)?);
        }
        if nodes.is_empty() {
            bail!("{}: the lab has no nodes; write for example:\n[nodes.primary]", self.shown);
        }
        self.check_ports(&nodes)?;
        let [publish_rw, publish_ro] = self.endpoint_ports(&nodes)?;
        Ok(Wanted {
            nodes,
            users: self
                .raw
                .users
                .iter()
                .map(|(name, user)| self.user(name, user, dir, read))
                .collect::<Result<_>>()?,
            databases: self.databases()?,
            init: (1..)
                .zip(&self.raw.init)
                .map(|(i, sql)| self.sql(i, sql, dir, read))
                .collect::<Result<_>>()?,
            sync: self.raw.sync.as_ref().map(|rule| self.sync(rule)).transpose()?,
            publish_rw,
            publish_ro,
            exact: true,
        })
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    fn wrong(&self, key: &str, span: Range<usize>, why: &str) -> Error {
        anyhow!("{}:{}: {key}: {why}", self.shown, self.line(span.start))
    }

    fn subnet(&self) -> Result<Option<Ipv4Net>> {
        let parse = |text: &Spanned<Text>| {
            let net = text.get_ref().0.parse::<Ipv4Net>();
            net.map_err(|_| {
                self.wrong("subnet", text.span(), "not an address range; write for example 10.1.2.0/24")
            })
        };
        self.raw.subnet.as_ref().map(parse).transpose()
    }

    /// A port of this host for an endpoint, or `off`.
    fn host_port(&self, key: &str, said: &Option<Spanned<Text>>) -> Result<Option<Option<Publish>>> {
        let Some(said) = said else { return Ok(None) };
        match said.get_ref().0.as_str() {
            "off" => Ok(Some(None)),
            // In a node the server always has this port.
            text => match format!("{text}:5432").parse() {
                Ok(port) if text.matches(':').count() < 2 => Ok(Some(Some(port))),
                _ => Err(self.wrong(
                    key,
                    said.span(),
                    &format!("`{text}` is no port of this host; write PORT, IP:PORT or off"),
                )),
            },
        }
    }

    /// The ports of the endpoints, which nobody else in the file may have.
    fn endpoint_ports(&self, nodes: &[WantedNode]) -> Result<[Option<Option<Publish>>; 2]> {
        let of_node = |node: &WantedNode| {
            let who = format!("node `{}`", node.spec.node);
            node.spec.publish.iter().map(|port| (who.clone(), *port)).collect::<Vec<_>>()
        };
        let mut taken: Vec<(String, Publish)> = nodes.iter().flat_map(of_node).collect();
        let mut ports = [None; 2];
        let said = [("publish-rw", &self.raw.publish_rw), ("publish-ro", &self.raw.publish_ro)];
        for (port, (key, said)) in ports.iter_mut().zip(said) {
            *port = self.host_port(key, said)?;
            let (Some(Some(port)), Some(said)) = (&*port, said) else { continue };
            if let Some((who, _)) = taken.iter().find(|(_, other)| other.collides(port)) {
                return Err(self.wrong(
                    key,
                    said.span(),
                    &format!("{who} has that port of this host already"),
                ));
            }
            taken.push((key.to_owned(), *port));
        }
        Ok(ports)
    }

    /// Everything that is said of a node: by itself, of the nodes above it, and for all.
    fn said(&self, name: &Name, depth: usize) -> Result<RawNode> {
        let own = &self.raw.nodes[name];
        let Some(of) = &own.of else { return Ok(own.over(&self.raw.defaults)) };
        let wrong = |why: &str| self.wrong(&format!("nodes.{name}.of"), of.span(), why);
        if !self.raw.nodes.contains_key(of.get_ref()) {
            let known: Vec<&str> = self.raw.nodes.keys().map(Name::as_str).collect();
            return Err(wrong(&format!(
                "no node `{}` in this file; it has {}",
                of.get_ref(),
                known.join(", ")
            )));
        }
        if depth > self.raw.nodes.len() {
            return Err(wrong("it follows itself in the end"));
        }
        let mut base = self.said(of.get_ref(), depth + 1)?.for_standbys();
        base.delay = self.raw.defaults.delay.clone();
        base.rate = self.raw.defaults.rate.clone();
        base.copy = self.raw.defaults.copy.clone();
        Ok(own.over(&base))
    }

    fn check_defaults(&self) -> Result<()> {
        let defaults = &self.raw.defaults;
        let publish = defaults.publish.first().map(|port| ("publish", port.span()));
        let written = defaults.volumes.iter().find(|volume| !volume.get_ref().0.ends_with(":ro"));
        let of = defaults.of.as_ref().map(|of| ("of", of.span()));
        match publish.or(of).or(written.map(|volume| ("volumes", volume.span()))) {
            Some((key, span)) => Err(self.wrong(
                &format!("defaults.{key}"),
                span,
                "it can't be the same for all nodes; say it of each",
            )),
            None => Ok(()),
        }
    }

    fn check_ports(&self, nodes: &[WantedNode]) -> Result<()> {
        for (i, node) in nodes.iter().enumerate() {
            let others = nodes[..i].iter().flat_map(|other| &other.spec.publish);
            for other in others {
                if let Some(port) = node.spec.publish.iter().find(|port| port.collides(other)) {
                    bail!("{}: nodes.{}.publish: {port} is another node's, too", self.shown, node.spec.node);
                }
            }
        }
        Ok(())
    }

    fn user(&self, name: &str, user: &RawUser, dir: &Path, read: Read<'_>) -> Result<User> {
        let key = format!("users.{name}");
        check_role(name).map_err(|why| anyhow!("{}: {key}: {why}", self.shown))?;
        let password = match (&user.password, &user.password_file) {
            (Some(_), Some(file)) => {
                return Err(self.wrong(&key, file.span(), "password and password-file exclude each other"));
            }
            (Some(password), None) => Some((password.get_ref().0.clone(), password.span())),
            (None, Some(file)) => {
                let path = dir.join(&file.get_ref().0);
                let content = read(&path).map_err(|error| {
                    let key = format!("{key}.password-file");
                    let wrong = self.wrong(&key, file.span(), &format!("read {}", path.display()));
                    Error::new(error).context(wrong.to_string())
                })?;
                // Newlines at its end are no part of it, as in the files of the official image.
                Some((content.trim_end_matches('\n').to_owned(), file.span()))
            }
            (None, None) => None,
        };
        if let Some((_, span)) = password.as_ref().filter(|(password, _)| password.is_empty()) {
            return Err(self.wrong(&key, span.clone(), "the password is empty"));
        }
        Ok(User { name: name.to_owned(), password: password.map(|(password, _)| password) })
    }

    fn databases(&self) -> Result<Vec<Database>> {
        let databases = self.raw.databases.iter().map(|(name, said)| {
            check_name(name).map_err(|why| anyhow!("{}: databases.{name}: {why}", self.shown))?;
            Ok(Database { name: name.clone(), owner: said.owner.clone() })
        });
        databases.collect()
    }

    fn sql(&self, number: usize, said: &Spanned<RawSql>, dir: &Path, read: Read<'_>) -> Result<Sql> {
        let line = self.line(said.span().start);
        let sql = said.get_ref();
        let (shown, place, text) = match (&sql.sql, &sql.file) {
            (Some(text), None) => {
                (format!("the SQL of {}:{line}", self.shown), format!("#{number}"), text.clone())
            }
            (None, Some(file)) => {
                let path = dir.join(&file.get_ref().0);
                let text = read(&path).map_err(|error| {
                    let wrong = self.wrong("init.file", file.span(), &format!("read {}", path.display()));
                    Error::new(error).context(wrong.to_string())
                })?;
                (file.get_ref().0.clone(), file.get_ref().0.clone(), text)
            }
            _ => return Err(self.wrong("init", said.span(), "it must have either sql or file")),
        };
        Ok(Sql { shown, place, database: sql.database.clone(), text })
    }

    fn sync(&self, said: &Spanned<Text>) -> Result<Option<SyncRule>> {
        let text = &said.get_ref().0;
        if text == "off" {
            return Ok(None);
        }
        let wrong = |why: &str| self.wrong("sync", said.span(), why);
        let rule: SyncRule = text.parse().map_err(|why: String| wrong(&why))?;
        let of = |name: &Name| self.raw.nodes.get(name)?.of.as_ref().map(Spanned::get_ref);
        let is_direct = |name: &&Name| of(name).is_some_and(|upstream| of(upstream).is_none());
        // Beside one of its standbys a primary is the seat that it takes after a switchover.
        let is_seat = |name: &&Name| {
            self.raw.nodes.contains_key(*name)
                && of(name).is_none()
                && rule.names.iter().any(|other| is_direct(&other))
        };
        match rule.names.iter().find(|name| !is_direct(name) && !is_seat(name)) {
            Some(stranger) => {
                Err(wrong(&format!("in this file `{stranger}` is no standby that follows a primary itself")))
            }
            None => Ok(Some(rule)),
        }
    }
}

/// What the parser has against a value, without the value: it may be a password.
fn without_value(message: &str) -> String {
    let of_value = message.starts_with("invalid type: ") || message.starts_with("invalid value: ");
    match (of_value, message.find(['"', '`']), message.rfind(", expected")) {
        (true, Some(value), Some(end)) if value < end => {
            format!("{}{}", message[..value].trim_end(), &message[end..])
        }
        _ => message.to_owned(),
    }
}

/// What can be a role whose password gets a file of its own.
fn check_role(name: &str) -> Result<(), String> {
    if name == hba::REPLICATOR || name.starts_with("pg_") {
        return Err("it is a role of pgbox or of the server itself".to_owned());
    }
    if name.contains('/') || name.starts_with('.') {
        return Err("pgbox keeps a file of that name: it can't have a `/`, and begin with no dot".to_owned());
    }
    check_name(name)
}

fn check_name(name: &str) -> Result<(), String> {
    match name.len() {
        1..=63 if !name.contains('\0') => Ok(()),
        _ => Err("the server knows names of 1 to 63 bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Copying;

    fn wanted(text: &str) -> Result<Wanted> {
        let read = |path: &Path| match path.to_str() {
            Some("/d/nofile") => Err(io::Error::from(io::ErrorKind::NotFound)),
            _ => Ok("from a file\n".to_owned()),
        };
        LabFile::parse("lab.toml", text)?.wanted(&"l".parse().unwrap(), Path::new("/d"), &read)
    }

    #[track_caller]
    fn refusal(text: &str) -> String {
        wanted(text).unwrap_err().to_string()
    }

    #[test]
    fn a_standby_is_as_the_node_that_it_follows() {
        let wanted = wanted(
            "[defaults]\nimage = 'postgres:15'\nsettings = { work_mem = '8MB' }\n\
             [nodes.primary]\npublish = ['5433:5432']\nmemory = '1g'\nvolumes = ['./x:/x:ro', 'y:/y']\n\
             settings = { max_connections = 50, fsync = false }\n\
             [nodes.r1]\nof = 'primary'\ndelay = '5min'\ncopy = 'basebackup'\nsettings = { work_mem = '9MB' }\n\
             [nodes.r2]\nof = 'r1'\ncpus = 0.5\nmemory = 'max'\n",
        );
        let nodes = wanted.unwrap().nodes;
        let [primary, r1, r2] = nodes.iter().map(|node| &node.spec).collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!((primary.publish.len(), r1.publish.len()), (1, 0));
        assert_eq!((primary.volumes.len(), r1.volumes.len()), (2, 1));
        assert_eq!(primary.volumes[0].source.to_string(), "/d/x");
        let pairs = |list: &[(&str, &str)]| {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(
            primary.settings,
            pairs(&[("fsync", "off"), ("max_connections", "50"), ("work_mem", "8MB")])
        );
        assert_eq!(r2.settings, pairs(&[("fsync", "off"), ("max_connections", "50"), ("work_mem", "9MB")]));
        assert_eq!(
            (r1.limits.memory, r2.limits.memory, r2.limits.milli_cpus),
            (Some(1 << 30), None, Some(500))
        );
        let delays = [r1, r2].map(|spec| spec.follow.as_ref().unwrap().delay_ms);
        assert_eq!(delays, [Some(300_000), None], "a delay is one's own");
        let copies = [r1, r2].map(|spec| spec.follow.as_ref().unwrap().copy);
        assert_eq!(copies, [Copying::Basebackup, Copying::Auto], "and so is how its data are copied");
        assert_eq!(r2.image, "postgres:15");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_key() {
        for (text, line, words) in [
            ("[nodes.primary]\nmemroy = '1g'\n", 2, "unknown field `memroy`, expected one of"),
            ("x = 1\n[nodes.primary]\n", 1, "unknown field `x`"),
            ("[nodes.primary]\n\nmemory = '12x'\n", 3, "nodes.primary.memory: `12x` is not a size"),
            ("[nodes.p]\n[nodes.r]\nof = 'p'\ncopy = 'fast'\n", 4, "nodes.r.copy: `fast` is no way to copy"),
            (
                "[nodes.p]\n[nodes.r]\nof = 'p'\nrate = '1m'\ncopy = 'reflink'\n",
                5,
                "nodes.r.copy: clones are made at once",
            ),
            ("[nodes.primary]\nmemory = [1]\n", 2, "memory: invalid type: sequence"),
            ("[nodes.a]\nof = 'b'\n", 2, "nodes.a.of: no node `b` in this file; it has a"),
            ("[nodes.a]\nof = 'b'\n[nodes.b]\nof = 'a'\n", 4, "it follows itself"),
            ("sync = 'any 1 (x)'\n[nodes.a]\n", 1, "sync: in this file `x` is no standby"),
            ("sync = 'any 2 (a)'\n[nodes.a]\n", 1, "sync: `any 2 (a)` is no rule"),
            ("[defaults]\npublish = [1]\n[nodes.a]\n", 2, "defaults.publish: it can't be the same"),
            ("[nodes.a]\npublish = [5433]\n", 0, "nodes.a: nothing would answer on 0.0.0.0:5433->5433"),
            ("[nodes.a]\n[[init]]\n", 2, "init: it must have either"),
            ("[nodes.a]\n[users.u]\npassword-file = 'nofile'\n", 3, "users.u.password-file: read /d/nofile"),
            ("[nodes.a]\nsettings = { 'a b' = 1 }\n", 2, "nodes.a.settings.a b"),
            ("[nodes.a.settings]\nPort = 1\n", 2, "nodes.a.settings.Port: it can't be set: a node's port"),
            ("[defaults]\nsettings = { listen_addresses = 'x' }\n[nodes.a]\n", 2, "it can't be set"),
            ("[nodes.A]\n", 1, "`A` is not a name"),
            ("[nodes.a\n", 1, ""),
            ("subnet = '10.1'\n[nodes.a]\n", 1, "subnet: not an address range"),
            ("publish-rw = 'x'\n[nodes.a]\n", 1, "publish-rw: `x` is no port of this host"),
            (
                "publish-ro = 1\n[nodes.a]\npublish=['1:5432']\n",
                1,
                "publish-ro: node `a` has that port of this host",
            ),
            (
                "publish-rw = 1\npublish-ro = 1\n[nodes.a]\n",
                2,
                "publish-ro: publish-rw has that port of this host",
            ),
        ] {
            let said = refusal(text);
            // What contradicts itself in more than one line has none.
            let place = if line == 0 { "lab.toml: ".to_owned() } else { format!("lab.toml:{line}: ") };
            assert!(said.starts_with(&place), "{text:?}: {said}");
            assert!(said.contains(words), "{text:?}: {said}");
        }
        assert!(refusal("[nodes]\n").contains("no nodes"));
        assert!(refusal("").contains("nodes"));
        assert!(
            refusal("[nodes.a]\npublish=['1:5432']\n[nodes.b]\npublish=['1:5432']\n")
                .contains("another node's")
        );
        assert!(refusal("[nodes.a]\n[users.replicator]\n").contains("users.replicator"));
    }

    #[test]
    fn a_password_in_the_wrong_place_is_in_no_message() {
        for text in [
            "[nodes.a]\n[users]\napp = 'hunter2'\n",
            "[nodes.a]\n[users]\napp = 'hunter2, expected x'\n",
            "[nodes.a]\n[users.app]\npassword = ['hunter2']\n",
            "[nodes.a]\nenv = 'POSTGRES_PASSWORD=hunter2'\n",
            "[nodes.a]\nenv = ['POSTGRES_PASSWORD=hunter2']\n",
            "[nodes.a]\n[[users]]\nhunter = 'hunter2'\n",
            "[nodes.a]\n[users.app]\npassword = 'hunter2' 'hunter2'\n",
        ] {
            let said = refusal(text);
            assert!(!said.contains("hunter2"), "{text:?}: {said}");
            assert!(said.starts_with("lab.toml:"), "{said}");
        }
        let said = refusal("[nodes.a]\n[users]\napp = 20261121\n");
        assert!(said.starts_with("lab.toml:3: app: invalid type: integer, expected"), "{said}");
    }

    #[test]
    fn passwords_are_kept_apart() {
        let text = "[nodes.a]\nenv = { POSTGRES_PASSWORD = 'geheim', X = 1 }\n[users.u]\npassword-file = 'secret'\n[users.v]\n";
        let wanted = wanted(text).unwrap();
        assert_eq!(wanted.nodes[0].secret.as_deref(), Some("geheim"));
        assert_eq!(wanted.nodes[0].spec.env, [("X".to_owned(), "1".to_owned())]);
        let passwords: Vec<_> = wanted.users.iter().map(|user| user.password.as_deref()).collect();
        assert_eq!(passwords, [Some("from a file"), None]);
        assert!(LabFile::parse("f", text).unwrap().has_passwords());
        assert!(!LabFile::parse("f", "[nodes.a]\n").unwrap().has_passwords());
    }

    #[test]
    fn the_sample_is_read_with_and_without_its_comments() {
        let sample = include_str!("../../docs/lab.toml");
        let names = |wanted: &Wanted| -> Vec<String> {
            wanted.nodes.iter().map(|node| node.spec.node.to_string()).collect()
        };
        let plain = wanted(sample).unwrap();
        assert_eq!(names(&plain), ["late", "primary", "r1", "r2"]);
        let is_key = |text: &str| text.starts_with('[') || text.split(' ').nth(1) == Some("=");
        let open =
            |line: &str| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line).to_owned();
        let all: Vec<String> = sample.lines().map(open).collect();
        let all = wanted(&all.join("\n")).unwrap();
        let primary = &all.nodes[1].spec;
        assert_eq!((primary.limits.milli_cpus, primary.tune, primary.stop_timeout), (Some(1500), true, 30));
        assert_eq!((all.users.len(), all.init.len()), (2, 2));
    }
}
