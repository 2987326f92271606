//! Capability sets as the kernel shows them in `/proc/PID/status` of a child that became somebody else.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use pgbox::sys::capability::{self, CapabilitySet, Status};
use pgbox::sys::credentials::Credentials;
use rustix::process::{DumpableBehavior, Pid, dumpable_behavior};

const KEEP: CapabilitySet = CapabilitySet::CHOWN.union(CapabilitySet::SETUID).union(CapabilitySet::KILL);

/// What a program that `credentials` executed prints, and its privileges as the parent reads them meanwhile.
fn run(credentials: Credentials, script: &str) -> io::Result<(String, Status)> {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", &format!("{script}; echo done; read wait")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let assume = move || credentials.assume().map_err(|error| io::Error::other(format!("{error:#}")));
    // SAFETY: prctl, capset and set*id only.
    unsafe { command.pre_exec(assume) };
    let mut child = command.spawn()?;
    let mut said = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    // It has been executed, and is still there.
    while !said.ends_with("done\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte)?;
        said.push(byte[0] as char);
    }
    let status = capability::status(Pid::from_child(&child)).unwrap();
    drop(child.stdin.take());
    child.wait()?;
    Ok((said, status))
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
        assert!(std::env::var_os("PGBOX_REQUIRE_ROOT").is_none() && std::env::var_os("CI").is_none());
    }
    root
}

#[test]
fn root_keeps_what_is_named_and_an_execve_brings_nothing_back() {
    if !root() {
        return;
    }
    let credentials = Credentials { uid: 0, gid: 0, groups: vec![], keep: KEEP };
    let (_, status) = run(credentials, "true").unwrap();
    assert_eq!([status.permitted, status.effective, status.bounding], [KEEP; 3]);
    assert_eq!([status.inheritable, status.ambient], [CapabilitySet::empty(); 2]);
    assert!(status.no_new_privs && !status.filtered);
}

#[test]
fn an_ordinary_user_has_no_capability_and_only_its_own_groups() {
    if !root() {
        return;
    }
    let credentials = Credentials { uid: 4711, gid: 4712, groups: vec![4713, 4714], keep: KEEP };
    let (said, status) = run(credentials, "id -u; id -g; id -G; grep ^Uid: /proc/self/status").unwrap();
    assert_eq!(said, "4711\n4712\n4712 4713 4714\nUid:\t4711\t4711\t4711\t4711\ndone\n");
    assert_eq!([status.permitted, status.effective, status.ambient], [CapabilitySet::empty(); 3]);
    assert_eq!(status.bounding, KEEP);
}

/// Up to the execve it is a process with somebody else's memory. For another user the kernel sees to it, unless
/// fs.suid_dumpable says otherwise: so root is tried as well.
#[test]
fn nobody_looks_into_a_process_that_has_given_up_its_power() {
    if !root() {
        return;
    }
    for uid in [0, 4711] {
        let child = pgbox::sys::child::fork(|| {
            let credentials = Credentials { uid, gid: uid, groups: vec![], keep: KEEP };
            let assumed = credentials.assume().is_ok();
            i32::from(!assumed || dumpable_behavior().unwrap() != DumpableBehavior::NotDumpable)
        })
        .unwrap();
        let ended = nix::sys::wait::waitpid(child, None).unwrap();
        assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0), "uid {uid}");
    }
}

#[test]
fn minus_one_does_not_mean_stay_root() {
    if !root() {
        return;
    }
    let credentials = Credentials { uid: u32::MAX, gid: 0, groups: vec![], keep: KEEP };
    let error = run(credentials, "true").unwrap_err();
    // Errors of pre_exec come back as a number only; that the child did not start is what counts.
    assert_ne!(error.raw_os_error(), Some(0), "{error}");
}

#[test]
fn a_capability_that_is_not_held_is_named() {
    let held = capability::status(rustix::process::getpid()).unwrap().permitted;
    let unheld = CapabilitySet::from_bits_retain(1 << 62);
    assert!(!held.contains(unheld));
    let error = capability::set(unheld).unwrap_err();
    assert!(format!("{error:#}").contains("62"), "{error:#}");
}

#[test]
fn status_agrees_with_capget() {
    let sets = rustix::thread::capabilities(None).unwrap();
    let status = capability::status(rustix::thread::gettid()).unwrap();
    assert_eq!((status.permitted, status.effective), (sets.permitted, sets.effective));
}
