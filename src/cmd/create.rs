//! A new node, from an image to an answer: what `run`, `replica` and `up` have in common, and the trial of settings.

mod data;

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::{
    Context, collation, endpoint,
    foreground::{self, Attention},
    talk,
};
use crate::{
    engine::{
        Reach,
        goal::{self, Goal},
        interrupt::Interrupts,
        launch::{self, Patience},
        orders, passfile,
        password::{self, Origin},
        ready::Answer,
        settings::check,
    },
    facts::{self, owner},
    hint::{advise, misuse},
    image::Store,
    plan,
    postgres::{
        launch::{Payload, RenewHow},
        settings, tune,
    },
    show::{plan::Depth, plan::render, script},
    spawn::Stdio,
    spec::{NodeSpec, SERVER_PORT, VolumeSource},
    state::{self, NodeState, Plan},
};

/// How a node is to be created.
#[derive(Default)]
pub struct How {
    /// Only to print the steps.
    pub shown: Option<Shown>,
    /// How long the first answer may take.
    pub timeout: Duration,
    pub foreground: bool,
    /// To be removed when it ends.
    pub remove: bool,
    /// A standby may have another C library than the server that it follows, and what only its data have is given up.
    pub force: bool,
    /// A command, too, is left to itself.
    pub detach: bool,
    /// A command gets a terminal, or at least the caller's standard input.
    pub tty: bool,
    pub interactive: bool,
    /// How the data of an old primary become a standby's; without that they are refused.
    pub renew: Option<RenewHow>,
    /// Whether it is news to the user that there are data already.
    pub tell_of_data: bool,
}

/// What is to be printed instead of a node that is made.
#[derive(Debug, Clone, Copy)]
pub enum Shown {
    Steps(Depth),
    Script,
    WayBack,
}

impl Shown {
    pub fn steps(dry_run: bool, explain: bool) -> Option<Self> {
        match (dry_run, explain) {
            (_, true) => Some(Self::Steps(Depth::Reasons)),
            (true, false) => Some(Self::Steps(Depth::Commands)),
            (false, false) => None,
        }
    }

    fn text(self, plan: &Plan) -> Result<String> {
        match self {
            Self::Steps(depth) => Ok(render(plan, depth)),
            Self::Script => script::script(plan),
            Self::WayBack => Ok(script::way_back(plan)),
        }
    }
}

impl How {
    /// As a node is made that is to be left to itself, by a command that says itself what it goes on with.
    pub fn detached() -> Self {
        Self { detach: true, ..Self::default() }
    }
}

/// Creates a node and waits until it is up; gives the exit code.
pub fn create(context: &Context, spec: NodeSpec, secret: Option<String>, how: &How) -> Result<i32> {
    check(&spec, how)?;
    let store = Store::open(context.root.path())?;
    let resolved = store.resolve(&spec.image)?;
    let image = facts::image::facts(&context.root, &resolved)?;
    let lock = context.lock()?;
    let shared = context.root.lock_shared()?;
    // From here on `image rm` waits, and then finds the node that needs the image.
    store.confirm(&resolved.manifest)?;
    let facts = facts::gather(&context.root, &spec, image)?;
    let mut plan = planned(&spec, &facts, how)?;
    collation::check_upstream(context, &spec, &facts.image, how.force)?;
    if let Some(shown) = how.shown {
        out!("{}", shown.text(&plan)?);
        return Ok(0);
    }
    let data = plan::data_on_host(&plan);
    check_host(context, &spec, &facts, &mut plan, data.as_deref(), how)?;
    if let Some(data) = data.as_deref().filter(|_| how.tell_of_data) {
        data::note(context, &spec, data);
    }
    warn(context, &spec, &facts, data.as_deref());
    let mut state = NodeState {
        version: NodeState::VERSION,
        spec,
        image: facts.image.digest.clone(),
        libc: facts.image.postgres.as_ref().and_then(|postgres| postgres.libc.clone()),
        address: facts.address,
        data,
        plan,
        superseded_by: None,
        sync_since: None,
        init: None,
        boot_id: String::new(),
        created: launch::now(),
        started: 0,
    };
    let interrupts = Interrupts::block()?;
    let origin = remember(context, &state, &facts, secret)?;
    drop(shared);
    let stdio = stdio(&state, how);
    let mut progress = talk::Progress::new(context);
    let mut spawned = launch::bring_up(&context.root, &mut state, Reach::All, stdio, &mut progress)?;
    endpoint::settle_for(context, &state);
    let stamp = context.root.node(&context.lab, &state.spec.node).stamp().ok();
    drop(lock);
    let patience = Patience { timeout: how.timeout, stream: how.timeout, interrupts: &interrupts };
    let answer =
        launch::wait_until_up(&context.root, &state, &mut spawned, Reach::All, &patience, &mut progress);
    let answer = endpoint::settle_when_up(context, &state, answer)?;
    drop(progress);
    settle_in(context, &state, origin, &answer)?;
    if how.foreground || stdio != Stdio::Log {
        let attention = Attention { remove: how.remove, shown: 0, stamp };
        return foreground::attend(context, &state, spawned, &interrupts, &attention);
    }
    announce(context, &state);
    Ok(0)
}

/// Refuses what can't be meant.
fn check(spec: &NodeSpec, how: &How) -> Result<()> {
    if let Some(text) = spec.contradiction() {
        return Err(misuse(text, "leave one of them out"));
    }
    if let Some(text) = spec.deaf_port() {
        let host = spec.publish.iter().find(|publish| publish.port != SERVER_PORT).map_or(0, |p| p.host_port);
        return Err(misuse(text, format!("write -p {host}:{SERVER_PORT}")));
    }
    check_sources(spec)?;
    let command = spec.command().is_some();
    if (how.tty || how.interactive) && !command {
        let node = &spec.node;
        return Err(misuse(
            "-it is for a command, and this is a server",
            format!(
                "leave it out, and then: `pgbox psql {node}`, or `pgbox exec -it {node} -- bash`; a shell instead of \
                 the server: pgbox run --rm -it {node} {} -- bash",
                spec.image
            ),
        ));
    }
    if how.remove && (how.detach || !command) && !how.foreground {
        return Err(misuse(
            "nobody would be there to remove the node when it ends",
            "use --rm together with --foreground, or remove the node later with `pgbox rm`",
        ));
    }
    Ok(())
}

/// Refuses what is to be read and is not there. A directory that is to be written is made; this one would be empty for ever.
pub fn check_sources(spec: &NodeSpec) -> Result<()> {
    for volume in spec.volumes.iter().filter(|volume| volume.read_only) {
        if let VolumeSource::Path(path) = &volume.source
            && !path.exists()
        {
            return Err(advise(
                format!(
                    "there is no {}, which is to be mounted read-only at {}",
                    path.display(),
                    volume.target.display()
                ),
                "mend the path, or make it; without :ro a directory that is not there is made",
            ));
        }
    }
    Ok(())
}

fn planned(spec: &NodeSpec, facts: &plan::Facts, how: &How) -> Result<state::Plan> {
    let mut plan = plan::plan(spec, facts)?;
    let owner = owner::foreign(&plan);
    plan::keep_owner(&mut plan, owner);
    if let Some(how) = how.renew {
        plan::follow::renew(&mut plan, orders::renewal(how));
    }
    Ok(plan)
}

/// Refuses what this host, or the data on it, would only let fail later, when something was made.
fn check_host(
    context: &Context,
    spec: &NodeSpec,
    facts: &plan::Facts,
    plan: &mut state::Plan,
    data: Option<&Path>,
    how: &How,
) -> Result<()> {
    data::check(context, spec, facts, plan, data, how)?;
    data::check_single_user(facts, spec, plan)?;
    let Payload::Postgres(postgres) = &plan.init.payload else { return Ok(()) };
    let value = |name: &str| settings::value(&postgres.orders.settings, name).map(str::to_owned);
    check::huge_pages(value, false)
}

/// What is left to do for a node that has come up.
fn settle_in(context: &Context, state: &NodeState, origin: Origin, answer: &Answer) -> Result<()> {
    let node = context.root.node(&state.spec.lab, &state.spec.node);
    if let Some(text) = password::settle(&context.root, &node, state, origin, answer)? {
        super::note(context, &text);
    }
    remember_volume(context, state, answer)?;
    if state.postgres().is_some() {
        passfile::settle_unlocked(&context.root, &context.lab)?;
        super::settle(context, &state.spec.node);
    }
    Ok(())
}

/// A server writes its log; a command has our own streams, unless it is left to itself.
fn stdio(state: &NodeState, how: &How) -> Stdio {
    match (state.spec.command().is_some() && !how.detach, how.tty) {
        (false, _) => Stdio::Log,
        (true, false) => Stdio::Inherit,
        (true, true) => Stdio::Terminal,
    }
}

fn warn(context: &Context, spec: &NodeSpec, facts: &plan::Facts, data: Option<&Path>) {
    if !facts.nat && !spec.offline {
        errln!(
            "warning: this kernel has no NAT (nf_tables, family ip): `{}` can't reach beyond this host",
            spec.node
        );
    }
    for unmet in crate::sys::cgroup::unmet(&facts.cgroups, &plan::limits(spec)) {
        errln!("warning: {unmet}");
    }
    // A command that can't get out says so itself.
    let relies = spec.command().is_none() || !spec.publish.is_empty();
    if relies && let Ok(Some(chain)) = crate::sys::nft::forward_policy_drop() {
        errln!(
            "warning: {chain} drops forwarded packets: published ports and the way out may be blocked there"
        );
    }
    if let (None, Some(postgres)) = (spec.command(), &facts.image.postgres) {
        collation::warn_of_data(context, &spec.node, data, postgres.libc.as_deref());
        warn_of_memory(spec, facts);
    }
}

/// Postgres tunes itself to nothing: whoever sets a limit must know what fits into it.
fn warn_of_memory(spec: &NodeSpec, facts: &plan::Facts) {
    if spec.tune {
        for setting in plan::tuned(spec, facts) {
            errln!("note: {} = {} ({})", setting.name, setting.value, setting.why);
        }
    }
    let buffers = settings::value(&spec.settings, "shared_buffers").unwrap_or("128MB");
    if let (false, Some(memory)) = (spec.tune, spec.limits.memory)
        && let Ok(Some(warning)) = tune::buffers_warning(buffers, memory)
    {
        errln!("warning: {warning}; `--tune auto` chooses what fits");
    }
}

/// Writes the state and, apart from it, the password. Takes the node's name: from here on it is taken.
fn remember(
    context: &Context,
    state: &NodeState,
    facts: &plan::Facts,
    secret: Option<String>,
) -> Result<Origin> {
    let lab = &state.spec.lab;
    if !context.root.lab_file(lab).exists() {
        context.root.save_lab(lab, &state::LabState::new(facts.gateway.trunc()))?;
    }
    let node = context.root.node(lab, &state.spec.node);
    let draft = node.draft()?;
    let origin = password::keep(&context.root, &draft, state, secret)?;
    password::keep_replicator(&context.root, &draft, state)?;
    draft.save(state)?;
    node.adopt(draft)?;
    Ok(origin)
}

/// Keeps beside a named volume what the next node on it should know.
fn remember_volume(context: &Context, state: &NodeState, answer: &Answer) -> Result<()> {
    if state.postgres().is_none() {
        return Ok(());
    }
    if *answer == Answer::Ready {
        password::remember(&context.root, state)?;
    }
    context.root.home_of(state).map_or(Ok(()), |volume| collation::remember(&volume, state))
}

fn announce(context: &Context, state: &NodeState) {
    let node = &state.spec.node;
    let Some(address) = state.server() else {
        outln!("{node} is started");
        return;
    };
    // One that applies late may not yet, which it was said.
    let streams = || goal::reached(&context.root, &context.lab, node, Goal::Streaming).is_ok();
    match &state.spec.follow {
        Some(follow) if !state.applies_late() || streams() => {
            outln!("{node} streams from {} and answers at {address}", follow.of)
        }
        _ => outln!("{node} is ready at {address}"),
    }
    for port in &state.spec.publish {
        outln!("  published  {}", port.places());
    }
    let dir = context.root.node(&state.spec.lab, node);
    if dir.secret_file().exists() {
        outln!("  password   {}", dir.secret_file().display());
    }
    let options = &context.options;
    outln!("  connect    pgbox{options} psql {node}    or    psql \"$(pgbox{options} uri {node})\"");
}
