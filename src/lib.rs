//! pgbox turns an OCI image into running Postgres servers with nothing but Linux primitives, and
//! explains every step it takes.
//!
//! # The idea: three short ordered lists
//!
//! Everything pgbox does to a machine is a list of steps, decided in [`plan`] before the first one runs:
//!
//! * **host steps** ([`step::host`]) on the host: bundle, volume, network namespace, cgroup, and while pid 1 is at
//!   work already bridge, veth, address, NAT table. Each has an `undo`; undoing them in reverse order is roll-back, `rm` and
//!   crash recovery.
//! * **inner steps** ([`step::inner`]) inside the new namespaces, before the payload starts: mounts,
//!   overlay, volumes, /proc, /dev, /sys, hostname, pivot_root. The kernel takes them back when pid 1 ends.
//! * **after steps** ([`step::after`]) over the network once the server is up: wait until it answers, and a
//!   standby until it streams. There is nothing to take back.
//!
//! `run`, `start`, `--dry-run`, `--explain`, `rm`, roll-back and recovery all read the same lists.
//!
//! # Floors
//!
//! ```text
//! 6  main                       parse, dispatch, print error + hint, exit code
//! 5  cmd                        one file a subcommand
//! 4  engine spawn init enter show facts drive guard
//! 3  plan                       the only place that knows the order of things
//! 2  step hint state sql
//! 1  spec image postgres lab
//! 0  sys                        nix, rustix, libc, rtnetlink, nf_tables, cgroups; the only `unsafe`
//! ```
//!
//! Imports go downward (`tests/tidy.rs` checks it). `sys` can, but knows nothing: no word of containers,
//! images or Postgres. `plan` knows, but touches nothing. `engine` touches, and decides only what nobody can know
//! before: who has what when a primary fails.

pub mod cli;
pub mod cmd;
pub mod drive;
pub mod engine;
pub mod enter;
pub mod facts;
pub mod guard;
pub mod hint;
pub mod image;
pub mod init;
pub mod lab;
pub mod plan;
pub mod postgres;
pub mod show;
pub mod spawn;
pub mod spec;
pub mod sql;
pub mod state;
pub mod step;
pub mod sys;
