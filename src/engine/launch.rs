//! Bringing a node up: host steps, pid 1, and then listening to what pid 1 reports until its server answers.
//! A failure at any point takes everything back and becomes one error.

use std::{
    io::{Read, Seek, SeekFrom},
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Error, Result};
use nix::sys::signal::Signal;

use super::{
    Reach, StepFailed,
    ready::{self, Answer},
    taken_back, total,
};
use crate::{
    hint, plan,
    postgres::report::{Phase, Report},
    spawn::{self, Spawned, Stdio},
    state::{NodeDir, NodeState, Root},
    step::{AfterStep, HostStep},
    sys::{cgroup, process},
};

/// What a caller shows while a node comes up.
pub trait Talk {
    fn step(&mut self, number: usize, total: usize, title: &str);
    fn phase(&mut self, phase: Phase);
    fn note(&mut self, text: &str);
}

/// Applies the host steps and starts pid 1. The caller holds the lab's lock and has saved the state.
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
    let count = total(&state.plan);
    let mut tell = |index: usize, step: &HostStep| talk.step(index + 1, count, &step.lesson().title);
    super::apply(&state.plan, reach, &journal, &mut tell)
        .map_err(|failure| super::roll_back(&state.plan, reach, &node, failure))?;
    let group = cgroup_of(state)?;
    match spawn::spawn(&node, &state.plan, &group, stdio).and_then(|spawned| remember(&node, state, spawned))
    {
        Ok(spawned) => Ok(spawned),
        Err(error) => Err(inner_failure(root, state, reach, 0, &error, 125)),
    }
}

fn remember(node: &NodeDir, state: &mut NodeState, spawned: Spawned) -> Result<Spawned> {
    state.init = Some(spawned.init);
    state.boot_id = process::boot_id()?.to_owned();
    state.started = now();
    node.save(state)?;
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

/// Listens to pid 1 until the node is up: its server answers, or its command runs.
///
/// # Errors
/// [`StepFailed`] with the end of the log, after the node was ended and everything within `reach` taken back.
pub fn wait_until_up(
    root: &Root,
    state: &NodeState,
    spawned: &mut Spawned,
    reach: Reach,
    timeout: Duration,
    talk: &mut dyn Talk,
) -> Result<()> {
    let node = root.node(&state.spec.lab, &state.spec.node);
    let deadline = Instant::now() + timeout;
    let mut phase = Phase::Preparing;
    loop {
        // While the server starts, look every millisecond: a bare start takes 40 ms.
        let patience = if phase == Phase::Preparing { 1000 } else { 1 };
        match spawned.reports.next(Duration::from_millis(patience))? {
            spawn::Heard::Report(Report::Phase(new)) => {
                phase = new;
                talk.phase(new);
            }
            spawn::Heard::Report(Report::Note(text)) => talk.note(&on_host(state, &text)),
            spawn::Heard::Report(Report::StepFailed { index, error }) => {
                return Err(inner_failure(root, state, reach, index, &Error::msg(error), 125));
            }
            spawn::Heard::Report(Report::Failed { error, in_use, code }) => {
                let error = if in_use { in_use_by(root, state, &error) } else { on_host(state, &error) };
                let last = state.plan.inner.len() - 1;
                return Err(inner_failure(root, state, reach, last, &Error::msg(error), code));
            }
            spawn::Heard::End if state.plan.after.is_empty() => return Ok(()),
            spawn::Heard::End
                if process::has_ended(spawned.child.pidfd.as_fd(), Duration::from_millis(1))? =>
            {
                let last = state.plan.inner.len() - 1;
                let how =
                    crate::facts::node::status(&node)?.error.unwrap_or_else(|| "pid 1 ended".to_owned());
                return Err(inner_failure(root, state, reach, last, &Error::msg(how), 1));
            }
            spawn::Heard::End | spawn::Heard::Nothing => {}
        }
        match ask(state, &node, phase)? {
            Answer::Ready => return Ok(()),
            Answer::Refused(why) => {
                talk.note(&refused(state, &why));
                return Ok(());
            }
            Answer::NotYet(_) => {}
        }
        if Instant::now() >= deadline {
            return Err(too_late(root, state, reach, timeout));
        }
    }
}

fn ask(state: &NodeState, node: &NodeDir, phase: Phase) -> Result<Answer> {
    match state.plan.after.first() {
        None if phase == Phase::Running => Ok(Answer::Ready),
        // Before, only the server that runs the init scripts could answer, and it listens on no address.
        Some(AfterStep::WaitUntilReady { address, .. })
            if matches!(phase, Phase::Starting | Phase::Running) =>
        {
            ready::probe(node, *address)
        }
        _ => Ok(Answer::NotYet(phase.word().to_owned())),
    }
}

/// A server that is up but does not let pgbox in: most often the data is older than the password.
fn refused(state: &NodeState, why: &str) -> String {
    let node = &state.spec.node;
    format!(
        "`{node}` is up, but refuses the password that pgbox has for it ({why}). The password is set when the data \
         directory is made, and a later one is not taken over. To change it: pgbox psql {node} -c '\\password'"
    )
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
    let holder = state.data.as_deref().and_then(|data| holder(root, data, &state.spec.node.to_string()));
    match holder {
        Some(name) => format!("{error}: node `{name}` runs on it; one data directory can serve one server"),
        None => error.to_owned(),
    }
}

/// The running node whose data directory is `data`.
pub fn holder(root: &Root, data: &Path, except: &str) -> Option<String> {
    let same = |other: &Path| match (std::fs::metadata(other), std::fs::metadata(data)) {
        (Ok(a), Ok(b)) => {
            use std::os::unix::fs::MetadataExt;
            (a.dev(), a.ino()) == (b.dev(), b.ino())
        }
        _ => false,
    };
    let labs = root.labs().ok()?;
    let mut nodes = labs.iter().filter_map(|lab| crate::facts::node::all(root, lab).ok()).flatten();
    let found = nodes.find(|node| {
        node.pidfd.is_some() && node.name.as_str() != except && node.state.data.as_deref().is_some_and(same)
    })?;
    Some(found.name.to_string())
}

fn too_late(root: &Root, state: &NodeState, reach: Reach, timeout: Duration) -> Error {
    let index = state.plan.inner.len();
    let cause = Error::msg(format!("no answer after {}", humantime::format_duration(timeout)));
    inner_failure(root, state, reach, index, &cause, 1)
}

/// Ends what runs, takes back the host steps, and tells it as one error. `index` counts inner steps, and
/// after steps behind them.
fn inner_failure(
    root: &Root,
    state: &NodeState,
    reach: Reach,
    index: usize,
    error: &Error,
    code: i32,
) -> Error {
    let node = root.node(&state.spec.lab, &state.spec.node);
    let number = state.plan.host.len() + index + 1;
    let title = super::lessons(&state.plan).nth(number - 1).map(|l| l.title).unwrap_or_default();
    let log = tail(&node.log(), 15);
    // Killing pid 1 takes all of its pid namespace along. Nothing answered yet, so nothing was promised.
    end_all(state);
    let _lock = root.lock(&state.spec.lab);
    let host = taken_back(&state.plan, reach, &node, state.plan.host.len());
    let cause = crate::hint::cause_text(error);
    let hint = hint::for_inner_step(&cause);
    // 125 to 127 are what `docker run` has for a command that could not be started.
    let code = if state.plan.after.is_empty() { code } else { 1 };
    Error::new(StepFailed { number, total: total(&state.plan), title, cause, hint, host, log, code })
}

fn end_all(state: &NodeState) {
    let pidfd = state.init.and_then(|init| init.open().ok().flatten());
    if let Some(pidfd) = pidfd {
        // It may have ended by itself meanwhile; the undo of the cgroup names whoever is left.
        let _ = process::signal(pidfd.as_fd(), Signal::SIGKILL);
        let _ = process::has_ended(pidfd.as_fd(), Duration::from_secs(5));
    }
}

/// The last lines of a file, or none.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    const ENOUGH: i64 = 16 << 10;
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len() as i64;
        file.seek(SeekFrom::Start((length - ENOUGH).max(0) as u64))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|l| (*l).to_owned()).collect()
}
