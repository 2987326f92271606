//! How long nothing was acknowledged: the longest time between two acknowledgements over all writers of a run.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, Read},
};

use super::{
    fates::Fates,
    ledger::{Kind, Records},
};

/// A time without an acknowledged write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gap {
    /// When it began: the last acknowledgement before it. Microseconds since 1970.
    pub from: u64,
    pub micros: u64,
}

impl Gap {
    fn between(from: u64, to: u64) -> Self {
        Self { from, micros: to.saturating_sub(from) }
    }

    /// The longer one; of equals the first.
    pub fn or_longer(self, other: Self) -> Self {
        if other.micros > self.micros { other } else { self }
    }
}

/// What the ledgers of one run tell of it as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Course {
    /// Between two acknowledgements, or the begin of the run and the first one.
    pub longest: Gap,
    /// The last acknowledgement; before the first one the begin of the run.
    pub last_ack: u64,
    /// The last thing that was noted at all.
    pub last_word: u64,
}

impl Course {
    /// The longest gap, when nothing was acknowledged since the last time until `end`.
    pub fn longest_until(&self, end: u64) -> Gap {
        self.longest.or_longer(Gap::between(self.last_ack, end))
    }
}

/// Reads the ledgers of a run that began at `began`, all at once in the order of time, as far as they go.
pub fn read<R: Read>(began: u64, ledgers: &mut [Records<R>], fates: &mut [Fates]) -> io::Result<Course> {
    let mut course = Course { last_ack: began, last_word: began, ..Course::default() };
    let mut next = BinaryHeap::new();
    for (i, (ledger, fates)) in ledgers.iter_mut().zip(&mut *fates).enumerate() {
        next.extend(next_ack(ledger, fates, &mut course.last_word)?.map(|time| Reverse((time, i))));
    }
    while let Some(Reverse((time, i))) = next.pop() {
        course.longest = course.longest_until(time);
        course.last_ack = time.max(course.last_ack);
        next.extend(
            next_ack(&mut ledgers[i], &mut fates[i], &mut course.last_word)?.map(|time| Reverse((time, i))),
        );
    }
    Ok(course)
}

/// The time of the next acknowledgement in a ledger.
fn next_ack<R: Read>(
    ledger: &mut Records<R>,
    fates: &mut Fates,
    last_word: &mut u64,
) -> io::Result<Option<u64>> {
    while let Some(record) = ledger.read()? {
        fates.note(record);
        *last_word = record.time.max(*last_word);
        if record.kind == Kind::Acked {
            return Ok(Some(record.time));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::ledger::Record;

    fn course(began: u64, writers: &[&[(Kind, u64)]]) -> (Course, Vec<Fates>) {
        let bytes: Vec<Vec<u8>> = writers
            .iter()
            .map(|events| {
                let record = |(i, (kind, time)): (usize, &(Kind, u64))| {
                    Record { kind: *kind, rows: 1, seq: i as u64 / 2 + 1, time: *time }.encode()
                };
                events.iter().enumerate().flat_map(record).collect()
            })
            .collect();
        let mut ledgers: Vec<_> = bytes.iter().map(|b| Records::new(&b[..])).collect();
        let mut fates = vec![Fates::default(); writers.len()];
        (read(began, &mut ledgers, &mut fates).unwrap(), fates)
    }

    #[test]
    fn a_gap_is_one_of_all_writers_together() {
        use Kind::{Acked, Ended, Sent, Unknown};
        let first = [(Sent, 100), (Acked, 110), (Sent, 110), (Unknown, 900), (Sent, 901), (Acked, 950)];
        let second = [(Sent, 100), (Acked, 400), (Sent, 410), (Acked, 420), (Sent, 421), (Ended, 1000)];
        let (course, fates) = course(90, &[&first, &second]);
        assert_eq!(course.longest, Gap { from: 420, micros: 530 });
        assert_eq!((course.last_ack, course.last_word), (950, 1000));
        assert_eq!(course.longest_until(2000), Gap { from: 950, micros: 1050 });
        assert_eq!((fates[0].acked.len(), fates[1].acked.len()), (2, 2));
        assert!(fates[1].ended && !fates[0].ended);
    }

    #[test]
    fn a_run_without_an_acknowledgement_is_one_gap() {
        let (course, _) = course(90, &[&[(Kind::Sent, 100), (Kind::Unknown, 300)], &[]]);
        assert_eq!(course.longest_until(course.last_word), Gap { from: 90, micros: 210 });
    }
}
