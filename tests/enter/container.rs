//! A container-like process made with unshare(1) and busybox, so that `enter` is not tested against our own set-up, and
//! the means to run `enter` in a process of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe};
use pgbox::enter::{EnterRequest, NotStarted, Target, enter};
use pgbox::sys::process::ProcessId;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\npg:x:999:998::/home/pg:/bin/sh\n";
const GROUP: &str = "root:x:0:\npg:x:998:\nssl:x:101:pg\n";

/// Everything happens in the new mount namespace: the host sees an empty directory.
const SET_UP: &str = r#"
set -e
mount -t tmpfs tmpfs "$ROOT"
cd "$ROOT"
mkdir -p bin proc dev/pts etc root home/pg tmp
cp /bin/busybox bin/busybox
bin/busybox --install bin
mount -t proc proc proc
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
touch dev/null && mount --bind /dev/null dev/null
printf %s "$PASSWD" > etc/passwd; printf %s "$GROUP" > etc/group
printf 'not a program' > bin/garbage; chmod 755 bin/garbage
printf 'no permission' > bin/secret; chmod 644 bin/secret
chown 999:998 home/pg; chmod 1777 tmp
hostname inside
pivot_root . .
/bin/umount -l .
cd /
echo ready
exec /bin/busybox sleep 1000000
"#;

/// A running container; it is gone when this is dropped.
pub struct Container {
    unshare: Child,
    pub init: i32,
    root: PathBuf,
}

impl Container {
    /// `None`, loudly, where this test can't be made.
    pub fn start() -> Option<Container> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
            eprintln!("SKIPPED: needs root and /bin/busybox");
            assert!(std::env::var_os("PGBOX_REQUIRE_ROOT").is_none() && std::env::var_os("CI").is_none());
            return None;
        }
        let root = tempfile::tempdir().unwrap().keep();
        let mut unshare = Command::new("unshare")
            .args(["--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup"])
            .args(["--propagation", "private", "sh", "-c", SET_UP])
            .env("ROOT", &root)
            .env("PASSWD", PASSWD)
            .env("GROUP", GROUP)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(unshare.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = fs::read_to_string(children).unwrap().trim().parse().unwrap_or(0);
        let container = Container { unshare, init, root };
        assert_eq!((line.as_str(), container.init > 0), ("ready\n", true));
        Some(container)
    }

    pub fn target(&self) -> Target {
        Target::open(self.identity(), None, Vec::new()).unwrap()
    }

    /// Its init, beyond its number.
    pub fn identity(&self) -> ProcessId {
        ProcessId::of(Pid::from_raw(self.init)).unwrap()
    }

    /// The path of a file of the container for a process on the host.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = fs::remove_dir(&self.root);
    }
}

/// A request for root in `/`, without terminal and stdin.
pub fn request(target: &Target, argv: &[&str]) -> EnterRequest {
    EnterRequest {
        argv: argv.iter().map(Into::into).collect(),
        env: vec![("PATH".into(), "/sbin:/bin".into())],
        cwd: "/".into(),
        user: target.user("root").unwrap(),
        tty: false,
        stdin: false,
        capabilities: kept(),
    }
}

/// Held during a fork, and by a test that makes an error itself meanwhile: with RUST_BACKTRACE that takes a lock of std, which
/// a child forked just then would wait for in vain.
pub static FORK: Mutex<()> = Mutex::new(());

/// A process in which `enter` runs, as `pgbox exec` would be.
pub struct Entered {
    pub pid: Pid,
    ended: bool,
}

impl Entered {
    /// Forks; the child makes `stdio` its own, runs `prepare` and then `enter`, and exits with its result.
    pub fn start(
        target: &Target,
        request: &EnterRequest,
        stdio: [OwnedFd; 3],
        prepare: impl FnOnce(),
    ) -> Entered {
        let body = || {
            dup2_stdin(&stdio[0]).and(dup2_stdout(&stdio[1])).and(dup2_stderr(&stdio[2])).unwrap();
            // Unlike what the command is to have.
            umask(Mode::S_IRWXG | Mode::S_IRWXO);
            prepare();
            close_what_belongs_to_tests();
            enter(target, request).unwrap_or_else(|error| {
                let code = error.downcast_ref::<NotStarted>().map_or(99, |error| error.code);
                let _ = nix::unistd::write(std::io::stderr(), format!("{error:#}\n").as_bytes());
                code
            })
        };
        let _alone = FORK.lock();
        // SAFETY: glibc's fork leaves malloc usable, and the child has only this thread; it ends by _exit.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(98);
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => Entered { pid: child, ended: false },
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    /// Its exit code; -n if signal n ended it.
    pub fn wait(&mut self) -> i32 {
        self.ended = true;
        match waitpid(self.pid, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            WaitStatus::Signaled(_, signal, _) => -(signal as i32),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Exit code, stdout and stderr of a request without a terminal.
pub fn output(target: &Target, request: &EnterRequest, input: &str) -> (i32, String, String) {
    let (stdin, typed) = pipe().unwrap();
    nix::unistd::write(&typed, input.as_bytes()).unwrap();
    drop(typed);
    let (out, stdout) = pipe().unwrap();
    let (err, stderr) = pipe().unwrap();
    let mut entered = Entered::start(target, request, [stdin, stdout, stderr], || {});
    let [out, err] = [out, err].map(|fd| {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        text
    });
    (entered.wait(), out, err)
}

/// A file that only the owner may execute, with this content.
pub fn executable(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A duplicate of a descriptor.
pub fn again(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

/// A fork has copies of every test's pipes and terminals, whose other ends would wait for it to close them.
fn close_what_belongs_to_tests() {
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten().collect::<Vec<_>>() {
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let link = fs::read_link(entry.path()).unwrap_or_default();
        let link = link.to_string_lossy();
        if number > 2 && (link.starts_with("pipe:") || link.starts_with("/dev/pt")) {
            // SAFETY: the objects that own these numbers are the parent's; this process ends by _exit and drops none.
            unsafe { libc::close(number) };
        }
    }
}

/// What a node's processes keep of root's power.
pub fn kept() -> pgbox::sys::capability::CapabilitySet {
    pgbox::sys::capability::parse(&pgbox::plan::CAPABILITIES.join(",")).unwrap()
}
