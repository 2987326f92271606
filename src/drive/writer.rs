//! One writer: a thread with a session and a ledger. Sent is noted before the commit is sent; what came of it, before
//! anything else is done.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    TABLE,
    ledger::{Kind, Ledger, Record},
    place::Place,
    run::Clock,
    session::{Fate, Session},
};

/// How long to wait before the next attempt to find a server.
const RETRY: Duration = Duration::from_millis(5);

/// A rest is never longer at once: a stop must be noticed.
const NAP: Duration = Duration::from_millis(20);

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub rows_per_commit: u16,
    /// From one commit to the next, if they are not to follow as fast as they go.
    pub interval: Option<Duration>,
    /// How long a commit may take before it is given up.
    pub patience: Duration,
}

/// What the writers of a run have in common.
#[derive(Debug, Default)]
pub struct Signals {
    /// All are to end.
    pub stop: AtomicBool,
    /// Somebody had a commit acknowledged.
    pub acknowledged: AtomicBool,
}

impl Signals {
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One writer, before it begins.
pub struct Writer<'a> {
    pub number: i32,
    pub ledger: Ledger,
    pub place: &'a Place,
    pub clock: Clock,
    pub pace: Pace,
    pub signals: &'a Signals,
}

impl Writer<'_> {
    /// Writes until the signal to stop.
    ///
    /// # Errors
    /// When the ledger can't be written: what is not remembered must not be sent.
    pub fn run(mut self) -> Result<()> {
        let mut session = Session::new()?;
        let mut address = None;
        let mut seq = 1;
        let mut due = Instant::now();
        while !self.signals.stopping() {
            if due > Instant::now() {
                session.rest(NAP.min(due - Instant::now()));
                continue;
            }
            if !session.is_open() {
                address = self.connect(&mut session);
                if !session.is_open() {
                    session.rest(RETRY);
                    continue;
                }
            }
            let leave = || address.is_some_and(|address| self.place.has_moved_from(address));
            let command = insert(self.number, seq, self.pace.rows_per_commit);
            note(&mut self.ledger, &self.clock, Kind::Sent, self.pace.rows_per_commit, seq)?;
            let fate = session.write(&command, self.pace.patience, leave);
            note(&mut self.ledger, &self.clock, kind(fate), self.pace.rows_per_commit, seq)?;
            seq += u64::from(self.pace.rows_per_commit);
            match (fate, self.pace.interval) {
                (Fate::Acked, interval) => {
                    self.signals.acknowledged.store(true, Ordering::Relaxed);
                    // Time that was lost is not made up for: the rate is one to look at a server with, not a quota.
                    due = interval.map_or(due, |interval| (due + interval).max(Instant::now()));
                }
                (Fate::Refused, _) => session.rest(RETRY),
                (Fate::Unknown, _) => {}
            }
        }
        note(&mut self.ledger, &self.clock, Kind::Ended, 0, 0)
    }

    /// Looks for a server that takes writes; gives its address, unless that failed.
    fn connect(&self, session: &mut Session) -> Option<std::net::SocketAddrV4> {
        let login = self.place.login().ok()?;
        let leave = || self.signals.stopping() || self.place.has_moved_from(login.address);
        session.connect(&login, self.pace.patience, leave).ok()?;
        Some(login.address)
    }
}

fn note(ledger: &mut Ledger, clock: &Clock, kind: Kind, rows: u16, seq: u64) -> Result<()> {
    ledger.append(Record { kind, rows, seq, time: clock.now()? }).context("write a ledger")
}

fn kind(fate: Fate) -> Kind {
    match fate {
        Fate::Acked => Kind::Acked,
        Fate::Refused => Kind::Refused,
        Fate::Unknown => Kind::Unknown,
    }
}

/// One commit: rows with consecutive numbers.
fn insert(writer: i32, seq: u64, rows: u16) -> String {
    match rows {
        1 => format!("INSERT INTO {TABLE} (writer, seq) VALUES ({writer}, {seq})"),
        _ => format!(
            "INSERT INTO {TABLE} (writer, seq) SELECT {writer}, generate_series({seq}::bigint, {})",
            seq + u64::from(rows) - 1
        ),
    }
}
