//! Labs from end to end: several nodes, replication, and the faults that happen to them. As tests/node, with its
//! harness and its needs.

// Each test binary uses its part of it.
#[allow(dead_code)]
#[path = "../node/harness.rs"]
mod harness;

mod faults;
mod replica;
mod settings;
mod status;
