//! Whose the data directory of a plan is on disk.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use crate::{
    plan::{self, Below},
    state::Plan,
    step::Owner,
    sys::{
        fs::{file_beneath, open_dir_below},
        mount,
    },
};

/// The owner on disk of the data directory of a plan, if that is a foreign one and one map could show all of it as another's.
/// `None` as well where it is not there yet, has files of several owners (a chown that was interrupted), or spans several mounts.
pub fn foreign(plan: &Plan) -> Option<Owner> {
    let dir = plan::owned_dir(plan)?;
    look(plan, &plan::found_below(plan, &dir)?).ok().flatten()
}

fn look(plan: &Plan, below: &Below) -> io::Result<Option<Owner>> {
    let dir = File::from(open_dir_below(&below.top, &below.rest)?);
    let meta = dir.metadata()?;
    if !plan::is_foreign(plan, meta.uid()) {
        return Ok(None);
    }
    let differs = match file_beneath(dir.as_fd(), b"PG_VERSION") {
        Ok(file) => file.metadata()?.uid() != meta.uid(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if differs || mount::has_mounts_below(&below.top)? {
        return Ok(None);
    }
    Ok(Some(Owner { uid: meta.uid(), gid: meta.gid() }))
}
