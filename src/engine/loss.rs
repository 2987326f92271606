//! What is lost when a standby takes the place of a primary, read from the primary's own disk.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{sync, takeover};
use crate::{
    facts::{
        cluster::Cluster,
        conf,
        history::{self, Standing, amount, counted},
        node::Node,
        stray,
        wal::Place,
    },
    postgres::{
        lsn::Lsn,
        wal::{Scan, Table},
    },
    spec::{Name, SyncRule},
    sql::{self, Login},
    state::Role,
};

/// How long a stream that is still open may take to bring what is on its way.
const ARRIVAL: Duration = Duration::from_millis(500);

/// The values of `synchronous_commit` with which a commit waits for standbys.
const WAITS: [&str; 6] = ["on", "true", "yes", "1", "remote_write", "remote_apply"];

/// What the old primary has and the standby has not.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// Up to here the standby has everything.
    pub received: Lsn,
    /// Where the primary's WAL ends.
    pub end: Lsn,
    /// Transactions that were committed in between, or prepared to, and that somebody would miss.
    pub commits: u64,
    /// Those among them that are only prepared (PREPARE TRANSACTION).
    pub prepared: u64,
    /// The rows that they changed; not counted where nobody was told of them.
    pub rows: u64,
    /// Whether there may be more: the WAL that is left begins later, or in the middle of a transaction.
    pub at_least: bool,
    /// Whether every commit had to be on the standby before anybody was told of it.
    pub synchronous: bool,
    /// Whether commits waited for nobody: then somebody was told of each of them.
    pub asynchronous: bool,
}

impl Loss {
    /// How many of the transactions somebody may have been told of.
    pub fn acknowledged(&self) -> u64 {
        if self.synchronous { 0 } else { self.commits }
    }

    /// `at least 1 transaction with 2 rows`, or another word for transaction.
    pub fn amount(&self, what: &str) -> String {
        let least = if self.at_least { "at least " } else { "" };
        format!("{least}{}", amount(self.commits, self.prepared, what, self.rows))
    }

    /// In words.
    pub fn told(&self, head: &Name, target: &Name) -> String {
        let Self { received, end, commits, synchronous, .. } = self;
        let is = if *commits == 1 { "is" } else { "are" };
        match (commits, synchronous) {
            (0, _) => {
                format!(
                    "nothing is lost: `{target}` has every transaction that `{head}` has on its disk ({received} of {end})"
                )
            }
            (_, true) => format!(
                "nothing acknowledged is lost: {} of `{head}` after {received} still waited for `{target}`",
                counted(*commits, "transaction")
            ),
            (_, false) => {
                format!("{} {is} lost: `{head}` committed that after {received}", self.amount("transaction"))
            }
        }
    }
}

/// Compares a primary that is out of action with a standby that is to take its place.
///
/// # Errors
/// When the primary's disk can't be read, the standby can't be asked, or has another history.
pub fn assess(cluster: &Cluster, head: &Node, target: &Node) -> Result<Loss> {
    let old = Place::of(&head.state)?;
    let server = target.login()?;
    ensure!(!target.frozen, "`{}` is frozen", target.name);
    if stray::has_left(target) {
        return beside(head, target, &server);
    }
    let begun = Instant::now();
    loop {
        let (receives, received) = takeover::reception(target)?;
        let is_over = !receives || begun.elapsed() > ARRIVAL;
        same_history(head, target, received)?;
        // What the standby lacks was then acknowledged to nobody, whether it still arrives or not: there is nothing to wait
        // for, and nothing to look up.
        let synchronous = is_synchronous(cluster, head, target, received);
        let scan = if synchronous { old.unreceived(received)? } else { old.lost(received)? };
        let commits = scan.missed();
        if commits == 0 || is_over || synchronous {
            let rows = if commits == 0 || synchronous { 0 } else { rows(&scan, &server) };
            let at_least = !scan.exact;
            // That there are no commits in what is left says nothing of what is gone.
            ensure!(
                commits > 0 || synchronous || !at_least,
                "the WAL of `{}` between {received} and {} is gone",
                head.name,
                scan.since
            );
            let asynchronous = is_asynchronous(head);
            let Scan { end, prepared, .. } = scan;
            return Ok(Loss { received, end, commits, prepared, rows, at_least, synchronous, asynchronous });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The same for a standby that was promoted by somebody else, maybe long ago: it has gone its own way, and may have rows that the
/// primary lacks.
fn beside(head: &Node, target: &Node, server: &Login) -> Result<Loss> {
    let (old, new) = (Place::of(&head.state)?, Place::of(&target.state)?);
    let (received, scan) = match history::compare(old, new)? {
        Standing::Apart { parting, scan } => (parting.since, scan),
        Standing::Within => {
            let scan = old.lost(old.lost(old.control()?.redo)?.end)?;
            (scan.end, scan)
        }
    };
    Ok(Loss {
        received,
        end: scan.end,
        commits: scan.missed(),
        prepared: scan.prepared,
        rows: rows(&scan, server),
        at_least: !scan.exact,
        synchronous: false,
        asynchronous: is_asynchronous(head),
    })
}

fn is_asynchronous(head: &Node) -> bool {
    sync::told(&head.state).is_empty() && !is_altered(head)
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
    // From there on it was so; before, others may have been asked, or nobody.
    let Some(since) = head.state.sync_since else { return false };
    if !rule.names.contains(&target.name) || received < since || is_altered(head) {
        return false;
    }
    let others =
        cluster.nodes.iter().filter(|node| node.name != target.name && rule.names.contains(&node.name));
    let others: Vec<Lsn> = others.filter_map(|node| place(head, node)).collect();
    rule.is_covered(received, &others) && !is_waived(target)
}

/// Whether some role or database may be one whose commits wait for nobody (ALTER ROLE, ALTER DATABASE). The standby has that
/// catalog, as far as it has applied it.
fn is_waived(standby: &Node) -> bool {
    let is_late = standby.state.applies_late();
    let asked = || {
        standby.login()?.ask(sql::PATIENCE, |client| {
            let sql = "SELECT EXISTS (SELECT FROM pg_db_role_setting, unnest(setconfig) AS line \
                       WHERE line LIKE 'synchronous_commit=%' \
                       AND lower(split_part(line, '=', 2)) <> ALL ($1))";
            Ok(client.query_one(sql, &[&&WAITS[..]])?.get(0))
        })
    };
    is_late || asked().unwrap_or(true)
}

/// Whether the server's files may say something else than it was told: by ALTER SYSTEM, or in a postgresql.conf.
fn is_altered(head: &Node) -> bool {
    let altered = || -> Result<bool> {
        let place = Place::of(&head.state)?;
        let by_sql = place.altered()?;
        let said = conf::said(place)?;
        let is_other = said.get(sync::SETTING).map_or("", String::as_str) != sync::told(&head.state);
        let waits = |value: &String| WAITS.contains(&value.to_ascii_lowercase().as_str());
        Ok([sync::SETTING, sync::COMMIT].iter().any(|name| by_sql.contains(name))
            || is_other
            || !said.get(sync::COMMIT).is_none_or(waits))
    };
    altered().unwrap_or(true)
}

/// How far a standby is in the primary's own history. `None` if it can't be asked, or has gone another way.
fn place(head: &Node, node: &Node) -> Option<Lsn> {
    // Who is frozen would only keep us waiting.
    if !node.can_answer() {
        return None;
    }
    let received = takeover::received(node).ok()?;
    same_history(head, node, received).ok()?;
    Some(received)
}

/// The standby that has received most. Of equals, one that commits wait for, that applies at once, and that follows the
/// primary itself.
pub fn most_advanced(cluster: &Cluster, head: &Node) -> Option<Name> {
    let rule = sync::told(&head.state).parse::<SyncRule>().map_or(Vec::new(), |rule| rule.names);
    let standbys = cluster.nodes.iter().filter(|node| node.name != head.name);
    let worth = |node: &Node| {
        let Role::Standby { of } = node.state.role() else { return None };
        let at_once = node.state.spec.follow.is_some() && !node.state.applies_late();
        let first = Reverse(node.name.clone());
        Some((place(head, node)?, rule.contains(&node.name), at_once, of == head.name, first))
    };
    standbys.filter_map(worth).max().map(|(.., Reverse(name))| name)
}

/// Whether a standby has more of the old timeline than the one that was promoted, so that it can't follow it. Mostly
/// it was received in the last moment, from a primary that had no time left to hear of it.
pub fn has_more(promoted: &Node, standby: &Node) -> bool {
    let asked = standby.can_answer();
    asked
        && takeover::received(standby)
            .is_ok_and(|received| same_history(promoted, standby, received).is_err())
}

/// Makes sure that what a standby has received is a part of what the primary has written. After a failover with a loss, one
/// that was away may be further on a timeline that was left: its position is greater, and it has other rows there.
fn same_history(head: &Node, standby: &Node, received: Lsn) -> Result<()> {
    let left = history::left_before(Place::of(&standby.state)?, received, Place::of(&head.state)?)?;
    match left {
        None => Ok(()),
        Some(since) => bail!(
            "`{}` has gone another way: of what it has received up to {received}, nothing after {since} is a part of the \
             history of `{}`",
            standby.name,
            head.name
        ),
    }
}
