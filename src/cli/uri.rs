//! Commands that tell programs of this host how to connect, and the addresses that stay.

use std::str::FromStr;

use clap::{ArgGroup, Args};

use crate::{
    plan::POSTGRES_PORT,
    spec::{Name, Publish},
};

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("one").required(true).args(["node", "rw", "ro"]),
    after_help = "Examples:\n  psql \"$(pgbox uri primary)\"\n  psql \"$(pgbox uri --rw)\"            the primary, whichever node that is\n  psql \"$(pgbox uri --ro --hosts)\"    all nodes; the client looks for a standby\n  psql \"$(pgbox uri --rw -U app -d shop)\""
)]
pub struct Uri {
    #[command(flatten)]
    pub whom: Whom,
    /// Not the endpoint, but every node of the cluster, and the client tries them (target_session_attrs)
    #[arg(long, conflicts_with_all = ["node", "published"])]
    pub hosts: bool,
    /// Put the password itself into the string, not the name of the file that has it
    #[arg(long)]
    pub with_password: bool,
    #[command(flatten)]
    pub by: As,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  eval \"$(pgbox env)\" && psql\n  pgbox env r1 --user app --dbname shop --json\n\nWithout a node the lab's primary is meant as it is now; --rw follows it through a failover."
)]
pub struct Env {
    #[command(flatten)]
    pub whom: Whom,
    #[command(flatten)]
    pub by: As,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox with -- pgbench -i -s 10\n  pgbox with --ro -U app -d shop -- psql -c 'SELECT pg_is_in_recovery()'\n\nWithout a node the lab's primary is meant as it is now; --rw follows it through a failover."
)]
pub struct With {
    #[command(flatten)]
    pub whom: Whom,
    #[command(flatten)]
    pub by: As,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Which server.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Whom {
    /// Name of the node
    pub node: Option<Name>,
    /// The lab's read-write endpoint: one address that leads to the primary
    #[arg(long)]
    pub rw: bool,
    /// The lab's read-only endpoint: one address that leads to the standbys in turn
    #[arg(long)]
    pub ro: bool,
}

/// As whom to connect, and by which way.
#[derive(Debug, Args)]
pub struct As {
    /// A user that a lab file has made; the superuser if none is named
    #[arg(short = 'U', long, value_name = "NAME")]
    pub user: Option<String>,
    /// A database; the one that was made with the node if none is named
    #[arg(short, long, value_name = "NAME")]
    pub dbname: Option<String>,
    /// Use the published port, not the address of the node or endpoint
    #[arg(long)]
    pub published: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pgbox endpoint\n  pgbox endpoint --publish-rw 5432 --publish-ro 127.0.0.1:5433"
)]
pub struct Endpoint {
    /// Let a port of this host lead to the read-write endpoint, or none any more
    #[arg(long, value_name = "[IP:]PORT|off")]
    pub publish_rw: Option<HostPort>,
    /// Let a port of this host lead to the read-only endpoint, or none any more
    #[arg(long, value_name = "[IP:]PORT|off")]
    pub publish_ro: Option<HostPort>,
    /// Print what one would type for it, with the reason
    #[arg(long)]
    pub explain: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "explain")]
    pub json: bool,
}

/// A port of this host for an endpoint, or `off`.
#[derive(Debug, Clone, Copy)]
pub struct HostPort(Option<Publish>);

impl HostPort {
    pub fn port(self) -> Option<Publish> {
        self.0
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let whole = format!("{text}:{POSTGRES_PORT}");
        let publish = whole.parse().ok().filter(|_| text.matches(':').count() < 2);
        publish.map(|publish| Self(Some(publish))).ok_or_else(|| {
            format!(
                "`{text}` is no port of this host; write PORT, IP:PORT or off, for example 127.0.0.1:5433"
            )
        })
    }
}
