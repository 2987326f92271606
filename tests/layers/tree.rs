//! A directory tree as text: everything that an image can say about a file, one line each.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Every path below `root`, sorted: type, mode, owner, time, name, then content, target or number, then extended
/// attributes. `= name` marks a hard link to a name further up.
pub fn show(root: &Path) -> String {
    let mut lines = Vec::new();
    walk(root, "", &mut HashMap::new(), &mut lines);
    lines.join("\n")
}

fn walk(root: &Path, name: &str, seen: &mut HashMap<(u64, u64), String>, lines: &mut Vec<String>) {
    let path = root.join(name);
    let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    let kind = meta.file_type();
    let letter = match () {
        _ if kind.is_dir() => 'd',
        _ if kind.is_symlink() => 'l',
        _ if kind.is_fifo() => 'p',
        _ if kind.is_char_device() => 'c',
        _ if kind.is_block_device() => 'b',
        _ => 'f',
    };
    let mut time = meta.mtime().to_string();
    if meta.mtime_nsec() != 0 {
        time += &format!("+{}ns", meta.mtime_nsec());
    }
    let shown = if name.is_empty() { "." } else { name };
    let mode = meta.mode() & 0o7777;
    let mut line = format!("{letter} {mode:o} {}:{} @{time} {shown}", meta.uid(), meta.gid());
    match letter {
        'l' => {
            line += &format!(" -> {}", fs::read_link(&path).unwrap().as_os_str().as_bytes().escape_ascii())
        }
        'c' | 'b' => {
            let rdev = meta.rdev();
            line += &format!(" {},{}", nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
        }
        'f' => line += &content(&path, &meta),
        _ => {}
    }
    if letter != 'd' && meta.nlink() > 1 {
        match seen.get(&(meta.dev(), meta.ino())) {
            Some(first) => line += &format!(" = {first}"),
            None => drop(seen.insert((meta.dev(), meta.ino()), name.to_string())),
        }
    }
    line += &xattrs(&path, kind.is_symlink() || letter == 'p');
    lines.push(line);
    if letter == 'd' {
        let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for child in names {
            match child.to_str() {
                Some(child) if name.is_empty() => walk(root, child, seen, lines),
                Some(child) => walk(root, &format!("{name}/{child}"), seen, lines),
                None => lines.push(format!("? {name}/{}", child.as_bytes().escape_ascii())),
            }
        }
    }
}

fn content(path: &Path, meta: &fs::Metadata) -> String {
    let bytes = fs::read(path).unwrap();
    match bytes.len() {
        0 => String::new(),
        1..=40 => format!(" {:?}", String::from_utf8_lossy(&bytes)),
        len => format!(
            " {len} bytes {}{}",
            &super::layout::sha256(&bytes)[7..15],
            if meta.blocks() * 512 < meta.size() { " sparse" } else { "" }
        ),
    }
}

fn xattrs(path: &Path, by_tool: bool) -> String {
    if by_tool {
        return String::new();
    }
    let Ok(file) = nix::fcntl::open(
        path,
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_NONBLOCK,
        nix::sys::stat::Mode::empty(),
    ) else {
        return String::new();
    };
    let mut all = String::new();
    let mut names = pgbox::sys::fs::flistxattr(&file).unwrap();
    names.sort();
    for name in names {
        let value = pgbox::sys::fs::fgetxattr(&file, &name).unwrap().unwrap();
        all += &format!(" {{{}={}}}", name.escape_ascii(), value.escape_ascii());
    }
    all
}
