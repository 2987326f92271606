//! What `pgbox up` does, or would do: a line for each action, or JSON.

use serde_json::{Value, json};

use crate::{
    plan::changes::{self, Action, Changes, Data, Effect, Need},
    postgres::launch::RenewHow,
    spec::{Copying, Follow, NodeLimits, NodeSpec, Publish, Restart, quantity::human_bytes},
};

/// All actions: `+` is new, `~` is changed, `-` goes.
pub fn render(changes: &Changes) -> String {
    let lines: Vec<String> =
        changes.actions.iter().map(|action| format!("{} {}\n", sign(action), line(action))).collect();
    lines.concat()
}

/// The same for programs.
pub fn json(changes: &Changes) -> Value {
    let action = |action: &Action| {
        json!({
            "action": word(action),
            "node": node(action),
            "change": what(action),
            "effect": effect(action),
        })
    };
    json!({
        "changes": changes.actions.iter().map(action).collect::<Vec<_>>(),
        "notes": changes.notes,
        "refused": changes.refused,
        "wrong": changes.wrong,
    })
}

/// What an action does, and what it costs.
pub fn line(action: &Action) -> String {
    let subject = node(action).map_or_else(String::new, |node| format!("{node}: "));
    let cost = effect(action).map_or_else(String::new, |effect| format!(" ({effect})"));
    format!("{subject}{}{cost}", what(action))
}

fn sign(action: &Action) -> char {
    match action {
        Action::Create { .. } => '+',
        Action::User { need, .. } | Action::Database { need, .. } if *need != Need::Differs => '+',
        Action::Run { .. } => '+',
        Action::Remove { .. } | Action::Clear { .. } => '-',
        _ => '~',
    }
}

fn word(action: &Action) -> &'static str {
    match action {
        Action::Clear { .. } => "clear",
        Action::Create { .. } => "create",
        Action::Start { .. } => "start",
        Action::Rejoin { .. } => "rejoin",
        Action::Wait { .. } => "wait",
        Action::Limit { .. } => "limit",
        Action::Publish { .. } => "publish",
        Action::Follow { .. } => "follow",
        Action::Policy { .. } => "policy",
        Action::Set { .. } => "set",
        Action::Replayed { .. } => "wait-replayed",
        Action::Remake { .. } => "remake",
        Action::User { .. } => "user",
        Action::Database { .. } => "database",
        Action::Run { .. } => "sql",
        Action::Sync { .. } => "sync",
        Action::Endpoints { .. } => "endpoints",
        Action::Remove { .. } => "remove",
    }
}

fn node(action: &Action) -> Option<&str> {
    match action {
        Action::Clear { node }
        | Action::Start { node }
        | Action::Rejoin { node }
        | Action::Wait { node }
        | Action::Limit { node, .. }
        | Action::Publish { node, .. }
        | Action::Follow { node, .. }
        | Action::Policy { node, .. }
        | Action::Set { node, .. }
        | Action::Replayed { node }
        | Action::Remove { node } => Some(node.as_str()),
        Action::Create { node, .. } => Some(node.spec.node.as_str()),
        Action::Remake { spec, .. } => Some(spec.node.as_str()),
        Action::User { .. }
        | Action::Database { .. }
        | Action::Run { .. }
        | Action::Sync { .. }
        | Action::Endpoints { .. } => None,
    }
}

/// What it costs, where that is not plain.
fn effect(action: &Action) -> Option<&'static str> {
    match action {
        Action::Limit { .. } | Action::Publish { .. } | Action::Endpoints { .. } => Some("live"),
        Action::Follow { .. } => Some("reload"),
        Action::Policy { .. } => Some("at its next start"),
        Action::Set { effect, .. } | Action::Remake { effect, .. } => Some(match effect {
            Effect::Live => "live",
            Effect::Reload => "reload",
            Effect::Restart => "restart",
            Effect::AtStart => "at its next start",
        }),
        Action::User { need: Need::Unknown, .. } | Action::Database { need: Need::Unknown, .. } => {
            Some("if missing")
        }
        _ => None,
    }
}

fn what(action: &Action) -> String {
    match action {
        Action::Clear { .. } => "remove what a killed command has left".to_owned(),
        Action::Create { node, on } => created(&node.spec, *on),
        Action::Start { .. } => "start".to_owned(),
        Action::Rejoin { .. } => "comes back as a standby".to_owned(),
        Action::Wait { .. } => "wait until it is up".to_owned(),
        Action::Limit { before, limits, .. } => self::limits(before, limits),
        Action::Publish { publish, .. } if publish.is_empty() => "publish nothing".to_owned(),
        Action::Publish { publish, .. } => {
            let ports: Vec<String> = publish.iter().map(ToString::to_string).collect();
            format!("publish {}", ports.join(", "))
        }
        Action::Follow { follow, .. } => match follow.delay_ms {
            Some(ms) => format!("apply changes {} late{}", time(ms), copying(follow)),
            None => format!("apply changes at once{}", copying(follow)),
        },
        Action::Policy { restart, stop_timeout, .. } => {
            format!("restart {}, stop-timeout {stop_timeout}s", policy(*restart))
        }
        Action::Set { settings, .. } => settings.iter().map(changes::shown).collect::<Vec<_>>().join(", "),
        Action::Replayed { .. } => "wait until it has replayed what its primary has written".to_owned(),
        Action::Remake { why, .. } => why.join(", "),
        Action::User { name, need: Need::Differs, .. } => format!("user {name}: the password of the file"),
        Action::User { name, .. } => format!("user {name}"),
        Action::Database { name, owner, .. } => {
            format!("database {name}{}", owner.as_ref().map_or(String::new(), |owner| format!(" of {owner}")))
        }
        Action::Run { sql } => format!("run {}", sql.shown),
        Action::Sync { rule: Some(rule) } => format!("commits wait for {rule}"),
        Action::Sync { rule: None } => "commits wait for nobody".to_owned(),
        Action::Endpoints { rw, ro } => [("read-write", rw), ("read-only", ro)]
            .into_iter()
            .filter_map(|(which, port)| Some(endpoint(which, (*port)?)))
            .collect::<Vec<_>>()
            .join(", "),
        Action::Remove { .. } => "remove; its data stays".to_owned(),
    }
}

fn endpoint(which: &str, port: Option<Publish>) -> String {
    match port {
        Some(port) => format!("the {which} endpoint is at {}", port.places()),
        None => format!("no port leads to the {which} endpoint"),
    }
}

fn created(spec: &NodeSpec, on: Data) -> String {
    let role = match &spec.follow {
        Some(follow) => format!("a standby of {}", follow.of),
        None => "a primary".to_owned(),
    };
    let data = match on {
        Data::None => "",
        Data::Primary | Data::Standby => ", with the data of its volume",
        Data::Superseded(RenewHow::Clone) => ", with a base backup in place of the data of its volume",
        Data::Superseded(_) => ", with the data of its volume, which were a primary's",
    };
    format!("{role} from {}{data}", spec.image)
}

/// What is otherwise in the limits of a node; empty if nothing is.
pub fn limits(before: &NodeLimits, limits: &NodeLimits) -> String {
    let cpus = |milli: u64| (milli as f64 / 1000.0).to_string();
    let changed = |name: &str, old: Option<u64>, new: Option<u64>, show: &dyn Fn(u64) -> String| {
        let or_max = |value: Option<u64>| value.map_or_else(|| "max".to_owned(), show);
        (old != new).then(|| format!("{name} {} -> {}", or_max(old), or_max(new)))
    };
    let all = [
        changed("memory", before.memory, limits.memory, &human_bytes),
        changed("memory-high", before.memory_high, limits.memory_high, &human_bytes),
        changed("swap", before.swap, limits.swap, &human_bytes),
        changed("cpus", before.milli_cpus, limits.milli_cpus, &cpus),
        changed("pids", before.pids, limits.pids, &|count| count.to_string()),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// How it would get its data, as far as that is said.
fn copying(follow: &Follow) -> String {
    let copy = match follow.copy {
        Copying::Auto => None,
        Copying::Reflink => Some(", clone data".to_owned()),
        Copying::Basebackup => Some(", copy data by pg_basebackup".to_owned()),
    };
    let rate = follow.rate_kb.map(|rate| format!(", copy {} a second", human_bytes(rate << 10)));
    copy.unwrap_or_default() + &rate.unwrap_or_default()
}

fn policy(restart: Restart) -> String {
    match restart {
        Restart::No => "no".to_owned(),
        Restart::OnCrash { max } => format!("on-crash:{max}"),
    }
}

fn time(milliseconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_millis(milliseconds)).to_string()
}
