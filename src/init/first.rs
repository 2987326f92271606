//! The first start: initdb, a server that only listens on its Unix socket, the init scripts, and then the
//! whole of it put in place at once (see `aside`).
//!
//! The rule that surprises people: during all this the port must stay closed. A server that answers while
//! scripts still run is taken for a ready one, and is then shut down under its clients
//! (docker-library/postgres#146).

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::pipe::{PipeFlags, pipe_with};

use super::aside::Replaced;
use super::datadir::DataDir;
use super::events::{Event, Stopped, stops};
use super::program::{Program, set_variable, variable};
use super::start::{Names, read};
use super::{Init, at};
use crate::postgres::contract::check_secret;
use crate::postgres::initdb::{Initdb, LOCALES, Locale, locale_missing, sample_candidates};
use crate::postgres::launch::{Password, PostgresPayload, Source};
use crate::postgres::postmaster::PostmasterPid;
use crate::postgres::report::{Exit, Phase};
use crate::postgres::{hba, quote};

/// How often a starting server is asked whether it accepts connections.
pub const POLL: std::time::Duration = std::time::Duration::from_millis(10);

impl Init<'_> {
    /// Makes a cluster in an empty data directory. Whatever fails, the directory is as empty as before, with
    /// the remains under a name of their own.
    pub(super) fn first_start(
        &mut self,
        postgres: &PostgresPayload,
        data: &DataDir,
        names: &Names,
        major: u32,
    ) -> Result<()> {
        let password = self.password(postgres)?;
        // Before the mount: its file is in the directory that is then covered.
        let sample = self.without_huge_pages(postgres, data, major)?;
        data.begin_aside(&self.config.user)?;
        self.phase(Phase::Initdb);
        let made = self.initdb(postgres, data, names, major, password.as_deref());
        drop(sample);
        let made = made.and_then(|()| self.furnish(postgres, data, names, password.as_deref()));
        let Err(error) = made else { return data.commit_aside() };
        data.uncover()?;
        let waldir = postgres.initdb_waldir.as_deref();
        // Nobody's work is in there yet but initdb's own.
        if self.talk.status.phase == Phase::Initdb && error.is::<Stopped>() {
            data.discard_aside(waldir)?;
            return Err(error);
        }
        let kept = data.set_aside(waldir)?;
        self.note(&format!("the first start failed; what it made is kept in {kept}"));
        Err(error)
    }

    /// Makes the new cluster the user's own: who may connect, settings, the first database, the scripts.
    fn furnish(
        &mut self,
        postgres: &PostgresPayload,
        data: &DataDir,
        names: &Names,
        password: Option<&str>,
    ) -> Result<()> {
        self.append_hba(postgres)?;
        self.write_settings(postgres)?;
        let env = script_env(self.server_env(postgres), names, password);
        let scripts = super::sql::list(&postgres.scripts_dir)?;
        if scripts.is_empty() && names.database == "postgres" {
            return Ok(());
        }
        self.phase(Phase::Scripts);
        let server = self.start_private(postgres, data)?;
        let result = self.run_scripts(postgres, names, &scripts, &env);
        let stopped = self.stop_private(server);
        // The scripts' own error says more than what it did to the server.
        result.and(stopped)
    }

    /// The superuser's password.
    fn password(&mut self, postgres: &PostgresPayload) -> Result<Option<String>> {
        let password = match &postgres.password {
            Password::Unset => None,
            Password::Descriptor => self.talk.read_secret()?,
            Password::File(path) => Some(read(&Source::File(path.clone()), "POSTGRES_PASSWORD")?),
        };
        match password {
            Some(password) if !password.is_empty() => check_secret(password).map(Some),
            _ if postgres.auth_method.as_deref() == Some("trust") => Ok(None),
            _ => bail!("the superuser's password is empty; only POSTGRES_HOST_AUTH_METHOD=trust needs none"),
        }
    }

    /// Runs initdb, with a plainer locale if the image lacks the one that its environment names.
    fn initdb(
        &mut self,
        postgres: &PostgresPayload,
        data: &DataDir,
        names: &Names,
        major: u32,
        password: Option<&str>,
    ) -> Result<()> {
        if let Some(waldir) = &postgres.initdb_waldir {
            super::datadir::make_owned_dir(waldir, &self.config.user)?;
            at(
                std::os::unix::fs::chown(waldir, Some(self.config.user.uid), Some(self.config.user.gid)),
                "chown",
                waldir,
            )?;
        }
        for locale in LOCALES {
            self.events.log().forget_tail();
            let exit = self.initdb_once(postgres, data, names, major, password, locale)?;
            if exit == Exit::Code(0) {
                if let Some(locale) = locale {
                    let name = locale.name();
                    self.note(&format!(
                        "the image lacks the locale of its environment; the cluster has {name}"
                    ));
                }
                return Ok(());
            }
            if !locale_missing(&self.events.log().tail()) {
                bail!("initdb failed with {exit}: {}", self.events.log().last_words());
            }
        }
        bail!("initdb accepts no locale of the image: {}", self.events.log().last_words())
    }

    fn initdb_once(
        &mut self,
        postgres: &PostgresPayload,
        data: &DataDir,
        names: &Names,
        major: u32,
        password: Option<&str>,
        locale: Option<Locale>,
    ) -> Result<Exit> {
        let pwfile = password.map(|password| self.password_pipe(password)).transpose()?;
        let initdb = Initdb {
            bindir: &postgres.bindir,
            pgdata: &postgres.pgdata,
            major,
            superuser: &names.superuser,
            // Its number in the child: 0, 1, 2, the lock, this.
            pwfile: pwfile.as_ref().map(|_| "/proc/self/fd/4"),
            waldir: postgres.initdb_waldir.as_deref(),
            locale,
            extra: &names.initdb_args,
        };
        let mut env = self.server_env(postgres);
        // Without any of them initdb would make a cluster whose encoding is SQL_ASCII: no encoding at all.
        if ["LC_ALL", "LC_CTYPE", "LANG"].iter().all(|name| variable(&env, name).is_none_or(str::is_empty)) {
            set_variable(&mut env, "LANG", "C.UTF-8");
        }
        let mut program = Program::new(initdb.argv()?, env);
        program.extra = vec![data.fd()];
        program.extra.extend(pwfile.as_ref().map(AsFd::as_fd));
        let pid = self.spawn(&program)?;
        self.events.wait_for(pid, self.patience())
    }

    /// A pipe with the password in it that only the payload's user can open again through /proc/self/fd. No
    /// file, no argument, no variable ever has it.
    fn password_pipe(&self, password: &str) -> Result<OwnedFd> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context("pipe2")?;
        let user = &self.config.user;
        std::os::unix::fs::fchown(&reader, Some(user.uid), Some(user.gid)).context("fchown of a pipe")?;
        // A pipe takes 64 KiB before a write would wait for a reader.
        fs::File::from(writer).write_all(format!("{password}\n").as_bytes()).context("write to a pipe")?;
        Ok(reader)
    }

    /// Hides the sample of postgresql.conf behind one with `huge_pages = off`, for an initdb before 16.
    fn without_huge_pages<'d>(
        &mut self,
        postgres: &PostgresPayload,
        data: &'d DataDir,
        major: u32,
    ) -> Result<Option<Replaced<'d>>> {
        if major >= 16 {
            return Ok(None);
        }
        for sample in sample_candidates(&postgres.bindir, major) {
            if let Ok(text) = fs::read_to_string(&sample) {
                return data.replace_file(&sample, &format!("{text}\nhuge_pages = off\n")).map(Some);
            }
        }
        self.note(
            "postgresql.conf.sample was not found: initdb tries huge pages, where the machine has some",
        );
        Ok(None)
    }

    fn append_hba(&self, postgres: &PostgresPayload) -> Result<()> {
        let path = postgres.pgdata.join("pg_hba.conf");
        let lines = hba::lines(postgres.auth_method.as_deref(), postgres.replication_subnet.as_deref());
        let mut file = at(OpenOptions::new().append(true).open(&path), "open", &path)?;
        at(file.write_all(lines.as_bytes()), "write", &path)
    }

    /// Starts a server that nobody outside can reach, and waits until it accepts connections.
    fn start_private(&mut self, postgres: &PostgresPayload, data: &DataDir) -> Result<Pid> {
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
                Event::Ended(ended, exit) if ended == pid => {
                    bail!(
                        "the server for the init scripts ended with {exit}: {}",
                        self.events.log().last_words()
                    )
                }
                Event::Signal(signal) if stops(signal) => {
                    self.stop_private(pid)?;
                    return Err(Stopped { signal: signal as i32 }.into());
                }
                _ => {}
            }
        }
    }

    /// Shuts the private server down: fast, then immediate.
    fn stop_private(&mut self, pid: Pid) -> Result<()> {
        // If it has ended by itself, the exit that was kept says so.
        let _ = kill(pid, Signal::SIGINT);
        let mut deadline = Some(std::time::Instant::now() + self.patience());
        loop {
            match self.events.watched_exit() {
                Some(Exit::Code(0)) => return Ok(()),
                Some(exit) => {
                    bail!(
                        "the server for the init scripts ended with {exit}: {}",
                        self.events.log().last_words()
                    )
                }
                None => {}
            }
            if let Event::Timeout = self.events.next(deadline)? {
                let _ = kill(pid, Signal::SIGQUIT);
                deadline = None;
            }
        }
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
    let text = fs::read_to_string(postgres.pgdata.join("postmaster.pid")).unwrap_or_default();
    PostmasterPid::parse(&text).is_some_and(|file| file.pid == pid.as_raw() && file.accepts())
}

/// What init scripts see, as in the official image; the only place where the password is a variable.
fn script_env(
    mut env: Vec<(String, String)>,
    names: &Names,
    password: Option<&str>,
) -> Vec<(String, String)> {
    for name in ["PGHOST", "PGHOSTADDR"] {
        set_variable(&mut env, name, "");
    }
    set_variable(&mut env, "POSTGRES_USER", names.superuser.as_str());
    set_variable(&mut env, "POSTGRES_DB", names.database.as_str());
    set_variable(&mut env, "POSTGRES_INITDB_ARGS", names.initdb_args.as_str());
    set_variable(&mut env, "POSTGRES_PASSWORD", password.unwrap_or_default());
    if let Some(password) = password {
        set_variable(&mut env, "PGPASSWORD", password);
    }
    env
}

/// `CREATE DATABASE` for a database that initdb does not make by itself.
pub fn create_database(name: &str) -> Option<String> {
    match name {
        "postgres" | "template0" | "template1" => None,
        name => Some(format!("CREATE DATABASE {};", quote::identifier(name))),
    }
}
