//! What a server's configuration files say, its own and those that they include, read from its disk.
//!
//! The rule that surprises people: the files belong to the container. What lies outside of the data directory, or can't be
//! read as text, is not known here, and to guess would be worse.

use std::{
    collections::BTreeMap,
    io,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use super::wal::Place;
use crate::{
    postgres::conf::{self, Line},
    sys::{fs, tree},
};

/// How deep files may include one another (CONF_FILE_MAX_DEPTH, guc-file.l).
const DEPTH: usize = 10;

/// The parameters that postgresql.conf and what it includes give a value, by their names in lower case. ALTER SYSTEM wins
/// over that.
///
/// # Errors
/// When one of the files can't be read, or is outside of the data directory.
pub fn said(place: Place) -> Result<BTreeMap<String, String>> {
    let mut said = BTreeMap::new();
    read(place, Path::new("postgresql.conf"), false, DEPTH, &mut said)?;
    Ok(said)
}

fn read(
    place: Place,
    file: &Path,
    optional: bool,
    depth: usize,
    said: &mut BTreeMap<String, String>,
) -> Result<()> {
    ensure!(depth > 0, "{} is included too deep", file.display());
    let text = match place.text(name(file)?) {
        Err(error) if optional && is_missing(&error) => return Ok(()),
        text => text?,
    };
    for line in conf::lines(&text) {
        match line {
            Line::Setting(name, value) => _ = said.insert(name, value),
            Line::Include { file: other, optional } => {
                read(place, &beside(file, &other)?, optional, depth - 1, said)?;
            }
            Line::IncludeDir(dir) => {
                let dir = beside(file, &dir)?;
                for file in files(place, &dir)? {
                    read(place, &dir.join(file), false, depth - 1, said)?;
                }
            }
        }
    }
    Ok(())
}

/// A path in an including file, from the data directory on.
fn beside(file: &Path, other: &str) -> Result<PathBuf> {
    let path = Path::new(other);
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        bail!("{} includes {other}, which may be outside of the data directory", file.display());
    }
    Ok(file.parent().unwrap_or(Path::new("")).join(path))
}

/// Those that count in a directory, in the order in which the server reads them.
fn files(place: Place, dir: &Path) -> Result<Vec<String>> {
    let names = fs::dir_beneath(place.open()?, name(dir)?.as_bytes()).and_then(tree::names);
    let names = names.with_context(|| format!("read the directory {}", dir.display()))?;
    let mut files = Vec::new();
    for name in names {
        let name = String::from_utf8(name).context("a file name that is not UTF-8")?;
        if name.ends_with(".conf") && !name.starts_with('.') {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}

fn name(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

fn is_missing(error: &anyhow::Error) -> bool {
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    error.downcast_ref::<io::Error>().is_some_and(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir, write};

    #[test]
    fn what_is_included_counts_at_its_place_and_what_can_not_be_followed_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let ask = || said(Place::alone(dir.path()));
        write(at("postgresql.conf"), "a = 1\nb = 1\ninclude_dir 'd'\ninclude_if_exists 'none'\nb = 3\n")
            .unwrap();
        assert!(ask().is_err(), "no such directory");
        create_dir(at("d")).unwrap();
        write(at("d/2.conf"), "include more\nb = 2").unwrap();
        write(at("d/1.conf"), "a = 5").unwrap();
        write(at("d/x.txt"), "a = 7").unwrap();
        write(at("d/more"), "A = 6").unwrap();
        let want = [("a", "6"), ("b", "3")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(ask().unwrap(), BTreeMap::from(want));
        for bad in
            ["include none", "include '/etc/x.conf'", "include_if_exists '../x'", "include postgresql.conf"]
        {
            write(at("d/more"), bad).unwrap();
            assert!(ask().is_err(), "{bad}");
        }
    }
}
