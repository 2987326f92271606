//! The proof that a server's commits wait for its standbys, from which on they count as acknowledged by those.
//!
//! The rule that surprises people: a setting that every session sees need not be in force. Backends that commit ask a flag that the
//! checkpointer alone sets, and that one reads the settings when it is done with what it writes and syncs, which may be long
//! after all others (SyncRepUpdateSyncStandbysDefined, checkpointer.c). So a commit has to be seen waiting.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::sql::{Login, Session};

/// What the session that looks may take for all of it.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// How long a commit that waits is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Whom an own commit waits for that is seen is left so long to let it go.
const RELEASE: Duration = Duration::from_millis(5);

/// How long an own commit is told to end: less than the session has left.
const END: Duration = Duration::from_millis(500);

const PAUSE: Duration = Duration::from_millis(1);

/// Many small statements, and a wait that is given up, are nothing that a user should find in the server's log.
const QUIET: &str = "SET log_statement = 'none'; SET log_duration = off; SET log_min_duration_statement = -1; SET log_min_messages = 'fatal'";

const WRITER: &str = "SET application_name = 'pgbox sync'; SET synchronous_commit = on";

/// Leaves nothing behind: all that is in the log of it is a lock.
const IDLE_COMMIT: &str =
    "BEGIN READ WRITE; SELECT FROM pg_language WHERE lanname = 'internal' FOR KEY SHARE; COMMIT";

const SEEN: &str = "SELECT pg_current_wal_lsn()::text WHERE EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')";

const END_WRITER: &str = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgbox sync' AND wait_event = 'SyncRep'";

/// Where the log of a server is when one of its commits has been seen to wait, an own one if there is no other; `None` if none was.
pub fn see_a_commit_wait(server: &Login, witness: &mut Session) -> Result<Option<String>, postgres::Error> {
    witness.batch_execute(QUIET)?;
    // One of before that nobody could end in time would wait for as long as the standbys are away.
    witness.batch_execute(END_WRITER)?;
    let is_over = AtomicBool::new(false);
    let commit = |client: &mut Session| {
        client.batch_execute(QUIET)?;
        client.batch_execute(WRITER)?;
        while !is_over.load(Ordering::Relaxed) {
            client.batch_execute(IDLE_COMMIT)?;
            thread::sleep(PAUSE);
        }
        Ok(())
    };
    thread::scope(|scope| {
        // What it can't say shows in that nothing is seen.
        let writer = scope.spawn(|| server.ask(PATIENCE, commit).ok());
        let seen = look_for_waiting(witness);
        is_over.store(true, Ordering::Relaxed);
        thread::sleep(RELEASE);
        let begun = Instant::now();
        while !writer.is_finished() && begun.elapsed() < END && witness.batch_execute(END_WRITER).is_ok() {
            thread::sleep(PAUSE);
        }
        seen
    })
}

fn look_for_waiting(client: &mut Session) -> Result<Option<String>, postgres::Error> {
    let begun = Instant::now();
    loop {
        let seen = client.query_opt(SEEN, &[])?;
        if seen.is_some() || begun.elapsed() > LOOK {
            return Ok(seen.map(|row| row.get(0)));
        }
        thread::sleep(PAUSE);
    }
}
