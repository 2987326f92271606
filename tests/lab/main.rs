//! Labs of several nodes: real servers that follow one another, fail, and come back.

#[path = "../node/harness.rs"]
#[allow(dead_code)]
mod harness;

mod replica;
