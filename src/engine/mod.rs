//! The engine walks a plan: applies host steps in order, starts pid 1, and takes everything back when a step
//! fails. What to do for that, and in which order, is in the plan; decided here is only what nobody can know before: who has
//! what when a primary fails, whom commits wait for, which password counts.
//!
//! The journal is written before each step. After a crash at any point, undoing every step that was begun
//! leaves nothing behind, because undoing an absent thing is Ok.

pub mod arrival;
pub mod endpoint;
pub mod failover;
pub mod faults;
pub mod follower;
pub mod goal;
pub mod halt;
pub mod holder;
pub mod interrupt;
pub mod launch;
pub mod leftover;
pub mod limits;
pub mod loss;
pub mod membership;
pub mod orders;
pub mod passfile;
pub mod password;
mod proof;
pub mod publish;
pub mod ready;
pub mod restart;
pub mod settings;
pub mod slots;
pub mod switchover;
pub mod sync;
pub mod takeover;
pub mod timelines;

use std::{fmt, fs, io, ops::Range, path::PathBuf};

use anyhow::{Error, Result};

use crate::{
    facts::volume,
    hint,
    spec::Name,
    state::{self, LOG, NodeState, Plan, Progress, Root},
    step::{Around, HostStep, Lesson},
};

/// A step that failed, and the state in which that left the host.
#[derive(Debug)]
pub struct StepFailed {
    /// Which of how many, and what it does.
    pub step: String,
    pub cause: String,
    pub hint: Option<String>,
    /// What became of the steps before it.
    pub host: String,
    /// The end of the node's log, if it has one.
    pub log: Vec<String>,
    /// Exit code for the command line.
    pub code: i32,
}

impl fmt::Display for StepFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)
    }
}

impl std::error::Error for StepFailed {}

/// Where bringing a node up can fail, in the order in which it comes there; each list of steps is counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    Host(usize),
    /// What pid 1 needs is there. It could not be made, or was lost before it was written down.
    Birth,
    Inner(usize),
    After(usize),
}

impl At {
    fn text(self, plan: &Plan) -> String {
        let (host, total) = (plan.host.len(), total(plan));
        let index = match self {
            Self::Host(index) => index,
            Self::Birth => {
                let before = birth(plan);
                return format!(
                    "pid 1 did not come to life, between steps {before} and {} of {total}",
                    before + 1
                );
            }
            Self::Inner(index) => host + index,
            Self::After(index) => host + plan.inner.len() + index,
        };
        let title = lessons(plan).nth(index).map(|lesson| lesson.title).unwrap_or_default();
        format!("step {}/{total} failed: {title}", index + 1)
    }
}

/// The number of steps of a plan.
pub fn total(plan: &Plan) -> usize {
    plan.host.len() + plan.inner.len() + plan.after.len()
}

/// How many host steps come before pid 1 is made; the others are done beside its own.
pub fn birth(plan: &Plan) -> usize {
    plan.host.iter().rposition(HostStep::precedes_birth).map_or(0, |last| last + 1)
}

/// The lessons of a plan, in the order of its steps.
pub fn lessons(plan: &Plan) -> impl Iterator<Item = Lesson> {
    let host = plan.host.iter().map(HostStep::lesson);
    let around = around(plan);
    let inner = plan.inner.iter().map(move |s| s.lesson(&around));
    host.chain(inner).chain(plan.after.iter().map(|s| s.lesson()))
}

/// What the lessons of the steps inside need to know of the others.
pub fn around(plan: &Plan) -> Around<'_> {
    let (mut cgroup, mut log) = (&[][..], PathBuf::new());
    for step in &plan.host {
        match step {
            HostStep::CreateBundle { dir, .. } => log = dir.join(LOG),
            HostStep::CreateCgroup { directories, .. } => cgroup = directories,
            _ => {}
        }
    }
    Around { init: &plan.init, cgroup, log }
}

/// Why the host steps stopped, before anything was taken back.
pub struct Interrupted {
    /// Index of the host step that failed.
    pub index: usize,
    pub error: Error,
}

/// Which of the host steps a walk concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All of them: a new node, or its removal.
    All,
    /// Those whose result a stopped node does not keep.
    Running,
}

impl Reach {
    fn includes(self, step: &HostStep) -> bool {
        self == Self::All || !step.outlives_stop()
    }
}

/// Applies these host steps in order, telling each title before it.
///
/// Steps whose result a stopped node keeps are applied as well: they find it there, or make what a killed command
/// had not come to. What is to be done on another node was done when this one was made, and that one may be down: who
/// starts this one again asks it before (see [`follower::admit`]).
pub fn apply(
    plan: &Plan,
    steps: Range<usize>,
    reach: Reach,
    journal: &Progress,
    talk: &mut dyn FnMut(usize, &HostStep),
) -> Result<(), Interrupted> {
    let mut begun = match reach {
        Reach::All => 0,
        Reach::Running => Progress::ALL,
    };
    for (index, step) in plan.host.iter().enumerate().take(steps.end).skip(steps.start) {
        let failed = |error| Interrupted { index, error };
        begun = begun.max(index + 1);
        journal.set(begun).map_err(failed)?;
        talk(index, step);
        if reach == Reach::All || !step.is_elsewhere() {
            step.apply().map_err(failed)?;
        }
    }
    if steps.end < plan.host.len() {
        return Ok(());
    }
    journal.set(Progress::ALL).map_err(|error| Interrupted { index: plan.host.len() - 1, error })
}

/// Undoes the first `begun` host steps, last first. One that can't be undone does not keep the others from
/// it; all errors come back.
///
/// What is the lab's is looked at even if it was not begun: as long as this node's namespace was there, the removal of the
/// last other node left it.
pub fn undo(plan: &Plan, reach: Reach, begun: usize) -> Vec<Error> {
    let concerned = |(index, step): &(usize, &HostStep)| {
        let begun = *index < begun || begun > 0 && step.is_the_labs();
        begun && reach.includes(step)
    };
    let steps = plan.host.iter().enumerate().rev().filter(concerned).map(|(_, step)| step);
    steps.filter_map(|step| step.undo().err().map(|e| e.context(step.lesson().title))).collect()
}

/// Takes back what an interrupted walk has done, and tells the whole story as one error. A step that failed
/// because its object exists already is not undone: the object is somebody else's.
pub fn roll_back(root: &Root, state: &NodeState, reach: Reach, failure: Interrupted) -> Error {
    let plan = &state.plan;
    let step = &plan.host[failure.index];
    let foreign = hint::errno_of(&failure.error) == Some(nix::errno::Errno::EEXIST);
    let begun = if foreign { failure.index } else { failure.index + 1 };
    let host = taken_back(root, state, reach, begun);
    Error::new(StepFailed {
        step: At::Host(failure.index).text(plan),
        cause: hint::cause_text(&failure.error),
        hint: hint::for_host_step(step, &failure.error),
        host,
        log: Vec::new(),
        code: 1,
    })
}

/// Undoes `begun` host steps and says in one line what state the host is in.
pub fn taken_back(root: &Root, state: &NodeState, reach: Reach, begun: usize) -> String {
    let name = &state.spec.node;
    let mut errors = undo(&state.plan, reach, begun);
    let mut kept = false;
    if reach == Reach::All && errors.is_empty() {
        errors.extend(root.node(&state.spec.lab, name).remove().err());
        match remove_empty_volumes(root, state) {
            Ok(some) => kept = some,
            Err(error) => errors.push(error),
        }
    }
    match (errors.is_empty(), reach, begun) {
        (true, Reach::All, 0) => "nothing was done".to_owned(),
        (true, Reach::All, _) => {
            let but = if kept { " but its volumes" } else { "" };
            format!("steps {begun}-1 undone, nothing of `{name}` is left{but}")
        }
        (true, Reach::Running, _) => {
            format!("steps {begun}-1 undone, `{name}` is stopped; its data and address are kept")
        }
        (false, ..) => {
            let (what, way_out) = not_undone(name, &errors, "rm --force");
            format!("{what}; {way_out}")
        }
    }
}

/// What is left of a node that could not be taken back, and the command that tries again.
fn not_undone(name: &Name, errors: &[Error], command: &str) -> (String, String) {
    let causes: Vec<String> = errors.iter().map(hint::cause_text).collect();
    let steps = if errors.len() == 1 { "1 step".to_owned() } else { format!("{} steps", errors.len()) };
    let what = format!("{steps} of `{name}` could not be undone ({})", causes.join("; "));
    (what, format!("`pgbox {command} {name}` tries again"))
}

/// Removes the named volumes of a node that is gone, unless there is something in them or another node has them; true if any
/// of them stays.
fn remove_empty_volumes(root: &Root, state: &NodeState) -> Result<bool> {
    let mut kept = false;
    for step in &state.plan.host {
        let HostStep::CreateVolume { dir } = step else { continue };
        let Some(home) = root.volume_home(&state.spec.lab, dir) else { continue };
        // The kernel says what is an empty directory, and no link or disk that is not there now passes for one.
        let was_empty = || match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            removed => removed.is_ok(),
        };
        if !volume::users(root, &home)?.is_empty() || !was_empty() {
            kept = true;
        } else if home.exists() {
            state::remove_volume(&home)?;
        }
    }
    Ok(kept)
}
