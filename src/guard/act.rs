//! What a guard does when the primary has failed: the same as `pgbox failover`, for the standby that it chooses itself.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{
    event::{Event, ms},
    sight::{Finding, Sight},
    watch::{Guard, Refusal, Watched},
};
use crate::{
    engine::{
        failover, loss,
        ready::{self, Answer},
        sync, takeover,
    },
    facts::{
        cluster::{self, Cluster},
        node::Node,
    },
    hint,
    spec::Name,
    sql,
    state::Role,
};

/// How long after a refusal it is tried again, at first and at most.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);

const NOBODY: &str = "no standby runs and answers that has a part of its history and nothing else";

/// Why no standby can be chosen.
fn nobody(cluster: &Cluster) -> String {
    let standbys = cluster.nodes.iter().filter(|node| matches!(node.state.role(), Role::Standby { .. }));
    let mut running = standbys.filter(|node| node.can_answer());
    let locked = running.find_map(|node| match ready::ask(&node.login().ok()?, sql::PATIENCE) {
        Answer::WrongPassword(why) => Some(takeover::locked_out(node, cluster.head(), &why)),
        _ => None,
    });
    locked.map_or_else(|| NOBODY.to_owned(), |error| hint::with_way_out(&error))
}

impl Guard<'_> {
    /// Fails over, unless what was seen is over by the time that this guard has the lab for itself. Gives a signal that came
    /// while it waited.
    pub async fn act(&mut self, what: &str, after: Duration) -> Result<Option<Signal>> {
        let first_sign = Instant::now().checked_sub(after).unwrap_or_else(Instant::now);
        let tried_before = self.refusal.is_some();
        let lock = loop {
            if let Some(lock) = self.watched.root.try_lock(self.watched.lab)? {
                break lock;
            }
            if let Some(signal) = self.rest(Duration::from_millis(2)).await? {
                return Ok(Some(signal));
            }
        };
        if let Some(let_go) = &lock.let_go {
            (self.tell)(&Event::Warning { what: let_go.text() });
        }
        let Some(cluster) = self.look()? else { return Ok(None) };
        self.ask_again(cluster.head()).await;
        let sight = self.sight(&cluster);
        if !matches!(sight, Sight::Down(_) | Sight::Failing(_)) {
            let finding = self.judge(sight);
            self.say(finding);
            return Ok(None);
        }
        if !tried_before {
            let refusal = self.refusal.take();
            self.say(Finding::Failed { what: what.to_owned(), after });
            self.refusal = refusal;
        }
        if let Err(error) = self.replace(&cluster, first_sign) {
            (self.tell)(&Event::Error { what: hint::with_way_out(&error) });
            self.refuse(&cluster.head().name, "that went wrong".to_owned());
        }
        Ok(None)
    }

    /// Puts the most advanced standby in the primary's place, if nothing acknowledged is lost by that.
    fn replace(&mut self, cluster: &Cluster, first_sign: Instant) -> Result<()> {
        let Watched { root, wish, .. } = self.watched;
        let head = cluster.head();
        let begun = Instant::now();
        if let Some(target) = failover::unfinished(cluster) {
            takeover::lets_in(target, head)?;
            return self.promote(cluster, target, first_sign, begun);
        }
        let pause = failover::hold(root, cluster, head, None, wish.accept_loss)?;
        let Some(target) = loss::most_advanced(cluster, head).and_then(|name| cluster.node(&name)) else {
            pause.end()?;
            self.refuse(&head.name, nobody(cluster));
            return Ok(());
        };
        let loss = loss::assess(cluster, head, target);
        let nothing_lost = loss.as_ref().is_ok_and(|loss| loss.acknowledged() == 0);
        let told = match &loss {
            Ok(loss) => loss.told(&head.name, &target.name),
            Err(error) => format!("nobody knows what is lost: {error:#}"),
        };
        if !nothing_lost && !wish.accept_loss {
            pause.end()?;
            let why = match &loss {
                Ok(loss) => failover::would_lack(head, &target.name, Some(loss)),
                Err(_) => told,
            };
            self.refuse(&head.name, why);
            return Ok(());
        }
        failover::leave_behind(root, head, target, pause)?;
        let target = failover::furthest(cluster, head, target)?;
        (self.tell)(&Event::Fenced {
            primary: head.name.clone(),
            standby: target.name.clone(),
            loss: told,
            ms: ms(begun.elapsed()),
        });
        self.promote(cluster, target, first_sign, begun)
    }

    /// The second half, for an old primary that is out of the way.
    fn promote(
        &mut self,
        cluster: &Cluster,
        target: &Node,
        first_sign: Instant,
        begun: Instant,
    ) -> Result<()> {
        let Watched { root, lab, .. } = self.watched;
        let (head, fenced) = (cluster.head(), first_sign.elapsed());
        let (promoted, warnings) = failover::promote(root, cluster, Some(head), target)?;
        (self.tell)(&Event::FailedOver {
            old: head.name.clone(),
            new: target.name.clone(),
            timeline: promoted.timeline,
            lsn: promoted.lsn.to_string(),
            seen_ms: ms(begun - first_sign),
            fenced_ms: ms(fenced),
            total_ms: ms(first_sign.elapsed()),
        });
        for what in warnings {
            (self.tell)(&Event::Warning { what });
        }
        // Only now: clients are there again. What fails here is tried again by the next that comes or goes.
        let _ = sync::confirm(target);
        self.moved_to(&cluster::of(root, lab, &target.name)?)
    }

    /// Says why nothing is done, unless that was said before, and when it is tried again.
    fn refuse(&mut self, primary: &Name, why: String) {
        let before = self.refusal.take();
        let pause = before.as_ref().map_or(AGAIN, |before| (before.pause * 2).min(AGAIN_AT_MOST));
        if before.is_none_or(|before| before.why != why) {
            let again_ms = ms(pause);
            (self.tell)(&Event::Refused { primary: primary.clone(), why: why.clone(), again_ms });
        }
        self.refusal = Some(Refusal { why, again: Instant::now() + pause, pause });
    }
}
