//! Real cgroups: limits that bite, groups that die. The same tests run on hybrid hosts, on pure v2 and (for what
//! is said so) on pure v1. The witnesses are the kernel's own files and the fate of the processes, not our reads.
//! Each test makes its own top-level group and removes it, also when it panics.

use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;
use pgbox::sys::cgroup::{
    Cgroup, Controller, CpuQuota, Hierarchy, Kind, Limits, UNLIMITED, Unmet, Value, Write, detect, unmet,
    writes,
};

const MIB: u64 = 1 << 20;

/// The host's hierarchies, or a loud skip (a failure where root is required).
fn host() -> Option<Hierarchy> {
    let why = match detect() {
        _ if !nix::unistd::geteuid().is_root() => "not root".to_owned(),
        Ok(hierarchy) => return Some(hierarchy),
        Err(error) => format!("{error:#}"),
    };
    let required = ["PGBOX_REQUIRE_ROOT", "CI"].iter().any(|name| std::env::var_os(name).is_some());
    assert!(!required, "cgroup tests are required here, but: {why}");
    eprintln!("SKIPPED: {why}");
    None
}

/// The v1 hierarchies alone, as a host without a cgroup2 mount has them.
fn legacy_host() -> Option<Hierarchy> {
    let host = host()?;
    if host.kind() == Kind::Unified {
        eprintln!("not applicable: this host has no v1 controllers");
        return None;
    }
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let v1: String =
        mountinfo.lines().filter(|l| !l.contains(" - cgroup2 ")).map(|l| format!("{l}\n")).collect();
    Some(Hierarchy::parse(&v1, |_| unreachable!()).unwrap())
}

/// A created group `pgbox-test-PID-N/lab/node` that goes away with the test.
struct Group {
    cgroup: Cgroup,
    top: String,
}

impl Group {
    fn named(hierarchy: &Hierarchy) -> Group {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let top = format!("pgbox-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = Cgroup::new(hierarchy, format!("{top}/lab/node")).unwrap();
        Group { cgroup, top }
    }

    fn new(hierarchy: &Hierarchy, limits: &Limits) -> Group {
        let group = Group::named(hierarchy);
        group.cgroup.create().unwrap();
        group.cgroup.apply(&writes(hierarchy, limits)).unwrap();
        group
    }

    fn file(&self, controller: Controller, name: &str) -> String {
        let file = self.cgroup.dir_of(controller).unwrap().join(name);
        std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
    }

    /// The memory limit as its file shows it.
    fn memory_file(&self) -> String {
        let v2 = self.cgroup.hierarchy().is_v2(Controller::Memory);
        self.file(Controller::Memory, if v2 { "memory.max" } else { "memory.limit_in_bytes" })
    }

    /// Runs a shell script inside the group: it starts only when its process has joined.
    fn run(&self, script: &str) -> Process {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Pid::from_raw(child.id() as i32);
        join(&self.cgroup, process);
        let joined = self.cgroup.verify(process);
        let mut child = match joined {
            Ok(()) => {
                child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
                Process(child)
            }
            Err(error) => {
                drop(Process(child));
                panic!("verify: {error:#}");
            }
        };
        assert!(child.0.try_wait().is_ok());
        child
    }
}

/// Moves a process into every directory of a group, from outside.
fn join(cgroup: &Cgroup, pid: Pid) {
    for dir in cgroup.directories() {
        std::fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.cgroup.thaw();
        let clean = self.cgroup.kill().and_then(|()| {
            self.cgroup.wait_empty(Duration::from_secs(10))?;
            self.cgroup.remove()?;
            self.cgroup.prune(&self.top)
        });
        if let Err(error) = clean {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// A child that is killed and reaped when the test ends.
struct Process(Child);

impl Process {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "process {} did not end within {timeout:?}", self.0.id());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// CPU time of the process in clock ticks (proc(5), fields 14 and 15 of stat).
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn memory(bytes: u64) -> Limits {
    Limits { memory_max: Some(bytes), swap_max: Some(0), ..Limits::default() }
}

fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.root_cause().downcast_ref::<Errno>().copied()
}

#[test]
fn a_group_is_made_once_and_removed_completely() {
    let Some(host) = host() else { return };
    let group = Group::named(&host);
    let tops: Vec<PathBuf> = host.mounts().iter().map(|m| m.path.join(&group.top)).collect();
    assert!(!group.cgroup.exists());
    group.cgroup.create().unwrap();
    for top in &tops {
        assert!(top.join("lab/node/cgroup.procs").exists(), "{}", top.display());
    }

    let error = group.cgroup.create().unwrap_err();
    assert_eq!(errno(&error), Some(Errno::EEXIST), "{error:#}");
    assert!(group.cgroup.exists(), "a refused create must not remove what was there");

    group.cgroup.remove().unwrap();
    group.cgroup.remove().unwrap();
    let sibling = tops[0].join("lab/other");
    std::fs::create_dir(&sibling).unwrap();
    group.cgroup.prune(&group.top).unwrap();
    assert!(sibling.exists() && !tops[0].join("lab/node").exists());
    std::fs::remove_dir(&sibling).unwrap();
    group.cgroup.prune(&group.top).unwrap();
    assert!(tops.iter().all(|top| !top.exists()));
}

#[test]
fn a_create_that_fails_takes_back_its_own_directories() {
    let Some(host) = host() else { return };
    let group = Group::named(&host);
    let dirs = group.cgroup.directories();
    let theirs = dirs.last().unwrap();
    std::fs::create_dir_all(theirs).unwrap();
    let error = group.cgroup.create().unwrap_err();
    assert_eq!(errno(&error), Some(Errno::EEXIST));
    assert!(theirs.exists());
    for ours in &dirs[..dirs.len() - 1] {
        assert!(!ours.ancestors().nth(2).unwrap().exists(), "{}", ours.display());
    }
}

#[test]
fn limits_are_in_the_kernels_files() {
    let Some(host) = host() else { return };
    let limits = Limits {
        memory_max: Some(64 * MIB + 1), // not a whole page: the kernel rounds it down
        memory_high: Some(48 * MIB),
        swap_max: Some(0),
        cpu: Some(CpuQuota::from_millis(250)),
        pids_max: Some(33),
        oom_group: Some(false),
    };
    let group = Group::named(&host);
    group.cgroup.create().unwrap();
    let unmet_here = group.cgroup.apply(&writes(&host, &limits)).unwrap();
    assert_eq!(group.memory_file(), (64 * MIB).to_string());
    assert_eq!(group.file(Controller::Pids, "pids.max"), "33");
    if host.is_v2(Controller::Memory) {
        assert_eq!(group.file(Controller::Memory, "memory.high"), (48 * MIB).to_string());
        assert_eq!(group.file(Controller::Memory, "memory.oom.group"), "0");
        assert_eq!(group.file(Controller::Cpu, "cpu.max"), "25000 100000");
    } else {
        assert_eq!(unmet(&host, &limits), [Unmet::NotInV1("memory.high")]);
        assert_eq!(group.file(Controller::Cpu, "cpu.cfs_quota_us"), "25000");
    }
    let swap_file =
        if host.is_v2(Controller::Memory) { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
    let swap_file = group.cgroup.dir_of(Controller::Memory).unwrap().join(swap_file);
    assert_eq!(unmet_here.is_empty(), swap_file.exists(), "{unmet_here:?}");
    if !swap_file.exists() {
        assert_eq!(unmet_here, [Unmet::SwapAccounting(swap_file)]);
    }
    let stats = group.cgroup.stats().unwrap();
    assert_eq!((stats.memory_max, stats.pids_max), (Some(64 * MIB), Some(33)));

    let lifted = Limits {
        memory_max: Some(UNLIMITED),
        cpu: Some(CpuQuota { quota_us: UNLIMITED, period_us: 100_000 }),
        pids_max: Some(UNLIMITED),
        ..Limits::default()
    };
    group.cgroup.apply(&group.cgroup.changes(&lifted).unwrap()).unwrap();
    let stats = group.cgroup.stats().unwrap();
    assert_eq!((stats.memory_max, stats.pids_max), (None, None));
}

#[test]
fn memory_goes_up_and_down_on_a_living_group() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &memory(64 * MIB));
    for mib in [128, 32, 256, 64] {
        let limits = Limits { memory_max: Some(mib * MIB), ..Limits::default() };
        group.cgroup.apply(&group.cgroup.changes(&limits).unwrap()).unwrap();
        assert_eq!(group.memory_file(), (mib * MIB).to_string());
        let memsw = group.cgroup.dir_of(Controller::Memory).unwrap().join("memory.memsw.limit_in_bytes");
        if memsw.exists() {
            let memsw = std::fs::read_to_string(memsw).unwrap();
            assert_eq!(memsw.trim(), (mib * MIB).to_string(), "swap was 0 and must stay 0");
        }
    }
}

#[test]
fn a_memory_hog_is_killed() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &memory(32 * MIB));
    assert_eq!(group.cgroup.stats().unwrap().oom_kills, Some(0));
    let mut hog = group.run("exec tail /dev/zero");
    assert_eq!(hog.wait(Duration::from_secs(120)).signal(), Some(9));
    let stats = group.cgroup.stats().unwrap();
    assert_eq!(stats.oom_kills, Some(1));
    assert!(stats.memory_peak.is_none_or(|peak| peak > 24 * MIB && peak <= 32 * MIB), "{stats:?}");
}

#[test]
fn a_cpu_quota_throttles() {
    let Some(host) = host() else { return };
    let limits = Limits { cpu: Some(CpuQuota::from_millis(100)), ..Limits::default() };
    let group = Group::new(&host, &limits);
    let busy = group.run("while :; do :; done");
    let (start, before) = (Instant::now(), busy.ticks());
    std::thread::sleep(Duration::from_secs(2));
    let (used, wall) = (busy.ticks() - before, start.elapsed());
    let allowed = wall.as_millis() as u64 / 10 / 4; // a quarter of the time in ticks of 10 ms; the quota is a tenth
    assert!(used <= allowed, "{used} ticks in {wall:?}, at most {allowed} expected");
    let stats = group.cgroup.stats().unwrap();
    assert!(stats.nr_throttled > Some(3) && stats.throttled_usec > Some(100_000), "{stats:?}");
    assert!(stats.cpu_usage_usec > Some(0), "{stats:?}");
}

#[test]
fn a_task_limit_refuses_forks() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &Limits { pids_max: Some(4), ..Limits::default() });
    let mut forker = group.run("for i in 1 2 3 4 5 6; do sleep 300 & done; wait");
    let status = forker.wait(Duration::from_secs(60));
    assert!(!status.success() && status.signal().is_none(), "{status:?}");
    let stats = group.cgroup.stats().unwrap();
    assert!(stats.pids_refused >= Some(1), "{stats:?}");
    assert_eq!(stats.pids_current, Some(3)); // three sleeps; the shell was the fourth
}

#[test]
fn a_refused_limit_is_an_error_that_names_the_file() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &memory(64 * MIB));
    let limits = Limits { cpu: Some(CpuQuota { quota_us: 10, period_us: 100_000 }), ..Limits::default() };
    let error = group.cgroup.apply(&writes(&host, &limits)).unwrap_err();
    let file = if host.is_v2(Controller::Cpu) { "cpu.max" } else { "cpu.cfs_quota_us" };
    let path = group.cgroup.dir_of(Controller::Cpu).unwrap().join(file);
    assert_eq!(errno(&error), Some(Errno::EINVAL), "{error:#}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error:#}");

    // cgroups-rs writes `max` for a v2 quota of 0 and says Ok; the kernel itself refuses it on v1.
    let limits = Limits { cpu: Some(CpuQuota { quota_us: 0, period_us: 100_000 }), ..Limits::default() };
    let error = group.cgroup.apply(&writes(&host, &limits)).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error:#}");

    let absent = Write { controller: Controller::Pids, file: "pids.none", value: Value::Flag(true) };
    let error = group.cgroup.apply(&[absent]).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::ENOENT), "{error:#}");
}

#[test]
fn v1_refusals_are_errors_too() {
    let Some(host) = legacy_host() else { return };
    let group = Group::new(&host, &memory(64 * MIB));
    let write = |file, value| [Write { controller: Controller::Memory, file, value }];
    let memsw = group.cgroup.dir_of(Controller::Memory).unwrap().join("memory.memsw.limit_in_bytes");
    if memsw.exists() {
        let below = Value::Bytes { bytes: MIB, v2: false };
        let error = group.cgroup.apply(&write("memory.memsw.limit_in_bytes", below)).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EINVAL), "{error:#}");
    }
    // Any write to this file succeeds and sets it to something else: only reading back can tell.
    let error = group.cgroup.apply(&write("memory.max_usage_in_bytes", Value::Flag(true))).unwrap_err();
    assert!(error.to_string().contains("wanted 1, got 0"), "{error:#}");
}

#[test]
fn a_v2_parent_with_a_process_is_busy_and_says_who() {
    let Some(host) = host() else { return };
    let Some(mount) = host.unified().filter(|_| host.kind() == Kind::Unified) else {
        eprintln!("not applicable: no v2 controllers on this host");
        return;
    };
    let group = Group::named(&host);
    let parent = Cgroup::new(&host, format!("{}/lab", group.top)).unwrap();
    parent.create().unwrap();
    let sleeper = Process(Command::new("sleep").arg("300").spawn().unwrap());
    join(&parent, sleeper.pid());
    let error = group.cgroup.create().unwrap_err();
    assert_eq!(errno(&error), Some(Errno::EBUSY), "{error:#}");
    let text = format!("{error:#}");
    let file = mount.path.join(parent.relative()).join("cgroup.subtree_control");
    assert!(text.contains(file.to_str().unwrap()) && text.contains(&sleeper.pid().to_string()), "{text}");
    assert!(!group.cgroup.exists());
    drop(sleeper);
    group.cgroup.create().unwrap();
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_and_kills_nobody() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &memory(512 * MIB));
    let mut holder = group.run("x=$(head -c 40000000 /dev/zero | tr '\\0' a); read until_the_end");
    let stats = || group.cgroup.stats().unwrap();
    eventually("40 MB in use by the shell alone", || {
        stats().memory_current > Some(40_000_000) && group.cgroup.processes().unwrap() == [holder.pid()]
    });
    let lower = |mib| group.cgroup.changes(&memory(mib * MIB)).and_then(|list| group.cgroup.apply(&list));

    let error = format!("{:#}", lower(16).unwrap_err());
    let file = if host.is_v2(Controller::Memory) { "in use" } else { "EBUSY" };
    assert!(error.contains(file), "{error}");
    assert_eq!(group.memory_file(), (512 * MIB).to_string());
    assert_eq!(stats().oom_kills, Some(0));
    assert!(holder.0.try_wait().unwrap().is_none(), "the process must live");

    lower(400).unwrap();
    assert_eq!(group.memory_file(), (400 * MIB).to_string());
}

#[test]
fn page_cache_gives_way_to_a_lower_limit() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &memory(512 * MIB));
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    let script = format!("head -c 64M /dev/zero >{0}; sync {0}", file.path().display());
    assert!(group.run(&script).wait(Duration::from_secs(120)).success());
    let before = group.cgroup.stats().unwrap().memory_current.unwrap();
    assert!(before > 48 * MIB, "{before} bytes of page cache expected; is /var/tmp a tmpfs?");
    group.cgroup.apply(&group.cgroup.changes(&memory(16 * MIB)).unwrap()).unwrap();
    assert_eq!(group.memory_file(), (16 * MIB).to_string());
    assert!(group.cgroup.stats().unwrap().memory_current.unwrap() <= 16 * MIB);
}

#[test]
fn joining_is_checked_in_every_hierarchy() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &Limits::default());
    let outside = Process(Command::new("sleep").arg("300").spawn().unwrap());
    let error = group.cgroup.verify(outside.pid()).unwrap_err().to_string();
    assert!(error.contains("is not in its cgroup"), "{error}");
    join(&group.cgroup, outside.pid());
    group.cgroup.verify(outside.pid()).unwrap();
    let witness = std::fs::read_to_string(format!("/proc/{}/cgroup", outside.pid())).unwrap();
    let here = witness.lines().filter(|line| line.ends_with(group.cgroup.relative().to_str().unwrap()));
    assert_eq!(here.count(), host.mounts().len(), "{witness}");
    assert_eq!(group.cgroup.processes().unwrap(), [outside.pid()]);

    for mount in host.mounts() {
        std::fs::write(mount.path.join(&group.top).join("cgroup.procs"), outside.pid().to_string())
            .unwrap_or_else(|e| assert!(mount.v2 && e.raw_os_error() == Some(Errno::EBUSY as i32), "{e}"));
    }
    // On pure v2 the parents have controllers enabled, so nothing can be moved up there.
    assert_eq!(group.cgroup.verify(outside.pid()).is_ok(), host.kind() == Kind::Unified);
}

#[test]
fn a_thread_moves_itself_into_the_v1_groups() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &Limits::default());
    let tasks = group.cgroup.tasks().unwrap();
    assert_eq!(tasks.len(), host.mounts().iter().filter(|mount| !mount.v2).count());
    let mut sleep = Command::new("sleep");
    let enter = move || pgbox::sys::cgroup::enter(&tasks).map_err(std::io::Error::other);
    // SAFETY: between fork and execve it only writes to open files.
    let child = Process(unsafe { sleep.arg("300").pre_exec(enter) }.spawn().unwrap());
    if let Some(v2) = group.cgroup.unified_dir() {
        std::fs::write(v2.join("cgroup.procs"), child.pid().to_string()).unwrap();
    }
    group.cgroup.verify(child.pid()).unwrap();
}

/// `struct clone_args` of clone3(2), as far as CLONE_ARGS_SIZE_VER2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// libc has this constant as 0: its type is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[test]
fn a_child_is_born_in_its_group() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &Limits { pids_max: Some(5), ..Limits::default() });
    let Some(dir) = group.cgroup.dir_fd().unwrap() else {
        eprintln!("not applicable: no cgroup2 mount");
        return;
    };
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: dir.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the child has its own copy of memory; it makes only the pause system call, which needs
    // none of the locks that another thread may have held.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) };
    if pid == 0 {
        loop {
            // SAFETY: no arguments, no memory.
            unsafe { libc::syscall(libc::SYS_pause) };
        }
    }
    assert!(pid > 0, "clone3: {}", std::io::Error::last_os_error());
    let pid = Pid::from_raw(pid as i32);
    let born = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let verified = group.cgroup.verify(pid);
    join(&group.cgroup, pid);
    let joined = group.cgroup.verify(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    nix::sys::wait::waitpid(pid, None).unwrap();

    let line = format!("0::{}", host.unified().unwrap().proc_path(group.cgroup.relative()));
    assert!(born.lines().any(|l| l == line), "{born}");
    // Birth is enough on v2; on a hybrid host the limits sit in v1 and still have to be joined.
    assert_eq!(verified.is_ok(), host.kind() == Kind::Unified);
    joined.unwrap();
}

fn kill_reaches_everybody(host: &Hierarchy) {
    let group = Group::new(host, &Limits::default());
    let mut shell = group.run("for i in 1 2 3 4 5; do sleep 300 & done; wait");
    eventually("six processes", || group.cgroup.processes().unwrap().len() == 6);
    assert!(group.cgroup.populated().unwrap());
    assert!(!group.cgroup.wait_empty(Duration::from_millis(50)).unwrap());

    let error = group.cgroup.remove().unwrap_err();
    assert_eq!(errno(&error), Some(Errno::EBUSY), "{error:#}");
    assert!(format!("{error:#}").contains(&shell.pid().to_string()), "{error:#}");

    let pids = group.cgroup.processes().unwrap();
    group.cgroup.kill().unwrap();
    assert_eq!(shell.wait(Duration::from_secs(10)).signal(), Some(9));
    assert!(group.cgroup.wait_empty(Duration::from_secs(10)).unwrap());
    assert!(!group.cgroup.populated().unwrap());
    for pid in pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(!status.contains("State:") || status.contains("zombie"), "{status}");
    }
    group.cgroup.remove().unwrap();
    group.cgroup.kill().unwrap(); // an absent group is an empty one
    assert!(group.cgroup.wait_empty(Duration::ZERO).unwrap());
    assert!(group.cgroup.processes().unwrap().is_empty());
}

#[test]
fn kill_ends_every_process() {
    let Some(host) = host() else { return };
    kill_reaches_everybody(&host);
}

#[test]
fn kill_ends_every_process_on_v1() {
    let Some(host) = legacy_host() else { return };
    kill_reaches_everybody(&host);
}

fn freeze_stops_the_clock(host: &Hierarchy) {
    let group = Group::new(host, &Limits::default());
    let mut busy = group.run("while :; do :; done");
    eventually("it runs", || busy.ticks() > 2);
    group.cgroup.freeze().unwrap();
    let stopped = busy.ticks();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(busy.ticks(), stopped);
    group.cgroup.thaw().unwrap();
    eventually("it runs again", || busy.ticks() > stopped);
    group.cgroup.freeze().unwrap();
    group.cgroup.kill().unwrap();
    assert_eq!(busy.wait(Duration::from_secs(10)).signal(), Some(9), "a frozen process dies of kill()");
}

#[test]
fn freeze_and_thaw() {
    let Some(host) = host() else { return };
    freeze_stops_the_clock(&host);
}

#[test]
fn freeze_and_thaw_on_v1() {
    let Some(host) = legacy_host() else { return };
    if host.mount_of(Controller::Freezer).is_none() {
        eprintln!("not applicable: no v1 freezer mounted");
        return;
    }
    freeze_stops_the_clock(&host);
}

#[test]
fn wait_empty_wakes_when_the_last_process_ends() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &Limits::default());
    let mut last = group.run("exec sleep 0.5");
    let start = Instant::now();
    assert!(group.cgroup.wait_empty(Duration::from_secs(30)).unwrap());
    let waited = start.elapsed();
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    assert!(last.wait(Duration::from_secs(5)).success());
}

#[test]
fn groups_made_inside_go_with_the_group() {
    let Some(host) = host() else { return };
    let group = Group::new(&host, &Limits::default());
    for dir in group.cgroup.directories() {
        std::fs::create_dir_all(dir.join("made/inside")).unwrap();
    }
    let inside = Cgroup::new(&host, group.cgroup.relative().join("made")).unwrap();
    let sleeper = Process(Command::new("sleep").arg("300").spawn().unwrap());
    join(&inside, sleeper.pid());
    assert_eq!(group.cgroup.processes().unwrap(), [sleeper.pid()]);
    group.cgroup.kill().unwrap();
    assert!(group.cgroup.wait_empty(Duration::from_secs(10)).unwrap());
    drop(sleeper);
    group.cgroup.remove().unwrap();
    assert!(group.cgroup.directories().iter().all(|dir: &PathBuf| !Path::new(dir).exists()));
}

#[test]
fn stats_of_an_absent_group_are_an_error() {
    let Some(host) = host() else { return };
    let error = Group::named(&host).cgroup.stats().unwrap_err();
    assert_eq!(errno(&error), Some(Errno::ENOENT), "{error:#}");
}
