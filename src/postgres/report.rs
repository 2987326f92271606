//! What `init` tells the outside: [`Report`] lines while it starts, and one [`Status`] line that stays.
//!
//! Both are JSON, one object a line. The rule that surprises people: the status file is rewritten in place
//! (`init` cannot rename a file in a directory that lies outside of its root), so a reader takes the *first
//! line*, which may end in blanks, and ignores what follows it.

use serde::{Deserialize, Serialize};

/// A line from `init` to the command that started the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// A new phase begins.
    Phase(Phase),
    /// Something the user should know; nothing has failed.
    Note(String),
    /// A step before `init` failed: nothing of the image has run.
    StepFailed {
        /// Counted from 0 over the inner steps.
        index: usize,
        /// The chain of errors, as `a: b: c`.
        error: String,
    },
    /// `init` gives up: the reason, innermost cause last. The container ends with `code`.
    Failed {
        /// The chain of errors, as `a: b: c`.
        error: String,
        /// Exit code of the container.
        code: i32,
        /// True when the data directory is locked by another container; the reader knows which.
        #[serde(default)]
        in_use: bool,
    },
}

/// What pid 1 is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Checks, locks, ownership.
    #[default]
    Preparing,
    /// `initdb` runs.
    Initdb,
    /// The init scripts run against a server that only listens on its Unix socket.
    Scripts,
    /// pg_basebackup copies another server's data.
    BaseBackup,
    /// The data are cloned from another server's files.
    Clone,
    /// pg_rewind undoes what the server that is followed never had.
    Rewind,
    /// The final server was started and does not accept connections yet (it may be recovering).
    Starting,
    /// The final server accepts connections; or the command runs.
    Running,
    /// A stop was asked for.
    Stopping,
    /// The server crashed; pid 1 waits before it starts it again.
    Waiting,
    /// The payload has ended.
    Ended,
}

impl Phase {
    /// The word for a person, as in "failed during WORD".
    pub fn word(self) -> &'static str {
        match self {
            Phase::Preparing => "preparation",
            Phase::Initdb => "initdb",
            Phase::Scripts => "init scripts",
            Phase::BaseBackup => "base backup",
            Phase::Clone => "clone of the data",
            Phase::Rewind => "pg_rewind",
            Phase::Starting => "start",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
            Phase::Waiting => "waiting before a restart",
            Phase::Ended => "ended",
        }
    }
}

/// How the payload ended last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it. 9 that nobody asked for usually is the kernel's OOM killer.
    Signal(i32),
}

impl Exit {
    /// The exit code as a shell and `docker run` give it: 128+n for signal n.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Why the payload, or `init` itself, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It was asked to stop.
    Stopped,
    /// It ended by itself with code 0.
    Completed,
    /// It ended by itself, with a failure, and was not or no more started again.
    Crashed,
    /// Its volume is full: starting again would only fail again.
    DiskFull,
    /// It never came up: a check, initdb, an init script or the server's own start failed.
    Failed,
}

/// The one line that `init` keeps up to date in the node's status file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What pid 1 is doing.
    pub phase: Phase,
    /// Process id of the payload inside the container, 0 for none.
    pub pid: i32,
    /// How often Postgres was started again after a crash.
    pub restarts: u32,
    /// How many processes the kernel's OOM killer has ended. The node's cgroup counts, and goes with a stop.
    #[serde(default)]
    pub oom_kills: u64,
    /// How the payload ended last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_exit: Option<Exit>,
    /// Why the container ended; `None` while it runs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Reason>,
    /// Error text that belongs to `reason`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// Exit code of the container, once it has ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<i32>,
    /// What the server has more of than it was told, see [`too_low`](super::parameter::too_low).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub raised: Vec<String>,
    /// The superuser, once the contract's files are read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub superuser: Option<String>,
    /// The first database, once the contract's files are read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<String>,
}

impl Status {
    /// Reads the first line of a status file. An empty file is the status of a container that has not
    /// reached its `init` yet.
    pub fn parse(text: &str) -> anyhow::Result<Status> {
        match text.lines().next() {
            None | Some("") => Ok(Status::default()),
            Some(line) => Ok(serde_json::from_str(line)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_ignores_what_follows_the_first_line() {
        let status = Status { phase: Phase::Ended, code: Some(137), ..Status::default() };
        let line = serde_json::to_string(&status).unwrap();
        assert_eq!(Status::parse(&format!("{line}\n\"rest of a longer line\"}}\n")).unwrap(), status);
        assert_eq!(Status::parse("").unwrap(), Status::default());
        assert!(Status::parse("{\"phase\":\"dreaming\"}").is_err());
    }

    #[test]
    fn a_report_is_one_line() {
        let failed = Report::Failed { error: "a\nb".into(), code: 1, in_use: false };
        let text = serde_json::to_string(&failed).unwrap();
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), failed);
        assert_eq!(serde_json::to_string(&Report::Phase(Phase::Initdb)).unwrap(), r#"{"phase":"initdb"}"#);
    }
}
