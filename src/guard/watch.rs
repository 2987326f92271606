//! The guard's loop: wait for an end, an answer or a signal; look at the lab; say what is new; act when it is time.
//!
//! The rule that surprises people: it has one thread. While it acts it watches nothing, and nothing that it watches can
//! change what it is about to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, poll_fn},
    os::fd::AsFd,
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tokio::{runtime::Builder, time::sleep};

use super::{
    Wish,
    event::{Event, ms},
    probe::{Answer, Probe},
    sight::{self, Finding, Judge, Sight},
    standbys::Round,
};
use crate::{
    engine::{interrupt::Interrupts, sync, takeover},
    facts::{
        cluster::{self, Cluster},
        node::Node,
    },
    postgres::report::Phase,
    spec::{Name, SyncRule},
    state::{Role, Root},
    sys::{
        process::{self, ProcessId},
        readable::Readable,
    },
};

/// How often a primary that is not up is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Where the guard's lines go.
pub type Tell<'a> = dyn FnMut(&Event) + 'a;

/// Watches the primary of a lab until a signal comes.
///
/// # Errors
/// When there is no cluster to watch at the beginning.
pub fn watch(
    root: &Root,
    lab: &Name,
    wish: &Wish,
    interrupts: &Interrupts,
    tell: &mut Tell<'_>,
) -> Result<()> {
    find(root, lab, wish.node.as_ref())?;
    // The last guard may have been killed while it held the primary still.
    if let Some(let_go) = root.try_lock(lab)?.and_then(|lock| lock.let_go) {
        tell(&Event::Warning { what: let_go.text() });
    }
    let runtime = Builder::new_current_thread().enable_all().build().context("make an event loop")?;
    runtime.block_on(async {
        let wake = Readable::new(interrupts.as_fd().try_clone_to_owned().context("dup")?)?;
        let watched = Watched { root, lab, wish };
        let mut guard = Guard {
            watched,
            interrupts,
            wake,
            tell,
            judge: Judge::new(wish.detect),
            head: None,
            alone: None,
            refusal: None,
            standbys: BTreeMap::new(),
            strays: BTreeSet::new(),
            locked: BTreeSet::new(),
            round: Round::none(),
            astray: None,
        };
        let signal = guard.run().await?;
        (guard.tell)(&Event::Ended { why: signal.to_string() });
        Ok(())
    })
}

fn find(root: &Root, lab: &Name, named: Option<&Name>) -> Result<Cluster> {
    match named {
        Some(name) => cluster::of(root, lab, name),
        None => cluster::main(root, lab),
    }
}

/// What is watched.
#[derive(Clone, Copy)]
pub struct Watched<'a> {
    pub root: &'a Root,
    pub lab: &'a Name,
    pub wish: &'a Wish,
}

/// A guard at work.
pub struct Guard<'a> {
    pub watched: Watched<'a>,
    interrupts: &'a Interrupts,
    wake: Readable,
    pub tell: &'a mut Tell<'a>,
    judge: Judge,
    head: Option<Head>,
    /// Why there is nobody to watch, as it was told.
    alone: Option<String>,
    pub refusal: Option<Refusal>,
    /// The standbys as they were seen last: whether each of them is up.
    pub standbys: BTreeMap<Name, bool>,
    /// Those that were promoted behind pgbox' back, as they were told.
    pub strays: BTreeSet<Name>,
    /// Those that do not let the guard in, as they were told.
    pub locked: BTreeSet<Name>,
    pub round: Round,
    /// Why reads go elsewhere than they should, as it was told.
    pub astray: Option<String>,
}

/// A failure after which nothing could be done; it is tried again, ever more seldom.
pub struct Refusal {
    pub why: String,
    pub again: Instant,
    pub pause: Duration,
}

/// The primary in one of its lives.
struct Head {
    name: Name,
    init: Option<ProcessId>,
    pidfd: Option<Readable>,
    probe: Probe,
    answer: Option<Answer>,
    /// Its server accepts connections, or did in this life.
    was_up: bool,
    /// How often it had crashed by then.
    crashes: u32,
    /// Enough standbys have streamed from it for its commits.
    was_heard: bool,
    standbys: Vec<Name>,
    asks: bool,
}

enum Woken {
    Signal(Signal),
    /// pid 1 has ended, or it is time to look.
    Look(Instant),
}

impl Guard<'_> {
    async fn run(&mut self) -> Result<Signal> {
        let mut begun = Instant::now();
        loop {
            let finding = match self.look()? {
                Some(cluster) => {
                    self.tell_standbys(&cluster);
                    self.lead_reads(&cluster);
                    let sight = self.sight(&cluster);
                    self.judge.see(sight, begun, Instant::now())
                }
                None => Finding::Nothing,
            };
            if let Finding::Failed { what, after } = finding {
                if self.refusal.as_ref().is_none_or(|refusal| refusal.again <= Instant::now())
                    && let Some(signal) = self.act(&what, after).await?
                {
                    return Ok(signal);
                }
            } else {
                self.say(finding);
            }
            begun = match self.wait().await? {
                Woken::Signal(signal) => return Ok(signal),
                Woken::Look(begun) => begun,
            };
        }
    }

    /// Looks at the lab: who is the primary now, and who follows it.
    pub fn look(&mut self) -> Result<Option<Cluster>> {
        let Watched { root, lab, wish } = self.watched;
        let known = self.head.as_ref().map(|head| head.name.clone());
        let found = known.as_ref().and_then(|name| cluster::of(root, lab, name).ok());
        let found = found.map_or_else(|| find(root, lab, wish.node.as_ref()), Ok);
        let cluster = match found {
            Ok(cluster) => cluster,
            Err(error) => {
                let why = format!("{error:#}");
                self.head = None;
                if self.alone.as_ref() != Some(&why) {
                    (self.tell)(&Event::NoPrimary { why: why.clone() });
                    self.alone = Some(why);
                }
                return Ok(None);
            }
        };
        self.meet(&cluster)?;
        Ok(Some(cluster))
    }

    /// Takes notice of who is there.
    fn meet(&mut self, cluster: &Cluster) -> Result<()> {
        let node = cluster.head();
        let primary = node.name.clone();
        let follows = |node: &&Node| matches!(node.state.role(), Role::Standby { .. });
        let mut standbys: Vec<Name> = cluster.nodes.iter().filter(follows).map(|n| n.name.clone()).collect();
        standbys.sort();
        let known = self.head.as_ref().filter(|head| head.name == primary);
        let same_life = known.is_some_and(|head| head.init == node.state.init);
        let event = match known {
            Some(head) if head.standbys != standbys => {
                Some(Event::Standbys { primary, standbys: standbys.clone() })
            }
            Some(_) => None,
            None => {
                if let Some(old) = self.head.take() {
                    (self.tell)(&Event::Moved { old: old.name, new: primary.clone() });
                }
                self.judge.forget();
                self.refusal = None;
                let detect_ms = ms(self.watched.wish.detect);
                Some(Event::Watching { primary, standbys: standbys.clone(), detect_ms })
            }
        };
        if let Some(event) = event {
            (self.tell)(&event);
            // Another standby may be able to do what none could.
            self.refusal = None;
        }
        match &mut self.head {
            Some(head) if same_life => head.standbys = standbys,
            _ => self.head = Some(Head::new(node, standbys)?),
        }
        self.alone = None;
        Ok(())
    }

    /// The primary is another one, and it was this guard that has made it so.
    pub fn moved_to(&mut self, cluster: &Cluster) -> Result<()> {
        self.head = None;
        self.meet(cluster)
    }

    /// What there is to see of the primary.
    pub fn sight(&mut self, cluster: &Cluster) -> Sight {
        let Some(head) = &mut self.head else { return Sight::Coming };
        let node = cluster.head();
        head.asks = false;
        if let Role::Superseded { by } = node.state.role() {
            return Sight::Down(format!("was to be replaced by `{by}`, which was not finished"));
        }
        if node.pidfd.is_none() {
            // It would wake us for ever.
            head.pidfd = None;
            let same_boot = process::boot_id().is_ok_and(|boot| boot == node.state.boot_id);
            return sight::ended(&node.status, head.was_up, same_boot);
        }
        if let Some(sight) = sight::living(&node.status, head.was_up, head.crashes) {
            // After a restart that was asked for it comes up as after a start.
            head.was_up &= !matches!(sight, Sight::LetBe(_));
            if matches!(sight, Sight::Returned(_)) {
                head.crashes = node.status.restarts;
            }
            head.answer = None;
            return sight;
        }
        (head.was_up, head.crashes) = (true, node.status.restarts);
        head.asks = true;
        match &head.answer {
            None => Sight::Coming,
            Some(Answer::Refusal) => Sight::Well,
            Some(Answer::Silence(_)) if node.frozen => Sight::Failing("is frozen".to_owned()),
            Some(Answer::Silence(why)) => Sight::Failing(why.clone()),
            Some(Answer::Streams(names)) => match sight::waits_in_vain(sync::told(&node.state), names) {
                None => {
                    head.was_heard = true;
                    Sight::Well
                }
                // Who has never streamed has not been cut off.
                Some(_) if !head.was_heard => Sight::Well,
                Some(rule) => cut_off(cluster, &rule),
            },
        }
    }

    /// Asks once more, not for long: what was silent may have begun to speak while somebody was waited for.
    pub async fn ask_again(&mut self, node: &Node) {
        let limit = self.watched.wish.detect.min(Duration::from_millis(250));
        if let Some(head) = &mut self.head
            && matches!(head.answer, Some(Answer::Silence(_)))
            && !node.frozen
        {
            head.answer = Some(head.probe.ask(limit).await);
        }
    }

    /// Takes notice of what was seen at this moment.
    pub fn judge(&mut self, sight: Sight) -> Finding {
        let now = Instant::now();
        self.judge.see(sight, now, now)
    }

    pub fn say(&mut self, finding: Finding) {
        let Some(primary) = self.head.as_ref().map(|head| head.name.clone()) else { return };
        let event = match finding {
            Finding::Nothing => return,
            Finding::LetBe(what) => Event::LetBe { primary, what },
            Finding::Trouble(what) => {
                Event::Trouble { primary, what, detect_ms: ms(self.watched.wish.detect) }
            }
            Finding::Back(after) => Event::Back { primary, after_ms: ms(after) },
            Finding::Failed { what, after } => Event::Failed { primary, what, after_ms: ms(after) },
        };
        self.refusal = None;
        (self.tell)(&event);
    }

    /// Waits until there may be something new.
    async fn wait(&mut self) -> Result<Woken> {
        let Self { watched, wake, head, interrupts, .. } = self;
        let detect = watched.wish.detect;
        let (pidfd, mut question) = match head {
            Some(Head { pidfd, probe, answer, asks: true, .. }) => (pidfd.as_ref(), Some((probe, answer))),
            Some(Head { pidfd, .. }) => (pidfd.as_ref(), None),
            None => (None, None),
        };
        let look = async {
            // An end that was seen already wakes nobody.
            let Some((probe, answer)) = &mut question else {
                sleep(LOOK).await;
                return Instant::now();
            };
            match answer {
                None => {}
                Some(Answer::Silence(_)) => sleep(LOOK).await,
                Some(_) => sleep((detect / 4).clamp(LOOK, Duration::from_millis(500))).await,
            }
            let begun = Instant::now();
            // Two that fail, one after the other, are needed for a verdict.
            **answer = Some(probe.ask((detect / 2).max(LOOK)).await);
            begun
        };
        let mut look = pin!(look);
        poll_fn(|cx| {
            if wake.is_ready(cx)
                && let Some(signal) = interrupts.next().transpose()
            {
                return Poll::Ready(signal.map(Woken::Signal));
            }
            if pidfd.is_some_and(|pidfd| pidfd.is_ready(cx)) {
                return Poll::Ready(Ok(Woken::Look(Instant::now())));
            }
            look.as_mut().poll(cx).map(|begun| Ok(Woken::Look(begun)))
        })
        .await
    }

    /// Waits a moment; gives a signal that has come.
    pub async fn rest(&self, time: Duration) -> Result<Option<Signal>> {
        sleep(time).await;
        self.interrupts.next()
    }
}

impl Head {
    fn new(node: &Node, standbys: Vec<Name>) -> Result<Self> {
        let pidfd = match &node.pidfd {
            Some(pidfd) => Some(Readable::new(pidfd.try_clone().context("dup")?)?),
            None => None,
        };
        Ok(Self {
            name: node.name.clone(),
            init: node.state.init,
            pidfd,
            probe: Probe::new(node.login()?),
            answer: None,
            // What has begun before the guard did counts as well.
            was_up: node.status.phase == Phase::Running,
            crashes: node.status.restarts,
            was_heard: false,
            standbys,
            asks: false,
        })
    }
}

/// A primary with commits that wait for standbys: cut off, if those who run and answer do not hear it.
fn cut_off(cluster: &Cluster, rule: &SyncRule) -> Sight {
    let members = cluster.nodes.iter().filter(|node| rule.names.contains(&node.name));
    let running = members.filter(|node| node.can_answer());
    let heard = running.filter_map(|node| Some((&node.name, takeover::receives(&node.login().ok()?).ok()?)));
    let (hear, deaf): (Vec<_>, Vec<_>) = heard.partition(|(_, receives)| *receives);
    let named =
        |nodes: &[(&Name, bool)]| nodes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    match (hear.is_empty(), deaf.is_empty()) {
        (true, false) => {
            Sight::Failing(format!("is cut off: its commits wait, and {} can't hear it", named(&deaf)))
        }
        (true, true) => Sight::LetBe("lets commits wait: no standby of its rule answers".to_owned()),
        // One of both will notice.
        (false, _) => Sight::Well,
    }
}
