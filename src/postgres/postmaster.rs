//! `postmaster.pid`: the server's lock file in its data directory, and the only place where a server says
//! without a connection whether it accepts any (backend code: `miscadmin.h`, LOCK_FILE_LINE_*).
//!
//! The rule that surprises people: in a container the pid in it means nothing after a restart. The numbers
//! of a new pid namespace begin again, so the stale number is often alive and somebody else
//! (patroni#681): the file is removed while holding the volume's lock, never by looking at the number.

/// Its name in the data directory.
pub const FILE: &str = "postmaster.pid";

/// What a server says about itself in `postmaster.pid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostmasterPid {
    /// Process id, in the pid namespace of the server.
    pub pid: i32,
    /// Data directory as the server knows it.
    pub data_directory: String,
    /// Start time in seconds since 1970.
    pub started: i64,
    /// TCP port.
    pub port: u16,
    /// First Unix-socket directory, empty for none.
    pub socket_dir: String,
    /// What it is doing, `None` while it has not yet said.
    pub state: Option<ServerState>,
}

/// The state in line 8 of `postmaster.pid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// Starting or recovering; no connections.
    Starting,
    /// Accepts connections, read and write.
    Ready,
    /// Accepts read-only connections (hot standby).
    Standby,
    /// Shutting down.
    Stopping,
}

impl PostmasterPid {
    /// Reads the file's content; `None` while the server is still writing its first lines.
    pub fn parse(text: &str) -> Option<PostmasterPid> {
        let lines: Vec<&str> = text.lines().collect();
        Some(PostmasterPid {
            pid: lines.first()?.trim().parse().ok()?,
            data_directory: lines.get(1)?.to_string(),
            started: lines.get(2)?.trim().parse().ok()?,
            port: lines.get(3)?.trim().parse().ok()?,
            socket_dir: lines.get(4)?.to_string(),
            state: lines.get(7).and_then(|line| state(line.trim())),
        })
    }

    /// True once connections are accepted.
    pub fn accepts(&self) -> bool {
        matches!(self.state, Some(ServerState::Ready | ServerState::Standby))
    }
}

fn state(word: &str) -> Option<ServerState> {
    match word {
        "starting" => Some(ServerState::Starting),
        "ready" => Some(ServerState::Ready),
        "standby" => Some(ServerState::Standby),
        "stopping" => Some(ServerState::Stopping),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "7\n/data\n1700000000\n5432\n/var/run/postgresql\n*\n  5432001    65538\nready   \n";

    #[test]
    fn reads_a_whole_and_a_half_written_file() {
        let whole = PostmasterPid::parse(FILE).unwrap();
        assert_eq!((whole.pid, whole.port, whole.state), (7, 5432, Some(ServerState::Ready)));
        assert!(whole.accepts());
        let half = FILE.lines().take(5).collect::<Vec<_>>().join("\n");
        assert!(!PostmasterPid::parse(&half).unwrap().accepts());
        assert_eq!(PostmasterPid::parse("7\n/da"), None);
        assert_eq!(PostmasterPid::parse(""), None);
    }

    #[test]
    fn a_standby_accepts_and_a_stopping_server_does_not() {
        assert!(PostmasterPid::parse(&FILE.replace("ready   ", "standby ")).unwrap().accepts());
        assert!(!PostmasterPid::parse(&FILE.replace("ready   ", "stopping")).unwrap().accepts());
    }
}
