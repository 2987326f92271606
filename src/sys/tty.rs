//! Pseudo-terminals and the user's own terminal. pty(7), ioctl_tty(2), termios(3).
//!
//! What surprises people is that a pty belongs to the *devpts mount* whose `ptmx` was opened. One from the host's
//! `/dev/ptmx` has no name in another root directory: `tty` there says "not a tty", and su, gpg and less break. So the caller
//! names the ptmx, and the other end is had by TIOCGPTPEER, which takes no path that could be somebody else's by now.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic;
use std::path::Path;
use std::sync::{Mutex, Once};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, Mode, OFlags, fstat, fstatfs, major, minor, open};
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// Rows and columns of a terminal.
pub use rustix::termios::Winsize;

/// statfs(2)'s f_type of devpts.
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// The two ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    /// The end of the program that draws and types ("master" in older manuals). Does not block.
    pub controller: OwnedFd,
    /// The end that looks like a terminal.
    pub terminal: OwnedFd,
}

/// Makes a new pseudo-terminal in the devpts that `ptmx` lies on.
///
/// # Errors
/// Also when `ptmx` is not the multiplexer of a devpts: in a foreign root directory it may be anything.
pub fn open_pty(ptmx: &Path) -> Result<Pty> {
    let shown = ptmx.display();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let controller = open(ptmx, flags, Mode::empty()).with_context(|| format!("open {shown}"))?;
    let stat = fstat(&controller).with_context(|| format!("stat {shown}"))?;
    let kind = fstatfs(&controller).with_context(|| format!("statfs {shown}"))?.f_type;
    let is_multiplexer = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (5, 2)
        && kind as u64 == DEVPTS_SUPER_MAGIC;
    ensure!(is_multiplexer, "{shown} is not the ptmx of a devpts");
    unlockpt(&controller).with_context(|| format!("{shown}: ioctl(TIOCSPTLCK)"))?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal =
        ioctl_tiocgptpeer(&controller, peer).with_context(|| format!("{shown}: ioctl(TIOCGPTPEER)"))?;
    Ok(Pty { controller, terminal })
}

/// Begins a session with `terminal` as its controlling terminal, so that Ctrl-C there reaches the session.
pub fn begin_session(terminal: impl AsFd) -> Result<()> {
    setsid().context("setsid")?;
    ioctl_tiocsctty(terminal).context("ioctl(TIOCSCTTY)")
}

/// Size of a terminal.
pub fn window_size(terminal: impl AsFd) -> Result<Winsize> {
    tcgetwinsize(terminal).context("ioctl(TIOCGWINSZ)")
}

/// Sets the size of a terminal; its foreground process group gets SIGWINCH if it differs.
pub fn set_window_size(terminal: impl AsFd, size: Winsize) -> Result<()> {
    tcsetwinsize(terminal, size).context("ioctl(TIOCSWINSZ)")
}

/// The terminal to put back, of the one [`RawMode`] there is.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// A terminal that passes every byte through unchanged, Ctrl-C too, until this is dropped.
///
/// It is also put back when the program panics, because a build with `panic = "abort"` drops nothing. Signals
/// that would end the program are the caller's to block.
#[derive(Debug)]
#[must_use = "dropping it ends raw mode"]
pub struct RawMode(());

impl RawMode {
    /// Puts a terminal into raw mode. One at a time.
    pub fn enter(terminal: BorrowedFd<'_>) -> Result<RawMode> {
        let saved = tcgetattr(terminal).context("read the terminal's settings: tcgetattr")?;
        let handle = terminal.try_clone_to_owned().context("dup the terminal")?;
        HOOK.call_once(|| {
            let previous = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                previous(info);
            }));
        });
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().expect("no panic while it is held") = Some((handle, saved));
        // From here on Drop puts it back.
        let guard = RawMode(());
        tcsetattr(terminal, OptionalActions::Now, &raw).context("raw mode: tcsetattr")?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // try_lock: a panic hook may run anywhere and must not wait for itself.
    let Ok(mut saved) = SAVED.try_lock() else { return };
    if let Some((terminal, settings)) = saved.take() {
        // The only failure is a terminal that is gone, which needs no settings.
        let _ = tcsetattr(&terminal, OptionalActions::Now, &settings);
    }
}
