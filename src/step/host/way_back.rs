//! The undo of each host step, by the commands of a shell. What is absent by then is only complained about.

use std::path::{Path, PathBuf};

use super::{super::path, BUNDLE_DIRS, HostStep, lesson::login};
use crate::postgres::standby;

impl HostStep {
    /// What one would type to take the step back; nothing where it goes with another one, or stays.
    pub fn way_back(&self) -> String {
        match self {
            Self::CreateBundle { dir, files } => {
                // Nothing can be mounted there any more; what was would go with it.
                let names = files.iter().map(|(name, _)| &**name).chain(BUNDLE_DIRS).chain(["log"]);
                let all: Vec<_> = names.map(|name| path(&dir.join(name))).collect();
                format!(
                    "rm -rf --one-file-system {}\nrmdir -p --ignore-fail-on-non-empty {}",
                    all.join(" "),
                    path(dir)
                )
            }
            Self::CreateVolume { dir } => format!("# The data stay. To remove them: rm -r {}", path(dir)),
            Self::CreateBridge { name, own_netns, .. } => {
                unless_in_use(own_netns, &format!("ip link delete {name}"))
            }
            Self::CreateNat { table, own_netns, .. } => {
                unless_in_use(own_netns, &format!("nft delete table ip {table}"))
            }
            Self::EnableForwarding { .. } => "# ip_forward stays: others may rely on it by now.".to_owned(),
            Self::CreateNetns { name } => format!("ip netns delete {name}"),
            Self::CreateVeth { name, .. } => format!("ip link delete {name}"),
            Self::PublishPorts { table, .. } => format!("nft delete table ip {table}"),
            Self::AddHostName { file, name, .. } => {
                // In place, as it was written: other nodes see this inode.
                let file = path(file);
                format!(
                    "others=$(grep -v ' {name}$' {file}) && echo \"$others\" >{file}\n\
                     grep -qv localhost {file} || rm {file}"
                )
            }
            Self::CreateSlot { server, slot } => {
                format!("{} -c \"{}\"", login(server), standby::drop_slot(slot))
            }
            Self::CreateCgroup { path: group, directories, .. } => {
                let group = path(group);
                let remove = |dir: &PathBuf| {
                    let top = dir.ancestors().nth(Path::new(&group).components().count())?;
                    Some(format!("(cd {} && rmdir -p --ignore-fail-on-non-empty {group})", path(top)))
                };
                directories.iter().filter_map(remove).collect::<Vec<_>>().join("\n")
            }
            // The address goes with the namespace, the limits with the cgroup; other standbys use the role.
            Self::AssignAddress { .. } | Self::SetLimits { .. } | Self::CreateRole { .. } => String::new(),
        }
    }
}

/// The last node of a lab takes along what is the lab's.
fn unless_in_use(own_netns: &str, command: &str) -> String {
    let lab = own_netns.trim_end_matches(|c| c != '.');
    let others = format!("$1 != \"{own_netns}\" && index($1, \"{lab}\") == 1 {{ others = 1 }}");
    format!("ip netns list | awk '{others} END {{ exit !others }}' || {command}")
}
