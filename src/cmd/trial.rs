//! Settings before there is a server that could be asked: the image's own `postgres` reads them, in a container without
//! a network that lasts some milliseconds, in a lab of its own: nobody's subnet, names or `down` have to do with it.
//!
//! The rule that surprises people: `postgres -C` needs no data directory. It takes each value as a start would, and says
//! what is allowed; what fits together, and whether a library is there, only a start finds out.
//!
//! A setting may have a secret in it, and arguments are for everybody to read in /proc: so they are in a file that only root
//! can get at, as those of a server are in its data.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{
    Context,
    create::{self, How},
};
use crate::{
    engine::halt,
    facts::{self, node},
    hint::{self, advise},
    image::Store,
    lab::wanted,
    postgres::settings,
    spec::{Name, NodeSpec, Volume, VolumeSource},
    sys::tail,
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
    // In a file these would be no names of settings.
    let (directives, settings): (Vec<Setting>, Vec<Setting>) =
        settings.iter().cloned().partition(|(name, _)| name.starts_with("include"));
    let options = directives.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    let file = File::write(context, &node, &settings::render(&settings)?)?;
    // Any directory will do, as long as it is there. With -C first it may be any user, too.
    let config = format!("--config-file={CONFIG}");
    let fixed = ["postgres", "-C", "server_version", "-D", "/", &config];
    let source = VolumeSource::Path(file.0.clone());
    let spec = NodeSpec {
        args: fixed.into_iter().map(str::to_owned).chain(options).collect(),
        volumes: vec![Volume { source, target: CONFIG.into(), read_only: true }],
        offline: true,
        ..wanted::node(&context.lab, &node, image)
    };
    let how = How { timeout: Duration::from_secs(60), foreground: true, ..How::detached() };
    let code = create::create(context, spec, None, &how)?;
    let log = tail::lines(&context.root.node(&context.lab, &node).log(), 40);
    let _lock = context.lock()?;
    halt::remove(&context.root, &node::find(&context.root, &context.lab, &node)?)?;
    match code {
        0 => Ok(None),
        1 => Ok(Some(said(&log).unwrap_or_else(|| "postgres -C ended with exit code 1".to_owned()))),
        // A signal, or what a command that can't be started has: nothing is known of the settings then.
        code => bail!("`postgres -C` of {image}, which tries the settings, ended with exit code {code}"),
    }
}

/// Where the settings are in the container.
const CONFIG: &str = "/pgbox-trial.conf";

/// The settings, for as long as the value lives. In the container it may be anybody who reads them; on the host the directory
/// keeps everybody but root out.
struct File(PathBuf);

impl File {
    fn write(context: &Context, node: &Name, text: &str) -> Result<Self> {
        let file = Self(context.root.path().join("locks").join(node.as_str()));
        fs::write(&file.0, text).with_context(|| format!("write {}", file.0.display()))?;
        fs::set_permissions(&file.0, Permissions::from_mode(0o444))?;
        Ok(file)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // What is left is removed by the next trial.
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes what trials have left that were killed.
fn sweep(context: &Context) -> Result<()> {
    let _lock = context.lock()?;
    let files = context.root.path().join("locks");
    for entry in fs::read_dir(&files).with_context(|| format!("read {}", files.display()))? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| Some(name.strip_prefix("trial-")?.to_owned()));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(File(entry.path()));
        }
    }
    for node in node::all(&context.root, &context.lab)? {
        let pid = node.name.as_str().rsplit('-').next().unwrap_or_default();
        if node.state.spec.offline && node.pidfd.is_none() && !Path::new("/proc").join(pid).exists() {
            halt::remove(&context.root, &node)?;
        }
    }
    // One that was killed while it wrote down its plan is no node yet.
    context.root.sweep_lab(&context.lab)
}

fn name(text: &str) -> Result<Name> {
    text.parse().map_err(anyhow::Error::msg)
}

/// The reason that a server gives, with what it says of a way out. Of its file it says last only that something is wrong in it.
fn said(log: &[String]) -> Option<String> {
    let after = |word: &str| {
        let mut said = log.iter().filter_map(|line| Some(line.split_once(word)?.1.trim()));
        said.find(|text| !text.contains("missing configuration file")).map(str::to_owned)
    };
    let of_file = |text: String| text.split(&format!(" in file \"{CONFIG}\"")).next().map(str::to_owned);
    let why = after("LOG:").and_then(of_file).or_else(|| after("FATAL:")).or_else(|| log.last().cloned())?;
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
        let log = "2026-01-01 GMT [2] LOG:  unrecognized configuration parameter \"wrok_mem\" in file \"/pgbox-trial.conf\" line 2\n\
                   2026-01-01 GMT [2] FATAL:  configuration file \"/pgbox-trial.conf\" contains errors";
        assert_eq!(said(log).as_deref(), Some("unrecognized configuration parameter \"wrok_mem\""));
        assert_eq!(said("postgres: cannot").as_deref(), Some("postgres: cannot"));
        assert_eq!(said(""), None);
    }
}
