//! `pgbox replica`: a standby of a running node, by a base backup over the lab's own bridge.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    Context,
    create::{How, Shown, create},
    limit, need_root, rejoin, set, trial,
};
use crate::{
    cli,
    engine::sync,
    facts::{
        cluster,
        node::{self, Node},
        stray,
    },
    hint::{advise, misuse},
    image::Store,
    postgres::standby,
    spec::{Copying, Follow, Name, NodeSpec, Volume, VolumeSource},
    sql,
};

pub fn run(context: &Context, args: &cli::Replica) -> Result<i32> {
    if args.copy == Copying::Reflink && args.rate.is_some() {
        return Err(misuse(
            "clones are made at once: --rate is for a copy over the network",
            "leave out --copy reflink, or --rate",
        ));
    }
    let settings = set::parse(&args.settings)?;
    need_root("pgbox replica")?;
    crate::sys::exe::reexec_read_only()?;
    let how = How {
        shown: Shown::steps(args.dry_run, args.explain),
        timeout: args.timeout,
        force: args.force,
        tell_of_data: true,
        ..How::detached()
    };
    if args.sync {
        check_sync(context, args)?;
    }
    let mut spec = spec(context, args)?;
    spec.settings.extend(settings.iter().cloned());
    if how.shown.is_none() {
        trial::check(context, &spec, &settings)?;
    }
    if args.force && how.shown.is_none() {
        rejoin::checkpoint_above(context, &args.of)?;
    }
    let code = create(context, spec, None, &how)?;
    if args.sync && how.shown.is_none() {
        wait_for_it(context, args)?;
    }
    Ok(code)
}

/// Refuses a synchronous standby of a standby: a commit waits on the primary, which knows no others than its own.
fn check_sync(context: &Context, args: &cli::Replica) -> Result<()> {
    let cluster = cluster::of(&context.root, &context.lab, &args.of)?;
    let primary = &cluster.head().name;
    if *primary == args.of {
        return Ok(());
    }
    Err(advise(
        format!("commits can't wait for a standby of `{}`: that is a standby itself", args.of),
        format!("follow the primary: --of {primary}; or leave --sync out"),
    ))
}

/// How long the primary may take to go by the new rule.
const RULE: Duration = Duration::from_secs(10);

/// Puts the node into the lab's rule now that it streams, and returns when commits do wait for it.
fn wait_for_it(context: &Context, args: &cli::Replica) -> Result<()> {
    let lock = context.lock()?;
    let rule = sync::join(&context.root, &context.lab, &args.node)?;
    let cluster = cluster::of(&context.root, &context.lab, &args.of)?;
    super::sync::tell_of_late(context, &cluster, &rule.to_string())?;
    let node = node::find(&context.root, &context.lab, &args.of)?;
    let is_seen = super::sync::is_seen_to_wait(&node)?;
    drop(lock);
    let primary = node.login()?;
    let deadline = Instant::now() + RULE;
    let sql = standby::sync_state(args.node.as_str());
    loop {
        let sql = sql.clone();
        let rows = primary.ask(sql::PATIENCE, move |client| client.query(&sql, &[]))?;
        let state = rows.first().map_or("nothing".to_owned(), |row| row.get::<_, String>(0));
        match state.as_str() {
            "sync" | "quorum" | "potential" if !is_seen => {
                super::sync::warn_of_unseen(context, &args.of, &rule.to_string());
            }
            "sync" | "quorum" => outln!("commits wait for {rule}"),
            // Of `first 1 (a, b)` b is the one that is waited for when a is gone.
            "potential" => outln!("commits wait for {rule}; `{}` is the next in line", args.node),
            _ if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            other => {
                return Err(advise(
                    format!("`{}` streams, but `{}` says `{other}` of it", args.node, args.of),
                    format!(
                        "a synchronous_standby_names of ALTER SYSTEM wins over the lab's rule: \
                         `pgbox psql {} -c 'ALTER SYSTEM RESET synchronous_standby_names'`, then reload",
                        args.of
                    ),
                ));
            }
        }
        return Ok(());
    }
}

/// The node that a standby is to follow, if it can be followed at all.
pub fn check_upstream(context: &Context, name: &Name) -> Result<Node> {
    let of = node::find(&context.root, &context.lab, name)?;
    of.login()?;
    let major = of.state.postgres().map_or(0, |postgres| postgres.major);
    if major < standby::LEAST_MAJOR {
        return Err(advise(
            format!("`{name}` runs PostgreSQL {major}; standbys need {} or later", standby::LEAST_MAJOR),
            "make the primary from an image with a later version",
        ));
    }
    stray::refuse(&node::all(&context.root, &context.lab)?, &of, None)?;
    Ok(of)
}

/// As the node that it follows was asked for, but for what would collide with that, and for what is said here.
fn spec(context: &Context, args: &cli::Replica) -> Result<NodeSpec> {
    let of = check_upstream(context, &args.of)?;
    let mut spec = of.state.spec.clone();
    spec.image = match &args.image {
        Some(image) => image.clone(),
        None => image_of(context, &of)?,
    };
    spec.node = args.node.clone();
    spec.publish = args.publish.clone();
    // What both may read can be shared; what one of them writes is its own.
    spec.volumes.retain(|volume| volume.read_only);
    spec.volumes.extend(args.volumes.iter().cloned().map(absolute).collect::<Result<Vec<_>>>()?);
    limit::lay_over(&args.limits, &mut spec.limits);
    spec.limits.shm_size = args.shm_size.unwrap_or(spec.limits.shm_size);
    spec.restart = args.restart.unwrap_or(spec.restart);
    spec.subnet = None;
    spec.follow = Some(Follow {
        of: args.of.clone(),
        delay_ms: args.delay.map(|delay| delay.as_millis() as u64),
        rate_kb: args.rate.map(|rate| (rate / 1024).max(32)),
        copy: args.copy,
    });
    Ok(spec)
}

/// The image of a node as it was given, or by its digest where that name stands for another image by now.
fn image_of(context: &Context, of: &Node) -> Result<String> {
    let given = &of.state.spec.image;
    let same = Store::open(context.root.path())?
        .resolve(given)
        .is_ok_and(|image| image.manifest.to_string() == of.state.image);
    Ok(if same { given.clone() } else { of.state.image.clone() })
}

fn absolute(mut volume: Volume) -> Result<Volume> {
    if let VolumeSource::Path(path) = &volume.source {
        volume.source = VolumeSource::Path(std::path::absolute(path)?);
    }
    Ok(volume)
}
