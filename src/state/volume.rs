//! What is known of a named volume, and its removal with all its data.

use std::{fs, io, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{NodeState, Root, VERSION, load, remove_tree, save};
use crate::spec::Name;

/// What is known of a volume, kept beside its data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeState {
    pub version: u32,
    /// The image that ran on it last.
    pub image: String,
    /// The C library of that image, whose collations the indexes follow.
    pub libc: Option<String>,
    /// The node that was promoted in the place of the one that these data were of.
    #[serde(default)]
    pub superseded_by: Option<Name>,
}

impl VolumeState {
    pub const VERSION: u32 = VERSION;

    /// What is said of the volume that a node has its data in.
    pub fn of(node: &NodeState, superseded_by: Option<Name>) -> Self {
        Self { version: Self::VERSION, image: node.image.clone(), libc: node.libc.clone(), superseded_by }
    }

    /// What is said of a volume of which nothing was kept.
    pub fn unknown() -> Self {
        Self { version: Self::VERSION, image: String::new(), libc: None, superseded_by: None }
    }
}

/// What is known of the volume in `dir`.
pub fn load_volume(dir: &Path) -> Result<Option<VolumeState>> {
    load(&dir.join("volume.json"))
}

pub fn save_volume(dir: &Path, state: &VolumeState) -> Result<()> {
    save(&dir.join("volume.json"), state, true)
}

/// What the directory of a volume that is being removed ends with. It begins with a dot, as no volume's name does.
const GOING: &str = ".going";

/// Removes a named volume, which is at `home`, unless it is not there. Its name goes first, in one step: of a command that is
/// killed on the way no data directory is left that is there by half, and the next one to remove a volume of the lab ends its work.
/// The caller holds the lab's lock.
pub fn remove_volume(home: &Path) -> Result<()> {
    let (lab, name) = (home.parent().context("a volume's lab")?, home.file_name().unwrap_or_default());
    sweep(lab)?;
    let going = lab.join(format!(".{}{GOING}", name.to_string_lossy()));
    match fs::rename(home, &going) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => {
            renamed.with_context(|| format!("rename {}", home.display()))?;
            remove_tree(&going)
        }
    }
}

impl Root {
    /// Removes what is left of volumes whose removal was killed. The caller holds the lab's lock.
    pub fn sweep_volumes(&self, lab: &Name) -> Result<()> {
        sweep(&self.0.join("volumes").join(lab))
    }
}

fn sweep(lab: &Path) -> Result<()> {
    let entries = match fs::read_dir(lab) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("read {}", lab.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", lab.display()))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(GOING)) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}
