//! A standby that comes up, seen from the server that it follows: how far its base backup is, and whether it streams.

use std::time::{Duration, Instant};

use super::{
    launch::{Patience, Talk},
    ready::Answer,
};
use crate::{
    facts::{node, recovery},
    postgres::standby,
    sql::{self, Login, Silent},
    state::{NodeDir, NodeState, Plan, Root},
    step::AfterStep,
};

/// What is known of a node that comes up. A primary follows nobody, and then there is nothing to know.
pub struct Follower<'a> {
    stream: Option<(&'a Login, &'a str)>,
    state: &'a NodeState,
    node: &'a NodeDir,
    /// When it answered first, and what: it need not be asked again.
    answered: Option<Instant>,
    pub answer: Option<Answer>,
    told: Instant,
    looked: Instant,
}

impl<'a> Follower<'a> {
    pub fn new(state: &'a NodeState, node: &'a NodeDir) -> Self {
        let stream = state.plan.after.iter().find_map(|step| match step {
            AfterStep::WaitUntilStreaming { server, name } => Some((server, name.as_str())),
            AfterStep::WaitUntilReady { .. } => None,
        });
        Self {
            stream,
            state,
            node,
            answered: None,
            answer: None,
            told: Instant::now(),
            looked: Instant::now(),
        }
    }

    /// Tells how far the base backup is, not more often than a person can read.
    pub fn tell_progress(&mut self, talk: &mut dyn Talk) {
        let Some((server, _)) = self.stream.filter(|_| self.told.elapsed() > Duration::from_millis(200))
        else {
            return;
        };
        let rows = server.ask(sql::PATIENCE, |client| client.query(standby::BACKUP_PROGRESS, &[]));
        if let Ok(Some(row)) = rows.map(|rows| rows.into_iter().next()) {
            let number = |i| u64::try_from(row.get::<_, i64>(i)).unwrap_or(0);
            talk.copied(number(0), number(1));
        }
        self.told = Instant::now();
    }

    /// What an answer is worth: a standby that answers is not up before it streams. One that was up before is, after a
    /// while: it is of use, and goes on trying by itself.
    pub fn judge(&mut self, answer: Answer, patience: &Patience<'_>, talk: &mut dyn Talk) -> Answer {
        let Some((server, name)) = self.stream.filter(|_| answer.is_ready()) else { return answer };
        let own = self.state.server().filter(|_| self.state.applies_late());
        let own = own.and_then(|address| self.node.login(address).ok());
        let why = match (streams(server, name), own) {
            (Ok(()), None) => return answer,
            // Until it is told so it applies what it gets at once.
            (Ok(()), Some(own)) if applies_late(&own).0 => return answer,
            (Ok(()), Some(_)) => format!("`{name}` does not apply late yet"),
            (Err(why), Some(own)) if applies_late(&own).1 => {
                talk.note(&format!("`{name}` answers queries, but does not stream yet: {}", late(&why)));
                return answer;
            }
            (Err(why), _) => why,
        };
        let answered = *self.answered.get_or_insert_with(Instant::now);
        if answered.elapsed() >= patience.stream {
            talk.note(&format!(
                "`{name}` answers queries, but does not stream: {why}; `pgbox logs {name}` tells more"
            ));
            return answer;
        }
        self.answer = Some(answer);
        std::thread::sleep(Duration::from_millis(5));
        Answer::NotYet(why)
    }

    /// Why a standby that answers will never stream, as far as it has found out.
    pub fn stuck(&mut self, root: &Root) -> Option<String> {
        const PAUSE: Duration = Duration::from_millis(250);
        if self.answer.is_none() || self.looked.elapsed() < PAUSE || self.answered?.elapsed() < PAUSE {
            return None;
        }
        self.looked = Instant::now();
        let nodes = node::all(root, &self.state.spec.lab).ok()?;
        let node = nodes.iter().find(|node| node.name == self.state.spec.node)?;
        recovery::stuck(&nodes, node)
    }
}

/// What a standby says of that: whether it knows, and whether that is all that it waits for.
pub fn applies_late(standby: &Login) -> (bool, bool) {
    let said = standby.ask(sql::PATIENCE, |client| client.query_one(standby::APPLIES_LATE, &[]));
    said.map_or((false, false), |row| (row.get(0), row.get(1)))
}

/// Why a standby that only waits until it may apply what it has does not stream.
pub fn late(why: &str) -> String {
    format!("{why}, because it applies late, and receives more when it has applied what it has")
}

/// Has the server that a standby with data of its own follows let it in. What that server says against it is no error: it
/// may have let it in before, and may only just be coming up.
///
/// # Errors
/// [`Silent`]: it would say nothing to the standby either, and to ask it anything more takes as long again.
pub fn admit(plan: &Plan) -> anyhow::Result<()> {
    for step in plan.host.iter().filter(|step| step.is_elsewhere()) {
        match step.apply() {
            Err(error) if error.is::<Silent>() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Asks a server whether it streams to the standby of this name; an error says what it does instead.
pub fn streams(server: &Login, name: &str) -> Result<(), String> {
    let sql = standby::stream_state(name);
    let states = server.ask(sql::PATIENCE, move |client| client.query(&sql, &[]));
    let states = states.map_err(|error| format!("{error:#}"))?;
    let states: Vec<String> = states.iter().map(|row| row.get(0)).collect();
    match states.first().map(String::as_str) {
        Some("streaming") => Ok(()),
        Some(state) => Err(format!("{} says `{state}` of it", server.address)),
        None => Err(format!("it is not connected to {}", server.address)),
    }
}
