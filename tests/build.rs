//! `image build` and the layer writer. Witnesses: GNU tar for the layers' text, umoci for what another
//! unpacker makes of an image, /proc for what is left on the machine.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use pgbox::image::build::{BuildOptions, Built, Compression, Recipe, build};
use pgbox::image::pack::{Packed, write_diff, write_layer};
use rustix::fs::{AtFlags, Timespec, Timestamps, XattrFlags, lgetxattr, lsetxattr, utimensat};
use serde_json::Value;
use tempfile::TempDir;

// ---- what the tests stand on ----

/// False, loudly, where a test cannot run; a failure where the run is to be complete.
fn can(what: &str, possible: bool) -> bool {
    if !possible {
        let strict = ["PGBOX_REQUIRE_ROOT", "CI"].iter().any(|name| std::env::var_os(name).is_some());
        assert!(!strict, "cannot run without {what}");
        eprintln!("SKIPPED: no {what}");
    }
    possible
}

fn root() -> bool {
    can("root", nix::unistd::geteuid().is_root())
}

fn installed(program: &str) -> bool {
    can(program, Command::new(program).arg("--version").output().is_ok())
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn pack(dir: &Path, clamp: Option<SystemTime>) -> (Packed, Vec<u8>) {
    let mut tar = Vec::new();
    let packed = write_layer(dir, clamp, &mut tar).unwrap();
    assert_eq!(packed.size, tar.len() as u64);
    (packed, tar)
}

/// What GNU tar reads in a layer, one line an entry.
fn listing(tar: &[u8]) -> Vec<String> {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("layer.tar");
    fs::write(&file, tar).unwrap();
    let mut command = Command::new("tar");
    command.args(["--list", "--verbose", "--numeric-owner", "--full-time", "--quoting-style=escape"]);
    let text = output(command.env("TZ", "UTC").env("LC_ALL", "C").arg("--file").arg(&file));
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn names(tar: &[u8]) -> Vec<String> {
    listing(tar).iter().map(|line| line.split(' ').nth(5).unwrap().to_owned()).collect()
}

fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn device(path: &Path, kind: SFlag, major: u64, minor: u64) {
    mknod(path, kind, Mode::from_bits_truncate(0o640), makedev(major, minor)).unwrap();
}

/// Every path below `dir` gets the same old mtime, so that listings are stable.
fn age(dir: &Path) {
    for entry in dir.read_dir().unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            age(&entry.path());
        } else {
            set_mtime(&entry.path(), 1_000_000_000, 0);
        }
    }
    set_mtime(dir, 1_000_000_000, 0);
}

fn options(recipe: Recipe, output: &Path) -> BuildOptions {
    BuildOptions {
        recipe,
        suite: pgbox::image::build::DEFAULT_SUITE.to_owned(),
        output: output.to_owned(),
        compression: Compression::Gzip,
        keep: false,
    }
}

fn recipe(dir: &Path, scripts: &[(&str, &str)]) -> Recipe {
    fs::create_dir_all(dir).unwrap();
    for (name, text) in scripts {
        fs::write(dir.join(name), text).unwrap();
    }
    Recipe::Directory(dir.to_owned())
}

const IMAGE: &str = r#"echo '{"names": ["t:1"], "config": {}}' >"$WORK/image.json""#;

fn json(layout: &Path, digest: &Value) -> Value {
    let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    serde_json::from_slice(&fs::read(layout.join("blobs/sha256").join(hex)).unwrap()).unwrap()
}

fn index(layout: &Path) -> Value {
    serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap()
}

/// Manifest and configuration of a built image.
fn documents(built: &Built) -> (Value, Value) {
    let manifest = json(&built.layout, &Value::from(built.manifest.to_string()));
    let config = json(&built.layout, &manifest["config"]["digest"]);
    (manifest, config)
}

fn unpack(built: &Built, into: &Path) -> PathBuf {
    let image = format!("{}:{}", built.layout.display(), built.names[0]);
    output(Command::new("umoci").args(["unpack", "--image", &image]).arg(into));
    into.join("rootfs")
}

// ---- layers ----

#[test]
fn a_layer_holds_every_kind_of_file() {
    if !root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::write(path("file"), "content").unwrap();
    fs::hard_link(path("file"), path("link")).unwrap();
    fs::write(path("setuid"), "").unwrap();
    chown(path("setuid"), Some(0), Some(3_000_000)).unwrap();
    fs::set_permissions(path("setuid"), Permissions::from_mode(0o4711)).unwrap();
    fs::create_dir(path("dir")).unwrap();
    fs::set_permissions(path("dir"), Permissions::from_mode(0o3777)).unwrap();
    symlink("../far away", path("dir/sym")).unwrap();
    lchown(path("dir/sym"), Some(7), Some(8)).unwrap();
    device(&path("fifo"), SFlag::S_IFIFO, 0, 0);
    device(&path("null"), SFlag::S_IFCHR, 1, 3);
    device(&path("loop"), SFlag::S_IFBLK, 7, 300);
    device(&path("gone"), SFlag::S_IFCHR, 0, 0);
    // overlayfs makes all its whiteouts one inode.
    fs::hard_link(path("gone"), path("gone too")).unwrap();
    let _socket = UnixListener::bind(path("socket")).unwrap();
    age(dir.path());

    let (_, tar) = pack(dir.path(), None);
    let old = "2001-09-09 01:46:40";
    assert_eq!(
        listing(&tar),
        [
            format!("drwxr-xr-x 0/0 0 {old} ./"),
            format!("drwxrwsrwt 0/0 0 {old} dir/"),
            format!("lrwxrwxrwx 7/8 0 {old} dir/sym -> ../far away"),
            format!("prw-r----- 0/0 0 {old} fifo"),
            format!("-rw-r--r-- 0/0 7 {old} file"),
            // In the place of the name that they hide.
            "-rw-r--r-- 0/0 0 1970-01-01 00:00:00 .wh.gone".to_owned(),
            "-rw-r--r-- 0/0 0 1970-01-01 00:00:00 .wh.gone too".to_owned(),
            format!("hrw-r--r-- 0/0 0 {old} link link to file"),
            format!("brw-r----- 0/0 7,300 {old} loop"),
            format!("crw-r----- 0/0 1,3 {old} null"),
            format!("-rws--x--x 0/3000000 0 {old} setuid"),
        ]
    );
}

#[test]
fn what_another_tar_unpacks_packs_to_the_same_bytes() {
    if !root() {
        return;
    }
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = |name: &str| from.path().join(name);
    let long = format!("{}/{}", "d".repeat(200), "n".repeat(200));
    fs::create_dir(path(&"d".repeat(200))).unwrap();
    fs::write(path(&long), vec![7; 100_000]).unwrap();
    fs::hard_link(path(&long), path("short")).unwrap();
    symlink("t".repeat(300), path("sym")).unwrap();
    fs::write(path("cap"), "x").unwrap();
    chown(path("cap"), Some(4_000_000), Some(5)).unwrap();
    // struct vfs_cap_data, revision 2: cap_net_raw permitted and effective.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    lsetxattr(path("cap"), "security.capability", &capability, XattrFlags::empty()).unwrap();
    lsetxattr(path("cap"), "user.note", b"a\0=\n", XattrFlags::empty()).unwrap();
    age(from.path());
    set_mtime(&path("cap"), -2, 750_000_000);
    set_mtime(&path("sym"), 1_000_000_000, 123_456_789);

    let (packed, tar) = pack(from.path(), None);
    let file = to.path().join("layer.tar");
    fs::write(&file, &tar).unwrap();
    let root = to.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut command = Command::new("tar");
    command.args([
        "--extract",
        "--preserve-permissions",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
    ]);
    output(command.arg("--file").arg(&file).arg("--directory").arg(&root));
    let mut value = [0; 64];
    let length = lgetxattr(root.join("cap"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"a\0=\n");
    assert_eq!(fs::symlink_metadata(root.join("cap")).unwrap().mtime(), -2);
    assert_eq!(pack(&root, None).0, packed);
}

#[test]
fn the_same_tree_gives_the_same_digest_whenever_it_was_made() {
    let make = |order: &[&str]| {
        let dir = TempDir::new().unwrap();
        for name in order {
            fs::write(dir.path().join(name), name).unwrap();
        }
        dir
    };
    let (one, two) = (make(&["a", "b", "c"]), make(&["c", "a", "b"]));
    set_mtime(&two.path().join("b"), 4_000_000_000, 5);
    let clamp = UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    let (packed, tar) = pack(one.path(), Some(clamp));
    assert_eq!(pack(two.path(), Some(clamp)).0, packed);
    assert_eq!(names(&tar), ["./", "a", "b", "c"]);
    assert!(listing(&tar).iter().all(|line| line.contains("2017-07-14 02:40:00")), "{:?}", listing(&tar));
    assert_ne!(pack(two.path(), None).0.diff_id, packed.diff_id);
    // Older than the clamp is a fact of the file, and stays.
    set_mtime(&two.path().join("b"), 1_499_999_999, 0);
    assert_ne!(pack(two.path(), Some(clamp)).0.diff_id, packed.diff_id);
}

#[test]
fn the_digest_is_that_of_the_bytes() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("file"), vec![1; 300_000]).unwrap();
    let (packed, tar) = pack(dir.path(), None);
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    let sum = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(packed.diff_id.to_string(), format!("sha256:{}", sum.split(' ').next().unwrap()));
}

#[test]
fn a_sparse_file_keeps_its_length_and_its_zeros() {
    let dir = TempDir::new().unwrap();
    let file = fs::File::create(dir.path().join("sparse")).unwrap();
    file.set_len(1_000_000).unwrap();
    file.write_all_at(b"end", 999_997).unwrap();
    let (_, tar) = pack(dir.path(), None);
    assert!(listing(&tar)[1].contains(" 1000000 "), "{:?}", listing(&tar));
    let content = &tar[tar.len() - 1024 - 1_000_000_usize.next_multiple_of(512)..][..1_000_000];
    assert!(content[..999_997].iter().all(|&byte| byte == 0));
    assert_eq!(&content[999_997..], b"end");
}

#[test]
fn reserved_names_are_refused() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(".wh.file"), "").unwrap();
    let error = write_layer(dir.path(), None, std::io::sink()).unwrap_err();
    assert!(format!("{error:#}").contains("reserved by the image-spec"), "{error:#}");
}

/// Real overlayfs writes the upper directory: removal, replacement, renaming into place.
#[test]
fn an_upper_directory_becomes_the_difference() {
    if !root() {
        return;
    }
    let tar = std::thread::spawn(|| {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(none, "/mnt", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let at = |name: &str| Path::new("/mnt").join(name);
        for name in ["lower/gone", "lower/again", "lower/kept", "upper", "work", "root"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["lower/file", "lower/again/old", "lower/kept/a", "lower/kept/b", "lower/untouched"] {
            fs::write(at(name), "").unwrap();
        }
        let data = "lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work,redirect_dir=off";
        mount(Some("overlay"), "/mnt/root", Some("overlay"), MsFlags::empty(), Some(data)).unwrap();
        fs::remove_file(at("root/file")).unwrap();
        fs::remove_dir(at("root/gone")).unwrap();
        fs::remove_dir_all(at("root/again")).unwrap();
        fs::create_dir(at("root/again")).unwrap();
        fs::write(at("root/again/new"), "").unwrap();
        fs::remove_file(at("root/kept/a")).unwrap();
        // overlayfs marks this one opaque, over nothing.
        fs::create_dir(at("root/unpacked.new")).unwrap();
        fs::rename(at("root/unpacked.new"), at("root/unpacked")).unwrap();
        nix::mount::umount("/mnt/root").unwrap();
        let mut value = [0; 8];
        assert!(
            lgetxattr(at("upper/unpacked"), "trusted.overlay.opaque", &mut value[..]).is_ok(),
            "this kernel marks no renamed directory: the test shows nothing"
        );
        let mut tar = Vec::new();
        write_diff(&at("upper"), &[at("lower")], None, &mut tar).unwrap();
        tar
    });
    assert_eq!(
        names(&tar.join().unwrap()),
        [
            "./",
            "again/",
            "again/.wh..wh..opq",
            "again/new",
            ".wh.file",
            ".wh.gone",
            "kept/",
            "kept/.wh.a",
            "unpacked/"
        ]
    );
}

#[test]
fn a_directory_whose_files_are_elsewhere_is_refused() {
    if !root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let moved = dir.path().join("moved");
    fs::create_dir(&moved).unwrap();
    lsetxattr(&moved, "trusted.overlay.redirect", b"/was/here", XattrFlags::empty()).unwrap();
    let error = write_layer(dir.path(), None, std::io::sink()).unwrap_err();
    assert!(format!("{error:#}").contains("redirect_dir"), "{error:#}");
}

// ---- images ----

#[test]
fn the_tiny_image_is_the_same_image_wherever_it_is_built() {
    if !root() || !can("/bin/busybox (busybox-static)", Path::new("/bin/busybox").exists()) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let started = Instant::now();
    let one = build(&options(Recipe::Tiny, &dir.path().join("one")), &mut |_| ()).unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let two = build(&options(Recipe::Tiny, &dir.path().join("an other/place")), &mut |_| ()).unwrap();
    assert_eq!(one.manifest, two.manifest);
    assert_eq!(one.names, ["tiny:latest"]);

    let (manifest, config) = documents(&one);
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    assert_eq!(config["history"].as_array().unwrap().len(), 2);
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["/bin/sh"]));
    let busybox = fs::metadata("/bin/busybox").unwrap().mtime();
    let date = output(Command::new("date").args(["-u", "+%FT%TZ", "-d", &format!("@{busybox}")]));
    assert_eq!(config["created"], date.trim());
    assert_eq!(left_in(&one.layout), ["blobs", "index.json", "oci-layout"]);
}

fn left_in(dir: &Path) -> Vec<String> {
    let mut names = dir
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect::<Vec<_>>();
    names.sort();
    names
}

#[test]
fn another_unpacker_makes_the_tiny_image_run() {
    if !root() || !installed("umoci") || !can("/bin/busybox", Path::new("/bin/busybox").exists()) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let built = build(&options(Recipe::Tiny, &dir.path().join("layout")), &mut |_| ()).unwrap();
    let rootfs = unpack(&built, &dir.path().join("bundle"));
    let script = "/true && cat /etc/hostname && ls /etc && stat -c %a /tmp && grep -q localhost /etc/hosts";
    let text = output(
        Command::new("chroot").arg(&rootfs).args(["/bin/sh", "-c", script]).env("PATH", "/usr/sbin:/bin"),
    );
    assert_eq!(
        text, "tiny\ngroup\nhostname\nhosts\npasswd\nresolv.conf\n1777\n",
        "motd removed, hostname replaced"
    );
}

#[test]
fn compression_changes_the_blobs_and_not_the_layers() {
    if !root() || !can("/bin/busybox", Path::new("/bin/busybox").exists()) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let made = [
        (Compression::Gzip, "application/vnd.oci.image.layer.v1.tar+gzip"),
        (Compression::Zstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (Compression::None, "application/vnd.oci.image.layer.v1.tar"),
    ]
    .map(|(compression, media_type)| {
        // All into one layout: the last one has the name, the others' blobs are still there.
        let options = BuildOptions { compression, ..options(Recipe::Tiny, dir.path()) };
        let (manifest, config) = documents(&build(&options, &mut |_| ()).unwrap());
        assert_eq!(manifest["layers"][0]["mediaType"], media_type);
        (manifest["layers"][0]["digest"].clone(), config["rootfs"]["diff_ids"].clone())
    });
    assert_eq!(made[0].1, made[1].1);
    assert_eq!(made[0].1, made[2].1);
    assert_ne!(made[0].0, made[1].0);
    assert_eq!(made[2].0, made[2].1[0], "an uncompressed blob's digest is its diffID");
    assert_eq!(index(dir.path())["manifests"].as_array().unwrap().len(), 1);
}

#[test]
fn a_recipe_of_ones_own_stacks_its_layers() {
    if !root() || !installed("umoci") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let recipe = recipe(
        &dir.path().join("recipe"),
        &[
            (
                "1-one",
                "echo making one; echo noise >&2; echo 1 >$ROOT/a; echo 1 >$ROOT/b; echo 1000 >$WORK/date",
            ),
            ("2-two", "cat $ROOT/a; echo 2 >$ROOT/a; rm $ROOT/b; echo 2000 >$WORK/date"),
            ("3-three", "cat $ROOT/a; test ! -e $ROOT/b; echo $SUITE >$ROOT/c; echo 3000 >$WORK/date"),
            ("image", IMAGE),
            ("README", "not a layer"),
        ],
    );
    let mut said = Vec::new();
    let built =
        build(&options(recipe, &dir.path().join("layout")), &mut |line| said.push(line.to_owned())).unwrap();
    said.retain(|line| !line.starts_with("packing"));
    assert_eq!(said, ["making one", "1", "2"]);
    let (_, config) = documents(&built);
    assert_eq!(config["created"], "1970-01-01T00:50:00Z");
    assert_eq!(config["history"][1]["created"], "1970-01-01T00:33:20Z");
    let rootfs = unpack(&built, &dir.path().join("bundle"));
    assert_eq!(left_in(&rootfs), ["a", "c"]);
    assert_eq!(fs::read_to_string(rootfs.join("a")).unwrap(), "2\n");
    assert_eq!(fs::read_to_string(rootfs.join("c")).unwrap(), "bookworm\n");
}

#[test]
fn a_failing_script_is_named_and_leaves_nothing() {
    if !root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let layout = dir.path().join("layout");
    let failing = |name: &str, scripts: &[(&str, &str)]| {
        let recipe = recipe(&dir.path().join(name), scripts);
        let error = build(&options(recipe, &layout), &mut |_| ()).unwrap_err();
        assert!(!layout.join("index.json").exists(), "an image although the build failed");
        assert!(!layout.join(".work").exists(), "the work directory is left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(layout.to_str().unwrap()), "{mounts}");
        format!("{error:#}")
    };
    let broken = "echo the reason >&2; mount -t tmpfs t $ROOT; false; echo not reached >&2";
    let error = failing("broken", &[("1-x", broken), ("image", IMAGE)]);
    assert!(error.contains("recipe broken, script 1-x failed (exit status: 1)"), "{error}");
    assert!(error.contains("the reason") && !error.contains("not reached"), "{error}");

    let error = failing("dateless", &[("1-x", "true"), ("image", IMAGE)]);
    assert!(error.contains("left no $WORK/date"), "{error}");
    let error = failing("misdated", &[("1-x", "echo today >$WORK/date"), ("image", IMAGE)]);
    assert!(error.contains("\"today\""), "{error}");
    let error = failing("nameless", &[("1-x", "echo 1 >$WORK/date"), ("image", "true")]);
    assert!(error.contains("left no $WORK/image.json"), "{error}");
    let error = failing("empty", &[("image", IMAGE)]);
    assert!(error.contains("no layer"), "{error}");
}

#[test]
fn two_builds_do_not_write_to_one_layout() {
    if !root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let _held = {
        let file = fs::File::open(dir.path()).unwrap();
        file.try_lock().unwrap();
        file
    };
    let error = build(&options(Recipe::Tiny, dir.path()), &mut |_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("another build"), "{error:#}");
}

/// Not a test: the build that [`a_killed_build_takes_its_processes_and_mounts_along`] kills.
#[test]
#[ignore = "run by another test"]
fn sleeping_build() {
    let Some(dir) = std::env::var_os("PGBOX_TEST_SLEEPING_BUILD") else { return };
    let dir = PathBuf::from(dir);
    // The shell waits for a child: both have to go, and what the child has detached itself to.
    let script = "echo >$WORK/../started; (setsid sleep 86399 &) ; sleep 86398";
    let recipe = recipe(&dir.join("recipe"), &[("1-sleep", script), ("image", IMAGE)]);
    let _ = build(&options(recipe, &dir.join("layout")), &mut |_| ());
}

#[test]
fn a_killed_build_takes_its_processes_and_mounts_along() {
    if !root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "sleeping_build"])
        .env("PGBOX_TEST_SLEEPING_BUILD", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _killer = Killer(dir.path().join("layout"));
    // $WORK/.. is the layout, on the host's own file system.
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "timeout: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let layout = dir.path().join("layout");
    until("the script starts", &|| layout.join("started").exists() && !working_in(&layout).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    until("its processes end", &|| working_in(&layout).is_empty());
    assert_eq!(left_in(&layout.join(".work")), [""; 0]);
    // And the next build is not disturbed by what is left.
    fs::remove_file(layout.join("started")).unwrap();
    let quick = recipe(&dir.path().join("quick"), &[("1-x", "echo 1 >$WORK/date"), ("image", IMAGE)]);
    build(&options(quick, &layout), &mut |_| ()).unwrap();
    assert_eq!(left_in(&layout), ["blobs", "index.json", "oci-layout"]);
}

/// When the test fails, what it showed to be left over must not stay.
struct Killer(PathBuf);

impl Drop for Killer {
    fn drop(&mut self) {
        for pid in working_in(&self.0) {
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
    }
}

/// Processes whose environment says that they are scripts of a build in `layout`.
fn working_in(layout: &Path) -> Vec<String> {
    let wanted = format!("WORK={}/.work\0", layout.display()).into_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.windows(wanted.len()).any(|window| window == wanted) {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found
}

/// The whole of it: from the Debian archive to a Postgres that another unpacker's root runs.
#[test]
#[ignore = "downloads from the Debian archive; about a minute"]
fn the_postgres_image_is_reproducible_and_runs() {
    if !root() || !installed("umoci") || !can("mmdebstrap", Path::new("/usr/bin/mmdebstrap").exists()) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let one =
        build(&options(Recipe::Postgres, &dir.path().join("one")), &mut |line| eprintln!("{line}")).unwrap();
    assert_eq!(one.names, ["postgres:15", "postgres:latest"]);
    let (_, config) = documents(&one);
    let settings = &config["config"];
    let env = settings["Env"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect::<Vec<_>>();
    assert!(env[0].starts_with("PATH=") && env[0].ends_with(":/usr/lib/postgresql/15/bin"), "{env:?}");
    for wanted in ["LANG=en_US.utf8", "PG_MAJOR=15", "PGDATA=/var/lib/postgresql/data"] {
        assert!(env.contains(&wanted), "{env:?}");
    }
    assert_eq!(settings["StopSignal"], "SIGINT");
    assert!(settings["ExposedPorts"]["5432/tcp"].is_object() && settings.get("User").is_none());

    let rootfs = unpack(&one, &dir.path().join("bundle"));
    let inside = |script: &str| {
        let mut command = Command::new("chroot");
        command.arg(&rootfs).args(["/bin/sh", "-euc", script]).env_clear();
        output(command.env("PATH", "/usr/sbin:/usr/bin:/usr/lib/postgresql/15/bin")).trim().to_owned()
    };
    assert!(inside("postgres --version").starts_with("postgres (PostgreSQL) 15."));
    assert!(inside("locale -a").contains("en_US.utf8"));
    assert!(inside("id postgres").starts_with("uid=999(postgres) gid=999(postgres)"));
    assert_eq!(
        inside("stat -c '%a %U' /var/lib/postgresql/data /run/postgresql"),
        "1777 postgres\n3777 postgres"
    );
    assert_eq!(
        inside(
            "for c in gzip xz zstd; do command -v $c; done | wc -l; dpkg --audit; ls /docker-entrypoint-initdb.d"
        ),
        "3"
    );
    assert_eq!(inside("cat /etc/machine-id; find /etc/apt -name '*.list' -o -name '*.sources'"), "");
    assert_eq!(
        inside("find /etc/ssl -name '*snakeoil*'; find /var/log -type f; ls /dev /var/lib/apt/lists"),
        "/dev:\n\n/var/lib/apt/lists:"
    );
    // A day would show only in a build on another day: no account may be younger than the packages.
    let built_at = config["created"].as_str().unwrap();
    let day = output(Command::new("date").args(["-u", "+%s", "-d", built_at])).trim().parse::<u64>().unwrap()
        / 86_400;
    assert_eq!(inside(&format!("awk -F: '$3 > {day}' /etc/shadow")), "");
    assert_eq!(inside(&format!("find / -xdev -newermt '{built_at}'")), "");
    // initdb as the image's user, in the image's locale.
    inside(
        "(umask 0; mknod /dev/null c 1 3); install -d -o postgres -m 700 /tmp/data; LANG=en_US.utf8 setpriv --reuid=999 --regid=999 --clear-groups initdb -D /tmp/data --no-sync",
    );

    // Another place, another time, another compression: the same layers.
    let plain = BuildOptions {
        compression: Compression::None,
        ..options(Recipe::Postgres, &dir.path().join("a second/place"))
    };
    let (_, again) = documents(&build(&plain, &mut |_| ()).unwrap());
    assert_eq!(again, config);
}
