//! Sparse files in tars: a map of where the stored bytes go; everything between is a hole.
//!
//! Two spellings are in use: GNU's old type `S`, with the map in the header and its continuation blocks, and pax
//! 1.0, with the map as decimal lines in front of the data. A map is data from strangers like everything else:
//! segments that overlap, run backwards or beyond the end are refused.

use anyhow::{Result, bail};

/// `len` stored bytes belong at `offset` of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub len: u64,
}

/// Checks that the segments are in order, inside `size`, and together exactly the `stored` bytes.
pub fn check(map: &[Segment], size: u64, stored: u64) -> Result<()> {
    let (mut end, mut sum) = (0u64, 0u64);
    for s in map {
        let Some(next) = s.offset.checked_add(s.len).filter(|next| s.offset >= end && *next <= size) else {
            bail!(
                "its sparse map has a segment of {} bytes at {} of {size}: out of order or place",
                s.len,
                s.offset
            );
        };
        end = next;
        sum += s.len;
    }
    if sum != stored {
        bail!("its sparse map speaks of {sum} bytes, but {stored} are stored");
    }
    Ok(())
}

/// Numbers in turn: offset, length, offset, length.
pub fn pairs<'a>(numbers: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Segment>> {
    let mut map = Vec::new();
    let mut offset = None;
    for text in numbers {
        let Some(n) = super::pax::number(text)? else { bail!("the sparse map has an empty number") };
        match offset.take() {
            None => offset = Some(n),
            Some(offset) => map.push(Segment { offset, len: n }),
        }
    }
    match offset {
        None => Ok(map),
        Some(_) => bail!("the sparse map ends after an offset"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_in_order_and_complete() {
        let s = |offset, len| Segment { offset, len };
        assert!(check(&[s(0, 10), s(100, 5), s(200, 0)], 200, 15).is_ok());
        assert!(check(&[], 1 << 30, 0).is_ok());
        for (map, stored) in [
            (vec![s(0, 10)], 9),
            (vec![s(10, 10), s(0, 5)], 15),
            (vec![s(0, 10), s(5, 10)], 20),
            (vec![s(195, 10)], 10),
            (vec![s(u64::MAX, 2)], 2),
        ] {
            assert!(check(&map, 200, stored).is_err(), "{map:?}");
        }
    }
}
