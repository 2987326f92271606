//! The superuser's password: where a new node gets it from, and what becomes of it when the data turns out
//! to have another one. It is set when the data directory is made; later ones are not taken over (as in the
//! official image, docker-library/postgres#723), but here that is said.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Error, Result};
use rustix::fs::OFlags;

use super::ready::{self, Answer};
use crate::{
    facts::{cluster, node::Node},
    plan,
    postgres::{content, contract, launch::Password, password},
    spec::Name,
    sql::{Login, PATIENCE, next_pending, pending},
    state::{self, NodeDir, NodeState, Role, Root},
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
        copy(&upstream, &node.secret_file())?;
        copy_pending(&upstream, &node.secret_file())?;
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
    if let (Origin::Remembered | Origin::Generated, Some(home)) = (origin, home(root, state)) {
        // Nobody has found out since which of the two it is.
        copy_pending(&home.join("password"), &node.secret_file())?;
    }
    if let (Origin::Generated, Some(home)) = (origin, home(root, state)) {
        // The cluster may be made with it and this very run fail later: nobody else knows it.
        fs::create_dir_all(&home).with_context(|| format!("mkdir {}", home.display()))?;
        state::replace_secret(&home.join("password"), &secret)?;
    }
    Ok(origin)
}

/// Gives a node a password that stands elsewhere, if one does.
fn copy(from: &Path, to: &Path) -> Result<()> {
    match known(from) {
        Some(secret) => state::write_secret(to, &secret),
        None => Ok(()),
    }
}

fn copy_pending(from: &Path, to: &Path) -> Result<()> {
    pending(from).iter().enumerate().try_for_each(|(before, file)| copy(file, &next_pending(to, before)))
}

/// What is in a file, if that can be a password: a full disk leaves empty ones.
fn known(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok().filter(|secret| !secret.is_empty())
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
    known(&home(root, state)?.join("password"))
}

/// The directory for that. Of data below the top of a volume it is one for them alone: there may be others beside them.
fn home(root: &Root, state: &NodeState) -> Option<PathBuf> {
    let data = state.data.as_deref()?;
    let volume = data.ancestors().find_map(|dir| root.volume_home(&state.spec.lab, dir))?;
    let below = data.strip_prefix(volume.join("data")).ok()?;
    Some(if below == Path::new("") { volume } else { volume.join("below").join(below) })
}

/// The files with the password of these nodes' cluster.
fn files(root: &Root, nodes: &[Node]) -> impl Iterator<Item = PathBuf> {
    let home = |node: &Node| home(root, &node.state).filter(|home| home.is_dir());
    let beside_data = move |node: &Node| home(node).map(|home| home.join("password"));
    nodes.iter().flat_map(move |node| [Some(node.dir.secret_file()), beside_data(node)]).flatten()
}

/// Writes down another password that the superuser of these nodes' cluster is about to be given. What an earlier command was
/// about to give it, and did not see given, stays beside it: that statement may still be under way, and be the last one. Of the
/// same password one more is kept, too, which stays when this one is given.
pub fn will_change(root: &Root, nodes: &[Node], secret: &str) -> Result<()> {
    files(root, nodes).try_for_each(|file| {
        let there: Vec<PathBuf> = pending(&file).into_iter().filter(|file| known(file).is_some()).collect();
        match there.iter().filter(|file| known(file).is_some_and(|other| other == secret)).count() {
            0 | 1 => state::replace_secret(&next_pending(&file, there.len()), secret),
            _ => Ok(()),
        }
    })
}

/// Goes by it from now on: it has been given.
pub fn has_changed(root: &Root, nodes: &[Node], secret: &str) -> Result<()> {
    files(root, nodes).try_for_each(|file| {
        match pending(&file).into_iter().find(|file| known(file).is_some_and(|new| new == secret)) {
            // It is there already, and no full disk can come between.
            Some(new) => fs::rename(new, &file).context("rename a password"),
            None => state::replace_secret(&file, secret),
        }
    })
}

/// Which of the passwords that were about to be given servers have by now, each with the nodes of its cluster. That one has not
/// says nothing: a statement may be under way still, with nobody waiting for it. So the new one is only ever taken over, and
/// until then both are kept. What can't be found out now is found out later.
pub fn given(root: &Root, lab: &Name) -> Result<Vec<(Vec<Node>, String)>> {
    let mut given = Vec::new();
    for cluster in cluster::all(root, lab)? {
        let head = cluster.head();
        let pending = files(root, &cluster.nodes).flat_map(|file| {
            let old = known(&file);
            pending(&file)
                .into_iter()
                .filter_map(|file| known(&file))
                .filter(move |new| Some(new) != old.as_ref())
        });
        let pending: BTreeSet<String> = pending.collect();
        if pending.is_empty() || head.state.role() != Role::Primary || head.awake().is_err() {
            continue;
        }
        let login = head.login()?;
        if let Some(new) = pending.into_iter().find(|new| has(&login, new)) {
            given.push((cluster.nodes, new));
        }
    }
    Ok(given)
}

/// Whether this is the password of the superuser of a primary, as its data say: a server may let in whoever comes.
fn has(login: &Login, secret: &str) -> bool {
    let asked = login.ask(PATIENCE, |client| Ok(client.query_one(content::OWN_VERIFIER, &[])?.get(0)));
    let verifier: Option<String> = asked.ok().flatten();
    verifier.is_some_and(|verifier| password::verify(secret, &verifier, &login.user).unwrap_or(false))
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
    let beside = home(root, state).filter(|_| origin == Origin::Given).map(|home| home.join("password"));
    let files = beside.iter().flat_map(|file| [file.clone()].into_iter().chain(pending(file)));
    let mut others = files.filter_map(|file| known(&file));
    let mut counts = String::new();
    if others.try_fold(false, |found, old| Ok::<_, Error>(found || works(node, state, &old)?))? {
        counts = format!(" The one that counts is in {}.", file.display());
    } else {
        fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    }
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
    let Some(address) = state.server() else { return Ok(false) };
    let given = fs::read_to_string(node.secret_file()).context("read the password")?;
    state::write_secret(&node.secret_file(), secret)?;
    let works = ready::probe(node, address)? == Answer::Ready;
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

/// Keeps the password beside data in a named volume, for the next node on them; only one that is known to be right.
pub fn remember(root: &Root, state: &NodeState) -> Result<()> {
    let Some(home) = home(root, state) else { return Ok(()) };
    let node = root.node(&state.spec.lab, &state.spec.node);
    let trusted = state.postgres().is_some_and(|p| p.auth_method.as_deref() == Some("trust"));
    let path = home.join("password");
    if !pending(&node.secret_file()).is_empty() {
        // It may be that one that the server has let in.
        return Ok(());
    }
    match known(&node.secret_file()) {
        // A server that asks nobody for a password has not confirmed this one.
        Some(secret) if !(trusted && path.exists()) => {
            fs::create_dir_all(&home).with_context(|| format!("mkdir {}", home.display()))?;
            state::replace_secret(&path, &secret)
        }
        _ => Ok(()),
    }
}
