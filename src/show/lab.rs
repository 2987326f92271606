//! A lab as a picture: each standby below the server that it follows, with what is known of it in the same line.

use super::table;
use crate::{
    facts::replication::{Lab, Member, Picture},
    spec::{quantity::human_bytes, sync},
};

/// With what lines are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strokes {
    Ascii,
    Unicode,
}

impl Strokes {
    /// To a node that others follow below, to the last one, beside what is below, and beside nothing.
    fn all(self) -> [&'static str; 4] {
        match self {
            Self::Ascii => ["|-> ", "`-> ", "|   ", "    "],
            Self::Unicode => ["├─▶ ", "└─▶ ", "│   ", "    "],
        }
    }
}

/// The whole lab.
pub fn render(lab: &Lab, strokes: Strokes) -> String {
    let header = [
        "NODE",
        "STATE",
        "TIMELINE",
        "SENT",
        "WRITE",
        "FLUSH",
        "REPLAY",
        "LAG",
        "SYNC",
        "SLOT KEEPS",
        "MEMORY",
        "OOM KILLS",
    ];
    let groups = lab.clusters.iter().map(|cluster| &cluster.nodes).chain([&lab.others]);
    let mut rows = Vec::new();
    for nodes in groups {
        rows.extend(nodes.iter().zip(tree(nodes, strokes)).map(|(member, name)| row(member, name)));
    }
    let mut text = table::render(&header, &rows);
    if let Some(rule) = &lab.sync_rule {
        text += &format!("\nsync rule: {rule}\n");
    }
    for cluster in &lab.clusters {
        text += &remarks(cluster);
    }
    for warning in &lab.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

/// The names of nodes, each behind the lines that lead to it. They stand in the order of the picture.
pub fn tree(nodes: &[Member], strokes: Strokes) -> Vec<String> {
    let [middle, last, beside, empty] = strokes.all();
    let goes_on = |at: usize, depth: usize| {
        let after = nodes[at + 1..].iter().take_while(|later| later.depth >= depth);
        after.into_iter().any(|later| later.depth == depth)
    };
    let name = |at: usize| {
        let depth = nodes[at].depth;
        let lines = (1..=depth).map(|level| match (level == depth, goes_on(at, level)) {
            (true, true) => middle,
            (true, false) => last,
            (false, true) => beside,
            (false, false) => empty,
        });
        lines.collect::<String>() + nodes[at].node.as_str()
    };
    (0..nodes.len()).map(name).collect()
}

fn row(member: &Member, name: String) -> Vec<String> {
    let lsn = |lsn: Option<crate::postgres::lsn::Lsn>| shown(lsn);
    let slot = member.slot.as_ref().map(|slot| {
        let bytes = slot.retained_bytes.map_or_else(|| "-".to_owned(), human_bytes);
        match slot.wal_status.as_deref() {
            Some("reserved") | None => bytes,
            Some("lost") => "lost".to_owned(),
            Some(status) => format!("{bytes} {status}"),
        }
    });
    let memory = member.memory_bytes.map(|used| match member.memory_limit {
        Some(limit) => format!("{} / {}", human_bytes(used), human_bytes(limit)),
        None => human_bytes(used),
    });
    vec![
        name,
        state(member),
        shown(member.timeline),
        lsn(member.sent_lsn),
        lsn(member.write_lsn),
        lsn(member.flush_lsn),
        lsn(member.replay_lsn),
        lag(member),
        member.sync_state.clone().unwrap_or_else(|| "-".to_owned()),
        shown(slot),
        shown(memory),
        shown(member.oom_kills),
    ]
}

fn state(member: &Member) -> String {
    match (&member.recovery, &member.follows) {
        (Some(recovery), _) => match recovery.at.or(recovery.began_at) {
            Some(at) => format!("recovering at {at}"),
            None => "recovering".to_owned(),
        },
        (None, Some(by)) if member.role == "superseded" => format!("{}, superseded by {by}", member.state),
        _ => member.state.clone(),
    }
}

/// Bytes and time.
fn lag(member: &Member) -> String {
    let parts = [member.lag_bytes.map(human_bytes), member.lag_ms.map(time)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(" ") }
}

/// A span in milliseconds as people read it.
pub fn time(ms: f64) -> String {
    match ms {
        ms if ms < 1000.0 => format!("{ms:.0}ms"),
        ms if ms < 120_000.0 => format!("{:.1}s", ms / 1000.0),
        ms => format!("{:.0}min", ms / 60_000.0),
    }
}

fn remarks(cluster: &Picture) -> String {
    let mut text = String::new();
    if let Some(rule) = cluster.sync.in_effect.as_deref().filter(|rule| !rule.is_empty()) {
        text += &match &cluster.sync.waived_by {
            Some(commit) => format!("\ncommits wait for nobody: synchronous_commit is {commit}\n"),
            None => format!("\ncommits wait for {}\n", sync::shown(rule)),
        };
    }
    for member in cluster.nodes.iter().filter(|member| member.state == "silent") {
        let why = member.error.as_deref().unwrap_or("no answer");
        text += &format!("\n{}: {why}\n", member.node);
    }
    for warning in &cluster.warnings {
        text += &format!("\nwarning: {warning}\n");
    }
    text
}

/// The header of [`lag_rows`].
pub const LAG: [&str; 7] = ["NODE", "STATE", "WRITE", "FLUSH", "REPLAY", "BYTES", "TIME"];

/// A line for each standby: how far it is, and how far behind.
pub fn lag_rows(lab: &Lab) -> Vec<Vec<String>> {
    let standbys = lab
        .clusters
        .iter()
        .flat_map(|cluster| &cluster.nodes)
        .chain(&lab.others)
        .filter(|member| member.role == "standby");
    let cells = |member: &Member| {
        vec![
            member.node.to_string(),
            state(member),
            shown(member.write_lsn),
            shown(member.flush_lsn),
            shown(member.replay_lsn),
            shown(member.lag_bytes.map(human_bytes)),
            shown(member.lag_ms.map(time)),
        ]
    };
    standbys.map(cells).collect()
}

fn shown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, depth: usize) -> Member {
        Member {
            stray: None,
            node: name.parse().unwrap(),
            role: if depth == 0 { "primary" } else { "standby" },
            follows: None,
            depth,
            state: "streaming".to_owned(),
            address: [10, 0, 0, 2].into(),
            timeline: Some(1),
            sent_lsn: None,
            write_lsn: None,
            flush_lsn: None,
            replay_lsn: None,
            receive_lsn: None,
            lag_bytes: (depth > 0).then_some(0),
            lag_ms: (depth > 0).then_some(1500.0),
            sync_state: None,
            slot: None,
            recovery: None,
            memory_bytes: None,
            memory_limit: None,
            oom_kills: None,
            error: None,
        }
    }

    #[test]
    fn lines_lead_from_each_server_to_those_that_follow_it() {
        let nodes =
            [("p", 0), ("a", 1), ("a1", 2), ("a2", 2), ("b", 1), ("b1", 2)].map(|(n, d)| member(n, d));
        let want = ["p", "|-> a", "|   |-> a1", "|   `-> a2", "`-> b", "    `-> b1"];
        assert_eq!(tree(&nodes, Strokes::Ascii), want);
        assert_eq!(tree(&nodes, Strokes::Unicode)[3], "│   └─▶ a2");
    }

    #[test]
    fn lag_is_in_bytes_and_in_time() {
        assert_eq!(lag(&member("a", 1)), "0B 1.5s");
        assert_eq!(lag(&member("p", 0)), "-");
        assert_eq!([0.4, 999.0, 61_000.0, 600_000.0].map(time), ["0ms", "999ms", "61.0s", "10min"]);
    }
}
