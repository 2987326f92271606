//! A hand-made terminal with a person in front of it.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use pgbox::enter::{EnterRequest, Target};
use pgbox::sys::tty::{self, Pty, Winsize};
use rustix::termios::{LocalModes, tcgetattr};

use crate::container::{Entered, again};

/// A host terminal in which `enter` runs as the session's first process.
pub struct Terminal {
    person: std::fs::File,
    screen: OwnedFd,
    seen: String,
    pub entered: Entered,
}

impl Terminal {
    pub fn run(target: &Target, request: &EnterRequest, rows: u16, columns: u16) -> Terminal {
        let Pty { controller, terminal } = tty::open_pty(Path::new("/dev/pts/ptmx")).unwrap();
        tty::set_window_size(&controller, size(rows, columns)).unwrap();
        let stdio = [again(&terminal), again(&terminal), again(&terminal)];
        let own = again(&terminal);
        let entered = Entered::start(target, request, stdio, || tty::begin_session(own).unwrap());
        Terminal { person: controller.into(), screen: terminal, seen: String::new(), entered }
    }

    pub fn send(&self, keys: &str) {
        nix::unistd::write(&self.person, keys.as_bytes()).unwrap();
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        tty::set_window_size(&self.person, size(rows, columns)).unwrap();
    }

    /// Reads until `text` has come, and forgets everything up to there.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis() as u16;
            assert!(left > 0, "no {text:?} in {:?}", self.seen);
            let mut ready = [PollFd::new(self.person.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, left).unwrap() > 0 {
                let mut buffer = [0; 4096];
                let count = self.person.read(&mut buffer).unwrap();
                self.seen += &String::from_utf8_lossy(&buffer[..count]);
            }
        }
        let at = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..at);
    }

    /// Whether the host's terminal still edits lines and turns Ctrl-C into a signal.
    pub fn is_cooked(&self) -> bool {
        tcgetattr(&self.screen)
            .unwrap()
            .local_modes
            .contains(LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO)
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
