//! What a standby's plan has beside that of a primary: whom it follows, and the steps that are for that.

use std::path::PathBuf;

use crate::{
    postgres::{
        launch::{Payload, Renew, Standby},
        standby,
    },
    spec::{Follow, Name},
    sql::Login,
    state::{NodeState, Plan},
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

/// Makes a node follow another one from its next start on, or from its next look at its orders.
pub fn follow(
    state: &mut NodeState,
    follow: Follow,
    upstream: &Upstream,
    renew: Option<Renew>,
    replicator: PathBuf,
) {
    let node = state.spec.node.clone();
    leave(&mut state.plan);
    let before = state.plan.host.iter().position(|step| matches!(step, HostStep::CreateCgroup { .. }));
    let at = before.unwrap_or(state.plan.host.len());
    let role = HostStep::CreateRole { server: upstream.primary.clone(), secret: replicator };
    state.plan.host.splice(at..at, [role, create_slot(&upstream.server, &node)]);
    state.plan.after.push(wait_until_streaming(&upstream.server, &node));
    let standby = Standby { renew, ..following(&node, &follow) };
    state.spec.follow = Some(follow);
    state.superseded_by = None;
    if let Some(postgres) = state.postgres_mut() {
        postgres.orders.standby = Some(standby);
    }
}

/// Has the data of a new standby, which are there, made those of its server first.
pub fn renew(plan: &mut Plan, renew: Renew) {
    if let Payload::Postgres(postgres) = &mut plan.init.payload
        && let Some(standby) = &mut postgres.orders.standby
    {
        standby.renew = Some(renew);
    }
}

/// Makes a node a primary.
pub fn lead(state: &mut NodeState) {
    leave(&mut state.plan);
    state.spec.follow = None;
    state.superseded_by = None;
    if let Some(postgres) = state.postgres_mut() {
        postgres.orders.standby = None;
    }
}

/// Leaves a standby whose server is gone as it is, but expects nothing of that server any more.
pub fn alone(state: &mut NodeState) {
    leave(&mut state.plan);
}

/// Takes the steps of a standby out of a plan.
fn leave(plan: &mut Plan) {
    plan.host.retain(|step| !step.is_elsewhere());
    plan.after.retain(|step| !matches!(step, AfterStep::WaitUntilStreaming { .. }));
}
