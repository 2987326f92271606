//! An unplanned change of the primary: the old one is held still, looked at, put out of the way, and only then
//! is a standby promoted. What `pgbox failover` does when it is told to, and `pgbox guard` by itself.
//!
//! The rule that surprises people: a primary that does not answer may still acknowledge commits to others. It is held
//! still *before* anything is compared, and it goes on if the comparison says that it is needed.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{
    arrival, endpoint, halt, leftover,
    loss::{self, Loss},
    slots,
    takeover::{self, Promoted},
    timelines,
};
use crate::{
    facts::{
        cluster::{self, Cluster},
        node::{self, Node},
    },
    hint::advise,
    spec::Name,
    state::{Role, Root},
    sys::cgroup::Cgroup,
};

/// A running primary that is held still for a moment, and goes on unless it is over with it. One that somebody has frozen
/// before stays so, and so does one that somebody freezes meanwhile. The caller has the lab's lock: whoever gets that next
/// lets the node go on, if this process is killed.
pub struct Pause(Option<Held>);

struct Held {
    root: Root,
    lab: Name,
    group: Cgroup,
}

impl Pause {
    pub fn begin(root: &Root, node: &Node) -> Result<Self> {
        Self::record(root, node)?.freeze()
    }

    /// Writes down that it begins.
    fn record(root: &Root, node: &Node) -> Result<Self> {
        if !node.can_answer() {
            return Ok(Self(None));
        }
        let held = Held { root: root.clone(), lab: node.lab.clone(), group: node.cgroup(root)? };
        root.hold(&node.lab, &node.name)?;
        Ok(Self(Some(held)))
    }

    /// Lets the node go on if it can't be held.
    fn freeze(self) -> Result<Self> {
        if let Some(held) = &self.0 {
            held.group.hold_still()?;
            // What it has sent before arrives now.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(self)
    }

    /// Nothing is held.
    pub fn none() -> Self {
        Self(None)
    }

    /// Ends it without letting the node go on.
    pub fn over(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |held| held.root.unhold(&held.lab))
    }

    /// Lets the node go on.
    ///
    /// # Errors
    /// When it stays frozen.
    pub fn end(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |held| held.let_go())
    }
}

impl Held {
    fn let_go(&self) -> Result<()> {
        if self.root.held(&self.lab)?.is_some() {
            self.group.thaw()?;
        }
        self.root.unhold(&self.lab)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            // Only on the way out after another error, which is the one to be told.
            let _ = held.let_go();
        }
    }
}

/// Holds the old primary still. Where a loss is accepted, one that can't be is ended at once, if there is a successor: what it has
/// acknowledged is looked up afterwards.
///
/// # Errors
/// When it runs on.
pub fn hold(
    root: &Root,
    cluster: &Cluster,
    head: &Node,
    target: Option<&Name>,
    accept_loss: bool,
) -> Result<Pause> {
    // Who can't write that down can't put another one in its place, either.
    let error = match Pause::record(root, head)?.freeze() {
        Ok(pause) => return Ok(pause),
        Err(error) => error,
    };
    if accept_loss {
        let name = target.cloned().or_else(|| loss::most_advanced(cluster, head));
        let successor = name.and_then(|name| cluster.node(&name));
        let successor = successor.with_context(|| {
            format!("`{}` can't be held still, and has no successor: {error:#}", head.name)
        })?;
        can_follow_on(root, head, successor)?;
        return takeover::fence(root, head).map(|()| Pause::none());
    }
    let target = target.map_or("STANDBY", Name::as_str);
    Err(advise(
        format!(
            "`{}` can't be held still, so nobody knows what it acknowledges meanwhile: {error:#}",
            head.name
        ),
        format!("end it, and give up what `{target}` lacks then: `pgbox failover {target} --accept-loss`"),
    ))
}

/// Why a standby may not take a primary's place: what would be lost, and the ways out.
pub fn refusal(cluster: &Cluster, head: &Node, target: &Name, loss: Option<&Loss>) -> anyhow::Error {
    let first = match better(cluster, head, target, loss) {
        Some((name, other)) if other.acknowledged() == 0 => {
            format!("`{name}` has more, and with it nothing is lost: `pgbox failover {name}`")
        }
        Some((name, other)) => format!(
            "`{name}` has more, and lacks {} as well: `pgbox failover {name}`",
            other.amount("transaction")
        ),
        None if head.pidfd.is_none() => {
            format!("no standby has more; start it and switch over: `pgbox start {}`", head.name)
        }
        None => format!("no standby has more; switch over: `pgbox switchover {target}`"),
    };
    let what = loss.map_or_else(|| "whatever that is".to_owned(), |loss| loss.amount("transaction"));
    advise(
        would_lack(head, target, loss),
        format!("{first}; or give up {what}: `pgbox failover {target} --accept-loss`"),
    )
}

/// The standby with which less is lost than with this one, if there is one, and what is lost then.
fn better(cluster: &Cluster, head: &Node, target: &Name, loss: Option<&Loss>) -> Option<(Name, Loss)> {
    let name = loss::most_advanced(cluster, head).filter(|name| name != target)?;
    let other = loss::assess(cluster, head, cluster.node(&name)?).ok()?;
    loss.is_none_or(|loss| other.acknowledged() < loss.acknowledged()).then_some((name, other))
}

/// What a standby would lack.
pub fn would_lack(head: &Node, target: &Name, loss: Option<&Loss>) -> String {
    let on_disk = format!("that `{}` has on its disk", head.name);
    match loss {
        Some(loss) if loss.asynchronous => {
            format!("`{target}` lacks {} {on_disk}", loss.amount("acknowledged transaction"))
        }
        Some(loss) => {
            format!(
                "`{target}` lacks {} {on_disk}, and that may have been acknowledged",
                loss.amount("transaction")
            )
        }
        None => format!("`{target}` may lack what `{}` has acknowledged", head.name),
    }
}

/// Refuses what would stop the promotion: that is better known while there is a primary.
fn can_follow_on(root: &Root, head: &Node, target: &Node) -> Result<()> {
    timelines::unheard_of(root, target)?;
    takeover::lets_in(target, head)
}

/// Puts the old primary out of the way: it is dead, and does not start again as it is.
pub fn leave_behind(root: &Root, head: &Node, target: &Node, pause: Pause) -> Result<()> {
    can_follow_on(root, head, target)?;
    takeover::fence(root, head)?;
    takeover::supersede(head, &target.name)?;
    pause.over()
}

/// Whom to promote after all: the standby that has most when everything has arrived that the dead primary sent. Whoever has
/// more than the promoted one could not follow it.
pub fn furthest<'a>(cluster: &'a Cluster, head: &Node, target: &'a Node) -> Result<&'a Node> {
    if cluster.followers(&head.name).count() < 2 {
        return Ok(target);
    }
    arrival::wait(cluster.followers(&head.name));
    let best = loss::most_advanced(cluster, head).and_then(|name| cluster.node(&name)).unwrap_or(target);
    if best.name != target.name {
        takeover::supersede(head, &best.name)?;
    }
    Ok(best)
}

/// Promotes a standby, lets the lab's endpoints lead to it, turns everybody else who followed the old primary to it, and takes
/// down what is left of that one. Gives also what did not go as it should, but can't be taken back.
pub fn promote(
    root: &Root,
    cluster: &Cluster,
    head: Option<&Node>,
    target: &Node,
) -> Result<(Promoted, Vec<String>)> {
    let orphans = orphans(root, target)?;
    let followers = head.into_iter().flat_map(|head| cluster.followers(&head.name));
    let others: Vec<&Node> = followers.chain(&orphans).filter(|node| node.name != target.name).collect();
    let mut warnings = Vec::new();
    // Of an old primary that is there it is its state that says so.
    if head.is_none() {
        leftover::note(root, target)?;
    }
    // It is dead by now. Whoever has left that to others has it done here.
    head.map_or(Ok(()), |head| takeover::fence(root, head))?;
    if !others.is_empty() {
        arrival::wait(others.iter().copied().chain([target]));
    }
    let mut lead = |promoted: Option<&Name>| {
        if let Err(error) = endpoint::settle(root, &target.lab, promoted) {
            warnings.push(format!("the endpoints of the lab do not lead where they should: {error:#}"));
        }
    };
    let promoted = takeover::promote(root, target, &others, || {
        lead(Some(&target.name));
        Ok(())
    })?;
    let down = head.map_or(Ok(()), |head| halt::take_down(&node::find(root, &head.lab, &head.name)?));
    lead(None);
    if let (Some(head), Err(error)) = (head, down) {
        let name = &head.name;
        warnings.push(format!("something is left of `{name}`, until `pgbox rejoin {name}`: {error:#}"));
    }
    // One that followed another standby has left its slot there.
    if let Err(error) =
        cluster::of(root, &target.lab, &target.name).and_then(|cluster| slots::settle(&cluster))
    {
        warnings.push(format!("replication slots may be left that nobody needs: {error:#}"));
    }
    warnings.extend(head.and_then(|head| slots::left_behind(head, target)));
    warnings.extend(others.iter().filter(|other| loss::has_more(target, other)).map(|other| {
        format!(
            "`{0}` has received what `{1}` never had; it can't follow before `pgbox rejoin {0}`",
            other.name, target.name
        )
    }));
    Ok((promoted, warnings))
}

/// The standbys of nodes that are gone whose data have the same origin as those of this one: they are nobody's.
pub fn orphans(root: &Root, target: &Node) -> Result<Vec<Node>> {
    let mut nodes = node::all(root, &target.lab)?;
    let names: Vec<Name> = nodes.iter().map(|node| node.name.clone()).collect();
    nodes.retain(|node| {
        let is_alone = matches!(node.state.role(), Role::Standby { of } if !names.contains(&of));
        is_alone && node.name != target.name && node.is_kin_of(target) == Some(true)
    });
    Ok(nodes)
}

/// The standby that another takeover has begun with and not finished, if it still runs. It may be a primary already, so that no
/// other one can be chosen; and what is lost was decided before the old primary was marked, and has not changed.
pub fn unfinished(cluster: &Cluster) -> Option<&Node> {
    cluster.heir().filter(|heir| heir.pidfd.is_some())
}
