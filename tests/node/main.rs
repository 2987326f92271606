//! Nodes from end to end: the real binary, real kernel objects, real Postgres, real SQL through published
//! addresses. Each test has a network and a mount namespace of its own, and its own root directory, so that
//! tests run side by side and the machine's own network is never touched.
//!
//! Needs root and a store with the images `postgres:15` and `tiny` (`scripts/test` makes it and names it in
//! PGBOX_TEST_STORE).

mod bad_input;
mod by_hand;
mod command;
mod contract;
mod crash;
mod disk;
mod harness;
mod image;
mod interrupt;
mod life;
mod limits;
mod lost;
mod network;
mod password;
mod roll_back;
mod terminal;
mod together;
mod volumes;
