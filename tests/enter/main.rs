//! Commands inside a container-like process: what they see, what they may, how they end.

mod container;
mod terminal;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use container::{Container, Entered, FORK, again, executable, output, request};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::pipe;
use pgbox::enter::Target;
use pgbox::sys::process::ProcessId;
use terminal::Terminal;

/// stdout of a command that must succeed.
fn said(target: &Target, argv: &[&str]) -> String {
    let (code, out, err) = output(target, &request(target, argv), "");
    assert_eq!((code, err.as_str()), (0, ""), "{argv:?}: {out}");
    out
}

/// Waits until a process of the container has this command line, or none has.
fn wait_for(container: &Container, command: &str, present: bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let found = || {
        fs::read_dir(container.path("/proc")).unwrap().flatten().any(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").trim() == command
        })
    };
    while found() != present {
        assert!(
            Instant::now() < deadline,
            "{command:?} is {}",
            if present { "not there" } else { "still there" }
        );
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn exit_codes_are_those_of_docker() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let code = |argv: &[&str]| output(&target, &request(&target, argv), "").0;
    assert_eq!(code(&["true"]), 0);
    assert_eq!(code(&["sh", "-c", "exit 3"]), 3);
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]), 137);

    let failed = |argv: &[&str], cwd: &str| {
        let mut request = request(&target, argv);
        request.cwd = cwd.into();
        let (code, out, err) = output(&target, &request, "");
        assert_eq!(out, "");
        (code, err)
    };
    assert_eq!(failed(&["no-such"], "/"), (127, "no-such: not found in the container\n".into()));
    assert_eq!(failed(&["/no/such"], "/").0, 127);
    assert_eq!(
        failed(&["secret"], "/"),
        (126, "execute secret in the container: Permission denied\n".into())
    );
    assert_eq!(
        failed(&["garbage"], "/"),
        (126, "execute garbage in the container: Exec format error\n".into())
    );
    assert_eq!(failed(&["/bin"], "/").0, 126);
    let (code, err) = failed(&["true"], "/nowhere");
    assert!(code == 126 && err.contains("/nowhere"), "{code} {err}");
}

#[test]
fn joins_every_namespace() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    for kind in ["mnt", "pid", "uts", "ipc", "net", "cgroup"] {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let init = fs::read_link(format!("/proc/{}/ns/{kind}", container.init)).unwrap();
        assert_ne!(host, init);
        let inside = said(&target, &["readlink", &format!("/proc/self/ns/{kind}")]);
        assert_eq!(Path::new(inside.trim()), init);
    }
    assert_eq!(said(&target, &["hostname"]), "inside\n");
}

#[test]
fn user_directory_and_environment_are_the_containers() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let mut request =
        request(&target, &["sh", "-c", "id -u; id -g; id -G; pwd; echo $HOME $X; umask; env | wc -l"]);
    request.user = target.user("pg").unwrap();
    request.cwd = "/home/pg".into();
    request.env.push(("X".into(), "a b".into()));
    let (code, out, err) = output(&target, &request, "");
    // PATH, X and HOME, and what the shell itself adds (PWD, SHLVL): nothing of ours.
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "999\n998\n998 101\n/home/pg\n/home/pg a b\n0022\n5\n");
}

#[test]
fn privileges_are_limited() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let status = said(&target, &["cat", "/proc/self/status"]);
    let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_string();
    let kept = format!("{:016x}", container::kept());
    assert_eq!([line("CapPrm:"), line("CapEff:"), line("CapBnd:")], [&kept; 3].map(String::from));
    assert_eq!([line("NoNewPrivs:"), line("Seccomp:"), line("SigBlk:")], ["1", "2", "0000000000000000"]);
    // Bit 12 is SIGPIPE, which Rust programs ignore.
    assert_eq!(u64::from_str_radix(&line("SigIgn:"), 16).unwrap() & 1 << 12, 0);
    // Filtered, that is; without the filter it would be ENOENT.
    let (code, _, err) = output(&target, &request(&target, &["unshare", "-m", "true"]), "");
    assert!(code != 0 && err.contains("Operation not permitted"), "{code} {err}");
}

#[test]
fn no_descriptor_leaks() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    // A host directory that is not even close-on-exec.
    let leak = File::open("/").unwrap();
    fcntl(&leak, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    // 3 is the directory that ls reads.
    assert_eq!(said(&target, &["ls", "/proc/self/fd"]), "0\n1\n2\n3\n");
    let mut request = request(&target, &["pwd"]);
    request.cwd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&leak)).into();
    let (code, out, _) = output(&target, &request, "");
    assert_eq!((code, out.as_str()), (126, ""));
}

#[test]
fn stdin_is_passed_on_only_when_asked_for() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let mut request = request(&target, &["sh", "-c", "cat; readlink /proc/self/fd/0"]);
    assert_eq!(output(&target, &request, "hello\n").1, "/dev/null\n");
    request.stdin = true;
    assert!(output(&target, &request, "hello\n").1.starts_with("hello\npipe:"));
}

#[test]
fn signals_are_forwarded() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let request = request(&target, &["sleep", "4242"]);
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let mut entered =
            Entered::start(&target, &request, [again(&null), again(&null), again(&null)], || {});
        wait_for(&container, "sleep 4242", true);
        entered.signal(signal);
        assert_eq!(entered.wait(), code);
        wait_for(&container, "sleep 4242", false);
    }
}

#[test]
fn the_command_does_not_outlive_us() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    for tty in [false, true] {
        let mut request = request(&target, &["sleep", "4343"]);
        // Another user: setresuid clears the parent-death signal if it is set too early.
        request.user = target.user("pg").unwrap();
        (request.tty, request.stdin) = (tty, tty);
        let mut terminal = Terminal::run(&target, &request, 24, 80);
        wait_for(&container, "sleep 4343", true);
        terminal.entered.signal(Signal::SIGKILL);
        assert_eq!(terminal.entered.wait(), -9);
        wait_for(&container, "sleep 4343", false);
    }
}

#[test]
fn a_process_that_only_has_the_number_is_not_entered() {
    let Some(container) = Container::start() else { return };
    let init = container.identity();
    let earlier = ProcessId { start_time: init.start_time - 1, ..init };
    let error = Target::open(earlier, None, Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), format!("process {} has ended", init.pid));
}

#[test]
fn is_born_in_the_cgroup() {
    const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let Some(container) = Container::start() else { return };
    let v2 = |path: &&&str| Path::new(path).join("cgroup.procs").exists();
    let Some(root) = HIERARCHIES.iter().find(v2) else { return eprintln!("SKIPPED: no cgroup v2") };
    let directory = Directory::create(format!("{root}/pgbox-test-enter-{}", std::process::id()));
    let target = Target::open(container.identity(), Some(&directory.0), Vec::new()).unwrap();
    let name = directory.0.file_name().unwrap().to_str().unwrap();
    let inside = said(&target, &["cat", "/proc/self/cgroup"]);
    let line = inside.lines().find(|line| line.starts_with("0::")).unwrap();
    assert!(line.ends_with(name), "{inside}");

    // The way of v1, which works on v2's file as well.
    let way_in = fs::File::options().write(true).open(directory.0.join("cgroup.procs")).unwrap();
    let target = Target::open(container.identity(), None, vec![way_in]).unwrap();
    assert!(said(&target, &["cat", "/proc/self/cgroup"]).contains(line));
}

/// A cgroup directory that goes away with the test; a process that has just ended may hold it for a moment.
struct Directory(PathBuf);

impl Directory {
    fn create(path: String) -> Directory {
        fs::create_dir(&path).unwrap();
        Directory(path.into())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            sleep(Duration::from_millis(10));
        }
        eprintln!("{} is left behind", self.0.display());
    }
}

#[test]
fn a_terminal_of_the_containers_own() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let script = "tty; stty size; ls -ln /dev/pts/0; trap 'stty size' WINCH; echo go; until [ x$line = xend ]; do read line && echo got $line; done; exit 5";
    let mut request = request(&target, &["sh", "-c", script]);
    request.user = target.user("pg").unwrap();
    (request.tty, request.stdin) = (true, true);
    let mut terminal = Terminal::run(&target, &request, 31, 101);
    terminal.expect("/dev/pts/0\r\n");
    terminal.expect("31 101\r\n");
    terminal.expect("999");
    terminal.expect("go\r\n");
    assert!(!terminal.is_cooked());
    terminal.resize(40, 120);
    terminal.send("\r");
    terminal.expect("40 120\r\n");
    terminal.send("hello\r");
    terminal.expect("got hello\r\n");
    // Not Ctrl-D: a read that a signal interrupts fails just like one at the end.
    terminal.send("end\r");
    assert_eq!(terminal.entered.wait(), 5);
    assert!(terminal.is_cooked());
}

#[test]
fn ctrl_c_is_a_byte_that_the_inner_terminal_acts_on() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let mut request = request(&target, &["sleep", "4444"]);
    (request.tty, request.stdin) = (true, true);
    let mut terminal = Terminal::run(&target, &request, 24, 80);
    wait_for(&container, "sleep 4444", true);
    let deadline = Instant::now() + Duration::from_secs(20);
    while terminal.is_cooked() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(2));
    }
    terminal.send("\u{3}");
    assert_eq!(terminal.entered.wait(), 130);
    assert!(terminal.is_cooked());
}

#[test]
fn the_terminal_is_restored_when_we_are_told_to_end() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let mut request = request(&target, &["sh", "-c", "echo go; exec sleep 4545"]);
        (request.tty, request.stdin) = (true, true);
        let mut terminal = Terminal::run(&target, &request, 24, 80);
        terminal.expect("go");
        wait_for(&container, "sleep 4545", true);
        terminal.entered.signal(signal);
        assert_eq!(terminal.entered.wait(), code);
        assert!(terminal.is_cooked());
        wait_for(&container, "sleep 4545", false);
    }
}

#[test]
fn much_output_and_a_late_reader_lose_nothing() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let mut request = request(&target, &["sh", "-c", "seq 1 50000; echo the-end"]);
    request.tty = true;
    let (code, out, err) = output(&target, &request, "");
    assert_eq!((code, err.as_str()), (0, ""));
    let numbers: Vec<&str> = out.lines().collect();
    assert_eq!((numbers.len(), numbers[49_999], numbers[50_000]), (50_001, "50000", "the-end"));
}

#[test]
fn piped_input_reaches_a_terminal_and_ends() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let mut request = request(&target, &["sh", "-c", "stty -echo; read a; read b || echo end; echo $a"]);
    (request.tty, request.stdin) = (true, true);
    let (code, out, _) = output(&target, &request, "one\n");
    assert_eq!(code, 0);
    assert!(out.contains("end\r\none\r\n"), "{out:?}");
}

#[test]
fn a_reader_that_goes_away_ends_us_with_an_error() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let mut request = request(&target, &["yes", "4646"]);
    (request.tty, request.stdin) = (true, true);
    let (stdin, _typed) = pipe().unwrap();
    let (out, stdout) = pipe().unwrap();
    let (_err, stderr) = pipe().unwrap();
    let mut entered = Entered::start(&target, &request, [stdin, stdout, stderr], || {
        // As pgbox does, for the sake of `pgbox ps | head`. SAFETY: no handler of ours.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
    });
    wait_for(&container, "yes 4646", true);
    drop(out);
    // Not -13: SIGPIPE would leave the terminal raw.
    assert_eq!(entered.wait(), 99);
    wait_for(&container, "yes 4646", false);
}

#[test]
fn the_hosts_terminal_is_not_its_controlling_terminal() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let mut request =
        request(&target, &["sh", "-c", "cut -d' ' -f7 /proc/self/stat; test -t 1 && echo on-a-terminal"]);
    request.stdin = true;
    let mut terminal = Terminal::run(&target, &request, 24, 80);
    terminal.expect("0\r\non-a-terminal");
    assert_eq!(terminal.entered.wait(), 0);
}

#[test]
fn a_false_ptmx_is_refused() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let status = std::process::Command::new("nsenter")
        .args(["-t", &container.init.to_string(), "-m", "/bin/mount", "-t", "tmpfs", "tmpfs", "/dev/pts"])
        .status()
        .unwrap();
    assert!(status.success());
    let mut request = request(&target, &["true"]);
    request.tty = true;
    assert_eq!(output(&target, &request, "").0, 99);
    nix::unistd::mkfifo(&container.path("/dev/pts/ptmx"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (code, _, err) = output(&target, &request, "");
    assert!(code == 99 && err.contains("not the ptmx"), "{code} {err}");
}

#[test]
fn a_dead_target_is_an_error() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    let request = request(&target, &["true"]);
    let init = format!("/proc/{}/root/.", container.init);
    drop(container);
    // Its init is killed by the kernel when unshare is gone, a moment later.
    let deadline = Instant::now() + Duration::from_secs(20);
    while Path::new(&init).exists() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(2));
    }
    {
        let _no_fork = FORK.lock();
        assert!(target.user("root").is_err());
    }
    let (code, _, err) = output(&target, &request, "");
    assert!(code == 99 && err.contains("setns"), "{code} {err}");
}

#[test]
fn scripts_with_and_without_interpreter() {
    let Some(container) = Container::start() else { return };
    let target = container.target();
    executable(&container.path("/tmp/good"), b"#!/bin/sh\necho $0 $1\n");
    executable(&container.path("/tmp/bad"), b"#!/no/such\n");
    assert_eq!(said(&target, &["/tmp/good", "x"]), "/tmp/good x\n");
    assert_eq!(output(&target, &request(&target, &["/tmp/bad"]), "").0, 127);
}
