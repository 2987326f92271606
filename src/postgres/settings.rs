//! Server settings and the generated include file (PostgreSQL manual 20.1).
//!
//! The rule that surprises people: what is given on the server's command line can never be changed by
//! `ALTER SYSTEM`. Therefore pgbox writes its settings to [`FILE`], which the *last line* of
//! postgresql.conf includes: postgresql.auto.conf, which ALTER SYSTEM writes, is read after it and wins.

use anyhow::{Result, bail};

use super::quote;

/// Name of the generated file, in the data directory.
pub const FILE: &str = "pgbox.conf";

/// The line of postgresql.conf that includes it. `_if_exists`: the data directory stays usable without pgbox.
pub const INCLUDE: &str = "include_if_exists = 'pgbox.conf'";

/// A setting and why pgbox sets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name in postgresql.conf.
    pub name: &'static str,
    /// Its value, not quoted.
    pub value: String,
    /// Why, for `--explain` and as the comment in the file.
    pub why: &'static str,
}

/// What every node starts with: ready to be replicated, to fail over and to be rewound.
pub fn defaults(major: u32) -> Vec<Setting> {
    let mut settings: Vec<Setting> = [
        ("listen_addresses", "*", "the container has an address of its own"),
        ("log_destination", "stderr", "pid 1 keeps the log, with a size cap"),
        ("password_encryption", "scram-sha-256", "the only method pg_hba.conf asks for"),
        ("huge_pages", "off", "a cgroup without huge pages answers with SIGBUS"),
        ("wal_level", "replica", "a standby can be made at any time"),
        ("wal_log_hints", "on", "pg_rewind can bring an old primary back"),
        ("max_wal_senders", "10", "standbys and base backups"),
        ("hot_standby", "on", "a standby answers queries"),
        ("hot_standby_feedback", "on", "a standby's queries are not cancelled by vacuum"),
        ("wal_sender_timeout", "5s", "a dead standby is noticed in seconds"),
        ("wal_receiver_timeout", "5s", "a dead primary is noticed in seconds"),
        ("wal_retrieve_retry_interval", "50ms", "with the default of 5 s one promotion in three takes 5 s"),
    ]
    .map(|(name, value, why)| Setting { name, value: value.to_owned(), why })
    .into();
    // Unknown names stop the server: this one came with 13.
    if major >= 13 {
        let why = "a forgotten slot fills the volume; beyond this it is lost instead";
        settings.push(Setting { name: "max_slot_wal_keep_size", value: "4GB".to_owned(), why });
    }
    // With 14.
    if major >= 14 {
        let why =
            "else recovery begins with an fsync of each of a thousand files, at the start of every standby";
        settings.push(Setting { name: "recovery_init_sync_method", value: "syncfs".to_owned(), why });
    }
    settings
}

/// Reads the `k=v` of `pgbox run -c`. Dashes in the name stand for underscores, as for the server's `--k=v`, and its case
/// counts as little: from here on a name is in lower case and can be compared.
pub fn parse(text: &str) -> Result<(String, String)> {
    let Some((name, value)) = text.split_once('=') else {
        bail!("{text:?} is not a setting of the form name=value");
    };
    let name = name.trim().replace('-', "_").to_ascii_lowercase();
    if !is_name(&name) {
        bail!("{name:?} is not the name of a setting");
    }
    quote::setting(value)?;
    Ok((name, value.trim().to_owned()))
}

/// A setting's name, with an extension's prefix perhaps: `auto_explain.log_min_duration`.
fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
    };
    name.split('.').count() <= 2 && name.split('.').all(part)
}

/// Sets one setting, or with `None` leaves it to what it was before a user said anything: in `asked`, which is what the
/// user said, and in `orders`, which has the same behind what every node starts with.
pub fn change(
    orders: &mut Vec<(String, String)>,
    asked: &mut Vec<(String, String)>,
    name: &str,
    value: Option<&str>,
) {
    for old in asked.extract_if(.., |(known, _)| known == name) {
        if let Some(at) = orders.iter().rposition(|entry| *entry == old) {
            orders.remove(at);
        }
    }
    if let Some(value) = value {
        asked.push((name.to_owned(), value.to_owned()));
        orders.push((name.to_owned(), value.to_owned()));
    }
}

/// What the include file would say of a setting.
pub fn value<'s>(orders: &'s [(String, String)], name: &str) -> Option<&'s str> {
    let entry = orders.iter().rev().find(|(known, _)| known == name);
    entry.map(|(_, value)| value.as_str())
}

/// The text of the include file. A later setting of the same name replaces an earlier one.
pub fn render(settings: &[(String, String)]) -> Result<String> {
    let mut text = String::from(
        "# Written by pgbox at every start; changes here are lost. ALTER SYSTEM wins over this file.\n",
    );
    for (at, (name, value)) in settings.iter().enumerate() {
        if !is_name(name) {
            bail!("{name:?} is not the name of a setting");
        }
        if settings[at + 1..].iter().all(|(later, _)| later != name) {
            text += &format!("{name} = {}\n", quote::setting(value)?);
        }
    }
    Ok(text)
}

/// postgresql.conf with the include line at its end, or `None` where it is there already.
pub fn with_include(conf: &str) -> Option<String> {
    if conf.lines().any(|line| line.trim() == INCLUDE) {
        return None;
    }
    let newline = if conf.is_empty() || conf.ends_with('\n') { "" } else { "\n" };
    Some(format!("{conf}{newline}\n# Settings of the container. ALTER SYSTEM wins over them.\n{INCLUDE}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn settings_from_the_command_line() {
        assert_eq!(parse("work_mem=64MB").unwrap(), pair("work_mem", "64MB"));
        assert_eq!(parse("DateStyle=ISO").unwrap(), pair("datestyle", "ISO"));
        assert_eq!(parse("log-line-prefix=%m [%p] a=b ").unwrap(), pair("log_line_prefix", "%m [%p] a=b"));
        assert_eq!(parse("auto_explain.log_min_duration=0").unwrap().0, "auto_explain.log_min_duration");
        for bad in ["work_mem", "=1", "a b=1", "1a=1", "a.b.c=1", "a=b\nc=d", "include 'x'=1"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_later_setting_wins_and_values_are_quoted() {
        let text = render(&[pair("port", "1"), pair("x.y", "it's"), pair("port", "2")]).unwrap();
        assert!(!text.contains("port = '1'") && text.contains("port = '2'"), "{text}");
        assert!(text.contains("x.y = 'it''s'\n"), "{text}");
        assert!(render(&[pair("a\nb", "1")]).is_err());
    }

    #[test]
    fn a_reset_brings_back_what_was_before_the_user() {
        let mut asked = vec![pair("work_mem", "8MB"), pair("a", "1"), pair("work_mem", "9MB")];
        let mut orders = vec![pair("work_mem", "4MB"), pair("b", "0")];
        orders.extend(asked.clone());
        change(&mut orders, &mut asked, "work_mem", Some("64MB"));
        assert_eq!(asked, [pair("a", "1"), pair("work_mem", "64MB")]);
        assert_eq!(value(&orders, "work_mem"), Some("64MB"));
        change(&mut orders, &mut asked, "work_mem", None);
        assert_eq!((asked.len(), value(&orders, "work_mem")), (1, Some("4MB")));
        assert_eq!(orders, [pair("work_mem", "4MB"), pair("b", "0"), pair("a", "1")]);
    }

    #[test]
    fn the_include_line_is_added_once_and_last() {
        let conf = with_include("port = 5432").unwrap();
        assert!(conf.starts_with("port = 5432\n") && conf.ends_with(&format!("{INCLUDE}\n")));
        assert_eq!(with_include(&conf), None);
        assert!(with_include(&format!("# {INCLUDE}\n")).is_some());
    }

    #[test]
    fn no_setting_is_too_new_for_the_server() {
        let names = |major| defaults(major).iter().map(|s| s.name).collect::<Vec<_>>();
        assert!(names(13).contains(&"max_slot_wal_keep_size"));
        assert!(!names(12).contains(&"max_slot_wal_keep_size"));
    }
}
