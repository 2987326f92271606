//! Parses the command line, dispatches, prints errors with their way out, and turns them into exit codes.

use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal, signal};
use pgbox::{cli, cmd, enter::NotStarted, show};

fn main() -> ExitCode {
    // Rust ignores SIGPIPE, so `pgbox ps | head` would panic on a closed pipe.
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    match cmd::dispatch(cli::parse()) {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            show::error::print(&error);
            ExitCode::from(error.downcast_ref::<NotStarted>().map_or(1, |not_started| not_started.code as u8))
        }
    }
}
