//! Kernel parameters under /proc/sys, sysctl(8) and proc(5).
//!
//! The rule that surprises people: interface names may hold dots (`eth0.100`), so a dot is not always a
//! separator. As in sysctl.d(5): when the first separator of a name is a slash, the name is the path
//! as it stands; when it is a dot, dots become slashes and slashes become dots. And `net.*` shows the
//! network namespace of the *thread* that opens the file, whatever /proc is mounted.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

const ROOT: &str = "/proc/sys";

/// The value of `name` (`net.ipv4.ip_forward`), without the newline.
///
/// # Errors
/// Name the file, with `ENOENT` when this kernel has no such parameter.
pub fn get(name: &str) -> Result<String> {
    read(&path(name)?)
}

/// Sets `name` to `value` and reads it back. Returns whether that changed anything.
///
/// # Errors
/// Name the file: `EROFS` or `EACCES` when /proc/sys can't be written, `EINVAL` when the kernel refuses
/// the value, and an error without errno when it took another value than the one that was written.
pub fn set(name: &str, value: &str) -> Result<bool> {
    let path = path(name)?;
    // Read first: on a host where /proc/sys is read-only but already right there is nothing to do.
    if same(&read(&path)?, value) {
        return Ok(false);
    }
    std::fs::write(&path, value)
        .map_err(errno)
        .with_context(|| format!("write {value:?} to {}", path.display()))?;
    let taken = read(&path)?;
    if !same(&taken, value) {
        bail!("{} is {taken:?} after {value:?} was written to it", path.display());
    }
    Ok(true)
}

/// The name of an interface's own IPv4 parameter, in the form that is safe for dots in `interface`.
pub fn ipv4_conf(interface: &str, parameter: &str) -> String {
    format!("net/ipv4/conf/{interface}/{parameter}")
}

/// The file of the parameter `name`.
pub fn path(name: &str) -> Result<PathBuf> {
    let relative: String = match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'.' => name.chars().map(swapped).collect(),
        _ => name.to_owned(),
    };
    let plain = |part| matches!(part, Component::Normal(_));
    if relative.is_empty() || !Path::new(&relative).components().all(plain) {
        bail!("{name:?} can't be the name of a kernel parameter");
    }
    Ok(Path::new(ROOT).join(relative))
}

fn swapped(character: char) -> char {
    match character {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

fn read(path: &Path) -> Result<String> {
    super::fs::read_text_at_once(path)
        .map(|text| text.trim_end_matches('\n').to_owned())
        .map_err(errno)
        .with_context(|| format!("read {}", path.display()))
}

/// `ip_local_port_range` is written with a space and read back with a tab.
fn same(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}

fn errno(error: std::io::Error) -> Errno {
    match (error.raw_os_error(), error.kind()) {
        (Some(code), _) => Errno::from_raw(code),
        (None, ErrorKind::InvalidData) => Errno::EILSEQ, // not UTF-8
        (None, _) => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_slashes_follow_sysctl_d() {
        let file = |name| path(name).unwrap().display().to_string();
        assert_eq!(file("net.ipv4.ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(file("net/ipv4/ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        let vlan = "/proc/sys/net/ipv4/conf/eth0.100/route_localnet";
        assert_eq!(file("net.ipv4.conf.eth0/100.route_localnet"), vlan);
        assert_eq!(file(&ipv4_conf("eth0.100", "route_localnet")), vlan);
    }

    #[test]
    fn names_stay_under_proc_sys() {
        for bad in ["", "/etc/passwd", "net/../../etc/passwd", "..", "net/./../x"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_unknown_parameter_names_its_file() {
        let error = get("net.ipv4.no_such_parameter").unwrap_err();
        assert!(format!("{error:#}").contains("/proc/sys/net/ipv4/no_such_parameter"));
        assert_eq!(error.downcast_ref::<Errno>(), Some(&Errno::ENOENT));
    }
}
