//! What the command line of `pgbox run` asks for, as a specification of a node.

use std::fs;

use anyhow::{Context as _, Result};

use super::How;
use crate::{
    cli,
    cmd::{Context, limit, set},
    hint::{advise, misuse},
    postgres::contract::{self, Contract},
    spec::{NodeLimits, NodeSpec, SERVER_PORT, VolumeSource},
};

/// Refuses what can't be meant.
pub fn check(spec: &NodeSpec, how: &How) -> Result<()> {
    if let Some(text) = spec.contradiction() {
        return Err(misuse(text, "leave one of them out"));
    }
    if let Some(text) = spec.deaf_port() {
        let host = spec.publish.iter().find(|publish| publish.port != SERVER_PORT).map_or(0, |p| p.host_port);
        return Err(misuse(text, format!("write -p {host}:{SERVER_PORT}")));
    }
    check_sources(spec)?;
    let command = spec.command().is_some();
    if (how.tty || how.interactive) && !command {
        let node = &spec.node;
        return Err(misuse(
            "-it is for a command, and this is a server",
            format!(
                "leave it out, and then: `pgbox psql {node}`, or `pgbox exec -it {node} -- bash`; a shell instead of \
                 the server: pgbox run --rm -it {node} {} -- bash",
                spec.image
            ),
        ));
    }
    if how.remove && (how.detach || !command) && !how.foreground {
        return Err(misuse(
            "nobody would be there to remove the node when it ends",
            "use --rm together with --foreground, or remove the node later with `pgbox rm`",
        ));
    }
    Ok(())
}

/// Refuses what is to be read and is not there. A directory that is to be written is made; this one would be empty for ever.
pub fn check_sources(spec: &NodeSpec) -> Result<()> {
    for volume in spec.volumes.iter().filter(|volume| volume.read_only) {
        if let VolumeSource::Path(path) = &volume.source
            && !path.exists()
        {
            return Err(advise(
                format!(
                    "there is no {}, which is to be mounted read-only at {}",
                    path.display(),
                    volume.target.display()
                ),
                "mend the path, or make it; without :ro a directory that is not there is made",
            ));
        }
    }
    Ok(())
}

/// What the user asked for, and the password apart from it.
pub fn spec(context: &Context, args: &cli::Run) -> Result<(NodeSpec, Option<String>)> {
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
            None => env.extend(std::env::var(&line).ok().map(|value| (line.clone(), value))),
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
