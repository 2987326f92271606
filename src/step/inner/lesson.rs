//! What each step inside the new namespaces does and why, and the same by the commands of a shell.

use std::path::PathBuf;

use super::{
    super::{Lesson, path},
    Around, BindPlace, DEV_LINKS, DEVICES, InnerStep, payload,
};

use crate::sys::execute::DEFAULT_PATH;

impl InnerStep {
    pub fn lesson(&self, around: &Around) -> Lesson {
        match self {
            Self::EnterNamespaces { netns } => Lesson {
                title: "create the pid, mount, uts, ipc and cgroup namespaces".to_owned(),
                why: "One clone3 makes the process and its namespaces, inside its cgroup. It is pid 1 of its own pid \
                      namespace: when it ends, the kernel kills all the others. `run` does this as soon as there is \
                      the cgroup, and connects the namespace while it mounts; before it starts anything, that is done.",
                see: "namespaces(7), clone(2), pid_namespaces(7)",
                shell: payload::begin(around, netns),
                look: "lsns".to_owned(),
            },
            Self::MakeMountsPrivate => Lesson {
                title: "keep mounts from spreading to the host".to_owned(),
                why: "A new mount namespace is a copy whose mounts still propagate to the original: without this, \
                      the container's mounts would appear on the host.",
                see: "mount_namespaces(7), SHARED SUBTREES",
                shell: "mount --make-rprivate /".to_owned(),
                look: "findmnt -o TARGET,PROPAGATION".to_owned(),
            },
            Self::MountOverlay { lowers, upper, work, merged } => Lesson {
                title: format!("mount the overlay of {} layers at {}", lowers.len(), merged.display()),
                why: "The layers are shared by all containers and never change; what is written lands in upper. It is \
                      mounted in here so that a crash leaves no mount on the host. `volatile` skips syncs: the data \
                      that matters is on a volume. `nodev`: a device node that an image brings opens nothing.",
                see: "https://docs.kernel.org/filesystems/overlayfs.html",
                shell: format!(
                    "chmod --reference={top} {upper} && chown --reference={top} {upper}\n\
                     rm -rf {work}/work\n\
                     mount -t overlay overlay -o nodev,volatile,lowerdir={},upperdir={upper},workdir={work} {}",
                    lowers.iter().map(|l| path(l)).collect::<Vec<_>>().join(":"),
                    path(merged),
                    top = lowers.first().map_or(String::new(), |top| path(top)),
                    upper = path(upper),
                    work = path(work),
                ),
                look: format!("ls {}", path(merged)),
            },
            Self::Bind { root, source, target, read_only, place, id_map } => Lesson {
                title: format!(
                    "bind {} to {}{}{}",
                    source.display(),
                    target.display(),
                    if *read_only { ", read-only" } else { "" },
                    id_map.map_or(String::new(), |map| format!(
                        ", uid {} of the disk as {}",
                        map.disk.uid, map.shown.uid
                    )),
                ),
                why: match id_map {
                    None => {
                        "A bind mount shows a piece of the host's tree inside the container. Its place is looked up as if \
                         the image were the root, so a symlink in the image can't make it cover something of the host."
                    }
                    Some(_) => {
                        "A volume knows only numbers, `postgres` is another one in each image, and a server refuses data \
                         that are not its user's. The mount exchanges the two, so that nothing changes on disk, and what \
                         the server makes there is the owner's as well. A file system that has no such mounts shows its \
                         own numbers; pid 1 then gives the data to the server's user, and says so."
                    }
                },
                see: match id_map {
                    None => "mount(8), openat2(2)",
                    Some(_) => "mount_setattr(2), ID-mapped mounts; mount(8), X-mount.idmap",
                },
                shell: format!(
                    "there={root}$(chroot {root} realpath -m {})\n{}\nmount --rbind {}{}{} \"$there\"",
                    path(target),
                    match place {
                        BindPlace::Directory => "mkdir -p \"$there\"",
                        BindPlace::File => "mkdir -p \"${there%/*}\" && touch \"$there\"",
                    },
                    if *read_only { "-o ro " } else { "" },
                    id_map.map_or(String::new(), |map| format!("-o {} ", map.option())),
                    path(source),
                    root = path(root),
                ),
                look: format!("findmnt {}", path(target)),
            },
            Self::OpenUpstream { node, top, rest } => Lesson {
                title: format!("open the data of {node}, to clone them"),
                why: "A file system that shares blocks between files (XFS, Btrfs) clones a data directory in the time that \
                      it takes to list it. Where it can, and no tablespace is in the way, the standby's data are such \
                      clones, made between pg_backup_start and pg_backup_stop; everywhere else pg_basebackup copies \
                      them, and the node's log says why. The tree is read-only, has no way out of it, and is closed \
                      before the server starts. No link on the way to it is followed: the other node may have made it.",
                see: "ioctl_ficlone(2), PostgreSQL manual, 26.3.3 Making a Base Backup Using the Low Level API",
                shell: format!("exec 9<{}", path(&top.join(rest))),
                look: format!("stat -f {}", path(top)),
            },
            Self::PivotRoot { root } => Lesson {
                title: format!("make {} the root", root.display()),
                why: "chroot changes where one process looks things up and can be left again; pivot_root swaps the \
                      root of the whole mount namespace, and the old one is detached: there is no way back to it.",
                see: "pivot_root(2)",
                shell: format!(
                    "cd {}\nmkdir .old\npivot_root . .old\ncd / && export PATH={DEFAULT_PATH}",
                    path(root)
                ),
                look: "ls /".to_owned(),
            },
            Self::MountProc => Lesson {
                title: "mount /proc".to_owned(),
                why: "/proc shows the processes of the pid namespace of whoever mounted it. The host's would show, and \
                      let one signal by number, strangers.",
                see: "proc(5)",
                shell: "mkdir -p /proc\n\
                        mount -t proc -o nosuid,nodev,noexec proc /proc\n\
                        umount -l /.old && rmdir /.old # the old root; umount(8) reads /proc/self/mountinfo"
                    .to_owned(),
                look: "ps -e".to_owned(),
            },
            Self::MountDev => Lesson {
                title: "make a /dev of six devices".to_owned(),
                why: "The host's /dev holds its disks. Six harmless devices are all that programs expect, and a devpts \
                      of its own, so that a terminal opened inside has a name inside.",
                see: "mknod(2), devpts: https://docs.kernel.org/filesystems/devpts.html",
                shell: shell_dev(),
                look: "ls -l /dev".to_owned(),
            },
            Self::MountShm { size } => Lesson {
                title: format!("mount /dev/shm of {}", crate::spec::quantity::human_bytes(*size)),
                why: "Postgres puts the memory of parallel queries here. In the 64 MB that other tools give, a parallel \
                      hash join fails with `could not resize shared memory segment`. It counts against the memory limit.",
                see: "shm_overview(7), tmpfs(5)",
                shell: format!(
                    "mkdir -p /dev/shm\nmount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size={size} shm /dev/shm"
                ),
                look: "df -h /dev/shm".to_owned(),
            },
            Self::MountSys => Lesson {
                title: "mount /sys, read-only".to_owned(),
                why: "/sys shows the network devices of the namespace it is mounted in. Writable, it would let root in \
                      the container turn knobs of the whole machine.",
                see: "sysfs(5)",
                shell: "mkdir -p /sys\nmount -t sysfs -o ro,nosuid,nodev,noexec sysfs /sys".to_owned(),
                look: "ls /sys/class/net".to_owned(),
            },
            Self::MaskPaths { paths } => Lesson {
                title: format!("hide {} paths of /proc and /sys", paths.len()),
                why: "Some files of the kernel tell about the host or reach its hardware. An empty read-only directory, \
                      or /dev/null, lies over each.",
                see: "OCI runtime specification, config-linux.md, Masked Paths",
                shell: format!(
                    "for p in {}; do\n  if [ -d $p ]; then mount -t tmpfs -o ro,nosuid,nodev,noexec tmpfs $p; elif [ -e $p ]; then mount --bind /dev/null $p; fi\ndone",
                    shown(paths)
                ),
                look: "findmnt".to_owned(),
            },
            Self::ProtectPaths { paths } => Lesson {
                title: format!("make {} paths of /proc read-only", paths.len()),
                why: "/proc/sys holds settings of the whole machine, not of the container. /proc itself stays writable: \
                      Postgres lowers the out-of-memory score of its processes there.",
                see: "OCI runtime specification, config-linux.md, Readonly Paths",
                shell: format!(
                    "for p in {}; do\n  [ -e $p ] || continue\n  mount --bind $p $p\n  mount -o remount,bind,ro $p\ndone",
                    shown(paths)
                ),
                look: "findmnt -O ro".to_owned(),
            },
            Self::SetHostname { name } => Lesson {
                title: format!("set the host name {name}"),
                why: "The uts namespace has a host name of its own; prompts, logs and the lab's /etc/hosts use it.",
                see: "uts_namespaces(7)",
                shell: format!("hostname {name}"),
                look: "hostname".to_owned(),
            },
            Self::DropPrivileges { keep } => Lesson {
                title: format!("keep {} capabilities and filter system calls", keep.len()),
                why: "Root inside is root outside: what it may do is a matter of capabilities. Those that reach beyond \
                      the container are taken from the bounding set, from which no exec can get them back, and the \
                      seccomp filter refuses system calls that make namespaces, mount, or load kernel code.",
                see: "capabilities(7), seccomp(2)",
                shell: payload::limited(around.init, keep),
                look: "grep -E 'Cap|Seccomp' /proc/self/status".to_owned(),
            },
            Self::FillDataDirectory => payload::fill(around.init),
            Self::StartInit { command, user } => Lesson {
                title: format!("start {} as {user}", command.first().map_or("", |c| c.as_str())),
                why: "pid 1 stays pgbox's own small init. Postgres as pid 1 adopts orphans, and takes one that exits \
                      with code 2 for a crashed backend: every session is dropped. SIGTERM, which others send to stop, \
                      is Postgres' smart shutdown and waits for every client; this init sends SIGINT.",
                see: "PostgreSQL manual, 19.5 Shutting Down the Server",
                shell: payload::start(around.init, command),
                look: "ps -ef".to_owned(),
            },
        }
    }
}

impl InnerStep {
    /// What one would type to take all of them back: when pid 1 ends, the kernel does the rest.
    pub fn way_back(&self, around: &Around) -> String {
        match self {
            Self::EnterNamespaces { netns } => payload::end(around, netns),
            _ => String::new(),
        }
    }
}

fn shell_dev() -> String {
    let mut lines = vec![
        "mkdir -p /dev".to_owned(),
        "mount -t tmpfs -o nosuid,noexec,mode=755,size=64k tmpfs /dev".to_owned(),
    ];
    lines.extend(DEVICES.map(|(name, major, minor)| format!("mknod -m 666 /dev/{name} c {major} {minor}")));
    lines.extend(DEV_LINKS.map(|(name, target)| format!("ln -s {target} /dev/{name}")));
    lines.push("mkdir /dev/pts".to_owned());
    lines.push("mount -t devpts -o nosuid,noexec,ptmxmode=0666,mode=0620,gid=5 devpts /dev/pts".to_owned());
    lines.join("\n")
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| path(p)).collect::<Vec<_>>().join(" ")
}
