//! The node's log: what the payload writes to stdout and stderr, kept in two files of limited size.
//!
//! The rule that surprises people: after pivot_root this process can neither rename nor create a file where
//! the log is. So at the cap the log is *copied* to the previous one and then truncated, in this order: a
//! reader or a crash in between sees lines twice, never a line less.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::LogFds;

/// Bytes of the latest output that are kept in memory to tell what went wrong.
const TAIL: usize = 4096;

/// Where log lines go.
pub struct Log {
    files: Option<(File, File)>,
    size: u64,
    /// Size in bytes at which the log is moved aside.
    cap: u64,
    /// Bytes that could not be written (the host's file system is full).
    lost: u64,
    tail: Vec<u8>,
}

impl Log {
    /// Takes the files over. `cap` is set later, see [`Log::set_cap`].
    pub fn new(files: Option<LogFds>) -> io::Result<Log> {
        let files = files.map(|fds| (File::from(fds.current), File::from(fds.previous)));
        let size = match &files {
            Some((current, _)) => current.metadata()?.len(),
            None => 0,
        };
        let tail = Vec::with_capacity(TAIL);
        Ok(Log { files, size, cap: u64::MAX, lost: 0, tail })
    }

    /// True if output goes through this process; else the payload has the caller's streams.
    pub fn is_file(&self) -> bool {
        self.files.is_some()
    }

    /// Sets the size in bytes at which the log is moved aside.
    pub fn set_cap(&mut self, cap: u64) {
        self.cap = cap.max(TAIL as u64);
    }

    /// Writes a piece of output. What cannot be written is counted and said later: a full disk of the host
    /// is no reason to end the server.
    pub fn write(&mut self, bytes: &[u8]) {
        self.remember(bytes);
        if self.files.is_some() && self.append(bytes).is_err() {
            self.lost += bytes.len() as u64;
        }
    }

    /// Writes a line of our own.
    pub fn line(&mut self, text: &str) {
        self.write(format!("pgbox: {text}\n").as_bytes());
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size + bytes.len() as u64 > self.cap {
            self.rotate()?;
        }
        let Some((current, _)) = &mut self.files else { return Ok(()) };
        if self.lost > 0 {
            let text = format!("pgbox: {} bytes of output are missing here\n", self.lost);
            current.write_all(text.as_bytes())?;
            self.size += text.len() as u64;
            self.lost = 0;
        }
        current.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Copies the log over the previous one and empties it.
    fn rotate(&mut self) -> io::Result<()> {
        let Some((current, previous)) = &mut self.files else { return Ok(()) };
        previous.set_len(0)?;
        previous.seek(SeekFrom::Start(0))?;
        current.seek(SeekFrom::Start(0))?;
        let mut buffer = [0; 8192];
        loop {
            match current.read(&mut buffer)? {
                0 => break,
                len => previous.write_all(&buffer[..len])?,
            }
        }
        current.set_len(0)?;
        self.size = 0;
        Ok(())
    }

    fn remember(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
        let excess = (self.tail.len() + bytes.len()).saturating_sub(TAIL);
        self.tail.drain(..excess);
        self.tail.extend_from_slice(bytes);
    }

    /// Forgets the latest output, so that [`Log::tail`] is about what comes now.
    pub fn forget_tail(&mut self) {
        self.tail.clear();
    }

    /// The latest output, at most 4 KiB.
    pub fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }

    /// What is worth showing of the latest output in an error: the last line that names one, or else the last line.
    pub fn last_words(&self) -> String {
        let tail = self.tail();
        let lines: Vec<&str> = tail.lines().filter(|line| !line.trim().is_empty()).collect();
        let telling = |line: &&str| ["FATAL", "PANIC", "ERROR", "error:"].iter().any(|w| line.contains(w));
        let Some(at) = lines.iter().rposition(telling) else {
            return lines.last().map_or(String::new(), |line| line.trim().to_owned());
        };
        match lines[at].contains(FILE_IS_WRONG) {
            true => wrong_settings(&lines[..at]).unwrap_or_else(|| said(lines[at])),
            false => said(lines[at]),
        }
    }
}

/// With this FATAL a server gives up that has read a wrong setting. Which one that is it has said before, as a mere LOG.
const FILE_IS_WRONG: &str = "contains errors";

fn wrong_settings(before: &[&str]) -> Option<String> {
    let of_it = |line: &&&str| ["LOG:", "HINT:", "DETAIL:"].iter().any(|word| line.contains(word));
    let logged = before.iter().rev().take_while(of_it).filter_map(|line| line.split_once("LOG:"));
    let mut all: Vec<&str> = logged.map(|(_, text)| text.trim()).collect();
    all.reverse();
    (!all.is_empty()).then(|| all.join("; "))
}

/// A line without the time and process that a server's own lines begin with: those are in the log. What a client puts before
/// them, such as the number of a line, stays.
fn said(line: &str) -> String {
    let severity = ["FATAL:  ", "PANIC:  ", "ERROR:  "].iter().find_map(|word| line.find(word));
    let begin = severity.filter(|_| line.starts_with(|c: char| c.is_ascii_digit()));
    line[begin.unwrap_or(0)..].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn log(cap: u64) -> (Log, File, File) {
        let (current, previous) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let flags = rustix::fs::OFlags::APPEND;
        rustix::fs::fcntl_setfl(&current, flags).unwrap();
        let fds = LogFds {
            current: current.try_clone().unwrap().into(),
            previous: previous.try_clone().unwrap().into(),
        };
        let mut log = Log::new(Some(fds)).unwrap();
        log.set_cap(cap);
        (log, current, previous)
    }

    fn text(file: &mut File) -> String {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn at_the_cap_no_line_is_lost_and_size_is_bounded() {
        let (mut log, mut current, mut previous) = log(4096);
        let mut all = String::new();
        for number in 0..150 {
            let line = format!("line {number} {}\n", "x".repeat(40));
            log.write(line.as_bytes());
            all += &line;
        }
        let (old, new) = (text(&mut previous), text(&mut current));
        assert!(!old.is_empty() && old.len() <= 4096 && new.len() <= 4096);
        assert_eq!(old + &new, all);
    }

    #[test]
    fn a_second_rotation_replaces_the_previous_log() {
        let (mut log, mut current, mut previous) = log(4096);
        for number in 0..10 {
            log.write(format!("{number}{}\n", "y".repeat(2000)).as_bytes());
        }
        assert!(text(&mut previous).starts_with('6'), "{:.3}", text(&mut previous));
        assert!(text(&mut current).starts_with('8'));
    }

    #[test]
    fn the_tail_tells_the_error_and_not_the_hint() {
        let (mut log, ..) = log(1 << 20);
        log.write(b"old\n");
        log.forget_tail();
        log.write(b"LOG: x\nFATAL:  lock file exists\nHINT: y\n");
        assert_eq!(log.last_words(), "FATAL:  lock file exists");
        log.write(b"2026-11-21 18:29:25.684 GMT [15] FATAL:  no memory\n2026-11-21 18:29:25 GMT [15] LOG:  is shut down\n");
        assert_eq!(log.last_words(), "FATAL:  no memory");
        log.write(b"psql:/x.sql:1: ERROR:  no table\n");
        assert_eq!(log.last_words(), "psql:/x.sql:1: ERROR:  no table");
        log.write(b"x LOG:  invalid value for \"a\"\nx HINT:  b\nx LOG:  unrecognized \"c\"\nx FATAL:  file \"f\" contains errors\n");
        assert_eq!(log.last_words(), "invalid value for \"a\"; unrecognized \"c\"");
        log.write(&vec![b'z'; 10_000]);
        assert_eq!(log.tail().len(), TAIL);
    }
}
