//! Standbys: names, command lines, SQL and settings of streaming replication (PostgreSQL manual 27.2).
//!
//! The rule that surprises people: `pg_basebackup -R` writes the connection string into postgresql.auto.conf, with the
//! password in clear if that came from PGPASSWORD, and with the path of a password file as it was for whoever ran it.
//! Here the settings are generated, and name the one password file that pid 1 writes inside each node.

use std::path::Path;

use super::{backup, hba::REPLICATOR, launch::Standby, quote, uri::conninfo_value};

/// Its presence in the data directory makes a server a standby.
pub const SIGNAL: &str = "standby.signal";

/// Holds the stamp of the last order to renew the data directory that was carried out.
pub const RENEWED: &str = "pgbox.renewed";

/// The replication role's password file inside a node, in libpq's format: the server's user's, mode 0600.
pub const PASSFILE: &str = "/run/pgbox/pgpass";

/// The oldest version that can follow: before 13 another primary can't be named without a restart.
pub const LEAST_MAJOR: u32 = 13;

/// The database of a standby's sessions: every cluster has it.
pub const DATABASE: &str = "postgres";

/// Slots with this prefix are pgbox's own, each named after the standby that it is for.
pub const SLOT_PREFIX: &str = "pgbox_";

/// The slot of a standby on the server that it follows. The name of a slot can't have dashes, and `a-b` is another node
/// than `a_b`: `_d` stands for a dash and `_u` for an underscore.
pub fn slot_name(node: &str) -> String {
    SLOT_PREFIX.to_owned() + &node.replace('_', "_u").replace('-', "_d")
}

/// How a standby connects to the server that it follows.
pub fn conninfo(standby: &Standby) -> String {
    conninfo_as(standby, &standby.name)
}

fn conninfo_as(standby: &Standby, application: &str) -> String {
    conninfo_to(&standby.host, standby.port, application)
}

fn conninfo_to(host: &str, port: u16, application: &str) -> String {
    let (host, name) = (conninfo_value(host), conninfo_value(application));
    // Keepalives: a server that vanished without a word is noticed between two messages, too.
    format!(
        "host={host} port={port} user={REPLICATOR} dbname={DATABASE} passfile={PASSFILE} application_name={name} \
         connect_timeout=3 keepalives_idle=2 keepalives_interval=1 keepalives_count=3"
    )
}

/// The settings that make a server follow another one. That it follows to other timelines is the default; said here, its
/// absence after a promotion would be an error in the configuration.
pub fn settings(standby: &Standby) -> Vec<(String, String)> {
    let mut settings = vec![
        ("primary_conninfo".to_owned(), conninfo(standby)),
        ("primary_slot_name".to_owned(), standby.slot.clone()),
    ];
    settings.extend(standby.delay_ms.map(|ms| ("recovery_min_apply_delay".to_owned(), format!("{ms}ms"))));
    settings
}

/// The command line of pg_basebackup, with the write-ahead log in a directory of its own if there is one. Nothing is
/// synced: whoever runs it syncs the whole file system once.
pub fn base_backup(bindir: &Path, pgdata: &Path, standby: &Standby, waldir: Option<&Path>) -> Vec<String> {
    let mut argv = vec![bindir.join("pg_basebackup").display().to_string()];
    argv.push(format!("--pgdata={}", pgdata.display()));
    // With a slot its log stream tells how far it has flushed that. Under the node's own name it would be the synchronous
    // standby, and commits be acknowledged that are in half a copy. No node has a name with a space.
    let application = format!("base backup of {}", standby.name);
    argv.push(format!("--dbname={}", conninfo_as(standby, &application)));
    argv.push(format!("--slot={}", standby.slot));
    // A spread checkpoint takes minutes on a busy primary. A manifest is for backups that are kept: it costs a checksum of
    // every byte, and is wrong as soon as the server has started.
    argv.extend(
        ["--checkpoint=fast", "--wal-method=stream", "--no-password", "--no-sync", "--no-manifest"]
            .map(str::to_owned),
    );
    argv.extend(waldir.map(|waldir| format!("--waldir={}", waldir.display())));
    argv.extend(standby.rate_kb.map(|rate| format!("--max-rate={rate}k")));
    argv
}

/// The command line of pg_rewind. It looks for the new timeline in the source's control file: a standby has it there from its
/// first restartpoint on, which may be minutes after it has received it, and the primary from its first checkpoint on.
pub fn rewind(bindir: &Path, pgdata: &Path, standby: &Standby) -> Vec<String> {
    let source =
        standby.primary.map(|primary| conninfo_to(&primary.ip().to_string(), primary.port(), &standby.name));
    let source = source.unwrap_or_else(|| conninfo(standby));
    vec![
        bindir.join("pg_rewind").display().to_string(),
        format!("--target-pgdata={}", pgdata.display()),
        format!("--source-server={source}"),
        "--no-sync".to_owned(),
    ]
}

/// Whether the last words of pg_rewind are that it has not come to the other server at all, in the words of libpq since version
/// 14 and before. One that refuses it, with a FATAL of its own, may let a base backup in.
pub fn is_out_of_reach(said: &str) -> bool {
    let cannot = ["connection to server at ", "could not connect to server"];
    cannot.iter().any(|words| said.contains(words)) && !said.contains("FATAL")
}

/// Makes the replication role, or gives it this verifier and every right that standbys need in the database of the session,
/// which is to be [`DATABASE`]. It does not wait for
/// synchronous standbys: there may be none yet.
pub fn create_role(verifier: &str) -> String {
    let (role, verifier) = (quote::identifier(REPLICATOR), quote::literal(verifier));
    let mut sql = format!(
        "SET synchronous_commit = local;\n\
         DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{REPLICATOR}') THEN CREATE ROLE {role}; \
         END IF; END $$;\n\
         ALTER ROLE {role} WITH LOGIN REPLICATION PASSWORD {verifier};\n"
    );
    // What a base backup made of clones calls; which of them there are depends on the version.
    let functions = backup::FUNCTIONS.map(quote::literal).join(", ");
    sql += &format!(
        "DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc WHERE proname IN ({functions}) \
         AND pronamespace = 'pg_catalog'::regnamespace LOOP \
         EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {role}', f); END LOOP; END $$;\n"
    );
    // What pg_rewind calls (its reference page, Notes).
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ] {
        sql += &format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};\n");
    }
    sql
}

/// Asks a server for the state of its stream to a standby: `streaming` when all is well. Of a standby that vanished without a
/// word and is back there may be two; the last one is it.
pub fn stream_state(name: &str) -> String {
    format!(
        "SELECT state FROM pg_stat_replication WHERE application_name = {} ORDER BY backend_start DESC LIMIT 1",
        quote::literal(name)
    )
}

/// Asks a standby whether it is told to apply late, and whether it does nothing but wait until it may apply what it has. When
/// it starts, it begins to receive only after that.
pub const APPLIES_LATE: &str = "SELECT (SELECT setting <> '0' FROM pg_settings WHERE name = 'recovery_min_apply_delay'), \
     EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event = 'RecoveryApplyDelay')";

/// Asks a server how commits treat a standby: `async`, `sync`, `quorum`, or `potential`.
pub fn sync_state(name: &str) -> String {
    format!("SELECT sync_state FROM pg_stat_replication WHERE application_name = {}", quote::literal(name))
}

/// Asks a server how far base backups from it are: bytes sent, and all of them once that is known.
pub const BACKUP_PROGRESS: &str =
    "SELECT backup_streamed, backup_total FROM pg_stat_progress_basebackup WHERE backup_total > 0";

/// Makes a slot that keeps WAL from now on, unless it is there.
pub fn create_slot(slot: &str) -> String {
    let slot = quote::literal(slot);
    format!(
        "SELECT pg_create_physical_replication_slot({slot}, true) \
         WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {slot})"
    )
}

/// The slots that pgbox has made and nobody uses at this moment.
pub const OWN_SLOTS: &str =
    "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name LIKE 'pgbox\\_%' AND NOT active";

/// Ends whoever uses a slot.
pub fn release_slot(slot: &str) -> String {
    let slot = quote::literal(slot);
    format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = {slot} AND active"
    )
}

/// Drops a slot that nobody uses.
pub fn drop_slot(slot: &str) -> String {
    let slot = quote::literal(slot);
    format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE slot_name = {slot} AND NOT active"
    )
}

/// So much of a slot's `state` file is looked at.
pub const SLOT_HEAD: usize = 88;

/// What a slot is for, from the beginning of its file (`ReplicationSlotOnDisk`, slot.c): its name follows four numbers, and then
/// come its database, which only a logical one has, and whether it outlives its session. `None` if it does not.
pub fn slot_kind(state: &[u8]) -> Option<&'static str> {
    let number = |at: usize| Some(u32::from_le_bytes(state.get(at..at + 4)?.try_into().ok()?));
    match (number(80)?, number(84)?) {
        (0, 0) => Some("physical"),
        (_, 0) => Some("logical"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standby() -> Standby {
        Standby {
            host: "primary".into(),
            port: 5432,
            primary: None,
            slot: slot_name("r1"),
            name: "r1".into(),
            delay_ms: Some(300_000),
            rate_kb: Some(20_480),
            only_clones: false,
            renew: None,
        }
    }

    #[test]
    fn two_nodes_never_have_one_slot() {
        let names = ["r1", "r-1", "r_1", "rd1", "ru1", "r-_1", "r_-1", "r_d1", "r_u1"].map(slot_name);
        for (i, name) in names.iter().enumerate() {
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
            assert!(!names[i + 1..].contains(name), "{names:?}");
        }
    }

    #[test]
    fn no_password_is_in_an_argument_or_a_setting() {
        let argv = base_backup(Path::new("/b"), Path::new("/my data"), &standby(), None);
        assert!(
            argv.contains(&"--pgdata=/my data".to_owned()) && argv.contains(&"--max-rate=20480k".to_owned())
        );
        let text = format!("{argv:?}{:?}", settings(&standby()));
        assert!(!text.contains("password=") && text.contains(PASSFILE), "{text}");
        assert!(text.contains("recovery_min_apply_delay\", \"300000ms"), "{text}");
    }

    /// Whom a sync rule names, and who is looked for among those that stream.
    #[test]
    fn a_base_backup_has_not_the_name_of_its_node() {
        let argv = base_backup(Path::new("/b"), Path::new("/d"), &standby(), None);
        assert!(argv[2].contains(" application_name='base backup of r1' "), "{argv:?}");
        assert!(conninfo(&standby()).contains(" application_name=r1 "));
    }

    /// A standby's control file has the new timeline too late.
    #[test]
    fn data_are_rewound_to_the_primarys() {
        let rewind = |standby: &Standby| rewind(Path::new("/b"), Path::new("/d"), standby)[2].clone();
        assert!(rewind(&standby()).contains("host=primary port=5432 "));
        let cascaded = Standby { primary: Some("10.0.0.2:5433".parse().unwrap()), ..standby() };
        assert!(rewind(&cascaded).contains("host=10.0.0.2 port=5433 "));
        assert!(conninfo(&cascaded).contains("host=primary port=5432 "));
    }

    #[test]
    fn who_is_refused_or_cut_off_later_was_not_out_of_reach() {
        let failed = "pg_rewind: error: connection to server at \"a\" (10.0.0.3), port 5432 failed: ";
        assert!(is_out_of_reach(&format!("{failed}timeout expired")));
        assert!(is_out_of_reach("pg_rewind: fatal: could not connect to server: No route to host"));
        assert!(!is_out_of_reach(&format!("{failed}FATAL:  no pg_hba.conf entry for host \"10.0.0.2\"")));
        assert!(!is_out_of_reach(
            "pg_rewind: error: could not fetch remote file \"x\": connection to server was lost"
        ));
    }

    #[test]
    fn the_roles_password_is_a_verifier() {
        let sql = create_role("SCRAM-SHA-256$4096:c2FsdA==$a:b");
        assert!(sql.contains("PASSWORD 'SCRAM-SHA-256$4096:c2FsdA==$a:b'"), "{sql}");
    }
}
