//! The standbys of the primary that is watched: one line when one is no more, and one when it is back. It is the kernel and
//! its pid 1 that say so, not the primary: whether it streams is another question.

use std::collections::{BTreeMap, BTreeSet};

use super::{event::Event, watch::Guard};
use crate::{
    facts::{cluster::Cluster, stray},
    postgres::report::Phase,
    spec::Name,
    state::Role,
};

impl Guard<'_> {
    /// Tells what has become of the standbys since the last look. Of one that is new nothing is told.
    pub fn tell_standbys(&mut self, cluster: &Cluster) {
        let mut seen: BTreeMap<Name, bool> = BTreeMap::new();
        for node in cluster.nodes.iter().filter(|node| matches!(node.state.role(), Role::Standby { .. })) {
            let standby = node.name.clone();
            let is_up = node.pidfd.is_some() && !node.frozen && node.status.phase == Phase::Running;
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
