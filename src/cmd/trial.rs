//! Settings before there is a server that could be asked: the image's own `postgres` reads them, in a container without
//! a network that lasts some milliseconds, in a lab of its own: nobody's subnet, names or `down` have to do with it.
//!
//! The rule that surprises people: `postgres -C` needs no data directory. It takes each value as a start would, and says
//! what is allowed; what fits together, and whether a library is there, only a start finds out.

use std::{path::Path, process, time::Duration};

use anyhow::{Result, anyhow, bail};

use super::{Context, run};
use crate::{
    engine::{halt, launch},
    facts::{self, node},
    hint::{self, advise},
    image::Store,
    lab::wanted,
    spec::{Name, NodeSpec},
};

/// Of all trials, so that their lock is one file.
const LAB: &str = "pgbox-trial";

/// A setting and its value.
pub type Setting = (String, String);

/// Refuses settings that the server of a new node would not start with.
pub fn check(context: &Context, spec: &NodeSpec, settings: &[Setting]) -> Result<()> {
    match objection(context, &spec.image, settings)? {
        None => Ok(()),
        Some(why) => {
            let error = format!("`{}` would not start with that: {why}", spec.node);
            Err(hint::for_inner_step(&why).map_or_else(|| anyhow!("{error}"), |hint| advise(&error, hint)))
        }
    }
}

/// Those of the settings that an image's server does not take, each with its reason.
pub fn wrong(context: &Context, image: &str, settings: &[Setting]) -> Result<Vec<(Setting, String)>> {
    // It names the first one only. Mostly there is none.
    if objection(context, image, settings)?.is_none() {
        return Ok(Vec::new());
    }
    let mut wrong = Vec::new();
    for setting in settings {
        let why = objection(context, image, std::slice::from_ref(setting))?;
        wrong.extend(why.map(|why| (setting.clone(), why)));
    }
    Ok(wrong)
}

/// What an image's server has against settings, in its own words.
fn objection(context: &Context, image: &str, settings: &[Setting]) -> Result<Option<String>> {
    let found = Store::open(context.root.path())?.resolve(image)?;
    // Of an image without a server the new node itself will say so.
    if settings.is_empty() || facts::image::facts(&context.root, &found)?.postgres.is_none() {
        return Ok(None);
    }
    let context = &Context { root: context.root.clone(), lab: name(LAB)?, options: context.options.clone() };
    sweep(context)?;
    let node = name(&format!("trial-{}", process::id()))?;
    let options = settings.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    // Any directory and any file will do, as long as they are there. With -C first it may be any user, too.
    let fixed = ["postgres", "-C", "server_version", "-D", "/", "--config-file=/dev/null"];
    let spec = NodeSpec {
        args: fixed.into_iter().map(str::to_owned).chain(options).collect(),
        offline: true,
        ..wanted::node(&context.lab, &node, image)
    };
    let how = run::How { timeout: Duration::from_secs(60), foreground: true, ..run::How::detached() };
    let code = run::create(context, spec, None, &how)?;
    let log = launch::tail(&context.root.node(&context.lab, &node).log(), 40);
    let _lock = context.lock()?;
    halt::remove(&context.root, &node::find(&context.root, &context.lab, &node)?)?;
    match code {
        0 => Ok(None),
        1 => Ok(Some(said(&log).unwrap_or_else(|| "postgres -C ended with exit code 1".to_owned()))),
        // A signal, or what a command that can't be started has: nothing is known of the settings then.
        code => bail!("`postgres -C` of {image}, which tries the settings, ended with exit code {code}"),
    }
}

/// Removes what trials have left that were killed.
fn sweep(context: &Context) -> Result<()> {
    let _lock = context.lock()?;
    for node in node::all(&context.root, &context.lab)? {
        let pid = node.name.as_str().rsplit('-').next().unwrap_or_default();
        if node.state.spec.offline && node.pidfd.is_none() && !Path::new("/proc").join(pid).exists() {
            halt::remove(&context.root, &node)?;
        }
    }
    Ok(())
}

fn name(text: &str) -> Result<Name> {
    text.parse().map_err(anyhow::Error::msg)
}

/// The reason that a server gives, with what it says of a way out.
fn said(log: &[String]) -> Option<String> {
    let after = |word: &str| log.iter().find_map(|line| Some(line.split_once(word)?.1.trim().to_owned()));
    let why = after("FATAL:").or_else(|| log.last().cloned())?;
    Some(after("HINT:").map_or_else(|| why.clone(), |hint| format!("{why}; {}", hint.trim_end_matches('.'))))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_allowed_is_told_with_the_reason() {
        let said = |log: &str| super::said(&log.lines().map(str::to_owned).collect::<Vec<_>>());
        let log = "2026-01-01 GMT [2] LOG:  skipping missing configuration file \"/postgresql.auto.conf\"\n\
                   2026-01-01 GMT [2] FATAL:  invalid value for parameter \"wal_level\": \"foo\"\n\
                   2026-01-01 GMT [2] HINT:  Available values: minimal, replica, logical.";
        let text =
            "invalid value for parameter \"wal_level\": \"foo\"; Available values: minimal, replica, logical";
        assert_eq!(said(log).as_deref(), Some(text));
        assert_eq!(said("postgres: cannot").as_deref(), Some("postgres: cannot"));
        assert_eq!(said(""), None);
    }
}
