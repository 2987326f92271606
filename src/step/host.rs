//! Steps on the host, each with its `undo`. Undoing an absent thing is Ok: that makes roll-back, `rm` and
//! recovery after a crash the same few lines.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

mod work;

use super::Lesson;
use crate::{
    postgres::{hba::REPLICATOR, standby},
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
    /// `directories` is where it appears, one for each hierarchy.
    CreateCgroup {
        path: PathBuf,
        directories: Vec<PathBuf>,
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

    pub fn lesson(&self) -> Lesson {
        match self {
            Self::CreateBundle { dir, .. } => Lesson {
                title: format!("create the bundle {}", dir.display()),
                why: "overlayfs keeps the image read-only and puts every change into `upper`. `work` is its scratch \
                      space and must be on the same file system; `merged` is where the union will be mounted.",
                see: "https://docs.kernel.org/filesystems/overlayfs.html",
                shell: format!("mkdir -p {0}/upper {0}/work {0}/merged", dir.display()),
                look: format!("ls -l {}", dir.display()),
            },
            Self::CreateVolume { dir } => Lesson {
                title: format!("create the volume {}", dir.display()),
                why: "PGDATA must outlive the container, and is faster beside the overlay than in it: the first \
                      write to a file in a lower layer copies the whole file up.",
                see: "PostgreSQL manual, 18.2 Creating a Database Cluster",
                shell: format!("mkdir -p {}", dir.display()),
                look: format!("ls -la {}", dir.display()),
            },
            Self::CreateBridge { name, mac, address, alias, .. } => Lesson {
                title: format!("create the bridge {name} with {address}"),
                why: "A bridge is a switch in the kernel; its own address is the nodes' gateway. It would take the \
                      lowest MAC of its ports, and change it as nodes come and go, until ARP entries run out: pin it.",
                see: "bridge(8), ip-link(8)",
                shell: format!(
                    "ip link show {name} >/dev/null 2>&1 || ip link add {name} address {} type bridge\n\
                     ip link set {name} alias '{alias}'\n\
                     ip address replace {address} dev {name}\n\
                     ip link set {name} up",
                    colons(mac)
                ),
                look: format!("ip -d addr show {name}"),
            },
            Self::EnableForwarding { bridge } => Lesson {
                title: format!("let packets pass between {bridge} and the world"),
                why: "Without ip_forward the host is no router and drops what is not its own. route_localnet lets a \
                      connection to 127.0.0.1 be sent on to the bridge after its address was rewritten. Forwarding \
                      stays on afterwards: other programs may rely on it by then.",
                see: "https://docs.kernel.org/networking/ip-sysctl.html",
                shell: format!(
                    "echo 1 >/proc/sys/net/ipv4/ip_forward\necho 1 >/proc/sys/net/ipv4/conf/{bridge}/route_localnet"
                ),
                look: format!(
                    "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/{bridge}/route_localnet"
                ),
            },
            Self::CreateNetns { name } => Lesson {
                title: format!("create the network namespace {name}"),
                why: "A namespace lives as long as something refers to it. Pinned to a file by a bind mount it exists \
                      before the container does, and can be connected while the first process is still mounting.",
                see: "network_namespaces(7), ip-netns(8)",
                shell: format!("ip netns add {name}"),
                look: format!("ip netns exec {name} ip addr"),
            },
            Self::CreateVeth { name, bridge, netns, mac, alias, .. } => Lesson {
                title: format!("plug {netns} into {bridge} with the veth pair {name}"),
                why: "A veth pair is a cable: what enters one end leaves the other. The far end is born inside the \
                      namespace, because moving it there later makes the kernel wait 16-20 ms.",
                see: "veth(4)",
                shell: format!(
                    "ip link add {name} type veth peer name {NODE_INTERFACE} address {} netns {netns}\n\
                     ip link set {name} alias '{alias}' master {bridge} up",
                    colons(mac)
                ),
                look: format!("ip -d link show {name}"),
            },
            Self::AssignAddress { netns, address, gateway } => Lesson {
                title: format!("give {netns} the address {address}"),
                why: "A new network namespace has nothing, not even 127.0.0.1: its loopback device is down. The \
                      address stays the node's for life, so a standby can always find its primary again.",
                see: "ip-address(8), ip-route(8)",
                shell: format!(
                    "ip -n {netns} link set lo up\n\
                     ip -n {netns} address add {address} dev {NODE_INTERFACE}\n\
                     ip -n {netns} link set {NODE_INTERFACE} up\n\
                     ip -n {netns} route add default via {gateway}"
                ),
                look: format!("ip -n {netns} route"),
            },
            Self::CreateNat { table, subnet, .. } => Lesson {
                title: format!("masquerade {subnet} and guard it"),
                why: "The nodes' addresses mean nothing outside this host, so their packets leave with the host's \
                      address. The guard is for the other direction: a host that forwards is a router, and a \
                      neighbour could reach the nodes themselves, and through them what listens on 127.0.0.1.",
                see: "nft(8), https://wiki.nftables.org/wiki-nftables/index.php/Performing_Network_Address_Translation_(NAT)",
                shell: format!(
                    "nft list table ip {table} >/dev/null 2>&1 || nft -f - <<'EOF'\n{}EOF",
                    self.nat_table().to_nft()
                ),
                look: format!("nft list table ip {table}"),
            },
            Self::PublishPorts { table, publish, .. } => Lesson {
                title: format!("publish {}", shown_ports(publish)),
                why: "A packet to the published port gets the node's address as its destination before routing; for \
                      connections from this host itself the same happens on the way out. One table a node: it \
                      appears in one batch and goes with one message.",
                see: "nft(8), NAT STATEMENTS",
                shell: format!("nft -f - <<'EOF'\n{}EOF", self.nat_table().to_nft()),
                look: format!("nft list table ip {table}"),
            },
            Self::AddHostName { file, address, name } => Lesson {
                title: format!("tell the lab that {name} is {address}"),
                why: "All nodes of a lab see this one file as their /etc/hosts, so a new node is known everywhere at \
                      once, without a name server. It is edited in place: a bind mount follows the inode, not the name.",
                see: "hosts(5)",
                shell: format!("echo '{address} {name}' >>{}", file.display()),
                look: format!("cat {}", file.display()),
            },
            Self::CreateRole { server, secret } => Lesson {
                title: format!("make sure of the role {REPLICATOR} on {}", server.address),
                why: "Standbys log in as a role that may replicate and nothing else. What is sent is not its password but \
                      the SCRAM verifier that the server keeps, so that no log can have the password. It may also read \
                      the files that pg_rewind asks for.",
                see: "PostgreSQL manual, 21.5 and 27.2.5.1, and the reference page of pg_rewind",
                shell: format!(
                    "{} <<'SQL'\n{}SQL",
                    psql(server),
                    standby::create_role(&format!("the verifier of {}", secret.display()))
                ),
                look: format!("{} -c '\\du {REPLICATOR}'", psql(server)),
            },
            Self::CreateSlot { server, slot } => Lesson {
                title: format!("create the replication slot {slot} on {}", server.address),
                why: "A slot makes the primary keep WAL until this standby has it, however long that takes. It is there \
                      before the base backup begins, so that nothing between the two is lost, and goes with its standby: \
                      a forgotten slot fills the disk.",
                see: "PostgreSQL manual, 27.2.6 Replication Slots",
                shell: format!("{} -c \"{}\"", psql(server), standby::create_slot(slot)),
                look: format!("{} -c 'SELECT * FROM pg_replication_slots'", psql(server)),
            },
            Self::CreateCgroup { path, directories } => Lesson {
                title: format!("create the cgroup {}", path.display()),
                why: "Limits belong to a cgroup, not to a process. It is there first, so that the container is born \
                      in it and never runs a moment without limits.",
                see: "cgroups(7), https://docs.kernel.org/admin-guide/cgroup-v2.html",
                shell: format!("mkdir -p {}", shown_paths(directories)),
                look: format!(
                    "cat {}",
                    directories
                        .last()
                        .map(|d| d.join("cgroup.procs").display().to_string())
                        .unwrap_or_default()
                ),
            },
            Self::SetLimits { files, .. } => Lesson {
                title: match files.len() {
                    0 => "set no limits".to_owned(),
                    _ => format!(
                        "limit {}",
                        files
                            .iter()
                            .map(|(f, v)| format!("{}={v}", file_name(f)))
                            .collect::<Vec<_>>()
                            .join(", ")
                    ),
                },
                why: "Every value is read back after it was written: the kernel rounds some and refuses others, and \
                      a limit that is not there must be an error, not a surprise under load.",
                see: "https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files",
                shell: files
                    .iter()
                    .map(|(f, v)| format!("echo {v} >{}", f.display()))
                    .collect::<Vec<_>>()
                    .join("\n"),
                look: format!(
                    "grep . {}",
                    shown_paths(&files.iter().map(|(f, _)| f.clone()).collect::<Vec<_>>())
                ),
            },
        }
    }
}

fn colons(mac: &[u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

fn shown_ports(publish: &[Publish]) -> String {
    publish.iter().map(|p| p.to_string()).collect::<Vec<_>>().join(", ")
}

fn psql(server: &Login) -> String {
    let (address, user, database) = (server.address, &server.user, &server.database);
    format!("psql -h {} -p {} -U {user} -d {database}", address.ip(), address.port())
}

fn shown_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ")
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
