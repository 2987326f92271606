//! Ways out: errors that end with what a user can do, and a table of hints for failed steps, keyed by the
//! kind of step and the errno.

use std::{fmt, path::Path};

use nix::errno::Errno;

use crate::{spec::Name, step::HostStep, sys::cgroup::Missing};

/// An error with a way out.
#[derive(Debug)]
pub struct Advised {
    pub message: String,
    pub hint: Option<String>,
    /// Exit code for the command line.
    pub code: i32,
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Advised {}

/// An error whose hint is printed below it.
pub fn advise(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Advised { message: message.into(), hint: Some(hint.into()), code: 1 })
}

/// What there is to say of a takeover that was begun and not finished, and what to type.
pub fn unfinished(old: &Name, new: &Name) -> (String, String) {
    let what = format!("`{new}` was about to take the place of `{old}`, which was not finished");
    (what, format!("`pgbox failover {new}`"))
}

/// How a primary gets back the superuser's password that pgbox knows, and with it its standbys: over its Unix socket nobody is
/// asked for one.
pub fn give_back(primary: &Name, secret: &Path) -> String {
    let secret = secret.display();
    format!("`echo \"ALTER ROLE CURRENT_USER PASSWORD '$(cat {secret})'\" | pgbox psql {primary}`")
}

/// An error and its way out on one line.
pub fn with_way_out(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Advised>().and_then(|advised| advised.hint.as_ref()) {
        Some(hint) => format!("{error:#}; {hint}"),
        None => format!("{error:#}"),
    }
}

/// What can't be meant, whatever the host is like: wrong usage, as what the parser of the command line refuses.
pub fn misuse(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    as_misuse(advise(message, hint))
}

/// Calls an error one of usage. What a system call says is the host's matter, as a file that is not there.
pub fn as_misuse(error: anyhow::Error) -> anyhow::Error {
    if errno_of(&error).is_some() {
        return error;
    }
    let hint = error.downcast_ref::<Advised>().and_then(|advised| advised.hint.clone());
    anyhow::Error::new(Advised { message: format!("{error:#}"), hint, code: 2 })
}

/// Subcommands that hints name.
const NAMED: [&str; 37] = [
    "crash",
    "down",
    "drive",
    "endpoint",
    "env",
    "exec",
    "failover",
    "freeze",
    "guard",
    "image",
    "lag",
    "limit",
    "logs",
    "net",
    "promote",
    "ps",
    "psql",
    "reinit",
    "rejoin",
    "replica",
    "restart",
    "rm",
    "run",
    "set",
    "slots",
    "start",
    "status",
    "stop",
    "switchover",
    "sync",
    "thaw",
    "up",
    "uri",
    "verify",
    "volume",
    "wait",
    "with",
];

/// Puts the user's own `--root` and `--lab` into the commands that a text shows, which are written for the
/// defaults: copied as they are they would otherwise mean another node.
pub fn with_options(text: &str, options: &str) -> String {
    const WORD: &str = "pgbox ";
    let mut parts = text.split(WORD);
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        let begins = !whole.ends_with(|c: char| c.is_alphanumeric() || "-_./".contains(c));
        let subcommand = rest.split(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default();
        let known = begins && NAMED.contains(&subcommand);
        whole += WORD.trim_end();
        whole += if known { options } else { "" };
        whole += " ";
        whole += rest;
    }
    whole
}

/// The errno at the root of an error, if a system call failed.
pub fn errno_of(error: &anyhow::Error) -> Option<Errno> {
    error.chain().find_map(|cause| {
        let from_io = || cause.downcast_ref::<std::io::Error>()?.raw_os_error().map(Errno::from_raw);
        let from_rustix =
            || cause.downcast_ref::<rustix::io::Errno>().map(|e| Errno::from_raw(e.raw_os_error()));
        cause.downcast_ref::<Errno>().copied().or_else(from_io).or_else(from_rustix)
    })
}

/// A chain of errors on one line.
pub fn cause_text(error: &anyhow::Error) -> String {
    let mut text = format!("{error:#}");
    if let Some(errno) = errno_of(error) {
        let name = format!("{errno:?}");
        if !text.contains(&name) {
            text.push_str(&format!(" ({name})"));
        }
    }
    text
}

/// What to try when a host step failed.
pub fn for_host_step(step: &HostStep, error: &anyhow::Error) -> Option<String> {
    let text = match (step, errno_of(error)?) {
        (_, Errno::EPERM | Errno::EACCES) => {
            "pgbox needs root with all its capabilities; inside another container some are missing"
        }
        (_, Errno::ENOSPC) => DISK_FULL,
        (HostStep::CreateCgroup { .. } | HostStep::SetLimits { .. }, Errno::EROFS) => {
            "/sys/fs/cgroup is mounted read-only; are you inside a container?"
        }
        (HostStep::CreateCgroup { .. }, Errno::EBUSY) => {
            "a process sits in a parent cgroup, which forbids limits below it; move it, or start pgbox from another session"
        }
        (_, Errno::EROFS) => READ_ONLY,
        (HostStep::CreateNetns { .. } | HostStep::CreateVeth { .. }, Errno::EEXIST) => {
            "something of that name was not made by this node; rename or remove it, or choose another node name"
        }
        (HostStep::CreateNat { .. } | HostStep::PublishPorts { .. }, Errno::EEXIST) => {
            "a table of that name is somebody else's: its comment is another one; see `nft list tables`, and delete or rename it"
        }
        (HostStep::CreateBridge { .. } | HostStep::CreateVeth { .. }, Errno::EOPNOTSUPP) => {
            "this kernel has no bridge or veth device; load them: modprobe bridge veth"
        }
        (HostStep::CreateNat { .. }, Errno::ENOENT | Errno::EOPNOTSUPP) => {
            "this kernel lacks a part of nf_tables NAT; load it: modprobe nft_chain_nat nft_fib_ipv4 nft_masq"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

const DISK_FULL: &str = "the disk is full; `df -h` and `pgbox image ls` show where the space is";

const NO_CONTROLLER: &str = "a node's limits and counters are there: `mount -t cgroup2 cgroup2 /sys/fs/cgroup` where nothing is \
     mounted; if /proc/cgroups shows it disabled, start the kernel with cgroup_enable=memory; in another container, that one has to be given them";

const READ_ONLY: &str = "that is mounted read-only: a volume with `:ro`, if it lies in one; else choose another place with --root";

/// What to try after an error that says nothing of it itself.
pub fn for_error(error: &anyhow::Error, is_root: bool) -> Option<&'static str> {
    if error.chain().any(|cause| cause.is::<Missing>()) {
        return Some(NO_CONTROLLER);
    }
    match errno_of(error)? {
        Errno::ENOSPC => Some(DISK_FULL),
        Errno::EROFS => Some(READ_ONLY),
        Errno::EACCES | Errno::EPERM if !is_root => {
            Some("pgbox keeps its state for root; try again with sudo")
        }
        _ => None,
    }
}

/// What to try when a line of the node's log says what is missing.
pub fn for_log_line(line: &str) -> Option<String> {
    let table = [
        ("could not resize shared memory segment", SHM_FULL),
        ("No space left on device", DISK_FULL),
        ("Cannot fork", PIDS),
        ("could not fork", PIDS),
        ("popen failure", PIDS),
    ];
    table.iter().find(|(mark, _)| line.contains(mark)).map(|(_, hint)| (*hint).to_owned())
}

const SHM_FULL: &str = "/dev/shm is full: give more with --shm-size";
const PIDS: &str = "it may have no more processes: give more with --pids, or leave that out";

const NO_HUGE_PAGES: &str =
    "too few huge pages, or too little memory: `grep Huge /proc/meminfo`; huge_pages=try does without";

const LOCALES: &str = "those that it has: pgbox run --rm l IMAGE -- locale -a";

const NO_SETTING: &str =
    "no setting of the server has that name; see what was given with -c, or as settings in the lab file";

/// What to try when an inner step failed, from its text: the error comes from another process.
pub fn for_inner_step(error: &str) -> Option<String> {
    let table = [
        ("could not resize shared memory segment", SHM_FULL),
        ("could not map anonymous shared memory", NO_HUGE_PAGES),
        ("unrecognized configuration parameter", NO_SETTING),
        ("No space left", DISK_FULL),
        ("POSTGRES_INITDB_ARGS names a locale", LOCALES),
        (
            "Read-only file system",
            "that is mounted read-only in the node: a volume with `:ro`, if it lies in one",
        ),
        ("fork: EAGAIN", PIDS),
        (
            "overlay",
            "the root directory must be on a file system that can hold an overlay's upper (ext4, xfs, btrfs, tmpfs); choose another with --root",
        ),
        (
            "Operation not permitted",
            "pgbox needs root with all its capabilities; inside another container some are missing",
        ),
    ];
    table.iter().find(|(mark, _)| error.contains(mark)).map(|(_, hint)| (*hint).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn commands_repeat_the_users_options_and_prose_does_not() {
        let text = "`pgbox rm n` or: pgbox psql n; what pgbox has, /x/pgbox run stays";
        let want = "`pgbox --lab l rm n` or: pgbox --lab l psql n; what pgbox has, /x/pgbox run stays";
        assert_eq!(with_options(text, " --lab l"), want);
        assert_eq!(with_options(text, ""), text);
    }

    #[test]
    fn an_errno_is_found_below_its_context() {
        let error = Err::<(), _>(Errno::EROFS).context("mkdir").context("create").unwrap_err();
        assert_eq!(errno_of(&error), Some(Errno::EROFS));
        let error = anyhow::Error::new(std::io::Error::from_raw_os_error(28)).context("write");
        assert_eq!(errno_of(&error), Some(Errno::ENOSPC));
        assert_eq!(errno_of(&anyhow::anyhow!("x")), None);
    }
}
