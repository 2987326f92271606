//! The way from an empty or a used volume to a running server, in order: lock, recover, look, refuse or make,
//! own, configure, serve.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::aside::Leftover;
use super::datadir::{Content, DataDir, make_owned_dir};
use super::events::Event;
use super::{Ended, Init, at, ownership};
use crate::postgres::contract::{LARGEST_FILE, file_value};
use crate::postgres::launch::{PostgresPayload, Source, Standby};
use crate::postgres::report::Phase;
use crate::postgres::{control::Control, environment, parameter, settings, standby, version};
use crate::sys;

/// Where most builds of Postgres have their socket; only made if missing.
const SOCKET_DIR: &str = "/var/run/postgresql";

/// The contract's values, read.
pub struct Names {
    /// `POSTGRES_USER`.
    pub superuser: String,
    /// `POSTGRES_DB`.
    pub database: String,
    /// `POSTGRES_INITDB_ARGS`.
    pub initdb_args: String,
}

impl Init<'_> {
    /// Runs a Postgres server to its end.
    pub(super) fn postgres(&mut self, postgres: &PostgresPayload) -> Result<Ended> {
        self.phase(Phase::Preparing);
        if self.config.user.uid == 0 {
            bail!("PostgreSQL refuses to run as root: the image has no user for it");
        }
        let names = names(postgres)?;
        self.talk.status.superuser = Some(names.superuser.clone());
        self.talk.status.database = Some(names.database.clone());
        let data = DataDir::lock(&postgres.pgdata, &self.config.user)?;
        make_owned_dir(Path::new(SOCKET_DIR), &self.config.user)?;
        self.say_leftover(data.recover(postgres.initdb_waldir.as_deref())?);
        data.tidy_waldir(postgres.initdb_waldir.as_deref())?;
        self.write_passfile()?;
        let role = self.talk.orders(&postgres.orders).standby;
        match (data.content()?, &role) {
            (Content::Empty, role) => {
                version::check(postgres.major, None, "")?;
                match role {
                    None => self.first_start(postgres, &data, &names)?,
                    Some(standby) => self.base_backup(postgres, &data, standby)?,
                }
                // A new volume is root's; nothing to tell.
                ownership::ensure(&postgres.pgdata, &self.config.user)?;
            }
            (Content::Cluster(cluster), role) => {
                version::check(postgres.major, Some(cluster), &postgres.pgdata.display().to_string())?;
                self.take_role(postgres, &data, role.as_ref())?;
            }
        }
        self.talk.drop_sources();
        self.admit_standbys(postgres)?;
        for note in ownership::ensure(&postgres.pgdata, &self.config.user)? {
            self.note(&note);
        }
        if data.remove_stale_lock_file()? {
            self.note("removed the postmaster.pid of a server that did not shut down; it will recover now");
        }
        self.serve(postgres, &data)
    }

    fn say_leftover(&mut self, leftover: Leftover) {
        match leftover {
            Leftover::None => {}
            Leftover::Completed => {
                self.note("an interrupted first start was complete; the data directory is whole")
            }
            Leftover::SetAside(path) => self.note(&format!(
                "an earlier first start did not finish; what it made is kept in {path} (remove it when you \
                 have looked), and initialisation begins anew"
            )),
        }
    }

    /// The environment of the server: the container's, without passwords.
    pub(super) fn server_env(&self, postgres: &PostgresPayload) -> Vec<(String, String)> {
        environment::of_server(self.config, postgres)
    }

    /// The time that something may take to end after it was asked to.
    pub(super) fn patience(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.config.stop_timeout)
    }

    /// Writes the generated settings and makes postgresql.conf include them. For a start, those that a standby was told too
    /// little of are higher; gives their names.
    pub(super) fn write_settings(&mut self, postgres: &PostgresPayload, start: bool) -> Result<Vec<String>> {
        let user = &self.config.user;
        let orders = self.talk.orders(&postgres.orders);
        let conf = postgres.pgdata.join("postgresql.conf");
        let mut settings = orders.settings;
        let mut raised = Vec::new();
        if let Some(standby) = &orders.standby {
            let standby = Standby { delay_ms: standby.delay_ms.filter(|_| !self.fresh), ..standby.clone() };
            settings.extend(standby::settings(&standby));
            if start {
                raised = too_low(postgres, &settings, &conf);
            }
        }
        settings.extend(raised.iter().cloned());
        let text = settings::render(&settings)?;
        replace(&postgres.pgdata.join(settings::FILE), &text, user.uid, user.gid)?;
        self.include_settings(&conf)?;
        Ok(raised.into_iter().map(|(name, _)| name).collect())
    }

    fn include_settings(&mut self, conf: &Path) -> Result<()> {
        let user = &self.config.user;
        // Not through a link: root would follow it to wherever the server's user made it point.
        if !fs::symlink_metadata(conf).is_ok_and(|meta| meta.is_file()) {
            self.note(&format!(
                "{} is not a file, so the settings of this container are not included; add the line: {}",
                conf.display(),
                settings::INCLUDE
            ));
            return Ok(());
        }
        let old = at(fs::read(conf), "read", conf)?;
        match settings::with_include(&String::from_utf8_lossy(&old)) {
            Some(_) if std::str::from_utf8(&old).is_err() => {
                bail!("{} is not UTF-8 text, so no line can be added to it", conf.display())
            }
            Some(new) => replace(conf, &new, user.uid, user.gid),
            None => Ok(()),
        }
    }

    /// The next event, or the timeout after a while.
    pub(super) fn next_event(&mut self, after: std::time::Duration) -> Result<Event> {
        self.events.next(Some(std::time::Instant::now() + after))
    }
}

/// What a standby is told too little of to recover, where more in the generated file would help. Of files that can't be read
/// the server itself will say so.
fn too_low(postgres: &PostgresPayload, settings: &[(String, String)], conf: &Path) -> Vec<(String, String)> {
    let control = read_file(&postgres.pgdata.join("global/pg_control")).ok();
    let Some(Ok(control)) = control.map(|bytes| Control::parse(&bytes)) else { return Vec::new() };
    let text = |path: &Path| String::from_utf8_lossy(&read_file(path).unwrap_or_default()).into_owned();
    let auto = text(&postgres.pgdata.join("postgresql.auto.conf"));
    let mut low = parameter::too_low(settings, &text(conf), &control.least);
    low.retain(|(name, _)| !parameter::is_overruled(&postgres.server_args, &auto, name));
    low
}

/// Reads what may be in files.
fn names(postgres: &PostgresPayload) -> Result<Names> {
    let superuser = read(&postgres.superuser, "POSTGRES_USER")?;
    let database = match &postgres.database {
        Some(source) => read(source, "POSTGRES_DB")?,
        None => superuser.clone(),
    };
    let initdb_args = match &postgres.initdb_args {
        Some(source) => read(source, "POSTGRES_INITDB_ARGS")?,
        None => String::new(),
    };
    Ok(Names { superuser, database, initdb_args })
}

/// A value of the contract, from its file where it is in one.
pub fn read(source: &Source, name: &str) -> Result<String> {
    match source {
        Source::Value(value) => Ok(value.clone()),
        Source::File(path) => {
            let content = read_file(path).with_context(|| format!("read {name}_FILE {}", path.display()))?;
            file_value(&content, name)
        }
    }
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    sys::fs::read_plain(file, LARGEST_FILE)
}

/// Replaces a file's content at once, as the server's user's and readable for nobody else.
pub(super) fn replace(path: &Path, text: &str, uid: u32, gid: u32) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let _ = fs::remove_file(new);
    let mut file =
        at(fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(new), "create", new)?;
    at(std::os::unix::fs::fchown(&file, Some(uid), Some(gid)), "chown", new)?;
    at(file.write_all(text.as_bytes()), "write", new)?;
    at(file.sync_all(), "fsync", new)?;
    at(fs::rename(new, path), "rename to", path)
}
