//! What a node may have left behind when nothing is remembered of it.

use ipnet::Ipv4Net;

use crate::{
    spec::{Name, ObjectNames},
    state::Root,
    step::HostStep,
};

/// The host steps of a node of which nothing is remembered, for their `undo` alone: that goes by names, which
/// follow from root, lab and node. Addresses and contents in them mean nothing. Volumes are not among them. The cgroup is last,
/// to be undone first: whoever is in it, a server perhaps, ends while others can still be told.
pub fn remains(root: &Root, lab: &Name, node: &Name) -> Vec<HostStep> {
    let names = ObjectNames::new(root.path(), lab, node);
    let nowhere = Ipv4Net::default();
    vec![
        HostStep::CreateBundle { dir: root.node(lab, node).path().to_owned(), files: Vec::new() },
        HostStep::CreateBridge {
            name: names.bridge.clone(),
            alias: names.bridge_alias.clone(),
            mac: names.bridge_mac,
            address: nowhere,
            own_netns: names.netns.clone(),
        },
        HostStep::CreateNetns { name: names.netns.clone() },
        HostStep::CreateVeth {
            name: names.veth.clone(),
            alias: names.veth_alias.clone(),
            bridge: names.bridge.clone(),
            netns: names.netns.clone(),
            mac: [0; 6],
            serves: true,
        },
        HostStep::CreateNat {
            table: names.nat_table,
            comment: names.bridge_alias,
            bridge: names.bridge,
            subnet: nowhere,
            own_netns: names.netns,
        },
        HostStep::PublishPorts {
            table: names.publish_table,
            comment: names.veth_alias,
            address: nowhere.addr(),
            publish: Vec::new(),
        },
        HostStep::AddHostName { file: root.hosts_file(lab), address: nowhere.addr(), name: node.to_string() },
        HostStep::CreateCgroup { path: names.cgroup, directories: Vec::new(), delegations: Vec::new() },
    ]
}
