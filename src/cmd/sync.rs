//! `pgbox sync`: whom commits wait for, and how many wait.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result};
use serde::Serialize;

use super::{Context, need_root};
use crate::{
    cli,
    engine::{orders, settings, sync},
    facts::{
        cluster::{self, Cluster},
        node::{self, Node},
        replication::{self, Lab, Picture, Sync},
        stray,
    },
    hint::{advise, as_misuse},
    spec::{
        Name, SyncRule,
        sync::{GRAMMAR, shown},
    },
    state::Role,
};

/// How long a primary may take to go by a new rule.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is shown; the names are those of the JSON output.
#[derive(Serialize)]
struct Shown {
    primary: Option<Name>,
    /// What was asked for, in the words of this command.
    rule: Option<String>,
    #[serde(flatten)]
    sync: Sync,
}

pub fn run(context: &Context, args: &cli::Sync) -> Result<i32> {
    match args.rule.join(" ").trim() {
        "" => show(context, args.json)?,
        "off" => change(context, None, Written::Now)?,
        rule => change(
            context,
            Some(rule.parse().map_err(|text: String| as_misuse(Error::msg(text)))?),
            Written::Now,
        )?,
    }
    Ok(0)
}

fn show(context: &Context, json: bool) -> Result<()> {
    let rule = context.root.load_lab(&context.lab)?.and_then(|lab| lab.sync);
    let lab = replication::look(&context.root, &context.lab)?;
    let all = |lab: &Lab| lab.clusters.iter().filter_map(primary).collect::<Vec<Name>>();
    // Without a rule that says which is meant, all of them are.
    let meant = match (meant(context, rule.as_ref()), &rule) {
        (Ok(cluster), _) => vec![cluster.head().name.clone()],
        (Err(_), None) if lab.clusters.len() > 1 => all(&lab),
        (Err(error), _) => return Err(error),
    };
    let is_meant = |picture: &Picture| primary(picture).is_some_and(|name| meant.contains(&name));
    let clusters = lab.clusters.into_iter().filter(is_meant);
    let all: Vec<Shown> = clusters
        .map(|picture| Shown { primary: primary(&picture), rule: lab.sync_rule.clone(), sync: picture.sync })
        .collect();
    if json {
        // One where one is meant, as nearly always.
        let value = match &all[..] {
            [one] => serde_json::to_string_pretty(one)?,
            several => serde_json::to_string_pretty(several)?,
        };
        outln!("{value}");
        return Ok(());
    }
    outln!("rule       {}", lab.sync_rule.as_deref().unwrap_or("off"));
    for Shown { primary, sync, .. } in &all {
        let of = primary.as_ref().filter(|_| all.len() > 1).map_or(String::new(), |name| format!("{name}: "));
        outln!("in effect  {of}{}", effect(sync));
        if sync.waiting_commits > 0 {
            outln!("waiting    {of}{}", replication::waiting(sync));
        }
    }
    Ok(())
}

fn primary(picture: &Picture) -> Option<Name> {
    picture.nodes.first().map(|first| first.node.clone())
}

fn effect(sync: &Sync) -> String {
    match (sync.in_effect.as_deref(), &sync.waived_by) {
        (None, _) => "not known: the primary does not answer".to_owned(),
        (Some(""), _) => "commits wait for nobody".to_owned(),
        (Some(_), Some(how)) => format!("commits wait for nobody: synchronous_commit is {how}"),
        (Some(value), None) => format!("commits wait for {}", shown(value)),
    }
}

/// The cluster with standbys. Of several it is the one that the rule speaks of.
fn meant(context: &Context, rule: Option<&SyncRule>) -> Result<Cluster> {
    let error = match cluster::main(&context.root, &context.lab) {
        Ok(cluster) => return Ok(cluster),
        Err(error) => error,
    };
    let names = rule.map_or(&[][..], |rule| &rule.names);
    let has_one = |cluster: &Cluster| cluster.nodes.iter().any(|node| names.contains(&node.name));
    let clusters = cluster::all(&context.root, &context.lab)?;
    match clusters.len() {
        0 => Err(error),
        _ => clusters.into_iter().find(has_one).with_context(|| match names.is_empty() {
            true => {
                format!("lab `{}` has several clusters, and no rule that says which is meant", context.lab)
            }
            false => format!("lab `{}` has several clusters, and none of the rule's standbys", context.lab),
        }),
    }
}

/// Lets no commit wait for anybody, in any cluster of the lab. The caller holds the lab's lock.
fn forget_everywhere(context: &Context) -> Result<()> {
    if let Some(mut lab) = context.root.load_lab(&context.lab)? {
        lab.sync = None;
        context.root.save_lab(&context.lab, &lab)?;
    }
    sync::forget(node::all(&context.root, &context.lab)?.iter())
}

/// When a rule was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// For the roles that there are.
    Now,
    /// In a lab file, for the roles that nodes had at first: who has become the primary has left its seat to others, and who is
    /// not there yet takes it when it comes.
    AtFirst,
}

/// Changes the rule, and waits until the primary goes by it.
pub fn change(context: &Context, rule: Option<SyncRule>, written: Written) -> Result<()> {
    need_root("pgbox sync")?;
    let _lock = context.lock()?;
    let mut lab = context.root.load_lab(&context.lab)?.context("the lab is gone")?;
    let cluster = match meant(context, rule.as_ref().or(lab.sync.as_ref())) {
        // Whichever they are, nobody waits there any more.
        Err(_) if rule.is_none() => {
            forget_everywhere(context)?;
            outln!("commits wait for nobody");
            return Ok(());
        }
        cluster => cluster?,
    };
    // What was said before may be said again, when one of them is the primary meanwhile.
    if let Some(rule) = rule.as_ref().filter(|rule| lab.sync.as_ref() != Some(rule)) {
        check(&cluster, rule, written)?;
    }
    if let Some(rule) = &rule {
        refuse_astray(&cluster, rule)?;
    }
    let head = cluster.head();
    // What waits is told before it is let go.
    let waited = head.pidfd.as_ref().and_then(|_| replication::ask(head).ok()).map_or(0, |said| said.waiting);
    let text = rule.as_ref().map_or_else(|| "nobody".to_owned(), SyncRule::to_string);
    let is_off = rule.is_none();
    lab.sync = rule;
    context.root.save_lab(&context.lab, &lab)?;
    let value = match is_off {
        true => forget_everywhere(context).map(|()| String::new())?,
        false => sync::settle(&context.root, &cluster)?,
    };
    let others = cluster::all(&context.root, &context.lab)?.into_iter();
    for other in others.filter(|other| !is_off && other.head().name != cluster.head().name) {
        sync::settle(&context.root, &other)?;
    }
    let Some(pidfd) = &head.pidfd else {
        super::note(
            context,
            &format!("`{}` does not run; it will go by it from its next start on", head.name),
        );
        return Ok(());
    };
    // Also if it was told so before: an ALTER SYSTEM may have been taken back meanwhile.
    orders::remind(pidfd)?;
    wait_until_told(&cluster, &value)?;
    let is_seen = is_off || is_seen_to_wait(head)?;
    tell_of_late(context, &cluster, &value)?;
    if is_seen || value.is_empty() || replication::ask(head)?.is_waived() {
        tell(context, head, &text, &value, is_off)?;
    } else {
        warn_of_unseen(context, &head.name, &text);
    }
    if is_off && waited > 0 {
        wait_until_released(&cluster)?;
        outln!("{waited} that waited went through");
    }
    warn_of_absent(context, &cluster, &value)
}

/// Whether a primary's commits are seen to wait, which may take a while.
pub fn is_seen_to_wait(head: &Node) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    let told = sync::told(&head.dir.load()?.unwrap_or(head.state.clone())).to_owned();
    // Of one that goes by something else the checkpointer is not the reason.
    let may_come = || replication::ask(head).is_ok_and(|said| !said.is_waived() && said.sync == told);
    while !sync::confirm(head)? {
        if Instant::now() >= deadline || told.is_empty() || !may_come() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Says that nobody knows whether commits wait by a rule in these words.
pub fn warn_of_unseen(context: &Context, primary: &Name, rule: &str) {
    let text = format!(
        "commits on `{primary}` may wait for nobody yet: its checkpointer has more to write, and takes the rule {rule} over when it is \
         done; `pgbox sync '{rule}'` looks again"
    );
    super::warn(context, &text);
}

/// Says for whom commits wait now, by a rule in these words and the value that is in effect.
fn tell(context: &Context, head: &Node, text: &str, value: &str, is_off: bool) -> Result<()> {
    let name = &head.name;
    if value.is_empty() && !is_off {
        let text = format!(
            "the rule is {text}, and commits on `{name}` wait for nobody: none that it means follows `{name}`, or not yet"
        );
        super::warn(context, &text);
        return Ok(());
    }
    match replication::ask(head)? {
        said if !is_off && said.is_waived() => {
            super::warn(context, &replication::waits_for_nobody(name, &said.commit));
        }
        _ => outln!("commits wait for {text}{}", seats(text, value)),
    }
    Ok(())
}

/// Who sits in the seats of a rule, where these are others than those whom it names.
fn seats(rule: &str, value: &str) -> String {
    let sorted = |text: &str| {
        let mut names = crate::postgres::status::sync_names(text);
        names.sort();
        names
    };
    match sorted(value) {
        now if value.is_empty() || now == sorted(rule) => String::new(),
        now => format!("; at this moment that is {}", now.join(", ")),
    }
}

/// A rule can only name standbys of the primary itself: it knows no others. The primary's own name beside them is the seat that
/// it will have when one of them is the primary.
fn check(cluster: &Cluster, rule: &SyncRule, written: Written) -> Result<()> {
    let head = &cluster.head().name;
    let followers: Vec<&str> = cluster.followers(head).map(|node| node.name.as_str()).collect();
    let follows = |name: &&Name| followers.contains(&name.as_str());
    let by = Role::Superseded { by: head.clone() };
    let is_away = |name: &&Name| cluster.node(name).is_none_or(|node| node.state.role() == by);
    let is_seat = |name: &&Name| match written {
        Written::Now => *name == head && rule.names.iter().any(|other| follows(&other)),
        Written::AtFirst => *name == head || is_away(name),
    };
    let Some(stranger) = rule.names.iter().find(|name| !follows(name) && !is_seat(name)) else {
        return Ok(());
    };
    let way_out = match followers.is_empty() {
        true if stranger == head => format!("make one: `pgbox replica NAME --of {head}`"),
        true => format!("make one: `pgbox replica {stranger} --of {head}`"),
        false => format!("these do: {}; a rule is {GRAMMAR}", followers.join(", ")),
    };
    let why = match stranger == head {
        true => format!("`{head}` does not follow itself: it is the primary, and commits wait for standbys"),
        false => {
            format!("`{stranger}` does not follow `{head}` directly; every commit would wait for it for ever")
        }
    };
    Err(advise(why, way_out))
}

/// Refuses to have commits wait for a standby that is none any more. It may even say that it has them: of what it says only the
/// position counts, and that it has passed with other rows.
fn refuse_astray(cluster: &Cluster, rule: &SyncRule) -> Result<()> {
    let mut named = rule.names.iter().filter_map(|name| cluster.node(name));
    match named.find_map(|node| stray::told(&cluster.nodes, node)) {
        Some((what, way_out)) => Err(advise(what, way_out)),
        None => Ok(()),
    }
}

fn wait_until_told(cluster: &Cluster, value: &str) -> Result<()> {
    let head = cluster.head();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = settings::ask(head, &[sync::SETTING.to_owned()])?;
        let parameter =
            said.first().with_context(|| format!("`{}` knows no {}", head.name, sync::SETTING))?;
        if parameter.setting == value {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let why = parameter.overruled().unwrap_or_else(|| "`pgbox logs` may tell why".to_owned());
            return Err(advise(format!("`{}` goes by {:?} all the same", head.name, parameter.setting), why));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The server's checkpointer lets them go, a moment after it has read the files.
fn wait_until_released(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while replication::ask(cluster.head())?.waiting > 0 {
        anyhow::ensure!(Instant::now() < deadline, "commits wait all the same; see `pgbox status`");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Says that commits wait for as long as one applies late that they wait for, where they wait until it has applied them.
pub fn tell_of_late(context: &Context, cluster: &Cluster, value: &str) -> Result<()> {
    let names = crate::postgres::status::sync_names(value);
    let is_named =
        |node: &&Node| node.state.applies_late() && names.iter().any(|name| *name == node.name.as_str());
    let Some(late) = cluster.nodes.iter().find(is_named) else { return Ok(()) };
    let said = settings::ask(cluster.head(), &[sync::COMMIT.to_owned()])?;
    if said.first().is_some_and(|parameter| parameter.setting == "remote_apply") {
        let delay = late.state.spec.follow.as_ref().and_then(|follow| follow.delay_ms).unwrap_or_default();
        let text = format!(
            "`{}` applies {} late, and with synchronous_commit=remote_apply a commit that waits for it takes as long",
            late.name,
            humantime::format_duration(Duration::from_millis(delay))
        );
        super::note(context, &text);
    }
    Ok(())
}

/// Says whose absence makes commits wait from now on.
fn warn_of_absent(context: &Context, cluster: &Cluster, value: &str) -> Result<()> {
    let said = replication::ask(cluster.head())?;
    let streams = |name: &String| {
        said.senders.iter().any(|s| s.application_name == *name && s.state.as_deref() == Some("streaming"))
    };
    let names = crate::postgres::status::sync_names(value);
    let absent: Vec<String> = names.into_iter().filter(|name| !streams(name)).collect();
    if !absent.is_empty() {
        let text =
            format!("{} does not stream at this moment; `pgbox status` shows what waits", absent.join(", "));
        super::warn(context, &text);
    }
    Ok(())
}
