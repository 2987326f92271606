//! Names of labs and nodes, and the names of the kernel objects that belong to them.
//!
//! An interface name has at most 15 bytes (IFNAMSIZ, netdevice(7)), while a lab or node name may have 40.
//! Readable names are used where they fit, and a hash of the full identity where they don't.

use std::{
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Where pgbox keeps its files unless told otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/pgbox";
/// The lab that is meant when none is named.
pub const DEFAULT_LAB: &str = "default";

const IFNAME_MAX: usize = 15;

/// The name of a lab or a node: `[a-z0-9][a-z0-9_-]*`, at most 40 characters. A node's name is also its
/// host name, which is why upper case is out: DNS does not tell it from lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    pub const MAX: usize = 40;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if text.is_empty() {
            return Err("a name can't be empty".into());
        }
        if text.len() > Self::MAX {
            return Err(format!("`{text}` has {} characters; a name may have {}", text.len(), Self::MAX));
        }
        if !text.chars().all(allowed) || text.starts_with(['-', '_']) {
            return Err(format!(
                "`{text}` is not a name: use lower-case letters, digits, `-` and `_`, and begin with a letter or digit"
            ));
        }
        if text == "localhost" {
            return Err(
                "`localhost` has a meaning of its own in every /etc/hosts; choose another name".into()
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<Path> for Name {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// The names of a lab's own kernel objects. The first of its nodes makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabNames {
    pub bridge: String,
    pub bridge_mac: [u8; 6],
    /// The label that the bridge and the tables carry.
    pub alias: String,
    pub nat_table: String,
    pub endpoint_table: String,
}

impl LabNames {
    pub fn new(root: &Path, lab: &Name) -> Self {
        let scope = scope(root);
        let id = digest(&[&root.to_string_lossy(), lab.as_str()]);
        let nat_table = format!("pgbox{scope}.{lab}");
        Self {
            bridge: interface("pgb-", lab, root == Path::new(DEFAULT_ROOT), &id),
            // Unicast and locally administered (IEEE 802: bit 1 of the first byte set, bit 0 clear).
            bridge_mac: [0x02, id[8], id[9], id[10], id[11], id[12]],
            alias: format!("pgbox{scope} {lab}"),
            endpoint_table: endpoint_table(&nat_table),
            nat_table,
        }
    }
}

/// The table of a lab's endpoints, from the name of its NAT table. No node can be called so.
pub fn endpoint_table(nat_table: &str) -> String {
    format!("{nat_table}/endpoint")
}

/// What tells the names of two roots apart; nothing for the default one.
fn scope(root: &Path) -> String {
    match root == Path::new(DEFAULT_ROOT) {
        true => String::new(),
        false => format!("-{}", hex(&digest(&[&root.to_string_lossy()])[..3])),
    }
}

/// The names of one node's kernel objects. Two state roots on one machine may both have a node
/// `default/primary`: any root but the default one is hashed into every name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectNames {
    pub bridge: String,
    pub bridge_mac: [u8; 6],
    pub veth: String,
    pub netns: String,
    /// The nf_tables table of the lab, and that of the node's published ports.
    pub nat_table: String,
    pub publish_table: String,
    /// The nf_tables table, of family `bridge`, of the faults between the lab's nodes.
    pub fault_table: String,
    /// Path of the cgroup below the cgroup mount, as one relative path.
    pub cgroup: PathBuf,
    /// The label that interfaces carry, so that a node's objects can be told from anybody else's.
    pub bridge_alias: String,
    pub veth_alias: String,
}

impl ObjectNames {
    pub fn new(root: &Path, lab: &Name, node: &Name) -> Self {
        let scope = scope(root);
        let of_lab = LabNames::new(root, lab);
        let node_id = digest(&[&root.to_string_lossy(), lab.as_str(), node.as_str()]);
        let in_default_lab = root == Path::new(DEFAULT_ROOT) && lab.as_str() == DEFAULT_LAB;
        Self {
            bridge: of_lab.bridge,
            bridge_mac: of_lab.bridge_mac,
            veth: interface("pgv-", node, in_default_lab, &node_id),
            netns: format!("pgbox{scope}.{lab}.{node}"),
            nat_table: of_lab.nat_table,
            publish_table: format!("pgbox{scope}.{lab}.{node}"),
            fault_table: format!("pgbox{scope}.{lab}"),
            cgroup: format!("pgbox{scope}/{lab}/{node}").into(),
            bridge_alias: of_lab.alias,
            veth_alias: format!("pgbox{scope} {lab}/{node}"),
        }
    }
}

fn interface(prefix: &str, name: &Name, unique: bool, id: &[u8; 32]) -> String {
    let readable = format!("{prefix}{name}");
    if unique && readable.len() <= IFNAME_MAX { readable } else { format!("{prefix}{}", hex(&id[..4])) }
}

/// The MAC address of the node that has this IP address: locally administered, and the same for every node that ever
/// has it. With another one, whoever remembers the last node there (arp(7)) talks to nobody for up to 25 s.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        assert!("".parse::<Name>().unwrap_err().contains("empty"));
        assert!("x".repeat(41).parse::<Name>().unwrap_err().contains("41 characters"));
        for bad in ["-a", "_a", "A", "a b", "a/b", "ä", "a.b", ".."] {
            assert!(bad.parse::<Name>().unwrap_err().contains(bad));
        }
    }

    #[test]
    fn the_everyday_node_has_readable_names() {
        let n = ObjectNames::new(Path::new(DEFAULT_ROOT), &name("default"), &name("primary"));
        assert_eq!((n.bridge.as_str(), n.veth.as_str()), ("pgb-default", "pgv-primary"));
        assert_eq!(n.netns, "pgbox.default.primary");
        assert_eq!(n.cgroup, Path::new("pgbox/default/primary"));
    }

    #[test]
    fn another_root_shares_no_name() {
        let here = ObjectNames::new(Path::new(DEFAULT_ROOT), &name("default"), &name("primary"));
        let there = ObjectNames::new(Path::new("/tmp/x"), &name("default"), &name("primary"));
        for (a, b) in [(&here.bridge, &there.bridge), (&here.veth, &there.veth), (&here.netns, &there.netns)]
        {
            assert_ne!(a, b);
        }
        assert_ne!(here.cgroup, there.cgroup);
        assert_ne!(here.bridge_mac, there.bridge_mac);
    }

    proptest! {
        #[test]
        fn interface_names_fit(lab in "[a-z0-9][a-z0-9_-]{0,39}", node in "[a-z0-9][a-z0-9_-]{0,39}", root in "/[a-z]{1,9}") {
            for root in [DEFAULT_ROOT, &root] {
                let n = ObjectNames::new(Path::new(root), &name(&lab), &name(&node));
                prop_assert!(n.bridge.len() <= IFNAME_MAX && n.veth.len() <= IFNAME_MAX);
                prop_assert_eq!(n.bridge_mac[0] & 3, 2);
            }
        }

        #[test]
        fn a_dash_in_a_name_can_not_make_two_nodes_one(a in "[a-z]{1,3}", b in "[a-z]{1,3}", c in "[a-z]{1,3}") {
            let root = Path::new(DEFAULT_ROOT);
            let one = ObjectNames::new(root, &name(&format!("{a}-{b}")), &name(&c));
            let two = ObjectNames::new(root, &name(&a), &name(&format!("{b}-{c}")));
            prop_assert_ne!(one.netns, two.netns);
        }
    }
}
