//! Commands that look at a whole lab, wait for it, and set it.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::spec::{Name, quantity};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox status\n  pgbox status --json | jq '.clusters[].nodes[] | {node, state, lag_bytes}'"
)]
pub struct Status {
    /// These nodes; all of the lab if none is named
    #[arg(value_name = "NODE")]
    pub nodes: Vec<Name>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgbox lag\n  pgbox lag --watch --interval 200ms")]
pub struct Lag {
    /// Look again and again, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = quantity::duration)]
    pub interval: Duration,
    /// Print JSON; with --watch one line for each look
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox wait primary\n  pgbox wait r1 --for caught-up --timeout 10s\n  pgbox wait r1 --for role=primary"
)]
pub struct Wait {
    /// Name of the node
    pub node: Name,
    /// What to wait for
    #[arg(long = "for", value_name = "STATE", default_value = "ready")]
    pub goal: Goal,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = quantity::duration)]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// Its Postgres answers a query
    Ready,
    /// It has ended
    Stopped,
    /// The server that it follows streams to it
    Streaming,
    /// It has replayed what the primary had written when the wait began
    CaughtUp,
    /// It takes writes
    #[value(name = "role=primary")]
    Primary,
    /// It replays what another one writes
    #[value(name = "role=standby")]
    Standby,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgbox slots\n  pgbox slots --drop forgotten")]
pub struct Slots {
    /// Print JSON
    #[arg(long, conflicts_with = "drop")]
    pub json: bool,
    /// Drop the slot of this name
    #[arg(long, value_name = "SLOT")]
    pub drop: Option<String>,
    /// The node that has it, where several have one of this name
    #[arg(long, value_name = "NODE", requires = "drop")]
    pub on: Option<Name>,
    /// Drop it also if it is in use, or its standby exists
    #[arg(short, long, requires = "drop")]
    pub force: bool,
    /// Only print what would be dropped
    #[arg(long, requires = "drop")]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox set primary work_mem=64MB\n  pgbox set --all max_connections=200      standbys first, as Postgres wants it\n  pgbox set r1 --reset work_mem"
)]
pub struct Set {
    /// Nodes, and settings for them
    #[arg(value_name = "NODE|NAME=VALUE")]
    pub words: Vec<String>,
    /// All nodes of the lab; `--lab` before NAME=VALUE means the same
    #[arg(long)]
    pub all: bool,
    /// Leave a setting to what it is without you
    #[arg(long, value_name = "NAME")]
    pub reset: Vec<String>,
    /// Only print what would be set where, and in which order
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox sync 'any 1 (r1, r2)'      a commit is on one of them, too, before it is acknowledged\n  pgbox sync off                   commits that wait go through"
)]
pub struct Sync {
    /// `any N (NODE, ...)`, `first N (NODE, ...)` or `off`; without it the rule is shown
    #[arg(value_name = "RULE")]
    pub rule: Vec<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "rule")]
    pub json: bool,
}

/// `set --lab max_connections=200`: no lab can have such a name, so the lab itself is meant.
pub fn lab_is_meant(args: impl Iterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut args: Vec<_> = args.collect();
    let own = args.iter().take_while(|arg| *arg != "--");
    let Some(set) = own.clone().position(|arg| arg == "set") else { return args };
    let end = own.count();
    for at in set..end {
        let next = args.get(at + 1).and_then(|next| next.to_str()).unwrap_or("-");
        if args[at] == "--lab" && (next.contains('=') || next.starts_with('-')) {
            args[at] = "--all".into();
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_no_name_of_a_lab() {
        let rewritten = |text: &str| {
            let args = lab_is_meant(text.split(' ').map(Into::into));
            args.into_iter().map(|arg| arg.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(rewritten("pgbox set --lab a=1"), "pgbox set --all a=1");
        assert_eq!(rewritten("pgbox --lab x set --lab --reset a"), "pgbox --lab x set --all --reset a");
        assert_eq!(rewritten("pgbox set n --lab x a=1"), "pgbox set n --lab x a=1");
        assert_eq!(rewritten("pgbox run --lab a=1"), "pgbox run --lab a=1");
    }
}
