//! `pgbox run`: a new node, as its command line asks for it.

use std::fs;

use anyhow::{Context as _, Result};

use super::{
    Context,
    create::{How, Shown, create},
    limit, need_root, set, trial,
};
use crate::{
    cli,
    engine::StepFailed,
    hint::misuse,
    postgres::contract::{self, Contract},
    show,
    spec::{NodeLimits, NodeSpec, VolumeSource},
};

pub fn run(context: &Context, args: cli::Run) -> Result<i32> {
    let is_command = contract::server_args(&args.args).is_none();
    match from_args(context, &args) {
        // As with `docker run`: that pgbox failed, and not the command. A failed step has such a code itself.
        Err(error) if is_command && !error.is::<StepFailed>() => {
            show::error::print(&error, &context.options);
            Ok(125)
        }
        other => other,
    }
}

fn from_args(context: &Context, args: &cli::Run) -> Result<i32> {
    need_root("pgbox run")?;
    crate::sys::exe::reexec_read_only()?;
    let (spec, secret) = asked(context, args)?;
    let how = How {
        shown: shown(args),
        timeout: args.timeout,
        foreground: args.foreground,
        remove: args.rm,
        detach: args.detach,
        tty: args.tty,
        interactive: args.interactive,
        tell_of_data: true,
        ..How::default()
    };
    if spec.command().is_none() && how.shown.is_none() {
        trial::check(context, &spec, &spec.settings)?;
    }
    create(context, spec, secret, &how)
}

fn shown(args: &cli::Run) -> Option<Shown> {
    match (args.emit_shell, args.undo) {
        (true, true) => Some(Shown::WayBack),
        (true, false) => Some(Shown::Script),
        (false, _) => Shown::steps(args.dry_run, args.explain),
    }
}

/// What the user asked for, and the password apart from it.
fn asked(context: &Context, args: &cli::Run) -> Result<(NodeSpec, Option<String>)> {
    let env = environment(args)?;
    let contract = Contract::parse(&env)?;
    let volumes = args.volumes.iter().map(|volume| {
        let mut volume = volume.clone();
        if let VolumeSource::Path(path) = &volume.source {
            volume.source = VolumeSource::Path(std::path::absolute(path)?);
        }
        Ok(volume)
    });
    // A server must not see it, nor the node's state: it goes to a file of its own. Any other command is given it.
    let is_server = contract::server_args(&args.args).is_some();
    let env = env.into_iter().filter(|(name, _)| !(is_server && contract::is_secret(name)));
    let mut limits = NodeLimits { shm_size: args.shm_size, ..NodeLimits::default() };
    limit::lay_over(&args.limits, &mut limits);
    let spec = NodeSpec {
        lab: context.lab.clone(),
        node: args.node.clone(),
        image: args.image.clone(),
        env: env.collect(),
        volumes: volumes.collect::<Result<_>>()?,
        publish: args.publish.clone(),
        settings: set::parse(&args.settings)?,
        limits,
        restart: args.restart,
        stop_timeout: args.stop_timeout.as_secs().max(1),
        tune: args.tune.is_some(),
        args: args.args.clone(),
        subnet: args.subnet,
        offline: false,
        follow: None,
    };
    Ok((spec, contract.secret))
}

/// `--env-file` and then `-e`; a bare name takes its value from the caller, and is left out if it has none.
fn environment(args: &cli::Run) -> Result<Vec<(String, String)>> {
    let mut lines = Vec::new();
    for file in &args.env_file {
        let text = fs::read_to_string(file).with_context(|| format!("read --env-file {}", file.display()))?;
        lines.extend(
            text.lines()
                .map(str::trim_start)
                .filter(|l| !l.is_empty() && !l.starts_with('#'))
                .map(str::to_owned),
        );
    }
    lines.extend(args.env.iter().cloned());
    let mut env = Vec::new();
    for line in lines {
        match line.split_once('=') {
            Some((key, value)) => env.push((variable(key)?.to_owned(), value.to_owned())),
            None => {
                let name = variable(&line)?;
                env.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
            }
        }
    }
    if args.tty && !env.iter().any(|(key, _)| key == "TERM") {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    Ok(env)
}

/// Refuses what no program could ask for by name, and is a slip: `-e 'A B=x'`, `-e =x`.
pub fn variable(name: &str) -> Result<&str> {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if begins && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
        return Ok(name);
    }
    Err(misuse(
        format!("`{name}` can't be the name of an environment variable"),
        "write -e NAME=VALUE; a name has letters, digits and `_`, and begins with no digit",
    ))
}
