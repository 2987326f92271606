//! A standby's data directory from clones of the other server's files, where both lie on one file system that shares blocks
//! between files. ioctl_ficlone(2).
//!
//! The rule that surprises people: a clone is a copy. It shares blocks only until either side writes; a snapshot of one file
//! is atomic, that of a directory full of files is not. What makes a base backup of it is the session around it, as with
//! any other copy: see `postgres::backup`.
//!
//! It is made by a child with the server user's rights, which are all that it takes: pid 1 stays free to hear a stop.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, ioctl_ficlone, mkdirat, openat, statat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::program::Program;
use super::{Init, at};
use crate::postgres::backup::{self, Share, share};
use crate::postgres::launch::{PostgresPayload, Standby};
use crate::postgres::lsn::Lsn;
use crate::postgres::report::{Exit, Phase};
use crate::sys::fs::{dir_beneath, file_beneath, open_dir};

impl Init<'_> {
    /// Why no file of the other server's can be cloned here; `None` if one can.
    pub(super) fn no_clones(&self, pgdata: &Path) -> Option<String> {
        let upstream = match self.talk.upstream() {
            Ok(upstream) => upstream,
            Err(why) => return Some(why.to_owned()),
        };
        // The child below is nobody special there.
        let (owner, own) = (fstat(upstream).map(|stat| stat.st_uid), self.config.user.uid);
        if owner.is_ok_and(|owner| owner != own) {
            return Some(format!(
                "the other server's data are not uid {own}'s on disk, as whom they would be read"
            ));
        }
        let probe = || -> std::io::Result<()> {
            let from = file_beneath(upstream, b"PG_VERSION")?;
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            Ok(ioctl_ficlone(openat(open_dir(pgdata)?, ".", flags, Mode::RUSR)?, from)?)
        };
        probe()
            .err()
            .map(|error| format!("its file system can't clone the other server's files: FICLONE: {error}"))
    }

    /// Fills the empty data directory with clones.
    pub(super) fn clone_data(&mut self, postgres: &PostgresPayload, standby: &Standby) -> Result<()> {
        self.phase(Phase::Clone);
        self.events.log().forget_tail();
        let ((questions, to_psql), (from_psql, answers)) = (pipe()?, pipe()?);
        let argv = backup::session(&postgres.bindir, standby);
        let mut program = Program::new(argv, self.server_env(postgres));
        (program.stdin, program.stdout) = (Some(questions.as_fd()), Some(answers.as_fd()));
        let psql = self.spawn(&program)?;
        drop(program);
        // What the child below held of these would keep psql from seeing the end of its input.
        drop((questions, answers));
        let upstream = self.talk.upstream().map_err(|why| anyhow!("{why}"))?.try_clone_to_owned()?;
        let null = File::options().write(true).open("/dev/null").context("open /dev/null")?;
        let cloner = self.fork_as_user(null.as_fd(), || {
            let session =
                Session { psql: to_psql, answers: BufReader::new(from_psql), major: postgres.major };
            session.back_up(upstream.as_fd(), &postgres.pgdata)
        })?;
        let exits = self.events.wait_for_all(&[psql, cloner], self.patience())?;
        match exits.iter().find(|exit| **exit != Exit::Code(0)) {
            Some(exit) => bail!("{exit}: {}", self.events.log().last_words()),
            // Without it the server would start as well, and be corrupt.
            None if !postgres.pgdata.join(backup::LABEL).exists() => {
                bail!("psql has ended, and has not ended the backup")
            }
            None => Ok(()),
        }
    }
}

fn pipe() -> Result<(File, File)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context("pipe2")?;
    Ok((reader.into(), writer.into()))
}

/// The session that the backup is made in: psql, whose own words about an error are in the log.
struct Session {
    psql: File,
    answers: BufReader<File>,
    major: u32,
}

impl Session {
    fn back_up(mut self, source: BorrowedFd<'_>, pgdata: &Path) -> Result<()> {
        let target = at(open_dir(pgdata), "open", pgdata)?;
        let target = target.as_fd();
        self.say(backup::start(self.major))?;
        let mut begun = String::new();
        // At its end psql has failed, and its exit code and its last words tell more than could be said here.
        if self.answers.read_line(&mut begun).context("read from psql")? == 0 {
            return Ok(());
        }
        // Not before: one that is made later than the start is in the log.
        ensure!(list(source, "pg_tblspc")?.is_empty(), "there are tablespaces");
        clone_below(source, target, "")?;
        ensure!(clone(source, target, backup::CONTROL)?.is_some(), "{} is not there", backup::CONTROL);
        self.say(backup::stop(self.major))?;
        drop(self.psql);
        let answer = std::io::read_to_string(self.answers).context("read from psql")?;
        if answer.is_empty() {
            return Ok(());
        }
        let (stop, label) = backup::end(&answer).context("the end of the backup has no label")?;
        clone_log(source, target, label, stop)?;
        write(target, backup::LABEL, &format!("{}\n", label.trim_end()))
    }

    fn say(&mut self, sql: &str) -> Result<()> {
        self.psql.write_all(sql.as_bytes()).context("write to psql")
    }
}

/// Clones what is in the directory `path` of the source, which is there already in the target.
fn clone_below(source: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &str) -> Result<()> {
    for (name, kind) in list(source, path)? {
        let inside = if path.is_empty() { name } else { format!("{path}/{name}") };
        let share = share(&inside);
        match kind {
            _ if share == Share::Nothing => {}
            FileType::RegularFile => drop(clone(source, target, &inside)?),
            FileType::Directory => {
                make(source, target, &inside)?;
                if share == Share::Whole {
                    clone_below(source, target, &inside)?;
                }
            }
            _ => bail!("{inside} is neither a file nor a directory"),
        }
    }
    Ok(())
}

/// Clones the write-ahead log of the backup: with it the standby is consistent by itself, as with `--wal-method=stream`.
fn clone_log(source: BorrowedFd<'_>, target: BorrowedFd<'_>, label: &str, stop: Lsn) -> Result<()> {
    let first = backup::first_segment(label).context("the label of the backup names no file")?;
    let mode = Mode::RWXU;
    mkdirat(target, "pg_wal/archive_status", mode).context("mkdir pg_wal/archive_status")?;
    let mut has_first = false;
    for (name, _) in list(source, "pg_wal")? {
        if !backup::needs_log(&name, first) {
            continue;
        }
        let Some(size) = clone(source, target, &format!("pg_wal/{name}"))? else { continue };
        has_first |= name == first;
        // Once it is a primary, this server is not to archive what is the other one's. What it goes on with itself is its own.
        if backup::is_finished(&name, size, stop) {
            write(target, &format!("pg_wal/archive_status/{name}.done"), "")?;
        }
    }
    ensure!(has_first, "the other server has not kept {first}, with which the backup begins");
    Ok(())
}

/// Clones a file, and tells its size. `None` if it was removed meanwhile: then the log says so, too.
fn clone(source: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &str) -> Result<Option<u64>> {
    let from = match file_beneath(source, path.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        from => from.with_context(|| format!("open {path} of the other server"))?,
    };
    let metadata = from.metadata().with_context(|| format!("stat {path}"))?;
    let mode = Mode::from_raw_mode(metadata.permissions().mode());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = openat(target, path, flags, mode).with_context(|| format!("create {path}"))?;
    ioctl_ficlone(to, from).with_context(|| format!("FICLONE {path}"))?;
    Ok(Some(metadata.len()))
}

/// Makes a directory as that of the source is, unless it was removed meanwhile.
fn make(source: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &str) -> Result<()> {
    let mode = match statat(source, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Mode::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => Mode::RWXU,
        Err(errno) => return Err(errno).with_context(|| format!("stat {path} of the other server")),
    };
    mkdirat(target, path, mode).with_context(|| format!("mkdir {path}"))
}

/// The entries of a directory; none if it was removed meanwhile.
fn list(source: BorrowedFd<'_>, path: &str) -> Result<Vec<(String, FileType)>> {
    let shown = || format!("list {path} of the other server");
    let below = if path.is_empty() { "." } else { path };
    let directory = match dir_beneath(source, below.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        directory => directory.with_context(shown)?,
    };
    let mut entries = Vec::new();
    for entry in Dir::new(directory).with_context(shown)? {
        let entry = entry.with_context(shown)?;
        let name = entry.file_name().to_str().with_context(shown)?;
        if name != "." && name != ".." {
            entries.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(entries)
}

fn write(target: BorrowedFd<'_>, path: &str, text: &str) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file =
        openat(target, path, flags, Mode::RUSR | Mode::WUSR).with_context(|| format!("create {path}"))?;
    File::from(file).write_all(text.as_bytes()).with_context(|| format!("write {path}"))
}

/// Empties a data directory that was filled in part, for another way to fill it.
pub(super) fn clear(pgdata: &Path) -> Result<()> {
    for entry in at(fs::read_dir(pgdata), "list", pgdata)? {
        let path = at(entry, "list", pgdata)?.path();
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        at(if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }, "remove", &path)?;
    }
    Ok(())
}
