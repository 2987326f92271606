//! Digests, as the image specification's descriptor.md defines them: `sha256:` and 64 lowercase hex digits.
//!
//! Three things in an image are named by a digest and are easily confused, so each has its own type: a blob as it
//! is stored and transferred ([`Digest`]), the tar that a layer blob inflates to ([`DiffId`]), and a layer together
//! with everything below it ([`ChainId`]). The surprising rule: a string is a digest only after it was parsed.
//! A digest becomes a file name, and `sha256:../../etc/passwd` is what a hostile image would put there.

use anyhow::{Result, bail};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// The SHA-256 of a blob: a manifest, a configuration, a layer as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// The digest of a layer's uncompressed tar (config.md, `rootfs.diff_ids`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DiffId(pub Digest);

/// The digest of a layer and all layers below it (config.md, "Layer ChainID").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ChainId(pub Digest);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The 64 hex digits without the algorithm: a blob's file name.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl ChainId {
    /// The chain of the bottom layer is its diffID.
    pub fn bottom(diff: DiffId) -> ChainId {
        ChainId(diff.0)
    }

    /// The chain of `diff` on top of this one.
    pub fn then(self, diff: DiffId) -> ChainId {
        ChainId(Digest::of(format!("{} {}", self.0, diff.0).as_bytes()))
    }

    /// The chains of a stack of layers, bottom first.
    pub fn chain(diffs: &[DiffId]) -> Vec<ChainId> {
        let mut chains: Vec<ChainId> = Vec::with_capacity(diffs.len());
        for diff in diffs {
            chains.push(chains.last().map_or_else(|| ChainId::bottom(*diff), |below| below.then(*diff)));
        }
        chains
    }
}

impl FromStr for Digest {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Digest> {
        let Some(hex) = text.strip_prefix("sha256:") else {
            bail!("{text:?} is not a digest that pgbox knows: it should be `sha256:` and 64 hex digits");
        };
        let lower = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() != 64 || !lower {
            bail!("{text:?} is not a digest: after `sha256:` there must be 64 lowercase hex digits");
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair)?, 16)?;
        }
        Ok(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Adds up a digest while bytes go by.
#[derive(Default)]
pub struct Hasher(Sha256);

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_a_digest() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        for bad in ["", "sha256:", "sha256:../../etc/passwd", "md5:abc", &good.to_uppercase(), &good[..70]] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_chain_is_the_hash_of_the_chain_below_and_the_diff() {
        let (a, b) = (DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b")));
        let chains = ChainId::chain(&[a, b]);
        assert_eq!(chains[0].0, a.0);
        assert_eq!(chains[1].0, Digest::of(format!("{a} {b}").as_bytes()));
    }
}
