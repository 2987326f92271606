//! Rules about packets between two addresses on a bridge: nf_tables' family `bridge`, nft(8).
//!
//! The rules that surprise people: a bridge is no router, so packets from one of its ports to another never pass the
//! chains of family `ip`, only those here; what this machine itself sends and receives passes `output` and `input`
//! instead of `forward`; and there is no connection here, only packets, so established ones are hit like new ones.

use std::net::Ipv4Addr;

use anyhow::{Result, bail};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use nix::errno::Errno;

use super::rule::{self, Hook, Statement};
use super::table::{comment_of, comment_userdata};
use super::uapi::*;
use super::unsupported;
use super::wire::{self, Attributes, Batch};

/// What happens to packets from one address to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `None` is this machine, or whatever it forwards.
    pub from: Option<Ipv4Addr>,
    pub to: Option<Ipv4Addr>,
    pub action: Action,
    /// `nft list` shows it. At most 127 bytes, no quotes and control characters.
    pub comment: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Drop,
    /// So many in a million, by chance, each packet for itself.
    DropSome(u32),
    /// What goes beyond so many bytes a second: nothing is queued.
    DropOver(u64),
    /// Nothing yet: a queueing discipline has a class for them, by this handle.
    Class(u32),
}

/// A rule that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    chain: String,
    handle: Vec<u8>,
    pub comment: String,
}

/// The rules of a table of family `bridge` that have a comment. No such table, and a kernel without it, has none.
pub fn rules(table: &str) -> Result<Vec<Found>> {
    let rules = match wire::dump(NFT_MSG_GETRULE, NFPROTO_BRIDGE) {
        Err(error) if unsupported(&error) => return Ok(Vec::new()),
        rules => rules?,
    };
    let ours = rules.iter().filter(|rule| rule.text(NFTA_RULE_TABLE).as_deref() == Some(table));
    let found = |rule: &wire::Object| {
        let comment = rule.bytes(NFTA_RULE_USERDATA).and_then(comment_of)?;
        let (chain, handle) = (rule.text(NFTA_RULE_CHAIN)?, rule.bytes(NFTA_RULE_HANDLE)?.to_vec());
        Some(Found { chain, handle, comment })
    };
    Ok(ours.filter_map(found).collect())
}

/// Takes rules away and adds others, all in one batch. The table is made if it is not there.
///
/// # Errors
/// Name the first change that the kernel refused; nothing has changed then. ENOENT, EOPNOTSUPP or EAFNOSUPPORT from a
/// kernel that lacks a part of this.
pub fn change(table: &str, owner: &str, remove: &[&Found], add: &[Rule]) -> Result<()> {
    let mut batch = Batch::of(NFPROTO_BRIDGE);
    let attributes =
        Attributes::new().text(NFTA_TABLE_NAME, table).bytes(NFTA_TABLE_USERDATA, &comment_userdata(owner)?);
    batch.push(NFT_MSG_NEWTABLE, NLM_F_CREATE, attributes, format!("add table bridge {table}"));
    for hook in [Hook::Input, Hook::Forward, Hook::Output] {
        push_chain(&mut batch, table, hook);
    }
    for rule in remove {
        let attributes = Attributes::new()
            .text(NFTA_RULE_TABLE, table)
            .text(NFTA_RULE_CHAIN, &rule.chain)
            .bytes(NFTA_RULE_HANDLE, &rule.handle);
        let label = format!("delete rule bridge {table} {} ({})", rule.chain, rule.comment);
        batch.push(NFT_MSG_DELRULE, 0, attributes, label);
    }
    for rule in add {
        push_rule(&mut batch, table, rule)?;
    }
    batch.commit()
}

/// Deletes the table with all that is in it. Absent is Ok.
pub fn delete(table: &str) -> Result<()> {
    let mut batch = Batch::of(NFPROTO_BRIDGE);
    let attributes = Attributes::new().text(NFTA_TABLE_NAME, table);
    batch.push(NFT_MSG_DELTABLE, 0, attributes, format!("delete table bridge {table}"));
    match batch.commit() {
        Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) || unsupported(&error) => Ok(()),
        result => result,
    }
}

/// Without EXCL: chains that stand stay as they are.
fn push_chain(batch: &mut Batch, table: &str, hook: Hook) {
    let place = Attributes::new().number(NFTA_HOOK_HOOKNUM, hook as u32).number(NFTA_HOOK_PRIORITY, PRIORITY);
    let attributes = Attributes::new()
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, hook.text())
        .nest(NFTA_CHAIN_HOOK, place)
        .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
        .text(NFTA_CHAIN_TYPE, "filter");
    batch.push(
        NFT_MSG_NEWCHAIN,
        NLM_F_CREATE,
        attributes,
        format!("add chain bridge {table} {}", hook.text()),
    );
}

fn push_rule(batch: &mut Batch, table: &str, rule: &Rule) -> Result<()> {
    let hook = match (rule.from, rule.to) {
        (Some(_), Some(_)) => Hook::Forward,
        (Some(_), None) => Hook::Input,
        (None, Some(_)) => Hook::Output,
        (None, None) => bail!("a rule of a bridge needs an address"),
    };
    let statements = rule.statements();
    let attributes = Attributes::new()
        .text(NFTA_RULE_TABLE, table)
        .text(NFTA_RULE_CHAIN, hook.text())
        .nest(NFTA_RULE_EXPRESSIONS, rule::expressions(&statements))
        .bytes(NFTA_RULE_USERDATA, &comment_userdata(&rule.comment)?);
    let label = format!("add rule bridge {table} {} {}", hook.text(), rule::text(&statements));
    batch.push(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attributes, label);
    Ok(())
}

impl Rule {
    fn statements(&self) -> Vec<Statement> {
        let mut statements = vec![Statement::Ipv4];
        statements.extend(self.from.map(|address| Statement::Source(address, 32)));
        statements.extend(self.to.map(|address| Statement::Destination(address, 32)));
        match self.action {
            Action::Drop => statements.push(Statement::Drop),
            Action::DropSome(per_million) => {
                statements.extend([Statement::Random(per_million), Statement::Drop]);
            }
            Action::DropOver(rate) => statements.extend([Statement::Over(rate), Statement::Drop]),
            Action::Class(id) => statements.push(Statement::Class(id)),
        }
        statements
    }
}

/// linux/netfilter.h.
const NFPROTO_BRIDGE: u8 = 7;
/// linux/netfilter_bridge.h: NF_BR_PRI_FILTER_BRIDGED, -200. `nft list` calls it `filter`.
const PRIORITY: u32 = (-200i32).cast_unsigned();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_nft_has_them() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3));
        let text = |action| {
            let rule = Rule { from: Some(a), to: Some(b), action, comment: String::new() };
            rule::text(&rule.statements())
        };
        let both = "meta protocol ip ip saddr 10.0.0.2 ip daddr 10.0.0.3";
        assert_eq!(text(Action::Drop), format!("{both} drop"));
        assert_eq!(text(Action::DropSome(5)), format!("{both} numgen random mod 1000000 < 5 drop"));
        let over = "limit rate over 125000 bytes/second burst 65536 bytes drop";
        assert_eq!(text(Action::DropOver(125_000)), format!("{both} {over}"));
        assert_eq!(text(Action::Class(0x1_0010)), format!("{both} meta priority set 1:10"));
    }
}
