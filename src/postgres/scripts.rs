//! The scripts of a first start, `/docker-entrypoint-initdb.d`, and the psql that runs SQL ones.
//!
//! The rule that surprises people: a `*.sh` that is not executable is *sourced* by a shell, so a missing
//! `chmod +x` goes unnoticed there, and its `exit` ends only that shell.

use std::path::Path;

/// How a script is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An executable `*.sh`: started by itself.
    Execute,
    /// A `*.sh` that is not executable: sourced.
    Source,
    /// `*.sql`, perhaps compressed: fed to psql.
    Sql(Compression),
    /// Everything else: named in the log and left alone.
    Ignored,
}

/// How an SQL script is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip(1).
    Gzip,
    /// xz(1).
    Xz,
    /// zstd(1).
    Zstd,
}

/// How the script `name` is run; `mode` are its permission bits, stat(2).
pub fn classify(name: &[u8], mode: u32) -> Kind {
    match name {
        n if n.ends_with(b".sh") && mode & 0o111 != 0 => Kind::Execute,
        n if n.ends_with(b".sh") => Kind::Source,
        n if n.ends_with(b".sql") => Kind::Sql(Compression::Plain),
        n if n.ends_with(b".sql.gz") => Kind::Sql(Compression::Gzip),
        n if n.ends_with(b".sql.xz") => Kind::Sql(Compression::Xz),
        n if n.ends_with(b".sql.zst") => Kind::Sql(Compression::Zstd),
        _ => Kind::Ignored,
    }
}

/// The argv of psql for a script that comes on its standard input. The options are the official image's.
pub fn psql(bindir: &Path, user: &str, database: &str) -> Vec<String> {
    let mut argv = vec![bindir.join("psql").display().to_string()];
    argv.extend(["-v", "ON_ERROR_STOP=1", "--no-password", "--no-psqlrc"].map(str::to_owned));
    argv.extend([format!("--username={user}"), format!("--dbname={}", connection_database(database))]);
    argv
}

/// psql takes a `--dbname` with an equals sign, or one that starts like a URI, for a connection string.
/// Then the name goes in as a connection string of its own, quoted (PostgreSQL manual 34.1.1.1).
fn connection_database(name: &str) -> String {
    match name.contains('=') || name.starts_with("postgres://") || name.starts_with("postgresql://") {
        true => format!("dbname={}", super::uri::conninfo_value(name)),
        false => name.to_owned(),
    }
}

/// The argv that sources `script`: in `shell`, which stops at the first error, among the functions of the official entrypoint
/// that scripts use. It writes its environment to descriptor 3 in the end, see [`environment`].
pub fn source(shell: &str, script: &str) -> Vec<String> {
    const PRELUDE: &str = include_str!("prelude.sh");
    let options: &[&str] = match shell.ends_with("bash") {
        true => &["-Ee", "-o", "pipefail", "-c"],
        false => &["-e", "-c"],
    };
    let words = [&[shell], options, &[PRELUDE, shell, script]].concat();
    words.into_iter().map(str::to_owned).collect()
}

/// The variables in the text of an environ file, proc_pid_environ(5).
pub fn environment(text: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(text);
    text.split_terminator('\0')
        .filter_map(|line| line.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_by_name_and_mode() {
        assert_eq!(classify(b"a.sh", 0o100755), Kind::Execute);
        assert_eq!(classify(b"a.sh", 0o100644), Kind::Source);
        assert_eq!(classify(b"a b.sql", 0o100755), Kind::Sql(Compression::Plain));
        assert_eq!(classify(b"a.sql.gz", 0o644), Kind::Sql(Compression::Gzip));
        assert_eq!(classify(b"a.sql.xz", 0o644), Kind::Sql(Compression::Xz));
        assert_eq!(classify(b"a.sql.zst", 0o644), Kind::Sql(Compression::Zstd));
        for name in ["README", "a.sql.bak", "a.gz", "a.SQL"] {
            assert_eq!(classify(name.as_bytes(), 0o755), Kind::Ignored, "{name}");
        }
    }

    #[test]
    fn a_database_name_is_never_a_connection_string() {
        let argv = psql(Path::new("/b"), "me", "host=evil");
        assert_eq!(argv.last().unwrap(), r"--dbname=dbname='host=evil'");
        assert_eq!(psql(Path::new("/b"), "me", "my db").last().unwrap(), "--dbname=my db");
    }

    #[test]
    fn sourcing_stops_at_the_first_error() {
        assert_eq!(source("/bin/bash", "/x y.sh")[1..5], ["-Ee", "-o", "pipefail", "-c"]);
        assert_eq!(source("/bin/sh", "/x y.sh").last().unwrap(), "/x y.sh");
    }

    #[test]
    fn an_environment_has_any_value() {
        let pairs = [("A", "x=1\n2"), ("EMPTY", ""), ("Z", "z")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(environment(b"A=x=1\n2\0EMPTY=\0Z=z\0"), pairs);
        assert_eq!(environment(b""), []);
    }
}
