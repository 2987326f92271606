//! Data of another user than the server's: shown as the server's, and left on disk as they are.
//!
//! The rule that surprises people: `postgres` is uid 999 in one image and 101 in another, and a volume knows only the number.

use std::path::PathBuf;

use super::{data_dir, mount_of};
use crate::{
    postgres::launch::Payload,
    state::Plan,
    step::{IdMap, InnerStep, Owner},
};

/// The data directory inside, also of a command that is to work on one: `postgres --single` refuses it as the server does.
pub fn owned_dir(plan: &Plan) -> Option<PathBuf> {
    let init = &plan.init;
    let named = || init.env.iter().find(|(name, _)| name == "PGDATA").map(|(_, value)| PathBuf::from(value));
    match init.payload {
        Payload::Postgres(_) => data_dir(init).map(PathBuf::from),
        Payload::Command { .. } => named(),
    }
}

/// Whether a server would refuse data of this user. Those of root are a new volume's.
pub fn is_foreign(plan: &Plan, uid: u32) -> bool {
    let own = plan.init.user.uid;
    own != 0 && uid != 0 && uid != own
}

/// Has the mount that holds the data directory show the files of `owner`, a foreign one, as those of the plan's user;
/// `None`, and it shows them as they are.
pub fn keep_owner(plan: &mut Plan, owner: Option<Owner>) {
    let shown = Owner { uid: plan.init.user.uid, gid: plan.init.user.gid };
    let Some(dir) = owned_dir(plan) else { return };
    let Some(holder) = mount_of(plan, &dir).map(|(_, target, _)| target.to_owned()) else { return };
    // A volume of its own for the log, say, has a mount of its own: with one of the two mapped, the server could not use both.
    let is_inside = |step: &InnerStep| matches!(step, InnerStep::Bind { target, .. } if *target != holder && target.starts_with(&dir));
    let is_whole = !plan.inner.iter().any(is_inside);
    let map = owner.filter(|_| is_whole).map(|disk| IdMap { disk, shown });
    for step in &mut plan.inner {
        match step {
            InnerStep::Bind { target, id_map, .. } if *target == holder => *id_map = map,
            _ => {}
        }
    }
}
