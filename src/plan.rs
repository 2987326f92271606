//! The plan: which steps, in which order, with which names, addresses, paths and numbers. Pure: it is given
//! what the user asked for and the facts of host, lab and image, and touches nothing.
//!
//! This is the only place that knows the order of things. Every order below has a reason, given beside it.

pub mod changes;
pub mod follow;
mod init;
mod limits;
mod owner;
mod place;
mod remains;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
};

use anyhow::Result;
use ipnet::Ipv4Net;

pub use init::{merged_env, restart, tuned};
pub use limits::{check_limits, limits, set_limits};
pub use owner::{is_foreign, keep_owner, owned_dir};
pub use place::{Below, data_below, data_dir, data_on_host, found_below, mount_of};
pub use remains::remains;

use crate::{
    postgres::{
        contract,
        launch::{InitConfig, Payload, Source, User},
    },
    spec::{NodeSpec, ObjectNames, Volume, VolumeSource, name},
    state::{Plan, Root},
    step::{AfterStep, HostStep, InnerStep, inner::BindPlace},
    sys::cgroup,
};

/// The port that Postgres listens on inside a node.
pub const POSTGRES_PORT: u16 = crate::spec::SERVER_PORT;

/// What the plan has to know about the world. `facts` finds it out.
#[derive(Debug, Clone)]
pub struct Facts {
    pub root: Root,
    pub cgroups: cgroup::Hierarchy,
    /// Whether the kernel can rewrite addresses (nf_tables, family ip).
    pub nat: bool,
    pub image: ImageFacts,
    /// The lab's subnet with the bridge's own address.
    pub gateway: Ipv4Net,
    /// The node's address with the lab's prefix.
    pub address: Ipv4Net,
    pub resolv_conf: String,
    /// Sources of `-v` that are no directories, and those that don't exist.
    pub file_sources: Vec<PathBuf>,
    pub missing_sources: Vec<PathBuf>,
    /// Bytes of memory that this machine has.
    pub whole_memory: u64,
    /// The servers that a standby has to do with.
    pub upstream: Option<follow::Upstream>,
}

/// What an image is, seen from a plan.
#[derive(Debug, Clone, Default)]
pub struct ImageFacts {
    /// Manifest digest.
    pub digest: String,
    /// Unpacked layers, topmost first, as overlayfs counts them.
    pub lowers: Vec<PathBuf>,
    pub env: Vec<(String, String)>,
    pub workdir: Option<PathBuf>,
    /// Who runs a command: the image's USER, or root.
    pub user: Option<User>,
    pub postgres: Option<PostgresFacts>,
}

/// The Postgres in an image.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct PostgresFacts {
    pub bindir: PathBuf,
    pub major: u32,
    pub user: User,
    /// The C library, as "glibc 2.36": its collations shape every index on text.
    pub libc: Option<String>,
}

/// Decides everything about a node.
///
/// # Errors
/// When the image can't do what is asked, or a variable of the official image's contract is wrong.
pub fn plan(spec: &NodeSpec, facts: &Facts) -> Result<Plan> {
    let names = ObjectNames::new(facts.root.path(), &spec.lab, &spec.node);
    let init = init::init_config(spec, facts)?;
    check_limits(spec, &facts.cgroups)?;
    let mounts = mounts(spec, facts, data_dir(&init));
    Ok(Plan {
        host: host_steps(spec, facts, &names, &mounts),
        inner: inner_steps(spec, facts, &names, &mounts, &init),
        after: after_steps(spec, facts, &init),
        init,
    })
}

/// What a node sees as /etc/resolv.conf, among the files of its bundle.
const RESOLV_CONF: &str = "resolv.conf";

/// Gives the plan of a node that starts again the name servers that the host has now.
pub fn set_resolv_conf(plan: &mut Plan, text: &str) {
    for step in &mut plan.host {
        let HostStep::CreateBundle { files, .. } = step else { continue };
        for (_, content) in files.iter_mut().filter(|(name, _)| name == RESOLV_CONF) {
            text.clone_into(content);
        }
    }
}

/// A volume with its place on the host.
struct Mount {
    source: PathBuf,
    target: PathBuf,
    read_only: bool,
    place: BindPlace,
    /// Made by a step: a named volume, or a directory of the host that is not there yet.
    create: bool,
}

fn mounts(spec: &NodeSpec, facts: &Facts, pgdata: Option<&Path>) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = spec.volumes.iter().map(|v| user_mount(spec, facts, v)).collect();
    // PGDATA is never in the overlay: it must outlive the node, and never in a volume without a name.
    if let Some(pgdata) = pgdata.filter(|p| !mounts.iter().any(|m| p.starts_with(&m.target))) {
        mounts.push(Mount {
            source: facts.root.volume_dir(&spec.lab, &spec.node).join("data"),
            target: pgdata.to_owned(),
            read_only: false,
            place: BindPlace::Directory,
            create: true,
        });
    }
    // A mount hides what is below it: the outer ones first.
    mounts.sort_by_key(|m| m.target.components().count());
    mounts
}

fn user_mount(spec: &NodeSpec, facts: &Facts, volume: &Volume) -> Mount {
    let (source, create) = match &volume.source {
        VolumeSource::Named(name) => (facts.root.volume_dir(&spec.lab, name).join("data"), true),
        VolumeSource::Path(path) => (path.clone(), facts.missing_sources.contains(path)),
    };
    let place = if facts.file_sources.contains(&source) { BindPlace::File } else { BindPlace::Directory };
    Mount { source, target: volume.target.clone(), read_only: volume.read_only, place, create }
}

fn host_steps(spec: &NodeSpec, facts: &Facts, names: &ObjectNames, mounts: &[Mount]) -> Vec<HostStep> {
    let node = facts.root.node(&spec.lab, &spec.node);
    let mut steps = vec![HostStep::CreateBundle {
        dir: node.path().to_owned(),
        files: vec![
            ("hostname".to_owned(), format!("{}\n", spec.node)),
            (RESOLV_CONF.to_owned(), facts.resolv_conf.clone()),
        ],
    }];
    let volumes = mounts.iter().filter(|m| m.create);
    steps.extend(volumes.map(|m| HostStep::CreateVolume { dir: m.source.clone() }));
    // First what pid 1 is made with or binds: all that comes behind its limits is done while it mounts.
    steps.push(HostStep::CreateNetns { name: names.netns.clone() });
    if !spec.offline {
        steps.push(HostStep::AddHostName {
            file: facts.root.hosts_file(&spec.lab),
            address: facts.address.addr(),
            name: spec.node.to_string(),
        });
    }
    let cgroup = cgroup::Cgroup::new(&facts.cgroups, &names.cgroup);
    steps.push(HostStep::CreateCgroup {
        path: names.cgroup.clone(),
        directories: cgroup.as_ref().map(|c| c.directories()).unwrap_or_default(),
        delegations: cgroup.as_ref().map(|c| c.delegations()).unwrap_or_default(),
    });
    // While the group is empty: it would not take a limit below what pid 1 itself has.
    steps.push(set_limits(&facts.cgroups, &names.cgroup, limits(spec)));
    if !spec.offline {
        steps.extend(network_steps(spec, facts, names));
    }
    if let Some(upstream) = &facts.upstream {
        // Last, to be taken back first: without the bridge the slot's server would be looked for in the world.
        // The role not from standbys: they can't write, and have got it from the primary.
        steps.push(HostStep::CreateRole { server: upstream.primary.clone(), secret: node.replicator_file() });
        steps.push(follow::create_slot(&upstream.server, &spec.node));
    }
    steps
}

/// What connects the namespace, while pid 1 is at work in it.
fn network_steps(spec: &NodeSpec, facts: &Facts, names: &ObjectNames) -> Vec<HostStep> {
    let mut steps = vec![
        HostStep::CreateBridge {
            name: names.bridge.clone(),
            alias: names.bridge_alias.clone(),
            mac: names.bridge_mac,
            address: facts.gateway,
            own_netns: names.netns.clone(),
        },
        HostStep::CreateVeth {
            name: names.veth.clone(),
            alias: names.veth_alias.clone(),
            bridge: names.bridge.clone(),
            netns: names.netns.clone(),
            mac: name::mac_of(facts.address.addr()),
            serves: spec.command().is_none(),
        },
        HostStep::AssignAddress {
            netns: names.netns.clone(),
            address: facts.address,
            gateway: facts.gateway.addr(),
        },
    ];
    // Without NAT the node still has its own address; the command line has warned.
    if facts.nat {
        steps.push(HostStep::CreateNat {
            table: names.nat_table.clone(),
            comment: names.bridge_alias.clone(),
            bridge: names.bridge.clone(),
            subnet: facts.gateway.trunc(),
            own_netns: names.netns.clone(),
        });
        // Only now: with route_localnet alone, a neighbour could reach what listens on the host's loopback
        // address. The table's guard must stand first.
        steps.push(HostStep::EnableForwarding { bridge: names.bridge.clone() });
    }
    steps.extend(publish_ports(spec, names, facts.address.addr()));
    steps
}

fn publish_ports(spec: &NodeSpec, names: &ObjectNames, address: Ipv4Addr) -> Option<HostStep> {
    (!spec.publish.is_empty()).then(|| HostStep::PublishPorts {
        table: names.publish_table.clone(),
        comment: names.veth_alias.clone(),
        address,
        publish: spec.publish.clone(),
    })
}

/// Gives a plan the published ports of a spec; returns the step that it had for them.
pub fn set_publish(
    plan: &mut Plan,
    spec: &NodeSpec,
    names: &ObjectNames,
    address: Ipv4Addr,
) -> Option<HostStep> {
    let is_it = |step: &mut HostStep| matches!(step, HostStep::PublishPorts { .. });
    let old = plan.host.extract_if(.., is_it).next();
    plan.host.extend(publish_ports(spec, names, address));
    old
}

/// Hidden and protected as Docker does by default.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const PROTECTED: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What root in a node may still do: of Docker's fourteen the seven that Postgres images use, whose entrypoints
/// chown PGDATA, become `postgres`, and signal it. Left out, with what then fails: MKNOD, NET_RAW (raw `ping`),
/// NET_BIND_SERVICE (ports below 1024), SETFCAP and SETPCAP, SYS_CHROOT, AUDIT_WRITE (the log of `sudo`).
pub const CAPABILITIES: [&str; 7] =
    ["cap_chown", "cap_dac_override", "cap_fowner", "cap_fsetid", "cap_kill", "cap_setgid", "cap_setuid"];

fn inner_steps(
    spec: &NodeSpec,
    facts: &Facts,
    names: &ObjectNames,
    mounts: &[Mount],
    init: &InitConfig,
) -> Vec<InnerStep> {
    let node = facts.root.node(&spec.lab, &spec.node);
    let merged = node.path().join("merged");
    let bind = |source: PathBuf, target: &Path, read_only, place| InnerStep::Bind {
        root: merged.clone(),
        source,
        target: target.to_owned(),
        read_only,
        place,
        id_map: None,
    };
    let mut steps = vec![
        InnerStep::EnterNamespaces { netns: crate::sys::netns::path(&names.netns) },
        InnerStep::MakeMountsPrivate,
        InnerStep::MountOverlay {
            lowers: facts.image.lowers.clone(),
            upper: node.path().join("upper"),
            work: node.path().join("work"),
            merged: merged.clone(),
        },
    ];
    steps.extend(mounts.iter().map(|m| bind(m.source.clone(), &m.target, m.read_only, m.place)));
    if !spec.offline {
        steps.push(bind(facts.root.hosts_file(&spec.lab), Path::new("/etc/hosts"), true, BindPlace::File));
    }
    steps.push(bind(node.path().join("hostname"), Path::new("/etc/hostname"), true, BindPlace::File));
    steps.push(bind(node.path().join(RESOLV_CONF), Path::new("/etc/resolv.conf"), true, BindPlace::File));
    // As the sources of the mounts: on the host, so before pivot_root.
    let upstream = spec.follow.as_ref().zip(facts.upstream.as_ref());
    steps.extend(upstream.and_then(|(follow, upstream)| follow::open_upstream(follow, upstream)));
    steps.extend([
        InnerStep::PivotRoot { root: merged.clone() },
        InnerStep::MountProc,
        InnerStep::MountDev,
        InnerStep::MountShm { size: spec.limits.shm_size },
        InnerStep::MountSys,
        InnerStep::MaskPaths { paths: MASKED.map(PathBuf::from).to_vec() },
        InnerStep::ProtectPaths { paths: PROTECTED.map(PathBuf::from).to_vec() },
        InnerStep::SetHostname { name: spec.node.to_string() },
        InnerStep::DropPrivileges { keep: CAPABILITIES.map(str::to_owned).to_vec() },
    ]);
    let serves = matches!(init.payload, Payload::Postgres(_));
    steps.extend(serves.then_some(InnerStep::FillDataDirectory));
    steps.push(InnerStep::StartInit { command: shown_command(init), user: init.user.name.clone() });
    steps
}

fn shown_command(init: &InitConfig) -> Vec<String> {
    match &init.payload {
        Payload::Command { argv } => argv.clone(),
        Payload::Postgres(postgres) => {
            let binary = postgres.bindir.join("postgres").display().to_string();
            let mut words = vec![binary, "-D".to_owned(), postgres.pgdata.display().to_string()];
            words.extend(postgres.server_args.iter().cloned());
            words
        }
    }
}

fn after_steps(spec: &NodeSpec, facts: &Facts, init: &InitConfig) -> Vec<AfterStep> {
    let Payload::Postgres(postgres) = &init.payload else { return Vec::new() };
    let value = |source: &Source| match source {
        Source::Value(value) => value.clone(),
        Source::File(_) => contract::DEFAULT_USER.to_owned(),
    };
    let user = value(&postgres.superuser);
    let mut steps = vec![AfterStep::WaitUntilReady {
        address: SocketAddrV4::new(facts.address.addr(), POSTGRES_PORT),
        database: postgres.database.as_ref().map(value).unwrap_or_else(|| user.clone()),
        user,
    }];
    if let Some(upstream) = &facts.upstream {
        steps.push(follow::wait_until_streaming(&upstream.server, &spec.node));
    }
    steps
}
