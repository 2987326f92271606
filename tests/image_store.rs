//! The store: sources of every form, names, resuming, removing; and two oracles, umoci and writing back.

mod layers;

use layers::layout::{gzip, sha256};
use layers::{Compression, Head, Layout, Scratch, Tar, tree};
use pgbox::image::{Digest, Image, Progress, Silent, Store};
use serde_json::json;
use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

fn base() -> Vec<u8> {
    Tar::of([
        Head::dir("./"),
        Head::dir("bin"),
        Head::file("bin/sh", "shell").mode(0o755),
        Head::dir("etc"),
        Head::file("etc/os", "1"),
    ])
}

fn update() -> Vec<u8> {
    Tar::of([
        Head::dir("./"),
        Head::dir("etc"),
        Head::file("etc/os", "2"),
        Head::file("bin/.wh.sh", ""),
        Head::file("bin/bash", "b"),
    ])
}

fn two_layers() -> Layout {
    Layout::of(&[base(), update()])
}

/// The members of an archive of this layout.
fn members(layout: &Layout) -> Vec<Head> {
    layout.files().into_iter().map(|(name, bytes)| Head::file(name, bytes)).collect()
}

fn import(scratch: &Scratch, src: &Path) -> Image {
    scratch.store().import(src, None, &Silent).unwrap_or_else(|e| panic!("{e:#}"))
}

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

/// Layer directories, without their records.
fn layer_dirs(scratch: &Scratch) -> Vec<String> {
    names(&scratch.path("root/layers")).into_iter().filter(|n| !n.ends_with(".json")).collect()
}

/// Whether a tool for comparison is here.
fn has(tool: &str) -> bool {
    let found =
        Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("SKIPPED: {tool} is not installed");
        assert!(env::var_os("PGBOX_REQUIRE_ROOT").is_none() && env::var_os("CI").is_none());
    }
    found
}

fn run(tool: &str, args: &[&str]) {
    let output = Command::new(tool).args(args).output().unwrap();
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

macro_rules! scratch {
    () => {
        match Scratch::new() {
            Some(scratch) => scratch,
            None => return,
        }
    };
}

// Sources.

#[test]
fn all_forms_of_a_source_are_one_image() {
    let scratch = scratch!();
    let layout = two_layers();
    layout.write(&scratch.path("db"));
    let from_layout = import(&scratch, &scratch.path("db"));
    assert_eq!(from_layout.names, ["db:latest"]);
    let archive = Tar::of(members(&layout));
    for (name, bytes) in [
        ("db1.tar", archive.clone()),
        ("db2.tar.gz", gzip(&archive)),
        ("db3.tar.zst", Compression::Zstd.pack(&archive)),
    ] {
        std::fs::write(scratch.path(name), bytes).unwrap();
        let image = import(&scratch, &scratch.path(name));
        assert_eq!(image.manifest, from_layout.manifest, "{name}");
        assert_eq!(image.lowers(), from_layout.lowers(), "{name}");
    }
    let names = scratch.store().resolve("db2").unwrap().names;
    assert_eq!(names, ["db1:latest", "db2:latest", "db3:latest", "db:latest"]);
}

#[test]
fn a_saved_image_is_imported() {
    let scratch = scratch!();
    let layout = two_layers();
    let config = layout.config().to_string();
    let id = &sha256(config.as_bytes())[7..];
    let manifest = json!([{"Config": format!("{id}.json"), "RepoTags": ["docker.io/library/db:15"], "Layers": ["aa/layer.tar", "bb/layer.tar"]}]);
    let archive = Tar::of([
        Head::file(format!("{id}.json"), &config),
        Head::dir("aa"),
        Head::file("aa/layer.tar", base()),
        Head::file("cc/layer.tar", update()),
        // As docker before 1.10 and podman store what two images share.
        Head::symlink("bb/layer.tar", "../cc/layer.tar"),
        Head::file("manifest.json", manifest.to_string()),
    ]);
    std::fs::write(scratch.path("saved.tar"), archive).unwrap();
    let image = import(&scratch, &scratch.path("saved.tar"));
    assert_eq!(image.names, ["db:15"]);
    layout.write(&scratch.path("db"));
    assert_eq!(import(&scratch, &scratch.path("db")).lowers(), image.lowers(), "the layers are the same");
    let again = import(&scratch, &scratch.path("saved.tar"));
    assert_eq!(again.manifest, image.manifest);
}

#[test]
fn archives_that_skopeo_makes() {
    let scratch = scratch!();
    if !has("skopeo") {
        return;
    }
    let src = scratch.path("db");
    let layout = Layout { name: Some("1".into()), ..two_layers() };
    layout.write(&src);
    let from = format!("oci:{}:1", src.display());
    let policy = scratch.path("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let expected = scratch.merged(&src).unwrap();
    for (form, file) in [("oci-archive", "a.tar"), ("docker-archive", "b.tar")] {
        let to = format!("{form}:{}:db:1", scratch.path(file).display());
        run("skopeo", &["--policy", policy.to_str().unwrap(), "copy", "-q", &from, &to]);
        std::fs::remove_dir_all(scratch.path("root")).unwrap();
        assert_eq!(scratch.merged(&scratch.path(file)).unwrap(), expected, "{form}");
    }
}

#[test]
fn an_index_of_platforms_gives_this_machine_s() {
    let scratch = scratch!();
    let src = scratch.path("db");
    let mut layout = two_layers();
    layout.edit_index = |i| {
        let here = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        let mut own = i["manifests"][0].clone();
        own["platform"] = json!({"os": "linux", "architecture": here});
        let mut other = own.clone();
        other["platform"]["architecture"] = json!("s390x");
        other["digest"] = json!(sha256(b"not there"));
        let mut attestation = other.clone();
        attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        i["manifests"] = json!([other, attestation, own]);
    };
    layout.write(&src);
    let nested = layout.index().to_string();
    let blob = sha256(nested.as_bytes());
    std::fs::write(src.join("blobs/sha256").join(&blob[7..]), &nested).unwrap();
    let flat = import(&scratch, &src);
    let top = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": blob, "size": nested.len()}]});
    std::fs::write(src.join("index.json"), top.to_string()).unwrap();
    assert_eq!(import(&scratch, &src).manifest, flat.manifest);
}

#[test]
fn one_of_several_images_is_chosen_by_name() {
    let scratch = scratch!();
    let src = scratch.path("many");
    two_layers().write(&src);
    let mut other = Layout::of(&[base()]);
    other.name = Some("two".into());
    let mut index = two_layers().index();
    index["manifests"][0]["annotations"] = json!({"org.opencontainers.image.ref.name": "one"});
    index["manifests"].as_array_mut().unwrap().push(other.index()["manifests"][0].clone());
    other.write(&src);
    std::fs::write(src.join("index.json"), index.to_string()).unwrap();
    let error = format!("{:#}", scratch.store().import(&src, None, &Silent).unwrap_err());
    assert!(error.contains("[one, two]") && error.contains(":NAME"), "{error}");
    let image = import(&scratch, &scratch.path("many:two"));
    assert_eq!((&image.names[..], image.layers.len()), (&["many:two".to_string()][..], 1));
    assert!(scratch.store().import(&scratch.path("many:three"), None, &Silent).is_err());
}

#[test]
fn what_is_no_image_is_named() {
    let scratch = scratch!();
    std::fs::create_dir(scratch.path("empty")).unwrap();
    std::fs::write(scratch.path("text"), "hello").unwrap();
    for (name, word) in [("empty", "no index.json"), ("text", "not an archive"), ("nothing", "No such file")]
    {
        let error = format!("{:#}", scratch.store().import(&scratch.path(name), None, &Silent).unwrap_err());
        assert!(error.contains(word) && error.contains(name), "{error}");
    }
}

// Names.

#[test]
fn an_unknown_image_is_an_error_with_a_way_out() {
    let scratch = scratch!();
    let error = scratch.store().resolve("nosuch").unwrap_err().to_string();
    for word in ["nosuch", "there is none yet", "pgbox image build", "pgbox image import"] {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    two_layers().write(&scratch.path("db"));
    import(&scratch, &scratch.path("db"));
    assert!(scratch.store().resolve("nosuch").unwrap_err().to_string().contains("db:latest"));
}

#[test]
fn an_image_is_found_by_name_and_digest() {
    let scratch = scratch!();
    two_layers().write(&scratch.path("db"));
    let store = scratch.store();
    let image = store.import(&scratch.path("db"), Some("docker.io/library/postgres"), &Silent).unwrap();
    assert_eq!(image.name(), "postgres:latest");
    let digest = image.manifest.to_string();
    for name in [
        "postgres",
        "postgres:latest",
        "library/postgres",
        &digest,
        &digest[7..],
        &digest[7..19],
        &format!("x@{digest}"),
    ] {
        assert_eq!(store.resolve(name).unwrap().manifest, image.manifest, "{name}");
    }
    assert_eq!(image.config.env, ["PATH=/bin"]);
    assert_eq!(image.config.cmd, ["/bin/true"]);
}

#[test]
fn a_name_moves_to_the_newer_image() {
    let scratch = scratch!();
    let store = scratch.store();
    two_layers().write(&scratch.path("new"));
    Layout::of(&[base()]).write(&scratch.path("old"));
    let old = store.import(&scratch.path("old"), Some("db"), &Silent).unwrap();
    let new = store.import(&scratch.path("new"), Some("db"), &Silent).unwrap();
    assert_eq!(store.resolve("db").unwrap().manifest, new.manifest);
    assert_eq!(new.layers[0], old.layers[0], "layers are shared");
    let nameless = store.resolve(&old.manifest.to_string()).unwrap();
    assert!(nameless.names.is_empty(), "containers may still run on it");
    assert_eq!(store.list().unwrap().len(), 2);
    assert_eq!(store.remove(&old.manifest.to_string(), || Ok(vec![])).unwrap().layers, 0);
    assert_eq!(store.list().unwrap().len(), 1);
}

// Removing.

#[test]
fn removing_takes_what_no_other_image_has() {
    let scratch = scratch!();
    let store = scratch.store();
    two_layers().write(&scratch.path("two"));
    Layout::of(&[base()]).write(&scratch.path("one"));
    let one = store.import(&scratch.path("one"), Some("one"), &Silent).unwrap();
    let two = store.import(&scratch.path("two"), Some("two"), &Silent).unwrap();
    store.import(&scratch.path("two"), Some("also"), &Silent).unwrap();
    store.note(&two.manifest, b"what it is").unwrap();
    let error = store.remove(&two.manifest.to_string(), || Ok(vec![two.manifest])).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    let removed = store.remove("also", || Ok(vec![two.manifest])).unwrap();
    assert!(!removed.image && removed.names == ["also:latest"]);
    let removed = store.remove("two", || Ok(vec![one.manifest])).unwrap();
    assert!(removed.image && removed.layers == 1 && removed.bytes > 0, "{removed:?}");
    assert!(one.layers[0].dir.is_dir() && store.resolve("one").is_ok() && store.resolve("two").is_err());
    assert_eq!(names(&scratch.path("root/images")), ["blobs", "index.json", "lock"]);
    store.remove("one", || Ok(vec![])).unwrap();
    assert_eq!(names(&scratch.path("root/layers")), [""; 0]);
    assert_eq!(names(&scratch.path("root/images/blobs/sha256")), [""; 0]);
}

#[test]
fn a_damaged_image_is_named_and_can_be_removed_or_imported_again() {
    let scratch = scratch!();
    two_layers().write(&scratch.path("db"));
    let image = import(&scratch, &scratch.path("db"));
    std::fs::remove_dir_all(&image.layers[1].dir).unwrap();
    let error = scratch.store().resolve("db").unwrap_err().to_string();
    assert!(error.contains("db:latest") && error.contains("import the image again"), "{error}");
    assert_eq!(import(&scratch, &scratch.path("db")).lowers(), image.lowers());
    std::fs::remove_dir_all(&image.layers[1].dir).unwrap();
    assert!(scratch.store().remove("db", || Ok(vec![])).unwrap().image);
}

// Importing again, together, and after a crash.

#[test]
fn a_second_import_reads_no_blob() {
    let scratch = scratch!();
    let src = scratch.path("db");
    two_layers().write(&src);
    let first = import(&scratch, &src);
    std::fs::remove_dir_all(src.join("blobs")).unwrap();
    let start = std::time::Instant::now();
    let second = import(&scratch, &src);
    let took = start.elapsed();
    assert_eq!(second.lowers(), first.lowers());
    // Ten times the target: other tests share the machine.
    assert!(took.as_millis() < 100, "{took:?}");
}

#[test]
fn layers_that_stand_alone_are_shared_on_any_base() {
    let scratch = scratch!();
    let alone = Tar::of([Head::dir("./"), Head::dir("opt"), Head::file("opt/tool", "t")]);
    Layout::of(&[base(), alone.clone()]).write(&scratch.path("one"));
    Layout::of(&[base(), update(), alone]).write(&scratch.path("two"));
    let (one, two) = (import(&scratch, &scratch.path("one")), import(&scratch, &scratch.path("two")));
    assert_eq!(one.layers[1].dir, two.layers[2].dir);
    assert_ne!(one.layers[1].chain_id, two.layers[2].chain_id);
    assert_eq!(layer_dirs(&scratch).len(), 3);
}

#[test]
fn imports_at_the_same_time() {
    let scratch = scratch!();
    for i in 0..6 {
        let own = Tar::of([Head::dir("./"), Head::file("own", format!("{}", i / 2))]);
        Layout::of(&[base(), update(), own]).write(&scratch.path(&format!("db{i}")));
    }
    let store = scratch.store();
    std::thread::scope(|scope| {
        for i in 0..6 {
            let (store, path) = (&store, scratch.path(&format!("db{i}")));
            scope.spawn(move || store.import(&path, None, &Silent).unwrap());
        }
    });
    assert_eq!(store.list().unwrap().len(), 3);
    assert_eq!(layer_dirs(&scratch).len(), 5);
}

#[derive(Default)]
struct Watch {
    log: Mutex<Vec<String>>,
}

impl Progress for Watch {
    fn begin(&self, layers: usize, bytes: u64) {
        self.log.lock().unwrap().push(format!("begin {layers} {bytes}"));
    }
    fn layer(&self, layer: usize, _: u64) {
        self.log.lock().unwrap().push(format!("layer {layer}"));
    }
    fn advance(&self, layer: usize, bytes: u64) {
        self.log.lock().unwrap().push(format!("advance {layer} {bytes}"));
    }
    fn done(&self, layer: usize) {
        self.log.lock().unwrap().push(format!("done {layer}"));
    }
}

#[test]
fn progress_adds_up_and_no_thread_is_left() {
    let scratch = scratch!();
    let layout = two_layers();
    layout.write(&scratch.path("db"));
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let watch = Watch::default();
    scratch.store().import(&scratch.path("db"), None, &watch).unwrap();
    if std::env::var_os("NEXTEST").is_some() {
        // One that was joined is on the kernel's list for a moment more.
        let begun = std::time::Instant::now();
        while threads() != before && begun.elapsed() < std::time::Duration::from_secs(1) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(threads(), before);
    }
    let log = watch.log.lock().unwrap();
    let total: usize = layout.layers.iter().map(|l| l.blob.len()).sum();
    assert_eq!(log[0], format!("begin 2 {total}"));
    let advanced = log
        .iter()
        .filter_map(|l| l.strip_prefix("advance "))
        .map(|l| l.split_once(' ').unwrap().1.parse::<usize>().unwrap());
    assert_eq!(advanced.sum::<usize>(), total);
    assert!(log.iter().any(|l| l == "done 0") && log.iter().any(|l| l == "done 1"));
}

/// Lawful layers large enough to be interrupted: a base that gets its name before the others are done.
fn large() -> Layout {
    let noise = |seed: u32, len: usize| -> Vec<u8> {
        let mut x = seed;
        (0..len)
            .map(|_| {
                x = x.wrapping_mul(1664525).wrapping_add(1013904223);
                (x >> 24) as u8
            })
            .collect()
    };
    let layer = |i: u32| {
        let files = (0..8).map(|f| Head::file(format!("l{i}/f{f}"), noise(i * 100 + f, 3 << 20)));
        Tar::of([Head::dir("./"), Head::dir(format!("l{i}"))].into_iter().chain(files))
    };
    Layout::packed(&(0..3).map(layer).collect::<Vec<_>>(), Compression::Plain)
}

/// Tells the parent what happens, and stops for good where it was told to: there it is killed.
struct Mortal {
    stop: String,
}

impl Progress for Mortal {
    fn advance(&self, layer: usize, _: u64) {
        self.at(format!("advance {layer}"));
    }
    fn done(&self, layer: usize) {
        self.at(format!("done {layer}"));
    }
}

impl Mortal {
    fn at(&self, event: String) {
        if event == self.stop {
            println!("\nMORTAL stopped");
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    }
}

/// Not a test of its own: the process that [`killed_at_any_point_it_resumes`] kills.
#[test]
fn child_that_is_killed() {
    let Ok(args) = std::env::var("PGBOX_TEST_IMPORT") else { return };
    let [root, src, stop]: [&str; 3] = args.split('\n').collect::<Vec<_>>().try_into().unwrap();
    Store::open(root.as_ref())
        .unwrap()
        .import(src.as_ref(), None, &Mortal { stop: stop.to_string() })
        .unwrap();
}

#[test]
fn killed_at_any_point_it_resumes() {
    let scratch = scratch!();
    let src = scratch.path("db");
    large().write(&src);
    for stop in ["advance 0", "advance 1", "done 0", "done 1", "done 2"] {
        let _ = std::fs::remove_dir_all(scratch.path("root"));
        let args = format!("{}\n{}\n{stop}", scratch.path("root").display(), src.display());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_is_killed", "--exact", "--nocapture"])
            .env("PGBOX_TEST_IMPORT", args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|l| l.starts_with("MORTAL")), "it never came to {stop}");
        child.kill().unwrap();
        child.wait().unwrap();
        let left = layer_dirs(&scratch);
        let (rubbish, whole): (Vec<_>, Vec<_>) = left.iter().partition(|n| n.starts_with("tmp-"));
        assert!(!rubbish.is_empty(), "{stop}: it was not interrupted: {left:?}");
        for name in &whole {
            assert_eq!(count_files(&scratch.path("root/layers").join(name)), 8, "{stop}: half a layer");
        }
        let watch = Watch::default();
        let image = scratch.store().import(&src, None, &watch).unwrap();
        let begun = format!("begin {} ", 3 - whole.len());
        assert!(watch.log.lock().unwrap()[0].starts_with(&begun), "{stop}: what was whole is not done again");
        if stop.starts_with("done 2") {
            assert_eq!(whole.len(), 2);
        }
        assert_eq!(image.layers.iter().map(|l| count_files(&l.dir)).sum::<usize>(), 24);
        assert_eq!(layer_dirs(&scratch).len(), 3, "{stop}: rubbish is removed");
    }
}

fn count_files(dir: &Path) -> usize {
    tree::show(dir).lines().filter(|l| l.starts_with('f') && l.contains("3145728 bytes")).count()
}

// Budgets.

/// Not a test of its own: the process that [`system_calls_and_memory_stay_in_their_budgets`] measures.
#[test]
fn child_that_is_measured() {
    let Ok(args) = std::env::var("PGBOX_TEST_MEASURE") else { return };
    let (root, src) = args.split_once('\n').unwrap();
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().to_string();
        line.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    Store::open(root.as_ref()).unwrap().import(src.as_ref(), None, &Silent).unwrap();
    println!("\nMEASURED {}", peak());
}

#[test]
fn system_calls_and_memory_stay_in_their_budgets() {
    let scratch = scratch!();
    if !has("strace") {
        return;
    }
    const ENTRIES: usize = 12_000;
    let name = |i: usize| format!("usr/share/d{:03}/e{i:05}", i / 20);
    let entry = |i: usize| match i % 20 {
        0 => Head::dir(format!("usr/share/d{:03}", i / 20)),
        1 => Head::symlink(name(i), "../target"),
        2 => Head::link(name(i), name(i + 1 - 20 * usize::from(i > 20))),
        _ => Head::file(name(i), vec![i as u8; i % 9000]).owner((i % 3) as u64, 0),
    };
    // A link of the first directory would have no target yet.
    let tops = [Head::dir("./"), Head::dir("usr"), Head::dir("usr/share")];
    let tar = Tar::of(tops.into_iter().chain((0..ENTRIES).filter(|i| *i != 2).map(entry)));
    Layout::of(&[tar, update()]).write(&scratch.path("db"));
    let counts = scratch.path("counts");
    let output = Command::new("strace")
        .args(["-f", "-c", "-qq", "-U", "calls,name", "-o"])
        .arg(&counts)
        .arg(std::env::current_exe().unwrap())
        .args(["child_that_is_measured", "--exact", "--nocapture"])
        .env(
            "PGBOX_TEST_MEASURE",
            format!("{}\n{}", scratch.path("root").display(), scratch.path("db").display()),
        )
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let peak: u64 = text
        .lines()
        .find_map(|l| l.strip_prefix("MEASURED "))
        .unwrap_or_else(|| panic!("{text}"))
        .parse()
        .unwrap();
    let counts = std::fs::read_to_string(counts).unwrap();
    let total =
        counts.lines().find(|l| l.trim_end().ends_with("total")).unwrap_or_else(|| panic!("{counts}"));
    let number = |line: &str| line.split_whitespace().next().unwrap().parse::<usize>().unwrap();
    // A debug build of the standard library asks fcntl(2) before it closes a descriptor.
    let asked = counts.lines().find(|l| l.ends_with(" fcntl")).map_or(0, number);
    let calls = number(total) - if cfg!(debug_assertions) { asked } else { 0 };
    let each = calls as f64 / ENTRIES as f64;
    eprintln!("{each:.2} system calls per entry, {} MiB at most", peak / 1024);
    assert!(each <= 6.0, "{each:.2} system calls per entry:\n{counts}");
    assert!(peak <= 24 << 10, "{peak} KiB");
}

// Oracles.

/// An image with something of everything, each entry in the one form in which [`write_back`] would write it.
fn everything() -> Vec<Head> {
    let cap = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    vec![
        Head::dir("./"),
        Head::dir("a/").mode(0o1777).mtime(-7),
        Head::file("a/cap", "c").owner(3, 4).xattr("security.capability", cap),
        Head::file("a/empty", "").mode(0),
        Head::file("a/su", "s").mode(0o6755).owner(3, 4),
        Head::dir("b/").mode(0o2750).owner(3_000_000, 5).xattr("user.k", "v"),
        Head::file("b/big", vec![7; 300_000]),
        Head::new(b'6', "b/fifo", 0o600),
        Head::new(b'3', "b/null", 0o666).device(1, 3),
        Head::symlink("l", "a/../b").owner(5, 5).mtime(12),
        Head::file("m", "one").mtime(99),
        Head::link("n", "m").mtime(99),
        Head::file("z", "").pax("mtime", "1700000000.123456789"),
    ]
}

/// A directory as a tar, in the manner of [`everything`].
fn write_back(root: &Path) -> Vec<Head> {
    let mut heads = Vec::new();
    let mut seen = BTreeMap::new();
    let mut todo = vec![PathBuf::from("")];
    while let Some(name) = todo.pop() {
        let path = root.join(&name);
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let (kind, mut text) = (meta.file_type(), name.to_str().unwrap().to_string());
        if kind.is_dir() {
            text = if text.is_empty() { "./".into() } else { text + "/" };
            let mut names: Vec<_> =
                std::fs::read_dir(&path).unwrap().map(|e| name.join(e.unwrap().file_name())).collect();
            names.sort();
            todo.extend(names.into_iter().rev());
        }
        let mut head = match () {
            _ if kind.is_dir() => Head::dir(&text),
            _ if kind.is_symlink() => {
                Head::symlink(&text, std::fs::read_link(&path).unwrap().as_os_str().as_bytes())
            }
            _ if kind.is_fifo() => Head::new(b'6', &text, 0),
            _ if kind.is_char_device() => Head::new(b'3', &text, 0)
                .device(nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev())),
            _ => match seen.insert(meta.ino(), text.clone()) {
                Some(first) => Head::link(&text, first),
                None => Head::file(&text, std::fs::read(&path).unwrap()),
            },
        };
        head = head
            .mode(u64::from(meta.mode() & 0o7777))
            .owner(meta.uid().into(), meta.gid().into())
            .mtime(meta.mtime());
        if meta.mtime_nsec() != 0 {
            head = head.mtime(1000).pax("mtime", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()));
        }
        if kind.is_dir() || kind.is_file() {
            let file = std::fs::File::open(&path).unwrap();
            for key in pgbox::sys::fs::flistxattr(&file).unwrap() {
                let value = pgbox::sys::fs::fgetxattr(&file, &key).unwrap().unwrap();
                head = head.xattr(std::str::from_utf8(&key).unwrap(), value);
            }
        }
        heads.push(head);
    }
    heads
}

#[test]
fn written_back_it_has_the_same_diff_id() {
    let scratch = scratch!();
    let tar = Tar::of(everything());
    Layout::of(std::slice::from_ref(&tar)).write(&scratch.path("db"));
    let image = import(&scratch, &scratch.path("db"));
    let back = Tar::of(write_back(&image.lowers()[0]));
    let diff: Digest = sha256(&back).parse().unwrap();
    if diff != image.layers[0].diff_id.0 {
        let at = tar.iter().zip(&back).position(|(a, b)| a != b).unwrap_or(tar.len().min(back.len()));
        panic!("the tars differ at {at}: {:?}", String::from_utf8_lossy(&back[at / 512 * 512..][..100]));
    }
}

#[test]
fn umoci_makes_the_same_tree() {
    let scratch = scratch!();
    if !has("umoci") {
        return;
    }
    let second = Tar::of([
        Head::dir("./").mtime(5),
        Head::dir("a").mode(0o700).mtime(6),
        Head::file("a/.wh.su", ""),
        Head::file("a/new", "n"),
        Head::file("b", "a file now"),
        Head::link("o", "m"),
        Head::file(".wh.l", ""),
    ]);
    let third = Tar::of([
        Head::dir("./"),
        Head::dir("b"),
        Head::file("b/x", "x"),
        Head::dir("a"),
        Head::file("a/.wh..wh..opq", ""),
        Head::file("a/y", "y"),
    ]);
    let src = scratch.path("db");
    Layout { name: Some("1".into()), ..Layout::of(&[Tar::of(everything()), second, third]) }.write(&src);
    let bundle = scratch.path("bundle");
    run("umoci", &["unpack", "--image", &format!("{}:1", src.display()), bundle.to_str().unwrap()]);
    let ours = scratch.merged(&src).unwrap();
    let theirs = tree::show(&bundle.join("rootfs"));
    assert_eq!(ours, theirs);
}

// Mounting.

#[test]
fn a_mount_is_read_only_and_goes_away() {
    let scratch = scratch!();
    for (name, layout) in [("one", Layout::of(&[base()])), ("two", two_layers())] {
        layout.write(&scratch.path(name));
        let image = import(&scratch, &scratch.path(name));
        let target = scratch.path("mnt");
        std::fs::create_dir_all(&target).unwrap();
        pgbox::image::mount(&image, &target).unwrap();
        assert!(target.join("etc/os").is_file());
        let error = std::fs::write(target.join("etc/os"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(30), "{error}");
        pgbox::image::umount(&target).unwrap();
        assert!(names(&target).is_empty());
        assert!(pgbox::image::umount(&target).is_err(), "nothing is mounted there");
        assert!(pgbox::image::mount(&image, &scratch.path("nowhere")).is_err());
    }
}

/// `c 1:3` is /dev/null: whoever may open it, by its number alone, may as well open a disk.
#[test]
fn a_mount_to_look_at_opens_no_device_and_lends_no_rights() {
    let scratch = scratch!();
    let device = || Tar::of([Head::new(b'3', "null", 0o666).device(1, 3)]);
    for (name, layers) in [("one", vec![device()]), ("two", vec![base(), device()])] {
        Layout::of(&layers).write(&scratch.path(name));
        let image = import(&scratch, &scratch.path(name));
        let target = scratch.path("mnt");
        std::fs::create_dir_all(&target).unwrap();
        pgbox::image::mount(&image, &target).unwrap();
        let error = std::fs::File::open(target.join("null")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{name}: {error}");
        let flags = nix::sys::statvfs::statvfs(&target).unwrap().flags();
        assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID), "{name}: {flags:?}");
        pgbox::image::umount(&target).unwrap();
    }
}

#[test]
fn an_upper_directory_takes_the_changes() {
    let scratch = scratch!();
    two_layers().write(&scratch.path("db"));
    let image = import(&scratch, &scratch.path("db"));
    let [upper, work, merged] = ["upper", "work", "merged"].map(|n| scratch.path(n));
    for dir in [&upper, &work, &merged] {
        std::fs::create_dir(dir).unwrap();
    }
    let options = pgbox::sys::overlay::Options { volatile: true, read_only: false };
    pgbox::sys::overlay::mount(&image.lowers(), Some((&upper, &work)), &merged, options).unwrap();
    std::fs::write(merged.join("etc/os"), "3").unwrap();
    std::fs::remove_file(merged.join("bin/bash")).unwrap();
    assert_eq!(std::fs::read_to_string(upper.join("etc/os")).unwrap(), "3");
    assert_eq!(std::fs::read_to_string(image.layers[1].dir.join("etc/os")).unwrap(), "2");
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(mounts.lines().any(|l| l.contains("/merged ") && l.contains("volatile")), "{mounts}");
    pgbox::sys::overlay::umount(&merged).unwrap();
}
