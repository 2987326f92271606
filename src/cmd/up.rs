//! `pgbox up`: a whole lab as it is wanted. What is there is compared with that, and only the difference is done, by the
//! same functions as the commands for single nodes have; so a second `up` does nothing, and one that was interrupted goes
//! on.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{Context, need_root};
use crate::{
    cli,
    facts::{
        self, cluster,
        volume::{self, Content},
    },
    hint::{advise, as_misuse, misuse},
    lab::{
        file::{DEFAULT_IMAGE, LabFile},
        wanted::{Wanted, WantedNode},
    },
    plan::changes::{self, Action, Changes},
    postgres::contract,
    show,
    spec::{Name, name::DEFAULT_LAB},
    state,
};

mod apply;
mod content;
mod node;
mod wrong;

pub fn run(context: &Context, args: &cli::Up) -> Result<i32> {
    need_root("pgbox up")?;
    crate::sys::exe::reexec_read_only()?;
    match &args.file {
        Some(path) => with_file(context, args, path),
        None => bring(context, args, &without_file(context)?),
    }
}

fn without_file(context: &Context) -> Result<Wanted> {
    let servers =
        facts::nodes(&context.root, &context.lab)?.into_iter().filter(|(_, s)| s.postgres().is_some());
    let there: Vec<_> = servers.map(|(name, _)| name).collect();
    Wanted::without_file(&context.lab, DEFAULT_IMAGE, &there).map_err(anyhow::Error::msg)
}

fn bring(context: &Context, args: &cli::Up, wanted: &Wanted) -> Result<i32> {
    // Two at once would both make what is missing.
    let _up = context.root.lock_up(&context.lab)?;
    let begun = Instant::now();
    if !args.diff && !args.json {
        super::settle_passwords(context);
    }
    let mut first = difference(context, args, wanted)?;
    first.wrong.extend(wrong::settings(context, wanted, &first.actions)?);
    first.wrong.extend(wrong::limits(context, wanted, &first.actions));
    first.wrong.extend(wrong::mounts(&first.actions));
    first.wrong.extend(wrong::ports(context, &first.actions));
    first.wrong.extend(first.actions.iter().filter_map(|action| apply::loss(context, action)));
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&show::changes::json(&first))?);
        return Ok(0);
    }
    first.notes.iter().for_each(|note| super::note(context, note));
    tell_of_volumes(context, wanted)?;
    tell_of_passwords(context, wanted)?;
    first.refused.iter().for_each(|text| super::warn(context, text));
    let code = i32::from(!first.refused.is_empty());
    if args.diff {
        out!("{}", show::changes::render(&first));
    }
    refuse_wrong(&first)?;
    if first.actions.is_empty() {
        match code {
            0 => outln!("nothing to do: lab `{}` is as it is wanted", context.lab),
            _ => outln!("nothing to do but what was refused"),
        }
        return Ok(code);
    }
    if args.diff {
        return Ok(code);
    }
    let (content, nodes): (Vec<Action>, Vec<Action>) =
        first.actions.into_iter().partition(Action::is_content);
    let refused = apply::nodes(context, &nodes, args.timeout)?;
    let code = code.max(i32::from(refused));
    if !content.is_empty() {
        // Now there is somebody who says what is missing, or otherwise.
        let rest = difference(context, args, wanted)?;
        let is_new = |note: &&String| !first.notes.contains(note);
        rest.notes.iter().filter(is_new).for_each(|note| super::note(context, note));
        let way_out = "the nodes are as they are wanted; mend the file, and `pgbox up` does the rest";
        refuse_wrong(&rest).map_err(|error| advise(error.to_string(), way_out))?;
        let mut content = rest.actions.iter().filter(|action| action.is_content());
        content.try_for_each(|action| apply::apply(context, action, args.timeout))?;
    }
    let but = if code == 0 { "" } else { ", but for what was refused" };
    outln!("lab `{}` is as it is wanted{but} ({:.1} s)", context.lab, begun.elapsed().as_secs_f64());
    Ok(code)
}

/// Says which data are there that neither a node has nor one is to be made for, where no file says what is meant.
fn tell_of_volumes(context: &Context, wanted: &Wanted) -> Result<()> {
    let (root, lab) = (&context.root, &context.lab);
    let is_idle = |name: &Name| -> Result<bool> {
        let is_meant = wanted.nodes.iter().any(|node| node.spec.node == *name);
        Ok(!is_meant && volume::users(root, &root.volume_dir(lab, name))?.is_empty())
    };
    let volumes = if wanted.exact { Vec::new() } else { root.volumes(lab)? };
    for name in volumes {
        if is_idle(&name)? {
            let command = match volume::content_of(root, lab, &name) {
                Content::Standby => {
                    let head =
                        cluster::main(root, lab).map_or("NODE".to_owned(), |c| c.head().name.to_string());
                    format!("replica {name} --of {head}")
                }
                _ => format!("run {name}"),
            };
            let text = format!(
                "no node has the volume `{name}`: `pgbox {command}` goes on with its data, see `pgbox volume ls`"
            );
            super::note(context, &text);
        }
    }
    Ok(())
}

/// Says of a superuser's password in a node's environment that it counts only when the data are made.
fn tell_of_passwords(context: &Context, wanted: &Wanted) -> Result<()> {
    for WantedNode { spec, secret } in &wanted.nodes {
        let (Some(secret), None) = (secret, &spec.follow) else { continue };
        let given = spec.env.iter().find(|(name, _)| name == contract::USER);
        let user = given.map_or(contract::DEFAULT_USER, |(_, user)| user);
        let known = state::read_secret(&context.root.node(&context.lab, &spec.node).secret_file())?;
        let is_set = wanted.users.iter().any(|other| other.name == user);
        if !known.is_empty() && known != *secret && !is_set {
            let text = format!(
                "POSTGRES_PASSWORD of `{0}` is another one now, and was set when the data were made; to change it: \
                 [users.{user}] with its password, or `pgbox psql {0} -c '\\password'`",
                spec.node
            );
            super::note(context, &text);
        }
    }
    Ok(())
}

fn refuse_wrong(changes: &Changes) -> Result<()> {
    ensure!(changes.wrong.is_empty(), "{}", changes.wrong.join("\n       "));
    Ok(())
}

fn difference(context: &Context, args: &cli::Up, wanted: &Wanted) -> Result<Changes> {
    let actual = {
        let _lock = context.lock()?;
        facts::lab::look(&context.root, &context.lab, wanted)?
    };
    Ok(changes::changes(wanted, &actual, args.prune))
}

/// A lab file, and the context of the lab that it is about.
struct Opened {
    file: LabFile,
    path: PathBuf,
    context: Context,
}

fn open(context: &Context, path: &Path) -> Result<Opened> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let file = LabFile::parse(&path.display().to_string(), &text).map_err(as_misuse)?;
    let mut context =
        Context { root: context.root.clone(), lab: context.lab.clone(), options: context.options.clone() };
    if let Some(named) = file.lab().filter(|named| **named != context.lab) {
        if context.lab.as_str() != DEFAULT_LAB {
            return Err(misuse(
                format!("{} is about lab `{named}`, and not `{}`", path.display(), context.lab),
                "leave --lab out, or take `lab` out of the file",
            ));
        }
        context.lab = named.clone();
        context.options += &format!(" --lab {named}");
    }
    Ok(Opened { file, path: std::path::absolute(path)?, context })
}

/// The context of the lab that a file is about.
pub fn context(context: &Context, file: &Path) -> Result<Context> {
    open(context, file).map(|opened| opened.context)
}

fn with_file(context: &Context, args: &cli::Up, path: &Path) -> Result<i32> {
    let Opened { file, path, context } = open(context, path)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let wanted = file.wanted(&context.lab, dir, &|path| fs::read_to_string(path)).map_err(as_misuse)?;
    if file.has_passwords() && fs::metadata(&path)?.permissions().mode() & 0o044 != 0 {
        super::warn(
            &context,
            &format!("{0} has a password in it, and others can read it: chmod 600 {0}", path.display()),
        );
    }
    check_range(&context, &wanted)?;
    bring(&context, args, &wanted)
}

/// A lab keeps the range that it was made with.
fn check_range(context: &Context, wanted: &Wanted) -> Result<()> {
    let asked = wanted.nodes.first().and_then(|node| node.spec.subnet);
    match (context.root.load_lab(&context.lab)?, asked) {
        (Some(lab), Some(asked)) if asked.trunc() != lab.subnet => Err(advise(
            format!("lab `{}` has the address range {}, and not {asked}", context.lab, lab.subnet),
            "take `subnet` out of the file; or `pgbox down`, which keeps the data, and then `pgbox up` again",
        )),
        _ => Ok(()),
    }
}
