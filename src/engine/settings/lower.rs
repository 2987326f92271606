//! A standby that had to start with more of a parameter than it was told to (see [`parameter::too_low`]): once it has replayed
//! that its primary has less, it restarts with less.
//!
//! [`parameter::too_low`]: crate::postgres::parameter::too_low

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{ask, order};
use crate::{
    engine::{goal, restart},
    facts::{
        cluster,
        node::{self, Node},
    },
    postgres::parameter::Parameter,
    state::Root,
};

/// What has become of the parameters of which a standby has more.
pub enum Lowered {
    /// There are none.
    Nothing,
    /// They are lowered later; when, and by what.
    Later(String),
    /// The server was restarted, and has these.
    Now(Vec<Parameter>),
}

/// After the start of a node.
///
/// # Errors
/// Why it goes on with more, which is no failure.
pub fn after_start(root: &Root, node: &Node) -> Result<Lowered> {
    let (name, raised) = (&node.name, &node.status.raised);
    if node.pidfd.is_none() || raised.is_empty() {
        return Ok(Lowered::Nothing);
    }
    let cluster = cluster::of(root, &node.lab, name)?;
    let known = ask(node, raised)?;
    let with = known.iter().map(|p| format!("{}={}", p.name, p.setting)).collect::<Vec<_>>().join(", ");
    let goes_on = || format!("`{name}` goes by {with}, as its primary did");
    let has = ask(cluster.head(), raised).with_context(goes_on)?;
    for Parameter { name: parameter, setting, .. } in &has {
        let told = order::planned(node, None, parameter, &known)?;
        ensure!(
            told >= setting.parse()?,
            "`{name}` goes by {with}, as its primary does: with {parameter}={told} it could not replay"
        );
    }
    if node.state.applies_late() {
        let when = "less when it has replayed the change";
        return Ok(Lowered::Later(format!("{}; {when}: `pgbox restart {name}` then", goes_on())));
    }
    goal::wait_until_replayed(root, &node.lab, name, goal::write_lsn(cluster.head())?)
        .with_context(goes_on)?;
    restart::in_place(node, Duration::from_secs(node.state.spec.stop_timeout))?;
    ask(&node::find(root, &node.lab, name)?, raised).map(Lowered::Now)
}
