//! What is seen of a primary at one moment, and what to make of it over time. Nothing here touches the machine.
//!
//! The rule that surprises people: most of the time in which a primary does not work, somebody wanted that. So the question
//! comes first whether it was asked to, and only then how long it has been so.

use std::time::{Duration, Instant};

use crate::{
    postgres::report::{Phase, Reason, Status},
    spec::SyncRule,
};

/// What is seen of a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    Well,
    /// It was started and is not up yet.
    Coming,
    /// It does not work, because somebody wanted that, or nobody else could do better.
    LetBe(String),
    /// It has ended, and does not come back by itself.
    Down(String),
    /// It does not work, and may again.
    Failing(String),
    /// It works, and did not in between.
    Returned(String),
}

/// What there is to say after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Nothing that was not said before.
    Nothing,
    LetBe(String),
    Trouble(String),
    /// It works again after so long.
    Back(Duration),
    /// It is time to act.
    Failed {
        what: String,
        after: Duration,
    },
}

/// Remembers since when something is wrong.
#[derive(Debug)]
pub struct Judge {
    detect: Duration,
    /// The first sign of a failure.
    since: Option<Instant>,
    /// When it was let be first.
    away: Option<Instant>,
    /// What it was let be for when it was seen last.
    let_be: Option<String>,
}

impl Judge {
    pub fn new(detect: Duration) -> Self {
        Self { detect, since: None, away: None, let_be: None }
    }

    /// Forgets all of it, for another primary.
    pub fn forget(&mut self) {
        *self = Self::new(self.detect);
    }

    /// Takes notice of what was seen between `begun` and `now`.
    pub fn see(&mut self, sight: Sight, begun: Instant, now: Instant) -> Finding {
        let let_be = match &sight {
            Sight::LetBe(what) => Some(what.clone()),
            _ => None,
        };
        let was_let_be = std::mem::replace(&mut self.let_be, let_be);
        match sight {
            // What comes up after a failure is not back yet, but it is no failure any more either.
            Sight::Coming => Finding::Nothing,
            Sight::Well => {
                let away = self.since.take().or(self.away);
                self.away = None;
                away.map_or(Finding::Nothing, |since| Finding::Back(now - since))
            }
            Sight::LetBe(what) => {
                self.since = None;
                self.away.get_or_insert(now);
                if was_let_be.as_ref() == Some(&what) { Finding::Nothing } else { Finding::LetBe(what) }
            }
            Sight::Down(what) => {
                let since = *self.since.get_or_insert(begun);
                Finding::Failed { what, after: now - since }
            }
            Sight::Failing(what) => match self.since {
                Some(since) if now - since >= self.detect => Finding::Failed { what, after: now - since },
                Some(_) => Finding::Nothing,
                None => {
                    self.since = Some(begun);
                    Finding::Trouble(what)
                }
            },
            Sight::Returned(_) if self.since.is_some() => Finding::Nothing,
            Sight::Returned(what) => {
                self.since = Some(begun);
                Finding::Trouble(what)
            }
        }
    }
}

/// What pid 1 said last, of a primary whose pid 1 is no more.
pub fn ended(status: &Status, was_up: bool, same_boot: bool) -> Sight {
    let why = || status.error.as_deref().map(|error| format!(" ({error})")).unwrap_or_default();
    match (status.phase, status.reason) {
        _ if !same_boot => Sight::LetBe("has not been started since the host was".to_owned()),
        (Phase::Ended, Some(Reason::Stopped)) => Sight::LetBe("was asked to stop".to_owned()),
        (Phase::Ended, Some(Reason::Completed)) => Sight::LetBe("was shut down from inside".to_owned()),
        (Phase::Ended, Some(Reason::Failed)) if !was_up => {
            Sight::LetBe(format!("was started and did not come up{}", why()))
        }
        (Phase::Ended, Some(Reason::DiskFull)) => Sight::Down(format!("has ended on a full disk{}", why())),
        (Phase::Ended, _) => Sight::Down(format!("has ended{}", why())),
        // It left no last word.
        _ => Sight::Down("was killed".to_owned()),
    }
}

/// What pid 1 said last, of a primary whose pid 1 lives, as far as that says enough. `crashes` is how many there were when it was
/// seen last: who starts anew without one was asked to, however short that took.
pub fn living(status: &Status, was_up: bool, crashes: u32) -> Option<Sight> {
    let why = status.error.as_deref().unwrap_or("the server has crashed");
    match status.phase {
        Phase::Running if status.restarts != crashes => {
            Some(Sight::Returned(format!("was started again by its pid 1 ({why})")))
        }
        Phase::Running => None,
        Phase::Starting if was_up && status.restarts == crashes => {
            Some(Sight::LetBe("was asked to stop, or to start anew".to_owned()))
        }
        Phase::Stopping => Some(Sight::LetBe("was asked to stop, or to start anew".to_owned())),
        Phase::Waiting | Phase::Starting if was_up => {
            Some(Sight::Failing(format!("is started again by its pid 1 ({why})")))
        }
        Phase::Ended => Some(Sight::Failing("is ending".to_owned())),
        _ => Some(Sight::Coming),
    }
}

/// The standbys that its commits wait for in vain, given who streams from it. `None` when they do not.
pub fn waits_in_vain(told: &str, streaming: &[String]) -> Option<SyncRule> {
    let rule: SyncRule = told.parse().ok()?;
    let there = rule.names.iter().filter(|name| streaming.iter().any(|other| other == name.as_str())).count();
    (there < rule.count).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: Phase, reason: Option<Reason>) -> Status {
        Status { phase, reason, ..Status::default() }
    }

    fn failing() -> Sight {
        Sight::Failing("is silent".to_owned())
    }

    #[test]
    fn silence_counts_from_its_first_sign_and_ends_with_an_answer() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut judge = Judge::new(Duration::from_secs(1));
        assert_eq!(judge.see(Sight::Well, at(0), at(1)), Finding::Nothing);
        assert_eq!(judge.see(failing(), at(100), at(600)), Finding::Trouble("is silent".to_owned()));
        assert_eq!(judge.see(failing(), at(700), at(900)), Finding::Nothing);
        assert_eq!(judge.see(Sight::Well, at(950), at(960)), Finding::Back(Duration::from_millis(860)));
        assert_eq!(judge.see(failing(), at(2000), at(2500)), Finding::Trouble("is silent".to_owned()));
        let failed = Finding::Failed { what: "is silent".to_owned(), after: Duration::from_secs(1) };
        assert_eq!(judge.see(failing(), at(2600), at(3000)), failed);
    }

    #[test]
    fn death_needs_no_time_and_a_plan_is_told_once() {
        let now = Instant::now();
        let mut judge = Judge::new(Duration::from_secs(1));
        let planned = || ended(&status(Phase::Ended, Some(Reason::Stopped)), true, true);
        assert_eq!(judge.see(planned(), now, now), Finding::LetBe("was asked to stop".to_owned()));
        assert_eq!(judge.see(planned(), now, now), Finding::Nothing);
        assert_eq!(judge.see(Sight::Coming, now, now), Finding::Nothing);
        assert_eq!(judge.see(Sight::Well, now, now), Finding::Back(Duration::ZERO));
        let killed = ended(&status(Phase::Running, None), true, true);
        let failed = Finding::Failed { what: "was killed".to_owned(), after: Duration::ZERO };
        assert_eq!(judge.see(killed, now, now), failed);
    }

    #[test]
    fn what_somebody_wanted_is_no_failure() {
        let planned = |sight| matches!(sight, Sight::LetBe(_));
        assert!(planned(ended(&status(Phase::Ended, Some(Reason::Completed)), true, true)));
        assert!(planned(ended(&status(Phase::Ended, Some(Reason::Failed)), false, true)));
        assert!(planned(ended(&status(Phase::Running, None), true, false)));
        assert!(!planned(ended(&status(Phase::Ended, Some(Reason::Crashed)), true, true)));
        assert!(planned(living(&status(Phase::Stopping, None), true, 0).unwrap()));
        assert_eq!(living(&status(Phase::Starting, None), false, 0), Some(Sight::Coming));
        assert!(planned(living(&status(Phase::Starting, None), true, 0).unwrap()));
        let crashed = Status { restarts: 1, ..status(Phase::Starting, None) };
        assert!(matches!(living(&crashed, true, 0), Some(Sight::Failing(_))));
        assert!(matches!(living(&status(Phase::Waiting, None), true, 0), Some(Sight::Failing(_))));
        assert_eq!(living(&status(Phase::Running, None), true, 0), None);
    }

    #[test]
    fn a_crash_between_two_looks_is_told_and_is_no_failure() {
        let now = Instant::now();
        let mut judge = Judge::new(Duration::ZERO);
        let crashed = Status { restarts: 1, ..status(Phase::Running, None) };
        let returned = || living(&crashed, true, 0).expect("it says something");
        let trouble = Finding::Trouble("was started again by its pid 1 (the server has crashed)".to_owned());
        assert_eq!(judge.see(returned(), now, now), trouble);
        assert_eq!(judge.see(Sight::Well, now, now), Finding::Back(Duration::ZERO));
        // Who was seen to fail before has had its trouble told.
        assert!(matches!(judge.see(failing(), now, now), Finding::Trouble(_)));
        assert_eq!(judge.see(returned(), now, now), Finding::Nothing);
        assert_eq!(living(&crashed, true, 1), None, "that is over");
    }

    #[test]
    fn commits_wait_in_vain_when_too_few_stream() {
        let told = "ANY 1 (\"r1\", \"r2\")";
        assert!(waits_in_vain(told, &[]).is_some());
        assert!(waits_in_vain(told, &["r2".to_owned()]).is_none());
        assert!(waits_in_vain(told, &["x".to_owned()]).is_some());
        assert!(waits_in_vain("", &[]).is_none());
    }
}
