//! Commands that break things on purpose.

use std::time::Duration;

use clap::{Args, Subcommand};
use nix::sys::signal::Signal;

use crate::spec::{Name, quantity};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox crash primary                the postmaster dies of SIGKILL\n  pgbox crash primary --node         the whole node, as by a power cut"
)]
pub struct Crash {
    /// Name of the node
    pub node: Name,
    /// Signal for the postmaster: a number, or a name such as KILL, ABRT, STOP
    #[arg(long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    pub signal: Signal,
    /// Kill pid 1, and with it every process of the node
    #[arg(long = "node", conflicts_with = "signal")]
    pub whole: bool,
    /// Only print what would be killed
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pgbox freeze primary     it answers nobody, and its connections stay open; `pgbox thaw primary`"
)]
pub struct Freeze {
    /// Names of the nodes
    #[arg(required = true, value_name = "NODE")]
    pub nodes: Vec<Name>,
}

#[derive(Debug, Args)]
pub struct Thaw {
    /// Names of the nodes
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NODE")]
    pub nodes: Vec<Name>,
    /// All nodes of the lab that are frozen
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Subcommand)]
pub enum Net {
    /// Let nothing pass between two nodes; connections that stand are hit, too
    Cut(Pair),
    /// Lose a share of the packets, by chance
    Loss {
        #[command(flatten)]
        pair: Pair,
        /// For example 10%
        #[arg(value_parser = quantity::percent)]
        share: u32,
    },
    /// Lose what goes beyond a rate; nothing is queued
    Rate {
        #[command(flatten)]
        pair: Pair,
        /// For example 1mbit
        #[arg(value_parser = quantity::bits)]
        rate: u64,
    },
    /// Hold packets back; the kernel must have netem
    Delay {
        #[command(flatten)]
        pair: Pair,
        /// For example 50ms
        #[arg(value_parser = quantity::duration)]
        time: Duration,
    },
    /// Take away all faults between two nodes
    Heal(Heal),
    /// List the faults that the kernel has
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Two nodes, or a node and the word `host`.
#[derive(Debug, Args)]
pub struct Pair {
    /// A node, or `host`
    #[arg(value_name = "A")]
    pub a: Name,
    /// Another node, or `host`: this machine and all that reaches the lab through it
    #[arg(value_name = "B")]
    pub b: Name,
    /// Only what A sends to B
    #[arg(long)]
    pub one_way: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgbox net heal primary r1\n  pgbox net heal --all")]
pub struct Heal {
    /// A node, or `host`
    #[arg(value_name = "A", required_unless_present = "all", requires = "b")]
    pub a: Option<Name>,
    /// Another node, or `host`
    #[arg(value_name = "B")]
    pub b: Option<Name>,
    /// All faults of the lab
    #[arg(long, conflicts_with = "a")]
    pub all: bool,
}

/// A signal from its number or its name, with or without SIG, in either case.
fn signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let number = text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    number
        .or_else(|| name.parse().ok())
        .ok_or_else(|| format!("`{text}` is not a signal; write a name such as KILL, or a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["9", "KILL", "SIGKILL", "kill", "sigkill"] {
            assert_eq!(signal(text), Ok(Signal::SIGKILL), "{text}");
        }
        for bad in ["", "0", "99", "-9", "NOSUCH", "SIG"] {
            assert!(signal(bad).unwrap_err().contains(&format!("`{bad}`")), "{bad}");
        }
    }
}
