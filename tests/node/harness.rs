//! A bare host for one test, and what every test asks of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

pub const PGBOX: &str = env!("CARGO_BIN_EXE_pgbox");

/// A host with nothing on it: own network, own mounts, own root directory. All that is left in it when the
/// test ends, or fails, is removed.
pub struct Host {
    pub root: PathBuf,
    directory: tempfile::TempDir,
    /// The directory itself, locked. Whose test was killed is not, which is how scripts/test finds what that has left.
    _alive: fs::File,
}

impl Host {
    /// Moves this thread, and so all it starts, into namespaces of its own. `None`, loudly, where that can't be.
    pub fn new() -> Option<Self> {
        let store = std::env::var_os("PGBOX_TEST_STORE").map(PathBuf::from);
        let Some(store) = store.filter(|_| nix::unistd::geteuid().is_root()) else {
            let required =
                std::env::var_os("CI").is_some() || std::env::var_os("PGBOX_REQUIRE_ROOT").is_some();
            assert!(!required, "this test needs root and PGBOX_TEST_STORE; run scripts/test");
            eprintln!("SKIPPED: needs root and PGBOX_TEST_STORE; run scripts/test");
            return None;
        };
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("unshare");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("private");
        fs::create_dir_all("/run/netns").expect("mkdir /run/netns");
        mount(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
        // What /sys shows of the network belongs to the namespace in which it was mounted.
        let directory = tempfile::Builder::new().prefix("pgbox-test.").tempdir().expect("tempdir");
        // Before anything is in it: an empty one is let alone.
        let alive = fs::File::open(directory.path()).expect("open the directory");
        alive.lock().expect("lock the directory");
        let root = directory.path().join("root");
        fs::create_dir(&root).expect("mkdir root");
        for part in ["images", "layers"] {
            std::os::unix::fs::symlink(store.join(part), root.join(part)).expect("symlink the store");
        }
        run("ip", &["link", "set", "lo", "up"]);
        // If a bridge were down, a packet for it must not leave through anything else.
        run("ip", &["route", "add", "unreachable", "10.213.0.0/16", "metric", "9999"]);
        Some(Self { root, directory, _alive: alive })
    }

    /// A scratch directory that goes with the host.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(&path).expect("mkdir");
        path
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PGBOX);
        command.args(args).env("PGBOX_ROOT", &self.root).env_remove("PGBOX_LAB").stdin(Stdio::null());
        command
    }

    pub fn try_pgbox(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("start pgbox")
    }

    /// Runs pgbox, which must succeed; gives its standard output.
    #[track_caller]
    pub fn pgbox(&self, args: &[&str]) -> String {
        let output = self.try_pgbox(args);
        assert!(
            output.status.success(),
            "pgbox {args:?}: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs pgbox, which must fail with this code; gives its standard error.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.try_pgbox(args);
        let shown =
            format!("pgbox {args:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{shown}");
        text(&output.stderr)
    }

    /// Runs pgbox until it makes a system call for the `nth` time, and kills it there.
    #[track_caller]
    pub fn killed_at(&self, call: &str, nth: u32, args: &[&str]) {
        assert!(self.try_killed_at(call, nth, args), "pgbox {args:?} was not killed");
    }

    /// The same; false if it did not come to that.
    #[track_caller]
    pub fn try_killed_at(&self, call: &str, nth: u32, args: &[&str]) -> bool {
        let output = self.tampered(call, &format!("signal=SIGKILL:when={nth}"), args);
        // strace ends as what it traces.
        assert!(matches!(output.status.code(), None | Some(0)), "pgbox {args:?}: {}", text(&output.stderr));
        output.status.code().is_none()
    }

    /// Runs pgbox, and does something to all processes of it where they make a system call: strace(1), `-e inject`.
    pub fn tampered(&self, call: &str, what: &str, args: &[&str]) -> Output {
        let inject = format!("inject={call}:{what}");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject, PGBOX]);
        command.args(args).env("PGBOX_ROOT", &self.root).env_remove("PGBOX_LAB");
        command.stdin(Stdio::null()).output().expect("start strace")
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.pgbox(args)).expect("JSON")
    }

    /// One value of one row, asked by the host's own psql of an address.
    #[track_caller]
    pub fn sql(&self, node: &str, uri_args: &[&str], sql: &str) -> String {
        let uri = self.pgbox(&[&["uri", node], uri_args].concat());
        run("psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, uri.trim()])
    }

    /// pid 1 of a node, on the host.
    #[track_caller]
    pub fn init_pid(&self, node: &str) -> i32 {
        self.json(&["inspect", "--json", node])[0]["pid"].as_i64().expect("a running node") as i32
    }

    /// The names of everything that pgbox may have made on this host.
    pub fn objects(&self) -> Vec<String> {
        let links = run("ip", &["-o", "link"]);
        let mut found: Vec<String> =
            links.lines().filter(|l| l.contains("pgb-") || l.contains("pgv-")).map(str::to_owned).collect();
        found.extend(run("ip", &["netns", "list"]).lines().map(str::to_owned));
        found.extend(
            run("nft", &["list", "tables"]).lines().filter(|l| l.contains("pgbox")).map(str::to_owned),
        );
        found.extend(self.cgroups().iter().map(|p| p.display().to_string()));
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let root = self.root.display().to_string();
        found.extend(mounts.lines().filter(|l| l.contains(&root)).map(str::to_owned));
        found
    }

    /// Nothing of pgbox is left. The kernel takes a network namespace apart some milliseconds after its last
    /// reference has gone, and the veth pair with it.
    #[track_caller]
    pub fn is_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(3);
        while !self.objects().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.objects(), Vec::<String>::new(), "left on the host");
    }

    /// And pgbox remembers nothing of it: no node, no lab, no half-made one.
    #[track_caller]
    pub fn is_forgotten(&self) {
        self.is_clean();
        let labs =
            fs::read_dir(self.root.join("labs")).into_iter().flatten().flatten().map(|e| e.file_name());
        assert_eq!(labs.collect::<Vec<_>>(), Vec::<std::ffi::OsString>::new(), "left in labs/");
    }

    /// The cgroups of this root, in all hierarchies.
    fn cgroups(&self) -> Vec<PathBuf> {
        let lab = "default".parse().expect("name");
        let names = pgbox::spec::ObjectNames::new(&self.root, &lab, &"x".parse().expect("name"));
        let top = names.cgroup.components().next().expect("top").as_os_str().to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let places = mounts.lines().filter(|l| l.contains(" - cgroup")).filter_map(|l| l.split(' ').nth(4));
        places.map(|place| Path::new(place).join(&top)).filter(|p| p.exists()).collect()
    }
}

impl Host {
    /// Where something is mounted below the host's directory, the last mount first.
    fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
        let below = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mut mounts: Vec<_> = below.filter(|path| path.starts_with(self.directory.path())).collect();
        mounts.reverse();
        mounts
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for lab in fs::read_dir(self.root.join("labs")).into_iter().flatten().flatten() {
            let lab = lab.file_name().to_string_lossy().into_owned();
            for node in
                fs::read_dir(self.root.join("labs").join(&lab).join("nodes")).into_iter().flatten().flatten()
            {
                let node = node.file_name().to_string_lossy().into_owned();
                let output = self.try_pgbox(&["--lab", &lab, "rm", "--force", "-v", &node]);
                if !output.status.success() {
                    eprintln!("clean up {lab}/{node}: {}", text(&output.stderr));
                }
            }
        }
        // What a test mounted holds its directory, whose removal would fail unseen.
        for mount in self.mounts() {
            if let Err(errno) = umount2(&mount, MntFlags::MNT_DETACH) {
                eprintln!("clean up {}: {errno}", mount.display());
            }
        }
        // A test that has failed already must not abort here.
        if !std::thread::panicking() {
            self.is_clean();
            fs::remove_dir_all(self.directory.path()).expect("remove the test's directory");
        }
    }
}

/// Runs a program that must succeed; gives its standard output without the last newline.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout).trim_end().to_owned()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `check` says yes.
#[track_caller]
pub fn until(what: &str, seconds: u64, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !check() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
