//! Steps on the host, each with its `undo`. Undoing an absent thing is Ok: that makes roll-back, `rm` and
//! recovery after a crash the same few lines.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsFd,
    path::PathBuf,
};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

mod lesson;
mod way_back;
mod work;

use crate::{
    spec::{Publish, name::endpoint_table},
    sql::Login,
    sys::{cgroup, link, netns, nft},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum HostStep {
    /// The node's directories: the writable half of its overlay, and where that is mounted.
    CreateBundle {
        dir: PathBuf,
        files: Vec<(String, String)>,
    },
    /// A directory for data that outlives the node.
    CreateVolume {
        dir: PathBuf,
    },
    /// The switch that the nodes of a lab are plugged into.
    CreateBridge {
        name: String,
        alias: String,
        mac: [u8; 6],
        address: Ipv4Net,
        own_netns: String,
    },
    /// Packets may pass from the bridge to other interfaces, and from 127.0.0.1 to the bridge.
    EnableForwarding {
        bridge: String,
    },
    CreateNetns {
        name: String,
    },
    /// `serves`: clients connect to the node, and their connections may outlive it.
    CreateVeth {
        name: String,
        alias: String,
        bridge: String,
        netns: String,
        mac: [u8; 6],
        serves: bool,
    },
    AssignAddress {
        netns: String,
        address: Ipv4Net,
        gateway: Ipv4Addr,
    },
    /// The lab's gateway: what leaves it has the host's address, and what must not enter it does not.
    CreateNat {
        table: String,
        comment: String,
        bridge: String,
        subnet: Ipv4Net,
        own_netns: String,
    },
    PublishPorts {
        table: String,
        comment: String,
        address: Ipv4Addr,
        publish: Vec<Publish>,
    },
    /// The node's name in the /etc/hosts that all nodes of the lab share.
    AddHostName {
        file: PathBuf,
        address: Ipv4Addr,
        name: String,
    },
    /// The role that standbys connect as, with the password in the file `secret`.
    CreateRole {
        server: Login,
        secret: PathBuf,
    },
    /// A replication slot on the server that a standby follows.
    CreateSlot {
        server: Login,
        slot: String,
    },
    /// `directories` is where it appears, one for each hierarchy; `delegations` are the files of its parents, with their
    /// texts, that give it controllers on cgroup v2.
    CreateCgroup {
        path: PathBuf,
        directories: Vec<PathBuf>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        delegations: Vec<(PathBuf, String)>,
    },
    /// `files` is what that comes to on this host: file and text.
    SetLimits {
        path: PathBuf,
        limits: cgroup::Limits,
        files: Vec<(PathBuf, String)>,
    },
}

/// The node's end of its veth pair.
pub const NODE_INTERFACE: &str = "eth0";

/// The directories of a bundle.
pub const BUNDLE_DIRS: [&str; 3] = ["upper", "work", "merged"];

impl HostStep {
    /// Whether the step's result is kept while the node is stopped. All else is a kernel object: it
    /// goes with `stop`, or with a reboot, and `start` makes it again.
    pub fn outlives_stop(&self) -> bool {
        matches!(
            self,
            Self::CreateBundle { .. }
                | Self::CreateVolume { .. }
                // Its address stays the node's. Without the line a standby that looks for it asks the name servers
                // outside, and waits 5 s for each that does not answer, also when it is to follow another one by then.
                | Self::AddHostName { .. }
                | Self::CreateRole { .. }
                | Self::CreateSlot { .. }
        )
    }

    /// Whether it is done on another node, which need not run.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Self::CreateRole { .. } | Self::CreateSlot { .. })
    }

    /// Whether pid 1 can't be made without it, or comes by what it makes. All else, its way to the world and to the server
    /// that it follows, has to be there before something of the image runs, and is done while pid 1 mounts.
    pub fn precedes_birth(&self) -> bool {
        !matches!(
            self,
            Self::CreateBridge { .. }
                | Self::CreateVeth { .. }
                | Self::AssignAddress { .. }
                | Self::CreateNat { .. }
                | Self::EnableForwarding { .. }
                | Self::PublishPorts { .. }
                | Self::CreateRole { .. }
                | Self::CreateSlot { .. }
        )
    }

    /// Whether it is shared by all nodes of the lab, and taken back with the last one.
    pub fn is_the_labs(&self) -> bool {
        matches!(self, Self::CreateBridge { .. } | Self::CreateNat { .. })
    }

    pub fn apply(&self) -> Result<()> {
        match self {
            Self::CreateBundle { dir, files } => work::create_bundle(dir, files),
            Self::CreateVolume { dir } => {
                fs::create_dir_all(dir).with_context(|| format!("mkdir {}", dir.display()))
            }
            Self::CreateBridge { name, alias, mac, address, own_netns: _ } => {
                link::create_bridge(&link::Bridge {
                    name: name.clone(),
                    alias: alias.clone(),
                    mac: *mac,
                    address: address.addr(),
                    prefix: address.prefix_len(),
                    mtu: None,
                })
                .map(drop)
            }
            Self::EnableForwarding { bridge } => work::enable_forwarding(bridge),
            Self::CreateNetns { name } => netns::create(name),
            Self::CreateVeth { name, alias, bridge, netns, mac, .. } => {
                let ns = netns::open(netns)?;
                link::create_veth(&link::Veth {
                    name: name.clone(),
                    alias: alias.clone(),
                    bridge: bridge.clone(),
                    netns: ns.as_fd(),
                    peer_name: NODE_INTERFACE.to_owned(),
                    peer_mac: *mac,
                    mtu: None,
                })
            }
            Self::AssignAddress { netns, address, gateway } => {
                let ns = netns::open(netns)?;
                link::configure(
                    ns.as_fd(),
                    NODE_INTERFACE,
                    address.addr(),
                    address.prefix_len(),
                    Some(*gateway),
                )
            }
            // An earlier node of the lab has made it, or this one in a life that ended by a power cut.
            Self::CreateNat { .. } | Self::PublishPorts { .. } => nft::ensure(&self.nat_table()),
            Self::AddHostName { file, address, name } => work::edit_hosts(file, name, Some(*address)),
            Self::CreateRole { server, secret } => work::create_role(server, secret),
            Self::CreateSlot { server, slot } => work::create_slot(server, slot),
            Self::CreateCgroup { path, .. } => cgroup::Cgroup::new(&cgroup::detect()?, path)?.create(),
            Self::SetLimits { path, limits, .. } => work::set_limits(path, limits),
        }
    }

    pub fn undo(&self) -> Result<()> {
        match self {
            Self::CreateBundle { dir, files } => work::remove_bundle(dir, files),
            // Data is never removed by a roll-back, and an empty volume may be another node's as well, which would
            // lose its mount. Who knows the others removes those that are empty; `rm -v` removes volumes by name.
            Self::CreateVolume { .. } => Ok(()),
            Self::CreateBridge { name, alias, mac, own_netns, .. } => {
                work::remove_unused_bridge(name, alias, *mac, own_netns)
            }
            Self::CreateNat { table, comment, own_netns, .. } => match work::is_in_use(own_netns)? {
                true => Ok(()),
                // The endpoints' addresses go with the bridge.
                false => nft::delete_own(&[&endpoint_table(table), table], comment),
            },
            // Other programs may rely on forwarding by now; the bridge's own setting goes with the bridge.
            Self::EnableForwarding { .. } => Ok(()),
            Self::CreateNetns { name } => netns::delete(name),
            // A connection whose client has not closed it stays half-open for up to a minute after the server
            // has gone, and keeps the namespace alive, its end of the cable included.
            Self::CreateVeth { name, alias, serves: true, .. } => work::delete_own_link(name, alias),
            // Otherwise it dies with the namespace, off the path: deleting a veth costs 15-30 ms.
            Self::CreateVeth { serves: false, .. } | Self::AssignAddress { .. } => Ok(()),
            Self::PublishPorts { table, comment, .. } => nft::delete_own(&[table], comment),
            Self::AddHostName { file, name, .. } => work::edit_hosts(file, name, None),
            // Other standbys use it, and nobody else can do anything with it.
            Self::CreateRole { .. } => Ok(()),
            Self::CreateSlot { server, slot } => work::drop_slot(server, slot),
            Self::CreateCgroup { path, .. } => work::remove_cgroup(path),
            // The limits are files of the cgroup.
            Self::SetLimits { .. } => Ok(()),
        }
    }

    /// The table of a NAT step; for any other one an empty one, which no caller asks for.
    fn nat_table(&self) -> nft::NatTable {
        let empty = |table: &str, comment: &str| nft::NatTable {
            name: table.to_owned(),
            comment: comment.to_owned(),
            gateway: None,
            publish: Vec::new(),
        };
        match self {
            Self::CreateNat { table, comment, bridge, subnet, .. } => {
                let subnet = (subnet.network(), subnet.prefix_len());
                let gateway = Some(nft::Gateway { bridge: bridge.clone(), subnet });
                nft::NatTable { gateway, ..empty(table, comment) }
            }
            Self::PublishPorts { table, comment, address, publish } => {
                let one = |p: &Publish| nft::Publish {
                    host_ip: p.host_ip,
                    host_port: p.host_port,
                    to: SocketAddrV4::new(*address, p.port),
                };
                nft::NatTable { publish: publish.iter().map(one).collect(), ..empty(table, comment) }
            }
            _ => empty("", ""),
        }
    }
}
