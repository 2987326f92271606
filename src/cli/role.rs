//! Commands about roles: who follows whom, and who is the primary.

use std::time::Duration;

use clap::Args;

use super::Limits;
use crate::spec::{Copying, Name, Publish, Restart, Volume, quantity};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox replica r1 --of primary --sync\n  pgbox replica late --of primary --delay 5min -p 5434:5432"
)]
pub struct Replica {
    /// Name of the new node
    pub node: Name,
    /// The node that it follows; a standby will do as well
    #[arg(long, value_name = "NODE")]
    pub of: Name,
    /// Have commits wait for it: it joins the lab's rule, or makes one, `any 1 (NAME)`
    #[arg(long)]
    pub sync: bool,
    /// Apply changes this much later than the primary
    #[arg(long, value_name = "TIME", value_parser = quantity::duration)]
    pub delay: Option<Duration>,
    /// The image; that of the other node unless given, whatever its name stands for by now
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Make it even if its C library is another one, under which indexes on text may miss rows, or if its volume has data that
    /// have gone their own way: what only they have is given up
    #[arg(short, long)]
    pub force: bool,
    /// Bytes a second that the base backup may take, for example 20m
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    pub rate: Option<u64>,
    /// Clone the other node's files (reflink), have pg_basebackup copy them (basebackup), or clone where the file system can
    /// (auto)
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub copy: Copying,
    /// Mount a named volume or a directory of the host
    #[arg(short, long = "volume", value_name = "SOURCE:TARGET[:ro]")]
    pub volumes: Vec<Volume>,
    /// Publish a port of the node on this host
    #[arg(short, long, value_name = "[IP:]HOST:PORT")]
    pub publish: Vec<Publish>,
    /// Set a configuration parameter of the server, besides those of the other node
    #[arg(short = 'c', long = "config", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    #[command(flatten)]
    pub limits: Limits,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    pub shm_size: Option<u64>,
    /// When Postgres ends by itself: no, on-crash or on-crash:N
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<Restart>,
    /// How long the base backup and the first answer may take
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = quantity::duration)]
    pub timeout: Duration,
    /// Only print the steps
    #[arg(long)]
    pub dry_run: bool,
    /// Only print the steps, with the reason for each
    #[arg(long)]
    pub explain: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox failover r1 --dry-run      what would be lost\n  pgbox failover r1                refuses if anything would"
)]
pub struct Failover {
    /// The standby that is to become the primary; without it, they are listed
    pub node: Option<Name>,
    /// Go on even if acknowledged transactions are lost
    #[arg(long)]
    pub accept_loss: bool,
    /// Only print what would be done, and lost
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pgbox switchover r1      r1 is the primary, and the old primary its standby"
)]
pub struct Switchover {
    /// The standby that is to become the primary; without it, they are listed
    pub node: Option<Name>,
    /// How long the old primary may take to shut down, and then to stream
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = quantity::duration)]
    pub timeout: Duration,
    /// Only print what would be done
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pgbox rejoin primary     after a failover: as it is, or by pg_rewind, or else a new base backup"
)]
pub struct Rejoin {
    /// The node that is to come back
    pub node: Name,
    /// Do not try pg_rewind: replace the data by a new base backup
    #[arg(long)]
    pub clone: bool,
    /// How long it may take until it streams
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = quantity::duration)]
    pub timeout: Duration,
    /// Only print what would be done
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Reinit {
    /// The standby
    pub node: Name,
    /// How long it may take until it streams
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = quantity::duration)]
    pub timeout: Duration,
    /// Only print what would be done
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox guard                      until Ctrl-C; one for each lab\n  pgbox guard --detect 300ms --json > guard.log &\n\nWithout a guard nothing fails over by itself."
)]
pub struct Guard {
    /// How long the primary may give no answer; its death is seen at once
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = quantity::duration)]
    pub detect: Duration,
    /// Fail over even if acknowledged transactions are lost
    #[arg(long)]
    pub accept_loss: bool,
    /// A node of the cluster that is meant, where the lab has several
    #[arg(long, value_name = "NODE")]
    pub node: Option<Name>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}
