//! Commands about a whole lab.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::spec::quantity;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox up                   a primary and a standby\n  pgbox up lab.toml --diff   what an edited file would change, and what that costs"
)]
pub struct Up {
    /// The file that describes the lab; without one a primary and a standby, or what there is
    pub file: Option<PathBuf>,
    /// Only print what would change, and what that costs
    #[arg(long, visible_alias = "dry-run")]
    pub diff: bool,
    /// Print JSON
    #[arg(long, requires = "diff")]
    pub json: bool,
    /// Remove nodes that the file does not name; their volumes are kept
    #[arg(long, requires = "file")]
    pub prune: bool,
    /// How long each node may take
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = quantity::duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pgbox down && pgbox up      the same data in new containers")]
pub struct Down {
    /// The file of the lab that is meant, if that names one
    pub file: Option<PathBuf>,
    /// Also remove the volumes, with all data
    #[arg(short, long)]
    pub volumes: bool,
    /// Only print what would be removed
    #[arg(long)]
    pub dry_run: bool,
}
