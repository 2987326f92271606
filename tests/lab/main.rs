//! Labs from end to end: several real servers that follow one another, faults, and what they leave of the data. As in
//! `tests/node`, each test has a network, mounts and a root directory of its own.

#[allow(dead_code, reason = "it is that of all tests of nodes")]
#[path = "../node/harness.rs"]
mod harness;

mod drive;
mod endpoint;
mod failover;
mod faults;
mod replica;
mod settings;
mod status;
