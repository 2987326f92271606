//! The command line of initdb (PostgreSQL manual, reference pages), its locale, and the sample file that it
//! makes postgresql.conf from.
//!
//! The rule that surprises people: initdb starts a server to try out `shared_buffers`, with huge pages where
//! the machine has them; in a cgroup without any, that server dies of SIGBUS (docker-library/postgres#451).
//! Only 16 and later can be told on the command line not to; before, the sample file is the only way in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::quote;

/// What initdb is told.
#[derive(Clone, Copy, Debug)]
pub struct Initdb<'a> {
    /// Directory of the binaries.
    pub bindir: &'a Path,
    /// The new data directory.
    pub pgdata: &'a Path,
    /// Major version of the binaries.
    pub major: u32,
    /// The superuser to create.
    pub superuser: &'a str,
    /// The file to read its password from; `None` for no password.
    pub pwfile: Option<&'a str>,
    /// Where the write-ahead log goes.
    pub waldir: Option<&'a Path>,
    /// `--locale`, where the environment's is not installed.
    pub locale: Option<Locale>,
    /// The user's own options, one string as a shell would read it.
    pub extra: &'a str,
}

/// A locale to fall back to when the image lacks the one that its environment names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locale {
    /// UTF-8 with the order of code points; in every glibc since 2.35 and in Debian's long before.
    CUtf8,
    /// The C locale, but still with the encoding UTF-8.
    C,
}

impl Locale {
    /// Its name for a message.
    pub fn name(self) -> &'static str {
        match self {
            Locale::CUtf8 => "C.UTF-8",
            Locale::C => "C",
        }
    }
}

/// The locales to try, in order, the image's own first.
pub const LOCALES: [Option<Locale>; 3] = [None, Some(Locale::CUtf8), Some(Locale::C)];

impl Initdb<'_> {
    /// The whole argv. The user's own options come last, so that they win over pgbox's.
    pub fn argv(&self) -> Result<Vec<String>> {
        let mut argv = vec![self.bindir.join("initdb").display().to_string()];
        argv.push(format!("--pgdata={}", self.pgdata.display()));
        argv.push(format!("--username={}", self.superuser));
        argv.push("--data-checksums".to_owned());
        // One syncfs(2) of the caller's replaces a thousand fsyncs.
        argv.push("--no-sync".to_owned());
        argv.extend(self.pwfile.map(|file| format!("--pwfile={file}")));
        argv.extend(self.waldir.map(|dir| format!("--waldir={}", dir.display())));
        match self.locale {
            None => {}
            Some(Locale::CUtf8) => argv.extend(["--locale=C.UTF-8".into(), "--encoding=UTF8".into()]),
            Some(Locale::C) => argv.extend(["--locale=C".into(), "--encoding=UTF8".into()]),
        }
        // Before 14 the superuser's password would be stored as md5 unless some method asks for scram.
        if self.major < 14 && self.pwfile.is_some() {
            argv.push("--auth-host=scram-sha-256".to_owned());
        }
        if self.major >= 16 {
            argv.push("--set=huge_pages=off".to_owned());
        }
        argv.extend(quote::split_words(self.extra).context("POSTGRES_INITDB_ARGS")?);
        Ok(argv)
    }
}

/// `CREATE DATABASE` for a database that initdb does not make by itself.
pub fn create_database(name: &str) -> Option<String> {
    match name {
        "postgres" | "template0" | "template1" => None,
        name => Some(format!("CREATE DATABASE {};", quote::identifier(name))),
    }
}

/// True if initdb's output says that the locale of the environment is not installed.
pub fn locale_missing(output: &str) -> bool {
    [
        "invalid locale settings",
        "invalid locale name",
        "failed to restore old locale",
        "could not be determined",
    ]
    .iter()
    .any(|message| output.contains(message))
}

/// True if initdb's output says that a locale is not installed that an option names. Another default would not help: options win.
pub fn locale_named(output: &str) -> bool {
    output.contains("invalid locale name")
}

/// Where the image can have the sample that initdb makes postgresql.conf from: Debian's place, then the
/// two that PostgreSQL's own build uses.
pub fn sample_candidates(bindir: &Path, major: u32) -> Vec<PathBuf> {
    let mut shares = Vec::new();
    if bindir.ends_with(format!("postgresql/{major}/bin")) {
        shares.push(PathBuf::from(format!("/usr/share/postgresql/{major}")));
    }
    if let Some(prefix) = bindir.parent() {
        shares.extend([prefix.join("share/postgresql"), prefix.join("share")]);
    }
    shares.into_iter().map(|share| share.join("postgresql.conf.sample")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initdb(major: u32, extra: &str) -> Vec<String> {
        let initdb = Initdb {
            bindir: Path::new("/b"),
            pgdata: Path::new("/my data"),
            major,
            superuser: "it's me",
            pwfile: Some("/proc/self/fd/3"),
            waldir: Some(Path::new("/wal")),
            locale: None,
            extra,
        };
        initdb.argv().unwrap()
    }

    #[test]
    fn the_users_options_come_last_and_whole() {
        let argv = initdb(15, "--locale=C -k --wal-segsize '64'");
        assert_eq!(argv[..3], ["/b/initdb", "--pgdata=/my data", "--username=it's me"]);
        assert_eq!(argv[argv.len() - 4..], ["--locale=C", "-k", "--wal-segsize", "64"]);
        assert!(argv.contains(&"--waldir=/wal".to_owned()));
    }

    #[test]
    fn options_that_only_some_versions_know() {
        let has = |major, option: &str| initdb(major, "").iter().any(|arg| arg == option);
        assert!(has(16, "--set=huge_pages=off") && !has(15, "--set=huge_pages=off"));
        assert!(has(13, "--auth-host=scram-sha-256") && !has(14, "--auth-host=scram-sha-256"));
    }

    #[test]
    fn the_sample_of_debian_and_of_the_official_image() {
        let debian = sample_candidates(Path::new("/usr/lib/postgresql/15/bin"), 15);
        assert_eq!(debian[0], Path::new("/usr/share/postgresql/15/postgresql.conf.sample"));
        let official = sample_candidates(Path::new("/usr/local/bin"), 17);
        assert!(official.contains(&"/usr/local/share/postgresql/postgresql.conf.sample".into()));
    }

    #[test]
    fn a_missing_locale_is_recognised() {
        assert!(locale_missing("initdb: error: invalid locale settings; check LANG and LC_* environment"));
        assert!(locale_missing("initdb: error: invalid locale name \"de_DE.UTF-8\""));
        assert!(!locale_missing("initdb: error: could not create directory"));
        assert!(locale_named("initdb: error: invalid locale name \"de_DE.UTF-8\""));
        assert!(!locale_named("initdb: error: invalid locale settings; check LANG and LC_* environment"));
    }
}
