//! The driver's process: forked from the command, a session leader of its own (setsid(2)), recorded by pid and start
//! time. It ends at a signal, when its time is over, or when the lab's directory is gone.
//!
//! The rule that surprises people: a fork has copies of every descriptor, a lock's among them. flock(2) belongs to
//! the open file, so the lab would stay locked as long as the driver lives. It closes all but its own first.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::SignalFd,
    },
    unistd::{Pid, pipe2, setsid},
};
use serde::{Deserialize, Serialize};

use super::{
    CREATE, TABLE,
    ledger::Ledger,
    place::Place,
    run::{self, Clock, Run, RunState},
    session::Session,
    writer::{Pace, Signals, Writer},
};
use crate::{
    hint::advise,
    state::{self, Lock},
    sys::{
        child, clone,
        process::{self, ProcessId},
        title,
    },
};

/// How often the driver looks around, once it writes.
const LOOK: Duration = Duration::from_millis(50);

/// So long the command waits for a first acknowledged row.
const FIRST_ACK: Duration = Duration::from_secs(5);

/// What is asked of a driver.
#[derive(Debug, Clone)]
pub struct Wish {
    pub place: Place,
    pub writers: u32,
    /// Commits per second and writer.
    pub rate: Option<f64>,
    pub rows_per_commit: u16,
    pub patience: Duration,
    /// It ends by itself after this time.
    pub time: Option<Duration>,
    /// What earlier ones wrote and remember is thrown away.
    pub fresh: bool,
}

/// What the new process tells the command.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Begun,
    Acknowledged,
    Failed(String),
}

/// Starts the driver; returns when a first row was acknowledged, or false when none was for some seconds. The lock is
/// held until the new process is on record.
///
/// # Errors
/// When one runs already, or it can't make its table.
pub fn start(lock: Lock, wish: &Wish) -> Result<bool> {
    clone::ensure_single_threaded()?;
    if let Some(run) = running(wish)? {
        return Err(advise(
            format!("a driver writes to lab `{}` already: process {}", wish.place.lab, run.state.process.pid),
            "`pgbox drive report` tells how far it is, `pgbox drive stop` ends it",
        ));
    }
    let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe")?;
    child::fork(|| live(wish, &writer))?;
    drop(writer);
    let mut words = BufReader::new(File::from(reader));
    match next_word(&mut words)? {
        Word::Begun => drop(lock),
        Word::Failed(why) => {
            let locked = Some(&wish.place).filter(|_| why.contains("password authentication failed"));
            let hint = locked.and_then(Place::way_in).unwrap_or_else(|| NO_BEGIN.to_owned());
            return Err(advise(format!("the driver can't begin: {why}"), hint));
        }
        Word::Acknowledged => bail!("the driver speaks out of turn"),
    }
    if words.buffer().is_empty() && !is_readable(words.get_ref(), FIRST_ACK)? {
        return Ok(false);
    }
    match next_word(&mut words)? {
        Word::Failed(why) => bail!("the driver has ended: {why}"),
        _ => Ok(true),
    }
}

/// Waits until there is something to read, or nobody left to write it.
fn is_readable(fd: impl AsFd, time: Duration) -> Result<bool> {
    let deadline = Instant::now() + time;
    loop {
        let left =
            PollTimeout::try_from(deadline.saturating_duration_since(Instant::now())).context("poll")?;
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], left) {
            Err(Errno::EINTR) => {}
            other => return Ok(other.context("poll")? > 0),
        }
    }
}

const NO_BEGIN: &str =
    "it needs a server that takes writes: see `pgbox ps`, or name one with --node or --address";

fn running(wish: &Wish) -> Result<Option<Run>> {
    let last = run::all(&wish.place.root, &wish.place.lab)?.pop();
    Ok(match last {
        Some(run) if run.is_running()? => Some(run),
        _ => None,
    })
}

fn next_word(words: &mut impl BufRead) -> Result<Word> {
    let mut line = String::new();
    words.read_line(&mut line).context("read from the driver")?;
    serde_json::from_str(&line).context("the driver has ended without a word")
}

fn say(pipe: &OwnedFd, word: &Word) {
    let line = serde_json::to_string(word).unwrap_or_default() + "\n";
    // The command may be gone; the driver is not its child for that.
    let _ = nix::unistd::write(pipe, line.as_bytes());
}

/// Ends a driver: its writers finish the commits that are on the way. False if it had to be killed.
pub fn stop(run: &Run) -> Result<bool> {
    let Some(pidfd) = run.state.process.open()? else { return Ok(true) };
    let patience = Duration::from_millis(run.state.patience_ms) + Duration::from_secs(5);
    process::signal(pidfd.as_fd(), Signal::SIGTERM)?;
    if process::has_ended(pidfd.as_fd(), patience)? {
        return Ok(true);
    }
    process::signal(pidfd.as_fd(), Signal::SIGKILL)?;
    process::has_ended(pidfd.as_fd(), Duration::from_secs(10))?;
    Ok(false)
}

/// The life of the new process; gives its exit code.
fn live(wish: &Wish, pipe: &OwnedFd) -> i32 {
    let log = wish.place.root.drive_dir(&wish.place.lab).join("log");
    let lived = detach(&log, pipe).and_then(|()| {
        let begun = begin(wish)?;
        say(pipe, &Word::Begun);
        begun.work(wish, pipe)
    });
    let Err(error) = lived else { return 0 };
    let text = format!("{error:#}");
    say(pipe, &Word::Failed(text.clone()));
    // Standard error is the log by now, and if it is not, nobody can be told.
    let _ = writeln!(io::stderr(), "{text}");
    1
}

/// Leaves the command's terminal, descriptors, directory and signals.
fn detach(log: &PathBuf, pipe: &OwnedFd) -> Result<()> {
    setsid().context("setsid")?;
    // It may have a password in it, and this process stays.
    title::forget_environment();
    std::env::set_current_dir("/").context("chdir /")?;
    if let Some(drive) = log.parent() {
        std::fs::create_dir_all(drive).with_context(|| format!("mkdir {}", drive.display()))?;
    }
    let null = File::open("/dev/null").context("open /dev/null")?;
    let log = File::create(log).with_context(|| format!("open {}", log.display()))?;
    child::place_fds(&[null.as_fd(), log.as_fd(), log.as_fd()])?;
    drop((null, log));
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    child::close_all_but(&[stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), pipe.as_fd()])?;
    child::block_signals()
}

/// A driver that is on record, with its ledgers.
struct Begun {
    run: Run,
    ledgers: Vec<Ledger>,
}

/// Makes the table and the ledgers. The run is on record when all of it is there.
fn begin(wish: &Wish) -> Result<Begun> {
    let Place { root, lab, .. } = &wish.place;
    let mut session = Session::new()?;
    session.connect(&wish.place.login()?, wish.patience, || false)?;
    let mut ask = |query: &str| session.ask(query, wish.patience).with_context(|| format!("table {TABLE}"));
    enough_room(wish, &ask("SHOW max_connections")?.unwrap_or_default())?;
    if wish.fresh {
        // In this order: rows that nobody remembers are harmless, remembered rows that are gone are a loss.
        run::forget(root, lab)?;
        ask(&format!("DROP TABLE IF EXISTS {TABLE}"))?;
    }
    ask(CREATE)?;
    // The table may be older than the ledgers: a volume outlives its lab.
    let used = ask(&format!("SELECT max(writer) FROM {TABLE}"))?;
    let used: i32 = used.map_or(Ok(0), |text| text.parse()).context("the highest writer")?;
    let known = run::all(root, lab)?.iter().flat_map(Run::writers).max().unwrap_or(0);
    let first_writer = used.max(known).checked_add(1).context("no number is left for a writer")?;
    let mut ledgers = Vec::new();
    let run = run::create(root, lab, |dir| {
        let state = record(wish, first_writer)?;
        for writer in (first_writer..).take(wish.writers as usize) {
            let path = dir.join(format!("ledger.{writer}"));
            ledgers.push(Ledger::create(&path).with_context(|| format!("create {}", path.display()))?);
        }
        Ok(state)
    })?;
    Ok(Begun { run, ledgers })
}

/// Writers are superusers: they would take the sessions, too, that the server keeps for one who comes to help.
fn enough_room(wish: &Wish, max_connections: &str) -> Result<()> {
    const OTHERS: u32 = 10;
    let most: u32 = max_connections.parse().context("max_connections")?;
    if wish.writers.saturating_add(OTHERS) > most {
        bail!("{} writers leave too little of the server's {most} sessions (max_connections)", wish.writers);
    }
    Ok(())
}

fn record(wish: &Wish, first_writer: i32) -> Result<RunState> {
    Ok(RunState {
        version: state::VERSION,
        process: ProcessId::of(Pid::this())?,
        boot_id: process::boot_id()?.to_owned(),
        clock: Clock::start()?,
        first_writer,
        writers: wish.writers,
        rows_per_commit: wish.rows_per_commit,
        rate: wish.rate,
        patience_ms: wish.patience.as_millis() as u64,
        node: wish.place.node.clone(),
        address: wish.place.address,
    })
}

impl Begun {
    /// Runs the writers until there is a reason to end.
    fn work(self, wish: &Wish, pipe: &OwnedFd) -> Result<()> {
        let signals = Signals::default();
        let pace = Pace {
            rows_per_commit: wish.rows_per_commit,
            interval: wish.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            patience: wish.patience,
        };
        let clock = self.run.state.clock;
        let writers = self.run.writers().zip(self.ledgers).map(|(number, ledger)| Writer {
            number,
            ledger,
            place: &wish.place,
            clock,
            pace,
            signals: &signals,
        });
        let place = File::open(&self.run.dir).with_context(|| format!("open {}", self.run.dir.display()))?;
        thread::scope(|scope| {
            let threads: Vec<_> = writers.map(|writer| scope.spawn(|| writer.run())).collect();
            let watched =
                watch(&place, wish.time, &signals, pipe, || threads.iter().any(|t| t.is_finished()));
            signals.stop.store(true, std::sync::atomic::Ordering::Relaxed);
            let ends = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a writer panicked")));
            ends.fold(watched, |all, end| all.and(end))
        })
    }
}

/// Waits until the driver is to end. Where the lab is gone it ends here: nothing is left to be told.
fn watch(
    place: &File,
    time: Option<Duration>,
    signals: &Signals,
    pipe: &OwnedFd,
    has_failed: impl Fn() -> bool,
) -> Result<()> {
    let wanted = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    let asked = SignalFd::new(&wanted).context("signalfd")?;
    let deadline = time.map(|time| Instant::now() + time);
    let mut told = false;
    while !has_failed() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        if !told && signals.acknowledged.load(std::sync::atomic::Ordering::Relaxed) {
            say(pipe, &Word::Acknowledged);
            told = true;
        }
        if rustix::fs::fstat(place).context("stat the run's directory")?.st_nlink == 0 {
            child::exit_now(0);
        }
        let look = if told { LOOK } else { Duration::from_millis(2) };
        let look = deadline.map_or(look, |end| look.min(end.saturating_duration_since(Instant::now())));
        if is_readable(&asked, look)? {
            return Ok(());
        }
    }
    Ok(())
}
