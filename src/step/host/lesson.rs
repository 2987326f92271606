//! What each host step does and why, and the same by the commands of a shell: what `--explain` and `--dry-run` print.

use std::path::{Path, PathBuf};

use super::{
    super::{Lesson, path, psql},
    BUNDLE_DIRS, HostStep, NODE_INTERFACE,
    work::HOSTS_HEAD,
};
use crate::{
    postgres::{hba::REPLICATOR, quote::bash, standby},
    spec::Publish,
    sql::Login,
};

impl HostStep {
    pub fn lesson(&self) -> Lesson {
        match self {
            Self::CreateBundle { dir, files } => Lesson {
                title: format!("create the bundle {}", dir.display()),
                why: "overlayfs keeps the image read-only and puts every change into `upper`. `work` is its scratch \
                      space and must be on the same file system; `merged` is where the union will be mounted.",
                see: "https://docs.kernel.org/filesystems/overlayfs.html",
                shell: bundle(dir, files),
                look: format!("ls -l {}", path(dir)),
            },
            Self::CreateVolume { dir } => Lesson {
                title: format!("create the volume {}", dir.display()),
                why: "PGDATA must outlive the container, and is faster beside the overlay than in it: the first \
                      write to a file in a lower layer copies the whole file up.",
                see: "PostgreSQL manual, 18.2 Creating a Database Cluster",
                shell: format!("mkdir -p {}", path(dir)),
                look: format!("ls -la {}", path(dir)),
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
                     ip -n {netns} route add default via {gateway} proto static"
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
                shell: format!(
                    "[ -s {0} ] || printf {1} >{0}\necho '{address} {name}' >>{0}",
                    path(file),
                    bash(&HOSTS_HEAD.replace('\n', "\\n")),
                ),
                look: format!("cat {}", path(file)),
            },
            Self::CreateRole { server, secret } => Lesson {
                title: format!("make sure of the role {REPLICATOR} on {}", server.address),
                why: "Standbys log in as a role that may replicate and nothing else. What is sent is not its password but \
                      the SCRAM verifier that the server keeps, so that no log can have the password. It may also read \
                      the files that pg_rewind asks for.",
                see: "PostgreSQL manual, 21.5 and 27.2.5.1, and the reference page of pg_rewind",
                shell: format!(
                    "{} <<'SQL'\n{}SQL",
                    login(server),
                    standby::create_role(&format!("the verifier of {}", secret.display()))
                ),
                look: format!("{} -c '\\du {REPLICATOR}'", login(server)),
            },
            Self::CreateSlot { server, slot } => Lesson {
                title: format!("create the replication slot {slot} on {}", server.address),
                why: "A slot makes the primary keep WAL until this standby has it, however long that takes. It is there \
                      before the base backup begins, so that nothing between the two is lost, and goes with its standby: \
                      a forgotten slot fills the disk.",
                see: "PostgreSQL manual, 27.2.6 Replication Slots",
                shell: format!("{} -c \"{}\"", login(server), standby::create_slot(slot)),
                look: format!("{} -c 'SELECT * FROM pg_replication_slots'", login(server)),
            },
            Self::CreateCgroup { path: group, directories, delegations } => Lesson {
                title: format!("create the cgroup {}", group.display()),
                why: "Limits belong to a cgroup, not to a process. It is there first, so that the container is born \
                      in it and never runs a moment without limits.",
                see: "cgroups(7), https://docs.kernel.org/admin-guide/cgroup-v2.html",
                shell: format!("mkdir -p {}{}", words(directories), echoes("\n", delegations)),
                look: format!("cat {}", words(directories.last().map(|d| d.join("cgroup.procs")).as_slice())),
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
                shell: echoes("", files),
                look: match files.is_empty() {
                    true => "cat /proc/self/cgroup".to_owned(),
                    false => format!("grep . {}", words(files.iter().map(|(file, _)| file))),
                },
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

pub fn login(server: &Login) -> String {
    psql(server.address, &server.user, &server.database)
}

fn bundle(dir: &Path, files: &[(String, String)]) -> String {
    let dirs: Vec<_> = BUNDLE_DIRS.iter().map(|name| dir.join(name)).collect();
    let file = |(name, text): &(String, String)| {
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        format!("\ncat >{} <<'EOF'\n{text}{end}EOF", path(&dir.join(name)))
    };
    let parent = path(dir.parent().unwrap_or(dir));
    // Without -p: what is there already is another node's.
    format!(
        "mkdir -p {parent}\nmkdir {} {}{}",
        path(dir),
        words(&dirs),
        files.iter().map(file).collect::<String>()
    )
}

/// Texts for files of the kernel, a line each; `before` the first.
fn echoes(before: &str, writes: &[(PathBuf, String)]) -> String {
    let echo = |(file, text): &(PathBuf, String)| format!("echo {} >{}", bash(text), path(file));
    match writes {
        [] => String::new(),
        writes => before.to_owned() + &writes.iter().map(echo).collect::<Vec<_>>().join("\n"),
    }
}

fn words<'p>(paths: impl IntoIterator<Item = &'p PathBuf>) -> String {
    paths.into_iter().map(|p| path(p)).collect::<Vec<_>>().join(" ")
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
