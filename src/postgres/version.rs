//! PostgreSQL version numbers: the file `PG_VERSION`, `postgres --version` and `server_version_num`.
//!
//! The rule that surprises people: up to 9.6 two numbers made a major version, since 10 it is one. A data
//! directory can only be used by binaries of exactly its own major version (PostgreSQL manual, 19.6).

use anyhow::{Result, bail};

/// The oldest major version that pgbox runs: `postmaster.pid` tells the server's state since 10.
pub const OLDEST: u32 = 10;

/// Reads the content of a data directory's `PG_VERSION`, e.g. `15\n`.
pub fn parse_pg_version(text: &str) -> Result<u32> {
    let text = text.trim();
    match text.split('.').next().and_then(|first| first.parse().ok()) {
        Some(major) if text.len() <= 8 => Ok(major),
        _ => bail!("PG_VERSION holds {text:?}, not a version number"),
    }
}

/// Reads the major version from the output of `postgres --version` (or of any of its tools), e.g.
/// `postgres (PostgreSQL) 17beta1 (Debian 17~beta1-1)`.
pub fn parse_version_output(text: &str) -> Result<u32> {
    let version = text.split(')').nth(1).unwrap_or("").trim();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse() {
        Ok(major) => Ok(major),
        Err(_) => bail!("cannot find a version in {:?}", text.trim()),
    }
}

/// Refuses binaries of major version `binaries` on a data directory of major version `data`; `None` is an
/// empty one. Both versions are named.
pub fn check(binaries: u32, data: Option<u32>, pgdata: &str) -> Result<()> {
    if binaries < OLDEST {
        bail!("the image has PostgreSQL {binaries}, older than {OLDEST}, the oldest that pgbox runs");
    }
    match data {
        Some(data) if data != binaries => bail!(
            "the data directory {pgdata} was made by PostgreSQL {data}, the image has PostgreSQL \
             {binaries}: run an image with {data}, or move the data with pg_upgrade or pg_dumpall"
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_old_new_and_unfinished_releases() {
        assert_eq!(parse_pg_version("15\n").unwrap(), 15);
        assert_eq!(parse_pg_version("9.6\n").unwrap(), 9);
        assert!(parse_pg_version("").is_err());
        assert!(parse_pg_version("lost+found").is_err());
        for (text, major) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", 15),
            ("postgres (PostgreSQL) 17beta1\n", 17),
            ("initdb (PostgreSQL) 9.6.24\n", 9),
        ] {
            assert_eq!(parse_version_output(text).unwrap(), major, "{text}");
        }
        assert!(parse_version_output("sh: postgres: not found").is_err());
    }

    #[test]
    fn a_refusal_names_both_versions() {
        let error = check(15, Some(13), "/data").unwrap_err().to_string();
        assert!(error.contains("PostgreSQL 13") && error.contains("PostgreSQL 15"), "{error}");
        assert!(check(15, Some(15), "/data").is_ok());
        assert!(check(15, None, "/data").is_ok());
        assert!(check(9, None, "/data").is_err());
    }
}
