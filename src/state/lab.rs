//! What is remembered of a lab: its addresses, and whom its commits wait for.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::VERSION;
use crate::spec::{Name, Publish, SyncRule};

/// A lab, as remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabState {
    pub version: u32,
    pub subnet: Ipv4Net,
    /// Whom commits wait for, as the user wants it.
    #[serde(default)]
    pub sync: Option<SyncRule>,
    /// Ports of this host that lead to the endpoints.
    #[serde(default)]
    pub publish: PublishedEndpoints,
    /// Where the endpoints lead, as it was decided last.
    #[serde(default)]
    pub leads: Leads,
}

/// Where a lab's endpoints lead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leads {
    /// The head of the cluster that is meant, also while it does not run.
    pub head: Option<Name>,
    pub rw: Option<Name>,
    /// Without any, reads go where writes go.
    pub ro: Vec<Name>,
}

/// What leads to a lab's endpoints besides their own addresses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PublishedEndpoints {
    pub rw: Vec<Publish>,
    pub ro: Vec<Publish>,
}

/// One of the two stable addresses of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// It leads to the primary.
    Rw,
    /// It leads to the standbys in turn, or to the primary if there is none.
    Ro,
}

impl LabState {
    pub fn new(subnet: Ipv4Net) -> Self {
        Self {
            version: VERSION,
            subnet,
            sync: None,
            publish: PublishedEndpoints::default(),
            leads: Leads::default(),
        }
    }

    /// The bridge's own address: the first one.
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.hosts().next().unwrap_or(self.subnet.network())
    }

    /// The last two addresses are those of the endpoints, and never a node's.
    pub fn endpoint(&self, which: Endpoint) -> Ipv4Addr {
        let last = self.subnet.broadcast().to_bits() - 1;
        Ipv4Addr::from_bits(match which {
            Endpoint::Rw => last - 1,
            Endpoint::Ro => last,
        })
    }

    /// The nodes that an endpoint leads to; without any it refuses connections.
    pub fn led(&self, which: Endpoint) -> &[Name] {
        match which {
            Endpoint::Ro if !self.leads.ro.is_empty() => &self.leads.ro,
            _ => self.leads.rw.as_slice(),
        }
    }

    pub fn published(&self, which: Endpoint) -> &[Publish] {
        match which {
            Endpoint::Rw => &self.publish.rw,
            Endpoint::Ro => &self.publish.ro,
        }
    }
}

impl Endpoint {
    pub const BOTH: [Endpoint; 2] = [Endpoint::Rw, Endpoint::Ro];

    pub fn word(self) -> &'static str {
        match self {
            Self::Rw => "rw",
            Self::Ro => "ro",
        }
    }

    /// libpq's `target_session_attrs` for a connection string with every host in it.
    pub fn session_attrs(self) -> &'static str {
        match self {
            Self::Rw => "read-write",
            Self::Ro => "prefer-standby",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_the_last_two_hosts() {
        let lab = LabState::new("10.0.0.0/29".parse().unwrap());
        assert_eq!(Endpoint::BOTH.map(|which| lab.endpoint(which).octets()[3]), [5, 6]);
        let lab = LabState::new("10.0.0.0/16".parse().unwrap());
        assert_eq!(lab.endpoint(Endpoint::Ro), Ipv4Addr::new(10, 0, 255, 254));
    }

    #[test]
    fn a_lab_that_was_remembered_without_endpoints_is_read() {
        let old: LabState = serde_json::from_str(r#"{"version": 1, "subnet": "10.0.0.0/24"}"#).unwrap();
        assert_eq!(old.publish, PublishedEndpoints::default());
    }
}
