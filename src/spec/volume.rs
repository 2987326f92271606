//! `-v SOURCE:TARGET[:ro]`: a named volume or a directory of the host, mounted into the node.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::Name;

/// Where the files of a volume live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeSource {
    /// A volume that pgbox keeps below its root; it outlives the node.
    Named(Name),
    /// A directory or file of the host.
    Path(PathBuf),
}

/// One mount of a volume into a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub source: VolumeSource,
    /// Absolute path inside the node, without `.` or `..`.
    pub target: PathBuf,
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, read_only) = match parts[..] {
            [source, target] | [source, target, "rw"] => (source, target, false),
            [source, target, "ro"] => (source, target, true),
            _ => {
                return Err(format!(
                    "`{text}` is not a volume; write NAME:/path or /host/dir:/path, with :ro to make it read-only"
                ));
            }
        };
        let source = if source.starts_with(['/', '.']) {
            VolumeSource::Path(PathBuf::from(source))
        } else {
            VolumeSource::Named(source.parse()?)
        };
        Ok(Self { source, target: lawful_target(target)?, read_only })
    }
}

fn lawful_target(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path == Path::new("/") {
        return Err(format!(
            "`{text}` can't be a volume's place in the node: give an absolute path without `..`"
        ));
    }
    // These are made after the volumes are in place, and would hide them.
    if let Some(own) = ["/proc", "/sys", "/dev"].iter().find(|own| path.starts_with(own)) {
        return Err(format!("`{text}` can't be a volume's place in the node: {own} is the kernel's"));
    }
    Ok(path.components().collect())
}

impl fmt::Display for VolumeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_told_apart() {
        let v: Volume = "data:/var/lib/x".parse().unwrap();
        assert_eq!(v.source, VolumeSource::Named("data".parse().unwrap()));
        let v: Volume = "/srv/pg:/data/:ro".parse().unwrap();
        assert_eq!(
            (v.source, v.target, v.read_only),
            (VolumeSource::Path("/srv/pg".into()), "/data".into(), true)
        );
    }

    #[test]
    fn a_target_stays_inside() {
        for bad in [
            "data:x",
            "data:/",
            "data:/../x",
            "data:/a/../b",
            "data",
            "a:/b:/c",
            "UP:/x",
            "a:/proc/x",
            "a:/dev",
        ] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
    }
}
