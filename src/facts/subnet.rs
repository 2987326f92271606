//! The address range of a lab, and who has which address of it. rtnetlink(7), RFC 1918.
//!
//! The rule that surprises people: a range that is free for this host need not be free. What a route of it leads to is in
//! use as well, somewhere else.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::Result;
use ipnet::Ipv4Net;

use crate::{
    hint::advise,
    spec::{NodeSpec, ObjectNames},
    state::{Endpoint, LabState, Root},
    sys::link,
};

pub fn free_address(lab: &LabState, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let endpoints = Endpoint::BOTH.map(|which| lab.endpoint(which));
    lab.subnet.hosts().skip(1).find(|address| !taken.contains(address) && !endpoints.contains(address))
}

/// The lab's address range: as remembered, as asked for, or a free one.
pub fn of_lab(root: &Root, spec: &NodeSpec) -> Result<LabState> {
    let known = root.load_lab(&spec.lab)?;
    match (known, spec.subnet) {
        (Some(lab), Some(asked)) if asked.trunc() != lab.subnet => Err(advise(
            format!("lab `{}` has the address range {}, not {asked}", spec.lab, lab.subnet),
            "leave --subnet out, or choose another --lab",
        )),
        (Some(lab), _) => Ok(lab),
        (None, Some(asked)) => {
            let asked = asked.trunc();
            if asked.network().is_multicast() || asked.network().octets()[0] >= 240 {
                return Err(advise(
                    format!("{asked} is no range for hosts"),
                    "give a private one (RFC 1918)",
                ));
            }
            if asked.prefix_len() > 29 {
                return Err(advise(format!("{asked} has room for no lab"), "give a range of /29 or larger"));
            }
            match conflict(&claimed(root, spec)?, asked) {
                Some(who) => Err(advise(
                    format!("the address range {asked} is in use: {who}"),
                    "choose another with --subnet, or leave it out and pgbox finds a free one",
                )),
                None => Ok(LabState::new(asked)),
            }
        }
        (None, None) => free_range(root, spec).map(LabState::new),
    }
}

/// Ranges in use, and by what: addresses and routes of this host, and other labs.
fn claimed(root: &Root, spec: &NodeSpec) -> Result<Vec<(Ipv4Net, String)>> {
    let mut ranges = Vec::new();
    for address in link::addresses()? {
        if let Ok(net) = Ipv4Net::new(address.address, address.prefix) {
            ranges.push((net.trunc(), format!("{} has the address {net}", address.dev)));
        }
    }
    // A route without a device is a wall (unreachable, blackhole), and nobody lives behind it.
    for route in link::routes()?.into_iter().filter(|r| r.dst.1 > 0) {
        if let (Ok(net), Some(dev)) = (Ipv4Net::new(route.dst.0, route.dst.1), route.dev) {
            ranges.push((net, format!("this host has a route to {net} by {dev}")));
        }
    }
    for lab in root.labs()?.into_iter().filter(|lab| *lab != spec.lab) {
        if let Some(state) = root.load_lab(&lab)? {
            ranges.push((state.subnet, format!("lab `{lab}` has {}", state.subnet)));
        }
    }
    Ok(ranges)
}

fn conflict(claimed: &[(Ipv4Net, String)], range: Ipv4Net) -> Option<String> {
    let overlaps = |net: &Ipv4Net| net.contains(&range.network()) || range.contains(&net.network());
    claimed.iter().find(|(net, _)| overlaps(net)).map(|(_, who)| who.clone())
}

/// A free /24. Each lab begins to look at its own place, so that labs made at one time rarely meet.
fn free_range(root: &Root, spec: &NodeSpec) -> Result<Ipv4Net> {
    let claimed = claimed(root, spec)?;
    let names = ObjectNames::new(root.path(), &spec.lab, &spec.node);
    let start = names.bridge_mac[5];
    let candidates =
        (0..=255u8).map(|i| Ipv4Net::new_assert(Ipv4Addr::new(10, 213, start.wrapping_add(i), 0), 24));
    candidates.into_iter().find(|range| conflict(&claimed, *range).is_none()).ok_or_else(|| {
        advise("no address range in 10.213.0.0/16 is free on this host", "name one with --subnet")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_that_contain_each_other_conflict() {
        let claimed = [(net("10.213.0.0/16"), "x".to_owned())];
        assert!(conflict(&claimed, net("10.213.4.0/24")).is_some());
        assert!(conflict(&claimed, net("10.0.0.0/8")).is_some());
        assert!(conflict(&claimed, net("10.214.0.0/16")).is_none());
    }

    #[test]
    fn the_bridge_has_the_first_address_endpoints_the_last_two_and_nodes_the_rest() {
        let lab = LabState::new(net("10.0.0.0/29"));
        let mut taken = BTreeSet::new();
        while let Some(address) = free_address(&lab, &taken) {
            taken.insert(address);
        }
        let all: Vec<u8> = taken.iter().map(|a| a.octets()[3]).collect();
        assert_eq!(all, [2, 3, 4]);
    }
}
