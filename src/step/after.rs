//! Steps over the network, once the server is up. There is nothing to take back.

use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

use super::{Lesson, psql};
use crate::{postgres::standby, sql::Login};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum AfterStep {
    /// Until the final server answers a query over TCP.
    WaitUntilReady { address: SocketAddrV4, user: String, database: String },
    /// Until the server that it follows says that it streams to `name`.
    WaitUntilStreaming { server: Login, name: String },
}

impl AfterStep {
    pub fn lesson(&self) -> Lesson {
        match self {
            Self::WaitUntilReady { address, user, database } => Lesson {
                title: format!("wait until {address} answers a query"),
                why: "A server that accepts connections may still be initialising, recovering, or about to stop. \
                      Only an answer of the final server over TCP is proof; the server that runs the init scripts \
                      listens on no network address.",
                see: "PostgreSQL manual, 55.2 Message Flow",
                shell: format!(
                    "until {} -Atc 'SELECT 1'; do kill -0 $!; sleep 0.1; done",
                    psql(*address, user, database)
                ),
                look: format!("pg_isready -h {} -p {}", address.ip(), address.port()),
            },
            Self::WaitUntilStreaming { server, name } => Lesson {
                title: format!("wait until {} streams to {name}", server.address),
                why: "A standby answers queries while it still reads what the base backup brought along, and also when it \
                      never reaches its primary. Only the primary knows that its WAL arrives.",
                see: "PostgreSQL manual, 28.2.4 pg_stat_replication",
                shell: format!(
                    "until {} -Atc \"{}\" | grep -q streaming; do sleep 0.1; done",
                    psql(server.address, &server.user, &server.database),
                    standby::stream_state(name)
                ),
                look: format!(
                    "{} -xc 'SELECT * FROM pg_stat_replication'",
                    psql(server.address, &server.user, &server.database)
                ),
            },
        }
    }
}
