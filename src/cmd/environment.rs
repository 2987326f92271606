//! `pgbox env` and `pgbox with`: how to connect, as the environment variables that libpq and all that is built on it read
//! (PostgreSQL manual 34.15). The password is not among them: PGPASSFILE names the file that has it.
//!
//! The rule that surprises people: PGPASSWORD wins over PGPASSFILE, PGHOSTADDR over PGHOST, and PGSERVICE brings its own of
//! each. What the caller has of these is taken away.

use std::{io, os::unix::process::CommandExt, process::Command};

use anyhow::{Result, anyhow};

use super::{Context, access, uri};
use crate::{cli, facts, postgres::quote::shell, show};

/// What would lead somewhere else.
const IN_THE_WAY: [&str; 5] =
    ["PGHOSTADDR", "PGPASSWORD", "PGSERVICE", "PGSERVICEFILE", "PGTARGETSESSIONATTRS"];

pub fn env(context: &Context, args: &cli::Env) -> Result<i32> {
    let (set, unset) = variables(context, &args.whom, &args.by)?;
    if args.json {
        let map: serde_json::Map<String, serde_json::Value> =
            set.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        outln!("{}", serde_json::to_string_pretty(&map)?);
        return Ok(0);
    }
    outln!("unset {}", unset.join(" "));
    set.iter().for_each(|(name, value)| outln!("export {name}={}", shell(value)));
    Ok(0)
}

/// Becomes the command: signals, terminal and exit code are its own.
pub fn with(context: &Context, args: &cli::With) -> Result<i32> {
    let (set, unset) = match variables(context, &args.whom, &args.by) {
        Ok(found) => found,
        // As with `exec`: that pgbox failed, and not the command.
        Err(error) => {
            show::error::print(&error, &context.options);
            return Ok(125);
        }
    };
    let program = &args.command[0];
    let mut command = Command::new(program);
    command.args(&args.command[1..]);
    for name in unset {
        command.env_remove(name);
    }
    let error = command.envs(set).exec();
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    show::error::print(&anyhow!(error).context(format!("execute {program}")), &context.options);
    Ok(code)
}

type Variables = (Vec<(&'static str, String)>, Vec<&'static str>);

/// The variables to set and those to take away.
fn variables(context: &Context, whom: &cli::Whom, by: &cli::As) -> Result<Variables> {
    facts::lab::check(&context.root, &context.lab)?;
    let place = uri::place(context, whom, by.published, false)?;
    let (node, address) = (&place.node, place.hosts[0]);
    let access = access::of(context, node, by)?;
    let mut set = vec![
        ("PGHOST", address.ip().to_string()),
        ("PGPORT", address.port().to_string()),
        ("PGUSER", access.user),
        ("PGDATABASE", access.database),
    ];
    let mut unset = IN_THE_WAY.to_vec();
    match access.passfile {
        Some(file) => set.push(("PGPASSFILE", file.display().to_string())),
        // Somebody else's would be asked for this server's password.
        None => unset.push("PGPASSFILE"),
    }
    Ok((set, unset))
}
