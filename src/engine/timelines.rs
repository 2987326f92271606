//! Numbers of timelines that are taken. PostgreSQL manual 26.3.5.
//!
//! The rule that surprises people: a standby that is promoted takes the next number that *it* has not heard of. If the
//! primary that has just died was promoted a moment ago, a standby that never reached it takes the same number for another
//! history. pg_rewind then finds both "on the same timeline" and leaves the data as it is, with rows of the one history
//! under the log of the other. So the standby is told of all numbers that the lab has seen, by a history file that says
//! nothing else: a timeline that is no child of its own is never followed, but its number is taken.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    facts::{
        node::{self, Node},
        rival,
        wal::Place,
    },
    hint::advise,
    plan,
    state::Root,
    sys::{fs, mount::Jail, process},
};

/// More promotions than a cluster sees while one of its standbys hears of none.
const MANY: u32 = 1000;

/// Lets a standby, which is about to be promoted, know which timelines there are on the disks of its cluster.
///
/// # Errors
/// As [`unheard_of`], and when it can't be told.
pub fn take(root: &Root, standby: &Node) -> Result<()> {
    let unheard_of = unheard_of(root, standby)?;
    let wal = log_inside(standby)?;
    // It looks for one after the other, and stops where there is none.
    unheard_of.into_iter().try_for_each(|timeline| take_one(&wal, timeline))
}

/// The timelines that a standby has not heard of.
///
/// # Errors
/// When there are more than there can be. Each is the name of a file in a directory that belongs to a container.
pub fn unheard_of(root: &Root, standby: &Node) -> Result<Vec<u32>> {
    // Without its log nobody can tell it, and somebody has to be the primary.
    let Ok((own, _)) = Place::of(&standby.state).and_then(Place::timeline) else { return Ok(Vec::new()) };
    let mut newest = own;
    for (who, timeline) in there_are(root, standby)? {
        if timeline > own.saturating_add(MANY) {
            return Err(advise(
                format!(
                    "{who} has a file of timeline {timeline} in its pg_wal, and `{}` is on timeline {own}: that many promotions \
                     there were not",
                    standby.name
                ),
                format!("take {timeline:08X}* away from there"),
            ));
        }
        newest = newest.max(timeline);
    }
    Ok((own..=newest).skip(1).collect())
}

/// The timelines that there are on the disks of a cluster, and whose they are: also of nodes that are gone, and have left data.
fn there_are(root: &Root, standby: &Node) -> Result<Vec<(String, u32)>> {
    let nodes = node::all(root, &standby.lab)?;
    let timeline = |place: Place| Some(place.timeline().ok()?.0);
    // Another cluster's may have the same numbers.
    let kin = nodes.iter().filter(|node| node.is_kin_of(standby) == Some(true));
    let of_nodes =
        kin.filter_map(|node| Some((format!("`{}`", node.name), timeline(Place::of(&node.state).ok()?)?)));
    let left = rival::unused(root, &standby.lab, &nodes, standby.origin())?;
    let of_volumes =
        left.iter().filter_map(|one| Some((format!("the volume `{}`", one.volume), timeline(one.place())?)));
    Ok(of_nodes.chain(of_volumes).collect())
}

/// The log of a running server, by way of its own mounts. In a log that is in the overlay, a file that was made from outside
/// need not be seen (the kernel remembers which names there are not), and what is mounted read-only stays so. No link leads
/// further than the node itself gets.
fn log_inside(node: &Node) -> Result<OwnedFd> {
    let pidfd = node.running()?;
    let init = node.state.init.with_context(|| format!("`{}` has no pid 1", node.name))?;
    let data = plan::data_dir(&node.state.plan.init).context("it has no data directory")?;
    let root = Jail::open(&PathBuf::from(format!("/proc/{}/root", init.pid)))?;
    // If it is alive now, the number was still its own when the path above was resolved.
    ensure!(!process::has_ended(pidfd.as_fd(), Duration::ZERO)?, "`{}` has ended", node.name);
    let wal = data.join("pg_wal");
    root.resolve(&wal).with_context(|| format!("open {} in `{}`", wal.display(), node.name))
}

/// Makes a history file that has no history, unless there is one. The server reads it as its own user.
fn take_one(wal: &OwnedFd, timeline: u32) -> Result<()> {
    let name = format!("{timeline:08X}.history");
    let make = || -> io::Result<()> {
        // Under its name only when the server can read it: one that can't ends. What is left of a killed command, the
        // server removes at its next start, as it does with its own (xlog.c, RemoveTempXlogFiles).
        let draft = format!("xlogtemp.{}", std::process::id());
        let file = fs::create_file(wal, draft.as_bytes(), 0o600)?;
        let owner = fs::fstat(wal)?;
        let named = fs::fchown(&file, owner.uid, owner.gid)
            .and_then(|()| fs::linkat(wal, draft.as_bytes(), wal, name.as_bytes()));
        fs::unlinkat(wal, draft.as_bytes())?;
        match named {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    make().with_context(|| format!("make {name}"))
}
