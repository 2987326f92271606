//! `pgbox psql`: the image's own psql, inside the node, as the superuser.

use std::io::IsTerminal;

use anyhow::{Error, Result};

use super::{Context, access, exec, need_root};
use crate::{
    cli,
    hint::{advise, as_misuse},
};

pub fn run(context: &Context, args: cli::Psql) -> Result<i32> {
    let (name, args) = args.parts().map_err(|text| as_misuse(Error::msg(text)))?;
    need_root("pgbox psql")?;
    let node = access::node(context, name.as_ref())?;
    let Some(postgres) = node.state.postgres() else {
        return Err(advise(
            format!("node `{}` runs no Postgres", node.name),
            "use pgbox exec for other commands",
        ));
    };
    let user = node.status.superuser.clone().unwrap_or_else(|| "postgres".to_owned());
    let database = node.status.database.clone().unwrap_or_else(|| user.clone());
    let mut command = vec![postgres.bindir.join("psql").display().to_string()];
    command.extend(args);
    let wanted = exec::Wanted {
        command,
        user: node.state.plan.init.user.uid.to_string(),
        // Not as options: the arguments may name another user or database, in each of the ways that psql knows.
        env: vec![format!("PGUSER={user}"), format!("PGDATABASE={database}")],
        workdir: None,
        tty: std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        stdin: true,
    };
    exec::in_node(context, &node.name, wanted)
}
