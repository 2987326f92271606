//! Words for the user, on standard output and standard error. write(2), signal(7) SIGPIPE.
//!
//! The rule that surprises people: `println!` panics when its line can't be written, and a reader that goes away (`| head -1`)
//! ends a program by SIGPIPE. In the middle of a failover either would leave the lab by half. So what can't be said stops
//! nothing, and from its first lock on (`state::Lock`) no reader stops a command.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
    sync::atomic::{AtomicBool, Ordering},
};

/// Something was to be said on standard output, and could not.
static LOST: AtomicBool = AtomicBool::new(false);

/// Whether standard output lacks something, for want of space and not of a reader: it has been said on standard error.
pub fn is_output_lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// Writes to standard output, at once: somebody may wait for it in a pipe.
pub fn output(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) else { return };
    if error.kind() != ErrorKind::BrokenPipe && !LOST.swap(true, Ordering::Relaxed) {
        errors(format_args!("warning: standard output can't be written: {error}\n"));
    }
}

/// Writes to standard error. Where that is gone, nobody can be told.
pub fn errors(text: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

/// `print!`, and nothing happens when that fails.
macro_rules! out {
    ($($arg:tt)*) => { $crate::cmd::say::output(format_args!($($arg)*)) };
}

/// `println!`, and nothing happens when that fails.
macro_rules! outln {
    ($($arg:tt)*) => { $crate::cmd::say::output(format_args!("{}\n", format_args!($($arg)*))) };
}

/// `eprintln!`, and nothing happens when that fails.
macro_rules! errln {
    ($($arg:tt)*) => { $crate::cmd::say::errors(format_args!("{}\n", format_args!($($arg)*))) };
}
