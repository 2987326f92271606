//! What has become of each row of one writer, a bit each: ten million rows are 1.25 MB.

use super::ledger::{Kind, MAX_SEQ, Record};

/// A set of row numbers.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    words: Vec<u64>,
    count: u64,
}

impl Rows {
    pub fn contains(&self, seq: u64) -> bool {
        self.words.get((seq / 64) as usize).is_some_and(|word| word >> (seq % 64) & 1 == 1)
    }

    /// Takes a number up to [`MAX_SEQ`]; a later one is never in the set.
    pub fn insert(&mut self, seq: u64) {
        if seq > MAX_SEQ || self.contains(seq) {
            return;
        }
        let at = (seq / 64) as usize;
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        self.words[at] |= 1 << (seq % 64);
        self.count += 1;
    }

    pub fn remove(&mut self, seq: u64) {
        if self.contains(seq) {
            self.words[(seq / 64) as usize] &= !(1 << (seq % 64));
            self.count -= 1;
        }
    }

    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let words = self.words.iter().enumerate().filter(|(_, word)| **word != 0);
        words.flat_map(|(at, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u64 * 64 + bit)
        })
    }
}

/// The fates of one writer's rows, as far as its ledger was read.
#[derive(Debug, Clone, Default)]
pub struct Fates {
    pub acked: Rows,
    pub refused: Rows,
    /// The highest number sent, which is also how many rows were.
    pub sent: u64,
    /// Rows of the commit that was sent last, while nothing is known of it.
    pub open: u64,
    /// Whether the writer has said that it ends.
    pub ended: bool,
}

impl Fates {
    pub fn note(&mut self, record: Record) {
        let rows = record.seq..record.seq + u64::from(record.rows);
        self.open = 0;
        match record.kind {
            Kind::Sent => {
                self.sent = self.sent.max(rows.end.saturating_sub(1));
                self.open = u64::from(record.rows);
            }
            Kind::Acked => rows.for_each(|seq| self.acked.insert(seq)),
            Kind::Refused => rows.for_each(|seq| self.refused.insert(seq)),
            Kind::Unknown => {}
            Kind::Ended => self.ended = true,
        }
    }

    /// Rows of which nobody knows. Those of a commit in flight are counted among them: whether the writer still
    /// lives to hear of it, the ledger does not tell.
    pub fn unknown(&self) -> u64 {
        self.sent - self.acked.len() - self.refused.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn rows_are_a_set(moves in prop::collection::vec((any::<bool>(), 0u64..300), 0..200)) {
            let (mut rows, mut model) = (Rows::default(), BTreeSet::new());
            for (insert, seq) in moves {
                if insert { rows.insert(seq); model.insert(seq); } else { rows.remove(seq); model.remove(&seq); }
            }
            prop_assert_eq!(rows.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(rows.len(), model.len() as u64);
            prop_assert!((0..400).all(|seq| rows.contains(seq) == model.contains(&seq)));
        }
    }

    #[test]
    fn a_row_without_a_word_is_unknown() {
        let mut fates = Fates::default();
        let note = |fates: &mut Fates, kind, seq| fates.note(Record { kind, rows: 10, seq, time: 0 });
        for (seq, fate) in [(1, Kind::Acked), (11, Kind::Refused), (21, Kind::Unknown)] {
            note(&mut fates, Kind::Sent, seq);
            assert_eq!(fates.open, 10);
            note(&mut fates, fate, seq);
            assert_eq!(fates.open, 0);
        }
        note(&mut fates, Kind::Sent, 31);
        assert_eq!((fates.sent, fates.acked.len(), fates.refused.len(), fates.unknown()), (40, 10, 10, 20));
        assert!(!fates.ended);
    }
}
