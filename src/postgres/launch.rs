//! What the container's pid 1 is told: one value, decided in `plan`, kept in the node's state file and read
//! by `init` inside the container.
//!
//! The rule that surprises people: it never contains a server's password. That reaches `init` through a file
//! descriptor ([`Password::Descriptor`]) or as the path of a file inside the container.

use std::{net::SocketAddrV4, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Everything `init` needs to run one payload as pid 1 of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitConfig {
    /// What to run.
    pub payload: Payload,
    /// Who runs it, as resolved from the image's own `/etc/passwd`.
    pub user: User,
    /// Its environment; a server's without any password.
    pub env: Vec<(String, String)>,
    /// Its working directory, inside the container.
    pub cwd: PathBuf,
    /// What to do when Postgres ends without being asked to.
    pub restart: Restart,
    /// Seconds that a fast shutdown may take before it becomes an immediate one; also the time that
    /// initdb and init scripts get to end.
    pub stop_timeout: u64,
    /// Size in bytes at which the log file is moved aside. Two files of this size are kept at most.
    pub log_cap: u64,
}

/// What runs in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payload {
    /// A PostgreSQL server, initialised first where its data directory is empty.
    Postgres(Box<PostgresPayload>),
    /// Any other program; its exit code becomes the container's.
    Command {
        /// The program and its arguments; a first word without a slash is looked for in `PATH`.
        argv: Vec<String>,
    },
}

/// The identity of the payload inside the container, credentials(7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Login name, for messages.
    pub name: String,
    /// Home directory: becomes `HOME` unless the environment has one.
    pub home: PathBuf,
}

/// What to do when the payload ends without being asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// The container ends with it.
    No,
    /// Start it again, with a growing pause, after at most `max` crashes in a row.
    OnCrash {
        /// Crashes in a row after which the container ends.
        max: u32,
    },
}

/// A PostgreSQL server: where it is, and how its first start goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresPayload {
    /// Directory of `postgres`, `initdb` and `psql` in the image, e.g. `/usr/lib/postgresql/15/bin`.
    pub bindir: PathBuf,
    /// The data directory inside the container.
    pub pgdata: PathBuf,
    /// Major version of the binaries.
    pub major: u32,
    /// `POSTGRES_USER`: the superuser that initdb creates.
    pub superuser: Source,
    /// `POSTGRES_DB`; `None`: as the superuser is called.
    pub database: Option<Source>,
    /// `POSTGRES_INITDB_ARGS`: more options for initdb, quoted as for a shell.
    pub initdb_args: Option<Source>,
    /// `POSTGRES_INITDB_WALDIR`: where initdb puts the write-ahead log.
    pub initdb_waldir: Option<PathBuf>,
    /// Where the superuser's password comes from.
    pub password: Password,
    /// `POSTGRES_HOST_AUTH_METHOD`: the method of the `host all all all` line; `None`: scram-sha-256.
    pub auth_method: Option<String>,
    /// Directory with the scripts of a first start, usually `/docker-entrypoint-initdb.d`.
    pub scripts_dir: PathBuf,
    /// Arguments for the server, after everything pgbox gives it.
    pub server_args: Vec<String>,
    /// What may change while the server runs.
    pub orders: Orders,
    /// Subnet from which the `replicator` role may connect for replication, as `10.1.2.0/24`.
    pub replication_subnet: Option<String>,
}

/// What pid 1 reads again before each start of the server, and whenever it gets SIGHUP. It is kept apart from all else
/// because a server outlives changes of its role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Content of the generated include file, in order; a later one wins.
    pub settings: Vec<(String, String)>,
    /// Whom the server follows; `None` for a primary.
    #[serde(default)]
    pub standby: Option<Standby>,
}

/// A server that follows another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// Host name of the server that it follows.
    pub host: String,
    /// TCP port there.
    pub port: u16,
    /// Where the primary of the whole cluster listens, which is another server if that one is a standby itself.
    #[serde(default)]
    pub primary: Option<SocketAddrV4>,
    /// Its replication slot there.
    pub slot: String,
    /// Its name in the other's `pg_stat_replication` and in `synchronous_standby_names`.
    pub name: String,
    /// How many milliseconds after a commit on the primary it is applied here.
    pub delay_ms: Option<u64>,
    /// Kilobytes a second that the base backup may take.
    pub rate_kb: Option<u64>,
    /// Its data have to be clones of the other server's files.
    #[serde(default)]
    pub only_clones: bool,
    /// What to do with a data directory that was not this server's before.
    #[serde(default)]
    pub renew: Option<Renew>,
}

/// How a data directory becomes a standby's again. It counts once: `stamp` tells an order that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Different in each order.
    pub stamp: u64,
    pub how: RenewHow,
}

/// What it takes until a data directory fits the server that is to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RenewHow {
    /// Nothing: that server has everything that is in it.
    Sign,
    /// pg_rewind, and where that does not work, or sees nothing to do, a new base backup.
    Rewind,
    /// A new base backup.
    Clone,
}

/// A value of the contract: given, or in a file inside the container (`*_FILE`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The value itself.
    Value(String),
    /// Path of the file inside the container; trailing newlines are not part of the value.
    File(PathBuf),
}

/// Where the superuser's password comes from. Never the password itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Password {
    /// Read from the descriptor that the caller of `init` hands over.
    Descriptor,
    /// `POSTGRES_PASSWORD_FILE`: read inside the container.
    File(PathBuf),
    /// None is set (only with the `trust` method).
    Unset,
}
