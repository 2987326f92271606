//! Writers that remember what a server has *acknowledged*: the witness for every claim that nothing was lost.
//!
//! `pgbox drive start` leaves one process behind, outside of all nodes. Each of its writers inserts rows with
//! increasing numbers into the table `pgbox_drive`, a commit at a time, and keeps a [`ledger`]: a row is noted as
//! sent before the commit is sent, and as acknowledged when the server has said so. `pgbox verify` reads the table
//! and compares ([`comparison`]).
//!
//! The rule that surprises people: a commit has three ends, not two. When the connection is lost, or the server
//! falls silent, nobody outside can know whether the commit happened. Such a row is *unknown*: it may be in the
//! table or not, and neither is a loss. Only an acknowledged row that is gone is one.

pub mod comparison;
pub mod fates;
pub mod gaps;
pub mod ledger;
pub mod place;
pub mod process;
pub mod report;
pub mod rows;
pub mod run;
pub mod session;
pub mod verify;
pub mod writer;

/// The table that the writers fill. One writer's numbers begin at 1 and have no holes.
pub const TABLE: &str = "public.pgbox_drive";

/// Makes the table, unless it is there.
pub const CREATE: &str = "CREATE TABLE IF NOT EXISTS public.pgbox_drive (writer int, seq bigint, \
                          at timestamptz DEFAULT now(), PRIMARY KEY (writer, seq))";
