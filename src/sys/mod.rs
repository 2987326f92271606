//! Floor 0: system calls and kernel interfaces, typed. Nothing here knows what a container, an image or
//! Postgres is; each file would make sense in another program. This is the only floor with `unsafe`.

pub mod capability;
pub mod cgroup;
pub mod child;
pub mod clone;
pub mod conntrack;
pub mod credentials;
#[cfg(target_arch = "x86_64")]
mod entry;
pub mod exe;
pub mod execute;
pub mod fs;
pub mod idmap;
pub mod link;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod nft;
pub mod overlay;
pub mod pass;
pub mod process;
pub mod readable;
pub mod seccomp;
pub mod sysctl;
pub mod tail;
pub mod title;
pub mod tree;
pub mod tty;
