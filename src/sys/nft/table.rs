//! A table in two forms: the text that nft(8) reads and prints, and the messages that make it.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::rule::{self, Chain, Statement};
use super::uapi::*;
use super::wire::{self, Attributes, Batch, Leftover};

/// A table of family `ip`. A chain comes after those that it jumps to.
pub(super) struct Table {
    pub(super) name: String,
    pub(super) comment: String,
    pub(super) chains: Vec<Chain>,
}

impl Table {
    /// As `nft list table` would print it.
    pub(super) fn to_nft(&self) -> String {
        self.text(|chain| &chain.rules)
    }

    /// The same with some of the rules.
    fn text(&self, shown: fn(&Chain) -> &[Vec<Statement>]) -> String {
        let mut text = format!("table ip {} {{\n", self.name);
        if !self.comment.is_empty() {
            let _ = writeln!(text, "\tcomment \"{}\"", self.comment);
        }
        for (index, chain) in self.chains.iter().enumerate() {
            let Chain { name, base, .. } = chain;
            let gap = if index == 0 { "" } else { "\n" };
            let _ = writeln!(text, "{gap}\tchain {name} {{");
            if let Some(base) = base {
                let (kind, hook, priority) = (base.kind, base.hook.text(), base.priority_text());
                let _ = writeln!(text, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;");
            }
            for rule in shown(chain) {
                let _ = writeln!(text, "\t\t{}", rule::text(rule));
            }
            text.push_str("\t}\n");
        }
        text + "}\n"
    }

    /// What the text form could not express would be two different tables.
    pub(super) fn check(&self) -> Result<()> {
        if self.name.is_empty() || !is_plain(&self.name) || self.name.contains(char::is_whitespace) {
            bail!("{:?} can't be the name of an nf_tables table", self.name);
        }
        if self.comment.len() > 127 || !is_plain(&self.comment) {
            bail!("{:?} can't be the comment of an nf_tables table", self.comment);
        }
        Ok(())
    }

    /// What the table says, in 16 bytes. They are kept in the table itself: the kernel gives rules back in another form
    /// than it was given them, so comparing those would be guesswork.
    fn content(&self) -> [u8; 16] {
        digest(&self.to_nft())
    }

    /// The same of its chains alone.
    fn chains_content(&self) -> [u8; 16] {
        digest(&self.text(|_| &[]))
    }

    /// Makes the table, or what is there into it, within one transaction: no packet meets neither.
    ///
    /// # Errors
    /// `EEXIST` when a table of that name exists that has another comment.
    pub(super) fn ensure(&self) -> Result<()> {
        match self.there(&self.content())? {
            There::Same => Ok(()),
            there => self.make(&there, &self.content()).map(drop),
        }
    }

    /// As [`ensure`](Self::ensure), for a table whose rules change often: one that has these chains keeps them, and gets
    /// other rules. A base chain that is deleted makes the kernel wait for its readers, 20-60 ms.
    pub(super) fn refill(&self) -> Result<Option<Leftover>> {
        let chains = self.chains_content();
        let there = self.there(&chains)?;
        if !matches!(there, There::Same) {
            return self.make(&there, &chains).map(Some);
        }
        if self.is_filled()? {
            return Ok(None);
        }
        let mut batch = Batch::new();
        let flush = Attributes::new().text(NFTA_RULE_TABLE, &self.name);
        batch.push(NFT_MSG_DELRULE, 0, flush, format!("flush table ip {}", self.name));
        self.push_rules(&mut batch)?;
        batch.commit_first().map(Some)
    }

    /// Whether the rules are these: one of them says so.
    fn is_filled(&self) -> Result<bool> {
        let content = self.content();
        let says_so = |rule: &wire::Object| {
            rule.text(NFTA_RULE_TABLE).as_deref() == Some(self.name.as_str())
                && rule.bytes(NFTA_RULE_USERDATA).and_then(|data| entry_of(data, UDATA_CONTENT))
                    == Some(&content[..])
        };
        Ok(wire::dump(NFT_MSG_GETRULE, nix::libc::AF_INET as u8)?.iter().any(says_so))
    }

    /// Asked before anything is tried: a transaction that fails waits for the kernel's readers, too.
    fn there(&self, content: &[u8; 16]) -> Result<There> {
        let is_it = |found: &wire::Object| found.text(NFTA_TABLE_NAME).as_deref() == Some(self.name.as_str());
        let Some(found) = super::tables()?.into_iter().find(is_it) else { return Ok(There::None) };
        let userdata = found.bytes(NFTA_TABLE_USERDATA).unwrap_or_default();
        if comment_of(userdata).as_deref() != Some(self.comment.as_str()) {
            return Err(Errno::EEXIST).with_context(|| format!("add table ip {}", self.name));
        }
        let same = entry_of(userdata, UDATA_CONTENT) == Some(&content[..]);
        Ok(if same { There::Same } else { There::Older })
    }

    fn make(&self, there: &There, content: &[u8; 16]) -> Result<Leftover> {
        let mut batch = Batch::new();
        if matches!(there, There::Older) {
            push_delete(&mut batch, &self.name);
        }
        self.push_as(&mut batch, content)?;
        batch.commit_first()
    }

    /// Adds the messages that make it.
    pub(super) fn push(&self, batch: &mut Batch) -> Result<()> {
        self.push_as(batch, &self.content())
    }

    fn push_as(&self, batch: &mut Batch, content: &[u8; 16]) -> Result<()> {
        let name = &self.name;
        let attributes = Attributes::new()
            .text(NFTA_TABLE_NAME, name)
            .bytes(NFTA_TABLE_USERDATA, &userdata(&self.comment, content)?);
        // EXCL: without it adding to somebody else's table of that name would succeed.
        batch.push(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, attributes, format!("add table ip {name}"));
        self.chains.iter().for_each(|chain| push_chain(batch, name, chain));
        self.push_rules(batch)
    }

    /// The first rule says what all of them are, as the table does where it can't get others.
    fn push_rules(&self, batch: &mut Batch) -> Result<()> {
        let mut mark = Some(userdata("", &self.content())?);
        for chain in &self.chains {
            for rule in &chain.rules {
                push_rule(batch, &self.name, &chain.name, rule, mark.take());
            }
        }
        Ok(())
    }
}

/// What there is under a table's name, if it is ours.
enum There {
    None,
    /// With the content that was asked about.
    Same,
    Older,
}

fn digest(text: &str) -> [u8; 16] {
    let digest = Sha256::digest(text);
    std::array::from_fn(|i| digest[i])
}

/// Adds the message that deletes a table with all that is in it.
pub(super) fn push_delete(batch: &mut Batch, name: &str) {
    let table = Attributes::new().text(NFTA_TABLE_NAME, name);
    batch.push(NFT_MSG_DELTABLE, 0, table, format!("delete table ip {name}"));
}

/// Whether nft(8) can read it in quotes.
pub(super) fn is_plain(text: &str) -> bool {
    !text.contains(|c: char| c == '"' || c == '\\' || c.is_control())
}

fn push_chain(batch: &mut Batch, table: &str, chain: &Chain) {
    let name = chain.name.as_str();
    let mut attributes = Attributes::new().text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, name);
    if let Some(base) = &chain.base {
        let hook = Attributes::new()
            .number(NFTA_HOOK_HOOKNUM, base.hook as u32)
            .number(NFTA_HOOK_PRIORITY, base.priority.cast_unsigned());
        attributes = attributes
            .nest(NFTA_CHAIN_HOOK, hook)
            .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
            .text(NFTA_CHAIN_TYPE, base.kind);
    }
    let label = format!("add chain ip {table} {name}");
    batch.push(NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, attributes, label);
}

fn push_rule(batch: &mut Batch, table: &str, chain: &str, rule: &[Statement], mark: Option<Vec<u8>>) {
    let mut attributes = Attributes::new()
        .text(NFTA_RULE_TABLE, table)
        .text(NFTA_RULE_CHAIN, chain)
        .nest(NFTA_RULE_EXPRESSIONS, rule::expressions(rule));
    if let Some(mark) = mark {
        attributes = attributes.bytes(NFTA_RULE_USERDATA, &mark);
    }
    let label = format!("add rule ip {table} {chain} {}", rule::text(rule));
    batch.push(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attributes, label);
}

/// User data is opaque to the kernel; nft(8) reads it as type, length, value.
fn userdata(comment: &str, content: &[u8; 16]) -> Result<Vec<u8>> {
    let mut bytes = match comment {
        "" => Vec::new(),
        _ => comment_userdata(comment)?,
    };
    bytes.extend([UDATA_CONTENT, content.len() as u8]);
    bytes.extend(content);
    Ok(bytes)
}

/// A comment alone, of a table or of a rule.
pub(super) fn comment_userdata(comment: &str) -> Result<Vec<u8>> {
    let length = u8::try_from(comment.len() + 1).context("the comment of an nf_tables object is too long")?;
    let mut bytes = vec![NFTNL_UDATA_COMMENT, length];
    bytes.extend(comment.as_bytes());
    bytes.push(0);
    Ok(bytes)
}

pub(super) fn comment_of(userdata: &[u8]) -> Option<String> {
    let value = entry_of(userdata, NFTNL_UDATA_COMMENT)?;
    Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned())
}

fn entry_of(mut userdata: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        let (&[kind, length], rest) = userdata.split_first_chunk()?;
        let (value, next) = rest.split_at_checked(length.into())?;
        if kind == wanted {
            return Some(value);
        }
        userdata = next;
    }
}

/// Our own entry, see [`Table::content`]; nft(8) passes over types that it does not know.
const UDATA_CONTENT: u8 = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_survive_userdata() {
        let bytes = userdata("hello", b"0123456789abcdef").unwrap();
        assert_eq!(bytes, b"\0\x06hello\0\xc8\x100123456789abcdef");
        assert_eq!(comment_of(&bytes).as_deref(), Some("hello"));
        assert_eq!(entry_of(&bytes, UDATA_CONTENT), Some(&b"0123456789abcdef"[..]));
        assert_eq!(comment_of(&userdata("", &[0; 16]).unwrap()), None);
        assert_eq!(comment_of(&[1, 2, 9, 9, 0, 2, b'x', 0]).as_deref(), Some("x"));
        assert_eq!(comment_of(&[0, 9, b'x']), None);
    }
}
