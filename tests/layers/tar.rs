//! Writing tars, right and wrong ones.

/// The formats in which headers can be written.
#[derive(Clone, Copy, PartialEq)]
pub enum Format {
    Ustar,
    V7,
    Gnu,
}

/// One header with its data. Times are 1000 s after 1970 unless set.
#[derive(Clone)]
pub struct Head {
    pub name: Vec<u8>,
    pub prefix: Vec<u8>,
    pub flag: u8,
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub link: Vec<u8>,
    pub major: u64,
    pub minor: u64,
    pub data: Vec<u8>,
    /// What the header says, if not the length of the data.
    pub size: Option<i64>,
    pub format: Format,
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    pub bad_sum: bool,
    /// Written over the header at an offset, before the checksum.
    pub patch: Vec<(usize, Vec<u8>)>,
}

impl Head {
    pub fn new(flag: u8, name: impl AsRef<[u8]>, mode: u64) -> Head {
        Head {
            name: name.as_ref().to_vec(),
            prefix: Vec::new(),
            flag,
            mode,
            uid: 0,
            gid: 0,
            mtime: 1000,
            link: Vec::new(),
            major: 0,
            minor: 0,
            data: Vec::new(),
            size: None,
            format: Format::Ustar,
            pax: Vec::new(),
            bad_sum: false,
            patch: Vec::new(),
        }
    }

    pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Head {
        Head { data: data.as_ref().to_vec(), ..Head::new(b'0', name, 0o644) }
    }

    pub fn dir(name: impl AsRef<[u8]>) -> Head {
        Head::new(b'5', name, 0o755)
    }

    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Head {
        Head { link: target.as_ref().to_vec(), ..Head::new(b'2', name, 0o777) }
    }

    pub fn link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Head {
        Head { link: target.as_ref().to_vec(), ..Head::new(b'1', name, 0o644) }
    }

    pub fn mode(self, mode: u64) -> Head {
        Head { mode, ..self }
    }

    pub fn owner(self, uid: u64, gid: u64) -> Head {
        Head { uid, gid, ..self }
    }

    pub fn mtime(self, mtime: i64) -> Head {
        Head { mtime, ..self }
    }

    pub fn format(self, format: Format) -> Head {
        Head { format, ..self }
    }

    pub fn device(self, major: u64, minor: u64) -> Head {
        Head { major, minor, ..self }
    }

    pub fn size(self, size: i64) -> Head {
        Head { size: Some(size), ..self }
    }

    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Head {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    pub fn xattr(self, key: &str, value: impl AsRef<[u8]>) -> Head {
        self.pax(format!("SCHILY.xattr.{key}"), value)
    }

    pub fn patch(mut self, at: usize, bytes: impl AsRef<[u8]>) -> Head {
        self.patch.push((at, bytes.as_ref().to_vec()));
        self
    }

    fn block(&self) -> [u8; 512] {
        let mut b = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &number(self.mode as i64, 8));
        put(108, &number(self.uid as i64, 8));
        put(116, &number(self.gid as i64, 8));
        put(124, &number(self.size.unwrap_or(self.data.len() as i64), 12));
        put(136, &number(self.mtime, 12));
        put(156, &[self.flag]);
        put(157, &self.link[..self.link.len().min(100)]);
        match self.format {
            Format::Ustar => put(257, b"ustar\x0000"),
            Format::Gnu => put(257, b"ustar  \0"),
            Format::V7 => {}
        }
        if self.format != Format::V7 {
            put(329, &number(self.major as i64, 8));
            put(337, &number(self.minor as i64, 8));
            put(345, &self.prefix);
        }
        for (at, bytes) in &self.patch {
            put(*at, bytes);
        }
        put(148, b"        ");
        let sum: u32 = b.iter().map(|b| u32::from(*b)).sum::<u32>() + u32::from(self.bad_sum);
        b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        b
    }
}

/// Octal, or base 256 where it doesn't fit.
fn number(value: i64, width: usize) -> Vec<u8> {
    let octal = format!("{value:0w$o}\0", w = width - 1);
    if value >= 0 && octal.len() == width {
        return octal.into_bytes();
    }
    let mut bytes = vec![if value < 0 { 0xff } else { 0 }; width];
    let low = value.to_be_bytes();
    let tail = low.len().min(width - 1);
    bytes[width - tail..].copy_from_slice(&low[8 - tail..]);
    bytes[0] = if value < 0 { 0xff } else { 0x80 };
    bytes
}

/// One pax record.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A tar under construction.
#[derive(Clone, Default)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    /// A finished tar of these entries.
    pub fn of(heads: impl IntoIterator<Item = Head>) -> Vec<u8> {
        heads.into_iter().fold(Tar::new(), Tar::add).end()
    }

    pub fn add(mut self, head: Head) -> Tar {
        if !head.pax.is_empty() {
            let data = head.pax.iter().flat_map(|(k, v)| record(k, v)).collect::<Vec<_>>();
            self = self.add(Head { data, ..Head::new(b'x', "pax", 0o644) });
        }
        self.0.extend(head.block());
        self.0.extend(&head.data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Tar {
        self.0.extend(bytes.as_ref());
        self
    }

    pub fn end(self) -> Vec<u8> {
        self.raw([0; 1024]).0
    }
}
