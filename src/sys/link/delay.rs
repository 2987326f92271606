//! Holding packets back on their way out of an interface: tc-netem(8) below tc-htb(8).
//!
//! The rules that surprise people: a queueing discipline works on what *leaves* an interface, so what is to reach the
//! other end of a veth late is held back at the end here; netem takes all there is, so a classful one above it picks
//! the packets; and a packet whose priority is the handle of a class goes into that class without any filter
//! (`meta priority set 1:2` in nft(8)). All others pass htb directly and are not shaped.

use std::time::Duration;

use anyhow::{Context, Result};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use nix::errno::Errno;

use super::{index, lookup, open, socket::Rtnl};
use crate::sys::netns;

/// The handle of the class with this number, for a packet's priority.
pub fn class(number: u16) -> u32 {
    handle(number).into()
}

/// What of `netem` and `htb` this kernel lacks, by name. Asked in a network namespace that exists only for that;
/// modules that are missing are loaded by this, as [`delay`] would.
///
/// # Errors
/// When the question can't be answered, above all `EPERM`.
pub fn missing() -> Result<Option<&'static str>> {
    netns::run_in_new(|| {
        let mut rtnl = open()?;
        for (kind, options) in [("htb", htb_options()), ("netem", netem_options(Duration::ZERO))] {
            // The loopback interface of any namespace.
            let message = message(1, TcHandle::UNSPEC, TcHandle::ROOT, kind, options);
            match rtnl.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
            {
                Err(Errno::ENOENT) => return Ok(Some(kind)),
                other => other.with_context(|| format!("try {kind}: RTM_NEWQDISC"))?,
            }
        }
        Ok(None)
    })?
}

/// Has packets of the class leave the interface so much later. Another time takes the place of the one before.
///
/// # Errors
/// `ENODEV` without the interface; `ENOENT` in a kernel without htb or netem. Nothing is changed then.
pub fn delay(link: &str, number: u16, time: Duration) -> Result<()> {
    let mut rtnl = open()?;
    let index = index(&rtnl, link)? as i32;
    let context = |what| format!("delay on {link}: {what}");
    let root = message(index, ROOT, TcHandle::ROOT, "htb", htb_options());
    present(rtnl.change(RouteNetlinkMessage::NewQueueDiscipline(root), NLM_F_CREATE | NLM_F_EXCL))
        .with_context(|| context("RTM_NEWQDISC htb"))?;
    let class = message(index, handle(number), ROOT, "htb", class_options());
    let leaf = message(index, TcHandle::UNSPEC, handle(number), "netem", netem_options(time));
    let made = present(rtnl.change(RouteNetlinkMessage::NewTrafficClass(class), NLM_F_CREATE | NLM_F_EXCL))
        .with_context(|| context("RTM_NEWTCLASS"))
        .and_then(|()| {
            rtnl.change(RouteNetlinkMessage::NewQueueDiscipline(leaf), NLM_F_CREATE | NLM_F_REPLACE)
                .with_context(|| context("RTM_NEWQDISC netem"))
        });
    // The first error is the one to tell.
    made.inspect_err(|_| drop(take_away(&mut rtnl, index, number)))
}

/// Takes the class away, and with the last one the queueing discipline. Absent is Ok, the interface too.
pub fn undelay(link: &str, number: u16) -> Result<()> {
    let mut rtnl = open()?;
    let Some(link) = lookup(&mut rtnl, link)? else { return Ok(()) };
    take_away(&mut rtnl, link.index as i32, number).with_context(|| format!("end the delay on {}", link.name))
}

fn take_away(rtnl: &mut Rtnl, index: i32, number: u16) -> Result<()> {
    let class = message(index, handle(number), TcHandle::UNSPEC, "htb", Vec::new());
    absent(rtnl.change(RouteNetlinkMessage::DelTrafficClass(class), 0)).context("RTM_DELTCLASS")?;
    let left = rtnl.dump(RouteNetlinkMessage::GetTrafficClass(TcMessage::with_index(index)));
    if left.context("RTM_GETTCLASS")?.is_empty() {
        let root = message(index, ROOT, TcHandle::ROOT, "htb", Vec::new());
        absent(rtnl.change(RouteNetlinkMessage::DelQueueDiscipline(root), 0)).context("RTM_DELQDISC")?;
    }
    Ok(())
}

fn present(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// EINVAL and ENOENT are what is said of a class or a discipline that is not there.
fn absent(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        other => other,
    }
}

const ROOT: TcHandle = TcHandle { major: 1, minor: 0 };

fn handle(number: u16) -> TcHandle {
    TcHandle { major: ROOT.major, minor: number }
}

fn message(index: i32, handle: TcHandle, parent: TcHandle, kind: &str, options: Vec<u8>) -> TcMessage {
    let mut message = TcMessage::with_index(index);
    (message.header.handle, message.header.parent) = (handle, parent);
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    if !options.is_empty() {
        message.attributes.push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)));
    }
    message
}

/// `struct tc_htb_glob`. Class 0 as the default is none: what no class is named for is sent directly.
fn htb_options() -> Vec<u8> {
    let (version, rate_to_quantum, default_class) = (3u32, 10u32, 0u32);
    attribute(TCA_HTB_INIT, &words(&[version, rate_to_quantum, default_class, 0, 0]))
}

/// `struct tc_htb_opt`: as fast as it goes, the class is only there to be chosen.
fn class_options() -> Vec<u8> {
    // cell_log, linklayer, overhead, cell_align, mpu; with a known link layer the kernel wants no rate table.
    let mut rate = vec![0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    rate.extend(u32::MAX.to_ne_bytes());
    // Times in ticks of 64 ns: a millisecond's worth of bytes may go at once.
    let (burst, quantum) = (15_625u32, 200_000u32);
    let options = [&rate[..], &rate, &words(&[burst, burst, quantum, 0, 0])].concat();
    attribute(TCA_HTB_PARMS, &options)
}

/// `struct tc_netem_qopt`, and the time in nanoseconds after it.
fn netem_options(time: Duration) -> Vec<u8> {
    let (coarse, packets) = (0u32, 20_000u32);
    let mut options = words(&[coarse, packets, 0, 0, 0, 0]);
    let nanos = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    options.extend(attribute(TCA_NETEM_LATENCY64, &nanos.to_ne_bytes()));
    options
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// All of these are multiples of four bytes, so none is padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
}

// linux/rtnetlink.h and linux/pkt_sched.h.
const TCA_OPTIONS: u16 = 2;
const TCA_HTB_PARMS: u16 = 1;
const TCA_HTB_INIT: u16 = 2;
const TCA_NETEM_LATENCY64: u16 = 10;
const TC_LINKLAYER_ETHERNET: u8 = 1;
