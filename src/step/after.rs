//! Steps over the network, once the server is up. There is nothing to take back.

use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

use super::Lesson;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum AfterStep {
    /// Until the final server answers a query over TCP.
    WaitUntilReady { address: SocketAddrV4, user: String, database: String },
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
                    "until psql -h {} -p {} -U {user} -d {database} -Atc 'SELECT 1'; do sleep 0.1; done",
                    address.ip(),
                    address.port()
                ),
                look: format!("pg_isready -h {} -p {}", address.ip(), address.port()),
            },
        }
    }
}
