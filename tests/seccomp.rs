//! The system call filter as the kernel applies it, in child processes of this test.
//!
//! No call that is to be refused names a real object: if the filter let it through it would fail on its arguments, with
//! another error than the one that is expected.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use pgbox::sys::capability::{self, CapabilitySet};
use pgbox::sys::seccomp;

/// Runs `body` in a forked child under the filter and returns its exit code.
fn filtered(kept: CapabilitySet, body: fn() -> i32) -> i32 {
    let program = seccomp::program(kept);
    // SAFETY: glibc's fork leaves malloc usable; the child ends by _exit.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let loaded = capability::no_new_privs().and_then(|()| seccomp::load(&program));
            let code = if loaded.is_ok() { body() } else { 250 };
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        },
    }
}

/// The errno of a raw call, 0 if it succeeded.
fn errno(rc: libc::c_long) -> i32 {
    if rc >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap() }
}

fn mount() -> i32 {
    let nowhere = c"/nonexistent/pgbox-test".as_ptr();
    errno(unsafe { libc::syscall(libc::SYS_mount, nowhere, nowhere, nowhere, 0, 0) })
}

#[test]
fn mount_is_eperm_without_sys_admin() {
    assert_eq!(filtered(CapabilitySet::CHOWN, mount), libc::EPERM);
}

#[test]
fn mount_reaches_the_kernel_with_sys_admin() {
    // ENOENT for root, EPERM from mount(2) itself for others: then this says nothing.
    if !nix::unistd::geteuid().is_root() {
        return skipped("mount_reaches_the_kernel_with_sys_admin");
    }
    assert_eq!(filtered(CapabilitySet::SYS_ADMIN, mount), libc::ENOENT);
}

#[test]
fn unshare_and_setns_are_eperm() {
    // unshare(0) does nothing and succeeds for everybody; setns(-1) is EBADF.
    assert_eq!(
        filtered(CapabilitySet::empty(), || errno(unsafe { libc::syscall(libc::SYS_unshare, 0) })),
        libc::EPERM
    );
    assert_eq!(
        filtered(CapabilitySet::empty(), || errno(unsafe { libc::syscall(libc::SYS_setns, -1, 0) })),
        libc::EPERM
    );
}

#[test]
fn a_new_user_namespace_by_clone_is_eperm() {
    let clone = || {
        let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        if pid == 0 {
            unsafe { libc::_exit(0) }
        }
        errno(pid)
    };
    assert_eq!(filtered(CapabilitySet::empty(), clone), libc::EPERM);
}

#[test]
fn clone3_is_enosys_and_threads_work_all_the_same() {
    // A null pointer is EFAULT or EINVAL to the kernel.
    let clone3 = || errno(unsafe { libc::syscall(libc::SYS_clone3, 0, 0) });
    assert_eq!(filtered(CapabilitySet::empty(), clone3), libc::ENOSYS);
    assert_eq!(filtered(CapabilitySet::empty(), || std::thread::spawn(|| 42).join().unwrap()), 42);
}

#[test]
fn a_call_from_the_future_is_enosys() {
    assert_eq!(filtered(CapabilitySet::empty(), || errno(unsafe { libc::syscall(4000) })), libc::ENOSYS);
}

#[test]
fn typing_into_a_terminal_is_eperm() {
    // ENOTTY or EBADF to the kernel.
    let tiocsti = || errno(unsafe { libc::syscall(libc::SYS_ioctl, -1, libc::TIOCSTI, c"x".as_ptr()) });
    assert_eq!(filtered(CapabilitySet::empty(), tiocsti), libc::EPERM);
}

/// Runs an ordinary program under the filter; `None` if it is not installed.
fn output(argv: &[&str]) -> Option<Output> {
    let program = seccomp::program(CapabilitySet::empty());
    let load = move || {
        let loaded = capability::no_new_privs().and_then(|()| seccomp::load(&program));
        loaded.map_err(|error| io::Error::other(format!("{error:#}")))
    };
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]);
    // SAFETY: prctl and seccomp only.
    unsafe { command.pre_exec(load) };
    match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some(result.unwrap()),
    }
}

fn assert_runs(argv: &[&str], expected: &str) {
    let Some(output) = output(argv) else { return eprintln!("SKIPPED: no {}", argv[0]) };
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains(expected), "{argv:?}: {output:?}");
}

#[test]
fn ordinary_programs_run() {
    let status = "cat /proc/self/status | grep ^Seccomp: && ls -l / >/dev/null && sleep 0.01 && date";
    assert_runs(&["bash", "-c", status], "Seccomp:\t2");
    assert_runs(&["psql", "--version"], "PostgreSQL");
    assert_runs(&["postgres", "--version"], "PostgreSQL");
    let threads = "import threading, socket, tempfile, subprocess\n\
                   t = [threading.Thread(target=lambda: None) for _ in range(8)]\n\
                   [x.start() for x in t]; [x.join() for x in t]\n\
                   socket.socket(); tempfile.TemporaryFile(); subprocess.run(['true'], check=True); print('fine')";
    assert_runs(&["python3", "-c", threads], "fine");
}

fn skipped(test: &str) {
    eprintln!("SKIPPED: {test} needs root");
    assert!(std::env::var_os("PGBOX_REQUIRE_ROOT").is_none() && std::env::var_os("CI").is_none());
}
