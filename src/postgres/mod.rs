//! What pgbox knows about PostgreSQL: command lines, file contents, SQL, and the replies it can read.
//! Everything here is pure: it starts nothing, touches no file and asks no clock, so it is tested without
//! root. `init` acts on it inside the container, `plan` and `facts` use it outside.
//!
//! The rule that surprises people: most of a first start is not SQL but the *contract* of the official
//! image (environment variables, `/docker-entrypoint-initdb.d`), which scripts and compose files rely on
//! and which pgbox therefore honours for every image, also for one without that entrypoint.

pub mod backup;
pub mod conf;
pub mod content;
pub mod contract;
pub mod control;
pub mod datadir;
pub mod environment;
pub mod hba;
pub mod initdb;
pub mod launch;
pub mod lsn;
pub mod native;
pub mod parameter;
pub mod password;
pub mod postmaster;
pub mod question;
pub mod quote;
pub mod recovery;
pub mod report;
pub mod scripts;
pub mod settings;
pub mod standby;
pub mod status;
pub mod timeline;
pub mod tune;
pub mod uri;
pub mod version;
pub mod wal;
