//! Hostile images: each is refused, with an error that names the object, or contained; a canary outside the store is
//! never touched nor read.

mod layers;

use layers::layout::{gzip, sha256};
use layers::tar::{Format, record};
use layers::{Compression, Head, Layout, Scratch, Tar, tree};
use pgbox::image::Limits;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const SECRET: &str = "the host's secret";

/// A directory outside the store, which must be the same afterwards.
struct Canary {
    scratch: Scratch,
    before: String,
}

impl Canary {
    fn new() -> Option<Canary> {
        let scratch = Scratch::new()?;
        let outside = scratch.path("outside");
        std::fs::create_dir_all(outside.join("dir")).unwrap();
        std::fs::write(outside.join("canary"), SECRET).unwrap();
        std::fs::set_permissions(outside.join("canary"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(outside.join("dir/low"), "low").unwrap();
        let before = tree::show(&outside);
        Some(Canary { scratch, before })
    }

    fn outside(&self, name: &str) -> String {
        self.scratch.path("outside").join(name).to_str().unwrap().to_owned()
    }

    fn layout(&self, layout: &Layout) -> Result<String, String> {
        self.layout_within(layout, Limits::default())
    }

    fn layout_within(&self, layout: &Layout, limits: Limits) -> Result<String, String> {
        let src = self.scratch.path("layout");
        layout.write(&src);
        self.import_within(&src, limits)
    }

    fn import(&self, src: &Path) -> Result<String, String> {
        self.import_within(src, Limits::default())
    }

    fn import_within(&self, src: &Path, limits: Limits) -> Result<String, String> {
        let result = self.scratch.merged_within(src, limits);
        assert_eq!(tree::show(&self.scratch.path("outside")), self.before, "the canary was touched");
        let names = std::fs::read_dir(self.scratch.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        for name in names {
            assert!(
                ["outside", "layout", "root", "merged", "image.tar"].contains(&&name[..]),
                "{name} was made outside of the store"
            );
        }
        // What is refused early does not even make the store.
        let layers = std::fs::read_dir(self.scratch.path("root/layers")).into_iter().flatten();
        for name in layers.map(|e| e.unwrap().file_name().into_string().unwrap()) {
            assert!(!name.starts_with("tmp-"), "{name} is left in the store");
        }
        if let Ok(tree) = &result {
            assert!(!tree.contains(SECRET), "the secret is in the image:\n{tree}");
        } else {
            assert!(self.scratch.store().resolve("test").is_err(), "a refused image has a name");
        }
        result
    }

    fn layers(&self, layers: &[Vec<u8>]) -> Result<String, String> {
        self.layout(&Layout::of(layers))
    }

    /// Refused, with all of `words` in the error.
    #[track_caller]
    fn refused(&self, layers: &[Vec<u8>], words: &[&str]) {
        refused(self.layers(layers), words);
    }

    /// Either way is right, as long as nothing gets out.
    #[track_caller]
    fn contained(&self, layers: &[Vec<u8>], lines: &[&str]) {
        let tree = self.layers(layers).unwrap();
        for line in lines {
            assert!(tree.lines().any(|l| l == *line), "{line:?} is not in\n{tree}");
        }
    }
}

#[track_caller]
fn refused(result: Result<String, String>, words: &[&str]) {
    let error = match result {
        Ok(tree) => panic!("it was not refused:\n{tree}"),
        Err(error) => error,
    };
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

fn root() -> Head {
    Head::dir("./")
}

fn file(name: &str, data: &str) -> Head {
    Head::file(name, data)
}

macro_rules! hostile {
    ($(fn $name:ident($canary:ident) $body:block)*) => {
        $(#[test] fn $name() { let Some($canary) = Canary::new() else { return }; $body })*
    };
}

// Names.
hostile! {
    fn dot_dot(canary) {
        canary.refused(&[Tar::of([root(), file("../outside/canary", "evil")])], &["../outside/canary", "`..`"]);
    }

    fn dot_dot_inside(canary) {
        canary.refused(&[Tar::of([root(), Head::dir("a"), file("a/../../outside/canary", "evil")])], &["a/../../outside/canary"]);
    }

    fn dot_dot_in_a_pax_path(canary) {
        canary.refused(&[Tar::of([root(), file("a", "evil").pax("path", "../outside/canary")])], &["../outside/canary"]);
    }

    fn dot_dot_in_a_long_name(canary) {
        let long = Head { data: b"../outside/canary\0".to_vec(), ..Head::new(b'L', "././@LongLink", 0o644) };
        canary.refused(&[Tar::of([root(), long, file("a", "evil")])], &["../outside/canary"]);
    }

    fn dot_dot_in_a_sparse_name(canary) {
        let sparse = file("a", "evil").pax("GNU.sparse.map", "0,4").pax("GNU.sparse.size", "4").pax("GNU.sparse.name", "../outside/canary");
        canary.refused(&[Tar::of([root(), sparse])], &["`..`"]);
    }

    fn absolute(canary) {
        let name = canary.outside("canary");
        canary.contained(&[Tar::of([root(), file("a", "x").pax("path", &name)])], &[&format!("f 644 0:0 @1000 {} \"x\"", &name[1..])]);
    }

    fn empty_name(canary) {
        canary.refused(&[Tar::of([root(), file("", "x")])], &["empty name"]);
    }

    fn nul_in_a_pax_path(canary) {
        canary.refused(&[Tar::of([root(), file("a", "x").pax("path", "etc/passwd\0.txt")])], &["path", "NUL"]);
    }

    fn too_many_levels(canary) {
        canary.refused(&[Tar::of([root(), file("a", "x").pax("path", "d/".repeat(1500) + "f")])], &["1501 directories deep"]);
    }

    fn too_many_levels_one_by_one(canary) {
        let dirs = (1..=1500).map(|n| Head::dir("d").pax("path", "d/".repeat(n)));
        canary.refused(&[Tar::of(dirs)], &["257 directories deep"]);
    }

    fn a_part_that_is_too_long(canary) {
        canary.refused(&[Tar::of([root(), file("a", "x").pax("path", "n".repeat(256))])], &["255"]);
    }

    fn the_root_as_a_symlink(canary) {
        canary.refused(&[Tar::of([Head::symlink("./", canary.outside(""))])], &["root"]);
    }
}

// Links.
hostile! {
    fn parent_symlink(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("s", canary.outside("")), file("s/canary", "evil")])],
            &[&format!("f 644 0:0 @1000 {} \"evil\"", &canary.outside("canary")[1..])],
        );
    }

    fn parent_symlink_relative(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("s", "../../../../../../outside"), file("s/canary", "evil")])],
            &["f 644 0:0 @1000 outside/canary \"evil\""],
        );
    }

    fn parent_symlink_in_two_steps(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("t", canary.outside("")), Head::symlink("s", "t"), file("s/canary", "evil")])],
            &[&format!("f 644 0:0 @1000 {} \"evil\"", &canary.outside("canary")[1..])],
        );
    }

    fn parent_symlink_of_a_lower_layer(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("s", canary.outside(""))]), Tar::of([root(), file("s/canary", "evil")])],
            &[&format!("f 644 0:0 @1000 {} \"evil\"", &canary.outside("canary")[1..])],
        );
    }

    fn parent_symlink_of_a_lower_layer_in_two_steps(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("t", "../../outside")]), Tar::of([Head::symlink("s", "/t")]), Tar::of([file("s/canary", "evil")])],
            &["f 644 0:0 @1000 outside/canary \"evil\""],
        );
    }

    fn parent_symlink_loop(canary) {
        canary.refused(&[Tar::of([root(), Head::symlink("a", "b"), Head::symlink("b", "a"), file("a/x", "x")])], &["a/x", "40 symbolic links"]);
    }

    fn parent_symlink_loop_of_a_lower_layer(canary) {
        canary.refused(
            &[Tar::of([root(), Head::symlink("a", "b"), Head::symlink("b", "a")]), Tar::of([file("a/x", "x")])],
            &["a/x", "40 symbolic links"],
        );
    }

    fn parent_is_a_file(canary) {
        canary.refused(&[Tar::of([root(), file("f", "x"), file("f/y", "y")])], &["f/y", "not a directory"]);
    }

    fn final_symlink(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("f", canary.outside("canary")), file("f", "evil")])],
            &["f 644 0:0 @1000 f \"evil\""],
        );
    }

    fn final_symlink_dangling(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("f", canary.outside("new")), file("f", "evil")])],
            &["f 644 0:0 @1000 f \"evil\""],
        );
    }

    fn hard_link_up(canary) {
        canary.refused(&[Tar::of([root(), Head::link("h", "../outside/canary")])], &["`..`", "hard link"]);
    }

    fn hard_link_absolute(canary) {
        canary.refused(&[Tar::of([root(), Head::link("h", canary.outside("canary"))])], &["hard link", "neither this layer nor one below"]);
    }

    fn hard_link_through_a_symlink(canary) {
        canary.refused(&[Tar::of([root(), Head::symlink("s", canary.outside("")), Head::link("h", "s/canary")])], &["hard link", "s/canary"]);
    }

    fn hard_link_through_a_lower_symlink(canary) {
        canary.refused(
            &[Tar::of([root(), Head::symlink("s", canary.outside(""))]), Tar::of([Head::link("h", "s/canary")])],
            &["hard link", "s/canary"],
        );
    }

    fn hard_link_to_a_symlink_then_written(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("s", canary.outside("canary")), Head::link("h", "s"), file("h", "evil")])],
            &["f 644 0:0 @1000 h \"evil\""],
        );
    }

    fn hard_link_to_a_directory(canary) {
        canary.refused(&[Tar::of([root(), Head::dir("d"), Head::link("h", "d")])], &["hard link", "directory"]);
    }
}

// Attributes through links (CVE-2026-33056).
hostile! {
    fn chmod_through_a_symlink(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("d", canary.outside("dir")), Head::dir("d").mode(0o777)])],
            &["d 777 0:0 @1000 d"],
        );
    }

    fn chmod_through_a_symlink_of_a_lower_layer(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("d", canary.outside("dir"))]), Tar::of([Head::dir("d").mode(0o4777).owner(5, 5)])],
            &["d 4777 5:5 @1000 d"],
        );
    }

    fn chmod_of_a_symlink(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("l", canary.outside("canary")).mode(0o6777)])],
            &[&format!("l 777 0:0 @1000 l -> {}", canary.outside("canary"))],
        );
    }

    fn chown_through_a_symlink(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("l", canary.outside("canary")).owner(5, 5)])],
            &[&format!("l 777 5:5 @1000 l -> {}", canary.outside("canary"))],
        );
    }

    fn utimes_through_a_symlink(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("l", canary.outside("canary")).mtime(5), Head::symlink("m", canary.outside("dir")), Head::dir("m").mtime(6)])],
            &[&format!("l 777 0:0 @5 l -> {}", canary.outside("canary")), "d 755 0:0 @6 m"],
        );
    }

    fn xattr_through_a_symlink(canary) {
        // trusted.*: the kernel allows no user.* on symbolic links.
        canary.contained(
            &[Tar::of([root(), Head::symlink("l", canary.outside("canary")).xattr("trusted.evil", "x"), Head::symlink("m", canary.outside("dir")), Head::dir("m").xattr("user.evil", "x")])],
            &["d 755 0:0 @1000 m {user.evil=x}"],
        );
    }

    fn a_directory_replaced_by_a_symlink_gets_no_attributes(canary) {
        canary.contained(
            &[Tar::of([root(), Head::dir("d").mode(0o777).mtime(6).owner(5, 5), Head::symlink("d", canary.outside("dir"))])],
            &[&format!("l 777 0:0 @1000 d -> {}", canary.outside("dir"))],
        );
    }
}

// Whiteouts.
hostile! {
    fn whiteout_of_dot(canary) {
        canary.refused(&[Tar::of([root(), Head::dir("d"), file("d/.wh..", "")])], &["d/.wh..", "whiteout of nothing"]);
    }

    fn whiteout_of_nothing(canary) {
        canary.refused(&[Tar::of([root(), file(".wh.", "")])], &["whiteout of nothing"]);
    }

    fn whiteout_of_dot_dot(canary) {
        canary.refused(&[Tar::of([root(), file(".wh...", "")])], &["whiteout of nothing"]);
    }

    fn below_a_whiteout(canary) {
        canary.refused(&[Tar::of([root(), file(".wh.d/x", "")])], &[".wh.d", "reserved"]);
    }

    fn whiteout_through_a_symlink(canary) {
        canary.contained(&[Tar::of([root(), Head::symlink("s", canary.outside("")), file("s/.wh.canary", ""), file("s/.wh.dir", "")])], &[]);
    }

    fn whiteout_through_a_lower_symlink(canary) {
        canary.contained(&[Tar::of([root(), Head::symlink("s", canary.outside(""))]), Tar::of([file("s/.wh.canary", ""), file("s/dir/.wh.low", "")])], &[]);
    }

    fn opaque_through_a_symlink(canary) {
        canary.contained(
            &[Tar::of([root(), Head::symlink("s", canary.outside(""))]), Tar::of([file("s/.wh..wh..opq", ""), Head::symlink("t", canary.outside("dir")), file("t/.wh..wh..opq", "")])],
            &[],
        );
    }

    fn a_device_that_overlayfs_takes_for_a_whiteout(canary) {
        canary.refused(&[Tar::of([root(), file("a", "x")]), Tar::of([root(), Head::new(b'3', "a", 0o600)])], &["\"a\"", "0:0"]);
    }
}

// Lengths.
hostile! {
    fn pax_size_smuggling(canary) {
        // A reader that takes the header's size (0) finds this file's content to be entries.
        let inner = Tar::new().add(file("smuggled", "evil")).end();
        canary.contained(
            &[Tar::of([root(), Head { data: inner.clone(), ..file("a", "") }.size(0).pax("size", inner.len().to_string()), file("b", "b")])],
            &["f 644 0:0 @1000 b \"b\""],
        );
        let tree = canary.scratch.merged(&canary.scratch.path("layout")).unwrap();
        assert!(!tree.contains("smuggled"), "{tree}");
    }

    fn pax_size_smuggling_the_other_way(canary) {
        // The header's size covers an entry that the pax size (0) leaves in the open: pax counts.
        let inner = Tar::new().add(file("seen", "by pax")).0;
        canary.contained(
            &[Tar::of([root(), Head { data: inner.clone(), ..file("a", "") }.pax("size", "0"), file("b", "b")])],
            &["f 644 0:0 @1000 a", "f 644 0:0 @1000 b \"b\"", "f 644 0:0 @1000 seen \"by pax\""],
        );
    }

    fn two_pax_headers(canary) {
        let pax = |size: &str| Head { data: record(b"size", size.as_bytes()), ..Head::new(b'x', "pax", 0o644) };
        canary.refused(&[Tar::of([root(), pax("1"), pax("0"), file("a", "x")])], &["two pax headers"]);
    }

    fn size_in_a_global_header(canary) {
        let global = Head { data: record(b"size", b"0"), ..Head::new(b'g', "g", 0o644) };
        canary.refused(&[Tar::of([root(), global, file("a", "x")])], &["global", "size"]);
    }

    fn a_symlink_with_data(canary) {
        let inner = Tar::new().add(file("smuggled", "evil")).0;
        canary.refused(&[Tar::of([root(), Head { data: inner, ..Head::symlink("l", "x") }])], &["\"l\"", "data"]);
    }

    fn a_directory_with_data(canary) {
        let inner = Tar::new().add(file("smuggled", "evil")).0;
        canary.refused(&[Tar::of([root(), Head { data: inner, ..file("d/", "") }])], &["\"d/\"", "directory", "data"]);
    }

    fn negative_size(canary) {
        canary.refused(&[Tar::of([root(), file("a", "").size(-512)])], &["-512"]);
    }

    fn negative_size_in_pax(canary) {
        canary.refused(&[Tar::of([root(), file("a", "").pax("size", "-1")])], &["size", "-1"]);
    }

    fn huge_size(canary) {
        canary.refused(&[Tar::of([root(), file("a", "x").size(i64::MAX)])], &["\"a\"", "limit"]);
    }

    fn huge_size_in_pax(canary) {
        canary.refused(&[Tar::of([root(), file("a", "x").pax("size", "18446744073709551615")])], &["size"]);
    }

    fn huge_long_name(canary) {
        let long = Head { size: Some(1 << 40), format: Format::Gnu, ..Head::new(b'L', "././@LongLink", 0o644) };
        canary.refused(&[Tar::of([root(), long, file("a", "x")])], &["extended header", "limit"]);
    }

    fn huge_sparse_file(canary) {
        let sparse = file("a", "").pax("GNU.sparse.map", "4611686018427387904,0").pax("GNU.sparse.size", "4611686018427387904");
        canary.refused(&[Tar::of([root(), sparse])], &["\"a\"", "limit"]);
    }

    fn sparse_map_out_of_order(canary) {
        let sparse = file("a", "12345678").pax("GNU.sparse.map", "100,4,0,4").pax("GNU.sparse.size", "200");
        canary.refused(&[Tar::of([root(), sparse])], &["\"a\"", "sparse map"]);
    }

    fn truncated_file(canary) {
        let tar = Tar::new().add(root()).add(file("a", &"x".repeat(5000))).0;
        canary.refused(&[tar[..3000].to_vec()], &["\"a\"", "cut off"]);
    }

    fn truncated_header(canary) {
        let tar = Tar::new().add(root()).add(file("a", "x")).0;
        canary.refused(&[tar[..700].to_vec()], &["cut off in the middle of a header"]);
    }

    fn a_pax_header_and_no_entry(canary) {
        let pax = Head { data: record(b"path", b"x"), ..Head::new(b'x', "pax", 0o644) };
        canary.refused(&[Tar::of([root(), pax])], &["without the entry"]);
    }

    fn bad_checksum(canary) {
        canary.refused(&[Tar::of([root(), Head { bad_sum: true, ..file("a", "x") }])], &["\"a\"", "checksum"]);
    }

    fn bad_number(canary) {
        canary.refused(&[Tar::of([root(), file("a", "x").patch(108, "0009\0\0\0\0")])], &["\"a\"", "uid"]);
    }

    fn owner_minus_one(canary) {
        canary.refused(&[Tar::of([root(), file("a", "x").pax("uid", "4294967295")])], &["\"a\"", "4294967295"]);
    }

    fn unknown_type(canary) {
        canary.refused(&[Tar::of([root(), Head { flag: b'Q', ..file("a", "x") }])], &["\"a\"", "'Q'"]);
    }

    fn entries_after_the_end(canary) {
        canary.contained(&[Tar(Tar::of([root(), file("a", "1")])).add(file("hidden", "evil")).end()], &["f 644 0:0 @1000 a \"1\""]);
        let tree = canary.scratch.merged(&canary.scratch.path("layout")).unwrap();
        assert!(!tree.contains("hidden"), "{tree}");
    }

    fn an_entry_after_one_end_block(canary) {
        canary.refused(&[Tar::new().add(root()).raw([0; 512]).add(file("hidden", "evil")).end()], &["end block"]);
    }
}

// Bombs.
hostile! {
    fn gzip_bomb(canary) {
        let limits = Limits { free: 1 << 20, ..Limits::default() };
        let tar = Tar::of([root(), file("zeros", &"\0".repeat(64 << 20))]);
        refused(canary.layout_within(&Layout::of(&[tar]), limits), &["layer 1 of 1", "bomb"]);
    }

    fn gzip_bomb_with_the_usual_limits(canary) {
        // 700 MiB of zeros after the end of the archive, in about 700 kB.
        let zeros = gzip(&vec![0; 100 << 20]);
        let tar = Tar::of([root()]);
        let blob = [gzip(&tar), zeros.repeat(7)].concat();
        let layout = Layout::stored(blob, &tar, "application/vnd.oci.image.layer.v1.tar+gzip");
        refused(canary.layout(&layout), &["layer 1 of 1", "bomb"]);
    }

    fn zstd_bomb(canary) {
        let limits = Limits { free: 1 << 20, ..Limits::default() };
        let tar = Tar::of([root(), file("zeros", &"\0".repeat(64 << 20))]);
        refused(canary.layout_within(&Layout::packed(&[tar], Compression::Zstd), limits), &["bomb"]);
    }

    fn more_bytes_than_a_layer_may_have(canary) {
        let limits = Limits { layer: 1 << 20, ..Limits::default() };
        let tar = Tar::new().add(root()).add(file("a", &"x".repeat(900_000))).add(file("b", &"x".repeat(900_000))).end();
        refused(canary.layout_within(&Layout::packed(&[tar], Compression::Plain), limits), &["1048576 bytes"]);
    }

    fn too_many_entries(canary) {
        let limits = Limits { entries: 100, ..Limits::default() };
        let tar = Tar::of((0..101).map(|i| file(&format!("f{i}"), "")));
        refused(canary.layout_within(&Layout::of(&[tar]), limits), &["more than 100 entries"]);
    }

    fn too_many_layers(canary) {
        let layers: Vec<_> = (0..501).map(|_| Vec::new()).collect();
        canary.refused(&layers, &["501 layers"]);
    }

    fn a_manifest_that_is_too_large(canary) {
        let mut layout = Layout::of(&[Tar::of([root()])]);
        layout.edit_manifest = |m| m["annotations"] = json!({"x": "x".repeat(5 << 20)});
        refused(canary.layout(&layout), &["4194304"]);
    }

    fn a_configuration_that_is_too_large(canary) {
        let mut layout = Layout::of(&[Tar::of([root()])]);
        layout.edit_config = |c| c["history"] = json!(["x".repeat(5 << 20)]);
        refused(canary.layout(&layout), &["4194304"]);
    }

    fn an_index_that_is_too_large(canary) {
        let mut layout = Layout::of(&[Tar::of([root()])]);
        layout.edit_index = |i| i["annotations"] = json!({"x": "x".repeat(5 << 20)});
        refused(canary.layout(&layout), &["index.json", "4194304"]);
    }
}

// Documents that lie.
fn one() -> Layout {
    Layout::of(&[Tar::of([root(), file("a", "1")])])
}

/// The layout on disk with one of its blobs changed.
fn with_blob(
    canary: &Canary,
    layout: &Layout,
    which: usize,
    change: impl Fn(&mut Vec<u8>),
) -> Result<String, String> {
    let src = canary.scratch.path("layout");
    layout.write(&src);
    let (name, mut bytes) = layout.files()[which].clone();
    change(&mut bytes);
    std::fs::write(src.join(name), bytes).unwrap();
    canary.import(&src)
}

const MANIFEST: usize = 2;
const CONFIG: usize = 3;
const LAYER: usize = 4;

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
}

hostile! {
    fn another_diff_id(canary) {
        let mut layout = one();
        layout.layers[0].diff_id = sha256(b"something else");
        refused(canary.layout(&layout), &["layer 1 of 1", "diffID", &sha256(b"something else")]);
    }

    fn a_changed_layer(canary) {
        let digest = sha256(&one().layers[0].blob);
        refused(with_blob(&canary, &one(), LAYER, |b| flip(b)), &["layer 1 of 1", &digest, "changed or damaged"]);
    }

    fn a_layer_cut_off(canary) {
        refused(with_blob(&canary, &one(), LAYER, |b| b.truncate(40)), &["layer 1 of 1", "40 bytes", "cut off"]);
    }

    fn a_layer_with_more_at_its_end(canary) {
        refused(with_blob(&canary, &one(), LAYER, |b| b.push(0)), &["layer 1 of 1", "the manifest says"]);
    }

    fn a_missing_layer(canary) {
        let layout = one();
        let src = canary.scratch.path("layout");
        layout.write(&src);
        std::fs::remove_file(src.join(&layout.files()[LAYER].0)).unwrap();
        refused(canary.import(&src), &["layer 1 of 1", "missing"]);
    }

    fn a_changed_manifest(canary) {
        refused(with_blob(&canary, &one(), MANIFEST, |b| flip(b)), &["changed or damaged"]);
    }

    fn a_changed_configuration(canary) {
        refused(with_blob(&canary, &one(), CONFIG, |b| flip(b)), &["changed or damaged"]);
    }

    fn a_manifest_of_another_size(canary) {
        let mut layout = one();
        layout.edit_index = |i| i["manifests"][0]["size"] = json!(17);
        refused(canary.layout(&layout), &["descriptor says 17"]);
    }

    fn a_layer_of_another_size(canary) {
        let mut layout = one();
        layout.edit_manifest = |m| m["layers"][0]["size"] = json!(17);
        refused(canary.layout(&layout), &["the manifest says 17"]);
    }

    fn a_negative_size(canary) {
        let mut layout = one();
        layout.edit_manifest = |m| m["layers"][0]["size"] = json!(-1);
        refused(canary.layout(&layout), &["-1"]);
    }

    fn more_diff_ids_than_layers(canary) {
        let mut layout = one();
        layout.edit_config = |c| {
            let again = c["rootfs"]["diff_ids"][0].clone();
            c["rootfs"]["diff_ids"].as_array_mut().unwrap().push(again);
        };
        refused(canary.layout(&layout), &["1 layers", "2 diff_ids"]);
    }

    fn a_digest_that_is_a_path(canary) {
        let mut layout = one();
        layout.edit_index = |i| i["manifests"][0]["digest"] = json!("sha256:../../../outside/canary");
        refused(canary.layout(&layout), &["sha256:../../../outside/canary"]);
    }

    fn a_layer_s_digest_that_is_a_path(canary) {
        let mut layout = one();
        layout.edit_manifest = |m| m["layers"][0]["digest"] = json!("sha256:../../../outside/canary");
        refused(canary.layout(&layout), &["sha256:../../../outside/canary"]);
    }

    fn a_diff_id_that_is_a_path(canary) {
        let mut layout = one();
        layout.edit_config = |c| c["rootfs"]["diff_ids"][0] = json!("sha256:../../../outside");
        refused(canary.layout(&layout), &["diff_ids", "sha256:../../../outside"]);
    }

    fn a_foreign_layer(canary) {
        for kind in ["application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"] {
            let mut layout = one();
            layout.layers[0].media_type = kind.into();
            refused(canary.layout(&layout), &["layer 1", kind]);
        }
    }

    fn a_layer_of_an_unknown_type(canary) {
        let mut layout = one();
        layout.layers[0].media_type = "text/plain".into();
        refused(canary.layout(&layout), &["layer 1", "text/plain"]);
    }

    fn an_index_and_a_manifest_in_one(canary) {
        let mut layout = one();
        layout.edit_manifest = |m| m["manifests"] = json!([]);
        refused(canary.layout(&layout), &["CVE-2021-41190"]);
    }

    fn a_manifest_that_calls_itself_an_index(canary) {
        let mut layout = one();
        layout.edit_manifest = |m| m["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
        layout.edit_index = |i| i["manifests"][0]["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
        refused(canary.layout(&layout), &["calls itself"]);
    }

    fn an_artifact_that_is_no_image(canary) {
        let mut layout = one();
        layout.edit_manifest = |m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        refused(canary.layout(&layout), &["no container image"]);
    }

    fn indexes_without_end(canary) {
        let src = canary.scratch.path("layout");
        one().write(&src);
        let mut text = String::new();
        for _ in 0..6 {
            let inner = json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": sha256(text.as_bytes()), "size": text.len()});
            text = json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
            std::fs::write(src.join(format!("blobs/sha256/{}", &sha256(text.as_bytes())[7..])), &text).unwrap();
        }
        std::fs::write(src.join("index.json"), &text).unwrap();
        refused(canary.import(&src), &["indexes point to one another"]);
    }

    fn no_json(canary) {
        let src = canary.scratch.path("layout");
        one().write(&src);
        std::fs::write(src.join("index.json"), "{").unwrap();
        refused(canary.import(&src), &["index.json"]);
    }
}

// Files of a layout that are no files.
hostile! {
    fn a_blob_that_is_a_symlink(canary) {
        let src = canary.scratch.path("layout");
        let layout = one();
        layout.write(&src);
        let blob = src.join(&layout.files()[LAYER].0);
        std::fs::remove_file(&blob).unwrap();
        std::os::unix::fs::symlink(canary.outside("canary"), &blob).unwrap();
        refused(canary.import(&src), &["layer 1 of 1", "links are not followed"]);
    }

    fn a_blob_directory_that_is_a_symlink(canary) {
        let src = canary.scratch.path("layout");
        one().write(&src);
        std::fs::rename(src.join("blobs"), canary.scratch.path("merged")).unwrap();
        std::os::unix::fs::symlink(canary.scratch.path("merged"), src.join("blobs")).unwrap();
        refused(canary.import(&src), &["links are not followed"]);
    }

    fn a_blob_that_is_a_fifo(canary) {
        let src = canary.scratch.path("layout");
        let layout = one();
        layout.write(&src);
        let blob = src.join(&layout.files()[LAYER].0);
        std::fs::remove_file(&blob).unwrap();
        nix::unistd::mkfifo(&blob, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused(canary.import(&src), &["not a regular file"]);
    }
}

// Saved images.
fn saved(canary: &Canary, manifest: Value, members: Vec<Head>) -> Result<String, String> {
    let mut heads = members;
    heads.push(Head::file("manifest.json", manifest.to_string()));
    let path = canary.scratch.path("image.tar");
    std::fs::write(&path, Tar::of(heads)).unwrap();
    canary.import(&path)
}

fn config_head() -> Head {
    Head::file("config.json", one().config().to_string())
}

hostile! {
    fn saved_layer_with_dot_dot(canary) {
        let manifest = json!([{"Config": "config.json", "RepoTags": ["t:1"], "Layers": ["../outside/canary"]}]);
        refused(saved(&canary, manifest, vec![config_head()]), &["../outside/canary"]);
    }

    fn saved_layer_with_an_absolute_name(canary) {
        let manifest = json!([{"Config": "config.json", "RepoTags": ["t:1"], "Layers": [canary.outside("canary")]}]);
        refused(saved(&canary, manifest, vec![config_head()]), &["not in the archive"]);
    }

    fn saved_config_with_dot_dot(canary) {
        let manifest = json!([{"Config": "../outside/canary", "RepoTags": ["t:1"], "Layers": []}]);
        refused(saved(&canary, manifest, vec![config_head()]), &["../outside/canary"]);
    }

    fn saved_layer_that_is_a_symlink_out(canary) {
        for target in [canary.outside("canary"), "../../outside/canary".to_string(), "../x/layer.tar".to_string()] {
            let manifest = json!([{"Config": "config.json", "RepoTags": ["t:1"], "Layers": ["x/layer.tar"]}]);
            let result = saved(&canary, manifest, vec![config_head(), Head::symlink("x/layer.tar", target)]);
            assert!(result.is_err());
        }
    }

    fn saved_manifest_twice(canary) {
        let manifest = json!([{"Config": "config.json", "RepoTags": ["t:1"], "Layers": []}]);
        refused(saved(&canary, manifest, vec![config_head(), Head::file("manifest.json", "[]")]), &["manifest.json", "twice"]);
    }

    fn saved_with_another_layer(canary) {
        let manifest = json!([{"Config": "config.json", "RepoTags": ["t:1"], "Layers": ["l.tar"]}]);
        let other = Head::file("l.tar", Tar::of([root(), file("a", "evil")]));
        refused(saved(&canary, manifest, vec![config_head(), other]), &["layer 1 of 1", "diffID"]);
    }
}

// What an image may hold for those who look into its root later.
hostile! {
    fn files_of_the_image_are_looked_up_inside_it(canary) {
        let tree = Tar::of([
            root(),
            Head::dir("etc"), Head::symlink("etc/passwd", canary.outside("canary")), Head::symlink("etc/group", "../../../../../../etc/hostname"),
            Head::symlink("work", canary.outside("dir")), Head::symlink("dev", canary.outside("")),
        ]);
        let src = canary.scratch.path("layout");
        Layout::of(&[tree]).write(&src);
        let image = canary.scratch.store().import(&src, None, &pgbox::image::Silent).unwrap();
        let root = pgbox::sys::fs::open_dir(&image.lowers()[0]).unwrap();
        let open = |path: &str| pgbox::sys::fs::open_in_root(&root, path.as_ref(), rustix::fs::OFlags::RDONLY);
        for name in ["etc/passwd", "etc/group", "dev/canary"] {
            assert!(open(name).is_err(), "{name}");
        }
        assert!(open("work").is_err() && open("dev").is_err());
    }
}
