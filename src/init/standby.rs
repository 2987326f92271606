//! A data directory becomes a standby's: by a base backup into an empty one, or, for one that has gone its own way, by
//! pg_rewind, and where that can't work by a new base backup in its place. PostgreSQL manual 27.2. A base backup is
//! made of clones where the file system can (`clone`), and by pg_basebackup everywhere else.
//!
//! The rule that surprises people: a server is a standby because of the *file* standby.signal, whatever its settings
//! say. pid 1 makes it together with the data and never again, and Postgres removes it in a promotion: it and the
//! node's role must agree at every start, or a second primary would come up.
//!
//! Another one: a server that starts receives nothing before it has applied what it has. A standby that is to apply late
//! would so be without a stream for all of its delay. What came with its base backup it therefore applies at once, as the
//! rest of that; what it had at any other start it has to apply late.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::clone;
use super::datadir::{DataDir, make_owned_dir};
use super::program::Program;
use super::start::replace;
use super::{Init, at};
use crate::postgres::backup;
use crate::postgres::hba::REPLICATOR;
use crate::postgres::launch::{PostgresPayload, Renew, RenewHow, Standby};
use crate::postgres::report::{Exit, Phase};
use crate::postgres::standby::{self, RENEWED, SIGNAL};
use crate::postgres::uri;
use crate::sys::fs::read_text_at_once;

impl Init<'_> {
    /// Copies the server that is followed into an empty data directory.
    pub(super) fn base_backup(
        &mut self,
        postgres: &PostgresPayload,
        data: &DataDir,
        standby: &Standby,
    ) -> Result<()> {
        data.begin_aside(&self.config.user)?;
        match self.copy(postgres, data, standby, None) {
            Ok(()) => data.commit_aside(None),
            Err(error) => {
                data.uncover()?;
                data.discard_aside(None)?;
                Err(error)
            }
        }
    }

    /// Makes sure that a data directory which is there is what the node's role says.
    pub(super) fn take_role(
        &mut self,
        postgres: &PostgresPayload,
        data: &DataDir,
        role: Option<&Standby>,
    ) -> Result<()> {
        let shown = postgres.pgdata.display();
        let is_standby = data.exists(SIGNAL)?;
        match role {
            Some(standby) => match &standby.renew {
                Some(renew) if !data.is_renewed(renew)? => self.renew(postgres, data, standby, renew),
                _ if is_standby => Ok(()),
                _ => bail!(
                    "{shown} is a primary's: it was promoted, or never a standby's; `pgbox rejoin` makes it follow \
                     again, `pgbox promote` takes it for the primary that it is"
                ),
            },
            None if is_standby => bail!(
                "{shown} is a standby's, and this node is to be a primary; to make it one, start the standby and \
                 promote it, or remove {SIGNAL} from it if you know that nothing is missing"
            ),
            None => Ok(()),
        }
    }

    /// Undoes what the server that is followed never had; where that does not work, begins anew.
    fn renew(
        &mut self,
        postgres: &PostgresPayload,
        data: &DataDir,
        standby: &Standby,
        renew: &Renew,
    ) -> Result<()> {
        if renew.how == RenewHow::Sign {
            return self.sign(postgres, standby);
        }
        if renew.how == RenewHow::Rewind {
            data.remove_stale_lock_file()?;
            match self.rewind(postgres, data, standby) {
                Ok(()) => {
                    self.note("pg_rewind has taken back what the new primary never had");
                    return Ok(());
                }
                Err(error) if error.is::<super::events::Stopped>() => return Err(error),
                // Nothing is changed yet, and the data may be all right when the network is.
                Err(error) if standby::is_out_of_reach(&format!("{error:#}")) => return Err(error),
                Err(error) => self.note(&format!("{error:#}; a new base backup replaces the data instead")),
            }
        }
        let (configured, number) = (postgres.initdb_waldir.as_deref(), renew.stamp);
        let waldir = data.next_waldir(configured, number);
        data.begin_aside(&self.config.user)?;
        match self.copy(postgres, data, standby, waldir.as_deref()) {
            Ok(()) => data.commit_over(waldir.as_deref())?,
            Err(error) => {
                data.uncover()?;
                data.discard_aside(None)?;
                data.tidy_waldir(configured)?;
                return Err(error);
            }
        }
        data.tidy_waldir(configured)
    }

    fn rewind(&mut self, postgres: &PostgresPayload, data: &DataDir, standby: &Standby) -> Result<()> {
        self.phase(Phase::Rewind);
        let argv = standby::rewind(&postgres.bindir, &postgres.pgdata, standby);
        self.run_on(postgres, data, argv).context("pg_rewind")?;
        // It compares control files, and finds nothing to do where a standby was given more than it has replayed.
        if !data.exists(backup::LABEL)? {
            bail!("pg_rewind sees nothing to do, though the logs have parted");
        }
        self.sign(postgres, standby)?;
        data.sync()
    }

    fn copy(
        &mut self,
        postgres: &PostgresPayload,
        data: &DataDir,
        standby: &Standby,
        waldir: Option<&Path>,
    ) -> Result<()> {
        self.fresh = standby.delay_ms.is_some_and(|late| late > 0);
        match self.try_clones(postgres, standby, waldir) {
            Ok(()) => return self.sign(postgres, standby),
            Err(error) if standby.only_clones || error.is::<super::events::Stopped>() => return Err(error),
            Err(error) => self.events.log_line(&format!("pg_basebackup copies the data: {error:#}")),
        }
        self.phase(Phase::BaseBackup);
        let argv = standby::base_backup(&postgres.bindir, &postgres.pgdata, standby, waldir);
        self.run_on(postgres, data, argv).context("pg_basebackup")?;
        self.sign(postgres, standby)
    }

    /// Makes the data of clones; after an error the directory is empty again.
    fn try_clones(
        &mut self,
        postgres: &PostgresPayload,
        standby: &Standby,
        waldir: Option<&Path>,
    ) -> Result<()> {
        if let Some(why) = self.no_clones(&postgres.pgdata) {
            bail!(why);
        }
        if waldir.is_some() {
            bail!("its write-ahead log is to have a directory of its own");
        }
        let cloned = self.clone_data(postgres, standby);
        match &cloned {
            Ok(()) => self.events.log_line("the data are clones of the other server's files"),
            Err(_) => clone::clear(&postgres.pgdata)?,
        }
        cloned
    }

    /// Runs a program that writes to the data directory; anything but exit code 0 is an error with its last words.
    fn run_on(&mut self, postgres: &PostgresPayload, data: &DataDir, argv: Vec<String>) -> Result<()> {
        self.events.log().forget_tail();
        let mut program = Program::new(argv, self.server_env(postgres));
        program.extra = vec![data.fd()];
        let pid = self.spawn(&program)?;
        match self.events.wait_for(pid, self.patience())? {
            Exit::Code(0) => Ok(()),
            exit => bail!("{exit}: {}", self.events.log().last_words()),
        }
    }

    /// Marks the data as a standby's.
    fn sign(&self, postgres: &PostgresPayload, standby: &Standby) -> Result<()> {
        let user = &self.config.user;
        if let Some(renew) = &standby.renew {
            replace(&postgres.pgdata.join(RENEWED), &renew.stamp.to_string(), user.uid, user.gid)?;
        }
        replace(&postgres.pgdata.join(SIGNAL), "", user.uid, user.gid)
    }

    /// Writes the replication role's password file, for the server's user alone.
    pub(super) fn write_passfile(&mut self) -> Result<()> {
        let Some(password) = self.talk.replicator()? else { return Ok(()) };
        let path = Path::new(standby::PASSFILE);
        if let Some(directory) = path.parent() {
            make_owned_dir(directory, &self.config.user)?;
        }
        let text = uri::passfile_line("*:*", REPLICATOR, &password);
        replace(path, &text, self.config.user.uid, self.config.user.gid)
    }

    /// Lets standbys of the lab in, where pg_hba.conf was written without pgbox or for another subnet.
    pub(super) fn admit_standbys(&mut self, postgres: &PostgresPayload) -> Result<()> {
        let Some(subnet) = &postgres.replication_subnet else { return Ok(()) };
        let path = postgres.pgdata.join("pg_hba.conf");
        // Not through a link: root would follow it to wherever the server's user made it point.
        if !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file()) {
            return Ok(());
        }
        let text = at(fs::read(&path), "read", &path)?;
        let line = crate::postgres::hba::replication_line(subnet);
        if String::from_utf8_lossy(&text)
            .lines()
            .any(|old| old.split_whitespace().eq(line.split_whitespace()))
        {
            return Ok(());
        }
        let mut file = at(fs::OpenOptions::new().append(true).open(&path), "open", &path)?;
        at(file.write_all(format!("\n{line}\n").as_bytes()), "write", &path)
    }
}

/// Whether the server receives, which it begins when it has applied what it had: its process is there.
pub(super) fn receives() -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut titles = entries.filter_map(|entry| read_text_at_once(entry.path().join("cmdline")).ok());
    titles.any(|title| title.starts_with("postgres: ") && title.contains("walreceiver"))
}

impl DataDir {
    fn exists(&self, name: &str) -> Result<bool> {
        Ok(self.entries()?.iter().any(|entry| entry == name))
    }

    fn is_renewed(&self, renew: &Renew) -> Result<bool> {
        Ok(self.read(RENEWED)?.is_some_and(|stamp| stamp.trim() == renew.stamp.to_string()))
    }
}
