//! `pgbox start`: the same after a stop, a crash and a reboot.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Context, collation, each, endpoint,
    foreground::{self, Attention},
    need_root, talk,
    which::{self, Going},
};
use crate::{
    cli,
    engine::{
        Reach, faults, follower, halt, holder,
        interrupt::Interrupts,
        launch::{self, Patience},
        orders, password,
        ready::Answer,
        takeover,
    },
    facts::{
        self, cluster,
        node::{self, Node},
        ports::{self, Asker},
        stray,
    },
    hint::{self, advise, misuse},
    plan::{self, follow},
    postgres::{report::Phase, version},
    spawn::{Spawned, Stdio},
    spec::Name,
    state::{NodeDir, NodeState, Role},
    sys::process,
};

pub fn run(context: &Context, args: &cli::Start) -> Result<i32> {
    need_root("pgbox start")?;
    crate::sys::exe::reexec_read_only()?;
    // Nodes that it has not come to yet run, and will not.
    if context.root.lock_stop(&context.lab)?.is_none() {
        super::note(context, "another command stops nodes of this lab; they are started when it is done");
        within(context, args.timeout, || context.root.lock_stop(&context.lab))?;
    }
    let nodes = which::nodes(context, &args.which, Going::Up)?;
    if !args.foreground {
        return each(context, &nodes, |name| {
            check_ports(context, name)?;
            start(context, name, args.timeout, STREAM)
        });
    }
    match &nodes[..] {
        [name] => {
            check_ports(context, name)?;
            start_in_foreground(context, name, args.timeout)
        }
        _ => {
            Err(misuse("only one node can be in the foreground", "name one node, or leave --foreground out"))
        }
    }
}

/// A program that listens on a port of the node by now would be cut off without a word.
fn check_ports(context: &Context, name: &Name) -> Result<()> {
    let node = node::find(&context.root, &context.lab, name)?;
    if node.pidfd.is_some() {
        return Ok(());
    }
    let free = ports::check_free(&context.root, &node.state.spec.publish, Asker::Node(&context.lab, name));
    free.map_err(|error| {
        let way_out =
            format!("end that program first; or make the node anew: `pgbox rm {name}` keeps its data");
        advise(error.to_string(), way_out)
    })
}

/// Tries to take a lock for so long.
fn within<L>(context: &Context, timeout: Duration, take: impl Fn() -> Result<Option<L>>) -> Result<L> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(lock) = take()? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            let waited = humantime::format_duration(timeout);
            return Err(advise(
                format!("another command has been at work in lab `{}` for more than {waited}", context.lab),
                "try again when it is done; it may be a `pgbox stop` that waits",
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How long a server may take to answer where another command starts it, which nobody has told how long: it may have much to
/// replay.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How long a standby that answers may take until it streams. It is of use before that, and goes on by itself.
pub const STREAM: Duration = Duration::from_secs(10);

/// Starts a node; the same after a stop, a crash and a reboot. `stream` is how long a standby that answers may take until it
/// streams.
pub fn start(context: &Context, name: &Name, timeout: Duration, stream: Duration) -> Result<()> {
    wait_while_it_stops(context, name, timeout)?;
    let interrupts = Interrupts::block()?;
    let patience = Patience { timeout, stream, interrupts: &interrupts };
    let Some((state, _)) = bring_up(context, name, Stdio::Log, &patience)? else {
        let node = node::find(&context.root, &context.lab, name)?;
        let text = match node.status.phase {
            _ if node.frozen => {
                format!("`{name}` runs already, but is frozen; to let it go on: pgbox thaw {name}")
            }
            Phase::Stopping => {
                return Err(advise(
                    format!("`{name}` was told to stop, and has not ended yet"),
                    format!("try again, or end it now: pgbox stop -t 0 {name}"),
                ));
            }
            _ => format!("`{name}` runs already"),
        };
        super::note(context, &text);
        return Ok(());
    };
    match state.server() {
        Some(address) => outln!("{name} is ready at {address}"),
        None => outln!("{name} is started"),
    }
    Ok(())
}

fn start_in_foreground(context: &Context, name: &Name, timeout: Duration) -> Result<i32> {
    wait_while_it_stops(context, name, timeout)?;
    let interrupts = Interrupts::block()?;
    let patience = Patience { timeout, stream: STREAM, interrupts: &interrupts };
    let node = node::find(&context.root, &context.lab, name)?;
    let stdio = match node.state.postgres() {
        Some(_) => Stdio::Log,
        None => Stdio::Inherit,
    };
    // What it wrote in earlier lives was shown then.
    let shown = fs::metadata(node.dir.log()).map_or(0, |meta| meta.len());
    match bring_up(context, name, stdio, &patience)? {
        Some((state, spawned)) => {
            let attention = Attention { remove: false, shown, stamp: None };
            foreground::attend(context, &state, spawned, &interrupts, &attention)
        }
        None => Err(advise(
            format!("`{name}` runs already"),
            format!("`pgbox logs -f {name}` shows its log; or stop it first: pgbox stop {name}"),
        )),
    }
}

/// Waits for the end of a pid 1 that a killed start has left, which was never let go on: it has said nothing yet, and ends as soon
/// as it gets a processor. False of any other one.
fn is_left_over(node: &Node, pidfd: BorrowedFd<'_>) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !process::has_ended(pidfd, Duration::from_millis(50))? {
        let is_mute = matches!(node.dir.status()?.phase, Phase::Preparing | Phase::Ended);
        if !is_mute || Instant::now() >= deadline {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Undoes what an earlier life may have left, applies the stored plan again, and waits until the node is up.
/// `None`: it runs already.
fn bring_up(
    context: &Context,
    name: &Name,
    stdio: Stdio,
    patience: &Patience<'_>,
) -> Result<Option<(NodeState, Spawned)>> {
    let lock = within(context, patience.timeout, || context.try_lock())?;
    let mut node = node::find(&context.root, &context.lab, name)?;
    if let Some(pidfd) = &node.pidfd {
        if !is_left_over(&node, pidfd.as_fd())? {
            return Ok(None);
        }
        node = node::find(&context.root, &context.lab, name)?;
    }
    check_role(context, &node)?;
    check_data(context, &node.state)?;
    collation::warn_of_data(context, name, node.state.data.as_deref(), node.state.libc.as_deref());
    halt::take_down(&node)?;
    let mut state = node.state.clone();
    plan::set_resolv_conf(&mut state.plan, &facts::resolv_conf());
    // As it is on disk now: somebody may have changed it, or pid 1, where there are no mapped mounts.
    let owner = facts::owner::foreign(&state.plan);
    plan::keep_owner(&mut state.plan, owner);
    find_upstream(context, &node.dir, &mut state)?;
    // Before the first step: whoever comes after a start that was killed undoes what stands there.
    if state.plan != node.state.plan {
        orders::save(&node.dir, &state)?;
    }
    let mut progress = talk::Progress::new(context);
    let mut spawned = launch::bring_up(&context.root, &mut state, Reach::Running, stdio, &mut progress)?;
    if let Err(error) = faults::renew(&context.root, &context.lab, name) {
        super::warn(context, &format!("`{name}` starts without the delays it had: {error:#}"));
    }
    endpoint::settle(context, None);
    drop(lock);
    let reach = Reach::Running;
    let answer = launch::wait_until_up(&context.root, &state, &mut spawned, reach, patience, &mut progress);
    let answer = endpoint::settle_when_up(context, &state, answer)?;
    drop(progress);
    if let Some(text) = turned_away(context, &state, &answer) {
        super::note(context, &text);
    }
    if state.postgres().is_some() {
        if let Err(error) = collation::remember_again(context, &state) {
            super::warn(
                context,
                &format!("what `{name}` runs on is not recorded beside its data: {error:#}"),
            );
        }
        super::settle(context, name);
    }
    Ok(Some((state, spawned)))
}

/// Waits for the end of a node that was told to stop by somebody who does not wait for it; or for its server, if that only
/// restarts.
pub fn wait_while_it_stops(context: &Context, name: &Name, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let node = node::find(&context.root, &context.lab, name)?;
        // Its server may have ended, and pid 1 be about to.
        let is_going = matches!(node.status.phase, Phase::Stopping | Phase::Ended) && !node.frozen;
        let Some(pidfd) = node.pidfd.filter(|_| is_going) else {
            return Ok(());
        };
        if process::has_ended(pidfd.as_fd(), Duration::from_millis(50))? || Instant::now() >= deadline {
            return Ok(());
        }
    }
}

/// Puts the server that a standby follows into its plan as it is now: it may have been removed, and made again at another
/// address. What stands at the old one then may be anybody, who would keep WAL for this node for ever. Of a server that
/// does not run nothing is asked; it makes the slot when it starts.
fn find_upstream(context: &Context, dir: &NodeDir, state: &mut NodeState) -> Result<()> {
    let (Role::Standby { of }, Some(follow)) = (state.role(), state.spec.follow.clone()) else {
        return Ok(());
    };
    let name = &state.spec.node;
    let nodes = node::all(&context.root, &context.lab)?;
    let node = nodes.iter().find(|node| node.name == *name);
    if let Some(text) = node.and_then(|node| cluster::left_alone(&context.root, &nodes, node)) {
        super::note(context, &text);
        follow::alone(state);
        return Ok(());
    }
    let server = node::find(&context.root, &context.lab, &of)?;
    let silence = match (&server.pidfd, server.frozen) {
        (None, _) => Some("does not run"),
        (_, true) => Some("is frozen"),
        _ => None,
    };
    if let Some(why) = silence {
        super::note(context, &format!("`{name}` does not stream: `{of}`, which it follows, {why}"));
        follow::alone(state);
        return Ok(());
    }
    // A standby that is left alone itself has no primary.
    let cluster = cluster::of(&context.root, &context.lab, &of).ok();
    let upstream = server.upstream(cluster.as_ref().map_or(&server, cluster::Cluster::head))?;
    let renew = state.postgres().and_then(|p| p.orders.standby.as_ref()?.renew.clone());
    follow::follow(state, follow, &upstream, renew, dir.replicator_file());
    if let Err(silence) = follower::admit(&state.plan) {
        let text = format!("`{}` may not stream: `{of}`, which it follows: {silence:#}", state.spec.node);
        super::note(context, &text);
        follow::alone(state);
    }
    Ok(())
}

/// What to say of a server that is up but does not let pgbox in.
fn turned_away(context: &Context, state: &NodeState, answer: &Answer) -> Option<String> {
    let Answer::WrongPassword(why) = answer else { return password::refused(state, answer) };
    let node = node::find(&context.root, &context.lab, &state.spec.node).ok()?;
    let cluster = cluster::of(&context.root, &context.lab, &node.name);
    let head = cluster.as_ref().map_or(&node, |cluster| cluster.head());
    Some(hint::with_way_out(&takeover::locked_out(&node, head, why)))
}

/// Refuses an old primary, which would be a second one, a standby that was promoted behind pgbox' back, or by a takeover that was
/// not finished: its pid 1 would, too, and not know why. And one that has gone its own way, or follows such a one: it would be
/// seen to stream, and replay what goes with other data than it has.
fn check_role(context: &Context, node: &node::Node) -> Result<()> {
    // Who follows nobody starts whatever the others are, and whether they can be read.
    if matches!(node.state.role(), Role::Primary | Role::Command) {
        return Ok(());
    }
    let name = &node.name;
    if let Ok(cluster) = cluster::of(&context.root, &context.lab, name)
        && takeover::half_done(&cluster, name).is_some()
    {
        let old = &cluster.head().name;
        let what = format!("`{name}` was promoted in the place of `{old}`, which was not finished");
        return Err(advise(what, format!("start it as the primary: `pgbox promote {name}`")));
    }
    let nodes = node::all(&context.root, &context.lab)?;
    let stays_down = cluster::stays_down(&context.root, &nodes, node);
    match stays_down.or_else(|| stray::told(&nodes, node)) {
        Some((what, way_out)) => Err(advise(what, way_out)),
        None => stray::refuse(&nodes, node, Some(name)),
    }
}

fn check_data(context: &Context, state: &NodeState) -> Result<()> {
    let (Some(postgres), Some(data)) = (state.postgres(), &state.data) else { return Ok(()) };
    holder::refuse(&context.root, data, Some((&state.spec.lab, &state.spec.node)))?;
    version::check(postgres.major, facts::data_version(data)?, &data.display().to_string())
}
