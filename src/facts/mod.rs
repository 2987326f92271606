//! Facts: what the machine, the lab and an image are like right now. Everything a plan needs to know is
//! found here, and everything a reading command shows is read from the kernel here, never from a stored
//! status.

pub mod cluster;
pub mod conf;
pub mod history;
pub mod image;
pub mod lab;
pub mod node;
pub mod owner;
pub mod ports;
pub mod recovery;
pub mod replication;
pub mod rival;
pub mod stray;
mod subnet;
pub mod volume;
pub mod wal;

use std::{collections::BTreeSet, fs, io, net::Ipv4Addr, path::Path};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::{
    hint::advise,
    plan::{Facts, ImageFacts, follow::Upstream},
    spec::{Follow, Name, NodeLimits, NodeSpec, ObjectNames, VolumeSource},
    state::{self, LabState, NodeState, Role, Root},
    sys::{self, cgroup, link, memory, netns, nft},
};

/// The nodes of a lab, as remembered.
pub fn nodes(root: &Root, lab: &Name) -> Result<Vec<(Name, NodeState)>> {
    let mut nodes = Vec::new();
    for name in root.nodes(lab)? {
        if let Some(state) = load(root, lab, &name)? {
            nodes.push((name, state));
        }
    }
    Ok(nodes)
}

/// What is remembered of a node.
///
/// # Errors
/// When that is damaged, with the way to be rid of it.
pub fn load(root: &Root, lab: &Name, node: &Name) -> Result<Option<NodeState>> {
    root.node(lab, node).load().map_err(|error| damaged(node, &error))
}

fn damaged(node: &Name, error: &anyhow::Error) -> anyhow::Error {
    advise(
        format!("what is remembered of node `{node}` can't be read: {error:#}"),
        format!("`pgbox rm --force {node}` removes the node and keeps its volumes"),
    )
}

/// The addresses of a lab's nodes: all that a new one has to know of them. Their plans, most of what is remembered, are skipped.
fn addresses(root: &Root, lab: &Name) -> Result<BTreeSet<Ipv4Addr>> {
    #[derive(Deserialize)]
    struct Addressed {
        address: Ipv4Net,
    }
    let mut addresses = BTreeSet::new();
    for name in root.nodes(lab)? {
        let path = root.node(lab, &name).state_file();
        let node: Option<Addressed> = state::load(&path).map_err(|error| damaged(&name, &error))?;
        addresses.extend(node.map(|node| node.address.addr()));
    }
    Ok(addresses)
}

/// The addresses that others have by the lab's hosts file: a primary that was removed and is still followed, a node made by hand.
fn named(root: &Root, spec: &NodeSpec) -> Result<Vec<Ipv4Addr>> {
    let file = root.hosts_file(&spec.lab);
    let text = match sys::fs::read_at_once(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    let text = String::from_utf8_lossy(&text);
    let others = text.lines().filter(|line| line.split_whitespace().nth(1) != Some(spec.node.as_str()));
    Ok(others.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect())
}

/// Gathers what a plan for a new node needs. The caller holds the lab's lock and the shared one.
///
/// # Errors
/// When something that the node needs is taken: its name, an address range, a port.
pub fn gather(root: &Root, spec: &NodeSpec, image: ImageFacts) -> Result<Facts> {
    let mut taken = addresses(root, &spec.lab)?;
    taken.extend(named(root, spec)?);
    check_name(root, spec)?;
    let lab = subnet::of_lab(root, spec)?;
    // Who has no network takes nobody's address away.
    let address = spec.offline.then(|| lab.gateway()).or_else(|| subnet::free_address(&lab, &taken));
    let address =
        address.with_context(|| format!("lab `{}` has no free address left in {}", spec.lab, lab.subnet))?;
    gather_at(root, spec, image, &lab, address)
}

/// The same for a node that is there and is to be planned anew: its name and address are its own.
///
/// # Errors
/// When something else that it needs is taken.
pub fn gather_again(root: &Root, state: &NodeState, spec: &NodeSpec, image: ImageFacts) -> Result<Facts> {
    let lab = subnet::of_lab(root, spec)?;
    gather_at(root, spec, image, &lab, state.address.addr())
}

fn gather_at(
    root: &Root,
    spec: &NodeSpec,
    image: ImageFacts,
    lab: &LabState,
    address: Ipv4Addr,
) -> Result<Facts> {
    let cgroups = cgroup::detect().map_err(|e| {
        advise(
            format!("this host has no usable cgroups: {e:#}"),
            "mount cgroup2 at /sys/fs/cgroup, or boot with it",
        )
    })?;
    check_cpus(&spec.limits)?;
    let nat = !spec.offline && nat(root, spec);
    ports::check(root, spec, nat)?;
    let sources = || {
        spec.volumes.iter().filter_map(|v| match &v.source {
            VolumeSource::Path(path) => Some(path.clone()),
            VolumeSource::Named(_) => None,
        })
    };
    let with_prefix = |address| Ipv4Net::new(address, lab.subnet.prefix_len()).context("prefix length");
    Ok(Facts {
        root: root.clone(),
        cgroups,
        nat,
        image,
        gateway: with_prefix(lab.gateway())?,
        address: with_prefix(address)?,
        resolv_conf: resolv_conf(),
        file_sources: sources().filter(|p| p.exists() && !p.is_dir()).collect(),
        missing_sources: sources().filter(|p| !p.exists()).collect(),
        whole_memory: memory::total()?,
        upstream: spec.follow.as_ref().map(|follow| upstream(root, spec, follow)).transpose()?,
    })
}

/// The servers that a new standby has to do with, if it can follow them.
fn upstream(root: &Root, spec: &NodeSpec, follow: &Follow) -> Result<Upstream> {
    let node = node::find(root, &spec.lab, &follow.of)?;
    node.login()?;
    let of = &follow.of;
    if let Role::Superseded { by } = node.state.role() {
        return Err(advise(
            format!("`{of}` is no member of its cluster any more: `{by}` was promoted in its place"),
            format!("follow `{by}`: --of {by}"),
        ));
    }
    node.running()?;
    let cluster = cluster::of(root, &spec.lab, of)?;
    let primary = cluster.head();
    if primary.name != *of {
        primary.running()?;
    }
    node.upstream(primary)
}

/// Refuses more CPUs than there are, as docker does: the kernel would take any number.
pub fn check_cpus(limits: &NodeLimits) -> Result<()> {
    let Some(asked) = limits.milli_cpus else { return Ok(()) };
    // Those are online, and the call is nothing beside the file of /sys that the other one reads.
    let ours = rustix::thread::sched_getaffinity(None).map_or(0, |cpus| cpus.count());
    if asked <= u64::from(ours) * 1000 {
        return Ok(());
    }
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    match online {
        Some(online) if asked > online as u64 * 1000 => Err(advise(
            format!("{} CPUs can't be given: this machine has {online}", asked as f64 / 1000.0),
            format!("give from 0.01 to {online}, or max"),
        )),
        _ => Ok(()),
    }
}

/// Whether the kernel can do NAT. Where the lab's table stands already, it can; asking costs 15 ms, because
/// the kernel waits for all readers before it forgets the table that it was asked about.
pub fn nat(root: &Root, spec: &NodeSpec) -> bool {
    let table = ObjectNames::new(root.path(), &spec.lab, &spec.node).nat_table;
    let stands = nft::list().is_ok_and(|tables| tables.iter().any(|t| t.name == table));
    stands || nft::supported().unwrap_or(false)
}

fn check_name(root: &Root, spec: &NodeSpec) -> Result<()> {
    let dir = root.node(&spec.lab, &spec.node);
    if dir.load()?.is_some() {
        let name = &spec.node;
        let runs = node::find(root, &spec.lab, name)?.pidfd.is_some();
        let way_out = match runs {
            true => {
                format!("choose another name, or remove it first: `pgbox rm --force {name}` keeps its data")
            }
            false => {
                format!(
                    "start it with `pgbox start {name}`, or remove it first: `pgbox rm {name}` keeps its data"
                )
            }
        };
        let runs = if runs { ", by a node that runs" } else { "" };
        return Err(advise(format!("the name `{name}` is taken in lab `{}`{runs}", spec.lab), way_out));
    }
    match lasting_remains(root, &spec.lab, &spec.node)?.first() {
        Some(what) => Err(advise(
            format!("{what} is there already, and belongs to no node"),
            format!("remove what is left of an earlier node: `pgbox rm --force {}`", spec.node),
        )),
        None => Ok(()),
    }
}

/// What there is of a node, by its names and not by what is remembered of it.
pub fn remains(root: &Root, lab: &Name, node: &Name) -> Result<Vec<String>> {
    let mut found = lasting_remains(root, lab, node)?;
    let names = ObjectNames::new(root.path(), lab, node);
    if link::exists(&names.veth)? {
        found.push(format!("the interface {}", names.veth));
    }
    Ok(found)
}

/// As [`remains`], but for the interface: it may be about to go with the namespace of a node that was removed just
/// now, and the step that makes it again waits for that.
fn lasting_remains(root: &Root, lab: &Name, node: &Name) -> Result<Vec<String>> {
    let names = ObjectNames::new(root.path(), lab, node);
    let mut found = Vec::new();
    let dir = root.node(lab, node);
    if dir.path().exists() {
        found.push(format!("the directory {}", dir.path().display()));
    }
    if netns::path(&names.netns).exists() {
        found.push(format!("the network namespace {}", names.netns));
    }
    if cgroup::Cgroup::new(&cgroup::detect()?, &names.cgroup)?.exists() {
        found.push(format!("the cgroup {}", names.cgroup.display()));
    }
    Ok(found)
}

/// The host's name servers as a node can reach them: one on the host's loopback address is out of reach.
pub fn resolv_conf() -> String {
    let usable = |text: &str| {
        text.lines().any(|line| {
            line.strip_prefix("nameserver")
                .is_some_and(|rest| !rest.trim().starts_with("127.") && rest.trim() != "::1")
        })
    };
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let text = files
        .iter()
        .filter_map(|path| crate::sys::fs::read_text_at_once(path).ok())
        .find(|text| usable(text));
    text.unwrap_or_else(|| "# the host has no name server that a container could reach\n".to_owned())
}

/// Reads a file that a container may have put there: neither a symlink out of it nor a fifo without an end.
fn read_plain_file(path: &Path) -> std::io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let content = sys::fs::read_plain(file, 1 << 10)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// The version of the data directory at `path`, if one is there: the content of PG_VERSION.
pub fn data_version(path: &Path) -> Result<Option<u32>> {
    match read_plain_file(&path.join("PG_VERSION")) {
        Ok(text) => crate::postgres::version::parse_pg_version(&text).map(Some),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(e).with_context(|| format!("read {}/PG_VERSION", path.display())),
    }
}
