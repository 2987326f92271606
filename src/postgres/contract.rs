//! The environment of the official image (its README, "Environment Variables"), split into what `init`
//! acts on and what the server may see.
//!
//! The rule that surprises people: a variable that is set but empty counts as unset, as in that image's own
//! `${VAR:-}`; and `X` together with `X_FILE` is an error, never a choice.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::launch::{Password, Source};

/// The directory of init scripts.
pub const SCRIPTS_DIR: &str = "/docker-entrypoint-initdb.d";

/// The variable with the superuser's name.
pub const USER: &str = "POSTGRES_USER";

/// The database that is made first.
pub const DATABASE: &str = "POSTGRES_DB";

/// The superuser where `POSTGRES_USER` is not set.
pub const DEFAULT_USER: &str = "postgres";

/// The longest password in bytes: it goes to initdb through a pipe that nobody reads yet, and holds 64 KiB.
const LONGEST_SECRET: usize = 8192;

/// What counts when the data directory is made, and never again.
pub const WHEN_MADE: [&str; 8] = [
    USER,
    "POSTGRES_USER_FILE",
    DATABASE,
    "POSTGRES_DB_FILE",
    "POSTGRES_INITDB_ARGS",
    "POSTGRES_INITDB_ARGS_FILE",
    "POSTGRES_INITDB_WALDIR",
    "POSTGRES_HOST_AUTH_METHOD",
];

/// A longer file of a `*_FILE` variable can't be meant.
pub const LARGEST_FILE: u64 = 64 << 10;

/// A container's environment, read by the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// `POSTGRES_USER`, with its default.
    pub superuser: Source,
    /// `POSTGRES_DB`; `None`: as the superuser.
    pub database: Option<Source>,
    /// `POSTGRES_INITDB_ARGS`.
    pub initdb_args: Option<Source>,
    /// `POSTGRES_INITDB_WALDIR`.
    pub initdb_waldir: Option<PathBuf>,
    /// `POSTGRES_HOST_AUTH_METHOD`.
    pub auth_method: Option<String>,
    /// `PGDATA`.
    pub pgdata: Option<PathBuf>,
    /// `POSTGRES_PASSWORD` itself, if it was given: the caller keeps it in a 0600 file.
    pub secret: Option<String>,
    /// Path of `POSTGRES_PASSWORD_FILE` inside the container, if it was given.
    pub secret_file: Option<PathBuf>,
    /// Everything else; what the server's environment is made of. Holds no password.
    pub rest: Vec<(String, String)>,
}

impl Contract {
    /// Reads the variables; of one that is given twice the later value counts.
    pub fn parse(env: &[(String, String)]) -> Result<Contract> {
        let get = |name: &str| lookup(env, name);
        let source = |name: &str| source(env, name);
        let (secret, secret_file) = match source("POSTGRES_PASSWORD")? {
            Some(Source::Value(secret)) => (Some(check_secret(secret)?), None),
            Some(Source::File(path)) => (None, Some(path)),
            None => (None, None),
        };
        let auth_method = get("POSTGRES_HOST_AUTH_METHOD");
        if let Some(method) = &auth_method {
            super::hba::check_method(method)?;
        }
        for name in ["PGDATA", "POSTGRES_INITDB_WALDIR"] {
            if let Some(path) = get(name).filter(|path| !path.starts_with('/')) {
                bail!("{name} is {path:?}, and must be an absolute path");
            }
        }
        Ok(Contract {
            superuser: source(USER)?.unwrap_or(Source::Value(DEFAULT_USER.to_owned())),
            database: source(DATABASE)?,
            initdb_args: source("POSTGRES_INITDB_ARGS")?,
            initdb_waldir: get("POSTGRES_INITDB_WALDIR").map(PathBuf::from),
            auth_method,
            pgdata: get("PGDATA").map(PathBuf::from),
            secret,
            secret_file,
            rest: env.iter().filter(|(name, _)| !is_secret(name)).cloned().collect(),
        })
    }

    /// Where `init` gets the password from. With `trust` and no password there is none; in all other cases
    /// the caller provides one through the descriptor (it generates one if the user gave none).
    pub fn password(&self) -> Password {
        match (&self.secret_file, &self.secret, self.auth_method.as_deref()) {
            (Some(path), _, _) => Password::File(path.clone()),
            (None, None, Some("trust")) => Password::Unset,
            (None, _, _) => Password::Descriptor,
        }
    }
}

/// True for a variable that can hold a password, which no server process may see.
pub fn is_secret(name: &str) -> bool {
    matches!(name, "POSTGRES_PASSWORD" | "PGPASSWORD")
}

/// Takes the value of a `*_FILE` variable from the file's content: newlines at its end are not part of it,
/// as in a shell's `$(< file)`.
pub fn file_value(content: &[u8], name: &str) -> Result<String> {
    match std::str::from_utf8(content) {
        Ok(text) => Ok(text.trim_end_matches('\n').to_owned()),
        Err(_) => bail!("the file of {name} is not UTF-8 text"),
    }
}

/// Refuses a password that PostgreSQL's tools could not take: initdb reads one line.
pub fn check_secret(secret: String) -> Result<String> {
    if secret.contains(['\n', '\r', '\0']) {
        bail!("the password contains a line break, which initdb cannot read");
    }
    if secret.len() > LONGEST_SECRET {
        bail!("the password has {} bytes; {LONGEST_SECRET} are the most", secret.len());
    }
    Ok(secret)
}

/// The arguments after `--`, by the rule of the official image: a first word that starts with `-` means
/// all are for the server, as does a first word `postgres` (which is dropped). `None`: another program, and
/// that may be [`postgres` itself](runs_no_server).
pub fn server_args(args: &[String]) -> Option<&[String]> {
    let options = match args.first().map(String::as_str) {
        None => args,
        Some("postgres") => &args[1..],
        Some(first) if first.starts_with('-') => args,
        Some(_) => return None,
    };
    (!runs_no_server(options)).then_some(options)
}

/// Options with which `postgres` says something and ends, or works alone (postgres(1)). A cluster made for them
/// would be a surprise. Beyond the official image's list: `-C`, which only reads, and the single-user modes.
fn runs_no_server(options: &[String]) -> bool {
    let says = |word: &str| {
        ["-?", "--help", "-V", "--version", "--describe-config"].contains(&word) || word.starts_with("-C")
    };
    // The server takes these as the first word only.
    let alone = |word: &str| ["--single", "--boot", "--check"].contains(&word);
    options.iter().any(|word| says(word)) || options.first().is_some_and(|word| alone(word))
}

/// The command that the arguments after `--` ask for, if that is not a server.
pub fn command(args: &[String]) -> Option<Vec<String>> {
    match args.first() {
        _ if server_args(args).is_some() => None,
        Some(first) if first.starts_with('-') => Some([&["postgres".to_owned()], args].concat()),
        _ => Some(args.to_vec()),
    }
}

fn lookup(env: &[(String, String)], name: &str) -> Option<String> {
    let (_, value) = env.iter().rev().find(|(key, _)| key == name)?;
    (!value.is_empty()).then(|| value.clone())
}

fn source(env: &[(String, String)], name: &str) -> Result<Option<Source>> {
    let file = format!("{name}_FILE");
    match (lookup(env, name), lookup(env, &file)) {
        (Some(_), Some(_)) => bail!("both {name} and {file} are set, but they exclude each other"),
        (Some(value), None) => Ok(Some(Source::Value(value))),
        (None, Some(path)) => Ok(Some(Source::File(path.into()))),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(env: &[(&str, &str)]) -> Result<Contract> {
        Contract::parse(&env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Vec<_>>())
    }

    #[test]
    fn defaults_and_empty_values() {
        let contract = parse(&[("POSTGRES_USER", ""), ("POSTGRES_DB", ""), ("LANG", "C")]).unwrap();
        assert_eq!(contract.superuser, Source::Value("postgres".into()));
        assert_eq!((contract.database.clone(), contract.password()), (None, Password::Descriptor));
        assert_eq!(contract.rest.len(), 3);
    }

    #[test]
    fn a_value_and_its_file_exclude_each_other() {
        for name in ["POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_INITDB_ARGS"] {
            let file = format!("{name}_FILE");
            let error = parse(&[(name, "a"), (&file, "/b")]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(&file), "{error}");
            parse(&[(name, ""), (&file, "/b")]).unwrap();
        }
    }

    #[test]
    fn the_password_leaves_the_environment() {
        let contract = parse(&[("POSTGRES_PASSWORD", "s3 cret'"), ("PGPASSWORD", "s3"), ("A", "b")]).unwrap();
        assert_eq!(contract.secret.as_deref(), Some("s3 cret'"));
        assert_eq!(contract.rest, [("A".to_owned(), "b".to_owned())]);
        assert!(parse(&[("POSTGRES_PASSWORD", "a\nb")]).is_err());
    }

    #[test]
    fn password_sources() {
        let file = parse(&[("POSTGRES_PASSWORD_FILE", "/run/secrets/pw")]).unwrap();
        assert_eq!(file.password(), Password::File("/run/secrets/pw".into()));
        let trust = parse(&[("POSTGRES_HOST_AUTH_METHOD", "trust")]).unwrap();
        assert_eq!(trust.password(), Password::Unset);
        let both = parse(&[("POSTGRES_HOST_AUTH_METHOD", "trust"), ("POSTGRES_PASSWORD", "x")]).unwrap();
        assert_eq!(both.password(), Password::Descriptor);
        assert_eq!(file_value(b"s \n\n", "X").unwrap(), "s ");
        assert!(file_value(b"\xff", "X").is_err());
    }

    #[test]
    fn words_after_the_dashes() {
        let args = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        assert_eq!(server_args(&[]), Some(&[][..]));
        assert_eq!(server_args(&args(&["-c", "a=b"])), Some(&args(&["-c", "a=b"])[..]));
        assert_eq!(server_args(&args(&["postgres", "-c", "a=b"])), Some(&args(&["-c", "a=b"])[..]));
        assert_eq!(server_args(&args(&["bash", "-c", "true"])), None);
        assert_eq!((command(&[]), command(&args(&["-c", "a=b"]))), (None, None));
    }

    #[test]
    fn a_postgres_that_only_says_something_is_a_command() {
        let args = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        for words in [
            &["postgres", "--version"][..],
            &["postgres", "-c", "a=b", "-?"],
            &["postgres", "-C", "shared_buffers"],
            &["postgres", "--single", "-D", "/x"],
            &["bash", "--help"],
        ] {
            assert_eq!(server_args(&args(words)), None, "{words:?}");
            assert_eq!(command(&args(words)), Some(args(words)), "{words:?}");
        }
        assert_eq!(command(&args(&["-V"])), Some(args(&["postgres", "-V"])));
        assert_eq!(command(&args(&["postgres", "-c", "a=--single"])), None);
    }
}
