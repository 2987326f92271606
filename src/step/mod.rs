//! Steps: everything pgbox does to a machine, as data. A step carries every name, path and number it
//! needs; it can be printed, explained, stored, applied, and (on the host) undone.
//!
//! A step is the *unit of reversion*: what can't be taken back as one thing is two steps. The enums are
//! closed and every match is exhaustive, so a new step that forgets its lesson or its undo does not compile.

pub mod after;
pub mod host;
pub mod id_map;
pub mod inner;

use std::{net::SocketAddrV4, path::Path};

use crate::postgres::quote::bash;

pub use after::AfterStep;
pub use host::HostStep;
pub use id_map::{IdMap, Owner};
pub use inner::{Around, InnerStep};

/// What a step teaches. It has no `Default`: a step that explains nothing does not compile.
pub struct Lesson {
    /// Verb and object, as in "create the bridge pgb-default".
    pub title: String,
    /// Why the step is there, and why here.
    pub why: &'static str,
    /// The page to read on.
    pub see: &'static str,
    /// What one would type to do the same by hand.
    pub shell: String,
    /// A command that shows the result.
    pub look: String,
}

/// A path as a word of a shell.
fn path(path: &Path) -> String {
    bash(&path.display().to_string())
}

/// A session of psql, but for what it asks.
fn psql(address: SocketAddrV4, user: &str, database: &str) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!("psql -X -h {ip} -p {port} -U {} -d {}", bash(user), bash(database))
}
