//! Log sequence numbers: a byte position in the write-ahead log, type `pg_lsn` of the PostgreSQL manual
//! (8.20), printed as two hexadecimal halves.
//!
//! The rule that surprises people: the halves are not padded, so text order is not position order
//! (`0/9000000` is before `0/10000000`). Compare the numbers.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A position in the write-ahead log, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

/// The text was no LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseLsnError(String);

impl fmt::Display for ParseLsnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a log sequence number such as 0/16B3748", self.0)
    }
}

impl std::error::Error for ParseLsnError {}

impl Lsn {
    /// Bytes from `self` to `newer`; 0 where `self` is already at or after it. This is what "lag" means.
    pub fn behind(self, newer: Lsn) -> u64 {
        newer.0.saturating_sub(self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let half = |half: &str| match half.len() {
            1..=8 if half.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(half, 16).ok(),
            _ => None,
        };
        let halves = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        let (high, low) = halves.ok_or_else(|| ParseLsnError(text.to_owned()))?;
        Ok(Lsn(high << 32 | low))
    }
}

impl TryFrom<String> for Lsn {
    type Error = ParseLsnError;

    fn try_from(text: String) -> Result<Lsn, ParseLsnError> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> String {
        lsn.to_string()
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;

    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

/// The distance in bytes, negative where `self` is before `other`, as `pg_lsn - pg_lsn` is in SQL.
impl Sub for Lsn {
    type Output = i128;

    fn sub(self, other: Lsn) -> i128 {
        i128::from(self.0) - i128::from(other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_number_agree() {
        for text in ["0/0", "0/16B3748", "16/B374D848", "FFFFFFFF/FFFFFFFF", "1/1"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        assert_eq!("16/b374d848".parse::<Lsn>().unwrap(), Lsn(0x16_B374_D848));
        for text in ["", "/", "0", "0/", "/0", "0/+1", "0/100000000", "0/0/0", "g/0", " 0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn order_is_by_position_not_by_text() {
        let (old, new): (Lsn, Lsn) = ("0/9000000".parse().unwrap(), "0/10000000".parse().unwrap());
        assert!(old < new);
        assert_eq!(new - old, 0x700_0000);
        assert_eq!(old - new, -0x700_0000);
        assert_eq!((old.behind(new), new.behind(old)), (0x700_0000, 0));
        assert_eq!(old + 0x700_0000, new);
    }
}
