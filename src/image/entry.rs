//! Reading a tar, entry by entry: v7, ustar, GNU and pax headers (tar(5); POSIX pax, "ustar Interchange Format").
//!
//! A tar has no index and no overall checksum; everything depends on every reader taking every length for the same.
//! So the reader is strict: numbers, checksums and lengths are checked, links must not have data, and a header that
//! two readers could understand differently is refused. The surprising rules: the size in a pax header replaces the
//! one in the header; a directory may have a size but never has data; a v7 archive marks a directory only by the
//! slash at the end of its name; a negative or large number is written in base 256.

use super::limits::Limits;
use super::pax::Pax;
use super::sparse::{self, Segment};
use crate::sys::fs::{Kind, Time};
use anyhow::{Context, Result, bail};
use std::io::{self, BufRead};

const BLOCK: usize = 512;
type Block = [u8; BLOCK];

/// A source of tar bytes that can pass over some without looking at them.
pub trait Tape: BufRead {
    /// Passes over exactly `count` bytes, or fails with UnexpectedEof.
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let got = self.fill_buf()?.len() as u64;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = got.min(left);
            self.consume(step as usize);
            left -= step;
        }
        Ok(())
    }
}

impl Tape for &[u8] {}

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    File,
    Dir,
    Symlink(Vec<u8>),
    /// The name of another entry, of this layer or one below.
    HardLink(Vec<u8>),
    /// A FIFO or device node; major and minor number.
    Special(Kind, u32, u32),
}

/// The header of one entry, all formats brought to one.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As it stands in the archive.
    pub name: Vec<u8>,
    pub node: Node,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Where the stored bytes go, if not simply to the start.
    pub sparse: Option<Vec<Segment>>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads the entries of a tar in order.
pub struct Reader<'l, T: Tape> {
    tape: T,
    limits: &'l Limits,
    global: Pax,
    /// Stored bytes of the current entry not yet read, and the filling up to a block after them.
    stored: u64,
    padding: u64,
    entries: u64,
    ended: bool,
}

impl<'l, T: Tape> Reader<'l, T> {
    pub fn new(tape: T, limits: &'l Limits) -> Self {
        Reader { tape, limits, global: Pax::default(), stored: 0, padding: 0, entries: 0, ended: false }
    }

    /// The next entry; `None` at the end-of-archive blocks, or where the archive ends without them.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut pax = self.global.clone();
        let (mut long_name, mut long_link, mut extended) = (None, None, false);
        loop {
            self.skip_data()?;
            let Some(block) = self.header()? else {
                if extended || long_name.is_some() || long_link.is_some() {
                    bail!("the archive ends after an extended header, without the entry it belongs to");
                }
                return Ok(None);
            };
            let size = number(&block[124..136]).context("header field size")?;
            let Ok(size) = u64::try_from(size) else { bail!("a header has the size {size}") };
            match block[156] {
                b'x' => {
                    if std::mem::replace(&mut extended, true) {
                        bail!("two pax headers for one entry, which tools understand differently");
                    }
                    pax.read(&self.small(size)?, false)?;
                }
                b'g' => {
                    let data = self.small(size)?;
                    self.global.read(&data, true)?;
                    pax.read(&data, true)?;
                }
                b'L' => long_name = Some(self.long(size)?),
                b'K' => long_link = Some(self.long(size)?),
                // A volume's label, GNU tar -V.
                b'V' => self.stored(size)?,
                _ => {
                    let name = pax.path.take().or(long_name).unwrap_or_else(|| header_name(&block));
                    let link =
                        pax.link.take().or(long_link).unwrap_or_else(|| cstr(&block[157..257]).to_vec());
                    let shown = name.escape_ascii().to_string();
                    return self
                        .entry(&block, name, link, size, pax)
                        .map(Some)
                        .with_context(|| format!("entry {shown:?}"));
                }
            }
        }
    }

    /// Hands the stored bytes of the current entry to `put`, each piece with its offset in the file.
    pub fn data(&mut self, entry: &Entry, mut put: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let whole = [Segment { offset: 0, len: self.stored }];
        for segment in entry.sparse.as_deref().unwrap_or(&whole) {
            let mut at = segment.offset;
            let end = segment.offset + segment.len;
            while at < end {
                let buf = self.tape.fill_buf()?;
                if buf.is_empty() {
                    bail!("the archive is cut off: {} bytes of this file are missing", self.stored);
                }
                let take = buf.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                put(at, &buf[..take])?;
                self.tape.consume(take);
                at += take as u64;
                self.stored -= take as u64;
            }
        }
        Ok(())
    }

    /// Entries so far.
    pub fn count(&self) -> u64 {
        self.entries
    }

    /// The source, for what follows the end-of-archive blocks.
    pub fn into_tape(self) -> T {
        self.tape
    }

    pub fn tape(&mut self) -> &mut T {
        &mut self.tape
    }

    fn entry(&mut self, block: &Block, name: Vec<u8>, link: Vec<u8>, size: u64, pax: Pax) -> Result<Entry> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            bail!("the archive has more than {} entries", self.limits.entries);
        }
        let size = pax.size.unwrap_or(size);
        let flag = block[156];
        let node = node(block, &name, link)?;
        match node {
            Node::File => self.stored(size)?,
            Node::Dir if size != 0 && matches!(flag, 0 | b'0' | b'7') => {
                bail!("it is a directory by its name and a file by its {size} bytes of data")
            }
            // POSIX: no data follows, whatever the size says.
            Node::Dir | Node::Special(..) if flag != b'D' => self.stored(0)?,
            Node::Dir | Node::Special(..) => self.stored(size)?,
            Node::Symlink(_) | Node::HardLink(_) if size != 0 => {
                bail!("it is a link with {size} bytes of data, which tools understand differently")
            }
            Node::Symlink(_) | Node::HardLink(_) => self.stored(0)?,
        }
        let mut entry = Entry {
            name,
            node,
            mode: (number(&block[100..108]).context("header field mode")? & 0o7777) as u32,
            uid: id(pax.uid, &block[108..116]).context("header field uid")?,
            gid: id(pax.gid, &block[116..124]).context("header field gid")?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Time { sec: number(&block[136..148]).context("header field mtime")?, nsec: 0 },
            },
            size,
            sparse: None,
            xattrs: pax.xattrs.clone().into_iter().collect(),
        };
        self.sparse(block, &mut entry, pax)?;
        if entry.size > self.limits.file {
            bail!("it is {} bytes long, the limit for one file is {}", entry.size, self.limits.file);
        }
        Ok(entry)
    }

    /// Reads the sparse map, if there is one, and makes name and size those of the real file.
    fn sparse(&mut self, block: &Block, entry: &mut Entry, pax: Pax) -> Result<()> {
        if block[156] == b'S' {
            entry.size = u64::try_from(number(&block[483..495])?).context("its real size is negative")?;
            entry.sparse = Some(self.old_map(block)?);
        } else if entry.node == Node::File && (pax.sparse.map_in_data() || !pax.sparse.map.is_empty()) {
            let Some(size) = pax.sparse.real_size else { bail!("it is sparse, but has no real size") };
            entry.size = size;
            entry.name = pax.sparse.name.clone().unwrap_or(std::mem::take(&mut entry.name));
            entry.sparse = Some(match pax.sparse.map_in_data() {
                true => self.map_lines()?,
                false => pax.sparse.map,
            });
        }
        match &entry.sparse {
            Some(map) => sparse::check(map, entry.size, self.stored),
            None => Ok(()),
        }
    }

    /// Type `S`: four segments in the header, and as many blocks of 21 more as the flags say.
    fn old_map(&mut self, block: &Block) -> Result<Vec<Segment>> {
        let mut map = Vec::new();
        segments(&block[386..482], &mut map)?;
        let mut more = block[482] != 0;
        while more {
            if map.len() as u64 * 24 > self.limits.header {
                bail!("its sparse map is longer than {} bytes", self.limits.header);
            }
            let mut next = [0; BLOCK];
            self.fill(&mut next)?;
            segments(&next[..504], &mut map)?;
            more = next[504] != 0;
        }
        Ok(map)
    }

    /// Format 1.0: a count, then offset and length in turn, each on a line, filled up to a block.
    fn map_lines(&mut self) -> Result<Vec<Segment>> {
        let mut text = Vec::new();
        let mut numbers = 1;
        let mut lines = 0;
        while lines < numbers {
            if self.stored < BLOCK as u64 || text.len() as u64 > self.limits.header {
                bail!("its sparse map has no end");
            }
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            self.stored -= BLOCK as u64;
            text.extend_from_slice(&block);
            lines = text.iter().filter(|b| **b == b'\n').count() as u64;
            if lines > 0 {
                let first = text.split(|b| *b == b'\n').next().unwrap_or_default();
                numbers = 1 + 2 * super::pax::number(first)?.unwrap_or(0).min(self.limits.header);
            }
        }
        sparse::pairs(text.split(|b| *b == b'\n').skip(1).take(numbers as usize - 1))
    }

    /// Reads one header and checks its sum; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Block>> {
        if self.ended || self.tape.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        if block == [0; BLOCK] {
            self.ended = true;
            if !self.tape.fill_buf()?.is_empty() {
                self.fill(&mut block)?;
                if block != [0; BLOCK] {
                    bail!(
                        "the archive has an entry after an end block: it is damaged, or two archives in one"
                    );
                }
            }
            return Ok(None);
        }
        let stored = number(&block[148..156]).context("header field checksum")?;
        let sum = |byte: fn(u8) -> i64| -> i64 {
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { byte(*b) }).sum()
        };
        // Old Sun tars added the bytes up as signed.
        if stored != sum(i64::from) && stored != sum(|b| i64::from(b as i8)) {
            bail!("the header of {:?} has a wrong checksum: the layer is damaged or no tar", show(&block));
        }
        Ok(Some(block))
    }

    fn stored(&mut self, size: u64) -> Result<()> {
        if size > self.limits.layer {
            bail!("it has {size} bytes of data, the limit for a layer is {}", self.limits.layer);
        }
        self.stored = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip_data(&mut self) -> Result<()> {
        let count = std::mem::take(&mut self.stored) + std::mem::take(&mut self.padding);
        self.tape.skip(count).context("the archive is cut off in the middle of a file")
    }

    /// The data of an extended header.
    fn small(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > self.limits.header {
            bail!("an extended header has {size} bytes, the limit is {}", self.limits.header);
        }
        self.stored(size)?;
        let mut data = vec![0; size as usize];
        self.fill(&mut data)?;
        self.stored = 0;
        Ok(data)
    }

    /// A GNU long name: ends at its first NUL.
    fn long(&mut self, size: u64) -> Result<Vec<u8>> {
        let data = self.small(size)?;
        let name = cstr(&data);
        if data[name.len()..].iter().any(|b| *b != 0) {
            bail!("a long name has a NUL byte in it, after which tools disagree about it");
        }
        Ok(name.to_vec())
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        self.tape.read_exact(buf).context("the archive is cut off in the middle of a header")
    }
}

/// What kind of entry the type flag makes; `name` decides for v7 archives.
fn node(block: &Block, name: &[u8], link: Vec<u8>) -> Result<Node> {
    let device = |kind| -> Result<Node> {
        let number = |field| u32::try_from(number(field)?).context("a device number out of range");
        Ok(Node::Special(kind, number(&block[329..337])?, number(&block[337..345])?))
    };
    Ok(match block[156] {
        0 | b'0' | b'7' if name.ends_with(b"/") => Node::Dir,
        0 | b'0' | b'7' | b'S' => Node::File,
        b'1' | b'2' if link.is_empty() => bail!("it is a link to nothing"),
        b'1' => Node::HardLink(link),
        b'2' => Node::Symlink(link),
        b'3' => device(Kind::CharDevice)?,
        b'4' => device(Kind::BlockDevice)?,
        b'5' | b'D' => Node::Dir,
        b'6' => Node::Special(Kind::Fifo, 0, 0),
        other => {
            bail!("it has the type {:?}, which is no file, directory, link or device", char::from(other))
        }
    })
}

/// The name of a ustar header is in two fields; GNU's keeps times where ustar has the prefix, star a shorter one.
fn header_name(block: &Block) -> Vec<u8> {
    let name = cstr(&block[..100]);
    let prefix: &[u8] = match (&block[257..263], &block[508..512]) {
        (b"ustar\0", b"tar\0") => cstr(&block[345..476]),
        (b"ustar\0", _) => cstr(&block[345..500]),
        _ => b"",
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn show(block: &Block) -> String {
    cstr(&block[..100]).escape_ascii().to_string()
}

fn id(pax: Option<u64>, field: &[u8]) -> Result<u32> {
    let value = match pax {
        Some(value) => value as i64,
        None => number(field)?,
    };
    // The last number means "leave it as it is" to chown(2).
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => bail!("{value} is no user or group number"),
    }
}

fn segments(fields: &[u8], map: &mut Vec<Segment>) -> Result<()> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let part = |field| u64::try_from(number(field)?).context("the sparse map has a negative number");
        map.push(Segment { offset: part(&pair[..12])?, len: part(&pair[12..])? });
    }
    Ok(())
}

/// Up to the first NUL.
fn cstr(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number in a header: octal digits, or with the top bit of the first byte set, base 256 in two's complement.
fn number(field: &[u8]) -> Result<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            let byte = if i == 0 && !negative { byte & 0x7f } else { *byte };
            value =
                (value << 8 | i128::from(byte)).clamp(i128::from(i64::MIN) << 8, i128::from(i64::MAX) << 8);
        }
        return i64::try_from(value).context("a number in base 256 is too large");
    }
    let text: Vec<u8> = cstr(field).iter().copied().skip_while(|b| *b == b' ').collect();
    let digits = text.split(|b| *b == b' ').next().unwrap_or_default();
    let rest_blank = text[digits.len()..].iter().all(|b| *b == b' ');
    match std::str::from_utf8(digits).ok().filter(|d| rest_blank && d.bytes().all(|b| b.is_ascii_digit())) {
        Some("") => Ok(0),
        Some(digits) => {
            i64::from_str_radix(digits, 8).with_context(|| format!("{digits:?} is no octal number"))
        }
        None => bail!("{} is no octal number", field.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(&[0; 8]).unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0x40, 0, 0]).unwrap(), 0x40_0000);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert!(number(b"0000648\0").is_err());
        assert!(number(b"-000644\0").is_err());
        assert!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_it_panic(data: Vec<u8>, flag in "[0-7xgLKSD]") {
            // A valid checksum lets the random bytes reach the code behind it.
            let mut block = [0u8; BLOCK];
            for (b, d) in block.iter_mut().zip(&data) { *b = *d; }
            block[156] = flag.as_bytes()[0];
            block[148..156].copy_from_slice(b"        ");
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let limits = Limits::default();
            let tape = [&block[..], &data].concat();
            let mut reader = Reader::new(&tape[..], &limits);
            while let Ok(Some(entry)) = reader.next_entry() {
                let _ = reader.data(&entry, |_, _| Ok(()));
            }
        }
    }
}
