//! A real container around `pgbox::init::run`: new pid, mount, network, uts and ipc namespaces, the host's
//! own root directory as the lower layer of an overlay whose upper layer is a tmpfs, so that nothing a test
//! does stays on the host.
//!
//! The test binary starts itself again with one hidden test, which makes the namespaces and forks the pid 1,
//! just as `pgbox run` does.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};
use pgbox::init::{InitConfig, InitFds, LogFds, Report, Status};
use pgbox::postgres::launch::{Orders, Password, Payload, PostgresPayload, Restart, Source, User};
use pgbox::postgres::report::Phase;
use pgbox::postgres::settings;
use serde::{Deserialize, Serialize};

pub const BINDIR: &str = "/usr/lib/postgresql/15/bin";
pub const PGDATA: &str = "/var/lib/postgresql/data";
const SPEC: &str = "PGBOX_TEST_INIT_SPEC";

/// Long enough for initdb on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the hidden test is told.
#[derive(Serialize, Deserialize)]
struct Spec {
    config: InitConfig,
    dir: PathBuf,
    data: PathBuf,
    /// Size of a tmpfs as the data directory instead of `data`, in MiB.
    tmpfs: Option<u32>,
    foreground: bool,
    secret: bool,
}

/// A data directory and init scripts that outlive containers.
pub struct Volume {
    pub dir: tempfile::TempDir,
}

impl Volume {
    pub fn new() -> Volume {
        let dir = tempfile::Builder::new().prefix("pgbox-init-").tempdir().unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["data", "scripts"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Volume { dir }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn script(&self, name: &str, mode: u32, content: impl AsRef<[u8]>) {
        use std::io::Write;
        let path = self.dir.path().join("scripts").join(name);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path).unwrap();
        file.write_all(content.as_ref()).unwrap();
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.data())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A cluster, made by a container that is stopped again.
    pub fn initialised() -> Volume {
        let volume = Volume::new();
        let mut container = Container::start(&volume, &config(postgres()));
        container.wait_running();
        assert_eq!(container.stop(Signal::SIGTERM), 0);
        volume
    }
}

/// The host's own user `postgres`.
pub fn user() -> User {
    let user = nix::unistd::User::from_name("postgres").unwrap().expect("postgresql-15 is installed");
    User {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: vec![user.gid.as_raw()],
        name: "postgres".into(),
        home: "/var/lib/postgresql".into(),
    }
}

pub fn postgres() -> PostgresPayload {
    let mut settings: Vec<_> =
        settings::defaults(15).into_iter().map(|s| (s.name.to_owned(), s.value)).collect();
    settings.push(("shared_buffers".into(), "16MB".into()));
    PostgresPayload {
        bindir: BINDIR.into(),
        pgdata: PGDATA.into(),
        major: 15,
        superuser: Source::Value("postgres".into()),
        database: None,
        initdb_args: Some(Source::Value("--no-sync".into())),
        initdb_waldir: None,
        password: Password::Descriptor,
        auth_method: None,
        scripts_dir: "/docker-entrypoint-initdb.d".into(),
        server_args: vec![],
        orders: Orders { settings, standby: None },
        replication_subnet: Some("10.88.0.0/24".into()),
    }
}

pub fn config(payload: PostgresPayload) -> InitConfig {
    InitConfig {
        payload: Payload::Postgres(Box::new(payload)),
        user: user(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("LANG".into(), "C.UTF-8".into())],
        cwd: "/".into(),
        restart: Restart::No,
        stop_timeout: 20,
        log_cap: 1 << 20,
    }
}

pub fn command(words: &[&str]) -> InitConfig {
    let argv = words.iter().map(|word| word.to_string()).collect();
    InitConfig { payload: Payload::Command { argv }, ..config(postgres()) }
}

pub struct Container {
    outer: Child,
    run: tempfile::TempDir,
    /// Process id of its pid 1, seen from the host.
    pub pid: Option<i32>,
}

impl Container {
    pub fn start(volume: &Volume, config: &InitConfig) -> Container {
        Container::launch(volume, config, None, false)
    }

    pub fn on_tmpfs(volume: &Volume, config: &InitConfig, megabytes: u32) -> Container {
        Container::launch(volume, config, Some(megabytes), false)
    }

    pub fn foreground(volume: &Volume, config: &InitConfig) -> Container {
        Container::launch(volume, config, None, true)
    }

    fn launch(volume: &Volume, config: &InitConfig, tmpfs: Option<u32>, foreground: bool) -> Container {
        let run = tempfile::Builder::new().prefix("pgbox-run-").tempdir_in(volume.dir.path()).unwrap();
        let dir = run.path().to_owned();
        for name in ["log", "previous", "status", "report", "pid"] {
            File::create(dir.join(name)).unwrap();
        }
        fs::write(dir.join("secret"), format!("{SECRET}\n")).unwrap();
        let secret = matches!(&config.payload, Payload::Postgres(p) if p.password == Password::Descriptor);
        let spec =
            Spec { config: config.clone(), dir: dir.clone(), data: volume.data(), tmpfs, foreground, secret };
        fs::write(dir.join("spec"), serde_json::to_string(&spec).unwrap()).unwrap();
        fs::create_dir_all(dir.join("root")).unwrap();
        let scripts = volume.dir.path().join("scripts");
        let outer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "inside", "--ignored", "--nocapture", "--test-threads=1"])
            .env(SPEC, dir.join("spec"))
            .env("PGBOX_TEST_SCRIPTS", scripts)
            .env("LEAKED_FROM_THE_HOST", "leaked-environment")
            .stdin(Stdio::null())
            .stdout(File::create(dir.join("stdout")).unwrap())
            .stderr(File::create(dir.join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut container = Container { outer, run, pid: None };
        container.pid = container.until("its pid", |c| c.file("pid").strip_suffix('\n')?.parse().ok());
        container
    }

    pub fn file(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.run.path().join(name)).unwrap()).into_owned()
    }

    pub fn log(&self) -> String {
        self.file("log")
    }

    pub fn status(&self) -> Status {
        Status::parse(&self.file("status")).unwrap()
    }

    pub fn reports(&self) -> Vec<Report> {
        self.file("report").lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub fn notes(&self) -> String {
        let note = |report| if let Report::Note(note) = report { Some(note) } else { None };
        self.reports().into_iter().filter_map(note).collect::<Vec<_>>().join("\n")
    }

    pub fn failure(&self) -> (String, bool) {
        let failed = |report| match report {
            Report::Failed { error, in_use, .. } => Some((error, in_use)),
            _ => None,
        };
        self.reports().into_iter().find_map(failed).expect("a report of a failure")
    }

    /// Waits for something; `None` if the container ended before.
    pub fn until<T>(&mut self, what: &str, found: impl Fn(&Container) -> Option<T>) -> Option<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = found(self) {
                return Some(value);
            }
            if self.outer.try_wait().unwrap().is_some() {
                return found(self);
            }
            assert!(Instant::now() < end, "no {what} in {PATIENCE:?}\n{}", self.everything());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_phase(&mut self, phase: Phase) {
        let seen = self.until("phase", |c| c.reports().contains(&Report::Phase(phase)).then_some(()));
        assert!(seen.is_some(), "it ended before {phase:?}\n{}", self.everything());
    }

    pub fn wait_running(&mut self) {
        let up = self.until("running server", |c| (c.status().phase == Phase::Running).then_some(()));
        assert!(up.is_some(), "it ended before it was running\n{}", self.everything());
    }

    pub fn everything(&self) -> String {
        let files = ["status", "report", "log", "stdout", "stderr"];
        files.map(|name| format!("--- {name}\n{}", self.file(name))).join("\n")
    }

    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.pid.unwrap()), signal).unwrap();
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.outer.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < end, "it does not end\n{}", self.everything());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stop(&mut self, signal: Signal) -> i32 {
        self.signal(signal);
        self.wait()
    }

    /// A program inside, as root.
    pub fn enter(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.pid.unwrap().to_string(), "-m", "-p", "-n", "-i", "-u", "--wd=/"])
            .args(words);
        command
    }

    pub fn sh(&self, script: &str) -> Output {
        self.enter(&["sh", "-c", script]).output().unwrap()
    }

    /// A query through the Unix socket.
    pub fn sql(&self, sql: &str) -> String {
        self.sql_as("postgres", "postgres", sql)
    }

    pub fn sql_as(&self, user: &str, database: &str, sql: &str) -> String {
        let psql = format!("{BINDIR}/psql");
        let words = [&psql, "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", user, "-d", database, "-c", sql];
        let output = self.enter(&words).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sql}: {error}\n{}", self.everything());
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Process id of the postmaster, seen from the host.
    pub fn postmaster(&self) -> i32 {
        let inner = self.status().pid;
        assert!(inner > 1, "{:?}", self.status());
        let pid = self.pid.unwrap();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let is_it = |child: &i32| {
            let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("NSpid:")).unwrap_or("").to_owned();
            line.split_whitespace().last() == Some(&inner.to_string())
        };
        children.split_whitespace().map(|child| child.parse().unwrap()).find(is_it).expect("a postmaster")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // With pid 1 the kernel ends all of the container.
        if self.outer.try_wait().is_ok_and(|ended| ended.is_none()) {
            if let Some(pid) = self.pid {
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            } else {
                let _ = self.outer.kill();
            }
            let _ = self.outer.wait();
        }
    }
}

/// The superuser's password in all tests.
pub const SECRET: &str = r#"p w'd "$x" \ ü"#;

/// The hidden test: becomes the container that the specification names.
pub fn inside() {
    let Ok(path) = std::env::var(SPEC) else { return };
    let spec: Spec = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    mount_private();
    let root = root(&spec);
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).unwrap();
    let fds = fds(&spec);
    // Opened before pid 1 moves this mount namespace's root, and with it ours.
    let mut pid_file = OpenOptions::new().write(true).open(spec.dir.join("pid")).unwrap();
    // Something that must not be open in the container: a directory of the host.
    let leak = rustix::io::dup(File::open("/").unwrap()).unwrap();
    pgbox::sys::child::block_signals().unwrap();
    let pid = pgbox::sys::child::fork(|| {
        chdir(&root).unwrap();
        pivot_root(".", ".").unwrap();
        umount2(".", MntFlags::MNT_DETACH).unwrap();
        let none = None::<&str>;
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).unwrap();
        pgbox::init::run(&spec.config, fds, &assume)
    })
    .unwrap();
    drop(leak);
    std::io::Write::write_all(&mut pid_file, format!("{pid}\n").as_bytes()).unwrap();
    let code = match nix::sys::wait::waitpid(pid, None).unwrap() {
        nix::sys::wait::WaitStatus::Exited(_, code) => code,
        nix::sys::wait::WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => panic!("{other:?}"),
    };
    pgbox::sys::child::exit_now(code);
}

fn assume(user: &User) -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setgroups(&user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect::<Vec<_>>())?;
    setresgid(gid, gid, gid)?;
    Ok(setresuid(uid, uid, uid)?)
}

fn mount_private() {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

/// The container's root: an overlay of the host's, with the data directory, the scripts and /dev mounted in.
fn root(spec: &Spec) -> PathBuf {
    let none = None::<&str>;
    let base = spec.dir.join("root");
    mount(Some("tmpfs"), &base, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let merged = base.join("merged");
    for name in ["upper", "work", "merged"] {
        fs::create_dir(base.join(name)).unwrap();
    }
    let options = format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", base.display());
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let bind = |source: &Path, target: &str| {
        let target = merged.join(target.trim_start_matches('/'));
        fs::create_dir_all(&target).unwrap();
        mount(Some(source), &target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).unwrap();
    };
    bind(Path::new("/dev"), "/dev");
    // A server that is killed leaves its shared memory behind: not on the host.
    let shm = merged.join("dev/shm");
    mount(Some("tmpfs"), &shm, Some("tmpfs"), MsFlags::empty(), Some("mode=1777")).unwrap();
    bind(Path::new(&std::env::var("PGBOX_TEST_SCRIPTS").unwrap()), "/docker-entrypoint-initdb.d");
    match spec.tmpfs {
        None => bind(&spec.data, PGDATA),
        Some(megabytes) => {
            let target = merged.join(PGDATA.trim_start_matches('/'));
            fs::create_dir_all(&target).unwrap();
            let options = format!("size={megabytes}m");
            mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        }
    }
    merged
}

fn fds(spec: &Spec) -> InitFds {
    let open = |name: &str, append: bool| -> OwnedFd {
        let mut options = OpenOptions::new();
        options.read(true);
        if append {
            options.append(true)
        } else {
            options.write(true)
        };
        options.open(spec.dir.join(name)).unwrap().into()
    };
    let log =
        (!spec.foreground).then(|| LogFds { current: open("log", true), previous: open("previous", false) });
    InitFds {
        terminal: false,
        log,
        orders: None,
        replicator: None,
        status: Some(open("status", false)),
        secret: spec.secret.then(|| open("secret", false)),
        report: Some(open("report", true)),
        oom: None,
        upstream: None,
    }
}
