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
    engine::{holder, orders},
    facts::{
        self, cluster, history, node,
        rival::{self, Unused, What},
        volume::{Content, content, content_of},
        wal::{Place, are_kin},
    },
    hint::advise,
    plan,
    postgres::{contract, launch::RenewHow, standby::SIGNAL, version},
    spec::{Follow, Name, NodeSpec},
    state::{self, NodeState, Plan, Role},
    step::InnerStep,
};

/// Refuses a data directory that this image can't serve, before anything is made. Data that have to become a standby's first, and
/// may, do so by the plan.
pub fn check(
    context: &Context,
    spec: &NodeSpec,
    facts: &plan::Facts,
    plan: &mut Plan,
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
    let renew = check_role(context, spec, data, Place::planned(data, plan), how.force)?;
    check_rival(context, spec, data)?;
    if let Some(how) = renew {
        plan::follow::renew(plan, orders::renewal(how));
    }
    Ok(())
}

/// Refuses data of the cluster of another primary of the lab, wherever they lie: an old primary's, of which there is no note, or
/// a copy of the other one's. Only what is known counts here, unlike in `facts::rival`: a server in its initdb has no origin yet,
/// and keeps nobody from his data.
fn check_rival(context: &Context, spec: &NodeSpec, data: &Path) -> Result<()> {
    let own = Place::alone(data).origin();
    let is_rival = |node: &node::Node| {
        let is_other = node.state.data.as_deref().is_some_and(|theirs| !holder::is_same(theirs, data));
        is_other && node.state.role() == Role::Primary && are_kin(node.origin(), own) == Some(true)
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
    let nodes = facts::nodes(&context.root, &context.lab)?;
    let loser = match nodes.into_iter().find_map(of_node) {
        // A standby is refused in words of its own, by `check_role`.
        None if spec.follow.is_none() => marked_volume(context, data)?,
        found => found,
    };
    let Some((by, way_out)) = loser else { return Ok(()) };
    let nodes = node::all(&context.root, &context.lab)?;
    let rivals = rival::of_data(&context.root, &context.lab, &nodes, data)?;
    let way_out = match facts::load(&context.root, &context.lab, &by)? {
        Some(_) => way_out,
        None if content_of(&context.root, &context.lab, &by) != Content::None => {
            format!("bring the lab up as it was: `pgbox up`; or the one in its place alone: `pgbox run {by}`")
        }
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

/// Who was promoted in the place of the data in a volume, and how these can be used all the same.
fn marked_volume(context: &Context, data: &Path) -> Result<Option<(Name, String)>> {
    let home = data.ancestors().find_map(|dir| context.root.volume_home(&context.lab, dir));
    // The mark is the whole volume's. Below its top there may be other data as well, or none yet.
    let is_top = context.root.volume_home(&context.lab, data).is_some();
    let Some(volume) = home.filter(|_| is_top || content(data) == Content::Primary) else { return Ok(None) };
    let shown = volume.file_name().unwrap_or_default().display().to_string();
    let known = state::load_volume(&volume).map_err(|error| {
        advise(
            format!(
                "whether another node was promoted in the place of volume `{shown}` can't be told: {error:#}"
            ),
            format!("if none was, remove {}", volume.join("volume.json").display()),
        )
    })?;
    let way_out = || match is_top {
        true => format!("a standby can go on with them: `pgbox replica {shown} --of PRIMARY`"),
        false => "a standby gets data of its own: `pgbox replica NAME --of PRIMARY`".to_owned(),
    };
    Ok(known.and_then(|known| known.superseded_by).map(|by| (by, way_out())))
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

/// Refuses data of another role, or of another cluster than the one that is to be followed, or that have gone another way: a
/// standby would wait for WAL that never comes. The last ones can be brought back, which gives up what only they have.
fn check_role(
    context: &Context,
    spec: &NodeSpec,
    data: &Path,
    own: Place<'_>,
    force: bool,
) -> Result<Option<RenewHow>> {
    let name = &spec.node;
    let what = match (&spec.follow, content(data)) {
        (_, Content::None) | (None, Content::Primary) => return Ok(None),
        (None, Content::Standby) => format!("a standby's, and `{name}` would be a primary"),
        (Some(follow), _) if is_strange(context, follow, data)? => {
            format!("of another cluster than `{}`", follow.of)
        }
        (Some(follow), content) => {
            return bring_back(context, name, follow, own, content == Content::Standby, force);
        }
    };
    let (nodes, others) = kin(context, data)?;
    let mut ways_out = Vec::new();
    match &spec.follow {
        Some(follow) => ways_out.push(format!(
            "under another name a standby gets data of its own: `pgbox replica NAME --of {}`",
            follow.of
        )),
        None => ways_out.push(going_on(name, data, &nodes, &others)),
    }
    // Not where they may be all that there is.
    let has_kin = !nodes.is_empty() || others.iter().any(|other| is_kin(other, data));
    if let (Some(volume), true) = (volume_of(context, data), has_kin) {
        ways_out.push(format!("`pgbox volume rm {volume}` removes them"));
    }
    let way_out = ways_out.join("; ");
    Err(advise(format!("the data in {} are {what}", data.display()), way_out))
}

/// What it takes until the data of an earlier node follow, by the same comparison as `rejoin` makes; refused unless they are a
/// standby's and follow as they are, or it is asked for.
fn bring_back(
    context: &Context,
    name: &Name,
    follow: &Follow,
    own: Place<'_>,
    is_standby: bool,
    force: bool,
) -> Result<Option<RenewHow>> {
    let of = node::find(&context.root, &context.lab, &follow.of)?;
    let cluster = cluster::of(&context.root, &context.lab, &follow.of);
    let primary = cluster.as_ref().map_or(&of, |cluster| cluster.head());
    let (theirs, upstream) = (Place::of(&primary.state)?, Place::of(&of.state)?);
    let back = history::way_back((name, own), (&primary.name, theirs), (&of.name, upstream));
    match (back.how, force) {
        (RenewHow::Sign, false) if is_standby => Ok(None),
        (how, true) => {
            cmd::note(context, &back.why);
            Ok(Some(how))
        }
        (_, false) => Err(advise(
            format!("the data that `{name}` would go on with do not follow `{}` as they are", of.name),
            format!("{}; `pgbox replica {name} --of {} --force` does that", back.why, of.name),
        )),
    }
}

/// What there is of the cluster of some data: the nodes, and what is in volumes that no node has, which may be of another one.
fn kin(context: &Context, data: &Path) -> Result<(Vec<node::Node>, Vec<Unused>)> {
    let own = Place::alone(data).origin();
    let mut nodes = node::all(&context.root, &context.lab)?;
    let mut others = rival::unused(&context.root, &context.lab, &nodes, own)?;
    others.retain(|other| other.data != data);
    nodes.retain(|node| are_kin(node.origin(), own) == Some(true));
    Ok((nodes, others))
}

fn is_kin(other: &Unused, data: &Path) -> bool {
    are_kin(other.place().origin(), Place::alone(data).origin()) == Some(true)
}

/// How the data of a standby are gone on with.
fn going_on(name: &Name, data: &Path, nodes: &[node::Node], others: &[Unused]) -> String {
    let is_primary = |node: &&node::Node| node.state.role() == Role::Primary;
    if let Some(of) = nodes.iter().find(is_primary).or(nodes.first()) {
        let first = match of.state.role() {
            Role::Primary if of.pidfd.is_none() => format!("`pgbox start {}`, then ", of.name),
            Role::Primary => String::new(),
            _ => format!("`pgbox promote {}`, then ", of.name),
        };
        return format!("{first}`pgbox replica {name} --of {}` goes on with them", of.name);
    }
    let is_primary = |other: &&Unused| other.content == Content::Primary && is_kin(other, data);
    if let Some(Unused { volume, below, .. }) = others.iter().find(is_primary) {
        return format!(
            "{}; then \
             `pgbox replica {name} --of {volume}` goes on with them",
            rival::brings_back(volume, below)
        );
    }
    let nothing = "nothing is left that they could follow";
    let without = format!("without {}/{SIGNAL} they are a primary's", data.display());
    if others.is_empty() {
        return format!("{nothing}: {without}");
    }
    let others = others.iter().map(|other| format!("`{}`", other.volume)).collect::<Vec<_>>().join(", ");
    // On one timeline, whoever has more would go on after other records than its own.
    format!(
        "{nothing}, but {others} may have more. Choose what has most: if it is these data, {without}. When that is up, each \
         of the others needs a new base backup: `pgbox volume rm VOLUME`, then `pgbox replica NAME --of CHOSEN`"
    )
}

/// Whether data did not come from the cluster of the node that is followed. What can't be read here the server finds out.
fn is_strange(context: &Context, follow: &Follow, data: &Path) -> Result<bool> {
    let of = node::find(&context.root, &context.lab, &follow.of)?;
    Ok(are_kin(Place::alone(data).origin(), of.origin()) == Some(false))
}

/// The named volume of a data directory, if it is one's.
fn volume_of(context: &Context, data: &Path) -> Option<String> {
    let home = context.root.volume_home(&context.lab, data)?;
    Some(home.file_name()?.to_string_lossy().into_owned())
}

/// Says what the data that there are already mean for the node.
pub fn note(context: &Context, spec: &NodeSpec, data: &Path) {
    note_of_volume(context, spec, data);
    note_of_variables(context, spec, data);
}

/// Says that a node goes on with what an earlier one has left: most often that is meant, and sometimes forgotten.
fn note_of_volume(context: &Context, spec: &NodeSpec, data: &Path) {
    let Some(volume) = volume_of(context, data).filter(|_| content(data) != Content::None) else { return };
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
    if content(data) == Content::None || spec.follow.is_some() || late.is_empty() {
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
