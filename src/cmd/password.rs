//! The superuser's password: where a new node gets it from, and what becomes of it when the data turns out
//! to have another one. It is set when the data directory is made; later ones are not taken over (as in the
//! official image, docker-library/postgres#723), but here that is said.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::fs::OFlags;

use crate::{
    engine::ready::{self, Answer},
    facts::{
        cluster,
        node::{self, Node},
    },
    plan,
    postgres::{contract, launch::Password, password},
    spec::Name,
    sql::{Login, PATIENCE, pending},
    state::{self, NodeDir, NodeState, Root},
    step::AfterStep,
    sys,
};

/// Where the password in a node's files comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The node has none, or pgbox can't know it.
    Nowhere,
    /// The user has given it.
    Given,
    /// It was kept beside the volume by an earlier node.
    Remembered,
    /// pgbox has made it up.
    Generated,
}

/// Puts the password into the files of a new node.
pub fn keep(root: &Root, node: &NodeDir, state: &NodeState, given: Option<String>) -> Result<Origin> {
    let Some(postgres) = state.postgres() else { return Ok(Origin::Nowhere) };
    if let Some(follow) = &state.spec.follow {
        // The data are the other node's, and so is the password in them.
        let upstream = root.node(&state.spec.lab, &follow.of).secret_file();
        if let Ok(secret) = fs::read_to_string(upstream) {
            state::write_secret(&node.secret_file(), &secret)?;
        }
        return Ok(Origin::Nowhere);
    }
    let (secret, origin) = match &postgres.password {
        Password::Unset => return Ok(Origin::Nowhere),
        Password::File(inside) => match from_file(state, inside)? {
            Some(secret) => (secret, Origin::Given),
            None => return Ok(Origin::Nowhere),
        },
        Password::Descriptor => match (given, remembered(root, state)) {
            (Some(secret), _) => (secret, Origin::Given),
            (None, Some(secret)) => (secret, Origin::Remembered),
            (None, None) => (generated()?, Origin::Generated),
        },
    };
    state::write_secret(&node.secret_file(), &secret)?;
    if let Some(new) =
        home(root, state).map(|home| pending(&home.join("password"))).filter(|new| new.exists())
    {
        // Nobody has found out since which of the two it is.
        state::write_secret(&pending(&node.secret_file()), &state::read_secret(&new)?)?;
    }
    if let (Origin::Generated, Some(home)) = (origin, home(root, state)) {
        // The cluster may be made with it and this very run fail later: nobody else knows it.
        fs::create_dir_all(&home).with_context(|| format!("mkdir {}", home.display()))?;
        state::write_secret(&home.join("password"), &secret)?;
    }
    Ok(origin)
}

/// Gives a new standby the replication role's password: that of the node that it follows, or a new one for both. A
/// primary has none before its first standby.
pub fn keep_replicator(root: &Root, node: &NodeDir, state: &NodeState) -> Result<()> {
    let Some(follow) = &state.spec.follow else { return Ok(()) };
    let upstream = root.node(&state.spec.lab, &follow.of).replicator_file();
    let mut password = fs::read_to_string(&upstream).unwrap_or_default();
    if password.is_empty() {
        password = generated()?;
        state::write_secret(&upstream, &password)?;
    }
    state::write_secret(&node.replicator_file(), &password)
}

/// The content of `POSTGRES_PASSWORD_FILE`, if that is in a volume; in the image nobody should have one.
fn from_file(state: &NodeState, inside: &Path) -> Result<Option<String>> {
    let Some((source, target, _)) = plan::mount_of(&state.plan, inside) else { return Ok(None) };
    let below = inside.strip_prefix(target).unwrap_or(inside);
    match read_below(source, below) {
        Ok(content) => contract::file_value(&content, "POSTGRES_PASSWORD_FILE").map(Some),
        // pid 1 says what is wrong with it, if it needs it.
        Err(_) => Ok(None),
    }
}

/// Reads a file of a volume, or one that is mounted itself. A node may have made what is in a volume: a symlink to a
/// file of the host, or a fifo without an end.
fn read_below(source: &Path, below: &Path) -> io::Result<Vec<u8>> {
    let (dir, name) = match (below.as_os_str().is_empty(), source.parent(), source.file_name()) {
        (true, Some(dir), Some(name)) => (dir, Path::new(name)),
        _ => (source, below),
    };
    let dir = sys::fs::open_dir(dir)?;
    let file = sys::fs::open_in_root(&dir, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    sys::fs::read_plain(file.into(), contract::LARGEST_FILE)
}

/// The password that was kept beside the data when an earlier node on it was removed.
fn remembered(root: &Root, state: &NodeState) -> Option<String> {
    fs::read_to_string(home(root, state)?.join("password")).ok().filter(|s| !s.is_empty())
}

fn home(root: &Root, state: &NodeState) -> Option<PathBuf> {
    root.volume_home(&state.spec.lab, state.data.as_deref()?)
}

/// The files with the password of these nodes' cluster.
fn files(root: &Root, nodes: &[Node]) -> impl Iterator<Item = PathBuf> {
    let beside_data = |node: &Node| home(root, &node.state).map(|home| home.join("password"));
    nodes.iter().flat_map(move |node| [Some(node.dir.secret_file()), beside_data(node)]).flatten()
}

/// Writes down another password that the superuser of these nodes' cluster is about to be given.
pub fn will_change(root: &Root, nodes: &[Node], secret: &str) -> Result<()> {
    files(root, nodes).try_for_each(|file| state::write_secret(&pending(&file), secret))
}

/// Goes by it from now on: it has been given.
pub fn has_changed(root: &Root, nodes: &[Node], secret: &str) -> Result<()> {
    files(root, nodes).try_for_each(|file| state::replace_secret(&file, secret))
}

/// Finds out whether a command that was killed meanwhile has changed a password, as soon as a server can tell. The caller
/// holds the lab's lock.
pub fn settle_change(root: &Root, lab: &Name) -> Result<()> {
    let new = |node: &Node| pending(&node.dir.secret_file());
    if !root.nodes(lab)?.iter().any(|name| pending(&root.node(lab, name).secret_file()).exists()) {
        return Ok(());
    }
    let (clusters, _) = cluster::sort(node::all(root, lab)?);
    for cluster in clusters {
        let is_asked = |node: &&Node| node.pidfd.is_some() && new(node).exists();
        let Some(node) = cluster.nodes.iter().find(is_asked) else { continue };
        let login = Login { secret: new(node), ..node.login()? };
        match ready::ask(&login, PATIENCE) {
            Answer::Ready => has_changed(root, &cluster.nodes, &state::read_secret(&login.secret)?)?,
            Answer::WrongPassword(_) => {
                files(root, &cluster.nodes).try_for_each(|file| match fs::remove_file(pending(&file)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context("remove a password"),
                    _ => Ok(()),
                })?;
            }
            Answer::Refused(_) | Answer::NotYet(_) => {}
        }
    }
    Ok(())
}

/// A new password.
pub fn generated() -> Result<String> {
    let mut bytes = [0; 18];
    fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).context("read /dev/urandom")?;
    Ok(password::from_random(bytes))
}

/// What a server's answer says about the password of a node that came up. Gives what the user should know;
/// afterwards the node's files have the right password, or none that is known to be wrong.
pub fn settle(
    root: &Root,
    node: &NodeDir,
    state: &NodeState,
    origin: Origin,
    answer: &Answer,
) -> Result<Option<String>> {
    let Answer::WrongPassword(why) = answer else { return Ok(refused(state, answer)) };
    let name = &state.spec.node;
    let change = format!("To change it: pgbox psql {name} -c '\\password'");
    if state.postgres().is_none() || !node.secret_file().exists() {
        return Ok(None);
    }
    let file = node.secret_file();
    let known = remembered(root, state).filter(|_| origin == Origin::Given);
    let counts = match known {
        Some(old) if works(node, state, &old)? => format!(" The one that counts is in {}.", file.display()),
        _ => {
            fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
            String::new()
        }
    };
    if origin == Origin::Given {
        return Ok(Some(format!(
            "the data of `{name}` has another password than the one that was given ({why}), and keeps it: a \
             password is set when the data directory is made.{counts} {change}"
        )));
    }
    Ok(Some(format!(
        "the data of `{name}` has a password that pgbox doesn't know ({why}). Give it with -e \
         POSTGRES_PASSWORD=... when the node is created. {change}"
    )))
}

/// Tries a password, and leaves it in the node's files if it is the right one.
fn works(node: &NodeDir, state: &NodeState, secret: &str) -> Result<bool> {
    let Some(AfterStep::WaitUntilReady { address, .. }) = state.plan.after.first() else { return Ok(false) };
    let given = fs::read_to_string(node.secret_file()).context("read the password")?;
    state::write_secret(&node.secret_file(), secret)?;
    let works = ready::probe(node, *address)? == Answer::Ready;
    if !works {
        state::write_secret(&node.secret_file(), &given)?;
    }
    Ok(works)
}

/// A server that is up, but turns pgbox away for something other than the password.
pub fn refused(state: &NodeState, answer: &Answer) -> Option<String> {
    let Answer::Refused(why) = answer else { return None };
    let name = &state.spec.node;
    Some(format!(
        "`{name}` is up, but turned pgbox away ({why}); POSTGRES_USER, POSTGRES_DB and the like only count \
         when the data directory is made"
    ))
}

/// Keeps the password beside a named volume, for the next node on it; only one that is known to be right.
pub fn remember(node: &NodeDir, state: &NodeState, volume: &Path) -> Result<()> {
    let trusted = state.postgres().is_some_and(|p| p.auth_method.as_deref() == Some("trust"));
    let path = volume.join("password");
    match fs::read_to_string(node.secret_file()) {
        // A server that asks nobody for a password has not confirmed this one.
        Ok(secret) if !(trusted && path.exists()) => state::write_secret(&path, &secret),
        _ => Ok(()),
    }
}
