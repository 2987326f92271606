//! The faults of a lab, kept by the kernel alone: rules in an nf_tables table of family `bridge`, on the host, where no
//! node can reach them. Each change is one atomic batch; the table is there as long as there are faults.
//!
//! The caller holds the lab's lock: a change is worked out from what stands.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::{
    facts,
    hint::{advise, errno_of},
    lab::fault::{End, Fault, Kind},
    spec::{Name, ObjectNames},
    state::Root,
    sys::nft::bridge::{self, Action, Found, Rule},
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
    let rules = new.iter().map(|fault| rule(root, lab, fault)).collect::<Result<Vec<Rule>>>()?;
    if rules.is_empty() {
        return Ok(());
    }
    bridge::change(&table(root, lab), &owner(lab), &remove, &rules).map_err(explain)
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
    Ok(gone.into_iter().map(|s| s.fault).collect())
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
        Kind::Delay(_) => anyhow::bail!("not yet"),
    };
    let (from, to) = (address(root, lab, &fault.from)?, address(root, lab, &fault.to)?);
    Ok(Rule { from, to, action, comment: fault.to_string() })
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
