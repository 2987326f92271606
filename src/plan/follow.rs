//! What a standby's plan has beside that of a primary: whom it follows, and the steps that are for that.

use std::path::PathBuf;

use crate::{
    postgres::{
        launch::{Payload, Renew, Standby},
        standby,
    },
    spec::{Copying, Follow, Name},
    sql::Login,
    state::{NodeState, Plan},
    step::{AfterStep, HostStep, InnerStep},
};

use super::{Below, POSTGRES_PORT};

/// Whom a standby follows.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The server that it follows.
    pub server: Login,
    /// The primary of the whole cluster, which is another one if that server is a standby itself.
    pub primary: Login,
    /// The data directory of the server that it follows, on this host.
    pub data: Option<Below>,
}

/// The step that makes the slot of a standby.
pub fn create_slot(server: &Login, node: &Name) -> HostStep {
    HostStep::CreateSlot { server: server.clone(), slot: standby::slot_name(node.as_str()) }
}

/// The step that waits for a standby's stream.
pub fn wait_until_streaming(server: &Login, node: &Name) -> AfterStep {
    AfterStep::WaitUntilStreaming { server: server.clone(), name: node.to_string() }
}

/// The step that lets a standby's pid 1 clone the files of the server that it follows, if it may.
pub fn open_upstream(follow: &Follow, upstream: &Upstream) -> Option<InnerStep> {
    let Below { top, rest } = upstream.data.clone().filter(|_| follow.may_clone())?;
    Some(InnerStep::OpenUpstream { node: follow.of.to_string(), top, rest })
}

/// What makes a server follow, in its own terms.
pub fn following(node: &Name, follow: &Follow) -> Standby {
    Standby {
        host: follow.of.to_string(),
        port: POSTGRES_PORT,
        primary: None,
        slot: standby::slot_name(node.as_str()),
        name: node.to_string(),
        delay_ms: follow.delay_ms,
        rate_kb: follow.rate_kb,
        only_clones: follow.copy == Copying::Reflink,
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
    let role = HostStep::CreateRole { server: upstream.primary.clone(), secret: replicator };
    state.plan.host.extend([role, create_slot(&upstream.server, &node)]);
    state.plan.after.push(wait_until_streaming(&upstream.server, &node));
    let mut inner = state.plan.inner.iter();
    let before = inner.position(|step| matches!(step, InnerStep::PivotRoot { .. })).unwrap_or(0);
    state.plan.inner.splice(before..before, open_upstream(&follow, upstream));
    let primary = Some(upstream.primary.address);
    let standby = Standby { renew, primary, ..following(&node, &follow) };
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
    plan.inner.retain(|step| !matches!(step, InnerStep::OpenUpstream { .. }));
    plan.after.retain(|step| !matches!(step, AfterStep::WaitUntilStreaming { .. }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_are_opened_only_for_whom_may_clone_them() {
        let login = Login {
            address: "10.0.0.2:5432".parse().unwrap(),
            user: "postgres".to_owned(),
            database: "postgres".to_owned(),
            secret: PathBuf::from("/s"),
        };
        let data = Below { top: "/volume".into(), rest: "d".into() };
        let upstream = Upstream { server: login.clone(), primary: login, data: Some(data) };
        let auto = Follow::of("primary".parse().unwrap());
        let opened = open_upstream(&auto, &upstream);
        let (node, top, rest) = ("primary".to_owned(), "/volume".into(), "d".into());
        assert_eq!(opened, Some(InnerStep::OpenUpstream { node, top, rest }));
        let others = [
            Follow { copy: Copying::Basebackup, ..auto.clone() },
            Follow { rate_kb: Some(1024), ..auto.clone() },
        ];
        for other in others {
            assert_eq!(open_upstream(&other, &upstream), None);
        }
        assert!(following(&"r".parse().unwrap(), &Follow { copy: Copying::Reflink, ..auto }).only_clones);
    }
}
