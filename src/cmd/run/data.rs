//! What a new node finds where its data will be: data that are not for it are refused before anything is made, and with
//! data that it goes on with it is not silent.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;

use super::How;

use crate::{
    cmd::{self, Context},
    engine::holder,
    facts::{
        self,
        lab::content,
        node,
        rival::{self, What},
        wal::Place,
    },
    hint::advise,
    plan::{self, changes::Data},
    postgres::{contract, standby::SIGNAL, version},
    spec::{Follow, Name, NodeSpec},
    state::{self, NodeState, Plan, Role},
    step::InnerStep,
};

/// Refuses a data directory that this image can't serve, before anything is made.
pub fn check(
    context: &Context,
    spec: &NodeSpec,
    facts: &plan::Facts,
    plan: &Plan,
    data: Option<&Path>,
    how: &How,
) -> Result<()> {
    let (Some(data), Some(postgres)) = (data, &facts.image.postgres) else { return Ok(()) };
    if data.exists() && !data.is_dir() {
        return Err(advise(
            format!("{} can't be the data directory: it is no directory", data.display()),
            "mount a directory there with -v, or leave -v out and pgbox keeps a volume",
        ));
    }
    let holders =
        plan.inner.iter().filter(|step| matches!(step, InnerStep::Bind { source, .. } if source == data));
    if holders.count() > 1 {
        return Err(advise(
            format!("the volume of {} would be mounted twice: it holds the data directory", data.display()),
            "give the other volume another name than the node's",
        ));
    }
    if let Some((source, target, true)) = plan::data_dir(&plan.init).and_then(|dir| plan::mount_of(plan, dir))
    {
        let (source, target) = (source.display(), target.display());
        return Err(advise(
            format!("the data directory would be read-only: -v {source}:{target}:ro"),
            format!("leave :ro out: -v {source}:{target}"),
        ));
    }
    holder::refuse(&facts.root, data, None)?;
    version::check(postgres.major, facts::data_version(data)?, &data.display().to_string())?;
    // What they were is known, and they become what they are to be.
    if how.renew.is_some() {
        return Ok(());
    }
    check_loser(context, spec, data)?;
    check_role(context, spec, data)?;
    check_rival(context, spec, data)
}

/// Refuses data of the cluster of another primary of the lab, wherever they lie: an old primary's, of which there is no note, or
/// a copy of the other one's. Only what is known counts here, unlike in `facts::rival`: a server in its initdb has no origin yet,
/// and keeps nobody from his data.
fn check_rival(context: &Context, spec: &NodeSpec, data: &Path) -> Result<()> {
    let Ok(own) = Place::alone(data).control() else { return Ok(()) };
    let is_rival = |node: &node::Node| {
        let is_other = node.state.data.as_deref().is_some_and(|theirs| !holder::is_same(theirs, data));
        is_other
            && node.state.role() == Role::Primary
            && Place::of(&node.state).and_then(Place::control).is_ok_and(|c| c.system == own.system)
    };
    let rival = node::all(&context.root, &context.lab)?.into_iter().find(is_rival);
    let (Some(rival), None) = (rival, &spec.follow) else { return Ok(()) };
    Err(advise(
        format!(
            "the data in {} are of the same cluster as the primary `{}`: two primaries would grow apart",
            data.display(),
            rival.name
        ),
        format!(
            "on an empty volume `{0}` can be its standby: `pgbox replica {0} --of {1}`; in another lab it is a server of its own: \
             `pgbox --lab NAME run`",
            spec.node, rival.name
        ),
    ))
}

/// Refuses the data of an old primary in whose place another one was promoted: with them it would come back.
fn check_loser(context: &Context, spec: &NodeSpec, data: &Path) -> Result<()> {
    let of_node = |(name, state): (Name, NodeState)| match state.role() {
        Role::Superseded { by } if state.data.as_deref() == Some(data) => {
            Some((by, format!("`pgbox rejoin {name}`")))
        }
        _ => None,
    };
    let of_volume = || {
        // A standby is refused in words of its own, by `check_role`.
        if spec.follow.is_some() {
            return None;
        }
        let volume = context.root.volume_home(&context.lab, data)?;
        let by = state::load_volume(&volume).ok()??.superseded_by?;
        let volume = volume.file_name()?.to_string_lossy().into_owned();
        Some((
            by.clone(),
            format!(
                "make a standby from a new base backup: `pgbox volume rm {volume}`, then `pgbox replica`"
            ),
        ))
    };
    let nodes = facts::nodes(&context.root, &context.lab)?;
    let Some((by, way_out)) = nodes.into_iter().find_map(of_node).or_else(of_volume) else { return Ok(()) };
    let nodes = node::all(&context.root, &context.lab)?;
    let rivals = rival::of_data(&context.root, &context.lab, &nodes, data)?;
    let way_out = match facts::load(&context.root, &context.lab, &by)? {
        Some(_) => way_out,
        None if facts::lab::has_data(&context.root, &context.lab, &by) => format!(
            "bring the lab up as it was: `pgbox up`; or give up what `{by}` has: `pgbox volume rm {by}`"
        ),
        // Others may have taken the place of that one since. Without any, these data may be all that is left.
        None => match rivals.first() {
            Some(rival) if rival.what == What::Primary => way_out,
            Some(rival) => rival.way_out(),
            None => return Ok(()),
        },
    };
    Err(advise(
        format!(
            "the data in {} are an old primary's, and `{by}` was promoted in its place: two primaries would grow apart",
            data.display()
        ),
        way_out,
    ))
}

/// `postgres --single` is a server too, and no interlock of its own reaches into another pid namespace.
pub fn check_single_user(facts: &plan::Facts, spec: &NodeSpec, plan: &Plan) -> Result<()> {
    if !spec.command().is_some_and(|command| command.iter().any(|word| word == "--single")) {
        return Ok(());
    }
    plan.inner.iter().try_for_each(|step| match step {
        InnerStep::Bind { source, .. } => holder::refuse(&facts.root, source, None),
        _ => Ok(()),
    })
}

/// Refuses data of another role, or of another cluster than the one that is to be followed: a standby would wait for WAL that
/// never comes.
fn check_role(context: &Context, spec: &NodeSpec, data: &Path) -> Result<()> {
    let name = &spec.node;
    let what = match (&spec.follow, content(data)) {
        (_, Data::None) | (None, Data::Primary | Data::Superseded(_)) => return Ok(()),
        (None, Data::Standby) => format!("a standby's, and `{name}` would be a primary"),
        (Some(_), Data::Primary | Data::Superseded(_)) => {
            "a primary's: it was promoted, or never a standby's".to_owned()
        }
        (Some(follow), Data::Standby) if is_strange(context, follow, data)? => {
            format!("of another cluster than `{}`", follow.of)
        }
        (Some(_), Data::Standby) => return Ok(()),
    };
    let removal = volume_of(context, data).map(|volume| format!("`pgbox volume rm {volume}` removes them"));
    let removal = removal.unwrap_or_else(|| "give it an empty directory".to_owned());
    let way_out = match &spec.follow {
        Some(_) => format!("{removal}; then a base backup is made"),
        None => format!("{}; {removal}", going_on(context, name, data)?),
    };
    Err(advise(format!("the data in {} are {what}", data.display()), way_out))
}

/// How the data of a standby are gone on with.
fn going_on(context: &Context, name: &Name, data: &Path) -> Result<String> {
    let origin = |place: Place| Some(place.control().ok()?.system);
    let is_kin = |place: Place| origin(place).is_some_and(|other| origin(Place::alone(data)) == Some(other));
    let mut nodes = node::all(&context.root, &context.lab)?;
    nodes.retain(|node| Place::of(&node.state).is_ok_and(is_kin));
    if let Some(of) = nodes.iter().find(|node| node.state.role() == Role::Primary).or(nodes.first()) {
        let first = match of.state.role() {
            Role::Primary if of.pidfd.is_none() => format!("`pgbox start {}`, then ", of.name),
            Role::Primary => String::new(),
            _ => format!("`pgbox promote {}`, then ", of.name),
        };
        return Ok(format!("{first}`pgbox replica {name} --of {}` goes on with them", of.name));
    }
    for volume in context.root.volumes(&context.lab)? {
        let other = context.root.volume_dir(&context.lab, &volume).join("data");
        if content(&other) == Data::Primary && is_kin(Place::alone(&other)) {
            return Ok(format!(
                "`pgbox run {volume}` brings the primary back that has left the volume `{volume}`; then \
                 `pgbox replica {name} --of {volume}` goes on with them"
            ));
        }
    }
    Ok(format!(
        "nothing is left that they could follow: without {}/{SIGNAL} they are a primary's",
        data.display()
    ))
}

/// Whether data did not come from the cluster of the node that is followed. What can't be read here the server finds out.
fn is_strange(context: &Context, follow: &Follow, data: &Path) -> Result<bool> {
    let of = node::find(&context.root, &context.lab, &follow.of)?;
    let system = |place: Place| place.control().map(|control| control.system);
    let theirs = Place::of(&of.state).and_then(system);
    Ok(matches!((system(Place::alone(data)), theirs), (Ok(own), Ok(theirs)) if own != theirs))
}

/// The named volume of a data directory, if it is one's.
fn volume_of(context: &Context, data: &Path) -> Option<String> {
    let home = context.root.volume_home(&context.lab, data)?;
    Some(home.file_name()?.to_string_lossy().into_owned())
}

/// Says that a node goes on with what an earlier one has left: most often that is meant, and sometimes forgotten.
pub fn note(context: &Context, spec: &NodeSpec, data: &Path) {
    note_of_variables(context, spec, data);
    let Some(volume) = volume_of(context, data).filter(|_| content(data) != Data::None) else { return };
    let version = facts::data_version(data).ok().flatten().map(|version| format!("PostgreSQL {version}"));
    let age = Place::alone(data).control().ok().map(|control| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("last written {} ago", ago(now.saturating_sub(control.written.max(0) as u64)))
    });
    let known: Vec<String> = version.into_iter().chain(age).collect();
    let name = &spec.node;
    let text = format!(
        "`{name}` goes on with the data of the volume `{volume}` ({}); `pgbox rm -f -v {name}` removes both",
        known.join(", ")
    );
    cmd::note(context, &text);
}

/// Says which of the variables came too late.
fn note_of_variables(context: &Context, spec: &NodeSpec, data: &Path) {
    let is_given = |name: &&str| spec.env.iter().any(|(given, _)| given == name);
    let late: Vec<&str> = contract::WHEN_MADE.into_iter().filter(is_given).collect();
    if content(data) == Data::None || spec.follow.is_some() || late.is_empty() {
        return;
    }
    let (counts, are) = if late.len() == 1 { ("counts", "is") } else { ("count", "are") };
    let (late, name) = (late.join(", "), &spec.node);
    cmd::note(context, &format!("{late} {counts} when the data of `{name}` are made, and {are} as then"));
}

/// A time in its largest unit.
fn ago(seconds: u64) -> String {
    let unit = [86_400, 3_600, 60, 1].into_iter().find(|unit| seconds >= *unit).unwrap_or(1);
    humantime::format_duration(Duration::from_secs(seconds / unit * unit)).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_age_is_one_number() {
        assert_eq!([0, 59, 3_599, 7_300, 200_000].map(super::ago), ["0s", "59s", "59m", "2h", "2days"]);
    }
}
