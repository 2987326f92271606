//! Synchronous replication: whom a commit waits for (PostgreSQL manual 20.6.2, `synchronous_standby_names`).
//!
//! The rule that surprises people: the server takes names of standbys that do not exist, and then every commit waits for
//! ever. The rule here is what the user wants; what a server is told names only standbys that are there.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Name;

/// What a user can write.
pub const GRAMMAR: &str = "`any N (NODE, ...)`, `first N (NODE, ...)` or `off`";

/// `any 1 (r1, r2)` or `first 2 (r1, r2, r3)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRule {
    pub method: Method,
    /// How many of them must have a commit before it is acknowledged.
    pub count: usize,
    pub names: Vec<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Whichever are fastest.
    Any,
    /// Those that are named first, as long as they are connected.
    First,
}

impl SyncRule {
    /// The rule that waits for one of these.
    pub fn any(names: Vec<Name>) -> Self {
        Self { method: Method::Any, count: 1, names }
    }

    /// The rule with one more standby to choose from; how many of them a commit waits for stays the same.
    pub fn with(mut self, name: &Name) -> Self {
        if !self.names.contains(name) {
            self.names.push(name.clone());
        }
        self
    }

    /// The rule without a node that is to go. The seat of a primary goes to those who sat in it: `heirs`, its followers.
    /// `None` when nobody is left to wait for.
    pub fn without(mut self, name: &Name, heirs: &[Name]) -> Option<Self> {
        if self.names.contains(name) {
            self.names.retain(|own| own != name);
            let new = |heir: &&Name| !self.names.contains(heir);
            let heirs: Vec<Name> = heirs.iter().filter(new).cloned().collect();
            self.names.extend(heirs);
        }
        self.count = self.count.min(self.names.len());
        (self.count > 0).then_some(self)
    }

    /// Whether one of those that are named has every commit that was acknowledged by this rule, as it is at `own` and others of
    /// them are at `others`: of so many one has every commit, and none has more. Where the rest is nobody knows.
    pub fn is_covered<P: PartialOrd>(&self, own: P, others: &[P]) -> bool {
        let known = others.len() + 1;
        known + self.count > self.names.len() && others.iter().all(|other| *other <= own)
    }

    /// What a primary is to be told that was told `told` before: its followers, with whether each is behind on purpose, as far as
    /// they are in that, or `join` now. That is asked with whether the rule names them, or leaves them a free seat, and not at all
    /// where it makes no difference.
    pub fn due<'n>(
        &self,
        left: &[Name],
        told: &str,
        followers: impl Iterator<Item = (&'n Name, bool)>,
        joins: impl Fn(&Name, bool) -> bool,
    ) -> String {
        let is_named = |name: &Name| self.names.contains(name);
        // Of whom is behind on purpose nobody means that commits should wait for it, unless it is said.
        let mut names: Vec<Name> = followers
            .filter(|(name, is_late)| is_named(name) || !is_late)
            .map(|(name, _)| name.clone())
            .collect();
        if self.in_effect(left, &names) != told {
            let known = told.parse::<Self>().map_or(Vec::new(), |rule| rule.names);
            names.retain(|name| known.contains(name) || joins(name, is_named(name)));
        }
        self.in_effect(left, &names)
    }

    /// What a primary is to be told while these standbys follow it: a value for
    /// `synchronous_standby_names`, empty when nobody is left to wait for. A member that has become the primary has left
    /// its seat to whoever follows it now and is not in the rule; and so has one whose place the primary has taken. `left`
    /// are the primary and those that were it before.
    pub fn in_effect(&self, left: &[Name], followers: &[Name]) -> String {
        let seat_free = self.names.iter().any(|name| left.contains(name));
        let waits_for = |name: &&Name| self.names.contains(name) || seat_free;
        let mut names: Vec<&Name> = followers.iter().filter(waits_for).collect();
        // In the order of the rule, which counts for `first`; who is not in it comes last.
        names.sort_by_key(|name| self.names.iter().position(|own| own == *name).unwrap_or(usize::MAX));
        match names.len().min(self.count) {
            0 => String::new(),
            count => {
                let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
                format!("{} {count} ({})", self.method.word().to_uppercase(), quoted.join(", "))
            }
        }
    }
}

/// What a server was told, in the words of a rule.
pub fn shown(value: &str) -> String {
    value.parse::<SyncRule>().map_or_else(|_| value.to_owned(), |rule| rule.to_string())
}

impl Method {
    fn word(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::First => "first",
        }
    }
}

impl fmt::Display for SyncRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.names.iter().map(Name::as_str).collect();
        write!(f, "{} {} ({})", self.method.word(), self.count, names.join(", "))
    }
}

impl FromStr for SyncRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is no rule: {why}; a rule is {GRAMMAR}");
        let (head, names) = match text.split_once('(') {
            Some((head, rest)) => {
                (head, rest.trim_end().strip_suffix(')').ok_or_else(|| wrong("a `)` is missing"))?)
            }
            None => ("any 1", text),
        };
        let names = names.split(',').map(|name| name.trim().trim_matches('"').parse::<Name>());
        let names = names.collect::<Result<Vec<Name>, _>>().map_err(|error| wrong(&error))?;
        if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return Err(wrong(&format!("`{}` is in it twice", twice.1)));
        }
        let mut words = head.split_whitespace();
        let method = match words.next().map(str::to_lowercase).as_deref() {
            Some("any") => Method::Any,
            Some("first") => Method::First,
            _ => return Err(wrong("it begins with neither `any` nor `first`")),
        };
        let count = words.next().unwrap_or("1").parse().map_err(|_| wrong("the count is no number"))?;
        match (words.next(), count) {
            (Some(word), _) => Err(wrong(&format!("`{word}` means nothing here"))),
            (_, count) if count == 0 || count > names.len() => {
                Err(wrong("N is at least 1, and at most as many as are named"))
            }
            _ => Ok(Self { method, count, names }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<Name> {
        list.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn rules_are_read_and_shown() {
        let rule: SyncRule = "ANY 1 (r1,\"r2\")".parse().unwrap();
        assert_eq!(rule.to_string(), "any 1 (r1, r2)");
        assert_eq!(shown("ANY 1 (\"r1\")"), "any 1 (r1)");
        assert_eq!(shown("*"), "*", "somebody else's");
        assert_eq!("first 2 (a, b, c)".parse::<SyncRule>().unwrap().method, Method::First);
        assert_eq!("r1".parse::<SyncRule>().unwrap(), SyncRule::any(names(&["r1"])));
        for bad in [
            "",
            "any (r1",
            "any 0 (r1)",
            "any 2 (r1)",
            "some 1 (r1)",
            "any 1 2 (r1)",
            "any 1 (R1)",
            "any 2 (r1, r1)",
        ] {
            assert!(bad.parse::<SyncRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn who_joins_is_one_more_to_choose_from_and_who_leaves_is_not_waited_for() {
        let rule: SyncRule = "first 2 (r1, r2)".parse().unwrap();
        let [r1, r2, r3, p] = &names(&["r1", "r2", "r3", "p"])[..] else { unreachable!() };
        assert_eq!(rule.clone().with(r3).to_string(), "first 2 (r1, r2, r3)");
        assert_eq!(rule.clone().with(r1), rule);
        assert_eq!(rule.clone().without(r1, &[]).unwrap().to_string(), "first 1 (r2)");
        assert_eq!(rule.clone().without(r3, &[]), Some(rule.clone()));
        assert_eq!(rule.clone().without(r1, &[]).unwrap().without(r2, &[]), None);
        // r1 had become the primary, and p sat in its place.
        let seats = rule.without(r1, &[p.clone(), r2.clone()]).unwrap();
        assert_eq!(seats.to_string(), "first 2 (r2, p)");
    }

    #[test]
    fn who_has_every_commit_is_known_where_too_few_are_left_to_have_one_more() {
        let covered =
            |rule: &str, own: u64, others: &[u64]| rule.parse::<SyncRule>().unwrap().is_covered(own, others);
        assert!(covered("any 1 (a)", 5, &[]));
        // The other one may be the one that has it.
        assert!(!covered("any 1 (a, b)", 5, &[]));
        assert!(covered("any 1 (a, b)", 5, &[5]) && covered("any 1 (a, b)", 5, &[4]));
        assert!(!covered("any 1 (a, b)", 5, &[6]));
        assert!(covered("any 2 (a, b)", 5, &[]) && covered("first 2 (a, b, c)", 5, &[4]));
        assert!(!covered("first 2 (a, b, c)", 5, &[]) && !covered("any 1 (a, b, c)", 5, &[5]));
        assert!(!covered("any 2 (a, b, c)", 5, &[4, 6]));
    }

    #[test]
    fn who_was_waited_for_stays_so_and_who_comes_is_asked() {
        let rule: SyncRule = "any 1 (r1, r2)".parse().unwrap();
        let due = |left: &str, told: &str, followers: &[&str], join: &[&str]| {
            let (followers, join) = (names(followers), names(join));
            let followers = followers.iter().map(|name| (name, name.as_str() == "late"));
            rule.due(&names(&[left]), told, followers, |name, _| join.contains(name))
        };
        let [one, both] = ["ANY 1 (\"r1\")", "ANY 1 (\"r1\", \"r2\")"];
        assert_eq!(due("p", "", &["r1", "r2"], &["r1"]), one);
        assert_eq!(due("p", one, &["r1", "r2"], &[]), one);
        assert_eq!(due("p", one, &["r1", "r2"], &["r2"]), both);
        assert_eq!(due("p", both, &["r1", "r2"], &[]), both);
        assert_eq!(due("p", both, &["r1"], &[]), one);
        // The free seat of r2 is nobody's who is behind on purpose.
        assert_eq!(due("r2", one, &["r1", "late", "x"], &["late", "x"]), "ANY 1 (\"r1\", \"x\")");
        assert_eq!(due("r2", one, &["r1", "x"], &[]), one);
    }

    #[test]
    fn only_standbys_that_are_there_are_waited_for() {
        let rule: SyncRule = "any 1 (r1, r2)".parse().unwrap();
        let in_effect =
            |left: &str, followers: &[&str]| rule.in_effect(&names(&[left, "head"]), &names(followers));
        assert_eq!(in_effect("primary", &["r1", "r2"]), "ANY 1 (\"r1\", \"r2\")");
        assert_eq!(in_effect("primary", &["r2", "other"]), "ANY 1 (\"r2\")");
        assert_eq!(in_effect("primary", &[]), "");
        // r1 was promoted: the old primary sits in its place once it follows.
        assert_eq!(in_effect("r1", &["r2"]), "ANY 1 (\"r2\")");
        assert_eq!(in_effect("r1", &["primary", "r2"]), "ANY 1 (\"r2\", \"primary\")");
        // Or r1 was the primary before this one, and is not back.
        assert_eq!(in_effect("r1", &["other"]), "ANY 1 (\"other\")");
    }
}
