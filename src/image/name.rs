//! What the name of a layer entry means: a path, a whiteout, or nothing (layer.md, "Whiteouts").
//!
//! A layer takes a file away by an entry whose *name* says so: `.wh.x` hides `x` of the layers below, and
//! `.wh..wh..opq` hides everything below its directory. The type of such an entry says nothing: aufs made its
//! whiteouts hard links of one another. Other names with `.wh..wh.` are aufs's own books and mean nothing here.

use anyhow::{Result, bail};

/// An entry's name, understood. Paths are relative, without `.` or empty parts; `""` is the root.
#[derive(Debug, PartialEq, Eq)]
pub enum Name {
    Path(Vec<u8>),
    /// Hides this path of the layers below.
    Whiteout(Vec<u8>),
    /// Hides what the layers below have in this directory.
    Opaque(Vec<u8>),
    /// aufs's books.
    Ignored,
}

const PREFIX: &[u8] = b".wh.";
const BOOKS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// PATH_MAX without its NUL: no system call takes a longer path.
const LONGEST: usize = 4095;

/// Understands the name of an entry; refuses what could only be an attack or a damaged archive.
pub fn understand(raw: &[u8], depth: usize) -> Result<Name> {
    let path = normal(raw, depth)?;
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    let (last, parents) = parts.split_last().expect("split gives at least one part");
    if parts[..].iter().any(|p| p.starts_with(BOOKS) && *p != OPAQUE) {
        return Ok(Name::Ignored);
    }
    if let Some(part) = parents.iter().find(|p| p.starts_with(PREFIX)) {
        bail!("{} is below a whiteout: names with `.wh.` are reserved", String::from_utf8_lossy(part));
    }
    let parent = parent(&path).to_vec();
    if *last == OPAQUE {
        return Ok(Name::Opaque(parent));
    }
    match last.strip_prefix(PREFIX) {
        None => Ok(Name::Path(path)),
        Some(b"" | b"." | b"..") => {
            bail!("a whiteout of nothing: after `.wh.` there must be the name of a file")
        }
        Some(name) => Ok(Name::Whiteout(join(&parent, name))),
    }
}

/// The path without leading `/`, `.` and empty parts. `..` is refused: no archiver writes it, and removing it would
/// need to know which of the parts before it are symbolic links.
pub fn normal(raw: &[u8], depth: usize) -> Result<Vec<u8>> {
    if raw.is_empty() {
        bail!("it has an empty name");
    }
    if raw.contains(&0) {
        bail!("its name has a NUL byte in it");
    }
    let mut path = Vec::with_capacity(raw.len());
    let mut levels = 0;
    for part in parts(raw) {
        if part == b".." {
            bail!("its name has `..` in it, which could lead out of the root");
        }
        if part.len() > 255 {
            bail!("a part of its name has {} bytes, Linux allows 255", part.len());
        }
        levels += 1;
        push(&mut path, part);
    }
    if levels > depth {
        bail!("it is {levels} directories deep, the limit is {depth}");
    }
    if path.len() > LONGEST {
        bail!("its name has {} bytes, Linux allows {LONGEST}", path.len());
    }
    Ok(path)
}

/// The parts of a path that name something: neither empty nor `.`.
pub fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".")
}

/// Everything before the last `/`; `""` for a name in the root.
pub fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(&[], |at| &path[..at])
}

/// Everything after the last `/`.
pub fn last(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(path, |at| &path[at + 1..])
}

/// `parent/name`.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(parent.len() + 1 + name.len());
    path.extend_from_slice(parent);
    push(&mut path, name);
    path
}

/// Appends one part.
pub fn push(path: &mut Vec<u8>, part: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(part);
}

/// Takes the last part off; the root stays the root.
pub fn pop(path: &mut Vec<u8>) {
    let len = parent(path).len();
    path.truncate(len);
}

/// How a name is shown in messages.
pub fn show(path: &[u8]) -> String {
    match path {
        b"" => "/".to_string(),
        _ => path.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u(raw: &[u8]) -> Result<Name> {
        understand(raw, 10)
    }

    #[test]
    fn one_path_has_many_spellings() {
        for raw in ["a/b", "./a/b", "/a/b", "a//./b", "a/b/", "//a/b/."] {
            assert_eq!(u(raw.as_bytes()).unwrap(), Name::Path(b"a/b".to_vec()), "{raw}");
        }
        for raw in ["./", ".", "/", "/./"] {
            assert_eq!(u(raw.as_bytes()).unwrap(), Name::Path(Vec::new()), "{raw}");
        }
    }

    #[test]
    fn whiteouts_are_names() {
        assert_eq!(u(b"a/.wh.b").unwrap(), Name::Whiteout(b"a/b".to_vec()));
        assert_eq!(u(b".wh.b/").unwrap(), Name::Whiteout(b"b".to_vec()));
        assert_eq!(u(b"a/.wh..wh..opq").unwrap(), Name::Opaque(b"a".to_vec()));
        assert_eq!(u(b".wh..wh..opq").unwrap(), Name::Opaque(Vec::new()));
        assert_eq!(u(b".wh..wh.plnk/1.2").unwrap(), Name::Ignored);
        assert_eq!(u(b".wh..wh.aufs").unwrap(), Name::Ignored);
        assert_eq!(u(b"a.wh.b").unwrap(), Name::Path(b"a.wh.b".to_vec()));
    }

    #[test]
    fn attacks_are_refused() {
        let deep = "d/".repeat(11);
        let long = "x".repeat(256);
        for raw in ["", "../x", "a/../b", "a/..", ".wh.", ".wh..", ".wh...", ".wh.x/y", "a\0b", &deep, &long]
        {
            assert!(u(raw.as_bytes()).is_err(), "{raw:?}");
        }
    }
}
