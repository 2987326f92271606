//! Questions to the primary, from this host and over TCP as its clients ask. One session is kept: a new one costs the server
//! a process and some milliseconds for the password, each time.
//!
//! The rule that surprises people: a server that refuses a session because it has no more of them left is well.

use std::time::Duration;

use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

use crate::sql::{self, Login};

/// Who streams from it. Any answer to it is a sign of life.
const QUESTION: &str = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'";

/// A primary's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It works, and these stream from it.
    Streams(Vec<String>),
    /// It works, and would not let the guard in.
    Refusal,
    Silence(String),
}

/// A session with a server, made when it is needed.
pub struct Probe {
    login: Login,
    open: Option<(Client, Mover)>,
}

/// Moves the bytes of a session, as long as that is there.
struct Mover(JoinHandle<()>);

impl Drop for Mover {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Probe {
    pub fn new(login: Login) -> Self {
        Self { login, open: None }
    }

    /// Asks once, for at most `limit`. A session that did not answer is not used again.
    pub async fn ask(&mut self, limit: Duration) -> Answer {
        let open = self.open.take();
        let login = &self.login;
        let asked = async {
            match open {
                // That session may have been ended alone, by whoever is allowed to.
                Some(open) => match ask(login, Some(open), limit).await {
                    Err(_) => ask(login, None, limit).await,
                    answer => answer,
                },
                None => ask(login, None, limit).await,
            }
        };
        match timeout(limit, asked).await {
            Ok(Ok((open, names))) => {
                self.open = Some(open);
                Answer::Streams(names)
            }
            Ok(Err(error)) if lives(&error) => Answer::Refusal,
            Ok(Err(error)) => Answer::Silence(format!("does not answer: {}", sql::reason(&error))),
            Err(_) => Answer::Silence("does not answer".to_owned()),
        }
    }
}

/// Whether a server that has said this is there for others.
fn lives(error: &tokio_postgres::Error) -> bool {
    let coming_or_going = [SqlState::CANNOT_CONNECT_NOW, SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN];
    error.as_db_error().is_some_and(|said| !coming_or_going.contains(said.code()))
}

async fn ask(
    login: &Login,
    open: Option<(Client, Mover)>,
    limit: Duration,
) -> Result<((Client, Mover), Vec<String>), tokio_postgres::Error> {
    let open = match open {
        Some(open) => open,
        None => {
            let (client, connection) =
                login.begin(limit, |config| config.application_name("pgbox-guard")).await?;
            // How it ends is told by the client's next question.
            let mover = tokio::spawn(async move { drop(connection.await) });
            (client, Mover(mover))
        }
    };
    let messages = open.0.simple_query(QUESTION).await?;
    let name = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    let names = messages.iter().filter_map(name).collect();
    Ok((open, names))
}
