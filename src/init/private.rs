//! The server for the init scripts: started for them alone, and gone before anybody else could use it.
//!
//! The rule that surprises people: during a first start the port must stay closed. A server that answers while
//! scripts still run is taken for a ready one, and is then shut down under its clients
//! (docker-library/postgres#146).

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Init;
use super::datadir::DataDir;
use super::events::{Event, Stopped};
use super::program::Program;
use crate::postgres::environment::variable;
use crate::postgres::launch::PostgresPayload;
use crate::postgres::postmaster::{self, PostmasterPid};
use crate::postgres::report::Exit;

/// How often a starting server is asked whether it accepts connections.
pub const POLL: Duration = Duration::from_millis(2);

impl Init<'_> {
    /// Starts a server that nobody outside can reach, and waits until it accepts connections.
    pub(super) fn start_private(&mut self, postgres: &PostgresPayload, data: &DataDir) -> Result<Pid> {
        let mut argv = server_argv(postgres);
        let port = variable(&self.config.env, "PGPORT").filter(|port| !port.is_empty()).unwrap_or("5432");
        // A commit must not wait for standbys that cannot exist yet.
        argv.extend(
            ["-c", "listen_addresses=", "-c", "synchronous_standby_names=", "-p", port].map(str::to_owned),
        );
        self.events.log().forget_tail();
        let mut program = Program::new(argv, self.server_env(postgres));
        program.extra = vec![data.fd()];
        program.protected = true;
        let pid = self.spawn(&program)?;
        self.events.watch(pid);
        loop {
            if accepts(postgres, pid) {
                return Ok(pid);
            }
            match self.next_event(POLL)? {
                Event::Ended(ended, exit) if ended == pid => return self.private_ended(exit),
                Event::Signal(told) if told.stops() => {
                    // So early it may die of the signal itself: still it was we who ended it.
                    let _ = self.stop_private(pid);
                    return Err(Stopped { signal: told.signal as i32 }.into());
                }
                _ => {}
            }
        }
    }

    /// Shuts the private server down: fast, then immediate. A stop that is asked for meanwhile is left to
    /// whoever waits next: the cluster is made, only the final server is not wanted.
    pub(super) fn stop_private(&mut self, pid: Pid) -> Result<()> {
        // If it has ended by itself, the exit that was kept says so.
        let _ = kill(pid, Signal::SIGINT);
        let mut deadline = Some(Instant::now() + self.patience());
        let mut stop = None;
        let exit = loop {
            if let Some(exit) = self.events.watched_exit() {
                break exit;
            }
            match self.events.next(deadline)? {
                Event::Timeout => {
                    let _ = kill(pid, Signal::SIGQUIT);
                    deadline = None;
                }
                Event::Signal(told) if told.stops() => stop = Some(told),
                Event::Signal(_) | Event::Ended(..) => {}
            }
        };
        if let Some(told) = stop {
            self.events.put_back(told);
        }
        match exit {
            Exit::Code(0) => Ok(()),
            exit => self.private_ended(exit),
        }
    }

    fn private_ended<T>(&mut self, exit: Exit) -> Result<T> {
        bail!("the server for the init scripts ended with {exit}: {}", self.events.log().last_words())
    }
}

/// The server's command line, as far as every start has it.
pub fn server_argv(postgres: &PostgresPayload) -> Vec<String> {
    let mut argv = vec![postgres.bindir.join("postgres").display().to_string()];
    argv.extend(["-D".to_owned(), postgres.pgdata.display().to_string()]);
    argv.extend(postgres.server_args.iter().cloned());
    argv
}

/// True once the server with this process id says in postmaster.pid that it accepts connections.
pub fn accepts(postgres: &PostgresPayload, pid: Pid) -> bool {
    let text = fs::read_to_string(postgres.pgdata.join(postmaster::FILE)).unwrap_or_default();
    PostmasterPid::parse(&text).is_some_and(|file| file.pid == pid.as_raw() && file.accepts())
}
