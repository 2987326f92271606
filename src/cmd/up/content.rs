//! What is in the databases of a lab, brought to its primary.

use std::{fs, time::Duration};

use anyhow::{Context as _, Error, Result};
use postgres::error::{DbError, SqlState};

use crate::{
    cmd::Context,
    engine::{passfile, password},
    facts::{cluster, lab},
    hint::advise,
    lab::wanted::Sql,
    plan::changes::{self, Need},
    postgres::{content, password::verifier},
    sql::{Login, reason},
    state,
};

/// How long init SQL may take: it may load data.
const PATIENCE: Duration = Duration::from_secs(3600);

fn primary(context: &Context) -> Result<Login> {
    let cluster = cluster::main(&context.root, &context.lab)?;
    cluster.head().awake()?;
    cluster.head().login()
}

/// Makes a user, or gives it the password that it should have.
pub fn user(context: &Context, name: &str, given: Option<&str>, need: Need) -> Result<()> {
    let password = match given {
        Some(password) => password.to_owned(),
        None => generated(context, name)?,
    };
    let verifier = verifier(&password);
    let is_superuser = before(context, name, &password)?;
    let sql = match need {
        Need::Differs => content::set_password(name, &verifier),
        _ => content::create_user(name, &verifier),
    };
    alone(context, sql).with_context(|| format!("user `{name}`"))?;
    let _lock = context.lock()?;
    if is_superuser {
        password::has_changed(&context.root, &cluster::main(&context.root, &context.lab)?.nodes, &password)?;
    }
    passfile::settle(&context.root, &context.lab)
}

/// Keeps a password before the server has it: the next `up` sees that the server has another one, and goes on. With the
/// superuser's pgbox itself must get in until then, so both are kept.
fn before(context: &Context, name: &str, password: &str) -> Result<bool> {
    let _lock = context.lock()?;
    let cluster = cluster::main(&context.root, &context.lab)?;
    let is_superuser = cluster.head().login()?.user == name;
    match is_superuser {
        true => password::will_change(&context.root, &cluster.nodes, password)?,
        false => write(context, name, password)?,
    }
    Ok(is_superuser)
}

/// The password of a user of whom none was said: the one that it had in these data before, or a new one. It is kept before the
/// server has it: nobody else knows it.
fn generated(context: &Context, name: &str) -> Result<String> {
    let path = context.root.user_file(&context.lab, name);
    let known = state::read_secret(&path)?;
    if !known.is_empty() {
        return Ok(known);
    }
    let password = password::generated()?;
    write(context, name, &password)?;
    outln!("the password of {name} is in {}", path.display());
    Ok(password)
}

fn write(context: &Context, name: &str, password: &str) -> Result<()> {
    let dir = context.root.users_dir(&context.lab);
    fs::create_dir_all(&dir).with_context(|| format!("mkdir {}", dir.display()))?;
    state::write_secret(&context.root.user_file(&context.lab, name), password)
}

pub fn database(context: &Context, name: &str, owner: Option<&str>, need: Need) -> Result<()> {
    let sql = match (need, owner) {
        (Need::Differs, Some(owner)) => content::set_owner(name, owner),
        _ => content::create_database(name, owner),
    };
    alone(context, sql).with_context(|| format!("database `{name}`"))
}

/// Has the primary execute a statement without waiting for standbys.
fn alone(context: &Context, sql: String) -> Result<()> {
    primary(context)?.ask(PATIENCE, move |client| {
        client.batch_execute(content::WAIT_FOR_NOBODY)?;
        client.batch_execute(&sql)
    })
}

/// Runs SQL, and notes in the same transaction that it has run.
pub fn run(context: &Context, sql: &Sql) -> Result<()> {
    let mut server = primary(context)?;
    let known = lab::ask(&server)?;
    server.database = sql.database.clone().unwrap_or(known.database);
    let here = known.done.into_iter().filter(|(database, _)| *database == server.database);
    let mut done: Vec<content::Done> = here.map(|(_, done)| done).collect();
    done.push(changes::done(sql));
    let (text, note) = (content::run_within(&sql.text), content::note(&server.database, &done));
    let user = server.user.clone();
    let other = server.try_ask(PATIENCE, move |client| {
        client.batch_execute(&text)?;
        let users = client.query_one(content::USERS, &[])?;
        let [session, current]: [String; 2] = [users.get(0), users.get(1)];
        if [&session, &current] != [&user; 2] {
            // With the session all of it is undone.
            return Ok(Some(current));
        }
        client.batch_execute(&note).map(|()| None)
    })?;
    match other {
        Ok(None) => Ok(()),
        Ok(Some(user)) => Err(advise(
            format!(
                "{}: it ends as the user `{user}`, who can't note that it has run; it is undone",
                sql.shown
            ),
            "write RESET SESSION AUTHORIZATION; RESET ROLE at its end",
        )),
        Err(error) => Err(refused(sql, &error)),
    }
}

/// Why SQL of a lab file did not run, and the way out where it never could.
fn refused(sql: &Sql, error: &postgres::Error) -> Error {
    let why = format!("{}: {}", sql.shown, reason(error));
    let within = error.as_db_error().and_then(DbError::routine) == Some(content::WITHIN);
    let text = sql.text.to_ascii_lowercase();
    let of_psql = text.contains("from stdin") || text.lines().any(|line| line.starts_with('\\'));
    match error.code() {
        Some(&SqlState::ACTIVE_SQL_TRANSACTION) => advise(
            why,
            "SQL of a lab file is one transaction, with the note that it has run; what can't be in one is for \
             `pgbox psql`",
        ),
        Some(&SqlState::FEATURE_NOT_SUPPORTED) if within && reason(error).contains("COPY") => advise(
            format!(
                "{}: it has a COPY FROM STDIN or TO STDOUT, and nobody is there for that; it is undone",
                sql.shown
            ),
            COPIES,
        ),
        Some(&SqlState::FEATURE_NOT_SUPPORTED) if within => advise(
            format!("{}: it begins or ends a transaction; it is undone", sql.shown),
            "leave out BEGIN, COMMIT, ROLLBACK and SAVEPOINT: SQL of a lab file is one transaction, with the note that it \
             has run",
        ),
        Some(&SqlState::SYNTAX_ERROR) if of_psql => advise(why, COPIES),
        _ => Error::msg(reason(error)).context(sql.shown.clone()),
    }
}

const COPIES: &str = "COPY ... FROM STDIN with its data, and psql's own commands (\\...), are for `pgbox psql`; of pg_dump's \
                      output that with --inserts has none";
