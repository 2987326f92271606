//! Recipes: the shell scripts under `images/` that say what is in an image.
//!
//! A recipe is a directory. Its files whose names begin with a digit make one layer each, in the order
//! of their names; `image` then says what the image is called and how it is run. `images/postgres/1-base`
//! documents what a script finds and leaves. The project's own recipes are compiled in, so that the
//! binary builds images where its source is not.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::image::Config;
use serde::Deserialize;

/// Which image to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Debian and its PostgreSQL.
    Postgres,
    /// Debian's static busybox, for tests and benchmarks.
    Tiny,
    /// A recipe of the user's own.
    Directory(PathBuf),
}

impl Recipe {
    /// The recipe's name, as it appears in the image's history.
    pub fn name(&self) -> String {
        match self {
            Recipe::Postgres => "postgres".to_owned(),
            Recipe::Tiny => "tiny".to_owned(),
            Recipe::Directory(dir) => dir.file_name().unwrap_or(dir.as_os_str()).display().to_string(),
        }
    }

    /// Reads the scripts.
    ///
    /// # Errors
    /// A directory that cannot be read, or lacks layers or `image`.
    pub fn scripts(&self) -> Result<Scripts> {
        let own = |name: &str, text: &str| Script { name: name.to_owned(), text: text.to_owned() };
        match self {
            Recipe::Postgres => Ok(Scripts {
                layers: vec![
                    own("1-base", include_str!("../../images/postgres/1-base")),
                    own("2-postgres", include_str!("../../images/postgres/2-postgres")),
                ],
                image: own("image", include_str!("../../images/postgres/image")),
            }),
            Recipe::Tiny => Ok(Scripts {
                layers: vec![
                    own("1-busybox", include_str!("../../images/tiny/1-busybox")),
                    own("2-files", include_str!("../../images/tiny/2-files")),
                ],
                image: own("image", include_str!("../../images/tiny/image")),
            }),
            Recipe::Directory(dir) => Scripts::read(dir),
        }
    }
}

/// One shell script of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// File name.
    pub name: String,
    /// The script itself, for `sh -eu`.
    pub text: String,
}

/// The scripts of one recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scripts {
    /// One a layer, lowest first; at least one.
    pub layers: Vec<Script>,
    /// Writes `image.json`, an [`ImageJson`].
    pub image: Script,
}

impl Scripts {
    fn read(dir: &Path) -> Result<Scripts> {
        let mut names = dir
            .read_dir()
            .and_then(|entries| {
                entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()
            })
            .with_context(|| format!("read recipe {}", dir.display()))?
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.starts_with(|first: char| first.is_ascii_digit()))
            .collect::<Vec<_>>();
        names.sort();
        ensure!(!names.is_empty(), "recipe {}: no layer (a script named like 1-base)", dir.display());
        let read = |name: String| {
            let path = dir.join(&name);
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(Script { name, text })
        };
        Ok(Scripts {
            layers: names.into_iter().map(read).collect::<Result<_>>()?,
            image: read("image".to_owned())?,
        })
    }
}

/// What a recipe's `image` script writes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageJson {
    /// Reference names, the principal one first.
    pub names: Vec<String>,
    /// The `config` object of the image configuration (image-spec `config.md`).
    pub config: Config,
}
