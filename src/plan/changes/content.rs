//! What is in the databases: users, databases and SQL that are missing, and whom commits wait for.
//!
//! The rule that surprises people: SQL that was run once can't be compared with what is there. It is known by its digest,
//! which is kept in the database itself: there it goes along with backups, failovers and volumes.

use sha2::{Digest, Sha256};

use super::{Action, Actual, Need, Server};
use crate::{
    lab::wanted::{Database, Sql, User, Wanted},
    postgres::password,
    spec::Publish,
};

/// What a piece of SQL is known by.
pub fn digest(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Adds what is missing, in the order in which one needs the other.
pub fn compare(wanted: &Wanted, actual: &Actual, actions: &mut Vec<Action>) {
    let server = actual.server.as_ref();
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
    let missing = wanted.init.iter().filter(|sql| !has_run(sql, server));
    actions.extend(missing.map(|sql| Action::Run { sql: sql.clone() }));
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

fn has_run(sql: &Sql, server: Option<&Server>) -> bool {
    server.is_some_and(|server| {
        let database = sql.database.as_ref().unwrap_or(&server.database);
        server.done.contains(&(database.clone(), digest(&sql.text)))
    })
}
