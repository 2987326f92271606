//! A directory becomes a layer: pax tar, digest and compression in one pass.
//!
//! Formats: pax in POSIX.1-2008 `pax(1)`, image-spec `layer.md`; the input is an overlayfs upper
//! directory (or a plain one), so a deletion arrives as overlayfs writes it (kernel
//! `Documentation/filesystems/overlayfs.rst`) and leaves as the image-spec writes it:
//!
//! | upper directory | layer |
//! |---|---|
//! | character device 0:0 `x` | empty file `.wh.x` |
//! | directory with xattr `trusted.overlay.opaque=y` | an entry `.wh..wh..opq` in it |
//!
//! The rule that surprises people: a diffID is the digest of the tar's *bytes*, so everything a tar may
//! choose has to be fixed. Entries are sorted by name, owners are numbers, fields that hold no
//! information are zero, and mtimes later than a given instant become that instant
//! (reproducible-builds.org, `SOURCE_DATE_EPOCH`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{Digest, Sha256Digest};
use rustix::fs::{lgetxattr, llistxattr, major, minor};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// What [`write_layer`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the uncompressed tar: the layer's diffID.
    pub diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub size: u64,
}

/// Writes the tree under `dir` as one uncompressed layer tar, `dir` itself included as `./`.
///
/// With `clamp`, no entry is younger than that instant. Memory use depends on the number of hard links
/// and the longest directory, not on the size of the files. Nothing may write to the tree meanwhile.
///
/// # Errors
/// A file that changed while it was read; an overlay upper that was mounted with `redirect_dir` or
/// `metacopy` (its files are elsewhere, the layer would lack them); a name that the image-spec reserves.
pub fn write_layer(dir: &Path, clamp: Option<SystemTime>, out: impl Write) -> Result<Packed> {
    pack(dir, None, clamp, out)
}

/// As [`write_layer`], for an upper directory over the directories `lowers`.
///
/// An opaque marker that hides nothing is left out. overlayfs makes some opaque directories only to save
/// itself a look-up (a directory renamed into place, as dpkg does it), and which ones differs between
/// kernels; a diffID that depended on the builder's kernel would not be reproducible.
///
/// # Errors
/// Those of [`write_layer`].
pub fn write_diff(
    upper: &Path,
    lowers: &[PathBuf],
    clamp: Option<SystemTime>,
    out: impl Write,
) -> Result<Packed> {
    pack(upper, Some(lowers), clamp, out)
}

fn pack(
    dir: &Path,
    lowers: Option<&[PathBuf]>,
    clamp: Option<SystemTime>,
    out: impl Write,
) -> Result<Packed> {
    let mut layer = Layer {
        lowers,
        out: Hashing::new(out),
        clamp: clamp.map(since_epoch),
        links: HashMap::new(),
        buffer: vec![0; 128 * 1024],
    };
    layer.tree(dir, b"./")?;
    layer.out.write_all(&[0; 2 * BLOCK]).context("write the end of the layer")?;
    let (_, diff_id, size) = layer.out.finish();
    Ok(Packed { diff_id, size })
}

const BLOCK: usize = 512;
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// xattrs that belong to the file system or to the host's security module, not to the file.
const NOT_OF_THE_FILE: [&[u8]; 6] = [
    b"trusted.overlay.",
    b"user.overlay.",
    b"security.selinux",
    b"security.ima",
    b"security.evm",
    b"system.nfs4_acl",
];

/// Seconds since the epoch and nanoseconds, ordered as time is; the seconds may be negative.
type Time = (i64, i64);

struct Layer<'a, W> {
    /// What the tree lies over, where that is known.
    lowers: Option<&'a [PathBuf]>,
    out: Hashing<W>,
    clamp: Option<Time>,
    /// First name of each inode that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl<W: Write> Layer<'_, W> {
    /// The directory `dir`, named `name` in the layer (with its final slash), and all below it.
    fn tree(&mut self, dir: &Path, name: &[u8]) -> Result<()> {
        let meta = dir.symlink_metadata().with_context(|| format!("lstat {}", dir.display()))?;
        let xattrs = xattrs(dir, &mut self.buffer)?;
        self.entry(dir, name, &meta, &xattrs)?;
        // The root's own "./" is no prefix of the names below it: "etc/", as every image has it.
        let prefix = if name == b"./" { b"" } else { name };
        if xattrs.iter().any(|(key, value)| key == OPAQUE && value == b"y") && self.hides(name) {
            self.marker(&[prefix, OPAQUE_MARKER].concat())?;
        }
        for child in sorted_names(dir)? {
            let path = dir.join(OsStr::from_bytes(&child));
            self.child(&path, &child, [prefix, &child].concat())?;
        }
        Ok(())
    }

    /// Whether anything of a lower layer is, or may be, at `name`.
    fn hides(&self, name: &[u8]) -> bool {
        let name = OsStr::from_bytes(name.strip_suffix(b"/").unwrap_or(name));
        self.lowers
            .is_none_or(|lowers| lowers.iter().any(|lower| lower.join(name).symlink_metadata().is_ok()))
    }

    fn child(&mut self, path: &Path, file_name: &[u8], mut name: Vec<u8>) -> Result<()> {
        let meta = path.symlink_metadata().with_context(|| format!("lstat {}", path.display()))?;
        if meta.is_dir() {
            name.push(b'/');
            return self.tree(path, &name);
        }
        if meta.file_type().is_char_device() && meta.rdev() == 0 {
            name.truncate(name.len() - file_name.len());
            return self.marker(&[&name, WHITEOUT_PREFIX, file_name].concat());
        }
        ensure!(
            !file_name.starts_with(WHITEOUT_PREFIX),
            "{}: names that start with .wh. are reserved by the image-spec",
            path.display()
        );
        // tar has no type for a socket, and no process listens behind one in an image.
        if meta.file_type().is_socket() {
            return Ok(());
        }
        let xattrs = xattrs(path, &mut self.buffer)?;
        self.entry(path, &name, &meta, &xattrs)
    }

    /// A whiteout or opaque marker: an empty file whose name says everything.
    fn marker(&mut self, name: &[u8]) -> Result<()> {
        let mut header = blank(EntryType::Regular);
        header.set_mode(0o644);
        self.put(header, &Pax::default(), name, b"")
    }

    fn entry(&mut self, path: &Path, name: &[u8], meta: &Metadata, xattrs: &Xattrs) -> Result<()> {
        let (mut header, mut pax) = self.attributes(meta);
        for (key, value) in xattrs {
            match &key[..] {
                b"trusted.overlay.redirect" | b"trusted.overlay.metacopy" => bail!(
                    "{} has its content in another layer (overlayfs redirect_dir or metacopy)",
                    path.display()
                ),
                key if NOT_OF_THE_FILE.iter().any(|prefix| key.starts_with(prefix)) => {}
                key => pax.record(&[b"SCHILY.xattr.", key].concat(), value),
            }
        }
        if let Some(first) = self.first_name(meta, name) {
            // With the file's attributes: containerd and others set them again from the link's entry.
            header.set_entry_type(EntryType::Link);
            return self.put(header, &pax, name, &first);
        }
        if meta.is_symlink() {
            let target = path.read_link().with_context(|| format!("readlink {}", path.display()))?;
            return self.put(header, &pax, name, target.as_os_str().as_bytes());
        }
        if meta.is_file() {
            header.set_size(pax.fitting(b"size", meta.len(), 0o77_777_777_777));
            self.put(header, &pax, name, b"")?;
            return self.content(path, meta.len()).with_context(|| format!("pack {}", path.display()));
        }
        self.put(header, &pax, name, b"")
    }

    /// The name under which this file is in the layer already; otherwise `name` becomes that name.
    fn first_name(&mut self, meta: &Metadata, name: &[u8]) -> Option<Vec<u8>> {
        if meta.is_dir() || meta.nlink() < 2 {
            return None;
        }
        match self.links.entry((meta.dev(), meta.ino())) {
            Entry::Occupied(first) => Some(first.get().clone()),
            Entry::Vacant(free) => {
                free.insert(name.to_vec());
                None
            }
        }
    }

    /// Type, mode, owner, time and device numbers; what does not fit the header goes to pax.
    fn attributes(&self, meta: &Metadata) -> (Header, Pax) {
        let kind = meta.file_type();
        let mut header = blank(match () {
            () if kind.is_dir() => EntryType::Directory,
            () if kind.is_symlink() => EntryType::Symlink,
            () if kind.is_fifo() => EntryType::Fifo,
            () if kind.is_char_device() => EntryType::Char,
            () if kind.is_block_device() => EntryType::Block,
            () => EntryType::Regular,
        });
        let mut pax = Pax::default();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(pax.fitting(b"uid", u64::from(meta.uid()), 0o7_777_777));
        header.set_gid(pax.fitting(b"gid", u64::from(meta.gid()), 0o7_777_777));
        if kind.is_char_device() || kind.is_block_device() {
            // Linux' 12 and 20 bits always fit the fields' 21.
            let ustar = header.as_ustar_mut().expect("blank() makes a ustar header");
            ustar.set_device_major(major(meta.rdev()));
            ustar.set_device_minor(minor(meta.rdev()));
        }
        let own = (meta.mtime(), meta.mtime_nsec());
        let time = self.clamp.map_or(own, |clamp| own.min(clamp));
        header.set_mtime(pax.time(time));
        (header, pax)
    }

    fn put(&mut self, mut header: Header, pax: &Pax, name: &[u8], link: &[u8]) -> Result<()> {
        let mut pax = pax.clone();
        let ustar = header.as_ustar_mut().expect("blank() makes a ustar header");
        pax.name(b"path", name, &mut ustar.name);
        pax.name(b"linkpath", link, &mut ustar.linkname);
        header.set_cksum();
        self.extended_header(&pax)
            .and_then(|()| self.out.write_all(header.as_bytes()))
            .with_context(|| format!("write {} to the layer", String::from_utf8_lossy(name)))
    }

    fn extended_header(&mut self, pax: &Pax) -> io::Result<()> {
        if pax.0.is_empty() {
            return Ok(());
        }
        let mut header = blank(EntryType::XHeader);
        // A name that no file can have; it is seen only by programs that know no pax.
        header.as_ustar_mut().expect("blank() makes a ustar header").name[..15]
            .copy_from_slice(b"././@PaxHeader/");
        header.set_mode(0o644);
        header.set_size(pax.0.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(&pax.0)?;
        self.pad(pax.0.len() as u64)
    }

    fn content(&mut self, path: &Path, size: u64) -> Result<()> {
        let mut file = File::open(path)?;
        let mut left = size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = file.read(&mut self.buffer[..want])?;
            ensure!(got > 0, "the file shrank while it was read");
            self.out.write_all(&self.buffer[..got])?;
            left -= got as u64;
        }
        ensure!(file.read(&mut [0])? == 0, "the file grew while it was read");
        Ok(self.pad(size)?)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        self.out.write_all(&[0; BLOCK][..(BLOCK - over) % BLOCK])
    }
}

/// A ustar header in which every number is zero.
fn blank(kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(0);
    header.set_device_major(0).expect("a ustar header has device numbers");
    header.set_device_minor(0).expect("a ustar header has device numbers");
    header
}

/// Records of a pax extended header, in the order in which they are added.
#[derive(Clone, Default)]
struct Pax(Vec<u8>);

impl Pax {
    /// Appends `LENGTH KEY=VALUE\n`, where LENGTH counts itself too.
    fn record(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + digits(length) {
            length = rest + digits(length);
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// The value for the header's octal field: `value`, or 0 with a record when it exceeds `most`.
    fn fitting(&mut self, key: &[u8], value: u64, most: u64) -> u64 {
        if value <= most {
            return value;
        }
        self.record(key, value.to_string().as_bytes());
        0
    }

    /// The value for the header's mtime field, which holds whole seconds from 1970 to 2242.
    fn time(&mut self, (seconds, nanos): Time) -> u64 {
        match u64::try_from(seconds) {
            Ok(whole) if nanos == 0 => self.fitting(b"mtime", whole, 0o77_777_777_777),
            whole => {
                self.record(b"mtime", decimal(seconds, nanos).as_bytes());
                whole.unwrap_or(0).min(0o77_777_777_777)
            }
        }
    }

    /// Copies a name into its header field; one that is too long for it gets a record.
    fn name(&mut self, key: &[u8], name: &[u8], field: &mut [u8]) {
        let fits = name.len().min(field.len());
        field[..fits].copy_from_slice(&name[..fits]);
        if fits < name.len() {
            self.record(key, name);
        }
    }
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// A time as pax writes it. (-2 s, 750,000,000 ns), the kernel's form, is -1.25.
fn decimal(seconds: i64, nanos: i64) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, part) = (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
    let text = format!("{sign}{whole}.{part:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn since_epoch(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs() as i64, i64::from(after.subsec_nanos())),
        Err(before) => {
            let nanos = -(before.duration().as_nanos() as i128);
            (nanos.div_euclid(1_000_000_000) as i64, nanos.rem_euclid(1_000_000_000) as i64)
        }
    }
}

fn sorted_names(dir: &Path) -> Result<Vec<Vec<u8>>> {
    let mut names = dir
        .read_dir()
        .and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name().as_bytes().to_vec())).collect::<io::Result<Vec<_>>>()
        })
        .with_context(|| format!("read directory {}", dir.display()))?;
    names.sort_unstable();
    Ok(names)
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// All extended attributes of `path` (not of what a symlink points to), sorted. `buffer` is scratch of
/// at least 64 KiB, the kernel's limit for the list as well as for one value (xattr(7)).
fn xattrs(path: &Path, buffer: &mut [u8]) -> Result<Xattrs> {
    let length = match llistxattr(path, &mut *buffer) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error).with_context(|| format!("llistxattr {}", path.display())),
    };
    if length == 0 {
        return Ok(Vec::new());
    }
    let names = buffer[..length].to_vec();
    let mut found = Xattrs::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let length = lgetxattr(path, name, &mut *buffer)
            .with_context(|| format!("lgetxattr {} {}", path.display(), String::from_utf8_lossy(name)))?;
        found.push((name.to_vec(), buffer[..length].to_vec()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Passes bytes on, and knows their SHA-256 and number.
pub(crate) struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Hashing { inner, hasher: Sha256::new(), size: 0 }
    }

    /// The writer below, the digest of all bytes that went through, and their number.
    pub(crate) fn finish(self) -> (W, Digest, u64) {
        let hex: String = self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = Sha256Digest::from_str(&hex).expect("64 hexadecimal digits are a SHA-256");
        (self.inner, digest.into(), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_record_counts_its_own_length() {
        let record = |key: &[u8], value: &[u8]| {
            let mut pax = Pax::default();
            pax.record(key, value);
            String::from_utf8(pax.0).unwrap()
        };
        assert_eq!(record(b"uid", b"3000000"), "15 uid=3000000\n");
        // 9 bytes and 99 bytes: the length gains a digit by being written down.
        assert_eq!(record(b"a", b"1234"), "9 a=1234\n");
        assert_eq!(record(b"a", b"12345"), "11 a=12345\n");
        for length in 80..120 {
            let text = record(b"path", &vec![b'x'; length]);
            assert_eq!(text.split(' ').next().unwrap().parse(), Ok(text.len()));
        }
    }

    #[test]
    fn times_are_decimal_seconds() {
        assert_eq!(decimal(1, 500_000_000), "1.5");
        assert_eq!(decimal(-2, 750_000_000), "-1.25");
        assert_eq!(decimal(-1, 0), "-1");
        assert_eq!(decimal(10, 0), "10");
        assert_eq!(since_epoch(UNIX_EPOCH - std::time::Duration::from_millis(1250)), (-2, 750_000_000));
    }
}
