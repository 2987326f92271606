//! The image commands as somebody uses them, against a store that is made for the test.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::harness::{Host, run};

/// A store of its own, to which images can be added and from which they can be removed.
pub fn own_store(host: &Host) {
    for part in ["images", "layers"] {
        fs::remove_file(host.root.join(part)).unwrap();
    }
}

/// An OCI layout with a small image under these names, made with a tool that others use.
pub fn layout(host: &Host, names: &[&str]) -> std::path::PathBuf {
    let at = host.scratch("work").join("layout");
    let path = at.to_str().unwrap();
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    run("umoci", &["init", "--layout", path]);
    run("umoci", &["new", "--image", &format!("{path}:{}", names[0])]);
    let root = host.scratch("rootfs");
    run("umoci", &["unpack", "--image", &format!("{path}:{}", names[0]), root.to_str().unwrap()]);
    fs::create_dir_all(root.join("rootfs/bin")).unwrap();
    fs::copy("/bin/busybox", root.join("rootfs/bin/busybox")).unwrap();
    for applet in ["echo", "cat"] {
        std::os::unix::fs::symlink("busybox", root.join("rootfs/bin").join(applet)).unwrap();
    }
    run("mknod", &["-m", "666", root.join("rootfs/null").to_str().unwrap(), "c", "1", "3"]);
    run("umoci", &["repack", "--image", &format!("{path}:{}", names[0]), root.to_str().unwrap()]);
    for name in &names[1..] {
        run("umoci", &["tag", "--image", &format!("{path}:{}", names[0]), name]);
    }
    at
}

fn names(host: &Host) -> Vec<String> {
    let all = host.json(&["image", "ls", "--json"]);
    let names = all.as_array().unwrap().iter().flat_map(|image| image["names"].as_array().unwrap().clone());
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_image_is_imported_with_all_its_names_and_from_every_form() {
    let Some(host) = Host::new() else { return };
    let layout = layout(&host, &["busy:1", "busy:latest"]);
    own_store(&host);
    let path = layout.to_str().unwrap();
    assert_eq!(host.pgbox(&["image", "import", path]), "busy:1\nbusy:latest\n");
    assert_eq!(names(&host), ["busy:1", "busy:latest"]);
    assert_eq!(host.pgbox(&["run", "--rm", "t", "busy", "--", "/bin/echo", "hello"]), "hello\n");
    host.pgbox(&["image", "rm", "busy:1"]);
    assert_eq!(names(&host), ["busy:latest"]);
    host.pgbox(&["image", "rm", "busy:latest"]);
    assert_eq!(fs::read_dir(host.root.join("layers")).unwrap().count(), 0, "a layer of no image is left");
    // An OCI archive, and one as `docker save` writes it.
    let oci = host.scratch("work").join("oci.tar");
    run("tar", &["-C", path, "-cf", oci.to_str().unwrap(), "."]);
    host.pgbox(&["image", "import", "--name", "from:oci", &format!("{}:busy:1", oci.display())]);
    let saved = host.scratch("work").join("saved.tar");
    let (from, to) = (format!("oci:{path}:busy:1"), format!("docker-archive:{}:busy:saved", saved.display()));
    run("skopeo", &["copy", "--insecure-policy", "-q", &from, &to]);
    host.pgbox(&["image", "import", saved.to_str().unwrap()]);
    for image in ["from:oci", "busy:saved"] {
        assert_eq!(host.pgbox(&["run", "--rm", "t", image, "--", "/bin/echo", image]), format!("{image}\n"));
    }
}

/// `/null` of the image is the kernel's null device by its number, as another one would be the host's disk.
#[test]
fn a_device_that_an_image_brings_opens_nothing() {
    let Some(host) = Host::new() else { return };
    let layout = layout(&host, &["busy:1"]);
    own_store(&host);
    host.pgbox(&["image", "import", layout.to_str().unwrap()]);
    assert_eq!(host.pgbox(&["run", "--rm", "t", "busy:1", "--", "/bin/cat", "/dev/null"]), "");
    let said = host.fails(1, &["run", "--rm", "t", "busy:1", "--", "/bin/cat", "/null"]);
    assert!(said.contains("/null") && said.contains("Permission denied"), "{said}");
}

#[test]
fn an_image_with_a_wrong_digest_or_a_corrupt_layer_is_refused_and_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let layout = layout(&host, &["busy:1"]);
    own_store(&host);
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = blob(&layout, &index["manifests"][0]["digest"]);
    let documents: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let layer = blob(&layout, &documents["layers"].as_array().unwrap().last().unwrap()["digest"]);
    for (what, file) in [("layer", layer), ("manifest", manifest)] {
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&file, bad).unwrap();
        let said = host.fails(1, &["image", "import", layout.to_str().unwrap()]);
        assert!(said.contains(what) || said.contains("blob sha256:"), "{what}: {said}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        assert_eq!(names(&host), Vec::<String>::new());
        let left =
            fs::read_dir(host.root.join("layers")).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir());
        assert_eq!(left.count(), 0, "{what}: half a layer is left");
        fs::write(&file, good).unwrap();
    }
    host.pgbox(&["image", "import", layout.to_str().unwrap()]);
}

fn blob(layout: &Path, digest: &Value) -> std::path::PathBuf {
    layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"))
}

#[test]
fn an_image_that_a_stopped_node_needs_is_not_removed() {
    let Some(host) = Host::new() else { return };
    let layout = layout(&host, &["busy:1"]);
    own_store(&host);
    host.pgbox(&["image", "import", layout.to_str().unwrap()]);
    host.pgbox(&["run", "t", "busy:1", "--", "/bin/echo", "once"]);
    let said = host.fails(1, &["image", "rm", "busy:1"]);
    assert!(said.contains("in use by t") && said.contains("pgbox rm t"), "{said}");
    host.pgbox(&["start", "t"]);
    host.pgbox(&["wait", "t", "--for", "stopped"]);
    host.pgbox(&["rm", "t"]);
    host.pgbox(&["image", "rm", "busy:1"]);
    assert_eq!(names(&host), Vec::<String>::new());
}

#[test]
fn a_working_directory_that_the_image_lacks_is_made() {
    let Some(host) = Host::new() else { return };
    let layout = layout(&host, &["busy:1"]);
    let path = format!("{}:busy:1", layout.display());
    run("umoci", &["config", "--image", &path, "--config.workingdir", "/not/there"]);
    own_store(&host);
    host.pgbox(&["image", "import", layout.to_str().unwrap()]);
    let said = host.pgbox(&["run", "--rm", "t", "busy:1", "--", "/bin/busybox", "pwd"]);
    assert_eq!(said, "/not/there\n");
}

#[test]
fn an_image_that_is_mounted_is_not_removed_below_it() {
    let Some(host) = Host::new() else { return };
    let layout = layout(&host, &["busy:1"]);
    own_store(&host);
    host.pgbox(&["image", "import", layout.to_str().unwrap()]);
    // Of two layers, which takes an overlay.
    let (from, root) = (format!("{}:busy:1", layout.display()), host.scratch("second"));
    run("umoci", &["unpack", "--image", &from, root.to_str().unwrap()]);
    fs::write(root.join("rootfs/more"), "x").unwrap();
    run("umoci", &["repack", "--image", &format!("{}:busy:2", layout.display()), root.to_str().unwrap()]);
    host.pgbox(&["image", "import", &format!("{}:busy:2", layout.display())]);
    let at = host.scratch("mnt");
    let path = at.to_str().unwrap();
    // The other one is not mounted: its layers are those of one that stays.
    for (image, other) in [("busy:2", "busy:1"), ("busy:1", "")] {
        host.pgbox(&["image", "mount", image, path]);
        let said = host.fails(1, &["image", "rm", image]);
        assert!(said.contains(&format!("is mounted at {path}")) && said.contains("image umount"), "{said}");
        if !other.is_empty() {
            host.pgbox(&["image", "rm", other]);
            host.pgbox(&["image", "import", &from]);
        }
        assert!(at.join("bin/busybox").exists(), "its files are gone");
        host.pgbox(&["image", "umount", path]);
        host.pgbox(&["image", "rm", image]);
    }
    assert_eq!(names(&host), Vec::<String>::new());
}

#[test]
fn an_image_can_be_mounted_to_look_around_in_it() {
    let Some(host) = Host::new() else { return };
    let at = host.scratch("mnt");
    let path = at.to_str().unwrap();
    host.pgbox(&["image", "mount", "postgres:15", path]);
    assert!(at.join("usr/lib/postgresql/15/bin/postgres").exists());
    assert!(fs::write(at.join("x"), "").is_err(), "it can be written to");
    let inside = fs::File::open(at.join("usr")).unwrap();
    let said = host.fails(1, &["image", "umount", path]);
    assert!(said.contains("is in use") && said.contains("fuser"), "{said}");
    drop(inside);
    host.pgbox(&["image", "umount", path]);
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    for place in [path, "/nowhere"] {
        assert!(host.fails(1, &["image", "umount", place]).contains("hint:  `findmnt"), "{place}");
    }
    // Of what it shows, one value for a reader and one for a program.
    let value = host.json(&["image", "inspect", "--json", "postgres:15"]);
    assert_eq!(value["exposed_ports"], json!(["5432/tcp"]));
}
