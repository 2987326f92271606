//! Removing a volume with all its data.

use std::{fs, io, path::Path};

use anyhow::{Context, Result};

use super::{Root, remove_tree};
use crate::spec::Name;

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
