//! What a primary had sent when it died, and what is still on its way to its standbys.
//!
//! The rule that surprises people: what a process has written to a socket is its kernel's, which goes on sending when the
//! process is stopped or killed. A standby whose own processes get no time reads it later. It may then have more than the
//! one that was promoted meanwhile, and can't follow that.

use std::time::{Duration, Instant};

use super::takeover;
use crate::{facts::node::Node, sql::Login};

/// One that is cut off never hears that the connection has ended.
const PATIENCE: Duration = Duration::from_millis(500);

/// Waits until these standbys of a server that is dead have read all that there is for them; then they have seen the end of
/// their connection. Who can't be asked is not waited for.
pub fn wait<'a>(standbys: impl IntoIterator<Item = &'a Node>) {
    let deadline = Instant::now() + PATIENCE;
    let asked = standbys.into_iter().filter(|node| node.can_answer());
    let mut reading: Vec<Login> = asked.filter_map(|node| node.login().ok()).collect();
    loop {
        reading.retain(|server| takeover::receives(server).is_ok_and(|receives| receives));
        if reading.is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
