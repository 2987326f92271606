//! `pgbox exec`: another process in a running node.

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Context as _, Result};

use super::{Context, need_root};
use crate::{
    cli,
    enter::{self, EnterRequest, NotStarted, Target},
    facts::{
        self,
        node::{self, Node},
    },
    plan, show,
    spec::Name,
    sys::capability,
};

pub fn run(context: &Context, args: cli::Exec) -> Result<i32> {
    match exec(context, args) {
        // That pgbox failed, and not the command.
        Err(error) if !error.is::<NotStarted>() => {
            show::error::print(&error, &context.options);
            Ok(125)
        }
        other => other,
    }
}

fn exec(context: &Context, args: cli::Exec) -> Result<i32> {
    need_root("pgbox exec")?;
    let wanted = Wanted {
        command: args.command,
        user: args.user.unwrap_or_else(|| "0".to_owned()),
        env: args.env,
        workdir: args.workdir,
        tty: args.tty,
        stdin: args.interactive,
    };
    in_node(context, &args.node, wanted)
}

/// A command to run in a node.
pub struct Wanted {
    pub command: Vec<String>,
    pub user: String,
    pub env: Vec<String>,
    pub workdir: Option<PathBuf>,
    pub tty: bool,
    pub stdin: bool,
}

/// Runs a command in a node, and gives its exit code.
pub fn in_node(context: &Context, name: &Name, wanted: Wanted) -> Result<i32> {
    crate::sys::exe::reexec_read_only()?;
    facts::lab::check(&context.root, &context.lab)?;
    let node = node::find(&context.root, &context.lab, name)?;
    let target = target(context, &node)?;
    let init = &node.state.plan.init;
    let mut env: Vec<(OsString, OsString)> =
        init.env.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect();
    for setting in &wanted.env {
        // As with `run`: a bare name takes its value from the caller, and is left out if it has none.
        let (key, value) = match setting.split_once('=') {
            Some((key, value)) => (super::run::variable(key)?, Some(value.into())),
            None => (setting.as_str(), std::env::var_os(setting)),
        };
        if let Some(value) = value {
            env.retain(|(known, _)| known.to_str() != Some(key));
            env.push((key.into(), value));
        }
    }
    let request = EnterRequest {
        argv: wanted.command.into_iter().map(OsString::from).collect(),
        env,
        cwd: wanted.workdir.unwrap_or_else(|| init.cwd.clone()),
        user: target.user(&wanted.user)?,
        tty: wanted.tty,
        stdin: wanted.stdin,
        capabilities: capability::parse(&plan::CAPABILITIES.join(","))?,
    };
    enter::enter(&target, &request)
}

fn target(context: &Context, node: &Node) -> Result<Target> {
    node.awake()?;
    let init = node.state.init.context("a running node has a pid 1")?;
    let group = node.cgroup(&context.root)?;
    Target::open(init, group.unified_dir().as_deref(), group.tasks()?)
}
