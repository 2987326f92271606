//! Passwords: making one, and checking one against the verifier that the server stores
//! (`pg_authid.rolpassword`; SCRAM-SHA-256, RFC 5802 and 7677).
//!
//! The rule that surprises people: the password variable only counts when the data directory is made. On an
//! existing one it does nothing, silently, in the official image (docker-library/postgres#723); with the
//! stored verifier pgbox can tell, without changing anything, that the two differ.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use sha2::Sha256;

/// The most iterations that a check is willing to do: PostgreSQL's default is 4096, this takes a second.
const MOST_ITERATIONS: u32 = 2_000_000;

/// A stored verifier, `SCRAM-SHA-256$iterations:salt$stored key:server key`.
struct Verifier<'a> {
    iterations: u32,
    /// Still in base64, as the protocol sends it.
    salt: &'a str,
    server_key: Vec<u8>,
}

/// True if `password` is the one that `verifier` was made from, for the role `user` (which only the old md5
/// form depends on). An error where the verifier has a form that PostgreSQL does not write.
pub fn verify(password: &str, verifier: &str, user: &str) -> Result<bool> {
    if verifier.len() == 35 && verifier.starts_with("md5") {
        return Ok(postgres_protocol::password::md5(password.as_bytes(), user) == verifier);
    }
    answers(password, &parse(verifier)?)
}

fn parse(verifier: &str) -> Result<Verifier<'_>> {
    let parts = verifier.strip_prefix("SCRAM-SHA-256$").and_then(|rest| {
        let (head, keys) = rest.split_once('$')?;
        Some((head.split_once(':')?, keys.split_once(':')?))
    });
    let Some(((iterations, salt), (_, server_key))) = parts else {
        bail!("the stored password is neither SCRAM-SHA-256 nor md5");
    };
    let iterations = iterations.parse().context("iterations of the stored password")?;
    if iterations == 0 || iterations > MOST_ITERATIONS {
        bail!("the stored password has {iterations} iterations");
    }
    let server_key = STANDARD.decode(server_key).context("server key of the stored password")?;
    Ok(Verifier { iterations, salt, server_key })
}

/// Plays the server's part of the exchange with a SCRAM client that has the password: the client accepts the
/// server's signature exactly if it has derived the same server key (RFC 5802, section 3).
fn answers(password: &str, verifier: &Verifier<'_>) -> Result<bool> {
    let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    let hello = std::str::from_utf8(client.message())?.to_owned();
    let bare = hello.strip_prefix("n,,").context("SCRAM client without a header")?;
    let nonce = bare.split_once(",r=").context("SCRAM client without a nonce")?.1;
    let challenge = format!("r={nonce}pgbox,s={},i={}", verifier.salt, verifier.iterations);
    client.update(challenge.as_bytes()).context("salt of the stored password")?;
    let reply = std::str::from_utf8(client.message())?.to_owned();
    let unproved = reply.rsplit_once(",p=").context("SCRAM client without a proof")?.0;
    let mut signature = Hmac::<Sha256>::new_from_slice(&verifier.server_key)?;
    signature.update(format!("{bare},{challenge},{unproved}").as_bytes());
    let signature = STANDARD.encode(signature.finalize().into_bytes());
    Ok(client.finish(format!("v={signature}").as_bytes()).is_ok())
}

/// What the server stores of a password: sent in its place, it keeps the password out of the server's log.
pub fn verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

/// A password made from 18 random bytes (144 bits, getrandom(2)): 24 characters that need no quoting in a
/// shell, a URI or a passfile.
pub fn from_random(bytes: [u8; 18]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes).replace('-', "A").replace('_', "z")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by PostgreSQL 15: `SET password_encryption='scram-sha-256'; CREATE ROLE r PASSWORD '...'`.
    const STORED: &str = include_str!("testdata/verifiers.txt");

    #[test]
    fn verifiers_that_a_server_made() {
        let mut seen = 0;
        for line in STORED.lines() {
            let (password, verifier) = line.split_once('\t').unwrap();
            assert!(verify(password, verifier, "r").unwrap(), "{password:?}");
            assert!(!verify(&format!("{password} "), verifier, "r").unwrap(), "{password:?}");
            assert!(!verify("", verifier, "r").unwrap());
            seen += 1;
        }
        assert_eq!(seen, 4);
    }

    #[test]
    fn forms_that_no_server_writes() {
        for bad in
            ["", "plain", "SCRAM-SHA-256$", "SCRAM-SHA-256$0:c2FsdA==$AAAA:AAAA", "SCRAM-SHA-256$1:*$A:A"]
        {
            assert!(verify("x", bad, "r").is_err(), "{bad:?}");
        }
        assert!(verify("x", "SCRAM-SHA-256$99999999:c2FsdA==$AAAA:AAAA", "r").is_err());
    }

    #[test]
    fn a_made_password_needs_no_quoting() {
        for byte in 0..=255 {
            let password = from_random([byte; 18]);
            assert_eq!(password.len(), 24);
            assert!(password.bytes().all(|b| b.is_ascii_alphanumeric()), "{password}");
        }
    }
}
