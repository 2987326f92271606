//! Slots follow the nodes: each server has one for every standby that follows it, and none that is nobody's. A slot that
//! is forgotten keeps WAL until the disk is full.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use anyhow::Result;

use crate::{
    facts::{cluster::Cluster, node::Node},
    plan::{self, Below},
    postgres::standby,
    sql::{self, Login},
    sys::{fs, tree},
};

/// Makes and drops slots of pgbox on every server of a cluster that runs. A server that does not answer now is put right
/// by its next start, or by the next node that comes or goes.
pub fn settle(cluster: &Cluster) -> Result<()> {
    for node in unsettled(cluster) {
        // What it was asked in vain is asked again the next time.
        let _ = settle_one(&node.login()?, wanted(cluster, node).into_iter().collect());
    }
    Ok(())
}

/// The servers of a cluster that could be asked and have other slots than they should.
pub fn unsettled(cluster: &Cluster) -> impl Iterator<Item = &Node> {
    let could = |node: &&Node| node.can_answer();
    cluster.nodes.iter().filter(could).filter(|node| {
        let data = plan::data_below(&node.state.plan);
        data.and_then(on_disk).is_none_or(|slots| slots != wanted(cluster, node))
    })
}

fn wanted(cluster: &Cluster, node: &Node) -> BTreeSet<String> {
    cluster.followers(&node.name).map(|follower| standby::slot_name(follower.name.as_str())).collect()
}

/// The slots of pgbox in a data directory: each is a directory of its own. To look there costs a start nothing, and no
/// lock; a session only for this would be a tenth of it.
fn on_disk(data: Below) -> Option<BTreeSet<String>> {
    let entries = fs::open_dir_below(&data.top, &data.rest.join("pg_replslot")).and_then(tree::names).ok()?;
    let names = entries.into_iter().filter_map(|name| String::from_utf8(name).ok());
    Some(names.filter(|name| name.starts_with(standby::SLOT_PREFIX) && !name.ends_with(".tmp")).collect())
}

/// What there is to say of the slots that somebody else has made on a server and that the one in its place has not: nobody who
/// reads by them finds them there. Read from disk, as that server may be dead.
pub fn left_behind(old: &Node, new: &Node) -> Option<String> {
    let theirs = |node: &Node| plan::data_below(&node.state.plan).and_then(|data| others_on_disk(&data));
    let known = theirs(new).unwrap_or_default();
    let left = theirs(old)?.into_iter().filter(|(name, _)| !known.contains_key(name));
    let left: Vec<String> = left.map(|(name, kind)| format!("{name} ({kind})")).collect();
    let (names, old, new) = (left.join(", "), &old.name, &new.name);
    let text = || {
        format!(
            "`{new}` has none of these slots, which stay behind on `{old}`: {names}; who reads by one has to begin anew on `{new}`, and \
             `pgbox slots --drop SLOT --on {old}` ends what it keeps there"
        )
    };
    (!left.is_empty()).then(text)
}

/// The slots in a data directory that are not pgbox' own, and what they are for. Those that end with a session are none.
fn others_on_disk(data: &Below) -> Option<BTreeMap<String, &'static str>> {
    let dir = fs::open_dir_below(&data.top, &data.rest.join("pg_replslot")).ok()?;
    let names = tree::names(&dir).ok()?.into_iter().filter_map(|name| String::from_utf8(name).ok());
    let others = names.filter(|name| !name.starts_with(standby::SLOT_PREFIX) && !name.ends_with(".tmp"));
    let kind = |name: String| {
        let mut bytes = Vec::new();
        let file = fs::file_beneath(&dir, format!("{name}/state").as_bytes()).ok()?;
        file.take(standby::SLOT_HEAD as u64).read_to_end(&mut bytes).ok()?;
        Some((name, standby::slot_kind(&bytes)?))
    };
    Some(others.filter_map(kind).collect())
}

/// Makes the slots of these names, and drops all others of pgbox that nobody uses.
pub fn settle_one(server: &Login, wanted: Vec<String>) -> Result<()> {
    server.ask(sql::PATIENCE, move |client| {
        for slot in &wanted {
            client.batch_execute(&standby::create_slot(slot))?;
        }
        let there = client.query(standby::OWN_SLOTS, &[])?;
        for slot in there.iter().map(|row| row.get::<_, String>(0)).filter(|slot| !wanted.contains(slot)) {
            client.batch_execute(&standby::drop_slot(&slot))?;
        }
        Ok(())
    })
}
