//! The C library, whose collations every index on text follows.

use std::{fs, path::PathBuf};

use crate::harness::{Host, text};

/// Has pgbox believe that the image has another C library: what it has found in an image once it keeps beside it. The
/// shared store stays as it is.
fn age_image(host: &Host) {
    let images = host.root.join("images");
    let store = fs::read_link(&images).expect("the store");
    fs::remove_file(&images).unwrap();
    fs::create_dir(&images).unwrap();
    for entry in fs::read_dir(&store).unwrap().flatten() {
        let (from, to) = (entry.path(), images.join(entry.file_name()));
        match from.is_dir() {
            true => std::os::unix::fs::symlink(&from, &to).unwrap(),
            false => drop(fs::copy(&from, &to).unwrap()),
        }
    }
    for facts in facts(&images) {
        let text = fs::read_to_string(&facts).unwrap();
        fs::write(&facts, text.replace("glibc 2.", "glibc 1.")).unwrap();
    }
}

fn facts(images: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(images).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().ends_with(".facts.json")).collect()
}

#[test]
fn a_standby_under_another_c_library_is_refused_unless_forced() {
    let Some(host) = Host::new() else { return };
    host.pgbox(&["run", "primary", "postgres:15"]);
    let recorded =
        host.json(&["inspect", "--json", "primary"])[0]["image"]["libc"].as_str().unwrap().to_owned();
    let volume = fs::read_to_string(host.root.join("volumes/default/primary/volume.json")).unwrap();
    assert!(recorded.starts_with("glibc 2.") && volume.contains(&recorded), "{recorded} {volume}");
    age_image(&host);
    let other = recorded.replace("glibc 2.", "glibc 1.");
    let said = host.fails(1, &["replica", "r1", "--of", "primary"]);
    assert!(said.contains(&recorded) && said.contains(&other) && said.contains("--force"), "{said}");
    assert_eq!(host.pgbox(&["ps", "-q"]), "primary\n");
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(host.sql("primary", &[], slots), "0");
    let output = host.try_pgbox(&["replica", "r1", "--of", "primary", "--force"]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("warning") && said.contains(&other), "{said}");
    assert_eq!(host.sql("primary", &[], slots), "1");
    // A primary on data that was written under another one is warned before its server starts.
    host.pgbox(&["rm", "-f", "primary"]);
    let output = host.try_pgbox(&["run", "primary", "postgres:15"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains(&format!("the data was written under {recorded}, this image has {other}")),
        "{said}"
    );
    // It is recorded for the next one.
    host.pgbox(&["stop", "primary"]);
    let output = host.try_pgbox(&["start", "primary"]);
    assert!(!text(&output.stderr).contains("written under"), "{}", text(&output.stderr));
}

#[test]
fn up_refuses_another_c_library_for_a_standby_and_records_that_of_a_primary() {
    let Some(host) = Host::new() else { return };
    let file = host.scratch("files").join("lab.toml");
    let path = file.to_str().unwrap();
    let primary = "[nodes.primary]\nimage = 'postgres:15'\n";
    fs::write(&file, format!("{primary}[nodes.r1]\nof = 'primary'\n")).unwrap();
    host.pgbox(&["up", path]);
    let libc =
        || host.json(&["inspect", "--json", "primary"])[0]["image"]["libc"].as_str().unwrap().to_owned();
    let recorded = libc();
    let other = recorded.replace("glibc 2.", "glibc 1.");
    let pid = host.init_pid("r1");
    age_image(&host);
    fs::write(&file, format!("{primary}[nodes.r1]\nof = 'primary'\nenv = {{ X = 1 }}\n")).unwrap();
    let said = host.fails(1, &["up", path]);
    assert!(said.contains(&recorded) && said.contains(&other), "{said}");
    assert_eq!(host.init_pid("r1"), pid, "it runs as before");
    host.pgbox(&["rm", "-f", "r1"]);
    fs::write(&file, format!("{primary}env = {{ X = 1 }}\n")).unwrap();
    let said = text(&host.try_pgbox(&["up", path]).stderr);
    assert!(said.contains(&format!("written under {recorded}, this image has {other}")), "{said}");
    assert_eq!(libc(), other);
}
