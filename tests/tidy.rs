//! The rules of the source itself: floors, `unsafe`, sizes, names, comments. Each is read off the text, so
//! that it holds for the next file as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// The floors of src/lib.rs, lowest first. A module imports from floors below its own, and from its own as
/// long as that makes no circle.
const FLOORS: [&[&str]; 7] = [
    &["sys"],
    &["spec", "image", "postgres", "lab"],
    &["step", "hint", "state", "sql"],
    &["plan"],
    &["engine", "spawn", "init", "enter", "show", "facts", "drive", "guard"],
    &["cmd", "cli"],
    &["main"],
];

/// These decide and describe. They are tested without root, because nothing in them touches the machine.
const PURE: [&str; 3] = ["spec", "plan", "postgres"];

const MAX_FILE: usize = 500;
const MAX_FUNCTION: usize = 60;

/// A source file without its tests: from `#[cfg(test)]` to the end is cut off.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    /// The module below `crate` that the file belongs to.
    fn module(&self) -> &str {
        let path = self.path.strip_prefix("src/").expect("a file of src");
        path.split(['/', '.']).next().expect("a first part")
    }

    /// Lines with their numbers, without comments and without the content of string literals.
    fn lines(&self) -> impl Iterator<Item = (usize, String)> {
        self.code.lines().enumerate().map(|(i, line)| (i + 1, bare(line)))
    }
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// All files below a directory of the project, as paths from its root.
fn files(below: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root().join(below)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let skipped = ["target", ".git", "node_modules"].iter().any(|name| path.ends_with(name));
            let entries = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            left.extend(entries.filter(|_| !skipped));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn sources() -> Vec<Source> {
    let source = |path: String| {
        let text = read(&path);
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
        Source { path, text, code }
    };
    let sources: Vec<_> = files("src", ".rs").into_iter().map(source).collect();
    assert!(sources.len() > 50, "the source is not where this test looks");
    sources
}

/// A line of code without its comment, and without what stands between quotes.
fn bare(line: &str) -> String {
    let mut out = String::new();
    let mut in_string = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => drop(chars.next()),
            '\'' if !in_string && chars.peek() == Some(&'"') => drop(chars.next()),
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            _ if in_string => {}
            _ => out.push(c),
        }
    }
    out
}

#[track_caller]
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// The top-level modules of this crate that a file names: in `use` trees and in paths.
fn imports(source: &Source) -> BTreeSet<String> {
    named(source, &["crate::", "pgbox::"])
}

/// What a file names right after one of these.
fn named(source: &Source, starts: &[&str]) -> BTreeSet<String> {
    let code: String = source.lines().fold(String::new(), |mut all, (_, line)| {
        writeln!(all, "{line}").unwrap();
        all
    });
    let mut found = BTreeSet::new();
    for start in starts {
        for (at, _) in code.match_indices(start) {
            let after = &code[at + start.len()..];
            // `$crate` and paths such as `xcrate::` are none of ours.
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if !before.is_alphanumeric() && before != '_' && !code[..at].ends_with("pub(") {
                found.extend(heads(after));
            }
        }
    }
    found
}

/// The first names of a path or of a `{...}` tree of paths.
fn heads(text: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(tree) = text.strip_prefix('{') else { return vec![name(text)] };
    let (mut depth, mut start, mut heads) = (0, 0, Vec::new());
    for (i, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                heads.push(name(&tree[start..i]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                heads.push(name(&tree[start..i]));
                start = i + 1;
            }
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

fn floor(module: &str) -> usize {
    let floor = FLOORS.iter().position(|floor| floor.contains(&module));
    floor.unwrap_or_else(|| panic!("module {module} has no floor: give it one here and in src/lib.rs"))
}

#[test]
fn import_trees_are_read_right() {
    assert_eq!(heads("a::b;"), ["a"]);
    assert_eq!(heads("{\n a::{b, c},\n d, e::f,\n};"), ["a", "d", "e"]);
    assert_eq!(bare(r#"let a = "crate::x \" // y"; // crate::z"#), "let a = ; ");
}

#[test]
fn imports_go_downward() {
    let mut wrong = Vec::new();
    let mut beside: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources().iter().filter(|s| s.path != "src/lib.rs") {
        let here = source.module();
        for there in imports(source).into_iter().filter(|there| there != here) {
            if floor(&there) > floor(here) {
                wrong.push(format!(
                    "{} (floor {}) imports {there} (floor {})",
                    source.path,
                    floor(here),
                    floor(&there)
                ));
            } else if floor(&there) == floor(here) {
                beside.entry(here.to_owned()).or_default().insert(there);
            }
        }
    }
    wrong.extend(circles(beside));
    none("imports that go up", wrong);
}

/// Which of these import each other. Who is imported by nobody, or imports nobody, goes first; what is never free stands in a
/// circle, or between two.
fn circles(mut all: BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let is_free = |one: &String, all: &BTreeMap<String, BTreeSet<String>>| {
        !all.values().any(|to| to.contains(one)) || !all[one].iter().any(|to| all.contains_key(to))
    };
    while let Some(free) = all.keys().find(|one| is_free(one, &all)).cloned() {
        all.remove(&free);
    }
    let known: BTreeSet<String> = all.keys().cloned().collect();
    let names = |to: &BTreeSet<String>| to.intersection(&known).cloned().collect::<Vec<_>>().join(", ");
    all.iter().map(|(from, to)| format!("{from} stands in a circle: it imports {}", names(to))).collect()
}

#[test]
fn no_command_is_made_of_another_one_that_is_made_of_it() {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources() {
        let Some(path) = source.path.strip_prefix("src/cmd/").filter(|path| *path != "mod.rs") else {
            continue;
        };
        let (command, beside) = match path.split_once('/') {
            Some((command, _)) => (command, "super::super::"),
            None => (path.trim_end_matches(".rs"), "super::"),
        };
        let named = named(&source, &[beside, "cmd::"]).into_iter().filter(|other| other != command);
        all.entry(command.to_owned()).or_default().extend(named);
    }
    let commands: BTreeSet<String> = all.keys().cloned().collect();
    all.values_mut().for_each(|to| to.retain(|other| commands.contains(other)));
    assert!(all["up"].contains("create") && all["create"].contains("endpoint"), "{all:?}");
    none("commands in a circle", circles(all));
}

#[test]
fn lib_rs_draws_the_same_floors() {
    let text = read("src/lib.rs");
    for (number, floor) in FLOORS.iter().enumerate() {
        let start = format!("//! {number}  ");
        let line =
            text.lines().find(|l| l.starts_with(&start)).unwrap_or_else(|| panic!("no floor {number}"));
        for module in *floor {
            let named = line.split(|c: char| !c.is_alphanumeric()).any(|word| word == *module);
            assert!(named || *module == "cli", "src/lib.rs, floor {number}, does not name {module}");
        }
    }
    for module in text.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')) {
        floor(module);
    }
}

#[test]
fn only_cli_knows_clap() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| s.module() != "cli") {
        let named = |line: &str| line.contains("clap::") || line.contains("clap_complete::");
        wrong.extend(source.lines().filter(|(_, l)| named(l)).map(|(n, _)| format!("{}:{n}", source.path)));
    }
    none("clap outside cli", wrong);
}

#[test]
fn unsafe_is_in_sys_and_says_why_it_is_sound() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = bare(line);
            if !code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                continue;
            }
            if source.module() != "sys" {
                wrong.push(format!("{}:{}: outside sys", source.path, i + 1));
            }
            // The invariant stands in the comment above, with at most the start of the statement between.
            let above = &lines[i.saturating_sub(8)..i];
            if !above.iter().any(|l| l.contains("// SAFETY:") || l.contains("/// # Safety")) {
                wrong.push(format!("{}:{}: no `// SAFETY:` above", source.path, i + 1));
            }
        }
    }
    none("unsafe", wrong);
}

#[test]
fn sys_would_make_sense_in_another_program() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| s.module() == "sys") {
        for (number, line) in source.lines() {
            let line = line.to_lowercase();
            let words = ["container", "image", "postgres"].iter().filter(|word| line.contains(**word));
            wrong.extend(words.map(|word| format!("{}:{number}: {word}", source.path)));
        }
    }
    none("sys knows too much", wrong);
}

#[test]
fn what_decides_touches_nothing() {
    let touching =
        ["fs::", "nix::", "rustix::", "libc::", "process::Command", "Instant::now", "SystemTime", "env::var"];
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| PURE.contains(&s.module())) {
        for (number, line) in source.lines() {
            let found = touching.iter().filter(|word| line.contains(**word));
            wrong.extend(found.map(|word| format!("{}:{number}: {word}", source.path)));
        }
    }
    none("not pure", wrong);
}

#[test]
fn nothing_below_cmd_talks_to_the_user_and_cmd_by_its_own_macros() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| s.path != "src/lib.rs" && floor(s.module()) < floor("cmd")) {
        let talks = |line: &str| {
            ["println!", "eprintln!", "print!", "eprint!", "dbg!"].iter().any(|m| line.contains(m))
        };
        wrong.extend(source.lines().filter(|(_, l)| talks(l)).map(|(n, _)| format!("{}:{n}", source.path)));
    }
    none("printing below cmd", wrong);
}

#[test]
fn every_file_says_what_it_is() {
    let rust = [files("src", ".rs"), files("tests", ".rs"), vec!["build.rs".to_owned()]].concat();
    none("no `//!` at the top", rust.into_iter().filter(|p| !read(p).starts_with("//! ")).collect());
    let scripts = files("scripts", "").into_iter().filter(|p| !p.ends_with(".config"));
    let silent = |path: &String| read(path).lines().nth(1).is_none_or(|line| !line.starts_with("# "));
    none("no comment below the `#!`", scripts.filter(silent).collect());
}

#[test]
fn no_file_is_a_drawer() {
    let drawers = ["util", "utils", "helper", "helpers", "common", "manager", "misc"];
    let name = |path: &str| Path::new(path).file_stem().unwrap().to_str().unwrap().to_owned();
    let all = [files("src", ".rs"), files("tests", ".rs")].concat().into_iter();
    none("names that say nothing", all.filter(|p| drawers.contains(&name(p).as_str())).collect());
}

#[test]
fn files_and_functions_fit_in_a_head() {
    let mut wrong = Vec::new();
    for source in sources() {
        let length = source.code.lines().count();
        if length > MAX_FILE {
            wrong.push(format!("{}: {length} lines without its tests", source.path));
        }
        // `lesson` is a table: one entry a step, with what there is to say about it.
        let long = functions(&source.code)
            .into_iter()
            .filter(|(name, _, length)| name != "lesson" && *length > MAX_FUNCTION);
        wrong.extend(
            long.map(|(name, line, length)| format!("{}:{line}: {name} has {length} lines", source.path)),
        );
    }
    none("too long", wrong);
}

/// Name, first line and length of every function: rustfmt puts its closing brace under its first word.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let words = line.trim_start();
        let indent = &line[..line.len() - words.len()];
        let mut before = words.split_whitespace().take_while(|word| *word != "fn");
        let modifier = |word: &str| {
            word.starts_with("pub") || ["const", "async", "unsafe", "extern", "\"C\""].contains(&word)
        };
        let is_function = words.split_whitespace().any(|word| word == "fn") && before.all(modifier);
        if !is_function || line.trim_end().ends_with([';', '}']) {
            continue;
        }
        let close = format!("{indent}}}");
        if let Some(length) = lines[i..].iter().position(|l| *l == close) {
            let name = words.split("fn ").nth(1).unwrap().split(['(', '<']).next().unwrap();
            found.push((name.to_owned(), i + 1, length + 1));
        }
    }
    found
}

#[test]
fn functions_are_measured() {
    let code = "impl X {\n    pub(super) const fn a(b: u8) -> u8 {\n        b\n    }\n}\nfn c() {}\n";
    assert_eq!(functions(code), [("a".to_owned(), 2, 3)]);
    let functions: usize = sources().iter().map(|s| functions(&s.code).len()).sum();
    assert!(functions > 500, "only {functions} functions were found");
}

#[test]
fn every_dependency_says_why() {
    let text = read("Cargo.toml");
    let mut section = "";
    let mut wrong = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]") && line.contains('=') && !line.contains("# ") {
            wrong.push(line.to_owned());
        }
    }
    none("dependencies without a reason", wrong);
}

#[test]
fn no_path_of_the_workplace() {
    // Written in two halves, or this file would find itself.
    let place = concat!("/wo", "rk/");
    let mut wrong = Vec::new();
    for path in files("", "").into_iter().filter(|p| p != ".git" && !p.starts_with(".git/")) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            // An overlay's own work directory has something in front of it.
            let absolute = |at: usize| line[..at].chars().next_back().is_none_or(|c| " \"'`=(:".contains(c));
            if line.match_indices(place).any(|(at, _)| absolute(at)) {
                wrong.push(format!("{path}:{}", number + 1));
            }
        }
    }
    none("paths of the machine this was written on", wrong);
}

/// The table of rules names tests of `tests/lab` that there are; what is to come stands behind these words.
#[test]
fn the_tests_that_hold_the_rules_exist() {
    let page = fs::read_to_string(root().join("docs/RULES.md")).unwrap();
    let mut checked = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let now = row.split("to come:").next().unwrap_or_default();
        for (module, name) in now.split('`').filter_map(|piece| piece.split_once("::")) {
            let text = |kind: &str| fs::read_to_string(root().join(format!("tests/{kind}/{module}.rs")));
            let code = ["lab", "node"].map(|kind| text(kind).unwrap_or_default()).concat();
            assert!(code.contains(&format!("fn {name}()")), "no test {module}::{name}");
            checked += 1;
        }
    }
    assert!(checked >= 10, "{checked}");
}
