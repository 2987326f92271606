//! Connection URIs and keyword/value strings for libpq (PostgreSQL manual 34.1.1).
//!
//! The rule that surprises people: a password in a URI lands in shell histories and process lists. The URI
//! names a `passfile` instead, which libpq only reads when nobody else can (mode 0600).

use std::{net::SocketAddrV4, path::Path};

/// How many seconds libpq tries each of several hosts (`connect_timeout`).
const HOST_TIMEOUT: &str = "3";

/// Where and as whom to connect.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Host name or address.
    pub host: &'a str,
    /// TCP port.
    pub port: u16,
    /// Role.
    pub user: &'a str,
    /// Database.
    pub database: &'a str,
    /// File with the password, in the form of [`passfile_line`].
    pub passfile: Option<&'a Path>,
}

impl Target<'_> {
    /// `postgresql://user@host:port/database?passfile=...`, percent-encoded.
    pub fn uri(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => encode(self.host),
        };
        self.uri_at(&format!("{host}:{}", self.port), None)
    }

    /// The same for several hosts, which the client tries until a session has these `target_session_attrs`. Of one that is
    /// gone or frozen it would wait for minutes until it tries the next.
    pub fn uri_of(&self, hosts: &[SocketAddrV4], session_attrs: &str) -> String {
        let hosts: Vec<String> = hosts.iter().map(SocketAddrV4::to_string).collect();
        self.uri_at(&hosts.join(","), Some(session_attrs))
    }

    fn uri_at(&self, hosts: &str, session_attrs: Option<&str>) -> String {
        let mut uri = format!("postgresql://{}@{hosts}/{}", encode(self.user), encode(self.database));
        let passfile = self.passfile.map(|path| path.display().to_string());
        let all = [
            ("target_session_attrs", session_attrs),
            ("connect_timeout", session_attrs.map(|_| HOST_TIMEOUT)),
            ("passfile", passfile.as_deref()),
        ];
        let mut separator = '?';
        for (name, value) in all {
            if let Some(value) = value {
                uri += &format!("{separator}{name}={}", encode(value));
                separator = '&';
            }
        }
        uri
    }
}

/// A value in a keyword/value string: quoted unless it is plain.
pub fn conninfo_value(value: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:".contains(&b);
    match !value.is_empty() && value.bytes().all(plain) {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'")),
    }
}

/// A line of a password file (PostgreSQL manual 34.16) for any database at a place, `HOST:PORT`, each of which may be `*`.
pub fn passfile_line(place: &str, user: &str, password: &str) -> String {
    let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    format!("{place}:*:{}:{}\n", escape(user), escape(password))
}

/// Percent-encoding of all but the unreserved characters, RFC 3986 section 2.3.
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |out, byte| match byte {
        b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => out + (b as char).encode_utf8(&mut [0; 4]),
        b => out + &format!("%{b:02X}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_survive() {
        let passfile = Some(Path::new("/var/lib/pgbox/a b"));
        let target = Target { host: "10.88.0.2", port: 5432, user: "it's me", database: "a/b ü", passfile };
        let uri =
            "postgresql://it%27s%20me@10.88.0.2:5432/a%2Fb%20%C3%BC?passfile=%2Fvar%2Flib%2Fpgbox%2Fa%20b";
        assert_eq!(target.uri(), uri);
        assert!(Target { host: "::1", ..target }.uri().contains("@[::1]:5432/"));
        assert_eq!(["", "it's me", "/a-b.c:1"].map(conninfo_value), ["''", r"'it\'s me'", "/a-b.c:1"]);
    }

    #[test]
    fn several_hosts_are_for_the_client_to_try() {
        let target = Target { host: "", port: 0, user: "u", database: "d", passfile: Some(Path::new("/p")) };
        let hosts = ["10.0.0.2:5432", "10.0.0.3:5432"].map(|host| host.parse().unwrap());
        let uri = "postgresql://u@10.0.0.2:5432,10.0.0.3:5432/d?target_session_attrs=read-write&connect_timeout=3&passfile=%2Fp";
        assert_eq!(target.uri_of(&hosts, "read-write"), uri);
    }

    #[test]
    fn a_colon_in_a_password_is_escaped() {
        assert_eq!(passfile_line("*:5433", "u", r"a:b\c"), "*:5433:*:u:a\\:b\\\\c\n");
    }
}
