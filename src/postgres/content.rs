//! What is in a cluster besides tables: users, databases, and which SQL has run (PostgreSQL manual 22, 23, 20.1.3).
//!
//! The rule that surprises people: `CREATE ROLE ... PASSWORD 'x'` puts x into the server's log when statements are logged.
//! A verifier in its place is taken over as it is.

use std::fmt;

use super::quote;

/// Roles, each with the verifier of its password.
pub const ROLES: &str = "SELECT rolname::text, rolpassword FROM pg_authid";

/// The verifier of whoever asks.
pub const OWN_VERIFIER: &str = "SELECT rolpassword FROM pg_authid WHERE rolname = current_user";

/// Databases and their owners.
pub const DATABASES: &str = "SELECT datname::text, pg_get_userbyid(datdba)::text FROM pg_database WHERE datallowconn OR NOT datistemplate";

/// The settings of databases, one a row.
pub const DATABASE_SETTINGS: &str = "SELECT datname::text, unnest(setconfig) FROM pg_db_role_setting \
     JOIN pg_database ON pg_database.oid = setdatabase WHERE setrole = 0";

/// Parameters, and whether they take a restart.
pub const PARAMETERS: &str = "SELECT lower(name), context = 'postmaster' FROM pg_settings";

/// The setting of a database that names what has run in it. The server knows nothing of it: its prefix makes it a
/// placeholder, and like all settings of a database it is copied to standbys and into dumps.
const DONE: &str = "pgbox.init";

/// Users and databases don't wait for synchronous standbys: they may be frozen, and get it all the same when they come back.
/// For a session, because a database can't be made in one transaction with anything.
pub const WAIT_FOR_NOBODY: &str = "SET synchronous_commit = local";

/// As whom a session has logged in, and as whom it speaks.
pub const USERS: &str = "SELECT session_user::text, current_user::text";

/// Makes a role that can log in, with this verifier as its password.
pub fn create_user(name: &str, verifier: &str) -> String {
    format!("CREATE ROLE {} LOGIN PASSWORD {}", quote::identifier(name), quote::literal(verifier))
}

/// Gives a role another password.
pub fn set_password(name: &str, verifier: &str) -> String {
    format!("ALTER ROLE {} PASSWORD {}", quote::identifier(name), quote::literal(verifier))
}

pub fn create_database(name: &str, owner: Option<&str>) -> String {
    let owner = owner.map_or(String::new(), |owner| format!(" OWNER {}", quote::identifier(owner)));
    format!("CREATE DATABASE {}{owner}", quote::identifier(name))
}

pub fn set_owner(name: &str, owner: &str) -> String {
    format!("ALTER DATABASE {} OWNER TO {}", quote::identifier(name), quote::identifier(owner))
}

/// What a setting of a database says, if it is the one that names what has run.
pub fn done(setting: &str) -> Option<Vec<Done>> {
    let value = setting.strip_prefix(DONE)?.strip_prefix('=')?;
    Some(value.split(',').filter(|done| !done.is_empty()).map(Done::parse).collect())
}

/// SQL that has run: the digest of it, and of what it was called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Done {
    pub digest: String,
    pub place: Option<String>,
}

impl Done {
    fn parse(text: &str) -> Self {
        match text.split_once('@') {
            Some((digest, place)) => Self { digest: digest.to_owned(), place: Some(place.to_owned()) },
            None => Self { digest: text.to_owned(), place: None },
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{}@{place}", self.digest),
            None => f.write_str(&self.digest),
        }
    }
}

/// Begins a transaction, and runs SQL in it that can neither end it nor ask the client for data: within PL/pgSQL the server
/// refuses both. As a plain query it would do what stands before its COMMIT for good, and after a COPY FROM STDIN wait for ever.
pub fn run_within(sql: &str) -> String {
    // In lines of its own: the SQL may end in a comment. After it a query: EXECUTE wants no SELECT INTO at the end.
    let execute = format!("BEGIN EXECUTE {}; END", quote::literal(&format!("{sql}\n;\nSELECT")));
    format!("BEGIN; DO LANGUAGE plpgsql {}", quote::literal(&execute))
}

/// Whether it is an error of [`run_within`] that there is such a statement: the name of the function in the server that says so.
pub const WITHIN: &str = "exec_stmt_dynexecute";

/// The note that SQL has run, and the end of the transaction.
pub fn note(database: &str, done: &[Done]) -> String {
    format!(
        "ALTER DATABASE {} SET {DONE} = {}; COMMIT",
        quote::identifier(database),
        quote::literal(&done.iter().map(Done::to_string).collect::<Vec<_>>().join(","))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_run_is_read_back() {
        let one = |digest: &str, place: Option<&str>| Done {
            digest: digest.into(),
            place: place.map(str::to_owned),
        };
        assert_eq!(done("pgbox.init=ab,cd@ef"), Some(vec![one("ab", None), one("cd", Some("ef"))]));
        assert_eq!(done("pgbox.init="), Some(vec![]));
        assert_eq!(done("work_mem=4MB"), None);
        let sql = note("my \"db\"", &[one("ab", Some("cd"))]);
        assert_eq!(sql, "ALTER DATABASE \"my \"\"db\"\"\" SET pgbox.init = 'ab@cd'; COMMIT");
        let sql = run_within("SELECT 'x' -- y");
        assert_eq!(
            sql,
            "BEGIN; DO LANGUAGE plpgsql 'BEGIN EXECUTE ''SELECT ''''x'''' -- y\n;\nSELECT''; END'"
        );
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(create_user("a b", "v'"), "CREATE ROLE \"a b\" LOGIN PASSWORD 'v'''");
        assert_eq!(create_database("x", Some("A")), "CREATE DATABASE \"x\" OWNER \"A\"");
    }
}
