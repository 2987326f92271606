//! `pgbox psql`: the image's own psql, inside the node, as the superuser.

use std::io::IsTerminal;

use anyhow::Result;

use super::{Context, exec, need_root};
use crate::{cli, facts::node, hint::advise, postgres::launch::Payload};

pub fn run(context: &Context, args: cli::Psql) -> Result<i32> {
    need_root("pgbox psql")?;
    let node = node::find(&context.root, &context.lab, &args.node)?;
    let Payload::Postgres(postgres) = &node.state.plan.init.payload else {
        return Err(advise(
            format!("node `{}` runs no Postgres", args.node),
            "use pgbox exec for other commands",
        ));
    };
    let user = node.status.superuser.clone().unwrap_or_else(|| "postgres".to_owned());
    let database = node.status.database.clone().unwrap_or_else(|| user.clone());
    let mut command = vec![postgres.bindir.join("psql").display().to_string()];
    // Before the user's own arguments, which may name another user or database.
    command.extend(["-U".to_owned(), user, "-d".to_owned(), database]);
    command.extend(args.args);
    let wanted = exec::Wanted {
        command,
        user: node.state.plan.init.user.uid.to_string(),
        env: Vec::new(),
        workdir: None,
        tty: std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        stdin: true,
    };
    exec::in_node(context, &args.node, wanted)
}
