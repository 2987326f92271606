//! What nodes are to each other in a lab. Pure.

pub mod fault;
