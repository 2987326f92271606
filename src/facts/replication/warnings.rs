//! What somebody should look at of a lab, in words.

use super::{Member, Seen, Sync, Takeover};
use crate::{
    facts::recovery,
    hint,
    postgres::{standby, status::Slot},
    spec::{Name, SyncRule, quantity::human_bytes, sync::shown},
    state::Role,
};

/// Every commit waits for a moment; who has waited for longer is worth a warning.
const NORMAL_WAIT_MS: f64 = 1000.0;

/// Of a cluster, or of nodes that have no primary.
pub fn of(nodes: &[Seen], members: &[Member], sync: &Sync) -> Vec<String> {
    let mut warnings = Vec::new();
    if sync.longest_wait_ms >= NORMAL_WAIT_MS {
        warnings.push(waiting(sync));
    }
    warnings.extend(nodes.first().and_then(locked_out));
    for slot in nodes.iter().filter_map(Seen::said).flat_map(|said| &said.slots).filter(|slot| slot.is_lost())
    {
        let owner = members.iter().find(|m| standby::slot_name(m.node.as_str()) == slot.slot_name);
        warnings.push(match owner {
            Some(member) => format!(
                "the slot of `{0}` is lost: the WAL that it needs is gone; `pgbox reinit {0}` copies the data anew",
                member.node
            ),
            None => format!("the slot {} is lost; `pgbox slots --drop {0}` removes it", slot.slot_name),
        });
    }
    warnings.extend(nodes.iter().flat_map(|one| forgotten(one, nodes)));
    for one in nodes {
        warnings.extend(one.stray.clone());
        let member = members.iter().find(|member| member.node == one.node.name);
        let is_away = |member: &&Member| {
            member.state == "disconnected" && !member.slot.as_ref().is_some_and(Slot::is_lost)
        };
        let stuck = member.filter(is_away).and(one.stuck.as_ref());
        warnings.extend(stuck.map(|why| recovery::with_way_out(why, &one.node.name)));
        if one.said().is_some_and(|said| said.in_recovery) && one.node.state.role() == Role::Primary {
            warnings.push(format!("`{}` is to be the primary, and is in recovery", one.node.name));
        }
    }
    warnings
}

/// Slots of a server that keep something for readers that are not there, but for those of standbys, which the picture shows.
fn forgotten<'s>(one: &'s Seen, nodes: &'s [Seen]) -> impl Iterator<Item = String> + 's {
    let server = &one.node.name;
    let is_standbys =
        |slot: &Slot| nodes.iter().any(|one| standby::slot_name(one.node.name.as_str()) == slot.slot_name);
    let slots = one.said().into_iter().flat_map(|said| &said.slots);
    slots.filter(move |slot| !slot.active && !slot.synced && !slot.is_lost() && !is_standbys(slot)).filter_map(move |slot| {
        let (name, kind) = (&slot.slot_name, &slot.slot_type);
        Some(format!(
            "the slot {name} ({kind}) of `{server}` has no reader, and keeps {}; if none comes back: `pgbox slots --drop {name} \
             --on {server}`",
            keeps(slot)?
        ))
    })
}

/// What a slot keeps, if that is anything.
fn keeps(slot: &Slot) -> Option<String> {
    let wal =
        slot.retained_bytes.filter(|bytes| *bytes > 0).map(|bytes| format!("{} of WAL", human_bytes(bytes)));
    let rows = slot.xmin_age.map(|age| format!("the dead rows of the last {age} transactions"));
    let all: Vec<String> = wal.into_iter().chain(rows).collect();
    (!all.is_empty()).then(|| all.join(" and "))
}

/// A primary whose superuser has got another password from somebody else: its standbys have it as well.
fn locked_out(head: &Seen) -> Option<String> {
    let said = format!("{:#}", head.answer.as_ref()?.as_ref().err()?);
    let is_locked =
        said.contains("password authentication failed") && head.node.state.role() == Role::Primary;
    is_locked.then(|| {
        format!(
            "the superuser's password of `{0}` seems to have been changed; give back the one that pgbox knows: {1}",
            head.node.name,
            hint::give_back(&head.node.name, &head.node.dir.secret_file())
        )
    })
}

/// A primary that does not go by the rule: what came up did not stream in time, or somebody has told it otherwise.
pub fn not_in_effect(nodes: &[Seen], rule: &SyncRule) -> Option<String> {
    let head = nodes.first()?;
    let said = head.said().filter(|said| !said.in_recovery)?;
    let name = &head.node.name;
    let follows = |one: &&Seen| one.node.state.role().follows(name);
    let followers = nodes.iter().filter(follows).map(|one| (&one.node.name, one.node.state.applies_late()));
    let streams =
        |other: &Name| head.sender(other).is_some_and(|sender| sender.state.as_deref() == Some("streaming"));
    let has_left = |one: &&Seen| one.node.state.role() == Role::Superseded { by: name.clone() };
    let left: Vec<Name> =
        nodes.iter().filter(has_left).map(|one| one.node.name.clone()).chain([name.clone()]).collect();
    // As `pgbox sync RULE` does it.
    let is_part = |other: &Name| nodes.iter().any(|one| one.node.name == *other && one.stray.is_none());
    let joins = |other: &Name, is_named: bool| is_part(other) && (is_named || streams(other));
    let wanted = rule.due(&left, &said.sync, followers, joins);
    let is_ours = nodes.iter().any(|one| rule.names.contains(&one.node.name));
    if is_ours && wanted.is_empty() && said.sync.is_empty() {
        return Some(format!(
            "the rule is `{rule}`, and commits on `{name}` wait for nobody: none that it means streams from it"
        ));
    }
    (wanted != said.sync).then(|| {
        format!(
            "the rule is `{rule}`, and `{name}` waits for {}; `pgbox sync '{rule}'` brings it there",
            if said.sync.is_empty() { "nobody".to_owned() } else { shown(&said.sync) }
        )
    })
}

/// A primary whose commits wait for nobody, although they are to.
pub fn waived(primary: &Name, sync: &Sync) -> Option<String> {
    let commit = sync.waived_by.as_deref().filter(|_| sync.in_effect.as_deref() != Some(""))?;
    Some(waits_for_nobody(primary, commit))
}

/// The same in words.
pub fn waits_for_nobody(primary: &Name, commit: &str) -> String {
    format!(
        "commits on `{primary}` wait for nobody, whatever the sync rule says: synchronous_commit is {commit} there; \
         `pgbox set {primary} synchronous_commit=on` changes that"
    )
}

/// `2 commits wait for r1`, and what ends that.
pub fn waiting(sync: &Sync) -> String {
    let (count, names) = (sync.waiting_commits, sync.waiting_for.join(", "));
    match count {
        1 => format!("1 commit waits for {names}; `pgbox sync off` lets it go"),
        _ => format!("{count} commits wait for {names}; `pgbox sync off` lets them go"),
    }
}

/// Of a takeover that was begun and not finished.
pub fn of_takeover(Takeover { old, new, promoted }: &Takeover) -> String {
    let but = if *promoted == Some(true) { "; it takes writes already, and nobody is led to it" } else { "" };
    let (what, way_out) = hint::unfinished(old, new);
    format!("{what}{but}: {way_out}")
}
