//! Turns `src/sys/seccomp.json` into tables that `src/sys/seccomp.rs` includes, so that no JSON and no table of names is
//! left at run time (runc spends 24 ms of CPU on them at each start). seccomp(2).
//!
//! The profile has the form that `docker run --security-opt seccomp=FILE` takes, and one rule of its own: a
//! call that the profile names but does not permit is EPERM, a call that it does not name is ENOSYS, as if
//! the kernel were older. C libraries fall back on ENOSYS only.
//!
//! Which calls are permitted depends on the capabilities that the program keeps, and those are known when it starts. So
//! a table here says for each call which capabilities open it, and what else happens: a verdict, in instructions.
//!
//! And it tells the linker where the program begins (`src/sys/entry.rs`), and which functions belong side by side
//! (`src/order.ld`, by `scripts/order`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::str::FromStr;
use std::{env, fs};

use serde::Deserialize;

const PROFILE: &str = "src/sys/seccomp.json";
const ORDER: &str = "src/order.ld";
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

// <linux/seccomp.h>, <linux/bpf_common.h>
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// A `struct sock_filter`: code, jump if true, jump if false, k.
type Instruction = (u16, u8, u8, u32);

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

/// One system call: what happens to it, and the capabilities any of which permits it altogether.
#[derive(Default)]
struct Call {
    verdict: Option<Verdict>,
    caps: BTreeSet<String>,
}

/// What happens to a call when no capability speaks for it.
enum Verdict {
    Allow,
    /// Allowed if one of these holds; of each, all conditions must.
    AllowIf(Vec<Vec<Instruction>>),
    Errno(u32),
}

fn main() {
    println!("cargo:rerun-if-changed={PROFILE}");
    println!("cargo:rerun-if-changed=build.rs");
    let text = fs::read_to_string(PROFILE).expect("read the seccomp profile");
    let profile: Profile = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{PROFILE}: {e}"));
    let default = (profile.default_action.as_str(), profile.default_errno_ret);
    assert_eq!(default, ("SCMP_ACT_ERRNO", ENOSYS), "{PROFILE}");

    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    let code = tables(&profile, &arch);
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("seccomp.rs");
    fs::write(&out, code).unwrap_or_else(|e| panic!("write {}: {e}", out.display()));
    if arch == "x86_64" {
        link(&env::var("PROFILE").expect("cargo sets the profile"));
    }
}

fn link(profile: &str) {
    println!("cargo:rustc-link-arg-bin=pgbox=-Wl,--entry=pgbox_entry");
    println!("cargo:rerun-if-changed={ORDER}");
    // lld, which rustc brings along, and GNU ld read such a script; mold and gold do not.
    println!("cargo:rerun-if-env-changed=PGBOX_ORDER");
    let is_mold = env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("mold"));
    let is_wanted = env::var("PGBOX_ORDER").as_deref() != Ok("no");
    if profile == "release" && is_wanted && !is_mold {
        let order = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join(ORDER);
        println!("cargo:rustc-link-arg-bin=pgbox=-Wl,-T,{}", order.display());
    }
}

/// The Rust text of `AUDIT_ARCH`, `VERDICTS` and `CALLS` for one architecture.
fn tables(profile: &Profile, arch: &str) -> String {
    let audit_arch = match arch {
        "x86_64" => 0xc000_003e_u32,
        "aarch64" => 0xc000_00b7,
        other => panic!("no system call table for {other}"),
    };
    let mut verdicts = vec![vec![errno(ENOSYS)], vec![(RETURN, 0, 0, RET_ALLOW)]];
    let mut rows = BTreeMap::new();
    for (name, call) in calls(profile) {
        let Some(number) = number(&name, arch) else { continue };
        let code = call.verdict.unwrap_or(Verdict::Errno(EPERM)).code();
        let index = verdicts.iter().position(|known| *known == code).unwrap_or_else(|| {
            verdicts.push(code);
            verdicts.len() - 1
        });
        let any = call.caps.iter().fold("CapabilitySet::empty()".to_string(), |set, cap| {
            format!("{set}.union(CapabilitySet::{})", cap.strip_prefix("CAP_").expect("a capability"))
        });
        rows.insert(number, format!("Call {{ number: {number}, any: {any}, verdict: {index} }}, // {name}"));
    }

    let mut text = format!("const AUDIT_ARCH: u32 = {audit_arch:#x};\n");
    text += "/// The first is for calls without a name, the second allows.\n";
    text += "static VERDICTS: &[&[sock_filter]] = &[\n";
    for code in verdicts {
        let items: String =
            code.iter().map(|(c, t, f, k)| format!("instruction({c}, {t}, {f}, {k}), ")).collect();
        writeln!(text, "    &[{items}],").unwrap();
    }
    text += "];\nstatic CALLS: &[Call] = &[\n";
    rows.values().for_each(|row| writeln!(text, "    {row}").unwrap());
    text + "];\n"
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
                ("SCMP_ACT_ALLOW", [], None) => call.allow(name, &entry.args),
                ("SCMP_ACT_ALLOW", [cap], None) if entry.args.is_empty() => {
                    call.caps.insert(cap.clone());
                }
                _ => panic!("{PROFILE}: the entries for {name} contradict one another or are not understood"),
            }
        }
    }
    calls
}

impl Call {
    fn allow(&mut self, name: &str, args: &[Argument]) {
        match (&mut self.verdict, args) {
            (verdict @ None, []) => *verdict = Some(Verdict::Allow),
            (verdict @ None, args) => *verdict = Some(Verdict::AllowIf(vec![rule(args)])),
            (Some(Verdict::AllowIf(rules)), args) if !args.is_empty() => rules.push(rule(args)),
            _ => panic!("{PROFILE}: {name} is listed twice"),
        }
    }
}

impl Verdict {
    fn code(self) -> Vec<Instruction> {
        match self {
            Verdict::Allow => vec![(RETURN, 0, 0, RET_ALLOW)],
            Verdict::AllowIf(rules) => rules.into_iter().flatten().chain([errno(EPERM)]).collect(),
            Verdict::Errno(number) => vec![errno(number)],
        }
    }
}

fn errno(number: u32) -> Instruction {
    (RETURN, 0, 0, RET_ERRNO | number)
}

/// Allows if all conditions hold, else goes on behind itself.
///
/// Compared are the low 32 bits, because that is what the kernel looks at in every call that has conditions here; a
/// 64-bit comparison could be dodged by setting a high bit (CVE-2019-7303).
fn rule(args: &[Argument]) -> Vec<Instruction> {
    let mut code = vec![(RETURN, 0, 0, RET_ALLOW)];
    // Backwards, for each condition must know how far behind it the rule ends.
    for arg in args.iter().rev() {
        let out = u8::try_from(code.len()).expect("a short rule");
        let mut condition = vec![(LOAD_WORD, 0, 0, low_word(arg.index))];
        condition.extend(match arg.op.as_str() {
            "SCMP_CMP_EQ" => vec![(JUMP_IF_EQUAL, 0, out, arg.value)],
            "SCMP_CMP_NE" => vec![(JUMP_IF_EQUAL, out, 0, arg.value)],
            "SCMP_CMP_GT" => vec![(JUMP_IF_GREATER, 0, out, arg.value)],
            "SCMP_CMP_LT" => vec![(JUMP_IF_NOT_LESS, out, 0, arg.value)],
            // libseccomp's order: first the mask, then what must be left of the argument.
            "SCMP_CMP_MASKED_EQ" => vec![(AND, 0, 0, arg.value), (JUMP_IF_EQUAL, 0, out, arg.value_two)],
            other => panic!("{PROFILE}: no comparison {other}"),
        });
        code.splice(0..0, condition);
    }
    code
}

/// Where `struct seccomp_data` has the low half of an argument: behind nr, arch and the instruction pointer. Both
/// architectures are little-endian.
fn low_word(argument: u8) -> u32 {
    assert!(argument < 6, "{PROFILE}: a system call has six arguments");
    16 + 8 * u32::from(argument)
}

/// The number of a call, or `None` where this architecture has no such call (`open` on aarch64).
fn number(name: &str, arch: &str) -> Option<i32> {
    let x86_64 = syscalls::x86_64::Sysno::from_str(name).ok().map(|call| call.id());
    let aarch64 = syscalls::aarch64::Sysno::from_str(name).ok().map(|call| call.id());
    assert!(x86_64.or(aarch64).is_some(), "{PROFILE}: no system call {name} on any architecture");
    if arch == "x86_64" { x86_64 } else { aarch64 }
}
