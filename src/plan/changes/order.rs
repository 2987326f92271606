//! The order of what is to be done. Every place in it has a reason.

use super::{Action, Data};
use crate::{lab::wanted::WantedNode, spec::Name};

/// Actions, sorted into the phases of `up`.
#[derive(Debug, Default)]
pub struct Steps {
    /// What standbys that run must have before their primary gets it, or starts with it: raised limits of hot standby.
    pub early: Vec<Action>,
    /// The same in a new container.
    pub early_remakes: Vec<Action>,
    /// Then primaries are made and started: everything else follows one.
    pub primaries: Vec<Action>,
    /// What concerns primaries that run.
    pub middle: Vec<Action>,
    /// Standbys come when their primary is as it will be: one made with less than its primary has could not replay.
    pub standbys: Vec<Action>,
    /// What standbys may have only after their primary: lowered limits of hot standby.
    pub late: Vec<Action>,
    /// Restarts of whole nodes: standbys before the primary, so that there is one to switch over to if it goes wrong.
    pub remakes: Vec<Action>,
    pub primary_remakes: Vec<Action>,
}

impl Steps {
    pub fn create(&mut self, node: WantedNode, on: Data) {
        let phase = self.coming(node.spec.follow.is_some());
        phase.push(Action::Create { node: Box::new(node), on });
    }

    pub fn clear(&mut self, node: &Name, is_standby: bool) {
        self.coming(is_standby).push(Action::Clear { node: node.clone() });
    }

    /// Where a node is that is made or started.
    pub fn coming(&mut self, is_standby: bool) -> &mut Vec<Action> {
        if is_standby { &mut self.standbys } else { &mut self.primaries }
    }

    /// Where changes of a node that runs are.
    pub fn running(&mut self, is_standby: bool) -> &mut Vec<Action> {
        if is_standby { &mut self.early } else { &mut self.middle }
    }

    pub fn remaking(&mut self, is_standby: bool) -> &mut Vec<Action> {
        if is_standby { &mut self.remakes } else { &mut self.primary_remakes }
    }

    pub fn in_order(self) -> Vec<Action> {
        let phases = [
            self.early,
            self.early_remakes,
            self.primaries,
            self.middle,
            self.standbys,
            self.late,
            self.remakes,
            self.primary_remakes,
        ];
        phases.concat()
    }
}
