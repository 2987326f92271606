//! A PostgreSQL of this machine in a scratch directory: no network, a Unix socket beside its data. And what its own
//! tools say about the files it leaves.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgbox::postgres::lsn::Lsn;

/// The tools of the newest version that is installed.
pub fn bindir() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let number = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok());
    let newest = versions.filter(|v| v.join("bin/initdb").exists()).max_by_key(number)?;
    Some(newest.join("bin"))
}

/// True if this machine cannot run these tests; says so, and fails where they are required.
pub fn skipped() -> bool {
    let why = match (nix::unistd::geteuid().is_root(), bindir()) {
        (true, Some(_)) => return false,
        (false, _) => "no root",
        (_, None) => "no PostgreSQL server below /usr/lib/postgresql",
    };
    assert!(std::env::var_os("CI").is_none() && std::env::var_os("PGBOX_REQUIRE_ROOT").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
    true
}

/// The server refuses to run as root.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]);
    command.arg(bindir().unwrap().join(name)).env("LC_ALL", "C").current_dir("/");
    command
}

pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub struct Server {
    dir: tempfile::TempDir,
    postmaster: Option<Child>,
}

impl Server {
    /// A new cluster with segments of 1 MiB, so that little data goes through many.
    pub fn new() -> Server {
        let dir = tempfile::Builder::new().prefix("wal-").tempdir().unwrap();
        output(Command::new("chown").arg("postgres:").arg(dir.path()));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let server = Server { dir, postmaster: None };
        output(tool("initdb").args(["--wal-segsize=1", "--no-sync", "-A", "trust", "-D"]).arg(server.data()));
        server
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts it and waits for it, with these settings besides.
    pub fn start_with(&mut self, settings: &[&str]) {
        // One that is killed leaves its System V shared memory behind: in an IPC namespace that ends with it.
        let server = tool("postgres");
        let mut command = Command::new("unshare");
        command
            .arg("--ipc")
            .arg(server.get_program())
            .args(server.get_args())
            .env("LC_ALL", "C")
            .current_dir("/");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path());
        for setting in [
            "listen_addresses=",
            // In its data directory.
            "dynamic_shared_memory_type=mmap",
            "fsync=off",
            "autovacuum=off",
            "max_prepared_transactions=5",
            "wal_compression=on",
            "max_wal_size=64MB",
            "checkpoint_timeout=1h",
        ]
        .iter()
        .chain(settings)
        {
            command.args(["-c", setting]);
        }
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.postmaster = Some(child);
        let begun = Instant::now();
        while !tool("pg_isready").arg("-q").arg("-h").arg(self.dir.path()).status().unwrap().success() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(60), "the server doesn't start: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn client(&self, name: &str) -> Command {
        let mut command = tool(name);
        command.arg("-h").arg(self.dir.path());
        command
    }

    /// Runs SQL, each statement in a transaction of its own, and returns what it answers.
    pub fn sql(&self, sql: &str) -> String {
        let mut command = self.client("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", "postgres"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{sql:.200}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn lsn(&self) -> Lsn {
        self.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
    }

    /// The file of a table, and that of its large values.
    pub fn files(&self, table: &str) -> (u32, u32) {
        let sql = format!(
            "SELECT pg_relation_filenode(oid), coalesce(pg_relation_filenode(nullif(reltoastrelid, 0)), 0)
             FROM pg_class WHERE oid = '{table}'::regclass"
        );
        let answer = self.sql(&sql);
        let (file, toast) = answer.split_once('|').unwrap();
        (file.parse().unwrap(), toast.parse().unwrap())
    }

    /// As the power would: all processes at once, without a word.
    pub fn kill(&mut self) {
        let mut postmaster = self.postmaster.take().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", postmaster.id());
        let children = fs::read_to_string(children).unwrap();
        postmaster.kill().unwrap();
        postmaster.wait().unwrap();
        for child in children.split_whitespace() {
            let pid = nix::unistd::Pid::from_raw(child.parse().unwrap());
            // One that has seen the postmaster die is gone already.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let begun = Instant::now();
        while children.split_whitespace().any(|child| Path::new("/proc").join(child).join("exe").exists()) {
            assert!(begun.elapsed() < Duration::from_secs(30), "the server doesn't die");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it as an administrator would.
    pub fn stop(&mut self) {
        output(tool("pg_ctl").args(["-w", "-m", "fast", "stop", "-D"]).arg(self.data()));
        self.postmaster.take().unwrap().wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.postmaster.is_some() {
            self.kill();
        }
    }
}

/// A record as pg_waldump prints it.
#[derive(Debug)]
pub struct Printed {
    pub lsn: Lsn,
    pub xid: u32,
    pub manager: String,
    pub what: String,
}

/// The log from `start` to its end as pg_waldump reads it, and what it says why it ends there.
pub fn waldump(data: &Path, timeline: u32, start: Lsn) -> (Vec<Printed>, String) {
    let mut command = tool("pg_waldump");
    command.arg("-p").arg(data.join("pg_wal")).args(["-t", &timeline.to_string(), "-s", &start.to_string()]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let between = |line: &str, a: &str, b: &str| {
        line.split_once(a)
            .and_then(|(_, rest)| Some(rest.split_once(b)?.0.trim().to_owned()))
            .unwrap_or_else(|| panic!("{line}"))
    };
    let lines = text.lines().filter(|line| line.starts_with("rmgr: "));
    let printed = lines.map(|line| Printed {
        lsn: between(line, "lsn: ", ",").parse().unwrap(),
        xid: between(line, "tx:", ",").parse().unwrap(),
        manager: between(line, "rmgr: ", " "),
        what: line.split_once("desc: ").unwrap().1.to_owned(),
    });
    (printed.collect(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The number that follows a word in pg_waldump's text.
fn number_after(text: &str, word: &str) -> Option<u32> {
    let rest = text.split_once(word)?.1.trim_start();
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
}

/// Rows by table that were committed, counted in pg_waldump's text.
pub fn rows(printed: &[Printed]) -> BTreeMap<u32, u64> {
    let mut running: BTreeMap<u32, BTreeMap<u32, i64>> = BTreeMap::new();
    let mut done: BTreeMap<u32, i64> = BTreeMap::new();
    for record in printed {
        let word = record.what.split(|c: char| !c.is_ascii_uppercase() && c != '_').next().unwrap();
        let count = match (record.manager.as_str(), word) {
            ("Heap", "INSERT" | "UPDATE" | "HOT_UPDATE") => 1,
            ("Heap", "DELETE")
                if record.what.contains("flags 0x08") || record.what.contains("flags: 0x08") =>
            {
                -1
            }
            ("Heap", "DELETE") => 1,
            ("Heap2", "MULTI_INSERT") => {
                let new = number_after(&record.what, "ntuples:");
                let old =
                    record.what.split(" tuples").next().and_then(|t| t.rsplit(' ').next()?.parse().ok());
                i64::from(new.or(old).unwrap_or_else(|| panic!("{record:?}")))
            }
            ("Transaction", "COMMIT" | "COMMIT_PREPARED") => {
                let main = number_after(&record.what, "COMMIT_PREPARED").unwrap_or(record.xid);
                let children = record.what.split_once("subxacts: ").map_or("", |(_, rest)| rest);
                let children =
                    children.split(';').next().unwrap().split_whitespace().map(|x| x.parse().unwrap());
                for (table, rows) in children.chain([main]).filter_map(|xid| running.remove(&xid)).flatten() {
                    *done.entry(table).or_default() += rows;
                }
                continue;
            }
            _ => continue,
        };
        let file = record.what.split_once("blkref #0: rel ").unwrap().1.split(' ').next().unwrap();
        let file = file.rsplit('/').next().unwrap().parse().unwrap();
        *running.entry(record.xid).or_default().entry(file).or_default() += count;
    }
    done.into_iter().filter(|(_, rows)| *rows > 0).map(|(table, rows)| (table, rows as u64)).collect()
}

/// Where the commits are.
pub fn commits(printed: &[Printed]) -> Vec<Lsn> {
    let commit = |p: &&Printed| p.manager == "Transaction" && p.what.starts_with("COMMIT");
    printed.iter().filter(commit).map(|p| p.lsn).collect()
}

/// Where transactions were prepared of which nothing is said later.
pub fn prepared(printed: &[Printed]) -> Vec<Lsn> {
    let ended = |xid: u32| {
        let ends = ["COMMIT_PREPARED", "ABORT_PREPARED"];
        printed.iter().any(|p| ends.iter().any(|word| number_after(&p.what, word) == Some(xid)))
    };
    let prepare = |p: &&Printed| p.manager == "Transaction" && p.what.starts_with("PREPARE") && !ended(p.xid);
    printed.iter().filter(prepare).map(|p| p.lsn).collect()
}
