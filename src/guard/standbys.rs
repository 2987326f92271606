//! The standbys of the primary that is watched: one line when one is no more, and one when it is back. It is the kernel and
//! its pid 1 that say so, not the primary: whether it streams is another question.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use super::{
    event::Event,
    probe::{Answer, Probe},
    watch::Guard,
};
use crate::{
    engine::takeover,
    facts::{cluster::Cluster, stray},
    hint,
    spec::Name,
    sql::Login,
    state::Role,
};

/// How often standbys are asked, and how long each may take to answer.
const ROUND: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(2);

/// One question to each standby.
pub struct Round {
    begun: Option<Instant>,
    heard: Receiver<(Name, Answer)>,
}

impl Round {
    /// Before the first one.
    pub fn none() -> Self {
        Self { begun: None, heard: mpsc::channel().1 }
    }

    fn begin(logins: impl Iterator<Item = (Name, Login)>) -> Self {
        let (say, heard) = mpsc::channel();
        for (name, login) in logins {
            let say = say.clone();
            tokio::spawn(async move {
                let answer = Probe::new(login).ask(LIMIT).await;
                // Nobody listens any more when the next round has begun.
                let _ = say.send((name, answer));
            });
        }
        Self { begun: Some(Instant::now()), heard }
    }

    fn is_due(&self) -> bool {
        self.begun.is_none_or(|begun| begun.elapsed() >= ROUND)
    }
}

impl Guard<'_> {
    /// Tells what has become of the standbys since the last look. Of one that is new nothing is told.
    pub fn tell_standbys(&mut self, cluster: &Cluster) {
        let mut seen: BTreeMap<Name, bool> = BTreeMap::new();
        for node in cluster.nodes.iter().filter(|node| matches!(node.state.role(), Role::Standby { .. })) {
            let standby = node.name.clone();
            let is_up = node.is_up();
            match (self.standbys.get(&standby), is_up) {
                (Some(true), false) => {
                    let what = node.word().to_owned();
                    (self.tell)(&Event::StandbyDown { standby: standby.clone(), what });
                }
                (Some(false), true) => (self.tell)(&Event::StandbyUp { standby: standby.clone() }),
                _ => {}
            }
            seen.insert(standby, is_up);
        }
        self.standbys = seen;
        self.tell_strays(cluster);
        self.tell_locked(cluster);
    }

    /// Tells once of each that is up and does not let the guard in: none of those can take the primary's place. They are asked
    /// now and then, while the guard waits.
    fn tell_locked(&mut self, cluster: &Cluster) {
        let heard: Vec<(Name, Answer)> = self.round.heard.try_iter().collect();
        for (name, answer) in heard {
            let Some(node) = cluster.node(&name).filter(|_| self.standbys.get(&name) == Some(&true)) else {
                continue;
            };
            match (answer, self.locked.contains(&name)) {
                (Answer::Refusal, false) => {
                    // What it says can't be waited for: it has just said something.
                    let Err(error) = takeover::lets_in(node, cluster.head()) else { continue };
                    (self.tell)(&Event::Warning { what: hint::with_way_out(&error) });
                    self.locked.insert(name);
                }
                (Answer::Streams(_), _) => _ = self.locked.remove(&name),
                _ => {}
            }
        }
        if self.round.is_due() {
            let up = cluster.nodes.iter().filter(|node| self.standbys.get(&node.name) == Some(&true));
            let logins = up.filter_map(|node| Some((node.name.clone(), node.login().ok()?)));
            self.round = Round::begin(logins);
        }
    }

    /// Tells once of each that is a standby no more.
    fn tell_strays(&mut self, cluster: &Cluster) {
        let strays = cluster.nodes.iter().filter(|node| stray::is_astray(&cluster.nodes, node));
        let strays: BTreeSet<Name> = strays.map(|node| node.name.clone()).collect();
        for name in strays.difference(&self.strays) {
            if let Some(what) = cluster.node(name).and_then(|node| stray::said(&cluster.nodes, node)) {
                (self.tell)(&Event::Warning { what });
            }
        }
        self.strays = strays;
    }
}
