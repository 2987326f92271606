//! The read-only endpoint, while somebody watches: a standby that ends gets no new reads, and gets them again when it is
//! back. Without a guard that waits for the next command.

use anyhow::Result;

use super::{
    event::Event,
    watch::{Guard, Watched},
};
use crate::{engine::endpoint, facts::cluster::Cluster};

impl Guard<'_> {
    /// Lets reads go to the standbys that answer now, unless somebody else is at work on the lab: then the next look will.
    pub fn lead_reads(&mut self, cluster: &Cluster) -> Result<()> {
        let Watched { root, lab, .. } = self.watched;
        if !endpoint::is_astray(root, lab, cluster)? {
            self.astray = None;
            return Ok(());
        }
        let Some(_lock) = root.try_lock(lab)? else { return Ok(()) };
        match endpoint::settle(root, lab, None) {
            Ok(()) => (self.tell)(&Event::Reads { standbys: endpoint::readers(cluster) }),
            Err(error) => {
                let what = format!("the read-only endpoint does not follow its standbys: {error:#}");
                match self.astray.replace(what.clone()) {
                    Some(told) if told == what => Ok(()),
                    _ => (self.tell)(&Event::Warning { what }),
                }
            }
        }
    }
}
