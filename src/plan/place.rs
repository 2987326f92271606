//! Where on the host is what a node sees: the reverse of its mounts.
//!
//! The rule that surprises people: a node may replace everything that it can write to by a symbolic link, the directories of
//! its own data among them. A path through a volume is therefore no path on the host: what is above the volume's top the host
//! has made, and what is below it is only followed where no link is in the way.

use std::path::{Path, PathBuf};

use crate::{
    postgres::launch::{InitConfig, Payload},
    state::Plan,
    step::{HostStep, InnerStep},
};

/// A directory on the host, in two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    /// The node has no hand in this path.
    pub top: PathBuf,
    /// The rest of the way, on which it may have put anything; empty for the top itself.
    pub rest: PathBuf,
}

/// Where the data directory of a plan is, if its node is a Postgres.
pub fn data_below(plan: &Plan) -> Option<Below> {
    found_below(plan, data_dir(&plan.init)?)
}

/// The same as one path: to show, and to tell directories apart.
pub fn data_on_host(plan: &Plan) -> Option<PathBuf> {
    on_host(plan, data_dir(&plan.init)?)
}

/// The host's path of what a node sees as `inside`, if that is in a volume.
fn on_host(plan: &Plan, inside: &Path) -> Option<PathBuf> {
    let (source, target, _) = mount_of(plan, inside)?;
    let rest = inside.strip_prefix(target).ok()?;
    Some(if rest.as_os_str().is_empty() { source.to_owned() } else { source.join(rest) })
}

/// Where on the host is what a node sees as `inside`. What is in no volume is in the upper directory of its overlay.
pub fn found_below(plan: &Plan, inside: &Path) -> Option<Below> {
    if let Some((source, target, _)) = mount_of(plan, inside) {
        return Some(Below { top: source.to_owned(), rest: inside.strip_prefix(target).ok()?.to_owned() });
    }
    let bundle = plan.host.iter().find_map(|step| match step {
        HostStep::CreateBundle { dir, .. } => Some(dir),
        _ => None,
    })?;
    Some(Below { top: bundle.join("upper"), rest: inside.strip_prefix("/").ok()?.to_owned() })
}

/// The innermost volume that `inside` is in: source, target, and whether it is read-only.
pub fn mount_of<'p>(plan: &'p Plan, inside: &Path) -> Option<(&'p Path, &'p Path, bool)> {
    let binds = plan.inner.iter().filter_map(|step| match step {
        InnerStep::Bind { source, target, read_only, .. } if inside.starts_with(target) => {
            Some((source.as_path(), target.as_path(), *read_only))
        }
        _ => None,
    });
    binds.max_by_key(|(_, target, _)| target.components().count())
}

/// PGDATA inside the node.
pub fn data_dir(init: &InitConfig) -> Option<&Path> {
    match &init.payload {
        Payload::Postgres(postgres) => Some(&postgres.pgdata),
        Payload::Command { .. } => None,
    }
}
