//! What is lost when a standby takes the place of a primary, read from the primary's own disk.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{sync, takeover};
use crate::{
    facts::{cluster::Cluster, node::Node, wal},
    postgres::{
        lsn::Lsn,
        wal::{Scan, Table},
    },
    spec::{Name, SyncRule},
    sql::{self, Login},
};

/// How long a stream that is still open may take to bring what is on its way.
const ARRIVAL: Duration = Duration::from_millis(500);

/// What the old primary has and the standby has not.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// Up to here the standby has everything.
    pub received: Lsn,
    /// Where the primary's WAL ends.
    pub end: Lsn,
    /// Transactions that were committed in between and that somebody would miss.
    pub commits: u64,
    /// The rows that they changed; not counted where nobody was told of them.
    pub rows: u64,
    /// Whether there may be more: the WAL that is left begins later, or in the middle of a transaction.
    pub at_least: bool,
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
        let Self { received, end, commits, rows, at_least, synchronous } = self;
        let least = if *at_least { "at least " } else { "" };
        match (commits, synchronous) {
            (0, _) => {
                format!("nothing is lost: `{target}` has every transaction of `{head}` ({received} of {end})")
            }
            (_, true) => format!(
                "nothing acknowledged is lost: {commits} transactions of `{head}` after {received} still waited for `{target}`"
            ),
            (_, false) => format!(
                "{least}{commits} transactions with {rows} rows are lost: `{head}` committed them after {received}"
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
    loop {
        let (receives, received) = takeover::reception(&server)?;
        let is_over = !receives || begun.elapsed() > ARRIVAL;
        // What the standby lacks was then acknowledged to nobody, whether it still arrives or not: there is nothing to wait
        // for, and nothing to look up.
        let synchronous = is_synchronous(cluster, head, target, received);
        let scan = if synchronous { wal::unreceived(data, received)? } else { wal::lost(data, received)? };
        let commits = scan.commits - scan.idle;
        if commits == 0 || is_over || synchronous {
            let rows = if commits == 0 || synchronous { 0 } else { rows(&scan, &server) };
            let at_least = !scan.exact || scan.since > received;
            return Ok(Loss { received, end: scan.end, commits, rows, at_least, synchronous });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The rows that users know of. A value too large for its row is some rows of a table of TOAST, and which tables those
/// are only a catalog tells; the standby's is the same, but for what is lost.
fn rows(scan: &Scan, standby: &Login) -> u64 {
    let mut toast = BTreeSet::new();
    for database in scan.tables.keys().map(|table| table.database).collect::<BTreeSet<_>>() {
        // A standby that can't be asked, or knows no such database, leaves the count a little too high.
        toast.extend(toast_tables(standby, database).unwrap_or_default());
    }
    scan.rows_but(|table| toast.contains(&table))
}

fn toast_tables(standby: &Login, database: u32) -> Result<Vec<Table>> {
    let name = standby.ask(sql::PATIENCE, move |client| {
        let row = client.query_opt("SELECT datname FROM pg_database WHERE oid = $1", &[&database])?;
        Ok(row.map(|row| row.get::<_, String>(0)))
    })?;
    let login = Login { database: name.context("no such database")?, ..standby.clone() };
    let files = login.ask(sql::PATIENCE, |client| {
        let sql = "SELECT pg_relation_filenode(oid) FROM pg_class WHERE relkind = 't'";
        let rows = client.query(sql, &[])?;
        Ok(rows.iter().filter_map(|row| row.get::<_, Option<u32>>(0)).collect::<Vec<_>>())
    })?;
    Ok(files.into_iter().map(|file| Table { database, file }).collect())
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
