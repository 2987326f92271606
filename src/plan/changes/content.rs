//! What is in the databases: users, databases and SQL that are missing, and whom commits wait for.
//!
//! The rule that surprises people: SQL that was run once can't be compared with what is there. It is known by its digest,
//! which is kept in the database itself: there it goes along with backups, failovers and volumes.

use sha2::{Digest, Sha256};

use super::{Action, Actual, Changes, Data, Need, Server};
use crate::{
    lab::wanted::{Database, Sql, User, Wanted},
    postgres::{content::Done, contract, password},
    spec::Publish,
};

/// What is noted of SQL that has run.
pub fn done(sql: &Sql) -> Done {
    Done { digest: digest(&sql.text), place: Some(digest(&sql.place)) }
}

/// What a piece of SQL is known by.
fn digest(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Adds what is missing, in the order in which one needs the other.
pub fn compare(wanted: &Wanted, actual: &Actual, changes: &mut Changes) {
    let server = actual.server.as_ref();
    let actions = &mut changes.actions;
    for user in &wanted.users {
        let need = need_of_user(user, server);
        let action = |need| Action::User { name: user.name.clone(), password: user.password.clone(), need };
        actions.extend(need.map(action));
    }
    for database in &wanted.databases {
        let need = need_of_database(database, server);
        let action =
            |need| Action::Database { name: database.name.clone(), owner: database.owner.clone(), need };
        actions.extend(need.map(action));
    }
    for sql in wanted.init.iter().filter(|sql| !has_run(sql, server)) {
        match was_otherwise(sql, &wanted.init, server) {
            true => changes.notes.push(format!(
                "{} has changed since it ran, and is not run again; what is new belongs into an [[init]] of its own",
                sql.shown
            )),
            false => actions.push(Action::Run { sql: sql.clone() }),
        }
    }
    let differs = |wanted: &Option<Option<Publish>>, there: &[Publish]| {
        wanted.filter(|wanted| wanted.as_slice() != there)
    };
    let rw = differs(&wanted.publish_rw, &actual.publish.rw);
    let ro = differs(&wanted.publish_ro, &actual.publish.ro);
    if rw.is_some() || ro.is_some() {
        actions.push(Action::Endpoints { rw, ro });
    }
    // Last: before its standbys stream, every commit of the above would wait.
    if let Some(rule) = wanted.sync.as_ref().filter(|rule| **rule != actual.sync) {
        actions.push(Action::Sync { rule: rule.clone() });
    }
}

fn need_of_user(user: &User, server: Option<&Server>) -> Option<Need> {
    let Some(server) = server else { return Some(Need::Unknown) };
    let Some(verifier) = server.roles.get(&user.name) else { return Some(Need::Missing) };
    let password = user.password.as_ref()?;
    let fits =
        verifier.as_ref().is_some_and(|known| password::verify(password, known, &user.name).unwrap_or(false));
    (!fits).then_some(Need::Differs)
}

fn need_of_database(database: &Database, server: Option<&Server>) -> Option<Need> {
    let Some(server) = server else { return Some(Need::Unknown) };
    let Some(owner) = server.databases.get(&database.name) else { return Some(Need::Missing) };
    let differs = database.owner.as_ref().is_some_and(|wanted| wanted != owner);
    differs.then_some(Need::Differs)
}

/// What has run in the database of a piece of SQL.
fn done_there<'s>(sql: &Sql, server: Option<&'s Server>) -> impl Iterator<Item = &'s Done> {
    let database = sql.database.clone();
    server.into_iter().flat_map(move |server| {
        let database = database.clone().unwrap_or_else(|| server.database.clone());
        server.done.iter().filter(move |(there, _)| *there == database).map(|(_, done)| done)
    })
}

fn has_run(sql: &Sql, server: Option<&Server>) -> bool {
    done_there(sql, server).any(|done| done.digest == digest(&sql.text))
}

/// Whether something else has run that was called so, and is gone from the file: this is what it has become.
fn was_otherwise(sql: &Sql, all: &[Sql], server: Option<&Server>) -> bool {
    let place = Some(digest(&sql.place));
    let is_gone = |done: &Done| !all.iter().any(|other| digest(&other.text) == done.digest);
    done_there(sql, server).any(|done| done.place == place && is_gone(done))
}

/// Looks for owners of databases who are in no file, and not in the data either: of a lab that has none yet these are empty.
pub fn owners(wanted: &Wanted, actual: &Actual, changes: &mut Changes) {
    let is_new = actual.nodes.is_empty() && actual.data.values().all(|data| *data == Data::None);
    for database in &wanted.databases {
        let Some(owner) = &database.owner else { continue };
        let known = match &actual.server {
            _ if wanted.users.iter().any(|user| user.name == *owner) => Some(true),
            Some(server) => Some(server.roles.contains_key(owner)),
            None if is_superuser(wanted, owner) => Some(true),
            None => is_new.then_some(false),
        };
        need(changes, known, &format!("database {} is to be of", database.name), ("user", owner));
    }
}

/// Looks for databases that SQL is to run in, and that nobody makes: a mistake in the name would be found when all else is done.
pub fn bases(wanted: &Wanted, actual: &Actual, changes: &mut Changes) {
    let is_new = actual.nodes.is_empty() && actual.data.values().all(|data| *data == Data::None);
    // What scripts of a first start make nobody knows before.
    let mut mounts = wanted.nodes.iter().flat_map(|node| &node.spec.volumes);
    let has_scripts = mounts.any(|volume| volume.target.starts_with(contract::SCRIPTS_DIR));
    for sql in &wanted.init {
        let Some(name) = &sql.database else { continue };
        let known = match &actual.server {
            _ if wanted.databases.iter().any(|database| database.name == *name) => Some(true),
            Some(server) => Some(server.databases.contains_key(name)),
            None if is_first(wanted, name) => Some(true),
            None => (is_new && !has_scripts).then_some(false),
        };
        need(changes, known, &format!("{} is to run in", sql.shown), ("database", name));
    }
}

/// Something is to be done with a user or a database that may not be there: a mistake where it is known that there is none, and
/// a note where nobody knows beforehand.
fn need(changes: &mut Changes, known: Option<bool>, what: &str, (kind, name): (&str, &str)) {
    match known {
        Some(true) => {}
        Some(false) => changes.wrong.push(format!(
            "{what} {kind} {name}, and there is no such {kind}: add [{kind}s.{name}]"
        )),
        None => changes.notes.push(format!(
            "{what} {kind} {name}, and the file has no such {kind}: whether there is one is known only when a server runs on \
             the data"
        )),
    }
}

/// Whether initdb, or the first start after it, may make a database of this name.
fn is_first(wanted: &Wanted, name: &str) -> bool {
    let mut named = wanted.nodes.iter().flat_map(|node| &node.spec.env);
    let mut named = named.by_ref().filter(|(key, _)| key.starts_with(contract::DATABASE)).peekable();
    match named.peek() {
        _ if ["postgres", "template1"].contains(&name) => true,
        None => is_superuser(wanted, name),
        // From a file it may be any.
        Some(_) => named.any(|(key, value)| key != contract::DATABASE || value == name),
    }
}

/// Whether initdb may make a role of this name.
fn is_superuser(wanted: &Wanted, name: &str) -> bool {
    let users = wanted.nodes.iter().flat_map(|node| &node.spec.env);
    let mut users = users.filter(|(key, _)| key.starts_with(contract::USER)).peekable();
    match users.peek() {
        None => name == contract::DEFAULT_USER,
        // From a file it may be any.
        Some(_) => users.any(|(key, value)| key != contract::USER || value == name),
    }
}
