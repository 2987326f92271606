//! The life of nodes that are there: `stop`, `start`, `restart`, `limit`, `rm`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Limits;
use crate::spec::{Name, quantity};

#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    pub which: Which,
    /// Time, in seconds or as 5s or 2min, until an immediate shutdown follows
    #[arg(short, long = "time", value_name = "TIME", value_parser = quantity::duration)]
    pub timeout: Option<Duration>,
    /// Shutdown mode of Postgres
    #[arg(long, default_value = "fast")]
    pub mode: Mode,
}

#[derive(Debug, Args)]
pub struct Restart {
    #[command(flatten)]
    pub which: Which,
    /// Time, in seconds or as 5s or 2min, that the fast shutdown may take until an immediate one follows
    #[arg(short, long = "time", value_name = "TIME", value_parser = quantity::duration)]
    pub timeout: Option<Duration>,
}

/// Nodes by name, or every one.
#[derive(Debug, Args)]
pub struct Which {
    /// Names of the nodes
    #[arg(required_unless_present = "all", value_name = "NODE")]
    pub nodes: Vec<Name>,
    /// All nodes of the lab, a primary before its standbys
    #[arg(short, long, conflicts_with = "nodes")]
    pub all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Wait for every client to leave
    Smart,
    /// Roll back what is open, write a checkpoint
    Fast,
    /// Stop at once; the next start recovers
    Immediate,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox start primary\n  pgbox start --all               a primary before its standbys"
)]
pub struct Start {
    #[command(flatten)]
    pub which: Which,
    /// Stay in the foreground, show the log, and stop the node on Ctrl-C
    #[arg(long)]
    pub foreground: bool,
    /// How long to wait for the first answer
    #[arg(long, value_name = "TIME", default_value = "5min", value_parser = quantity::duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox limit primary --memory 1g --cpus 2\n  pgbox limit primary --memory max"
)]
pub struct Limit {
    /// Name of the node
    pub node: Name,
    #[command(flatten)]
    pub limits: Limits,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox rm --force r1             stops it first; its data stay in the volume `r1`\n  pgbox rm --force -v r1          with all data"
)]
pub struct Rm {
    /// Names of the nodes
    #[arg(required = true, value_name = "NODE")]
    pub nodes: Vec<Name>,
    /// Also remove the volumes that pgbox made for them, with all data
    #[arg(short, long)]
    pub volumes: bool,
    /// Stop them first if they run
    #[arg(short, long)]
    pub force: bool,
    /// Only print what would be removed
    #[arg(long)]
    pub dry_run: bool,
}
