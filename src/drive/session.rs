//! A session that can be given up at any moment: each wait has a deadline, and giving up closes the socket.
//!
//! Two rules surprise people.
//! A commit in the extended protocol is complete (`CommandComplete`) *before* it is durable; in the simple protocol,
//! which is used here, the server commits first.
//! And under synchronous replication a commit whose wait is cancelled is complete, too, with a mere WARNING that no
//! standby may have it. That is no acknowledgement of what was asked for, so it counts as unknown.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep, timeout_at},
};
use tokio_postgres::{
    AsyncMessage, Client, Connection, Error, SimpleQueryMessage, Socket, config::TargetSessionAttrs,
    error::Severity, tls::NoTlsStream,
};

use crate::sql::{self, Login};

/// How often a wait is interrupted for the question whether to give it up.
const GLANCE: Duration = Duration::from_millis(50);

/// What has become of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Acked,
    /// The server has said that nothing was committed, as a read-only one does.
    Refused,
    /// The connection was lost, or the server did not answer in time.
    Unknown,
}

/// One writer's session, connected or not.
pub struct Session {
    runtime: Runtime,
    open: Option<Open>,
}

struct Open {
    client: Client,
    connection: Connection<Socket, NoTlsStream>,
    /// The server has warned since the last command was sent.
    warned: bool,
}

impl Session {
    pub fn new() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("make an event loop")?;
        Ok(Self { runtime, open: None })
    }

    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub fn close(&mut self) {
        self.open = None;
    }

    /// Connects to a server that takes writes; gives up after `limit`, or when `leave` says so.
    ///
    /// # Errors
    /// As the server says, and when it is a standby or says nothing.
    pub fn connect(&mut self, login: &Login, limit: Duration, leave: impl FnMut() -> bool) -> Result<()> {
        let begun = login.begin(limit, |config| {
            config.application_name("pgbox-drive").target_session_attrs(TargetSessionAttrs::ReadWrite)
        });
        let made = self.runtime.block_on(patiently(begun, limit, leave));
        let (client, connection) = match made {
            Some(Ok(made)) => made,
            Some(Err(error)) => bail!("{}: {}", login.address, sql::reason(&error)),
            None => bail!("{} gave no answer for {:.1} s", login.address, limit.as_secs_f64()),
        };
        self.open = Some(Open { client, connection, warned: false });
        Ok(())
    }

    /// Sends a command that commits by itself. All but [`Fate::Acked`] closes the session.
    pub fn write(&mut self, command: &str, patience: Duration, leave: impl FnMut() -> bool) -> Fate {
        let fate = match &mut self.open {
            None => Fate::Unknown,
            Some(open) => {
                match self.runtime.block_on(patiently(open.run(command), patience, leave)).flatten() {
                    Some(Ok(())) if !open.warned => Fate::Acked,
                    Some(Err(error)) if was_rolled_back(&error) => Fate::Refused,
                    _ => Fate::Unknown,
                }
            }
        };
        if fate != Fate::Acked {
            self.close();
        }
        fate
    }

    /// One value, or `None` for NULL. For the time before the writers begin.
    pub fn ask(&mut self, query: &str, patience: Duration) -> Result<Option<String>> {
        let Some(open) = &mut self.open else { bail!("not connected") };
        let answer = self.runtime.block_on(patiently(open.ask(query), patience, || false));
        match answer {
            Some(Some(Ok(value))) => Ok(value),
            Some(Some(Err(error))) => bail!("{}", sql::reason(&error)),
            Some(None) => bail!("the server has closed the connection"),
            None => bail!("the server gave no answer for {:.1} s", patience.as_secs_f64()),
        }
    }

    /// Waits; notices when the server ends the session meanwhile.
    pub fn rest(&mut self, time: Duration) {
        let alive = self.runtime.block_on(async {
            let nap = async {
                sleep(time).await;
                Ok(())
            };
            match &mut self.open {
                Some(open) => {
                    with(&mut open.connection, &mut open.warned, nap).await.is_some_and(|r| r.is_ok())
                }
                None => nap.await.is_ok(),
            }
        });
        if !alive {
            self.close();
        }
    }
}

impl Open {
    async fn run(&mut self, command: &str) -> Option<Result<(), Error>> {
        self.warned = false;
        let Self { client, connection, warned } = self;
        with(connection, warned, client.batch_execute(command)).await
    }

    async fn ask(&mut self, query: &str) -> Option<Result<Option<String>, Error>> {
        let Self { client, connection, warned } = self;
        let answer = with(connection, warned, client.simple_query(query)).await?;
        let value = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Some(answer.map(|messages| messages.iter().find_map(value)))
    }
}

/// Does some work over a connection, which moves its bytes meanwhile; `None` when it ends before the work does.
async fn with<T>(
    connection: &mut Connection<Socket, NoTlsStream>,
    warned: &mut bool,
    work: impl Future<Output = Result<T, Error>>,
) -> Option<Result<T, Error>> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        loop {
            // First: what a server has said before it went is an answer still.
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            match connection.poll_message(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => {
                    *warned |= notice.parsed_severity() == Some(Severity::Warning);
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => {
                    let last = work.as_mut().poll(cx);
                    return Poll::Ready(match last {
                        Poll::Ready(done) => Some(done),
                        Poll::Pending => None,
                    });
                }
            }
        }
    })
    .await
}

/// Waits for `work`, at most `patience`, and not when `leave` says so on the way.
async fn patiently<T>(
    work: impl Future<Output = T>,
    patience: Duration,
    mut leave: impl FnMut() -> bool,
) -> Option<T> {
    let mut work = pin!(work);
    let end = Instant::now() + patience;
    loop {
        let glance = Instant::now() + GLANCE;
        if let Ok(done) = timeout_at(glance.min(end), &mut work).await {
            return Some(done);
        }
        if glance >= end || leave() {
            return None;
        }
    }
}

/// Whether the server has said, of this very command, that nothing came of it. FATAL says less: it can follow a
/// commit.
fn was_rolled_back(error: &Error) -> bool {
    error.as_db_error().is_some_and(|said| said.parsed_severity() == Some(Severity::Error))
}
