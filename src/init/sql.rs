//! Running the init scripts in their order, each as the payload's user.
//!
//! The rule that surprises people: a compressed script needs no gunzip in the image. A fork of this process
//! unpacks it (gzip, zstd) into psql's standard input; only for xz is the image's own program needed.

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};

use super::first::First;
use super::program::Program;
use super::{Init, at};
use crate::postgres::environment::variable;
use crate::postgres::initdb::create_database;
use crate::postgres::report::Exit;
use crate::postgres::scripts::{Compression, Kind, classify, environment, psql, source};
use crate::sys::child::SpawnError;
use crate::sys::execute;

type Env = [(String, String)];

/// More than Linux passes to any program (execve(2)).
const LARGEST_ENVIRONMENT: u64 = 6 << 20;

/// The scripts of a directory in the order of their bytes; a missing directory has none.
pub fn list(directory: &Path) -> Result<Vec<(PathBuf, Kind)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return at(Err(error), "list", directory),
    };
    let mut scripts = Vec::new();
    for entry in entries {
        let path = at(entry, "list", directory)?.path();
        let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        // As the shell's `*`: names that begin with a dot are hidden.
        if name.starts_with(b".") {
            continue;
        }
        let mode = at(fs::metadata(&path), "stat", &path)?.permissions().mode();
        scripts.push((path, classify(&name, mode)));
    }
    scripts.sort_by(|a, b| a.0.as_os_str().as_bytes().cmp(b.0.as_os_str().as_bytes()));
    Ok(scripts)
}

impl Init<'_> {
    /// Makes the first database and runs the scripts against the private server.
    pub(super) fn run_scripts(
        &mut self,
        first: &First<'_>,
        scripts: &[(PathBuf, Kind)],
        mut env: Vec<(String, String)>,
    ) -> Result<()> {
        if let Some(sql) = create_database(&first.names.database) {
            let mut argv = psql(&first.postgres.bindir, &first.names.superuser, "postgres");
            argv.extend(["-c".to_owned(), sql]);
            self.run(argv, &env).with_context(|| format!("make the database {:?}", first.names.database))?;
        }
        for (path, kind) in scripts {
            let shown = path.display();
            if *kind == Kind::Ignored {
                self.events.log_line(&format!("ignoring {shown}"));
                continue;
            }
            self.events.log_line(&format!("running {shown}"));
            self.events.log().forget_tail();
            self.run_script(first, path, *kind, &mut env)
                .with_context(|| format!("init script {shown} failed"))?;
        }
        Ok(())
    }

    fn run_script(
        &mut self,
        first: &First<'_>,
        path: &Path,
        kind: Kind,
        env: &mut Vec<(String, String)>,
    ) -> Result<()> {
        let file = path.display().to_string();
        let mut argv = psql(&first.postgres.bindir, &first.names.superuser, &first.names.database);
        match kind {
            Kind::Ignored => Ok(()),
            Kind::Execute => match self.run(vec![file.clone()], env) {
                // No `#!` line: a shell runs it, as every shell does.
                Err(error) if is_errno(&error, libc::ENOEXEC) => {
                    self.run(vec!["/bin/sh".to_owned(), file], env)
                }
                result => result,
            },
            Kind::Source => self.source(&file, env),
            Kind::Sql(Compression::Plain) => {
                argv.push(format!("--file={file}"));
                self.run(argv, env)
            }
            Kind::Sql(compression) => self.run_compressed(argv, path, compression, env),
        }
    }

    /// Sources a script. What it has exported is there for all that come after it, as if one shell had sourced them.
    fn source(&mut self, script: &str, env: &mut Vec<(String, String)>) -> Result<()> {
        // Not a pipe: what the script leaves in the background has it, too.
        let mut exports = File::from(memfd_create("exports", MemfdFlags::CLOEXEC).context("memfd_create")?);
        let mut program = Program::new(source(&self.shell(env)?, script), env.clone());
        program.extra = vec![exports.as_fd()];
        let pid = self.spawn(&program)?;
        drop(program);
        let exit = self.events.wait_for(pid, self.patience())?;
        self.judge(exit)?;
        exports.rewind().context("rewind a memfd")?;
        let mut text = Vec::new();
        exports.take(LARGEST_ENVIRONMENT).read_to_end(&mut text).context("read a memfd")?;
        // Nothing: the script has ended the shell, or the image has no cat.
        if !text.is_empty() {
            *env = environment(&text);
        }
        Ok(())
    }

    /// The shell that sources scripts: bash, for which those of the official image are written, or sh.
    fn shell(&self, env: &Env) -> Result<String> {
        let path = variable(env, "PATH").unwrap_or_default();
        let found = ["bash", "sh"].into_iter().find_map(|shell| execute::find(shell, path));
        Ok(found.context("the image has no shell to source it with")?.display().to_string())
    }

    /// Runs a program to its end; anything but exit code 0 is an error with its last words.
    fn run(&mut self, argv: Vec<String>, env: &Env) -> Result<()> {
        let pid = self.spawn(&Program::new(argv, env.to_vec()))?;
        let exit = self.events.wait_for(pid, self.patience())?;
        self.judge(exit)
    }

    fn judge(&mut self, exit: Exit) -> Result<()> {
        match exit {
            Exit::Code(0) => Ok(()),
            exit => bail!("{exit}: {}", self.events.log().last_words()),
        }
    }

    /// Runs psql on what a second process unpacks. Both must succeed: a broken archive ends early, and psql
    /// would be content with the first half.
    fn run_compressed(
        &mut self,
        psql: Vec<String>,
        path: &Path,
        compression: Compression,
        env: &Env,
    ) -> Result<()> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context("pipe2")?;
        let unpacker = self.spawn_unpacker(path, compression, writer.as_fd(), env)?;
        drop(writer);
        let mut program = Program::new(psql, env.to_vec());
        program.stdin = Some(reader.as_fd());
        let psql = self.spawn(&program)?;
        drop(program);
        // Else the unpacker would wait for a reader for ever when psql has given up.
        drop(reader);
        let exits = self.events.wait_for_all(&[psql, unpacker], self.patience())?;
        self.judge(exits[0])?;
        self.judge(exits[1]).context("unpack it")
    }

    fn spawn_unpacker(
        &mut self,
        path: &Path,
        compression: Compression,
        output: std::os::fd::BorrowedFd<'_>,
        env: &Env,
    ) -> Result<Pid> {
        if compression != Compression::Xz {
            return self.fork_as_user(output, || unpack(path, compression));
        }
        let search = variable(env, "PATH").unwrap_or_default();
        let xz = execute::find("xz", search).context("the image has no xz to unpack it with")?;
        let argv = vec![xz.display().to_string(), "-dc".to_owned(), path.display().to_string()];
        let mut program = Program::new(argv, env.to_vec());
        program.stdout = Some(output);
        self.spawn(&program)
    }
}

/// Unpacks a file to standard output.
fn unpack(path: &Path, compression: Compression) -> Result<()> {
    let file = BufReader::new(at(File::open(path), "open", path)?);
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned().context("dup")?);
    let copied = match compression {
        Compression::Gzip => std::io::copy(&mut flate2::bufread::MultiGzDecoder::new(file), &mut output),
        Compression::Zstd => zstd::stream::copy_decode(file, &mut output).map(|()| 0),
        Compression::Plain | Compression::Xz => std::io::copy(&mut { file }, &mut output),
    };
    at(copied, "unpack", path).map(drop)
}

fn is_errno(error: &anyhow::Error, errno: i32) -> bool {
    error.downcast_ref::<SpawnError>().is_some_and(|spawn| spawn.errno == errno)
}
