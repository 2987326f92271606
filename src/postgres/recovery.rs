//! How far a server that recovers is: it answers no question, but the title of its startup process names the WAL file at
//! which it is, and its log the place where it began (PostgreSQL manual 27.1, 30.5).
//!
//! The rule that surprises people: a server that recovers for an hour is well. Whoever kills it because it does not answer
//! makes it begin again (rule 23); so it is shown, and left alone.

use super::lsn::Lsn;

/// The WAL file that a process with this title replays or waits for, if it is the startup process.
pub fn wal_file(title: &str) -> Option<&str> {
    let (_, doing) = title.split_once("startup ")?;
    let file = doing.strip_prefix("recovering ").or_else(|| doing.strip_prefix("waiting for "))?;
    let file = file.split_whitespace().next()?;
    (file.len() == 24 && file.bytes().all(|b| b.is_ascii_hexdigit())).then_some(file)
}

/// Where a WAL file of this size begins.
pub fn begins_at(file: &str, size: u64) -> Option<Lsn> {
    let part = |range| u64::from_str_radix(file.get(range)?, 16).ok();
    Some(Lsn((part(8..16)? << 32).checked_add(part(16..24)?.checked_mul(size)?)?))
}

/// Where the recovery that a log tells of last has begun, unless it is over.
pub fn began_at(log: &str) -> Option<Lsn> {
    let line =
        log.lines().rev().find(|line| line.contains("redo starts at ") || line.contains("redo done at "))?;
    line.split_once("redo starts at ")?.1.trim().parse().ok()
}

/// How far a long recovery has come, by its own word in the log (version 15 on, every ten seconds).
pub fn progress(log: &str) -> Option<Lsn> {
    let line = log.lines().rev().find(|line| line.contains("redo "))?;
    line.split_once("current LSN: ")?.1.trim().parse().ok()
}

/// The WAL file that a standby asks for and the server that it follows has no more, by the standby's log. `None` where it has
/// gone on since.
pub fn gone(log: &str) -> Option<&str> {
    // A server that does not have it writes the end of that, too, as what it told somebody else.
    const ASKED: &str = "could not receive data from WAL stream: ERROR:  requested WAL segment ";
    let told = log.lines().rev().find(|line| {
        [ASKED, "started streaming WAL", "starting PostgreSQL "].iter().any(|text| line.contains(text))
    })?;
    let file = told.split_once(ASKED)?.1.split_whitespace().next()?;
    (file.len() == 24 && file.bytes().all(|b| b.is_ascii_hexdigit())).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_standby_asks_for_in_vain() {
        let began = "a LOG:  started streaming WAL from primary at 0/3000000 on timeline 1\n";
        let gone_on = "b FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 000000010000000000000003 has already been removed\n";
        assert_eq!(gone(&[began, gone_on, "c LOG:  waiting\n"].concat()), Some("000000010000000000000003"));
        let of_another =
            "d ERROR:  requested WAL segment 000000010000000000000003 has already been removed\n";
        assert_eq!(gone(&[began, of_another].concat()), None);
        for after in [began, "c LOG:  starting PostgreSQL 15.20 on x86_64\n"] {
            assert_eq!(gone(&[began, gone_on, after].concat()), None);
        }
        assert_eq!(gone(""), None);
    }

    #[test]
    fn titles_of_the_startup_process() {
        let file = "00000001000000020000000A";
        assert_eq!(wal_file(&format!("postgres: startup recovering {file}")), Some(file));
        assert_eq!(wal_file(&format!("postgres: main: startup waiting for {file}  ")), Some(file));
        assert_eq!(wal_file("postgres: walreceiver streaming 0/3000148"), None);
        assert_eq!(wal_file("postgres: startup "), None);
        assert_eq!(begins_at(file, 16 << 20).unwrap().to_string(), "2/A000000");
        assert_eq!(begins_at("x", 1), None);
    }

    #[test]
    fn the_log_tells_of_the_last_recovery() {
        let log = "a LOG:  redo starts at 0/2000028\nb LOG:  redo in progress, elapsed time: 10.00 s, current LSN: 0/5000000\n";
        assert_eq!(began_at(log).unwrap().to_string(), "0/2000028");
        assert_eq!(progress(log).unwrap().to_string(), "0/5000000");
        let over = log.to_owned() + "c LOG:  redo done at 0/6000000 system usage: CPU\n";
        assert_eq!((began_at(&over), progress(&over)), (None, None));
    }
}
