//! The C library beside data (docker-library/postgres#1099). An index on text is sorted by the collations of the C library
//! that wrote it; under another one Postgres looks in the wrong place and finds nothing, without an error.
//!
//! The rule that surprises people: a standby has every byte of the primary's indexes, so it must have the primary's C
//! library, too. Rows that are there are not found on it, and a promotion makes that everybody's.

use std::path::Path;

use anyhow::Result;

use super::Context;
use crate::{
    facts::node,
    hint::advise,
    plan::ImageFacts,
    spec::{Name, NodeSpec},
    state::{self, NodeState, VolumeState},
};

/// Says before a start that the data in a named volume was written under another C library than this one.
pub fn warn_of_data(context: &Context, node: &Name, data: Option<&Path>, now: Option<&str>) {
    let home = data.and_then(|data| context.root.volume_home(&context.lab, data));
    let known = home.and_then(|volume| state::load_volume(&volume).ok().flatten()?.libc);
    if let (Some(known), Some(now)) = (known.as_deref(), now)
        && known != now
    {
        let text = format!(
            "the data was written under {known}, this image has {now}: text may sort differently; \
             check with `pgbox psql {node} -c '\\l'` and REINDEX"
        );
        super::warn(context, &text);
    }
}

/// Keeps beside a named volume under what its data is written from now on, by one who may: nobody has taken its place.
pub fn remember(volume: &Path, state: &NodeState) -> Result<()> {
    state::save_volume(volume, &VolumeState::of(state, None))
}

/// The same for a node that has started again, perhaps after another one on the same volume.
pub fn remember_again(context: &Context, state: &NodeState) -> Result<()> {
    let home = context.root.home_of(state);
    let Some(volume) = home.filter(|_| state.libc.is_some()) else { return Ok(()) };
    match state::load_volume(&volume)? {
        Some(known) if known.libc == state.libc && known.image == state.image => Ok(()),
        _ => remember(&volume, state),
    }
}

/// Refuses a standby from an image whose Postgres or C library can't work with the data of the server that it follows.
/// What is known of that one was recorded when it was made.
pub fn check_upstream(context: &Context, spec: &NodeSpec, image: &ImageFacts, force: bool) -> Result<()> {
    let (Some(follow), Some(postgres)) = (&spec.follow, &image.postgres) else { return Ok(()) };
    let of = node::find(&context.root, &spec.lab, &follow.of)?.state;
    let (name, of_name) = (&spec.node, &follow.of);
    let same = format!("give it the image of `{of_name}`");
    if let Some(theirs) = of.postgres().map(|theirs| theirs.major).filter(|theirs| *theirs != postgres.major)
    {
        let text = format!(
            "`{name}` would be PostgreSQL {}, and `{of_name}` is PostgreSQL {theirs}: streaming needs the same version",
            postgres.major
        );
        return Err(advise(text, same));
    }
    let Some(text) = difference(name, postgres.libc.as_deref(), of_name, of.libc.as_deref()) else {
        return Ok(());
    };
    if !force {
        return Err(advise(
            text,
            format!("{same}; or take the risk with `pgbox replica --force`, and REINDEX what sorts text"),
        ));
    }
    super::warn(context, &text);
    Ok(())
}

/// Says that a node that comes back has another C library than the server that it is to follow.
pub fn warn_of_upstream(context: &Context, node: &NodeState, of: &NodeState) {
    let names = (&node.spec.node, &of.spec.node);
    if let Some(text) = difference(names.0, node.libc.as_deref(), names.1, of.libc.as_deref()) {
        super::warn(context, &text);
    }
}

fn difference(node: &Name, libc: Option<&str>, of: &Name, theirs: Option<&str>) -> Option<String> {
    let (libc, theirs) = (libc?, theirs?);
    (libc != theirs).then(|| {
        format!(
            "`{node}` has {libc}, and the data of `{of}` is sorted by {theirs}: on `{node}` an index on text may miss rows \
             that are there"
        )
    })
}
