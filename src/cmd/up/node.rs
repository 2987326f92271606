//! Changes of a node that is there.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    cmd::{Context, collation, endpoint, start, stop},
    engine::{
        halt::{self, Shutdown},
        orders, passfile, publish, sync,
    },
    facts::{self, node},
    hint::advise,
    image::Store,
    plan::{self, changes::Effect},
    postgres::{launch, version},
    spec::{Follow, Name, NodeSpec, Publish, Restart},
    state::NodeState,
};

/// Publishes other ports of a node, at once if it runs.
pub fn publish(context: &Context, name: &Name, wanted: &[Publish]) -> Result<()> {
    let _lock = context.lock()?;
    let _shared = context.root.lock_shared()?;
    let node = node::find(&context.root, &context.lab, name)?;
    publish::change(&context.root, &node, wanted)?;
    passfile::settle(&context.root, &context.lab)
}

/// Lets a standby apply changes later or sooner, and get its data otherwise from the next time on.
pub fn follow(context: &Context, name: &Name, wanted: &Follow) -> Result<()> {
    let _lock = context.lock()?;
    let node = node::find(&context.root, &context.lab, name)?;
    let mut state = node.state.clone();
    if let Some(follow) = &mut state.spec.follow {
        *follow = Follow { of: follow.of.clone(), ..wanted.clone() };
        let told = plan::follow::following(name, follow);
        if let Some(standby) = state.postgres_mut().and_then(|postgres| postgres.orders.standby.as_mut()) {
            *standby = launch::Standby { renew: standby.renew.take(), primary: standby.primary, ..told };
        }
    }
    orders::give(&node.dir, &state, node.pidfd.as_ref())
}

/// What pid 1 goes by from its next start on.
pub fn policy(context: &Context, name: &Name, restart: Restart, stop_timeout: u64) -> Result<()> {
    let _lock = context.lock()?;
    let node = node::find(&context.root, &context.lab, name)?;
    let mut state = node.state.clone();
    (state.spec.restart, state.spec.stop_timeout) = (restart, stop_timeout);
    let init = &mut state.plan.init;
    (init.restart, init.stop_timeout) = (plan::restart(restart), stop_timeout);
    orders::save(&node.dir, &state)
}

/// Plans a node anew, with the same name, address and data; one that runs is restarted.
pub fn remake(context: &Context, spec: &NodeSpec, effect: Effect, timeout: Duration) -> Result<()> {
    let name = &spec.node;
    let store = Store::open(context.root.path())?;
    let image = store.resolve(&spec.image)?;
    let image = facts::image::facts(&context.root, &image)?;
    let lock = context.lock()?;
    let mut shared = context.root.lock_shared()?;
    let node = node::find(&context.root, &context.lab, name)?;
    let plan = || {
        store.resolve(&image.digest)?;
        planned(context, &node.state, spec, image.clone())
    };
    // All that can be refused is refused while the node still runs.
    let mut state = plan()?;
    if node.pidfd.is_some() {
        // Other labs need not wait until it has shut down; what they have taken meanwhile counts.
        drop(shared);
        stop::end(context, &node, Shutdown::Fast, Some(Duration::from_secs(spec.stop_timeout)))?;
        shared = context.root.lock_shared()?;
        state = plan()?;
    }
    halt::take_down(&node)?;
    orders::save(&node.dir, &state)?;
    endpoint::settle(context, None);
    drop((shared, lock));
    match effect {
        Effect::Restart => start::start(context, name, timeout, start::STREAM),
        _ => Ok(()),
    }
}

/// What is to be remembered of a node that is planned anew.
fn planned(
    context: &Context,
    old: &NodeState,
    spec: &NodeSpec,
    image: plan::ImageFacts,
) -> Result<NodeState> {
    let name = &spec.node;
    let facts = facts::gather_again(&context.root, old, spec, image)?;
    let libc = facts.image.postgres.as_ref().and_then(|postgres| postgres.libc.clone());
    // What it has had already somebody has forced.
    collation::check_upstream(context, spec, &facts.image, libc == old.libc)?;
    let mut state = NodeState {
        spec: spec.clone(),
        image: facts.image.digest.clone(),
        libc,
        plan: plan::plan(spec, &facts)?,
        ..old.clone()
    };
    state.data = plan::data_on_host(&state.plan);
    let (Some(data), Some(there)) = (&state.data, &old.data) else {
        anyhow::bail!("node `{name}` would have no data directory");
    };
    if data != there {
        return Err(advise(
            format!("`{name}` would have other data: {}, and not {}", data.display(), there.display()),
            format!("leave its volumes as they are, or begin anew: `pgbox rm {name}`, then `pgbox up` again"),
        ));
    }
    let major = state.postgres().map(|postgres| postgres.major).context("a server")?;
    version::check(major, facts::data_version(data)?, &data.display().to_string())?;
    ensure!(old.role() == state.role(), "`{name}` would have another role");
    // What the lab has told it, and what it has done to its data, is no part of a plan.
    sync::tell(&mut state, sync::told(old));
    keep_renewal(&mut state, old.postgres().and_then(|postgres| postgres.orders.standby.as_ref()));
    Ok(state)
}

fn keep_renewal(state: &mut NodeState, old: Option<&launch::Standby>) {
    let standby = state.postgres_mut().and_then(|postgres| postgres.orders.standby.as_mut());
    if let (Some(standby), Some(old)) = (standby, old) {
        standby.renew = old.renew.clone();
    }
}
