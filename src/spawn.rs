//! From a plan to a process: one clone3(2) makes pid 1 and its namespaces inside its cgroup; the child
//! applies the inner steps and becomes the node's init, without an exec of pgbox.
//!
//! The rule that surprises people: after a clone, the child has copies of every descriptor, a lock's among
//! them: the lab's lock would be held by the node for life. The child closes all that is not its own first.

use std::{
    cell::OnceCell,
    fs::{File, OpenOptions},
    io::{self, Read},
    mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigSet, SigmaskHow, Signal},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::pipe2,
};

use crate::{
    enter,
    init::{self, InitFds, LogFds},
    postgres::{
        launch::{Payload, User},
        report::Report,
    },
    state::{NodeDir, Plan},
    step::InnerStep,
    sys::{
        capability::{self, CapabilitySet},
        cgroup::{self, Cgroup},
        child,
        clone::{self, Child},
        credentials::Credentials,
        fs::open_dir_below,
        idmap,
        mount::Detached,
        pass,
        process::{self, ProcessId},
        seccomp,
    },
};

/// Where the payload's input and output go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// Input from /dev/null, output to the node's log.
    Log,
    /// The caller's own.
    Inherit,
    /// A terminal of the node's own, whose other end the caller gets.
    Terminal,
}

/// A node's pid 1, just born.
pub struct Spawned {
    pub init: ProcessId,
    pub child: Child,
    pub reports: Reports,
    /// The caller's end of the payload's terminal, with [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    release: OwnedFd,
}

/// A pid 1 that has been made, and may not have come into its cgroup yet. It mounts on, and waits for the word before
/// anything of the image runs.
pub struct Newborn {
    child: Child,
    reports: OwnedFd,
    release: OwnedFd,
    group: Cgroup,
}

impl Newborn {
    /// Waits until it has gone into its v1 cgroups, and checks that it is in all of them.
    ///
    /// # Errors
    /// [`InnerFailed`] if it has ended and said why. It is ended then.
    pub fn settle(self) -> Result<Spawned> {
        match self.in_its_cgroup() {
            Ok(init) => {
                let Self { child, reports, release, .. } = self;
                Ok(Spawned { init, child, reports: Reports::new(reports), terminal: None, release })
            }
            Err(error) => Err(first_report(self.end()).unwrap_or(error)),
        }
    }

    fn in_its_cgroup(&self) -> Result<ProcessId> {
        let read = nix::unistd::read(&self.release, &mut [0]).context("read from pid 1")?;
        // One that has ended is in no cgroup any more.
        let ended = read == 0 || process::has_ended(self.child.pidfd.as_fd(), Duration::ZERO)?;
        anyhow::ensure!(!ended, "pid 1 ended before it had mounted all, and left no word");
        self.group.verify(self.child.pid)?;
        ProcessId::of(self.child.pid)
    }

    /// Ends it, and with it all that it has mounted. Gives what it has said.
    pub fn end(self) -> OwnedFd {
        // One that hangs in a mount does not hear even this: whoever undoes its cgroup names it.
        let _ = process::signal(self.child.pidfd.as_fd(), Signal::SIGKILL);
        let _ = process::has_ended(self.child.pidfd.as_fd(), Duration::from_secs(10));
        let _ = waitpid(self.child.pid, Some(WaitPidFlag::WNOHANG));
        self.reports
    }
}

impl Spawned {
    /// Lets pid 1 go on to the payload; it waits for this when all else is done. Should the caller be killed
    /// before, pid 1 ends: nothing runs that nobody has written down.
    pub fn release(&self) {
        // Nobody there means that it has failed already; its report tells why.
        let _ = send(self.release.as_raw_fd(), b"g", MsgFlags::MSG_NOSIGNAL);
    }

    /// Waits for the terminal that pid 1 makes in the node. A pid 1 that fails before that reports why.
    pub fn receive_terminal(&mut self) -> Result<()> {
        self.terminal = pass::receive(&self.release).context("the terminal of pid 1")?;
        Ok(())
    }
}

/// Makes pid 1, which goes to work on the inner steps at once.
pub fn spawn(node: &NodeDir, plan: &Plan, group: Cgroup, stdio: Stdio) -> Result<Newborn> {
    clone::ensure_single_threaded()?;
    let (reports, report) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    // A socket, because writing to a pipe whose reader has failed ends the writer by SIGPIPE.
    let (go, release) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .context("socketpair")?;
    let netns = plan.inner.iter().find_map(|step| match step {
        InnerStep::EnterNamespaces { netns } => Some(netns),
        _ => None,
    });
    let netns = File::open(netns.context("the plan has no network namespace")?)
        .context("open the network namespace")?;
    let ids = id_map(plan)?;
    let serves = matches!(plan.init.payload, Payload::Postgres(_));
    let (tasks, files) = (group.tasks()?, Files::open(node, stdio, serves, &group)?);
    let birth = Birth { plan, stdio, netns, ids, tasks, report, go, files, upstream: OnceCell::new() };
    let directory = group.dir_fd()?;
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    // A pid 1 without a handler never sees a signal that comes before it blocks it: a stop would be lost.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).context("block signals")?;
    let child = clone::clone3(flags.bits() as u64, directory.as_ref().map(|d| d.as_fd()), || birth.live());
    mask.thread_set_mask().context("unblock signals")?;
    Ok(Newborn { child: child?, reports, release, group })
}

/// The user namespace that carries the map of the data directory's mount; made here, because /proc shows our pid namespace.
fn id_map(plan: &Plan) -> Result<Option<OwnedFd>> {
    let map = plan.inner.iter().find_map(|step| match step {
        InnerStep::Bind { id_map, .. } => *id_map,
        _ => None,
    });
    map.map_or(Ok(None), |map| idmap::carrier(&map.uids(), &map.gids()))
}

/// The report of a pid 1 that has ended is the reason why it is not where it should be.
fn first_report(pipe: OwnedFd) -> Option<anyhow::Error> {
    match Reports::new(pipe).next(Duration::from_millis(100), None) {
        Ok(Heard::Report(Report::StepFailed { index, error })) => Some(InnerFailed { index, error }.into()),
        _ => None,
    }
}

/// An inner step that failed so early that pid 1 was gone before it was looked for in its cgroup.
#[derive(Debug)]
pub struct InnerFailed {
    /// Counted from 0 over the inner steps.
    pub index: usize,
    pub error: String,
}

impl std::fmt::Display for InnerFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for InnerFailed {}

/// What pid 1 keeps open on the host: files only, never a directory.
struct Files {
    log: Option<[File; 2]>,
    status: File,
    secret: Option<File>,
    /// Of a server.
    orders: Option<File>,
    replicator: Option<File>,
    /// Which counts whom the kernel's OOM killer has ended.
    oom: Option<File>,
}

impl Files {
    fn open(node: &NodeDir, stdio: Stdio, serves: bool, group: &Cgroup) -> Result<Self> {
        let open = |path: std::path::PathBuf, append: bool| {
            let mut options = OpenOptions::new();
            options.read(true).create(true).append(append).write(true);
            options.open(&path).with_context(|| format!("open {}", path.display()))
        };
        let path = node.status_file();
        let status = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let status = status.with_context(|| format!("open {}", path.display()))?;
        let secret = match File::open(node.secret_file()) {
            Ok(file) => Some(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).with_context(|| format!("open {}", node.secret_file().display())),
        };
        let read = |path: std::path::PathBuf| {
            // There from the start, so that what is written to it later is seen.
            let mut create = OpenOptions::new();
            create.create(true).append(true).mode(0o600);
            let file = create.open(&path).and_then(|_| File::open(&path));
            file.with_context(|| format!("open {}", path.display()))
        };
        let (orders, replicator) = match serves {
            true => (Some(read(node.orders_file())?), Some(read(node.replicator_file())?)),
            false => (None, None),
        };
        let log = match stdio {
            Stdio::Log => Some([open(node.log(), true)?, open(node.previous_log(), false)?]),
            Stdio::Inherit | Stdio::Terminal => None,
        };
        Ok(Self { log, status, secret, orders, replicator, oom: group.oom_counter() })
    }
}

/// What the child takes along into its life.
struct Birth<'a> {
    plan: &'a Plan,
    stdio: Stdio,
    netns: File,
    /// Whose the data are shown to be.
    ids: Option<OwnedFd>,
    tasks: Vec<File>,
    report: OwnedFd,
    /// It says here that it is in its cgroup, and hears that it may go on.
    go: OwnedFd,
    files: Files,
    /// The data directory of the server that is followed, from where it is opened on, or why it could not be.
    upstream: OnceCell<Result<OwnedFd, String>>,
}

impl Birth<'_> {
    /// The whole life of pid 1; returns its exit code.
    fn live(self) -> i32 {
        for (index, step) in self.plan.inner.iter().enumerate() {
            if let Err(error) = self.apply(step) {
                return self.give_up(index, &error);
            }
        }
        self.become_init()
    }

    fn give_up(&self, index: usize, error: &anyhow::Error) -> i32 {
        let report = Report::StepFailed { index, error: crate::hint::cause_text(error) };
        let line = serde_json::to_string(&report).unwrap_or_default() + "\n";
        // Nobody may listen any more; then nobody can be told.
        let _ = nix::unistd::write(&self.report, line.as_bytes());
        125
    }

    fn apply(&self, step: &InnerStep) -> Result<()> {
        match step {
            InnerStep::EnterNamespaces { .. } => self.enter(),
            InnerStep::OpenUpstream { node, top, rest } => {
                self.upstream.set(open_upstream(node, top, rest)).ok();
                Ok(())
            }
            InnerStep::StartInit { .. } => self.make_terminal().and_then(|()| self.wait_for_go()),
            other => other.apply(self.ids.as_ref().map(|ids| ids.as_fd())),
        }
    }

    /// The namespaces that clone3 could not make, and a life apart from the command line's.
    fn enter(&self) -> Result<()> {
        // First, so that what it does is charged to its group.
        cgroup::enter(&self.tasks)?;
        nix::unistd::write(&self.go, b"j").context("write to the command line")?;
        let files = &self.files;
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let mut kept = vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        kept.extend(self.ids.as_ref().map(|ids| ids.as_fd()));
        kept.extend([self.netns.as_fd(), self.report.as_fd(), self.go.as_fd()]);
        let given = files
            .secret
            .iter()
            .chain(&files.orders)
            .chain(&files.replicator)
            .chain(&files.oom)
            .chain([&files.status]);
        let others = files.log.iter().flatten().chain(&self.tasks).chain(given);
        kept.extend(others.map(|file| file.as_fd()));
        child::close_all_but(&kept)?;
        setns(&self.netns, CloneFlags::CLONE_NEWNET).context("setns into the network namespace")?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        if self.stdio == Stdio::Log {
            nix::unistd::setsid().context("setsid")?;
            let null =
                OpenOptions::new().read(true).write(true).open("/dev/null").context("open /dev/null")?;
            child::replace_stdio(null.as_fd())?;
        }
        Ok(())
    }

    /// From the node's own devpts, or its programs would not find their terminal by name. It becomes the standard streams.
    fn make_terminal(&self) -> Result<()> {
        if self.stdio != Stdio::Terminal {
            return Ok(());
        }
        let pty = enter::open_terminal(self.plan.init.user.uid)?;
        pass::send(&self.go, &pty.controller)?;
        child::replace_stdio(pty.terminal.as_fd())
    }

    fn wait_for_go(&self) -> Result<()> {
        let mut byte = [0];
        let read = nix::unistd::read(&self.go, &mut byte).context("read from the command line")?;
        anyhow::ensure!(read == 1, "the command line was killed");
        // A cgroup namespace begins where its maker is: only now is that the node's own cgroup.
        unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare the cgroup namespace")
    }

    fn become_init(self) -> i32 {
        let keep = match self.privileges() {
            Ok(keep) => keep,
            Err(error) => {
                let step = |step: &InnerStep| matches!(step, InnerStep::DropPrivileges { .. });
                return self.give_up(self.plan.inner.iter().position(step).unwrap_or(0), &error);
            }
        };
        let program = seccomp::program(keep);
        let assume = |user: &User| {
            Credentials { uid: user.uid, gid: user.gid, groups: user.groups.clone(), keep }.assume()?;
            seccomp::load(&program)
        };
        // init closes what it is not given, all at once; these would then be closed twice.
        mem::forget((self.netns, self.ids, self.go, self.tasks));
        let terminal = self.stdio == Stdio::Terminal;
        let Files { log, status, secret, orders, replicator, oom } = self.files;
        let fds = InitFds {
            log: log.map(|[current, previous]| LogFds { current: current.into(), previous: previous.into() }),
            terminal,
            status: Some(status.into()),
            secret: secret.map(OwnedFd::from),
            orders: orders.map(OwnedFd::from),
            replicator: replicator.map(OwnedFd::from),
            report: Some(self.report),
            oom: oom.map(OwnedFd::from),
            upstream: self.upstream.into_inner(),
        };
        init::run(&self.plan.init, fds, &assume)
    }

    /// What a process of the image keeps of root's power.
    fn privileges(&self) -> Result<CapabilitySet> {
        let names = self.plan.inner.iter().find_map(|step| match step {
            InnerStep::DropPrivileges { keep } => Some(keep.join(",")),
            _ => None,
        });
        capability::parse(&names.context("the plan does not say what privileges to keep")?)
    }
}

/// As a tree of its own: a descriptor of the directory itself would be a way to the host's root. That server may be gone by now,
/// or have put a link in the place of its data: a standby with data of its own needs none of it, and starts. What makes it
/// impossible is for whoever wants to clone.
fn open_upstream(node: &str, top: &Path, rest: &Path) -> Result<OwnedFd, String> {
    let open = || -> Result<OwnedFd> {
        let tree = Detached::bind_opened(open_dir_below(top, rest)?.as_fd())?;
        tree.set_read_only()?;
        Ok(tree.into_fd())
    };
    let shown = top.join(rest);
    open().map_err(|error| format!("the data of {node} can't be opened: {}: {error:#}", shown.display()))
}

/// What came from pid 1.
pub enum Heard {
    Report(Report),
    /// It has nothing more to say: it is up, or it has ended.
    End,
    Nothing,
}

/// The reports of pid 1, line by line.
pub struct Reports {
    pipe: File,
    text: Vec<u8>,
}

impl Reports {
    fn new(pipe: OwnedFd) -> Self {
        Self { pipe: pipe.into(), text: Vec::new() }
    }

    /// The next report, waiting at most `patience` for it, and not when `interrupt` can be read.
    pub fn next(&mut self, patience: Duration, interrupt: Option<BorrowedFd<'_>>) -> Result<Heard> {
        loop {
            if let Some(end) = self.text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Heard::Report).context("read a report of pid 1");
            }
            let mut fds = vec![PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            fds.extend(interrupt.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(Heard::Nothing),
                Ok(_) if fds[0].any() != Some(true) => return Ok(Heard::Nothing),
                Ok(_) => {}
                Err(errno) => return Err(errno).context("poll the reports of pid 1"),
            }
            let mut buffer = [0; 4096];
            match self.pipe.read(&mut buffer).context("read the reports of pid 1")? {
                0 => {
                    // An end is always readable: without a pause, waiting for the server would spin.
                    std::thread::sleep(patience);
                    return Ok(Heard::End);
                }
                count => self.text.extend_from_slice(&buffer[..count]),
            }
        }
    }
}
