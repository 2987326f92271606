//! Names of images: `postgres:15`, `example.org/team/db:1.2`, `postgres@sha256:…`.
//!
//! The grammar is the distribution specification's. The surprising rule: `postgres`, `library/postgres` on Docker
//! Hub and `docker.io/library/postgres:latest` are one image; here the shortest spelling is *the* name.

use super::digest::Digest;
use anyhow::{Result, bail};
use std::fmt;

/// A name with its tag, in the shortest spelling.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    repository: String,
    tag: String,
}

/// What a user may write to mean an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Name(Reference),
    Digest(Digest),
    /// The first hex digits of a digest.
    Prefix(String),
}

impl Reference {
    /// Reads a name; the tag is `latest` unless given.
    pub fn parse(text: &str) -> Result<Reference> {
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (text, "latest"),
        };
        let repository = repository.strip_prefix("docker.io/").unwrap_or(repository);
        let repository = repository.strip_prefix("library/").unwrap_or(repository);
        if repository.is_empty()
            || repository.len() > 255
            || !repository.split('/').enumerate().all(valid_part)
        {
            bail!(
                "{text:?} is not the name of an image: it should be like `postgres:15` or `example.org/db:1.2`"
            );
        }
        if !valid_tag(tag) {
            bail!("{text:?} has the tag {tag:?}: a tag has letters, digits, `_`, `.` and `-`, at most 128");
        }
        Ok(Reference { repository: repository.to_string(), tag: tag.to_string() })
    }

    /// The part before the tag.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl Wanted {
    /// Reads a name, a digest, a name with a digest, or at least 12 hex digits of one.
    pub fn parse(text: &str) -> Result<Wanted> {
        if let Some((_, digest)) = text.rsplit_once('@') {
            return Ok(Wanted::Digest(digest.parse()?));
        }
        if text.starts_with("sha256:") && text.len() == 71 {
            return Ok(Wanted::Digest(text.parse()?));
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if (12..=64).contains(&hex.len()) && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Wanted::Prefix(hex.to_string()));
        }
        Ok(Wanted::Name(Reference::parse(text)?))
    }
}

/// Whether this can be a tag.
pub fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let rest = |b: u8| word(b) || b == b'.' || b == b'-';
    tag.len() <= 128 && tag.bytes().next().is_some_and(word) && tag.bytes().all(rest)
}

/// Only the first part, the registry, may have capitals and a port.
fn valid_part((index, part): (usize, &str)) -> bool {
    let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let host = |b: u8| index == 0 && (b.is_ascii_uppercase() || b == b':');
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    part.bytes().all(|b| inner(b) || host(b)) && edge(part.bytes().next()) && edge(part.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_name() {
        for text in ["postgres", "postgres:latest", "docker.io/library/postgres", "library/postgres:latest"] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), "postgres:latest", "{text}");
        }
        let named = Reference::parse("localhost:5000/Team/../x");
        assert!(named.is_err());
        assert_eq!(Reference::parse("localhost:5000/db").unwrap().to_string(), "localhost:5000/db:latest");
    }

    #[test]
    fn bad_names_are_refused() {
        for text in ["", ":15", "a//b", "../a", "a b", "a:", "a:-b", "/a", "a/", "a\nb", "a:b:c/"] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_digest_or_its_start_is_wanted_by_digest() {
        let digest = Digest::of(b"x");
        assert_eq!(Wanted::parse(&digest.to_string()).unwrap(), Wanted::Digest(digest));
        assert_eq!(Wanted::parse(&format!("a:1@{digest}")).unwrap(), Wanted::Digest(digest));
        assert!(matches!(Wanted::parse(&digest.hex()[..12]).unwrap(), Wanted::Prefix(_)));
        assert!(matches!(Wanted::parse("db").unwrap(), Wanted::Name(_)));
    }
}
