//! What a standby's plan has beside that of a primary: whom it follows, and the steps that are for that.

use crate::{
    postgres::{launch::Standby, standby},
    spec::{Follow, Name},
    sql::Login,
    step::{AfterStep, HostStep},
};

use super::POSTGRES_PORT;

/// Whom a standby follows.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The server that it follows.
    pub server: Login,
    /// The primary of the whole cluster, which is another one if that server is a standby itself.
    pub primary: Login,
}

/// The step that makes the slot of a standby.
pub fn create_slot(server: &Login, node: &Name) -> HostStep {
    HostStep::CreateSlot { server: server.clone(), slot: standby::slot_name(node.as_str()) }
}

/// The step that waits for a standby's stream.
pub fn wait_until_streaming(server: &Login, node: &Name) -> AfterStep {
    AfterStep::WaitUntilStreaming { server: server.clone(), name: node.to_string() }
}

/// What makes a server follow, in its own terms.
pub fn following(node: &Name, follow: &Follow) -> Standby {
    Standby {
        host: follow.of.to_string(),
        port: POSTGRES_PORT,
        slot: standby::slot_name(node.as_str()),
        name: node.to_string(),
        delay_ms: follow.delay_ms,
        rate_kb: follow.rate_kb,
        renew: None,
    }
}
