//! The read-only endpoint, while somebody watches: a standby that ends gets no new reads, and gets them again when it is
//! back. Without a guard that waits for the next command.

use anyhow::Result;

use super::{
    event::Event,
    watch::{Guard, Watched},
};
use crate::{engine::endpoint, facts::cluster::Cluster, spec::Name};

impl Guard<'_> {
    /// Lets reads go to the standbys that answer now, unless somebody else is at work on the lab: then the next look will.
    /// What keeps it from that is told once, and no reason to end.
    pub fn lead_reads(&mut self, cluster: &Cluster) {
        let event = match self.lead(cluster) {
            Ok(None) => {
                self.astray = None;
                return;
            }
            Ok(Some(standbys)) => Event::Reads { standbys },
            Err(error) => {
                let what = format!("the read-only endpoint does not follow its standbys: {error:#}");
                if self.astray.replace(what.clone()).is_some_and(|told| told == what) {
                    return;
                }
                Event::Warning { what }
            }
        };
        (self.tell)(&event);
    }

    /// Whom reads go to from now on, if that is new.
    fn lead(&self, cluster: &Cluster) -> Result<Option<Vec<Name>>> {
        let Watched { root, lab, .. } = self.watched;
        let Some(before) = endpoint::astray(root, lab, cluster)? else { return Ok(None) };
        let Some(_lock) = root.try_lock(lab)? else { return Ok(None) };
        endpoint::settle(root, lab, None)?;
        let now = root.load_lab(lab)?.map(|state| state.leads.ro);
        Ok(now.filter(|now| *now != before))
    }
}
