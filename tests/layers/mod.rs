//! Builds OCI layouts for the tests of the image side, imports them, and shows the merged tree as text.
//!
//! The tars are written byte by byte here, not by a library: a library wouldn't write what a hostile or a very old
//! archiver wrote.
#![allow(dead_code, unused_imports, reason = "each test file uses another part of it")]

pub mod layout;
pub mod tar;
pub mod tree;

pub use layout::{Compression, Layout};
pub use tar::{Head, Tar};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pgbox::image::{Limits, Silent, Store};
use std::path::{Path, PathBuf};

/// A tmpfs of its own in a mount namespace of its own: nothing of a test is left anywhere, not even after a panic.
pub struct Scratch {
    pub dir: tempfile::TempDir,
}

impl Scratch {
    /// `None`, loudly, without root.
    pub fn new() -> Option<Scratch> {
        if !nix::unistd::geteuid().is_root() {
            let required =
                std::env::var_os("CI").is_some() || std::env::var_os("PGBOX_REQUIRE_ROOT").is_some();
            assert!(!required, "this test needs root");
            eprintln!("SKIPPED: needs root for mounts and device nodes");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Some(Scratch { dir })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn store(&self) -> Store {
        Store::open(&self.path("root")).unwrap()
    }

    /// Imports and mounts; the text of the merged tree, or the error.
    pub fn merged(&self, src: &Path) -> Result<String, String> {
        self.merged_within(src, Limits::default())
    }

    pub fn merged_within(&self, src: &Path, limits: Limits) -> Result<String, String> {
        let store = Store::with_limits(&self.path("root"), limits).unwrap();
        let image = store.import(src, Some("test"), &Silent).map_err(|e| format!("{e:#}"))?;
        let target = self.path("merged");
        std::fs::create_dir_all(&target).unwrap();
        pgbox::image::mount(&image, &target).map_err(|e| format!("{e:#}"))?;
        let text = tree::show(&target);
        pgbox::image::umount(&target).unwrap();
        Ok(text)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The namespace, and with it the tmpfs, outlives this only as long as the thread.
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Imports a layout of these layers and compares the merged tree. Lines are compared as a whole, so whatever is there
/// and should not be, is a failure too.
pub fn check(layers: &[Vec<u8>], expected: &[&str]) {
    check_layout(&Layout::of(layers), expected);
}

pub fn check_layout(layout: &Layout, expected: &[&str]) {
    let Some(scratch) = Scratch::new() else { return };
    let src = scratch.path("layout");
    layout.write(&src);
    let found = scratch.merged(&src).unwrap();
    let found: Vec<&str> = found.lines().collect();
    assert_eq!(found, expected, "\nfound:\n{}\n", found.join("\n"));
}
