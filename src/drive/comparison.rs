//! The ledgers beside the table.
//!
//! The rule that surprises people: while writers are at work, one look at a ledger is not enough. What was
//! acknowledged *before* the table's snapshot must be in it; whether a row in it was ever sent, or acknowledged,
//! tells the ledger as it is *after* the snapshot. So there are two looks, and the snapshot between them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fates::{Fates, Rows};

/// So many rows are named; of the others there is the number.
const NAMED: usize = 10;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Row {
    pub writer: i32,
    pub seq: i64,
}

/// How the table and the ledgers differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Rows that are acknowledged, and must be there.
    pub acknowledged: u64,
    /// Acknowledged rows that are not there: lost.
    pub missing: u64,
    /// The first of them.
    pub missing_rows: Vec<Row>,
    /// All rows that are there.
    pub present: u64,
    /// Rows that are there though nobody said so: their connection was lost. No harm.
    pub present_unacknowledged: u64,
    /// Rows that are there though the server said that it rolled them back.
    pub present_refused: u64,
    /// Rows that are there and were never sent: another's, or of a ledger that is gone.
    pub foreign: u64,
    pub foreign_rows: Vec<Row>,
}

/// A comparison on its way: takes the table's rows in any order.
pub struct Comparison {
    writers: BTreeMap<i32, Expected>,
    difference: Difference,
}

struct Expected {
    /// Acknowledged before the snapshot, and not seen yet.
    awaited: Rows,
    /// As known after it.
    fates: Fates,
}

impl Comparison {
    /// For each writer the rows that were acknowledged before the snapshot, and all fates after it.
    pub fn new(writers: impl IntoIterator<Item = (i32, Rows, Fates)>) -> Self {
        let mut difference = Difference::default();
        let expected = |(writer, awaited, fates): (i32, Rows, Fates)| {
            difference.acknowledged += awaited.len();
            (writer, Expected { awaited, fates })
        };
        let writers = writers.into_iter().map(expected).collect();
        Self { writers, difference }
    }

    pub fn saw(&mut self, row: Row) {
        let difference = &mut self.difference;
        difference.present += 1;
        let number = u64::try_from(row.seq).unwrap_or(0);
        let expected = self.writers.get_mut(&row.writer).filter(|e| (1..=e.fates.sent).contains(&number));
        let Some(Expected { awaited, fates }) = expected else {
            difference.foreign += 1;
            if difference.foreign_rows.len() < NAMED {
                difference.foreign_rows.push(row);
            }
            return;
        };
        awaited.remove(number);
        if fates.refused.contains(number) {
            difference.present_refused += 1;
        } else if !fates.acked.contains(number) {
            difference.present_unacknowledged += 1;
        }
    }

    /// The result, when all rows were seen.
    pub fn finish(mut self) -> Difference {
        for (writer, expected) in &self.writers {
            self.difference.missing += expected.awaited.len();
            let left = NAMED - self.difference.missing_rows.len();
            let rows = expected.awaited.iter().take(left);
            self.difference.missing_rows.extend(rows.map(|seq| Row { writer: *writer, seq: seq as i64 }));
        }
        self.difference
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::ledger::{Kind, Record};
    use proptest::prelude::*;

    fn fates(kinds: &[Kind]) -> Fates {
        let mut fates = Fates::default();
        for (i, kind) in kinds.iter().enumerate() {
            let record = |kind| Record { kind, rows: 1, seq: i as u64 + 1, time: 0 };
            fates.note(record(Kind::Sent));
            fates.note(record(*kind));
        }
        fates
    }

    fn compare(before: &Fates, after: &Fates, rows: &[(i32, i64)]) -> Difference {
        let mut comparison = Comparison::new([(1, before.acked.clone(), after.clone())]);
        rows.iter().for_each(|(writer, seq)| comparison.saw(Row { writer: *writer, seq: *seq }));
        comparison.finish()
    }

    #[test]
    fn only_an_acknowledged_row_can_be_lost() {
        use Kind::{Acked, Refused, Unknown};
        let fates = fates(&[Acked, Unknown, Refused, Acked, Unknown]);
        let difference = compare(&fates, &fates, &[(1, 1), (1, 2), (1, 3), (1, 6), (1, 0), (1, -1), (2, 1)]);
        assert_eq!((difference.acknowledged, difference.missing), (2, 1));
        assert_eq!(difference.missing_rows, [Row { writer: 1, seq: 4 }]);
        assert_eq!((difference.present_unacknowledged, difference.present_refused), (1, 1));
        assert_eq!((difference.present, difference.foreign), (7, 4));
    }

    #[test]
    fn a_row_acknowledged_after_the_snapshot_need_not_be_in_it_and_may() {
        use Kind::Acked;
        let (before, after) = (fates(&[Acked; 2]), fates(&[Acked; 4]));
        let difference = compare(&before, &after, &[(1, 1), (1, 2), (1, 3)]);
        assert_eq!((difference.missing, difference.present_unacknowledged, difference.foreign), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn as_sets_say(kinds in prop::collection::vec(prop::sample::select(
            vec![Kind::Acked, Kind::Refused, Kind::Unknown]), 0..200), rows in prop::collection::btree_set(0i64..220, 0..200)) {
            let fates = fates(&kinds);
            let difference = compare(&fates, &fates, &rows.iter().map(|seq| (1, *seq)).collect::<Vec<_>>());
            let all = |kind: Kind, there: bool| kinds.iter().enumerate()
                .filter(|(i, k)| **k == kind && rows.contains(&(*i as i64 + 1)) == there).count() as u64;
            prop_assert_eq!(difference.missing, all(Kind::Acked, false));
            prop_assert_eq!(difference.present_unacknowledged, all(Kind::Unknown, true));
            prop_assert_eq!(difference.present_refused, all(Kind::Refused, true));
            prop_assert_eq!(difference.missing_rows.len(), difference.missing.min(10) as usize);
        }
    }
}
