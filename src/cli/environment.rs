//! Commands that tell programs of this host how to connect.

use clap::Args;

use crate::spec::Name;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  eval \"$(pgbox env)\" && psql\n  pgbox env r1 --json")]
pub struct Env {
    /// Name of the node; the lab's primary if none is named
    pub node: Option<Name>,
    /// Use the published port, not the node's own address
    #[arg(long)]
    pub published: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox with -- pgbench -i -s 10\n  pgbox with r1 -- psql -c 'SELECT pg_is_in_recovery()'"
)]
pub struct With {
    /// Name of the node; the lab's primary if none is named
    pub node: Option<Name>,
    /// Use the published port, not the node's own address
    #[arg(long)]
    pub published: bool,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}
