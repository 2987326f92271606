//! What nodes are to each other in a lab. Pure.

pub mod fault;
pub mod file;
pub mod wanted;
