//! The faults of a lab, kept by the kernel alone: rules in an nf_tables table of family `bridge`, on the host, where no
//! node can reach them. Each change is one atomic batch; the table is there as long as there are faults.
//!
//! The caller holds the lab's lock: a change is worked out from what stands.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::{
    facts,
    hint::{advise, errno_of},
    lab::fault::{End, Fault, Kind},
    spec::{Name, ObjectNames},
    state::Root,
    sys::{
        link::delay,
        nft::bridge::{self, Action, Found, Rule},
    },
};

/// A fault, and the rule that makes it.
pub struct Standing {
    pub fault: Fault,
    rule: Found,
}

/// What the kernel has.
pub fn list(root: &Root, lab: &Name) -> Result<Vec<Standing>> {
    let rules = bridge::rules(&table(root, lab))?;
    // A rule that somebody else put there is not ours to explain, nor to take away.
    let known = |rule: Found| Some(Standing { fault: rule.comment.parse().ok()?, rule });
    Ok(rules.into_iter().filter_map(known).collect())
}

/// Adds faults; each takes the place of one of its kind. Those that stand already stay untouched.
///
/// # Errors
/// When the kernel lacks what that needs, by name.
pub fn add(root: &Root, lab: &Name, faults: &[Fault]) -> Result<()> {
    let standing = list(root, lab)?;
    let new: Vec<&Fault> = faults.iter().filter(|f| !standing.iter().any(|s| s.fault == **f)).collect();
    let old = |s: &&Standing| new.iter().any(|fault| fault.replaces(&s.fault));
    let remove: Vec<&Found> = standing.iter().filter(old).map(|s| &s.rule).collect();
    if new.is_empty() {
        return Ok(());
    }
    let delays = new.iter().filter(|fault| matches!(fault.kind, Kind::Delay(_)));
    let places = delays.map(|fault| Place::of(root, lab, fault)).collect::<Result<Vec<Place>>>()?;
    if !places.is_empty() {
        check_delay()?;
    }
    let rules = new.iter().map(|fault| rule(root, lab, fault)).collect::<Result<Vec<Rule>>>()?;
    // The queues first: until the rules stand, no packet goes there.
    let queued = places.iter().try_for_each(Place::make);
    let done = queued
        .and_then(|()| bridge::change(&table(root, lab), &owner(lab), &remove, &rules).map_err(explain));
    if done.is_err() {
        let old = |place: &&Place| !standing.iter().any(|s| place.is_of(&s.fault));
        // The first error is the one to tell.
        places.iter().filter(old).for_each(|place| drop(place.clear()));
    }
    done
}

/// Takes faults away; gives those that there were.
pub fn heal(root: &Root, lab: &Name, which: impl Fn(&Fault) -> bool) -> Result<Vec<Fault>> {
    let (gone, left): (Vec<_>, Vec<_>) = list(root, lab)?.into_iter().partition(|s| which(&s.fault));
    if gone.is_empty() {
        return Ok(Vec::new());
    }
    let table = table(root, lab);
    match left.is_empty() {
        true => bridge::delete(&table)?,
        false => {
            let rules: Vec<&Found> = gone.iter().map(|s| &s.rule).collect();
            bridge::change(&table, &owner(lab), &rules, &[]).map_err(explain)?;
        }
    }
    let gone: Vec<Fault> = gone.into_iter().map(|s| s.fault).collect();
    for fault in gone.iter().filter(|fault| matches!(fault.kind, Kind::Delay(_))) {
        // Of a node that nothing is remembered of, the address is not known either: an empty class may stay.
        if let Ok(place) = Place::of(root, lab, fault) {
            place.clear()?;
        }
    }
    Ok(gone)
}

/// Gives a node that has started again what its interface had of faults: it is another interface now.
pub fn renew(root: &Root, lab: &Name, node: &Name) -> Result<()> {
    let node = End::Node(node.clone());
    let delays = list(root, lab)?.into_iter().map(|s| s.fault);
    let mut delays = delays.filter(|fault| fault.to == node && matches!(fault.kind, Kind::Delay(_)));
    delays.try_for_each(|fault| Place::of(root, lab, &fault)?.make())
}

/// Forgets a node that is removed: the next one with its name or its address has nothing to do with it.
pub fn forget(root: &Root, lab: &Name, node: &Name) -> Result<()> {
    heal(root, lab, |fault| fault.touches(&End::Node(node.clone()))).map(drop)
}

fn table(root: &Root, lab: &Name) -> String {
    ObjectNames::new(root.path(), lab, lab).fault_table
}

fn owner(lab: &Name) -> String {
    format!("faults between nodes of pgbox lab {lab}")
}

fn rule(root: &Root, lab: &Name, fault: &Fault) -> Result<Rule> {
    let action = match fault.kind {
        Kind::Cut => Action::Drop,
        Kind::Loss(per_million) => Action::DropSome(per_million),
        Kind::Rate(bits) => Action::DropOver(bits / 8),
        Kind::Delay(_) => Action::Class(delay::class(Place::of(root, lab, fault)?.class)),
    };
    let (from, to) = (address(root, lab, &fault.from)?, address(root, lab, &fault.to)?);
    Ok(Rule { from, to, action, comment: fault.to_string() })
}

/// Where packets are held back: at the host's end of the receiver's cable, in a class of their sender.
struct Place {
    fault: Fault,
    time: Duration,
    link: String,
    class: u16,
}

impl Place {
    fn of(root: &Root, lab: &Name, fault: &Fault) -> Result<Place> {
        let (End::Node(to), Kind::Delay(time)) = (&fault.to, fault.kind) else { return Err(only_nodes()) };
        let from = address(root, lab, &fault.from)?.ok_or_else(only_nodes)?;
        let link = ObjectNames::new(root.path(), lab, to).veth;
        // The host part of the address: no two nodes of a lab have the same.
        Ok(Place { fault: fault.clone(), time, link, class: (from.to_bits() & 0xffff) as u16 })
    }

    fn is_of(&self, fault: &Fault) -> bool {
        self.fault.replaces(fault)
    }

    fn make(&self) -> Result<()> {
        delay::delay(&self.link, self.class, self.time)
    }

    fn clear(&self) -> Result<()> {
        delay::undelay(&self.link, self.class)
    }
}

fn only_nodes() -> anyhow::Error {
    advise(
        "the host's own packets can't be delayed",
        "name two nodes; cut, loss and rate work with `host`, too",
    )
}

fn check_delay() -> Result<()> {
    match delay::missing()? {
        None => Ok(()),
        Some(kind) => Err(advise(
            format!(
                "a delay needs `{kind}`, and this kernel has none (CONFIG_NET_SCH_{})",
                kind.to_uppercase()
            ),
            format!("load it: modprobe sch_{kind}; cut, loss and rate need nothing of it"),
        )),
    }
}

fn address(root: &Root, lab: &Name, end: &End) -> Result<Option<Ipv4Addr>> {
    let End::Node(name) = end else { return Ok(None) };
    let state = facts::load(root, lab, name)?.with_context(|| format!("no node `{name}` in lab `{lab}`"))?;
    Ok(Some(state.address.addr()))
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    match errno_of(&error) {
        Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) => advise(
            format!("this kernel lacks a part of nf_tables for bridges: {error:#}"),
            "load it: modprobe -a nf_tables nft_numgen nft_limit (CONFIG_NF_TABLES_BRIDGE, _NUMGEN, _LIMIT)",
        ),
        _ => error,
    }
}
