//! Pax extended headers: records `LENGTH KEY=VALUE\n` in front of an entry (POSIX pax, "Extended Header").
//!
//! They override the fields of the header that follows. The surprising rule: `size` is one of those fields, so two
//! readers that disagree about it see two different archives (CVE-2025-62518, CVE-2026-33055). Everything here is
//! therefore strict: what one reader might understand differently is refused.

use super::sparse::Segment;
use crate::sys::fs::Time;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// What extended headers say about the next entry.
#[derive(Clone, Debug, Default)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Time>,
    /// By name, without `SCHILY.xattr.`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: Sparse,
}

/// GNU tar's three ways to describe a sparse file by records: 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default)]
pub struct Sparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub map: Vec<Segment>,
    offset: Option<u64>,
}

impl Sparse {
    /// Whether the data of the entry begins with its map (format 1.0).
    pub fn map_in_data(&self) -> bool {
        self.major == Some(1)
    }
}

impl Pax {
    /// Adds the records of one extended header; later ones win. `global` ones may not say where an entry is or how
    /// long it is: tools disagree on whether they count.
    pub fn read(&mut self, mut data: &[u8], global: bool) -> Result<()> {
        while !data.is_empty() {
            let (key, value, rest) = record(data)?;
            data = rest;
            if global && (matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.")) {
                bail!(
                    "a global pax header sets {}, which only makes sense for one entry",
                    key.escape_ascii()
                );
            }
            self.set(key, value).with_context(|| format!("pax record {}", key.escape_ascii()))?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() {
                bail!("an extended attribute without a name");
            }
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.set(field, value);
        }
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            // Names of users, times of access, comments, vendors' own: nothing that a root file system keeps.
            _ => {}
        }
        Ok(())
    }
}

impl Sparse {
    fn set(&mut self, field: &[u8], value: &[u8]) -> Result<()> {
        match field {
            b"major" => self.major = number(value)?,
            b"minor" => self.minor = number(value)?,
            b"name" => self.name = text(value)?,
            b"realsize" | b"size" => self.real_size = number(value)?,
            b"offset" => self.offset = number(value)?,
            b"numbytes" => {
                let Some(offset) = self.offset.take() else { bail!("it comes without an offset") };
                self.map.push(Segment { offset, len: number(value)?.unwrap_or(0) });
            }
            b"map" => self.map = super::sparse::pairs(value.split(|b| *b == b','))?,
            _ => {}
        }
        Ok(())
    }
}

/// Takes one record off the front.
fn record(data: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let Some(space) = data.iter().take(20).position(|b| *b == b' ') else {
        bail!("a pax record has no length");
    };
    let len = match number(&data[..space]) {
        Ok(Some(n)) if n as usize > space + 1 && n <= data.len() as u64 => n as usize,
        _ => bail!("a pax record says that it is {} bytes long", data[..space].escape_ascii()),
    };
    let (record, rest) = data.split_at(len);
    let Some(record) = record.strip_suffix(b"\n") else {
        bail!("a pax record doesn't end where its length says")
    };
    let record = &record[space + 1..];
    match record.iter().position(|b| *b == b'=') {
        Some(at) if at > 0 => Ok((&record[..at], &record[at + 1..], rest)),
        _ => bail!("a pax record has no key"),
    }
}

/// Text that becomes a path; an empty one takes an earlier record back.
fn text(value: &[u8]) -> Result<Option<Vec<u8>>> {
    if value.contains(&0) {
        bail!("it has a NUL byte in it, after which tools disagree about the name");
    }
    Ok(Some(value.to_vec()).filter(|v| !v.is_empty()))
}

/// A decimal number without sign or spaces; an empty one takes an earlier record back.
pub fn number(value: &[u8]) -> Result<Option<u64>> {
    if value.is_empty() {
        return Ok(None);
    }
    let digits = value.iter().all(u8::is_ascii_digit);
    match std::str::from_utf8(value).ok().filter(|_| digits).and_then(|v| v.parse::<u64>().ok()) {
        Some(n) if n <= i64::MAX as u64 => Ok(Some(n)),
        _ => bail!("{} is not a number that a file can have", value.escape_ascii()),
    }
}

/// Seconds with a fraction, perhaps before 1970: -0.25 is 0.75 s after the second before.
fn time(value: &[u8]) -> Result<Time> {
    let text = std::str::from_utf8(value).context("it is not a time")?;
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let valid = !whole.is_empty() && (whole.to_owned() + fraction).bytes().all(|b| b.is_ascii_digit());
    let Some(sec) = whole.parse::<i64>().ok().filter(|_| valid) else { bail!("{text:?} is not a time") };
    let nsec: u32 = format!("{fraction:0<9}")[..9].parse()?;
    Ok(match (negative, nsec) {
        (false, _) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec: 0 },
        (true, _) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[u8]) -> Result<Pax> {
        let mut pax = Pax::default();
        pax.read(data, false)?;
        Ok(pax)
    }

    #[test]
    fn records_are_read_and_later_ones_win() {
        let pax = parse(b"10 path=a\n10 path=b\n23 SCHILY.xattr.u.k=\0\n\n").unwrap();
        assert_eq!(pax.path.unwrap(), b"b");
        assert_eq!(pax.xattrs[&b"u.k"[..]], b"\0\n");
    }

    #[test]
    fn times_before_1970_and_parts_of_a_second() {
        assert_eq!(time(b"1.5").unwrap(), Time { sec: 1, nsec: 500_000_000 });
        assert_eq!(time(b"-0.25").unwrap(), Time { sec: -1, nsec: 750_000_000 });
        assert_eq!(time(b"-7").unwrap(), Time { sec: -7, nsec: 0 });
        assert_eq!(time(b"3.1234567899").unwrap().nsec, 123_456_789);
        for bad in ["", "-", ".5", "1.-5", "1e9", "99999999999999999999"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn ambiguous_records_are_refused() {
        for bad in [
            &b"11 size=-1\n"[..],
            b"12 size=0x1\n",
            b"8 path=a\n",
            b"99 path=a\n",
            b"path=a\n",
            b"12 path=a\0b\n",
            b"6 =ab\n",
            b"30 size=99999999999999999999\n",
            b"0 path=a\n",
            b"+10 path=a\n",
        ] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(Pax::default().read(b"10 size=1\n", true).is_err());
        assert!(Pax::default().read(b"17 comment=hello\n", true).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_it_panic(data: Vec<u8>) {
            let _ = parse(&data);
        }
    }
}
