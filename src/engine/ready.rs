//! Whether a server answers: a real connection and a real query over TCP. A port that accepts, or pg_isready,
//! says less: the server may still be recovering, or be another one.

use std::{
    error::Error,
    net::{SocketAddrV4, TcpStream},
    time::Duration,
};

use anyhow::Result;
use postgres::error::SqlState;

use crate::{
    sql::{Login, PATIENCE},
    state::NodeDir,
};

/// What a server said to a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It answered.
    Ready,
    /// It is the final server, and asks for another password than pgbox has.
    WrongPassword(String),
    /// It is the final server, but would not let pgbox in: there is no such database, or pg_hba.conf refuses
    /// this host. It serves those whom it knows.
    Refused(String),
    /// Nobody listens, or it is starting, stopping or recovering.
    NotYet(String),
}

impl Answer {
    pub fn is_ready(&self) -> bool {
        !matches!(self, Self::NotYet(_))
    }
}

/// Asks the server of a node once.
pub fn probe(node: &NodeDir, address: SocketAddrV4) -> Result<Answer> {
    probe_within(node, address, PATIENCE)
}

/// The same, for at most this long: a server that is stopped accepts, and says nothing.
pub fn probe_within(node: &NodeDir, address: SocketAddrV4, limit: Duration) -> Result<Answer> {
    // The least that the kernel takes for a time.
    let limit = limit.clamp(Duration::from_millis(1), PATIENCE);
    // A refused connection is told apart in microseconds, without a runtime and a handshake.
    if let Err(e) = TcpStream::connect_timeout(&address.into(), limit.min(Duration::from_secs(1))) {
        return Ok(Answer::NotYet(e.to_string()));
    }
    Ok(ask(&node.login(address)?, limit))
}

/// What a server says to whom it lets in like this.
pub fn ask(login: &Login, limit: Duration) -> Answer {
    match login.try_ask(limit, |client| client.simple_query("SELECT 1")) {
        Ok(Ok(_)) => Answer::Ready,
        Ok(Err(error)) => explain(&error),
        Err(silent) => Answer::NotYet(silent.to_string()),
    }
}

fn explain(error: &postgres::Error) -> Answer {
    let starting = [SqlState::CANNOT_CONNECT_NOW, SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN];
    match error.as_db_error() {
        Some(said) if starting.contains(said.code()) => Answer::NotYet(said.message().to_owned()),
        Some(said) if *said.code() == SqlState::INVALID_PASSWORD => {
            Answer::WrongPassword(said.message().to_owned())
        }
        Some(said) => Answer::Refused(said.message().to_owned()),
        // The crate's own errors name what is wrong in their source: a password was asked for, and none given.
        None => match error.source().map(|source| source.to_string()) {
            Some(why) if why.contains("password") => Answer::WrongPassword(why),
            Some(why) => Answer::NotYet(format!("{error}: {why}")),
            None => Answer::NotYet(error.to_string()),
        },
    }
}
