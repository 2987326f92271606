//! SQL sessions with a server: over TCP, as any client has them.
//!
//! The rule that surprises people: a server that is frozen, or cut off in the middle of a session, leaves its client
//! waiting for ever. The kernel below it still acknowledges what is sent, so no socket option helps, and a
//! `statement_timeout` is kept by the very server that is frozen. [`Login::ask`] gives up on its own clock.

use std::{
    ffi::OsStr,
    fmt,
    net::SocketAddrV4,
    path::{Path, PathBuf},
    pin::pin,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use postgres::{Client, Error, NoTls, Row, SimpleQueryMessage, error::SqlState, types::ToSql};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
    time::timeout_at,
};
use tokio_postgres::{Config, Connection, Socket, tls::NoTlsStream};

/// How long an answer to a short question may take, unless the caller says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Where a server is, and as whom to talk to it. The password stays in its file until it is needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Login {
    pub address: SocketAddrV4,
    pub user: String,
    pub database: String,
    /// A file with the password and nothing else; it need not exist.
    pub secret: PathBuf,
}

/// Where passwords are that a server was about to be given, beside the one that it had. A command that is killed then leaves
/// both. Which of them counts a standby may see later than others, and an orphaned statement may still change it, even after one
/// that was sent later: so each has a file of its own, and whoever logs in tries them all.
pub fn pending(secret: &Path) -> Vec<PathBuf> {
    let entries = secret.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let first = next_pending(secret, 0);
    let is_one = |path: &PathBuf| match path.extension().and_then(OsStr::to_str) {
        Some(number) if number.parse::<u32>().is_ok() => path.with_extension("") == first,
        _ => *path == first,
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_one).collect();
    found.sort();
    found
}

/// A file for another one, `before` of which are there.
pub fn next_pending(secret: &Path, before: usize) -> PathBuf {
    let first = secret.with_extension("new");
    let mut numbers = (before.max(1)..).map(|number| first.with_added_extension(number.to_string()));
    match before {
        0 => first,
        _ => numbers.find(|path| !path.exists()).unwrap_or(first),
    }
}

impl Login {
    /// A session, which may wait for ever once it is made.
    ///
    /// # Errors
    /// As the server or the kernel gives them; see [`reason`].
    pub fn connect(&self) -> Result<Client, postgres::Error> {
        let (config, others) = self.config(Duration::from_secs(2));
        let mut opened = postgres::Config::from(config).connect(NoTls);
        for other in others {
            if !is_turned_away(&opened) {
                break;
            }
            opened = postgres::Config::from(other).connect(NoTls);
        }
        opened
    }

    /// The same for an asynchronous session. `timeout` is for the connection alone: a server that accepts it and says
    /// nothing more is not covered.
    ///
    /// # Errors
    /// As [`Login::connect`].
    pub async fn begin(
        &self,
        timeout: Duration,
        adjust: impl Fn(&mut Config) -> &mut Config,
    ) -> Result<(tokio_postgres::Client, Connection<Socket, NoTlsStream>), postgres::Error> {
        let (mut config, others) = self.config(timeout);
        let mut opened = adjust(&mut config).connect(NoTls).await;
        for mut other in others {
            if !is_turned_away(&opened) {
                break;
            }
            opened = adjust(&mut other).connect(NoTls).await;
        }
        opened
    }

    /// How to log in, and how to try it again if that is the wrong password.
    fn config(&self, timeout: Duration) -> (Config, Vec<Config>) {
        let mut config = Config::new();
        config.host(self.address.ip().to_string()).port(self.address.port()).connect_timeout(timeout);
        config.user(&self.user).dbname(&self.database).application_name("pgbox");
        let read = |file: PathBuf| std::fs::read_to_string(file).ok().filter(|secret| !secret.is_empty());
        let with = |secret: String| config.clone().password(secret).clone();
        // In this order: it may take the place of the old one at this moment.
        let mut all: Vec<Config> = pending(&self.secret).into_iter().filter_map(read).map(with).collect();
        all.splice(0..0, read(self.secret.clone()).map(with));
        let mut all = all.into_iter();
        (all.next().unwrap_or_else(|| config.clone()), all.collect())
    }

    /// Asks in a session of its own, and gives up after `limit`.
    ///
    /// # Errors
    /// What `question` returns, or [`Silent`].
    pub fn ask<T: Send>(
        &self,
        limit: Duration,
        question: impl FnOnce(&mut Session) -> Result<T, Error> + Send,
    ) -> Result<T> {
        self.try_ask(limit, question)?.map_err(|error| anyhow::Error::msg(reason(&error)))
    }

    /// The same for who wants to know what kind of error the server has.
    ///
    /// # Errors
    /// [`Silent`]; inside, what `question` returns.
    pub fn try_ask<T: Send>(
        &self,
        limit: Duration,
        question: impl FnOnce(&mut Session) -> Result<T, Error> + Send,
    ) -> Result<Result<T, Error>> {
        // The guard asks from within an event loop, and there is one of them a thread. It has ended when this returns:
        // whoever asks may be about to clone.
        let asked = thread::scope(|scope| scope.spawn(|| self.ask_here(limit, question)).join());
        asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn ask_here<T>(
        &self,
        limit: Duration,
        question: impl FnOnce(&mut Session) -> Result<T, Error>,
    ) -> Result<Result<T, Error>> {
        let begun = Instant::now();
        let runtime = Builder::new_current_thread().enable_all().build().context("make an event loop")?;
        let deadline = begun + limit;
        let opened =
            runtime.block_on(async { timeout_at(deadline.into(), self.begin(limit, |config| config)).await });
        let answer = match opened {
            Ok(Ok((client, connection))) => {
                // How it ends is told by the client's next question.
                let mover = runtime.spawn(async move { drop(connection.await) });
                let mut session = Session { runtime, client, mover, deadline, is_late: false };
                let answer = question(&mut session);
                let is_late = session.is_late;
                session.close();
                Some(answer).filter(|_| !is_late)
            }
            Ok(Err(error)) => Some(Err(error)),
            Err(_) => None,
        };
        answer.ok_or_else(|| Silent { server: self.address, after: begun.elapsed() }.into())
    }
}

/// A server that did not answer in time: it is frozen, or cut off, or has too much to do.
#[derive(Debug)]
pub struct Silent {
    server: SocketAddrV4,
    after: Duration,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} gave no answer for {:.1} s", self.server, self.after.as_secs_f64())
    }
}

impl std::error::Error for Silent {}

/// A session that ends at its deadline, in the middle of a question as well.
pub struct Session {
    runtime: Runtime,
    client: tokio_postgres::Client,
    /// Moves the bytes, while somebody waits for an answer.
    mover: JoinHandle<()>,
    deadline: Instant,
    is_late: bool,
}

/// As those of [`postgres::Client`]; at the deadline each says that the connection is closed.
#[allow(clippy::missing_errors_doc, reason = "those of the crate")]
impl Session {
    pub fn batch_execute(&mut self, sql: &str) -> Result<(), Error> {
        self.wait(async |client| client.batch_execute(sql).await)
    }

    pub fn simple_query(&mut self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
        self.wait(async |client| client.simple_query(sql).await)
    }

    pub fn query(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.wait(async |client| client.query(sql, values).await)
    }

    pub fn query_one(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        self.wait(async |client| client.query_one(sql, values).await)
    }

    pub fn query_opt(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, Error> {
        self.wait(async |client| client.query_opt(sql, values).await)
    }

    fn wait<T>(
        &mut self,
        question: impl AsyncFnOnce(&tokio_postgres::Client) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Self { runtime, client, mover, deadline, is_late } = self;
        runtime.block_on(async {
            let mut answer = pin!(question(client));
            if let Ok(answer) = timeout_at((*deadline).into(), answer.as_mut()).await {
                return answer;
            }
            // Without the connection there is no answer to wait for.
            *is_late = true;
            mover.abort();
            answer.await
        })
    }

    /// Says good-bye, as the server would note it in its log otherwise.
    fn close(self) {
        let Self { runtime, client, mover, deadline, .. } = self;
        drop(client);
        let _ = runtime.block_on(async { timeout_at(deadline.into(), mover).await });
    }
}

fn is_turned_away<T>(opened: &Result<T, postgres::Error>) -> bool {
    let code = opened.as_ref().err().and_then(postgres::Error::code);
    code == Some(&SqlState::INVALID_PASSWORD)
}

/// What is wrong, in the server's own words where it said some.
pub fn reason(error: &postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(said), _) => said.message().to_owned(),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn a_server_that_says_nothing_is_given_up() {
        // The kernel accepts for it; nobody answers.
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, silent.local_addr().unwrap().port());
        let secret = PathBuf::from("/nonexistent");
        let login = Login { address, user: "u".to_owned(), database: "d".to_owned(), secret };
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let (begun, before) = (Instant::now(), threads());
        let error =
            login.ask(Duration::from_millis(300), |client| client.simple_query("SELECT 1")).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(error.is::<Silent>() && error.to_string().contains(&address.to_string()), "{error:#}");
        // One that was joined is listed for a moment more.
        thread::sleep(Duration::from_millis(100));
        assert_eq!(threads(), before, "somebody still waits for an answer");
    }
}
