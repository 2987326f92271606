//! Faults in the network of a lab: what is wrong between two ends of it, in one direction. Pure: the kernel keeps
//! them, as rules whose comments are the texts made and read here.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Serialize, Serializer};

use crate::spec::{Name, quantity};

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Node(Name),
    /// The machine that the lab is on, and all that reaches the lab through it.
    Host,
}

/// What is wrong with the packets of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// None arrives.
    Cut,
    /// As many in a million are lost.
    Loss(u32),
    /// What goes beyond as many bits a second is lost.
    Rate(u64),
    /// They arrive later.
    Delay(Duration),
}

/// A fault in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub from: End,
    pub to: End,
    pub kind: Kind,
}

impl Fault {
    /// Whether it lies between these two, in either direction.
    pub fn is_between(&self, a: &End, b: &End) -> bool {
        (&self.from, &self.to) == (a, b) || (&self.from, &self.to) == (b, a)
    }

    pub fn touches(&self, end: &End) -> bool {
        self.from == *end || self.to == *end
    }

    /// Whether this one takes the place of the other: one of a kind in each direction.
    pub fn replaces(&self, other: &Fault) -> bool {
        (&self.from, &self.to, self.kind.word()) == (&other.from, &other.to, other.kind.word())
    }
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Loss(_) => "loss",
            Self::Rate(_) => "rate",
            Self::Delay(_) => "delay",
        }
    }

    /// How much of it, as on the command line.
    pub fn amount(self) -> Option<String> {
        match self {
            Self::Cut => None,
            Self::Loss(per_million) => Some(format!("{}%", f64::from(per_million) / 10_000.0)),
            Self::Rate(bits) => Some(quantity::human_bits(bits)),
            Self::Delay(time) => Some(humantime::format_duration(time).to_string().replace(' ', "")),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => name.fmt(f),
            // No node can be called so.
            Self::Host => f.pad(HOST),
        }
    }
}

const HOST: &str = "(host)";

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == HOST { Ok(Self::Host) } else { text.parse().map(Self::Node) }
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        self.amount().map_or(Ok(()), |amount| write!(f, " {amount}"))
    }
}

/// The comment of its rule: `a > b: loss 10%`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}: {}", self.from, self.to, self.kind)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no fault");
        let (ends, kind) = text.split_once(": ").ok_or_else(wrong)?;
        let (from, to) = ends.split_once(" > ").ok_or_else(wrong)?;
        let kind = match kind.split_once(' ') {
            None if kind == "cut" => Kind::Cut,
            Some(("loss", amount)) => Kind::Loss(quantity::percent(amount)?),
            Some(("rate", amount)) => Kind::Rate(quantity::bits(amount)?),
            Some(("delay", amount)) => Kind::Delay(quantity::duration(amount)?),
            _ => return Err(wrong()),
        };
        Ok(Fault { from: from.parse()?, to: to.parse()?, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        text.parse().unwrap()
    }

    #[test]
    fn a_comment_says_all_of_a_fault() {
        let texts = [
            "a > b: cut",
            "a > (host): cut",
            "(host) > a: loss 0.5%",
            "a-1 > b_2: rate 1mbit",
            "a > b: rate 1500kbit",
            "a > b: delay 1s500ms",
        ];
        for text in texts {
            assert_eq!(fault(text).to_string(), text);
        }
        for bad in ["", "a > b", "a > b: cut 1", "a > b: loss", "a > B: cut", "a: cut", "a > b: rain 1"] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
        assert_eq!(fault("a > b: loss 0.0001%").kind, Kind::Loss(1));
        // What the kernel keeps of a comment is 127 bytes.
        let longest = format!("{0} > {0}: delay 23h59m59s999ms999us999ns", "x".repeat(40));
        assert!(fault(&longest).to_string().len() <= 127);
    }

    #[test]
    fn one_of_a_kind_in_each_direction() {
        let cut = fault("a > b: cut");
        assert!(fault("a > b: loss 1%").replaces(&fault("a > b: loss 2%")));
        assert!(!fault("a > b: loss 1%").replaces(&cut) && !fault("b > a: cut").replaces(&cut));
        let end = |text: &str| text.parse::<End>().unwrap();
        assert!(cut.is_between(&end("b"), &end("a")) && !cut.is_between(&end("a"), &end("c")));
        assert!(cut.touches(&end("b")) && !cut.touches(&end("(host)")));
    }
}
