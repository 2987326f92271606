//! Labs from end to end: several real servers that follow one another, faults, and what they leave of the data. As in
//! `tests/node`, each test has a network, mounts and a root directory of its own.

#[allow(dead_code, reason = "it is that of all tests of nodes")]
#[path = "../node/harness.rs"]
mod harness;

mod access;
mod clone;
mod collation;
mod drive;
mod endpoint;
mod environment;
mod failover;
mod faults;
mod fence;
mod guard;
mod kept;
mod killed;
mod loss;
mod members;
mod mute;
mod orphans;
mod outage;
mod replica;
mod rules;
mod settings;
mod status;
mod stray;
mod torture;
mod up;
mod vain;
