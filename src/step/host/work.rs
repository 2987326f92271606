//! What applying and undoing a host step takes, where that is more than one call of `sys`. Each undo looks whose an
//! object is before it removes it, and finds an absent one in order.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};

use super::BUNDLE_DIRS;
use crate::{
    postgres::{password, standby},
    sql::{self, Login},
    sys::{self, cgroup, link, netns, overlay, sysctl},
};

pub fn create_bundle(dir: &Path, files: &[(String, String)]) -> Result<()> {
    for name in BUNDLE_DIRS {
        let path = dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("mkdir {}", path.display()))?;
    }
    for (name, content) in files {
        let path = dir.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

pub fn remove_bundle(dir: &Path, files: &[(String, String)]) -> Result<()> {
    for name in BUNDLE_DIRS {
        let path = dir.join(name);
        let removed = match name {
            "work" => overlay::remove_work(&path),
            // `merged` is empty out here: what is seen in it is mounted inside.
            _ => fs::remove_dir(&path).or_else(|_| sys::tree::remove_dir_all(&path)),
        };
        absent_is_ok(removed).with_context(|| format!("remove {}/{name}", dir.display()))?;
    }
    for (name, _) in files {
        absent_is_ok(fs::remove_file(dir.join(name)))
            .with_context(|| format!("remove {}/{name}", dir.display()))?;
    }
    Ok(())
}

pub fn enable_forwarding(bridge: &str) -> Result<()> {
    sysctl::set("net.ipv4.ip_forward", "1")?;
    sysctl::set(&sysctl::ipv4_conf(bridge, "route_localnet"), "1")?;
    Ok(())
}

/// The bridge goes with its last node.
pub fn remove_unused_bridge(name: &str, alias: &str, mac: [u8; 6], own_netns: &str) -> Result<()> {
    // In this order: while the kernel takes a namespace apart, whoever asks for a link waits for it.
    if is_in_use(own_netns)? {
        return Ok(());
    }
    match link::get(name)?.is_some_and(|l| l.is_bridge_of(alias, mac)) {
        true => link::delete(name).map(drop),
        false => Ok(()),
    }
}

/// Whether another node of the lab has a network namespace. The bridge's ports would not tell: that of a node that has
/// gone is there for some milliseconds more, while the kernel takes its namespace apart.
pub fn is_in_use(own_netns: &str) -> Result<bool> {
    let lab = own_netns.trim_end_matches(|c| c != '.');
    Ok(netns::list()?.iter().any(|name| name.starts_with(lab) && name != own_netns))
}

/// Deletes a link unless it carries somebody else's mark.
pub fn delete_own_link(name: &str, alias: &str) -> Result<()> {
    match link::get(name)? {
        Some(link) if link.alias.as_deref().is_none_or(|a| a == alias) => link::delete(name).map(drop),
        _ => Ok(()),
    }
}

/// Replaces or removes the line of `name`, and whatever had its address before, keeping the file's inode.
pub fn edit_hosts(file: &Path, name: &str, address: Option<Ipv4Addr>) -> Result<()> {
    let shown = file.display();
    let mut open = fs::File::options();
    let open = open.create(address.is_some()).truncate(false).read(true).write(true);
    let file = match open.open(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.with_context(|| format!("open {shown}"))?,
    };
    let mut old = sys::fs::read_open(&file).with_context(|| format!("read {shown}"))?;
    if old.is_empty() {
        old.push_str(HOSTS_HEAD);
    }
    let own = address.map(|address| address.to_string());
    let is_other = |line: &&str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [address, other, ..] => other != name && own.as_deref() != Some(address),
        _ => true,
    };
    let mut new: String = old.lines().filter(is_other).flat_map(|line| [line, "\n"]).collect();
    if let Some(address) = address {
        new.push_str(&format!("{address} {name}\n"));
    }
    // The text first and the end after it: a reader in between finds no empty file, and no block is freed.
    let write = || -> io::Result<()> {
        file.write_all_at(new.as_bytes(), 0)?;
        match new.len() < old.len() {
            true => file.set_len(new.len() as u64),
            false => Ok(()),
        }
    };
    write().with_context(|| format!("write {shown}"))
}

/// What the file of a lab begins with.
pub const HOSTS_HEAD: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

pub fn set_limits(path: &Path, limits: &cgroup::Limits) -> Result<()> {
    let hierarchy = cgroup::detect()?;
    let writes = cgroup::writes(&hierarchy, limits);
    // What this kernel has no file for (swap accounting) was said when the node was planned.
    cgroup::Cgroup::new(&hierarchy, path)?.apply(&writes).map(drop)
}

pub fn create_role(server: &Login, secret: &Path) -> Result<()> {
    let password = fs::read_to_string(secret).with_context(|| format!("read {}", secret.display()))?;
    let sql = standby::create_role(&password::verifier(password.trim_end()));
    // A right to a function is one of its database, and this is where the standbys' sessions are.
    let server = Login { database: standby::DATABASE.to_owned(), ..server.clone() };
    server.ask(sql::PATIENCE, move |client| client.batch_execute(&sql))
}

pub fn create_slot(server: &Login, slot: &str) -> Result<()> {
    let sql = standby::create_slot(slot);
    server.ask(sql::PATIENCE, move |client| client.batch_execute(&sql))
}

/// A server that is down, or does not answer, keeps the slot. Its next start drops those that are nobody's, and so does
/// every node that comes or goes.
pub fn drop_slot(server: &Login, slot: &str) -> Result<()> {
    // Without the lab's bridge the address is that of nobody we know, somewhere behind the host's router.
    if !link::is_on_link(*server.address.ip())? {
        return Ok(());
    }
    if TcpStream::connect_timeout(&server.address.into(), Duration::from_secs(1)).is_err() {
        return Ok(());
    }
    let (release, drop) = (standby::release_slot(slot), standby::drop_slot(slot));
    let asked = server.try_ask(sql::PATIENCE, move |client| {
        client.batch_execute(&release)?;
        // The process that had it ends a moment later.
        for _ in 0..50 {
            if !client.simple_query(&drop)?.iter().any(|m| matches!(m, postgres::SimpleQueryMessage::Row(_)))
            {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            break;
        }
        Ok(())
    });
    match asked {
        // What it says itself is an error, unless that is only that it starts or stops at this moment.
        Ok(Err(error)) if error.as_db_error().is_some_and(|said| !is_passing(said.code())) => {
            anyhow::bail!("{}", sql::reason(&error))
        }
        _ => Ok(()),
    }
}

/// Class 57P: the server goes down, or is not yet up (PostgreSQL manual, appendix A).
fn is_passing(code: &postgres::error::SqlState) -> bool {
    code.code().starts_with("57P")
}

pub fn remove_cgroup(path: &Path) -> Result<()> {
    let group = cgroup::Cgroup::new(&cgroup::detect()?, path)?;
    if group.populated()? {
        // pid 1 is gone or never was one: who is left belongs to nobody.
        group.kill()?;
    }
    group.remove()?;
    match path.components().next() {
        Some(top) if path.components().count() > 1 => group.prune(top),
        _ => Ok(()),
    }
}

fn absent_is_ok(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_come_and_go_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        edit_hosts(&file, "a", Some(Ipv4Addr::new(10, 0, 0, 2))).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&file).unwrap());
        edit_hosts(&file, "b", Some(Ipv4Addr::new(10, 0, 0, 3))).unwrap();
        edit_hosts(&file, "a", Some(Ipv4Addr::new(10, 0, 0, 4))).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, format!("{HOSTS_HEAD}10.0.0.3 b\n10.0.0.4 a\n"));
        edit_hosts(&file, "b", None).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{HOSTS_HEAD}10.0.0.4 a\n"));
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata(&file).unwrap()), inode);
    }
}
