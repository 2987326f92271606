//! What is lost when a standby takes the place of a primary, read from the primary's own disk.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{sync, takeover};
use crate::{
    facts::{cluster::Cluster, node::Node, wal},
    postgres::lsn::Lsn,
    spec::{Name, SyncRule},
};

/// How long what is on its way may take to arrive.
const ARRIVAL: Duration = Duration::from_millis(500);

/// What the old primary has and the standby has not.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// Up to here the standby has everything.
    pub received: Lsn,
    /// Where the primary's WAL ends.
    pub end: Lsn,
    /// Transactions that were committed in between, and the rows that they changed.
    pub commits: u64,
    pub rows: u64,
    /// Whether every commit had to be on the standby before anybody was told of it.
    pub synchronous: bool,
}

impl Loss {
    /// How many of the transactions somebody may have been told of.
    pub fn acknowledged(&self) -> u64 {
        if self.synchronous { 0 } else { self.commits }
    }

    /// In words.
    pub fn told(&self, head: &Name, target: &Name) -> String {
        let Self { received, end, commits, rows, synchronous } = self;
        match (commits, synchronous) {
            (0, _) => {
                format!("nothing is lost: `{target}` has every transaction of `{head}` ({received} of {end})")
            }
            (_, true) => format!(
                "nothing acknowledged is lost: {commits} transactions of `{head}` after {received} still waited for `{target}`"
            ),
            (_, false) => format!(
                "{commits} transactions with {rows} rows are lost: `{head}` committed them after {received}"
            ),
        }
    }
}

/// Compares a primary that is out of action with a standby that is to take its place.
///
/// # Errors
/// When the primary's disk can't be read, or the standby can't be asked.
pub fn assess(cluster: &Cluster, head: &Node, target: &Node) -> Result<Loss> {
    let data = head.state.data.as_deref().context("it has no data directory")?;
    let server = target.login()?;
    let begun = Instant::now();
    let mut received = takeover::received(&server)?;
    loop {
        let scan = wal::lost(data, received)?;
        let now = takeover::received(&server)?;
        if scan.commits == 0 || (now == received && begun.elapsed() > ARRIVAL) {
            let synchronous = is_synchronous(cluster, head, target, received);
            return Ok(Loss { received, end: scan.end, commits: scan.commits, rows: scan.rows, synchronous });
        }
        // The receiver writes what the kernel has for it, and ends only then.
        std::thread::sleep(Duration::from_millis(10));
        received = now;
    }
}

/// Whether every acknowledged commit is on the standby: it is one of those that commits wait for, so many of them can
/// be asked that one of these has every commit, and none has more than it.
fn is_synchronous(cluster: &Cluster, head: &Node, target: &Node, received: Lsn) -> bool {
    let Ok(rule) = sync::told(&head.state).parse::<SyncRule>() else { return false };
    if !rule.names.contains(&target.name) {
        return false;
    }
    let members =
        cluster.nodes.iter().filter(|node| rule.names.contains(&node.name) && node.name != target.name);
    let others: Vec<Lsn> = members.filter_map(|node| takeover::received(&node.login().ok()?).ok()).collect();
    let asked = others.len() + 1;
    asked + rule.count > rule.names.len() && others.iter().all(|other| *other <= received)
}

/// The standby that has received most.
pub fn most_advanced(cluster: &Cluster, head: &Node) -> Option<Name> {
    let standbys = cluster.nodes.iter().filter(|node| node.name != head.name && node.pidfd.is_some());
    let with_lsn =
        standbys.filter_map(|node| Some((takeover::received(&node.login().ok()?).ok()?, node.name.clone())));
    with_lsn.max().map(|(_, name)| name)
}
