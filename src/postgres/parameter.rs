//! What a server knows of its own parameters (PostgreSQL manual 54.24 `pg_settings`, 54.12 `pg_file_settings`), and the
//! order in which a cluster must learn of some of them (27.4.3).
//!
//! The rule that surprises people: a standby whose `max_connections` is lower than its primary's stops replaying, or stops
//! altogether. It goes by what the primary *had* at the place in the WAL where it is now. So a higher value goes to
//! standbys first, and a lower one to the primary first, and to standbys when they have replayed the change.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{quote, settings};

/// Standbys must have at least as much of these as their primary; with what a server has that was told nothing.
pub const ORDERED: [(&str, i64); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// A row of `pg_settings`, with what the files say.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Parameter {
    pub name: String,
    pub setting: String,
    /// `postmaster`: it takes a restart; `internal`: it can't be changed at all.
    pub context: String,
    pub pending_restart: bool,
    /// Where the value comes from: `configuration file`, `command line`, `default`...
    pub source: String,
    pub sourcefile: Option<String>,
    /// What it would be without pgbox.
    pub fallback: Option<String>,
    /// What the generated file says, if it has the parameter.
    pub told: Option<String>,
    /// What the server has against that.
    pub file_error: Option<String>,
}

impl Parameter {
    pub fn needs_restart(&self) -> bool {
        self.context == "postmaster"
    }

    /// What is said elsewhere and wins over the generated file, with the way out.
    pub fn overruled(&self) -> Option<String> {
        let name = &self.name;
        let elsewhere = |file: &str| !file.ends_with(&format!("/{}", settings::FILE));
        match (self.source.as_str(), &self.sourcefile) {
            ("command line", _) => Some(format!("the server's command line has {name}={}", self.setting)),
            ("configuration file", Some(file)) if file.ends_with("/postgresql.auto.conf") => Some(format!(
                "ALTER SYSTEM has set {name}={}; `ALTER SYSTEM RESET {name}` undoes that",
                self.setting
            )),
            ("configuration file", Some(file)) if self.told.is_some() && elsewhere(file) => {
                Some(format!("{file} has {name}={}", self.setting))
            }
            _ => None,
        }
    }
}

/// Asks for these parameters, with names in lower case; those that the server does not know are missing in the answer.
pub fn question(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| quote::literal(name)).collect();
    let ours = quote::literal(&format!("%/{}", settings::FILE));
    let in_file = |what: &str, which: &str| {
        format!(
            "(SELECT f.{what} FROM pg_file_settings f WHERE lower(f.name) = lower(s.name) \
             AND f.sourcefile {which} LIKE {ours} ORDER BY f.seqno DESC LIMIT 1)"
        )
    };
    format!(
        "SELECT coalesce(jsonb_agg(to_jsonb(s) || jsonb_build_object('fallback', coalesce({}, s.boot_val), \
         'told', {}, 'file_error', {})), '[]')::text FROM pg_settings s WHERE lower(s.name) IN ({})",
        in_file("setting", "NOT"),
        in_file("setting", ""),
        in_file("error", ""),
        names.join(", ")
    )
}

/// When the server read its files last, as text to compare.
pub const LOADED: &str = "SELECT pg_conf_load_time()::text";

/// Reads the answer to [`question`].
pub fn parse(text: &str) -> Result<Vec<Parameter>> {
    serde_json::from_str(text).context("the server's answer about its parameters")
}

/// Why pgbox does not let a parameter be set like any other.
pub fn refusal(name: &str) -> Option<&'static str> {
    match name {
        "port" => Some("a node's port is always 5432; publish another one: `pgbox run -p`"),
        "listen_addresses" => {
            Some("a node has one address, and pgbox itself asks there whether the server is up")
        }
        "data_directory" | "config_file" | "hba_file" | "ident_file" => {
            Some("the files of a node are where pgbox looks for them")
        }
        "primary_conninfo" | "primary_slot_name" | "recovery_target_timeline" => {
            Some("whom a node follows is a matter of `pgbox switchover`, `pgbox failover` and `pgbox rejoin`")
        }
        "hot_standby" => Some("a standby that answers nobody can't be told from one that is broken"),
        "synchronous_standby_names" => Some("a name that is no standby stops every commit; use `pgbox sync`"),
        _ => None,
    }
}

/// Parameters that a server checks against one another, only when it starts (PostmasterMain).
pub const TOGETHER: [&str; 5] = [
    "max_connections",
    "superuser_reserved_connections",
    "reserved_connections",
    "max_wal_senders",
    "wal_level",
];

/// What a server would say at its start of the values of [`TOGETHER`], in its own words. `None`: nothing. Unknown values count
/// as if they fit.
pub fn conflict(value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let number = |name: &str| value(name)?.trim().parse::<i64>().ok();
    let (connections, superuser) = (number(TOGETHER[0])?, number(TOGETHER[1])?);
    // Of version 16 and later.
    let reserved = number(TOGETHER[2]);
    if superuser + reserved.unwrap_or(0) >= connections {
        let plus = reserved.map_or(String::new(), |count| format!(" plus reserved_connections ({count})"));
        return Some(format!(
            "superuser_reserved_connections ({superuser}){plus} must be less than max_connections ({connections})"
        ));
    }
    (value(TOGETHER[4]).as_deref() == Some("minimal") && number(TOGETHER[3]).is_some_and(|count| count > 0))
        .then(|| {
            "WAL streaming (\"max_wal_senders\" > 0) requires \"wal_level\" to be \"replica\" or \"logical\""
                .to_owned()
        })
}

/// Whether standbys must learn of a parameter in an order.
pub fn is_ordered(name: &str) -> bool {
    ordered_default(name).is_some()
}

/// What a server that was told nothing has of such a parameter.
pub fn ordered_default(name: &str) -> Option<i64> {
    ORDERED.iter().find(|(ordered, _)| *ordered == name).map(|(_, default)| *default)
}

/// Those that a standby would have too little of to recover, each with what its primary had: what it is told in its generated
/// file (`settings`) or in postgresql.conf is less than `least`, in the order of [`ORDERED`].
pub fn too_low(settings: &[(String, String)], conf: &str, least: &[u32; 5]) -> Vec<(String, String)> {
    let low = |((name, default), least): (&(&str, i64), &u32)| {
        let told = settings::value(settings, name).map(str::to_owned).or_else(|| in_file(conf, name));
        // What is no number the server refuses by itself.
        let told = told.map_or(Some(*default), |told| told.trim().parse().ok())?;
        (told < i64::from(*least)).then(|| ((*name).to_owned(), least.to_string()))
    };
    ORDERED.iter().zip(least).filter_map(low).collect()
}

/// Whether a server is told of a parameter in what wins over the generated file: by its arguments (`args`), or by ALTER SYSTEM
/// (`auto`, the text of postgresql.auto.conf).
pub fn is_overruled(args: &[String], auto: &str, name: &str) -> bool {
    let is_argument = |(at, word): (usize, &String)| {
        let setting = match word.as_str() {
            "-c" => args.get(at + 1).map(String::as_str),
            word => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")),
        };
        let key = setting.and_then(|setting| setting.split_once('=')).map(|(key, _)| key);
        key.is_some_and(|key| key.trim().replace('-', "_").eq_ignore_ascii_case(name))
            || (name == "max_connections" && word.starts_with("-N"))
    };
    args.iter().enumerate().any(is_argument) || in_file(auto, name).is_some()
}

/// What the text of postgresql.conf or postgresql.auto.conf says of a parameter.
fn in_file(text: &str, name: &str) -> Option<String> {
    let mut lines = text.lines().rev().filter_map(|line| line.split_once('='));
    let (_, value) = lines.find(|(key, _)| key.trim().eq_ignore_ascii_case(name))?;
    Some(value.split('#').next()?.trim().trim_matches('\'').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(source: &str, file: Option<&str>) -> Parameter {
        let (name, setting) = ("work_mem".to_owned(), "4096".to_owned());
        let told = Some("64MB".to_owned());
        let (source, sourcefile) = (source.to_owned(), file.map(str::to_owned));
        Parameter { name, setting, told, source, sourcefile, ..Parameter::default() }
    }

    #[test]
    fn what_wins_over_the_generated_file_is_named() {
        let file = "configuration file";
        assert!(
            parameter(file, Some("/d/postgresql.auto.conf"))
                .overruled()
                .unwrap()
                .contains("ALTER SYSTEM RESET work_mem")
        );
        assert!(parameter("command line", None).overruled().is_some());
        assert_eq!(parameter(file, Some("/d/pgbox.conf")).overruled(), None);
        assert_eq!(parameter("default", None).overruled(), None);
    }

    #[test]
    fn what_a_start_would_find_is_found_before() {
        let with = |connections: &str, reserved: Option<&str>| {
            conflict(|name| match name {
                "max_connections" => Some(connections.to_owned()),
                "superuser_reserved_connections" => Some("3".to_owned()),
                "reserved_connections" => reserved.map(str::to_owned),
                _ => None,
            })
        };
        assert_eq!(with("4", None), None);
        let said = "superuser_reserved_connections (3) must be less than max_connections (3)";
        assert_eq!(with("3", None).as_deref(), Some(said));
        assert!(with("4", Some("1")).unwrap().contains("(3) plus reserved_connections (1) must"));
    }

    #[test]
    fn a_standby_is_told_what_its_data_need() {
        let least = [130, 8, 10, 0, 64];
        let names = |told: &[(&str, &str)], conf: &str| -> Vec<String> {
            let told: Vec<_> =
                told.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            too_low(&told, conf, &least).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(names(&[], "max_connections = 100\t# (change requires restart)"), ["max_connections=130"]);
        assert_eq!(names(&[("max_connections", "110")], ""), ["max_connections=130"]);
        assert!(names(&[], "#max_connections = 100\nmax_connections = '150' # more").is_empty());
        let told = [("max_wal_senders", "4"), ("max_connections", "130")];
        assert_eq!(names(&told, "max_connections=100"), ["max_wal_senders=10"]);
    }

    #[test]
    fn arguments_and_alter_system_win_over_the_generated_file() {
        let is = |args: &[&str], auto: &str| {
            let args: Vec<_> = args.iter().map(|arg| arg.to_string()).collect();
            is_overruled(&args, auto, "max_connections")
        };
        for args in [
            &["-c", "max_connections=9"][..],
            &["-cmax_connections=9"],
            &["--max-connections=9"],
            &["-N", "9"],
        ] {
            assert!(is(args, ""), "{args:?}");
        }
        assert!(is(&[], "# by ALTER SYSTEM\nmax_connections = '200'\n"));
        assert!(!is(&["-c", "work_mem=9MB", "--max-wal-senders=9"], "work_mem = '9MB'"));
    }

    #[test]
    fn names_are_quoted_and_some_are_refused() {
        let sql = question(&["a'b".to_owned(), "datestyle".to_owned()]);
        assert!(sql.ends_with("IN ('a''b', 'datestyle')"), "{sql}");
        assert!(refusal("port").is_some() && refusal("work_mem").is_none());
        assert!(is_ordered("max_connections") && !is_ordered("work_mem"));
    }
}
