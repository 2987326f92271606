//! The command line: with its submodules the only place that knows clap. Help, completions and the reference page all come
//! from the definitions below.

mod alone;
mod drive;
mod fault;
mod image;
mod lab;
mod later;
mod life;
mod overview;
mod role;
mod uri;
mod watch;

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;

pub use drive::{Drive, DriveReport, DriveStart, Verify};
pub use fault::{Crash, Freeze, Heal, Net, Pair, Thaw};
pub use image::{Build, Compression, Image, VolumeLs, Volumes};
pub use lab::{Down, Up};
pub use later::Later;
pub use life::{Limit, Mode, Restart, Rm, Start, Stop, Which};
pub use role::{Failover, Guard, Reinit, Rejoin, Replica, Switchover};
pub use uri::{As, Endpoint, Env, Uri, Whom, With};
pub use watch::{Goal, Lag, Set, Slots, Status, Sync, Wait};

use crate::spec::{
    self, Name, Publish, Volume, name,
    quantity::{self, Bound},
};

#[derive(Debug, Parser)]
#[command(
    name = "pgbox",
    version,
    about = "Running Postgres servers from OCI images, with nothing but Linux primitives",
    after_help = "Examples:\n  pgbox run primary -p 5433:5432      a Postgres that answers on 127.0.0.1:5433\n  pgbox run primary --explain         every step that takes, and why",
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command works on.
#[derive(Debug, Args)]
pub struct Place {
    /// Where images, volumes and nodes are kept (PGBOX_ROOT)
    #[arg(long, global = true, env = "PGBOX_ROOT", default_value = name::DEFAULT_ROOT, value_name = "DIR", hide_env = true, display_order = 900)]
    pub root: PathBuf,
    /// The lab: a set of nodes on one bridge (PGBOX_LAB)
    #[arg(long, global = true, env = "PGBOX_LAB", default_value = name::DEFAULT_LAB, value_name = "NAME", hide_env = true, display_order = 900)]
    pub lab: Name,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a node and start it; returns when its Postgres answers queries
    Run(Later<Run>),
    /// Create a standby of a node by a base backup; returns when it streams
    Replica(Later<Replica>),
    /// Bring a whole lab up, or to what an edited file says of it
    Up(Later<Up>),
    /// Stop and remove all nodes of a lab; volumes are kept without -v
    Down(Later<Down>),
    /// Make a standby the primary after the primary has died, or without one
    #[command(
        after_help = "Examples:\n  pgbox promote r1 --dry-run       what would be lost\n  pgbox promote r1                 as `failover`, but refuses while the primary runs"
    )]
    Promote(Later<Failover>),
    /// Change the primary as planned: nothing is lost, and the old one follows the new
    Switchover(Later<Switchover>),
    /// Make a standby the primary at once; refuses if acknowledged rows would be lost
    Failover(Later<Failover>),
    /// Watch the primary, and fail over when it dies or is cut off, until it is ended itself
    Guard(Later<Guard>),
    /// Bring a node back as a standby of the primary that there is now
    Rejoin(Later<Rejoin>),
    /// Replace a standby's data by a new base backup
    Reinit(Later<Reinit>),
    /// List the nodes of a lab: state, image, address, published ports
    #[command(
        after_help = "Examples:\n  pgbox ps\n  pgbox rm --force $(pgbox ps -q)      all of them; their data stay"
    )]
    Ps(Later<Ps>),
    /// Show what a node has written to its log
    Logs(Later<Logs>),
    /// Run a command in a running node
    Exec(Later<Exec>),
    /// Open psql in a node, as its superuser
    Psql(Later<Psql>),
    /// Print a connection string for a node, or for whichever one takes writes or reads
    Uri(Later<Uri>),
    /// Print PGHOST and the like for a shell: eval "$(pgbox env)"
    Env(Later<Env>),
    /// Run a command of this host with PGHOST and the like set for a node
    With(Later<With>),
    /// Show where the lab's two stable addresses lead, or publish them on this host
    Endpoint(Later<Endpoint>),
    /// Show all that is known of nodes: role, network, cgroup, data, image, options
    #[command(
        after_help = "Examples:\n  pgbox inspect primary\n  pgbox inspect primary --json | jq -r '.[].data'"
    )]
    Inspect(Later<Nodes>),
    /// Show what nodes use of memory, CPU and network
    Stats(Later<Listing>),
    /// Show the lab: who follows whom, how far each one is, and what waits
    Status(Later<Status>),
    /// Show how far standbys are behind
    Lag(Later<Lag>),
    /// Show replication slots and what they keep, or drop one
    Slots(Later<Slots>),
    /// Wait until a node is ready, streams, has caught up, has a role, or has stopped
    Wait(Later<Wait>),
    /// Change settings of servers; restarts what must be restarted, in the right order
    Set(Later<Set>),
    /// Say whom commits wait for, or show how many wait
    Sync(Later<Sync>),
    /// Stop nodes: a fast shutdown, data and address are kept
    #[command(
        after_help = "Examples:\n  pgbox stop primary\n  pgbox stop --all                the whole lab; `pgbox start --all` brings it back"
    )]
    Stop(Later<Stop>),
    /// Start stopped nodes: same address, same data
    Start(Later<Start>),
    /// Restart Postgres in place
    #[command(
        after_help = "Examples:\n  pgbox restart primary\n  pgbox restart --all             a primary before its standbys"
    )]
    Restart(Later<Restart>),
    /// Change the limits of a node
    Limit(Later<Limit>),
    /// Kill the postmaster of a node, or the whole node
    Crash(Later<Crash>),
    /// Stop all processes of nodes where they are
    Freeze(Later<Freeze>),
    /// Let frozen nodes go on
    Thaw(Later<Thaw>),
    /// Faults in the network between nodes: cut, loss, rate, delay
    #[command(subcommand)]
    Net(Later<Net>),
    /// Remove nodes; volumes are kept without -v
    Rm(Later<Rm>),
    /// Images: build, import, list, look into
    #[command(subcommand)]
    Image(Later<Image>),
    /// Volumes: list them, also those of no node, and remove them
    #[command(subcommand)]
    Volume(Later<Volumes>),
    /// Writers that remember what was acknowledged: start, stop, report
    #[command(subcommand)]
    Drive(Later<Drive>),
    /// Compare what was acknowledged with what is there; exit code 1 on loss
    Verify(Later<Verify>),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox run primary -p 127.0.0.1:5433:5432 --memory 512m --cpus 1\n  pgbox run --rm -it t postgres:15 -- bash"
)]
pub struct Run {
    /// Name of the node, and its host name
    pub node: Name,
    /// The image
    #[arg(default_value = "postgres:latest")]
    pub image: String,
    /// Set an environment variable (KEY alone takes it from here); those of the official image have their meaning
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Mount a named volume or a directory of the host
    #[arg(short, long = "volume", value_name = "SOURCE:TARGET[:ro]")]
    pub volumes: Vec<Volume>,
    /// Publish a port of the node on this host, on all addresses unless IP is given; PORT alone under its own number
    #[arg(short, long, value_name = "[[IP:]HOST:]PORT")]
    pub publish: Vec<Publish>,
    /// Set a configuration parameter of the server
    #[arg(short = 'c', long = "config", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    #[command(flatten)]
    pub limits: Limits,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", default_value = "256m", value_parser = quantity::bytes)]
    pub shm_size: u64,
    /// When Postgres ends by itself: no, on-crash or on-crash:N
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: spec::Restart,
    /// How long a fast shutdown may take before an immediate one follows
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = quantity::duration)]
    pub stop_timeout: Duration,
    /// Derive memory settings from the memory limit
    #[arg(long, value_name = "HOW")]
    pub tune: Option<Tune>,
    /// Address range of a new lab
    #[arg(long, value_name = "CIDR")]
    pub subnet: Option<Ipv4Net>,
    /// Stay in the foreground, show the log, and stop the node on Ctrl-C
    #[arg(long)]
    pub foreground: bool,
    /// Return as soon as the node is up: so does a server anyway; a command's output then goes to the log
    #[arg(short, long, conflicts_with = "foreground")]
    pub detach: bool,
    /// Give the command a terminal
    #[arg(short, long, conflicts_with_all = ["foreground", "detach"])]
    pub tty: bool,
    /// Accepted for the habit: a command always has our standard input, unless it is detached
    #[arg(short, long, conflicts_with_all = ["foreground", "detach"])]
    pub interactive: bool,
    /// Remove the node when it ends
    #[arg(long)]
    pub rm: bool,
    /// How long to wait for the first answer
    #[arg(long, value_name = "TIME", default_value = "5min", value_parser = quantity::duration)]
    pub timeout: Duration,
    /// Only print the steps
    #[arg(long)]
    pub dry_run: bool,
    /// Only print the steps, with the reason for each
    #[arg(long)]
    pub explain: bool,
    /// Only print the steps as a bash script, which does the same by hand
    #[arg(long, conflicts_with_all = ["dry_run", "explain"])]
    pub emit_shell: bool,
    /// With --emit-shell: the script that takes it back
    #[arg(long, requires = "emit_shell")]
    pub undo: bool,
    /// Options for postgres if they begin with `-`, else a command to run instead of it
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tune {
    Auto,
}

#[derive(Debug, Args, Clone)]
pub struct Limits {
    /// Memory, for example 512m, or max for no limit; more is refused or killed
    #[arg(allow_negative_numbers = true, short, long, value_name = "SIZE", value_parser = |text: &str| Bound::parse(text, quantity::bytes))]
    pub memory: Option<Bound>,
    /// Memory above which it is slowed down and reclaimed, or max; cgroup v2 only
    #[arg(allow_negative_numbers = true, long, value_name = "SIZE", value_parser = |text: &str| Bound::parse(text, quantity::bytes))]
    pub memory_high: Option<Bound>,
    /// Swap on top of memory; none unless given
    #[arg(allow_negative_numbers = true, long, value_name = "SIZE", value_parser = quantity::bytes, requires = "memory")]
    pub swap: Option<u64>,
    /// CPUs, for example 0.5, or max
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = |text: &str| Bound::parse(text, quantity::milli_cpus))]
    pub cpus: Option<Bound>,
    /// Processes and threads, or max
    #[arg(allow_negative_numbers = true, long, value_name = "N", value_parser = |text: &str| Bound::parse(text, quantity::count))]
    pub pids: Option<Bound>,
}

#[derive(Debug, Args)]
pub struct Listing {
    /// These nodes; all of the lab if none is named
    #[arg(value_name = "NODE")]
    pub nodes: Vec<Name>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Ps {
    /// Nodes of all labs
    #[arg(short, long)]
    pub all_labs: bool,
    /// Only names
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Nodes {
    /// Names of the nodes
    #[arg(required = true, value_name = "NODE")]
    pub nodes: Vec<Name>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgbox logs primary -n 20\n  pgbox logs -f primary")]
pub struct Logs {
    /// Name of the node
    pub node: Name,
    /// Go on as the log grows, until the node ends
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<usize>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgbox exec -it primary -- bash\n  pgbox exec primary -- df -h /dev/shm")]
pub struct Exec {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run as this user of the image
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Set an environment variable (KEY alone takes it from here)
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Working directory in the node
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Name of the node
    pub node: Name,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "pgbox psql [OPTIONS] [NODE] [PSQL ARGUMENTS]...\n       pgbox psql [OPTIONS] -- [PSQL ARGUMENTS]...",
    after_help = "Examples:\n  pgbox psql                             the lab's primary\n  pgbox psql r1 -c 'SELECT version()'\n  pgbox psql -- -d shop -c 'SELECT 1'"
)]
pub struct Psql {
    /// Name of the node, or the lab's primary if none is named; all that follows is for psql
    #[arg(value_name = "NODE|PSQL ARGUMENT", allow_hyphen_values = true)]
    words: Vec<String>,
    /// Arguments for psql
    #[arg(last = true, hide = true)]
    rest: Vec<String>,
}

impl Psql {
    /// The node that is named, and the arguments for psql.
    ///
    /// # Errors
    /// When the first word is neither an option of psql nor can be a node's name.
    pub fn parts(self) -> Result<(Option<Name>, Vec<String>), String> {
        let mut args = self.words;
        let is_name = args.first().is_some_and(|word| !word.starts_with('-'));
        let node = if is_name { Some(args.remove(0).parse()?) } else { None };
        // After a name clap takes it for a word of psql's.
        if args.first().is_some_and(|word| word == "--") {
            args.remove(0);
        }
        args.extend(self.rest);
        Ok((node, args))
    }
}

impl Place {
    /// ` --root DIR --lab NAME` for a command that is shown to this user, as far as the environment and the
    /// defaults don't say the same.
    pub fn options(&self) -> String {
        let otherwise = |variable: &str, default: &str| {
            std::env::var_os(variable).unwrap_or_else(|| default.to_owned().into())
        };
        let mut text = String::new();
        if self.root != *otherwise("PGBOX_ROOT", name::DEFAULT_ROOT) {
            let root = self.root.display().to_string();
            let plain = root.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@%:,=".contains(c));
            let root = if plain { root } else { format!("'{}'", root.replace('\'', "'\\''")) };
            text += &format!(" --root {root}");
        }
        if self.lab.as_str() != otherwise("PGBOX_LAB", name::DEFAULT_LAB) {
            text += &format!(" --lab {}", self.lab);
        }
        text
    }
}

/// Parses the arguments of this process; on an error, or for --help, prints and exits (2, or 0).
pub fn parse() -> Cli {
    let args = watch::lab_is_meant(std::env::args_os());
    if let Some(cli) = alone::parse(&args) {
        return cli;
    }
    let command = || match args.iter().any(|arg| arg == "--help") {
        true => Cli::command(),
        false => overview::first_help(Cli::command()),
    };
    let matches = command().try_get_matches_from(&args).unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        // What the environment says would stand in the usage line as if it had to be given.
        let bare = command().mut_args(|arg| arg.env(None::<&str>));
        bare.try_get_matches_from(&args).err().unwrap_or(error).exit()
    });
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Writes the completion script of a shell to standard output.
pub fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "pgbox", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        super::Cli::command().debug_assert();
    }
}
