//! Compiles `src/sys/seccomp.json` to BPF, so that starting a program compiles nothing: runc spends 24 ms of
//! CPU on it each time. seccomp(2), and `include!`d by `src/sys/seccomp.rs`.
//!
//! The profile has the form that `docker run --security-opt seccomp=FILE` takes, and one rule of its own: a
//! call that the profile names but does not permit is EPERM, a call that it does not name is ENOSYS, as if
//! the kernel were older. C libraries fall back on ENOSYS only.
//!
//! Which calls are permitted depends on the capabilities that the program keeps, which are known when it
//! starts. seccompiler writes every call as a block of instructions that jumps only within itself, so
//! the output here is blocks in groups, one group for each set of capabilities, and loading puts the groups one
//! after the other between a common head and tail.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::str::FromStr;
use std::{env, fs};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use serde::Deserialize;

const PROFILE: &str = "src/sys/seccomp.json";
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: u32,
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    #[serde(default, rename = "comment")]
    _comment: String,
    names: Vec<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Argument>,
    #[serde(default)]
    includes: Includes,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Includes {
    caps: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u8,
    op: String,
    value: u32,
    #[serde(default)]
    value_two: u32,
}

/// What happens to a call when no capability speaks for it.
enum Verdict {
    Allow,
    AllowIf(Vec<SeccompRule>),
    Errno(u32),
}

/// One system call: its verdict, and the capabilities any of which permits it altogether.
#[derive(Default)]
struct Call {
    verdict: Option<Verdict>,
    caps: BTreeSet<String>,
}

fn main() {
    println!("cargo:rerun-if-changed={PROFILE}");
    println!("cargo:rerun-if-changed=build.rs");
    let text = fs::read_to_string(PROFILE).expect("read the seccomp profile");
    let profile: Profile = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{PROFILE}: {e}"));
    assert_eq!(
        (profile.default_action.as_str(), profile.default_errno_ret),
        ("SCMP_ACT_ERRNO", ENOSYS),
        "{PROFILE}"
    );

    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    let code = compile(&profile, &arch);
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("seccomp.rs");
    fs::write(&out, code).unwrap_or_else(|e| panic!("write {}: {e}", out.display()));
}

/// The Rust text of `HEAD`, `GROUPS` and `TAIL` for one architecture.
fn compile(profile: &Profile, arch: &str) -> String {
    let target = TargetArch::try_from(arch).unwrap_or_else(|e| panic!("no seccomp for {arch}: {e}"));
    let (head, tail) = frame(target);
    let mut groups: BTreeMap<BTreeSet<String>, BTreeMap<i64, Verdict>> = BTreeMap::new();
    for (name, call) in calls(profile) {
        let Some(number) = number(&name, arch) else { continue };
        let verdict = call.verdict.unwrap_or(Verdict::Errno(EPERM));
        groups.entry(call.caps).or_default().insert(number, verdict);
    }

    let mut text = String::new();
    writeln!(text, "static HEAD: &[sock_filter] = {};", array(&head)).unwrap();
    writeln!(text, "static TAIL: &[sock_filter] = {};", array(&tail)).unwrap();
    writeln!(text, "static GROUPS: &[Group] = &[").unwrap();
    for (caps, calls) in groups {
        let all = calls.keys().map(|number| (*number, Vec::new())).collect();
        let held = if caps.is_empty() { Vec::new() } else { blocks(target, all, SeccompAction::Allow) };
        let missing = verdicts(target, calls);
        let set: Vec<_> = caps.iter().map(|cap| format!("CapabilitySet::{}", &cap[4..])).collect();
        let any =
            set.iter().fold("CapabilitySet::empty()".to_string(), |sum, one| format!("{sum}.union({one})"));
        writeln!(text, "Group {{ any: {any}, held: {}, missing: {} }},", array(&held), array(&missing))
            .unwrap();
    }
    writeln!(text, "];").unwrap();
    text
}

/// Collects what all entries say about each call.
fn calls(profile: &Profile) -> BTreeMap<String, Call> {
    let mut calls: BTreeMap<String, Call> = BTreeMap::new();
    for entry in &profile.syscalls {
        for name in &entry.names {
            let call = calls.entry(name.clone()).or_default();
            match (entry.action.as_str(), entry.includes.caps.as_slice(), entry.errno_ret) {
                ("SCMP_ACT_ERRNO", [], Some(errno)) if call.verdict.is_none() => {
                    call.verdict = Some(Verdict::Errno(errno));
                }
                ("SCMP_ACT_ALLOW", [], None) => call.allow(name, rule(&entry.args)),
                ("SCMP_ACT_ALLOW", [cap], None) if entry.args.is_empty() => {
                    assert!(cap.starts_with("CAP_"), "{PROFILE}: {cap}");
                    call.caps.insert(cap.clone());
                }
                _ => panic!("{PROFILE}: the entries for {name} contradict one another or are not understood"),
            }
        }
    }
    calls
}

impl Call {
    fn allow(&mut self, name: &str, rule: Option<SeccompRule>) {
        match (&mut self.verdict, rule) {
            (verdict @ None, None) => *verdict = Some(Verdict::Allow),
            (verdict @ None, Some(rule)) => *verdict = Some(Verdict::AllowIf(vec![rule])),
            (Some(Verdict::AllowIf(rules)), Some(rule)) => rules.push(rule),
            _ => panic!("{PROFILE}: {name} is listed twice"),
        }
    }
}

/// The conditions of one entry, all of which must hold.
///
/// Compared are the low 32 bits, because that is what the kernel looks at in all four calls that have
/// conditions; a 64-bit comparison could be dodged by setting a high bit (CVE-2019-7303).
fn rule(args: &[Argument]) -> Option<SeccompRule> {
    let conditions: Vec<_> = args
        .iter()
        .map(|arg| {
            let (op, value) = match arg.op.as_str() {
                "SCMP_CMP_NE" => (SeccompCmpOp::Ne, arg.value),
                "SCMP_CMP_LT" => (SeccompCmpOp::Lt, arg.value),
                "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, arg.value),
                "SCMP_CMP_GT" => (SeccompCmpOp::Gt, arg.value),
                // libseccomp's order: first the mask, then what must be left of the argument.
                "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(arg.value.into()), arg.value_two),
                other => panic!("{PROFILE}: no comparison {other}"),
            };
            SeccompCondition::new(arg.index, SeccompCmpArgLen::Dword, op, value.into())
                .expect("argument index")
        })
        .collect();
    (!conditions.is_empty()).then(|| SeccompRule::new(conditions).expect("at least one condition"))
}

/// The number of a call, or `None` where this architecture has no such call (`open` on aarch64).
fn number(name: &str, arch: &str) -> Option<i64> {
    let x86_64 = syscalls::x86_64::Sysno::from_str(name).ok().map(|call| i64::from(call.id()));
    let aarch64 = syscalls::aarch64::Sysno::from_str(name).ok().map(|call| i64::from(call.id()));
    assert!(x86_64.or(aarch64).is_some(), "{PROFILE}: no system call {name} on any architecture");
    match arch {
        "x86_64" => x86_64,
        "aarch64" => aarch64,
        other => panic!("no system call table for {other}"),
    }
}

/// The blocks of a group for when its capabilities are missing.
fn verdicts(target: TargetArch, calls: BTreeMap<i64, Verdict>) -> Vec<sock_filter> {
    let mut allowed = BTreeMap::new();
    let mut refused: BTreeMap<u32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
    for (number, verdict) in calls {
        match verdict {
            Verdict::Allow => drop(allowed.insert(number, Vec::new())),
            Verdict::AllowIf(rules) => drop(allowed.insert(number, rules)),
            Verdict::Errno(errno) => drop(refused.entry(errno).or_default().insert(number, Vec::new())),
        }
    }
    let mut code = blocks(target, allowed, SeccompAction::Allow);
    for (errno, calls) in refused {
        code.extend(blocks(target, calls, SeccompAction::Errno(errno)));
    }
    code
}

/// One block a call, without head and tail. A call whose conditions do not hold is EPERM.
fn blocks(
    target: TargetArch,
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    action: SeccompAction,
) -> Vec<sock_filter> {
    if calls.is_empty() {
        return Vec::new();
    }
    let otherwise = SeccompAction::Errno(if action == SeccompAction::Errno(EPERM) { ENOSYS } else { EPERM });
    let program = program(target, calls, otherwise, action);
    let (head, tail) = frame(target);
    assert!(program.starts_with(&head), "seccompiler changed the head of its programs");
    program[head.len()..program.len() - tail.len()].to_vec()
}

/// What stands before the first block (kill on a foreign architecture, load the call's number) and after
/// the last one (ENOSYS).
fn frame(target: TargetArch) -> (Vec<sock_filter>, Vec<sock_filter>) {
    const BLOCK: usize = 5;
    let one = BTreeMap::from([(0, Vec::new())]);
    let program = program(target, one, SeccompAction::Errno(ENOSYS), SeccompAction::Allow);
    let (rest, tail) = program.split_at(program.len() - 1);
    (rest[..rest.len() - BLOCK].to_vec(), tail.to_vec())
}

fn program(
    target: TargetArch,
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> BpfProgram {
    SeccompFilter::new(calls, otherwise, action, target)
        .and_then(BpfProgram::try_from)
        .unwrap_or_else(|e| panic!("{PROFILE}: {e}"))
}

fn array(code: &[sock_filter]) -> String {
    let items: String =
        code.iter().map(|i| format!("instruction({},{},{},{}),", i.code, i.jt, i.jf, i.k)).collect();
    format!("&[{items}]")
}
