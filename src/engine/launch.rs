//! Bringing a node up: host steps, pid 1, and then listening to what pid 1 reports until its server answers.
//! A failure at any point takes everything back and becomes one error.

use std::{
    ops::Range,
    os::fd::AsFd,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Error, Result};
use nix::sys::signal::Signal;

use super::{
    At, Reach, StepFailed, birth,
    follower::Follower,
    holder,
    interrupt::Interrupts,
    ready::{self, Answer},
    taken_back, total,
};
use crate::{
    hint, plan,
    postgres::report::{Phase, Reason, Report},
    spawn::{self, Spawned, Stdio},
    spec::Name,
    state::{LastStart, NodeDir, NodeState, Progress, Root},
    step::{HostStep, InnerStep},
    sys::{cgroup, process, tail},
};

/// What a caller shows while a node comes up.
pub trait Talk {
    fn step(&mut self, number: usize, total: usize, step: &HostStep);
    fn phase(&mut self, phase: Phase);
    /// How many bytes of how many a base backup has copied.
    fn copied(&mut self, bytes: u64, total: u64);
    fn note(&mut self, text: &str);
}

/// Applies the host steps and starts pid 1, which is at work on its own steps while those that connect it are applied.
/// The caller holds the lab's lock and has saved the state.
///
/// # Errors
/// [`StepFailed`], after everything within `reach` was taken back.
pub fn bring_up(
    root: &Root,
    state: &mut NodeState,
    reach: Reach,
    stdio: Stdio,
    talk: &mut dyn Talk,
) -> Result<Spawned> {
    let node = root.node(&state.spec.lab, &state.spec.node);
    let journal = node.progress()?;
    let (count, birth) = (total(&state.plan), birth(&state.plan));
    let mut apply = |state: &NodeState, steps: Range<usize>| {
        let mut tell = |index: usize, step: &HostStep| talk.step(index + 1, count, step);
        super::apply(&state.plan, steps, reach, &journal, &mut tell)
    };
    apply(state, 0..birth).map_err(|failure| super::roll_back(root, state, reach, failure))?;
    let given = state.postgres().map_or(Ok(()), |postgres| node.give_orders(&postgres.orders));
    let made = given.and_then(|()| spawn::spawn(&node, &state.plan, cgroup_of(state)?, stdio));
    let newborn = made.map_err(|error| unborn(root, state, reach, birth, error))?;
    if let Err(failure) = apply(state, birth..state.plan.host.len()) {
        newborn.end();
        return Err(super::roll_back(root, state, reach, failure));
    }
    let born = newborn.settle().and_then(|spawned| remember((&node, &journal), state, spawned, stdio));
    born.map_err(|error| unborn(root, state, reach, state.plan.host.len(), error))
}

/// There is no pid 1, or none that anybody knows of. `begun` host steps are taken back.
fn unborn(root: &Root, state: &NodeState, reach: Reach, begun: usize, error: Error) -> Error {
    let at = match error.downcast_ref::<spawn::InnerFailed>() {
        Some(failed) => At::Inner(failed.index),
        None => At::Birth,
    };
    end_all(state);
    let host = taken_back(root, state, reach, begun);
    told(state, Failure { at, error, code: 125, stays: None }, host, Vec::new())
}

fn remember(
    (node, journal): (&NodeDir, &Progress),
    state: &mut NodeState,
    mut spawned: Spawned,
    stdio: Stdio,
) -> Result<Spawned> {
    let is_first = state.init.is_none();
    // Whatever fails from here on, it is known whom to end.
    state.init = Some(spawned.init);
    let start = LastStart { init: spawned.init, boot_id: process::boot_id()?.to_owned(), started: now() };
    state.was_started(start.clone());
    journal.started(&start)?;
    if is_first && state.data.is_some() {
        // What was never started is half made, and a power cut takes the journal.
        node.save(state)?;
    }
    if stdio == Stdio::Terminal {
        spawned.receive_terminal()?;
    }
    spawned.release();
    Ok(spawned)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn cgroup_of(state: &NodeState) -> Result<cgroup::Cgroup> {
    let path = state.plan.host.iter().find_map(|step| match step {
        HostStep::CreateCgroup { path, .. } => Some(path),
        _ => None,
    });
    cgroup::Cgroup::new(&cgroup::detect()?, path.context("the plan has no cgroup")?)
}

/// The first of the inner steps in which something of the image runs. Plans of before had but the last one.
fn begin_of_work(state: &NodeState) -> usize {
    let inner = &state.plan.inner;
    inner.iter().position(|step| *step == InnerStep::FillDataDirectory).unwrap_or(inner.len() - 1)
}

/// Why a node did not come up.
struct Failure {
    at: At,
    error: Error,
    code: i32,
    /// What to say instead of ending the server, if that was there before.
    stays: Option<String>,
}

impl Failure {
    /// Of pid 1 itself, the last of the inner steps.
    fn of_init(state: &NodeState, error: Error, code: i32) -> Self {
        Self { at: At::Inner(state.plan.inner.len() - 1), error, code, stays: None }
    }

    /// Of pid 1 in a phase of its own work.
    fn in_phase(state: &NodeState, phase: Phase, error: Error, code: i32) -> Self {
        let fills = [Phase::Initdb, Phase::Scripts, Phase::BaseBackup, Phase::Clone, Phase::Rewind];
        let failure = Self::of_init(state, error, code);
        match fills.contains(&phase) {
            true => Self { at: At::Inner(begin_of_work(state)), ..failure },
            false => failure,
        }
    }

    /// Of the wait for the server. A command has no such step, and is waited for until pid 1 has become it.
    fn of_wait(state: &NodeState, error: String, code: i32) -> Self {
        let error = Error::msg(error);
        match state.plan.after.is_empty() {
            true => Self::of_init(state, error, code),
            false => Self { at: At::After(0), error, code, stays: None },
        }
    }
}

/// How long a command waits, and what may end that early.
pub struct Patience<'a> {
    pub timeout: Duration,
    /// How long a standby that answers queries may take until it streams.
    pub stream: Duration,
    pub interrupts: &'a Interrupts,
}

/// Listens to pid 1 until the node is up: its server answers, or its command runs. The caller does not hold
/// the lab's lock: other nodes may come and go meanwhile. Never gives [`Answer::NotYet`].
///
/// # Errors
/// [`StepFailed`] with the end of the log, after the node was ended and everything within `reach` taken back.
/// A server of a node that was there before is left alone if it only recovers for longer than `patience`, for it
/// would have to begin anew; and if it answers, but can't follow.
pub fn wait_until_up(
    root: &Root,
    state: &NodeState,
    spawned: &mut Spawned,
    reach: Reach,
    patience: &Patience<'_>,
    talk: &mut dyn Talk,
) -> Result<Answer> {
    listen(root, state, spawned, patience, talk).or_else(|failure| {
        let name = &state.spec.node;
        if let (Some(way_out), Reach::Running) = (&failure.stays, reach) {
            return Err(hint::advise(format!("`{name}` is not ready: {:#}", failure.error), way_out));
        }
        let _lock = root.lock(&state.spec.lab)?;
        let node = root.node(&state.spec.lab, name);
        Err(match still(&node, spawned) {
            Some(now) => give_up(root, &now, reach, failure),
            // Whoever has taken it from us has taken back what was ours.
            None => told(state, failure, bereft(&node, name), Vec::new()),
        })
    })
}

/// The node that was brought up, as it is now: it may have been given other orders. `None`: while nobody held the lock, it was
/// removed, or made anew under the same name, or stopped and started again.
fn still(node: &NodeDir, spawned: &Spawned) -> Option<NodeState> {
    node.load().ok().flatten().filter(|now| now.init == Some(spawned.init))
}

/// What has become of a node that is not what it was.
fn bereft(node: &NodeDir, name: &Name) -> String {
    match node.path().exists() {
        true => format!("`{name}` was made or started anew by another command, and is left alone"),
        false => format!("`{name}` was removed by another command"),
    }
}

fn listen(
    root: &Root,
    state: &NodeState,
    spawned: &mut Spawned,
    patience: &Patience<'_>,
    talk: &mut dyn Talk,
) -> Result<Answer, Failure> {
    let node = root.node(&state.spec.lab, &state.spec.node);
    let deadline = Instant::now() + patience.timeout;
    let broken = |error| Failure::of_init(state, error, 1);
    let mut phase = Phase::Preparing;
    let mut follower = Follower::new(state, &node);
    loop {
        // Up to there pid 1 tells what happens. Whether the server answers has to be asked: a bare start takes 40 ms.
        let pause = if phase == Phase::Running { 1 } else { 100 };
        let interrupt = Some(patience.interrupts.as_fd());
        match spawned.reports.next(Duration::from_millis(pause), interrupt).map_err(broken)? {
            spawn::Heard::Report(report) => phase = hear(root, state, report, phase, talk)?.unwrap_or(phase),
            spawn::Heard::End if state.plan.after.is_empty() => return Ok(Answer::Ready),
            heard => {
                if matches!(heard, spawn::Heard::End) {
                    check_alive(state, &node, spawned)?;
                }
                if let Some(signal) = patience.interrupts.next().map_err(broken)? {
                    let error = format!("{signal} during {}", phase.word());
                    return Err(Failure::of_wait(state, error, 128 + signal as i32));
                }
            }
        }
        if phase == Phase::BaseBackup {
            follower.tell_progress(talk);
        }
        let answer = match follower.answer.take() {
            Some(answer) => answer,
            None => ask(state, &node, phase).map_err(broken)?,
        };
        let judged = follower.judge(answer, patience, talk);
        if let Some(why) = follower.stuck(root) {
            let stays = Some(format!(
                "it answers queries; to give it a new base backup: `pgbox reinit {}`",
                state.spec.node
            ));
            return Err(Failure { stays, ..Failure::of_wait(state, why, 1) });
        }
        match judged {
            Answer::NotYet(_) if Instant::now() < deadline => {}
            Answer::NotYet(why) => {
                let error =
                    format!("no answer after {}: {why}", humantime::format_duration(patience.timeout));
                let name = &state.spec.node;
                let stays = (phase == Phase::Starting).then(|| {
                    format!("it goes on by itself; `pgbox wait {name}` waits for it, `pgbox logs -f {name}` shows it")
                });
                return Err(Failure { stays, ..Failure::of_wait(state, error, 1) });
            }
            answer => return Ok(answer),
        }
    }
}

/// Passes a report on; gives the new phase, if it is one.
fn hear(
    root: &Root,
    state: &NodeState,
    report: Report,
    before: Phase,
    talk: &mut dyn Talk,
) -> Result<Option<Phase>, Failure> {
    match report {
        Report::Phase(phase) => {
            talk.phase(phase);
            return Ok(Some(phase));
        }
        Report::Note(text) => talk.note(&on_host(state, &text)),
        Report::StepFailed { index, error } => {
            let at = At::Inner(index);
            return Err(Failure { at, error: Error::msg(error), code: 125, stays: None });
        }
        Report::Failed { error, in_use, code } => {
            let error = if in_use { in_use_by(root, state, &error) } else { on_host(state, &error) };
            return Err(Failure::in_phase(state, before, Error::msg(error), code));
        }
    }
    Ok(None)
}

fn check_alive(state: &NodeState, node: &NodeDir, spawned: &Spawned) -> Result<(), Failure> {
    let broken = |error| Failure::of_init(state, error, 1);
    if !process::has_ended(spawned.child.pidfd.as_fd(), Duration::from_millis(1)).map_err(broken)? {
        return Ok(());
    }
    if still(node, spawned).is_none() {
        return Err(broken(Error::msg(bereft(node, &state.spec.node))));
    }
    let status = node.status().map_err(broken)?;
    let how = match status.reason {
        Some(Reason::Stopped) => "it was stopped before it was ready".to_owned(),
        _ => status.error.unwrap_or_else(|| "pid 1 ended and left no word".to_owned()),
    };
    Err(broken(Error::msg(how)))
}

fn ask(state: &NodeState, node: &NodeDir, phase: Phase) -> Result<Answer> {
    match state.server() {
        // Asked earlier it would only write "the database system is starting up" into its log.
        _ if phase != Phase::Running => Ok(Answer::NotYet(phase.word().to_owned())),
        Some(address) => ready::probe(node, address),
        None => Ok(Answer::Ready),
    }
}

/// What pid 1 says of the data directory, in the host's words: inside it has another path.
fn on_host(state: &NodeState, text: &str) -> String {
    match (plan::data_dir(&state.plan.init), &state.data) {
        (Some(inside), Some(data)) => {
            text.replace(&inside.display().to_string(), &data.display().to_string())
        }
        _ => text.to_owned(),
    }
}

fn in_use_by(root: &Root, state: &NodeState, error: &str) -> String {
    let own = (&state.spec.lab, &state.spec.node);
    let find = |data| holder::find(root, data, Some(own)).ok().flatten();
    match state.data.as_deref().and_then(find) {
        Some(holder) => format!("{error}: {holder}; one data directory can serve one server"),
        None => error.to_owned(),
    }
}

/// Ends what runs, takes back the host steps, and tells it as one error. The caller holds the lab's lock.
fn give_up(root: &Root, state: &NodeState, reach: Reach, failure: Failure) -> Error {
    let node = root.node(&state.spec.lab, &state.spec.node);
    // Before pid 1 starts something there is nothing new in the log.
    let has_log = failure.at >= At::Inner(begin_of_work(state));
    let log = if has_log { tail::lines(&node.log(), 15) } else { Vec::new() };
    end_all(state);
    let host = taken_back(root, state, reach, state.plan.host.len());
    told(state, failure, host, log)
}

/// A failure as one error, with what has become of the host's objects and the end of the node's log.
fn told(state: &NodeState, failure: Failure, host: String, log: Vec<String>) -> Error {
    let Failure { at, error, code, .. } = failure;
    let cause = hint::cause_text(&error);
    // A program that failed on a full disk often says so earlier than in its last words.
    let hint = hint::for_inner_step(&cause).or_else(|| log.iter().rev().find_map(|l| hint::for_log_line(l)));
    // 125 to 127 are what `docker run` has for a command that could not be started.
    let code = if state.plan.after.is_empty() || code > 128 { code } else { 1 };
    Error::new(StepFailed { step: at.text(&state.plan), cause, hint, host, log, code })
}

/// Ends pid 1, and with it all of its pid namespace. Politely first: it then leaves no half-made cluster.
fn end_all(state: &NodeState) {
    let Some(pidfd) = state.init.and_then(|init| init.open().ok().flatten()) else { return };
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        // It may have ended by itself meanwhile; the undo of the cgroup names whoever is left.
        let _ = process::signal(pidfd.as_fd(), signal);
        if let Ok(true) = process::has_ended(pidfd.as_fd(), Duration::from_secs(10)) {
            return;
        }
    }
}
