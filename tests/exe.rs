//! Nobody who gets at `/proc/PID/exe` can write to the program, neither while it runs nor afterwards (CVE-2019-5736).
//!
//! Each test works on its own copy of this test program, so that an attack that succeeds destroys nothing and keeps
//! nobody from executing the original (ETXTBSY). The tests that are ignored are what that copy does.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::errno::Errno;
use pgbox::sys::exe::reexec_read_only;

/// A copy of this program in a directory of its own, on a file system that is mounted read-write.
struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Option<Copy> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            assert!(env::var_os("PGBOX_REQUIRE_ROOT").is_none() && env::var_os("CI").is_none());
            return None;
        }
        let copy = Copy(tempfile::tempdir().unwrap());
        fs::copy("/proc/self/exe", copy.path()).unwrap();
        assert!(writable(copy.path().to_str().unwrap()).is_ok(), "the copy lies on a read-only mount");
        Some(copy)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("program")
    }

    /// Starts the copy with one of the ignored tests below, and waits until that says "ready".
    fn start(&self, role: &str) -> Running {
        let mut child = Command::new(self.path())
            .args(["--ignored", "--exact", "--nocapture", role, "--skip", "an argument"])
            .env("PGBOX_TEST_VALUE", "a value")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.find_map(|line| line.unwrap().strip_prefix("ready ").map(String::from));
        Running { said: said.expect("the role says ready"), child, _stdout: lines }
    }
}

struct Running {
    said: String,
    child: Child,
    /// Kept open: the harness of the other side has more to say.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Opens `/proc/PID/exe` as an attacker would, while it runs and after its end, and returns what each gave.
    fn attack(mut self) -> [Result<(), Errno>; 2] {
        let link = format!("/proc/{}/exe", self.child.id());
        let handle = File::options().read(true).custom_flags(libc::O_PATH).open(&link).unwrap();
        let running = writable(&link);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        [running, writable(&format!("/proc/self/fd/{}", handle.as_raw_fd()))]
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn writable(path: &str) -> Result<(), Errno> {
    let opened = File::options().write(true).open(path);
    opened.map(drop).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap()))
}

#[test]
fn an_ordinary_program_can_be_overwritten_once_it_has_ended() {
    // The danger is real: without this the next test would prove nothing.
    let Some(copy) = Copy::new() else { return };
    assert_eq!(copy.start("role_plain").attack(), [Err(Errno::ETXTBSY), Ok(())]);
}

#[test]
fn a_protected_program_can_not() {
    let Some(copy) = Copy::new() else { return };
    let before = fs::metadata(copy.path()).unwrap();
    // While it runs, that is the first obstacle.
    assert_eq!(copy.start("role_protected").attack(), [Err(Errno::ETXTBSY), Err(Errno::EROFS)]);
    // It ran the same file, and its owner can still replace that file by name.
    assert_eq!(fs::metadata(copy.path()).unwrap().ino(), before.ino());
    File::options().write(true).open(copy.path()).unwrap();
}

#[test]
fn a_child_that_executes_its_own_link_is_protected_too() {
    // What a script that begins `#!/proc/self/exe` makes of a process that has just entered a hostile root directory.
    let Some(copy) = Copy::new() else { return };
    let mut parent = copy.start("role_executes_a_hostile_script");
    let pid: u32 = parent.said.parse().unwrap();
    let link = format!("/proc/{pid}/exe");
    let started = fs::metadata(&link).unwrap();
    let own = fs::metadata(copy.path()).unwrap();
    assert_eq!(
        (started.dev(), started.ino()),
        (own.dev(), own.ino()),
        "the script did not execute the program"
    );
    let handle = File::options().read(true).custom_flags(libc::O_PATH).open(&link).unwrap();
    assert_eq!(writable(&link), Err(Errno::ETXTBSY));
    drop(parent.child.stdin.take());
    parent.child.wait().unwrap();
    assert_eq!(writable(&format!("/proc/self/fd/{}", handle.as_raw_fd())), Err(Errno::EROFS));
}

#[test]
fn arguments_environment_and_name_survive() {
    let Some(copy) = Copy::new() else { return };
    let running = copy.start("role_protected");
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", running.child.id())).unwrap();
    assert!(proc("cmdline").ends_with("--skip\0an argument\0"), "{}", proc("cmdline"));
    assert!(proc("cmdline").starts_with(copy.path().to_str().unwrap()));
    assert!(proc("environ").contains("PGBOX_TEST_VALUE=a value\0"));
    // A thread of the test harness renames itself, not the process.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("program"), "the clone is attached somewhere: {mounts}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_c_library_starts_once() {
    let directory = tempfile::tempdir().unwrap();
    let (calls, root) = (directory.path().join("calls"), directory.path().join("root"));
    let status = Command::new("strace")
        .args(["-qq", "-e", "trace=execve,execveat,arch_prctl", "-o"])
        .args([&calls, &PathBuf::from(env!("CARGO_BIN_EXE_pgbox")), &PathBuf::from("--root"), &root])
        .args(["run", "t", "no-such-image"])
        .stderr(Stdio::null())
        .status();
    if !nix::unistd::geteuid().is_root() || status.is_err() {
        eprintln!("SKIPPED: needs root and strace");
        assert!(env::var_os("PGBOX_REQUIRE_ROOT").is_none() && env::var_os("CI").is_none());
        return;
    }
    let calls = fs::read_to_string(calls).unwrap();
    let names: Vec<&str> = calls.lines().filter_map(|line| Some(line.split_once('(')?.0)).collect();
    // The last one is the C library's: where the thread's own data are.
    assert_eq!(names, ["execve", "execveat", "arch_prctl"], "{calls}");
}

fn ready(said: impl std::fmt::Display) {
    println!("\nready {said}");
    std::io::stdout().flush().unwrap();
    // Until the other side ends.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
#[ignore = "started by the tests above"]
fn role_plain() {
    ready("");
}

#[test]
#[ignore = "started by the tests above"]
fn role_protected() {
    reexec_read_only().unwrap();
    // Once more costs nothing and starts nothing.
    reexec_read_only().unwrap();
    ready("");
}

#[test]
#[ignore = "started by the tests above"]
fn role_executes_a_hostile_script() {
    reexec_read_only().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("role_plain");
    fs::write(&script, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // The interpreter gets the script's path and then these; as filters of tests they choose `role_plain`.
    let mut child = Command::new(&script)
        .args(["--ignored", "--exact", "--nocapture", "role_plain"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("ready")));
    ready(child.id());
    drop(child.stdin.take());
    child.wait().unwrap();
}
