//! Whether what is in one data directory is a part of what is in another: then its server can follow the other one as it is.
//! PostgreSQL manual 26.3.5.
//!
//! The rule that surprises people: a position alone says nothing. What counts is how far two histories are the same: timeline
//! by timeline, up to where the first of them was left.
//!
//! Another one: the number of a timeline says nothing either, where two that never met have begun it, even if they begin at one
//! position. What the server writes there first has the time in it.

use anyhow::{Result, ensure};

use super::wal::Place;
use crate::{
    postgres::{launch::RenewHow, lsn::Lsn, timeline::Switch, wal::Scan},
    spec::Name,
};

/// What the data of a server that does not run are to those of another one.
pub enum Standing {
    /// The other one has all of it.
    Within,
    /// From a position on they have gone their own way.
    Apart { parting: Parting, scan: Scan },
}

/// Where two histories part.
pub struct Parting {
    pub since: Lsn,
    /// Whether both have gone on under one number of a timeline, so that only their logs tell.
    pub is_hidden: bool,
}

impl Standing {
    /// What would be given up if they became as the other's: `None` where nobody would miss anything.
    pub fn loss(&self) -> Option<String> {
        let Self::Apart { scan, .. } = self else { return None };
        let commits = scan.missed();
        match (commits, scan.exact) {
            (0, true) => None,
            (_, true) => Some(amount(commits, scan.prepared, "transaction", scan.rows())),
            (0, false) => Some(format!("what was in the WAL before {}, which is gone", scan.since)),
            (_, false) => {
                Some(format!("at least {}", amount(commits, scan.prepared, "transaction", scan.rows())))
            }
        }
    }
}

/// How a server comes back that was away, or has gone its own way.
#[derive(Debug, Clone)]
pub struct WayBack {
    pub how: RenewHow,
    pub why: String,
    /// What is given up by that, if anything: also that nobody knows.
    pub loss: Option<String>,
}

/// A node and its files.
pub type Data<'a> = (&'a Name, Place<'a>);

/// The least that makes the data of a node those of a standby of `of`, which has its own from `primary`, or is it.
pub fn way_back((name, own): Data<'_>, (primary, theirs): Data<'_>, (of, upstream): Data<'_>) -> WayBack {
    let standing = compare(own, theirs);
    let (how, why, loss) = match &standing {
        Ok(Standing::Within) => {
            let why = format!("`{name}` has nothing that `{primary}` has not, and follows as it is");
            (RenewHow::Sign, why, None)
        }
        Ok(apart @ Standing::Apart { parting: Parting { since, is_hidden }, .. }) => {
            let loss = apart.loss();
            // Who was told of what is not in the log.
            let given_up = match &loss {
                Some(loss) => format!("{loss}, acknowledged or not"),
                None => "nothing that anybody would miss".to_owned(),
            };
            let (how, remedy) = match is_hidden {
                false => (RenewHow::Rewind, format!(": pg_rewind makes it as `{primary}` is")),
                // pg_rewind compares the numbers alone, and would leave one's rows under the other's log.
                true => (
                    RenewHow::Clone,
                    format!(", under the number of a timeline of `{primary}`: a new base backup"),
                ),
            };
            let why = format!("`{name}` has gone its own way since {since}{remedy}; given up: {given_up}");
            (how, why, loss)
        }
        Err(error) => {
            let why = format!("whether `{name}` has gone its own way, pg_rewind finds out: {error:#}");
            (RenewHow::Rewind, why, Some(format!("nobody knows what: {error:#}")))
        }
    };
    // pg_rewind does not ask for that, and the node would wait for ever. What can't be read here it finds out itself.
    if matches!((end(own), upstream.begin()), (Ok(end), Ok(begin)) if end < begin) {
        let why = format!("`{of}` has not kept the WAL that `{name}` needs: a new base backup");
        return WayBack { how: RenewHow::Clone, why: with_loss(why, loss.as_deref()), loss };
    }
    WayBack { how, why, loss }
}

/// What is done, and what is given up by it, if anything.
pub fn with_loss(why: String, loss: Option<&str>) -> String {
    match loss {
        Some(loss) => format!("{why}; given up: {loss}, acknowledged or not"),
        None => why,
    }
}

/// So many, as people say it.
pub fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `3 transactions (1 prepared) with 5 rows`, or another word for transaction.
pub fn amount(commits: u64, prepared: u64, what: &str, rows: u64) -> String {
    let prepared = if prepared == 0 { String::new() } else { format!(" ({prepared} prepared)") };
    format!("{}{prepared} with {}", counted(commits, what), counted(rows, "row"))
}

/// Compares the data of a server that does not run with those of another one.
///
/// # Errors
/// When one of them can't be read, or they are of two clusters.
pub fn compare(own: Place<'_>, other: Place<'_>) -> Result<Standing> {
    let own_end = end(own)?;
    // Where the other one is now matters only on the timeline that it is on.
    let is_current = own.timeline()?.0 == other.timeline()?.0;
    let their_end = if is_current { end(other)? } else { own_end };
    let parting = match parting(own, own_end.min(their_end), other)? {
        None if own_end > their_end => Some(Parting { since: their_end, is_hidden: false }),
        found => found,
    };
    Ok(match parting {
        None => Standing::Within,
        Some(parting) => Standing::Apart { scan: own.lost(parting.since)?, parting },
    })
}

/// Where the data of a standby have left those that they are to be a part of, if they have. Cheaper than [`compare`], and also
/// right while both of them run: who is on the timeline that is written still may be looked at before the other one.
///
/// # Errors
/// As [`compare`].
pub fn left(own: Place<'_>, other: Place<'_>) -> Result<Option<Lsn>> {
    let ((timeline, _), (_, theirs)) = (own.timeline()?, other.timeline()?);
    let own_end = match theirs.iter().find(|switch| switch.timeline == timeline) {
        Some(switch) => own.end(switch.end)?,
        None => Lsn(0),
    };
    left_before(own, own_end, other)
}

/// The same for what somebody has up to a position: whether that is a part of what the other one has, or is about to have.
///
/// # Errors
/// As [`compare`].
pub fn left_before(own: Place<'_>, at: Lsn, other: Place<'_>) -> Result<Option<Lsn>> {
    Ok(parting(own, at, other)?.map(|parting| parting.since))
}

fn parting(own: Place<'_>, at: Lsn, other: Place<'_>) -> Result<Option<Parting>> {
    ensure!(own.control()?.system == other.control()?.system, "they are of two clusters");
    let ((timeline, ours), (current, theirs)) = (own.timeline()?, other.timeline()?);
    let (ours, theirs) = (ways(&ours, timeline, at), ways(&theirs, current, Lsn(u64::MAX)));
    let shown = fork(&ours, &theirs);
    let hidden = hidden(own, other, &common_begins(&ours, &theirs), shown.unwrap_or(at))?;
    let since = |since: Lsn, is_hidden: bool| Parting { since, is_hidden };
    Ok(hidden.map(|at| since(at, true)).or(shown.map(|at| since(at, false))))
}

/// Where the logs differ before a position up to which they are the same by their numbers, if they do. Where one of them has no
/// log any more, the numbers are all that there is.
fn hidden(own: Place<'_>, other: Place<'_>, begins: &[Lsn], end: Lsn) -> Result<Option<Lsn>> {
    let is_same = |byte: u64| -> Result<bool> {
        let sums = own.checksum_at(Lsn(byte))?.zip(other.checksum_at(Lsn(byte))?);
        Ok(sums.is_none_or(|(one, other)| one == other))
    };
    // The first record of the newest timeline, and the last that both have.
    let looked_at = [begins.last().map(|begin| begin.0), end.0.checked_sub(1)];
    let mut differs = None;
    for byte in looked_at.into_iter().flatten() {
        if differs.is_none() && !is_same(byte)? {
            differs = Some(byte);
        }
    }
    let Some(mut differs) = differs else { return Ok(None) };
    let mut same = own.begin()?.max(other.begin()?).0;
    if !is_same(same)? {
        return Ok(Some(begins.iter().rev().find(|begin| begin.0 <= same).copied().unwrap_or(Lsn(same))));
    }
    while differs > same + 1 {
        let middle = same + (differs - same) / 2;
        match is_same(middle)? {
            true => same = middle,
            false => differs = middle,
        }
    }
    Ok(Some(Lsn(differs)))
}

/// Where the timelines begin that by their numbers are the same in both, but for the first one, which initdb begins.
fn common_begins(own: &[(u32, Lsn)], other: &[(u32, Lsn)]) -> Vec<Lsn> {
    let both = own.windows(2).zip(other.windows(2));
    let same = both.take_while(|(one, two)| one[0] == two[0] && one[1].0 == two[1].0);
    same.map(|(one, _)| one[0].1).collect()
}

/// Where the log of a data directory ends.
fn end(place: Place<'_>) -> Result<Lsn> {
    place.end(place.control()?.redo)
}

/// Timelines and where each of them ends.
fn ways(history: &[Switch], timeline: u32, end: Lsn) -> Vec<(u32, Lsn)> {
    history.iter().map(|switch| (switch.timeline, switch.end)).chain([(timeline, end)]).collect()
}

/// Where the first history leaves the second one, if it does.
fn fork(own: &[(u32, Lsn)], other: &[(u32, Lsn)]) -> Option<Lsn> {
    let mut common = Lsn(0);
    for (i, (timeline, end)) in own.iter().enumerate() {
        let Some((_, left)) = other.get(i).filter(|(same, _)| same == timeline) else { return Some(common) };
        let is_last = i + 1 == own.len();
        if end > left || (end < left && !is_last) {
            return Some(*end.min(left));
        }
        common = *end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_a_part_of_another_up_to_where_that_has_left_it() {
        let ways = |list: &[(u32, u64)]| list.iter().map(|(t, end)| (*t, Lsn(*end))).collect::<Vec<_>>();
        let fork = |own: &[(u32, u64)], other: &[(u32, u64)]| super::fork(&ways(own), &ways(other));
        let other = [(1, 100), (2, 200), (4, 300)];
        for within in [&[(1, 90)][..], &[(1, 100)], &[(1, 100), (2, 200), (4, 300)], &[(1, 100), (2, 150)]] {
            assert_eq!(fork(within, &other), None, "{within:?}");
        }
        assert_eq!(fork(&[(1, 101)], &other), Some(Lsn(100)));
        assert_eq!(fork(&[(1, 100), (2, 201)], &other), Some(Lsn(200)));
        // The same number begun elsewhere, earlier or later, and another number.
        assert_eq!(fork(&[(1, 90), (2, 150)], &other), Some(Lsn(90)));
        assert_eq!(fork(&[(1, 110), (2, 150)], &other), Some(Lsn(100)));
        assert_eq!(fork(&[(1, 100), (3, 150)], &other), Some(Lsn(100)));
        assert_eq!(fork(&[(1, 100), (2, 200), (4, 250), (5, 260)], &other), Some(Lsn(250)));
        // One that is further than its primary.
        assert_eq!(fork(&[(1, 100), (2, 150)], &[(1, 100), (2, 140)]), Some(Lsn(140)));
    }

    #[test]
    fn timelines_are_common_that_have_one_number_and_begin_at_one_place() {
        let ways = |list: &[(u32, u64)]| list.iter().map(|(t, end)| (*t, Lsn(*end))).collect::<Vec<_>>();
        let begins = |own: &[(u32, u64)], other: &[(u32, u64)]| common_begins(&ways(own), &ways(other));
        let other = [(1, 100), (2, 200), (4, 300)];
        assert_eq!(begins(&[(1, 90)], &other), []);
        assert_eq!(begins(&[(1, 100), (2, 150)], &other), [Lsn(100)]);
        assert_eq!(begins(&[(1, 100), (2, 200), (4, 250)], &other), [Lsn(100), Lsn(200)]);
        assert_eq!(begins(&[(1, 100), (2, 200), (3, 250)], &other), [Lsn(100)]);
        assert_eq!(begins(&[(1, 90), (2, 200), (4, 250)], &other), []);
    }
}
