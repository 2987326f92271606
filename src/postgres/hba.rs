//! Lines for pg_hba.conf (PostgreSQL manual 21.1), the table of who may connect how.
//!
//! The rule that surprises people: the database `all` does not include replication connections, which need a
//! line of their own (docker-library/postgres#88).

use anyhow::{Result, bail};

/// The role that standbys connect as.
pub const REPLICATOR: &str = "replicator";

/// The method of the `host all all all` line where the user names none.
pub const DEFAULT_METHOD: &str = "scram-sha-256";

/// The lines that are appended to initdb's own at a first start.
pub fn lines(method: Option<&str>, replication_subnet: Option<&str>) -> String {
    let method = method.unwrap_or(DEFAULT_METHOD);
    let mut text = String::from("\n# Added at the first start, as the official image does.\n");
    if method == "trust" {
        text += "# POSTGRES_HOST_AUTH_METHOD is trust: everybody who reaches the port is in, without a password.\n";
    }
    text += &format!("host all all all {method}\n");
    if let Some(subnet) = replication_subnet {
        text += &(replication_line(subnet) + "\n");
    }
    text
}

/// The line that lets standbys of a subnet in.
pub fn replication_line(subnet: &str) -> String {
    format!("host replication {REPLICATOR} {subnet} scram-sha-256")
}

/// Refuses a method that would break out of its line. Options may follow it (`ldap ldapserver=x`).
pub fn check_method(method: &str) -> Result<()> {
    let word = method.split_ascii_whitespace().next().unwrap_or("");
    let known = word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    match known && !method.contains(['\n', '\r', '\0']) {
        true => Ok(()),
        false => bail!("POSTGRES_HOST_AUTH_METHOD {method:?} is not an authentication method"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replication_has_its_own_line() {
        let text = lines(None, Some("10.88.0.0/24"));
        assert!(text.contains("\nhost all all all scram-sha-256\n"));
        assert!(text.contains("\nhost replication replicator 10.88.0.0/24 scram-sha-256\n"));
        assert!(lines(Some("trust"), None).contains("\nhost all all all trust\n"));
    }

    #[test]
    fn a_method_is_one_line() {
        for good in ["trust", "md5", "scram-sha-256", "ldap ldapserver=a.b"] {
            check_method(good).unwrap();
        }
        for bad in ["", "trust\nhost all all all trust", "-x", "Trust"] {
            assert!(check_method(bad).is_err(), "{bad:?}");
        }
    }
}
