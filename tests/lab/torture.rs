//! Torture: a cluster of three under load, and round after round of whatever can happen to it, by the dice. After each
//! round one node takes writes, everybody else streams from it on its timeline, commits wait for both, and nothing that
//! was acknowledged is lost. A standby is lost at a time, so that this can be asked for.
//!
//! `PGBOX_TORTURE_SEED` and `PGBOX_TORTURE_ROUNDS` say what is thrown and how often; see scripts/torture.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    process::Stdio,
    time::{Duration, Instant},
};

use pgbox::{facts::node, state::Role};
use serde_json::Value;

use crate::{
    guard::Guard,
    harness::{Host, text},
};

const NODES: [&str; 3] = ["a", "b", "c"];

/// SplitMix64: the same numbers from the same seed, whatever the machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What can happen in a round. `P` below is the primary, `S` a standby.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// The postmaster of P dies.
    Crash,
    /// P loses its power.
    PowerCut,
    Freeze,
    /// P is cut off from this host.
    CutHost,
    /// P is cut off from both standbys.
    CutAll,
    /// P is cut off from one standby.
    CutOne,
    /// S dies.
    LoseStandby,
    FreezeStandby,
    StopStandby,
    /// P is stopped, and started again.
    Stop,
    Restart,
    Switchover,
    /// A switchover that is killed on the way.
    HalfSwitchover,
    /// A failover from a P that works.
    Failover,
    /// A failover that is killed on the way, from a P that is dead.
    HalfFailover,
    Reinit,
}

const BLOWS: [Blow; 16] = {
    use Blow::*;
    [
        Crash,
        PowerCut,
        Freeze,
        CutHost,
        CutAll,
        CutOne,
        LoseStandby,
        FreezeStandby,
        StopStandby,
        Stop,
        Restart,
        Switchover,
        HalfSwitchover,
        Failover,
        HalfFailover,
        Reinit,
    ]
};

struct Torture<'h> {
    host: &'h Host,
    dice: Dice,
    begun: Instant,
    /// Everything that was done, for the one who has to find out why.
    story: String,
    guard: Option<Guard>,
    /// A command was killed in this round.
    killed: bool,
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens() {
    let Some(host) = Host::new() else { return };
    let number = |name: &str, usual: u64| {
        std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
    };
    let (seed, rounds) = (number("PGBOX_TORTURE_SEED", 1), number("PGBOX_TORTURE_ROUNDS", 4));
    host.pgbox(&["run", "a", "postgres:15"]);
    host.pgbox(&["replica", "b", "--of", "a"]);
    host.pgbox(&["replica", "c", "--of", "a"]);
    host.pgbox(&["sync", "any 1 (b, c)"]);
    host.pgbox(&["drive", "start", "--writers", "4", "--rate", "100"]);
    let mut torture = Torture {
        host: &host,
        dice: Dice(seed),
        begun: Instant::now(),
        story: String::new(),
        guard: None,
        killed: false,
    };
    torture.say(&format!("seed {seed}, {rounds} rounds"));
    for round in 1..=rounds {
        torture.round(round);
    }
    if let Some(guard) = torture.guard.take() {
        guard.end();
    }
    println!("{}", host.pgbox(&["drive", "stop"]));
    println!("{}", host.pgbox(&["verify"]));
}

impl Torture<'_> {
    fn say(&mut self, what: &str) {
        let line = format!("{:8.3}  {what}", self.begun.elapsed().as_secs_f64());
        println!("{line}");
        self.story += &line;
        self.story.push('\n');
    }

    /// Runs pgbox, which may fail; says what it said.
    fn does(&mut self, args: &[&str]) -> bool {
        let begun = Instant::now();
        let output = self.host.try_pgbox(args);
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        let took = begun.elapsed().as_millis();
        let mark = if output.status.success() { "ok" } else { "FAILED" };
        self.say(&format!(
            "pgbox {}  [{mark}, {took} ms] {}",
            args.join(" "),
            said.trim().replace('\n', " | ")
        ));
        output.status.success()
    }

    /// Starts pgbox and kills it somewhere on the way.
    fn half_does(&mut self, args: &[&str]) {
        let time = Duration::from_millis(self.dice.below(500));
        let mut child = self.host.command(args);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbox");
        std::thread::sleep(time);
        let how = match child.try_wait().expect("wait") {
            Some(status) => format!("had ended with {status}"),
            None => "killed".to_owned(),
        };
        self.killed = true;
        drop(child.kill());
        child.wait().expect("wait");
        self.say(&format!("pgbox {} after {time:?}: {how}", args.join(" ")));
    }

    /// Of each node its role, whether it runs, and whether it is frozen.
    fn roles(&self) -> BTreeMap<String, (Role, bool, bool)> {
        let root = pgbox::state::Root::new(&self.host.root);
        let nodes = node::all(&root, &"default".parse().expect("name")).expect("nodes");
        let seen = |node: &node::Node| (node.state.role(), node.pidfd.is_some(), node.frozen);
        nodes.iter().map(|node| (node.name.to_string(), seen(node))).collect()
    }

    fn is_running(&self, node: &str) -> bool {
        self.roles()[node].1
    }

    #[track_caller]
    fn primary(&mut self) -> &'static str {
        let roles = self.roles();
        let primaries: Vec<_> = NODES.into_iter().filter(|node| roles[*node].0 == Role::Primary).collect();
        self.holds(primaries.len() == 1, &format!("one primary by its role: {roles:?}"));
        primaries[0]
    }

    /// What was asked must be true, or the whole story is told.
    #[track_caller]
    fn holds(&mut self, is: bool, what: &str) {
        if is {
            return;
        }
        let mut all = format!("not so: {what}\n{}", self.story);
        for node in NODES {
            let log = text(&self.host.try_pgbox(&["logs", node]).stdout);
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            write!(all, "== log of {node}\n{tail}\n").expect("a string");
        }
        if let Some(guard) = &self.guard {
            write!(all, "== guard\n{}", guard.text()).expect("a string");
        }
        write!(all, "== {}", text(&self.host.try_pgbox(&["ps"]).stdout)).expect("a string");
        panic!("{all}");
    }

    fn round(&mut self, round: u64) {
        let primary = self.primary();
        let standbys: Vec<&str> = NODES.into_iter().filter(|node| *node != primary).collect();
        // Every other round somebody keeps watch.
        match self.dice.below(2) {
            0 => drop(self.guard.take()),
            _ if self.guard.is_none() => {
                self.guard = Some(Guard::start(self.host, primary, &["--detect", "500ms"]));
            }
            _ => {}
        }
        let watched = if self.guard.is_some() { ", with a guard" } else { "" };
        self.say(&format!("-- round {round}: {primary} is the primary{watched}"));
        for _ in 0..1 + self.dice.below(2) {
            let blow = self.dice.pick(&BLOWS);
            let standby = self.dice.pick(&standbys);
            self.strike(blow, primary, standby);
            let pause = Duration::from_millis(self.dice.below(700));
            std::thread::sleep(pause);
            self.not_two();
        }
        if self.guard.is_some() && self.dice.below(2) == 0 {
            std::thread::sleep(Duration::from_secs(1 + self.dice.below(6)));
            self.not_two();
        }
        self.mend();
        self.is_well();
    }

    fn strike(&mut self, blow: Blow, primary: &str, standby: &str) {
        self.say(&format!("{blow:?}"));
        match blow {
            Blow::Crash => drop(self.does(&["crash", primary])),
            Blow::PowerCut => drop(self.does(&["crash", primary, "--node"])),
            Blow::Freeze => drop(self.does(&["freeze", primary])),
            Blow::CutHost => drop(self.does(&["net", "cut", primary, "host"])),
            Blow::CutOne => drop(self.does(&["net", "cut", primary, standby])),
            Blow::CutAll => {
                for standby in NODES.into_iter().filter(|node| *node != primary) {
                    self.does(&["net", "cut", primary, standby]);
                }
            }
            Blow::LoseStandby => drop(self.does(&["crash", standby, "--node"])),
            Blow::FreezeStandby => drop(self.does(&["freeze", standby])),
            Blow::StopStandby => drop(self.does(&["stop", standby])),
            Blow::Stop => drop(self.does(&["stop", primary])),
            Blow::Restart => {
                // It would wait for a node that is frozen or cut off.
                if self.roles()[primary].1 && !self.roles()[primary].2 {
                    self.does(&["stop", primary]);
                    self.does(&["start", primary]);
                }
            }
            Blow::Switchover => drop(self.does(&["switchover", standby, "--timeout", "20s"])),
            Blow::HalfSwitchover => self.half_does(&["switchover", standby, "--timeout", "20s"]),
            Blow::Failover => drop(self.does(&["failover", standby])),
            Blow::HalfFailover => {
                self.does(&["crash", primary, "--node"]);
                self.half_does(&["failover", standby]);
            }
            Blow::Reinit => drop(self.does(&["reinit", standby, "--timeout", "30s"])),
        }
    }

    /// At no moment two of them take writes. Asked one after the other, so only one that does so twice is told from a change.
    fn not_two(&mut self) {
        let mut writable = Vec::new();
        for _ in 0..2 {
            writable = NODES.into_iter().filter(|node| self.takes_writes(node)).collect();
            if writable.len() < 2 {
                return;
            }
        }
        self.holds(false, &format!("one at most takes writes: {writable:?}"));
    }

    fn takes_writes(&self, node: &str) -> bool {
        let (_, runs, frozen) = self.roles()[node];
        if !runs || frozen {
            return false;
        }
        // Inside of the node: whatever is cut, it is asked.
        let mut ask = self.host.command(&["psql", node, "-XAtc", "SELECT pg_is_in_recovery()"]);
        let output = ask.env("PGCONNECT_TIMEOUT", "2").output().expect("pgbox");
        text(&output.stdout).trim() == "f"
    }

    /// What an operator does: everything is connected, runs, and follows the primary.
    fn mend(&mut self) {
        self.does(&["net", "heal", "--all"]);
        for node in NODES {
            if self.roles()[node].2 {
                self.does(&["thaw", node]);
            }
        }
        let begun = Instant::now();
        while !self.mend_roles() {
            self.holds(begun.elapsed() < Duration::from_secs(60), "it can be mended");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// One pass; true when there was nothing to do.
    fn mend_roles(&mut self) -> bool {
        // A command that was killed may have asked for a stop that comes to its end only now.
        let states = self.host.json(&["ps", "--json"]);
        let ends = |row: &Value| row["state"] == "stopping" || row["state"] == "ending";
        if states.as_array().is_some_and(|rows| rows.iter().any(ends)) {
            return false;
        }
        let roles = self.roles();
        let mut done = true;
        for node in NODES {
            let (role, runs, _) = &roles[node];
            match role {
                Role::Primary | Role::Standby { .. } if !runs => {
                    // A primary that is gone is replaced, or started again, as the dice say.
                    let replaced = *role == Role::Primary && self.dice.below(2) == 0 && self.fail_over(node);
                    if !replaced {
                        self.does(&["start", node]);
                    }
                    done = false;
                }
                Role::Superseded { by } => {
                    // Its place was to be taken, and whoever was at it was killed.
                    if roles[by.as_str()].0 != Role::Primary {
                        if !self.is_running(by.as_str()) {
                            self.does(&["start", by.as_str()]);
                        }
                        self.does(&["failover", by.as_str()]);
                    }
                    self.does(&["rejoin", node, "--timeout", "30s"]);
                    done = false;
                }
                _ => {}
            }
        }
        done
    }

    fn fail_over(&mut self, from: &str) -> bool {
        let standbys: Vec<&str> =
            NODES.into_iter().filter(|node| *node != from && self.is_running(node)).collect();
        standbys.iter().any(|standby| self.does(&["failover", standby]))
    }

    /// One primary, two standbys that stream from it on its timeline, commits that wait for one of them, and everything
    /// that was acknowledged.
    fn is_well(&mut self) {
        let primary = self.primary();
        let standbys: Vec<&str> = NODES.into_iter().filter(|node| *node != primary).collect();
        self.rejoin_who_has_more(&standbys);
        let wish = format!("{}:streaming {}:streaming", standbys[0], standbys[1]);
        let streams = "SELECT string_agg(application_name || ':' || state, ' ' ORDER BY application_name) FROM pg_stat_replication";
        self.comes_true(&format!("{} follow {primary}", standbys.join(" and ")), |host| {
            ask(host, primary, streams) == wish
        });
        let timeline = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int";
        let timeline = ask(self.host, primary, timeline);
        for standby in &standbys {
            self.comes_true(&format!("{standby} is on timeline {timeline}"), |host| {
                ask(host, standby, "SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'")
                    == timeline
            });
        }
        self.not_two();
        let slots = "SELECT count(*) || ' ' || count(*) FILTER (WHERE active) FROM pg_replication_slots";
        self.comes_true("two slots, and both in use", |host| ask(host, primary, slots) == "2 2");
        // The last thing that a command does which brings a standby back, and it may have been killed before. Commits wait for
        // the other one alone then, which is less than was asked for and safe; the next start of any node puts it right.
        if std::mem::take(&mut self.killed)
            && ask(self.host, primary, "SHOW synchronous_standby_names").matches('"').count() == 2
        {
            self.does(&["stop", standbys[0]]);
            self.does(&["start", standbys[0]]);
        }
        self.comes_true("commits wait for one of two", |host| {
            ask(host, primary, "SHOW synchronous_standby_names").matches('"').count() == 4
        });
        let before = acknowledged(self.host);
        let begun = Instant::now();
        self.comes_true("writes are acknowledged", |host| acknowledged(host) > before + 20);
        let writes = begun.elapsed();
        let output = self.host.try_pgbox(&["verify", "--json"]);
        let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        self.holds(output.status.success(), &format!("nothing is lost: {verdict} {}", text(&output.stderr)));
        self.say(&format!(
            "well: {primary} on timeline {timeline}, {} acknowledged, {} unknown, 0 missing, writes after {} ms, longest gap {} ms",
            verdict["acknowledged"],
            verdict["unknown"],
            writes.as_millis(),
            verdict["longest_gap_ms"]
        ));
    }

    /// A standby can have received, from a primary that was about to be ended, what the new one never had, and nobody was
    /// told of. The failover has said so, and what to do.
    fn rejoin_who_has_more(&mut self, standbys: &[&str]) {
        std::thread::sleep(Duration::from_millis(200));
        for standby in standbys {
            let log = text(&self.host.try_pgbox(&["logs", standby]).stdout);
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            if last.iter().any(|line| line.contains("before current recovery point")) {
                let told = format!("it can't follow before `pgbox rejoin {standby}`");
                let guard = self.guard.as_ref().map(Guard::text).unwrap_or_default();
                let was_told = self.story.contains(&told) || guard.contains(&told);
                self.holds(was_told, &format!("whoever failed over has said: {told}"));
                self.does(&["rejoin", standby, "--timeout", "30s"]);
            }
        }
    }

    #[track_caller]
    fn comes_true(&mut self, what: &str, mut is: impl FnMut(&Host) -> bool) {
        let begun = Instant::now();
        while !is(self.host) {
            if begun.elapsed() > Duration::from_secs(20) {
                self.holds(false, &format!("after 20 s: {what}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Asks inside of a node; empty where there is no answer.
fn ask(host: &Host, node: &str, sql: &str) -> String {
    text(&host.try_pgbox(&["psql", node, "-XAtc", sql]).stdout).trim().to_owned()
}

fn acknowledged(host: &Host) -> u64 {
    host.json(&["drive", "report", "--json"])["acknowledged"].as_u64().expect("a number")
}
