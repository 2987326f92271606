//! `pgbox drive` and `pgbox verify`.

use std::{net::SocketAddrV4, time::Duration};

use clap::{Args, Subcommand};

use crate::spec::{Name, quantity};

#[derive(Debug, Subcommand)]
pub enum Drive {
    /// Start writers in the background; returns when a first row was acknowledged
    Start(DriveStart),
    /// End them, and print the report
    Stop(DriveReport),
    /// Print what the last writers have come to
    Report(DriveReport),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox drive start --writers 8\n  pgbox drive start --rate 100 --for 1min\n\nThe writers insert into the table pgbox_drive. They run until `pgbox drive stop`, or until the lab is gone."
)]
pub struct DriveStart {
    /// How many writers, each with a session of its own
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub writers: u32,
    /// Commits per second of each writer; as fast as they go unless given
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// Rows in each commit
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=10000))]
    pub rows_per_commit: u16,
    /// End by themselves after this time
    #[arg(long = "for", value_name = "TIME", value_parser = quantity::duration)]
    pub time: Option<Duration>,
    /// How long a commit may take before it is given up as unknown
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = quantity::duration)]
    pub patience: Duration,
    /// Write to this node, not to the lab's primary
    #[arg(long, value_name = "NODE", conflicts_with = "address")]
    pub node: Option<Name>,
    /// Write to this address, whoever answers there
    #[arg(long, value_name = "IP:PORT")]
    pub address: Option<SocketAddrV4>,
    /// Begin anew: drop the table, and forget what was acknowledged before
    #[arg(long)]
    pub fresh: bool,
}

#[derive(Debug, Args)]
pub struct DriveReport {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox verify && echo 'nothing is lost'\n  pgbox verify --json | jq .missing\n\nExit code 1 if an acknowledged row is missing. The writers may be at work meanwhile."
)]
pub struct Verify {
    /// Ask this node, not the lab's primary
    #[arg(long, value_name = "NODE")]
    pub node: Option<Name>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.01..=1e6).contains(&rate) => Ok(rate),
        _ => Err(format!("`{text}` is not a rate; write a number of commits per second, for example 100")),
    }
}
