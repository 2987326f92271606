//! Slots follow the nodes: each server has one for every standby that follows it, and none that is nobody's. A slot that
//! is forgotten keeps WAL until the disk is full.

use anyhow::Result;

use crate::{
    facts::cluster::Cluster,
    postgres::standby,
    sql::{self, Login},
};

/// Makes and drops slots of pgbox on every server of a cluster that runs. A server that does not answer now is put right
/// by its next start.
pub fn settle(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes.iter().filter(|node| node.pidfd.is_some()) {
        let wanted = cluster.followers(&node.name).map(|follower| standby::slot_name(follower.name.as_str()));
        // What it was asked in vain is asked again the next time.
        let _ = settle_one(&node.login()?, wanted.collect());
    }
    Ok(())
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
