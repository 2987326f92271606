//! The environment of programs in a container (environ(7)); a server's is without passwords, and has what the server needs.

use super::{
    contract::is_secret,
    launch::{InitConfig, PostgresPayload},
};
use crate::sys::execute::DEFAULT_PATH;

/// Names and values. Of a name that is there twice the later value counts.
pub type Environment = Vec<(String, String)>;

/// The value of a variable.
pub fn variable<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// Sets a variable in place of all of that name.
pub fn set_variable(env: &mut Environment, name: &str, value: impl Into<String>) {
    env.retain(|(key, _)| key != name);
    env.push((name.to_owned(), value.into()));
}

/// What a command has.
pub fn with_home(init: &InitConfig) -> Environment {
    let mut env = init.env.clone();
    if variable(&env, "HOME").is_none_or(str::is_empty) {
        set_variable(&mut env, "HOME", init.user.home.display().to_string());
    }
    env
}

/// What the server has.
pub fn of_server(init: &InitConfig, postgres: &PostgresPayload) -> Environment {
    let mut env = with_home(init);
    env.retain(|(name, _)| !is_secret(name));
    let bindir = postgres.bindir.display().to_string();
    let path = variable(&env, "PATH").unwrap_or(DEFAULT_PATH).to_owned();
    if !path.split(':').any(|directory| directory == bindir) {
        set_variable(&mut env, "PATH", format!("{bindir}:{path}"));
    }
    set_variable(&mut env, "PGDATA", postgres.pgdata.display().to_string());
    // The postmaster may be protected from the OOM killer; its backends must not be.
    set_variable(&mut env, "PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj");
    set_variable(&mut env, "PG_OOM_ADJUST_VALUE", "0");
    env
}

/// The locale that initdb is given where the environment names none: without any it would make a cluster whose encoding
/// is SQL_ASCII, no encoding at all.
pub fn missing_locale(env: &[(String, String)]) -> Option<(&'static str, &'static str)> {
    let names_none =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().all(|name| variable(env, name).is_none_or(str::is_empty));
    names_none.then_some(("LANG", "C.UTF-8"))
}
