//! The first start: initdb, a server that only listens on its Unix socket, the init scripts, and then the
//! whole of it put in place at once (see `aside`).
//!
//! The rule that surprises people: initdb syncs each of its thousand files by itself, which is most of the
//! time that it takes. pgbox has it skip that and syncs the file system once, before the rename that makes
//! the cluster count (syncfs(2)).

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::pipe::{PipeFlags, pipe_with};

use super::aside::Replaced;
use super::datadir::{DataDir, make_owned_dir};
use super::events::Stopped;
use super::program::Program;
use super::start::{Names, read};
use super::{Init, at};
use crate::postgres::contract::check_secret;
use crate::postgres::environment::{self, set_variable};
use crate::postgres::hba;
use crate::postgres::initdb::{
    Initdb, LOCALES, Locale, create_database, locale_missing, locale_named, sample_candidates,
};
use crate::postgres::launch::{Password, PostgresPayload, Source};
use crate::postgres::report::{Exit, Phase};

/// What a first start works with.
pub struct First<'a> {
    /// The server to be.
    pub postgres: &'a PostgresPayload,
    /// Its empty data directory.
    pub data: &'a DataDir,
    /// The contract's values.
    pub names: &'a Names,
    password: Option<String>,
}

impl Init<'_> {
    /// Makes a cluster in an empty data directory. Whatever fails, the directory is as empty as before, with
    /// the remains under a name of their own.
    pub(super) fn first_start(
        &mut self,
        postgres: &PostgresPayload,
        data: &DataDir,
        names: &Names,
    ) -> Result<()> {
        let first = First { postgres, data, names, password: self.password(postgres)? };
        let waldir = postgres.initdb_waldir.as_deref();
        // Before the mount: its file is in the directory that is then covered.
        let sample = self.without_huge_pages(&first)?;
        data.begin_aside(&self.config.user)?;
        self.phase(Phase::Initdb);
        let made = self.initdb(&first);
        drop(sample);
        let Err(error) = made.and_then(|()| self.furnish(&first)) else {
            return data.commit_aside(waldir);
        };
        data.uncover()?;
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
    fn furnish(&mut self, first: &First<'_>) -> Result<()> {
        self.append_hba(first.postgres)?;
        self.write_settings(first.postgres, true)?;
        let scripts = super::sql::list(&first.postgres.scripts_dir)?;
        if scripts.is_empty() && create_database(&first.names.database).is_none() {
            return Ok(());
        }
        self.phase(Phase::Scripts);
        let env = script_env(self.server_env(first.postgres), first.names, first.password.as_deref());
        let server = self.start_private(first.postgres, first.data)?;
        let result = self.run_scripts(first, &scripts, env);
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
    fn initdb(&mut self, first: &First<'_>) -> Result<()> {
        if let Some(waldir) = &first.postgres.initdb_waldir {
            let (uid, gid) = (self.config.user.uid, self.config.user.gid);
            make_owned_dir(waldir, &self.config.user)?;
            at(std::os::unix::fs::chown(waldir, Some(uid), Some(gid)), "chown", waldir)?;
        }
        for locale in LOCALES {
            self.events.log().forget_tail();
            let exit = self.initdb_once(first, locale)?;
            if exit == Exit::Code(0) {
                if let Some(name) = locale.map(Locale::name) {
                    let text = "the image lacks the locale of its environment; the cluster has";
                    self.note(&format!("{text} {name}"));
                }
                return Ok(());
            }
            let tail = self.events.log().tail();
            if locale.is_none() && locale_named(&tail) {
                let words = self.events.log().last_words();
                bail!("POSTGRES_INITDB_ARGS names a locale that the image does not have: {words}");
            }
            if !locale_missing(&tail) {
                bail!("initdb failed with {exit}: {}", self.events.log().last_words());
            }
        }
        bail!("initdb accepts no locale of the image: {}", self.events.log().last_words())
    }

    fn initdb_once(&mut self, first: &First<'_>, locale: Option<Locale>) -> Result<Exit> {
        let pwfile = first.password.as_deref().map(|password| self.password_pipe(password)).transpose()?;
        let initdb = Initdb {
            bindir: &first.postgres.bindir,
            pgdata: &first.postgres.pgdata,
            major: first.postgres.major,
            superuser: &first.names.superuser,
            // Its number in the child: 0, 1, 2, the lock, this.
            pwfile: pwfile.as_ref().map(|_| "/proc/self/fd/4"),
            waldir: first.postgres.initdb_waldir.as_deref(),
            locale,
            extra: &first.names.initdb_args,
        };
        let mut env = self.server_env(first.postgres);
        if let Some((name, value)) = environment::missing_locale(&env) {
            set_variable(&mut env, name, value);
        }
        let mut program = Program::new(initdb.argv()?, env);
        program.extra = vec![first.data.fd()];
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
    fn without_huge_pages<'d>(&mut self, first: &First<'d>) -> Result<Option<Replaced<'d>>> {
        if first.postgres.major >= 16 {
            return Ok(None);
        }
        for sample in sample_candidates(&first.postgres.bindir, first.postgres.major) {
            if let Ok(text) = fs::read_to_string(&sample) {
                return first.data.replace_file(&sample, &format!("{text}\nhuge_pages = off\n")).map(Some);
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
    // Read already; a script's `file_env` would take the two for a contradiction.
    env.retain(|(name, _)| !name.starts_with("POSTGRES_") || !name.ends_with("_FILE"));
    set_variable(&mut env, "POSTGRES_USER", names.superuser.as_str());
    set_variable(&mut env, "POSTGRES_DB", names.database.as_str());
    set_variable(&mut env, "POSTGRES_INITDB_ARGS", names.initdb_args.as_str());
    set_variable(&mut env, "POSTGRES_PASSWORD", password.unwrap_or_default());
    if let Some(password) = password {
        set_variable(&mut env, "PGPASSWORD", password);
    }
    env
}
