//! Every lawful case of layers, by the merged tree that overlayfs shows. Numbers are those of the case groups.

mod layers;

use layers::layout::{gzip, sha256};
use layers::tar::Format;
use layers::{Compression, Head, Layout, Scratch, Tar, check, check_layout};

fn root() -> Head {
    Head::dir("./")
}

fn dir(name: &str) -> Head {
    Head::dir(name)
}

fn file(name: &str, data: &str) -> Head {
    Head::file(name, data)
}

fn wh(name: &str) -> Head {
    Head::file(name, "")
}

const ROOT: &str = "d 755 0:0 @1000 .";

// 1. Whiteouts.

#[test]
fn c01_whiteout_of_a_file() {
    check(
        &[
            Tar::of([root(), dir("d"), file("d/a", "a"), file("d/b", "b")]),
            Tar::of([root(), dir("d"), wh("d/.wh.a")]),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "f 644 0:0 @1000 d/b \"b\""],
    );
}

#[test]
fn c01_whiteout_of_a_directory() {
    check(
        &[Tar::of([root(), dir("d"), file("d/a", "a"), file("z", "z")]), Tar::of([wh(".wh.d")])],
        &[ROOT, "f 644 0:0 @1000 z \"z\""],
    );
}

#[test]
fn c01_whiteout_of_nothing_leaves_no_ghost() {
    check(
        &[
            Tar::of([root(), dir("d")]),
            Tar::of([root(), dir("new"), wh("new/.wh.a"), wh("d/.wh.b"), wh(".wh.c"), wh("no/such/.wh.e")]),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "d 755 0:0 @1000 new"],
    );
}

#[test]
fn c01_whiteout_in_the_bottom_layer() {
    check(&[Tar::of([root(), dir("d"), wh("d/.wh.a")])], &[ROOT, "d 755 0:0 @1000 d"]);
}

#[test]
fn c01_whiteout_then_added_again_above() {
    check(
        &[
            Tar::of([root(), dir("d"), file("d/old", "1")]),
            Tar::of([root(), wh(".wh.d")]),
            Tar::of([root(), dir("d"), file("d/new", "2")]),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "f 644 0:0 @1000 d/new \"2\""],
    );
}

// 2. Opaque markers.

fn opaque_case(upper: Vec<Head>) {
    check(
        &[
            Tar::of([
                root(),
                dir("d"),
                file("d/low", "1"),
                dir("d/sub"),
                file("d/sub/x", "x"),
                file("e", "e"),
            ]),
            Tar::of(upper),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "f 644 0:0 @1000 d/up \"2\"", "f 644 0:0 @1000 e \"e\""],
    );
}

#[test]
fn c02_opaque_first() {
    opaque_case(vec![root(), dir("d"), wh("d/.wh..wh..opq"), file("d/up", "2")]);
}

#[test]
fn c02_opaque_last() {
    opaque_case(vec![root(), dir("d"), file("d/up", "2"), wh("d/.wh..wh..opq")]);
}

#[test]
fn c02_opaque_before_its_directory() {
    opaque_case(vec![root(), wh("d/.wh..wh..opq"), dir("d"), file("d/up", "2")]);
}

#[test]
fn c02_opaque_root() {
    check(
        &[
            Tar::of([root(), dir("d"), file("d/low", "1"), file("a", "a"), file("b", "1")]),
            Tar::of([root(), wh(".wh..wh..opq"), dir("d"), file("b", "2")]),
        ],
        &[ROOT, "f 644 0:0 @1000 b \"2\"", "d 755 0:0 @1000 d"],
    );
}

#[test]
fn c02_opaque_root_and_all_that_can_be_said_below_it() {
    check(
        &[
            Tar::of([
                root(),
                dir("d").mode(0o700),
                file("d/low", "1"),
                dir("e"),
                file("e/f", "f"),
                Head::symlink("l", "d"),
            ]),
            Tar::of([
                root(),
                wh(".wh..wh..opq"),
                file("d/up", "2"),
                wh("e/.wh.f"),
                wh("e/.wh..wh..opq"),
                file("l/x", "x"),
            ]),
        ],
        &[
            ROOT,
            "d 755 0:0 @0 d",
            "f 644 0:0 @1000 d/up \"2\"",
            "d 755 0:0 @0 l",
            "f 644 0:0 @1000 l/x \"x\"",
        ],
    );
}

#[test]
fn c02_opaque_keeps_subdirectories_of_its_own_layer() {
    check(
        &[
            Tar::of([root(), dir("d"), dir("d/sub"), file("d/sub/low", "1")]),
            Tar::of([root(), dir("d"), wh("d/.wh..wh..opq"), file("d/sub/up", "2")]),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "d 755 0:0 @0 d/sub", "f 644 0:0 @1000 d/sub/up \"2\""],
    );
}

// 3. An opaque marker alone.

#[test]
fn c03_opaque_without_an_entry_keeps_mode_and_owner() {
    check(
        &[
            Tar::of([
                root(),
                dir("d").mode(0o1770).owner(7, 8).mtime(77).xattr("user.k", "v"),
                file("d/low", "1"),
            ]),
            Tar::of([root(), wh("d/.wh..wh..opq")]),
        ],
        &[ROOT, "d 1770 7:8 @77 d {user.k=v}"],
    );
}

#[test]
fn c03_opaque_without_an_entry_beside_a_file() {
    check(
        &[
            Tar::of([root(), dir("d").mode(0o700).owner(7, 8).mtime(77), file("d/low", "1")]),
            Tar::of([root(), file("d/up", "2"), wh("d/.wh..wh..opq")]),
        ],
        &[ROOT, "d 700 7:8 @77 d", "f 644 0:0 @1000 d/up \"2\""],
    );
}

// 4. A whiteout, and the directory again.

#[test]
fn c04_whiteout_then_directory_again() {
    check(
        &[
            Tar::of([root(), dir("d").mode(0o700), file("d/low", "1")]),
            Tar::of([root(), wh(".wh.d"), dir("d"), file("d/up", "2")]),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "f 644 0:0 @1000 d/up \"2\""],
    );
}

#[test]
fn c04_directory_again_then_whiteout() {
    check(
        &[
            Tar::of([root(), dir("d"), file("d/low", "1")]),
            Tar::of([root(), dir("d"), file("d/up", "2"), wh(".wh.d")]),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "f 644 0:0 @1000 d/up \"2\""],
    );
}

// 5. A file and its whiteout in one layer.

#[test]
fn c05_file_then_its_whiteout() {
    check(
        &[Tar::of([root(), file("a", "1")]), Tar::of([root(), file("a", "2"), wh(".wh.a")])],
        &[ROOT, "f 644 0:0 @1000 a \"2\""],
    );
}

#[test]
fn c05_whiteout_then_its_file() {
    check(
        &[Tar::of([root(), file("a", "1")]), Tar::of([root(), wh(".wh.a"), file("a", "2")])],
        &[ROOT, "f 644 0:0 @1000 a \"2\""],
    );
}

// 6. One kind of file replaces another.

#[test]
fn c06_kinds_replace_each_other() {
    let lower = [
        root(),
        file("fd", "f"),
        dir("df"),
        file("df/x", "x"),
        Head::symlink("ld", "df"),
        dir("dl"),
        file("dl/y", "y"),
        file("fl", "f"),
        Head::symlink("lf", "fd"),
    ];
    let upper = [
        root(),
        dir("fd"),
        file("fd/in", "i"),
        file("df", "now"),
        dir("ld"),
        file("ld/in", "i"),
        Head::symlink("dl", "fd"),
        Head::symlink("fl", "df"),
        file("lf", "file"),
    ];
    check(
        &[Tar::of(lower), Tar::of(upper)],
        &[
            ROOT,
            "f 644 0:0 @1000 df \"now\"",
            "l 777 0:0 @1000 dl -> fd",
            "d 755 0:0 @1000 fd",
            "f 644 0:0 @1000 fd/in \"i\"",
            "l 777 0:0 @1000 fl -> df",
            "d 755 0:0 @1000 ld",
            "f 644 0:0 @1000 ld/in \"i\"",
            "f 644 0:0 @1000 lf \"file\"",
        ],
    );
}

#[test]
fn c06_a_file_between_two_directories() {
    check(
        &[
            Tar::of([root(), dir("d"), file("d/low", "1")]),
            Tar::of([root(), file("d", "f")]),
            Tar::of([root(), dir("d"), file("d/up", "2")]),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "f 644 0:0 @1000 d/up \"2\""],
    );
}

// 7. Hard links.

#[test]
fn c07_hard_links_by_any_spelling() {
    check(
        &[Tar::of([
            root(),
            dir("d"),
            file("d/a", "a"),
            Head::link("b", "./d/a"),
            Head::link("c", "/d/a"),
            Head::link("./e", "d//a"),
        ])],
        &[
            ROOT,
            "f 644 0:0 @1000 b \"a\"",
            "f 644 0:0 @1000 c \"a\" = b",
            "d 755 0:0 @1000 d",
            "f 644 0:0 @1000 d/a \"a\" = b",
            "f 644 0:0 @1000 e \"a\" = b",
        ],
    );
}

#[test]
fn c07_hard_link_to_a_symlink() {
    check(
        &[Tar::of([root(), Head::symlink("l", "/etc/nothing"), Head::link("m", "l")])],
        &[ROOT, "l 777 0:0 @1000 l -> /etc/nothing", "l 777 0:0 @1000 m -> /etc/nothing = l"],
    );
}

#[test]
fn c07_hard_link_replaces_and_is_replaced() {
    check(
        &[Tar::of([
            root(),
            file("a", "a"),
            file("b", "old"),
            Head::link("b", "a"),
            Head::link("c", "a"),
            file("c", "own"),
            Head::link("a", "a"),
        ])],
        &[ROOT, "f 644 0:0 @1000 a \"a\"", "f 644 0:0 @1000 b \"a\" = a", "f 644 0:0 @1000 c \"own\""],
    );
}

#[test]
fn c07_hard_link_over_a_lower_file_and_directory() {
    check(
        &[
            Tar::of([root(), file("b", "low"), dir("d"), file("d/x", "x")]),
            Tar::of([root(), file("a", "a"), Head::link("b", "a"), Head::link("d", "a")]),
        ],
        &[ROOT, "f 644 0:0 @1000 a \"a\"", "f 644 0:0 @1000 b \"a\" = a", "f 644 0:0 @1000 d \"a\" = a"],
    );
}

#[test]
fn c07_hard_link_through_a_symlink_of_its_layer() {
    check(
        &[Tar::of([
            root(),
            dir("real"),
            file("real/a", "a"),
            Head::symlink("way", "/real"),
            Head::link("b", "way/a"),
        ])],
        &[
            ROOT,
            "f 644 0:0 @1000 b \"a\"",
            "d 755 0:0 @1000 real",
            "f 644 0:0 @1000 real/a \"a\" = b",
            "l 777 0:0 @1000 way -> /real",
        ],
    );
}

// 8. Hard links to files that only a lower layer has.

#[test]
fn c08_hard_link_to_a_lower_file() {
    check(
        &[
            Tar::of([root(), dir("d"), file("d/a", "a").mode(0o4755).owner(5, 6)]),
            Tar::of([root(), Head::link("b", "d/a"), Head::link("c", "b")]),
        ],
        &[
            ROOT,
            "f 4755 5:6 @1000 b \"a\"",
            "f 4755 5:6 @1000 c \"a\" = b",
            "d 755 0:0 @1000 d",
            "f 4755 5:6 @1000 d/a \"a\" = b",
        ],
    );
}

#[test]
fn c08_renamed_by_link_and_whiteout() {
    for order in [vec![Head::link("b", "a"), wh(".wh.a")], vec![wh(".wh.a"), Head::link("b", "a")]] {
        let mut upper = vec![root()];
        upper.extend(order);
        check(&[Tar::of([root(), file("a", "a")]), Tar::of(upper)], &[ROOT, "f 644 0:0 @1000 b \"a\""]);
    }
}

#[test]
fn c08_hard_link_to_a_lower_file_that_is_then_replaced() {
    check(
        &[Tar::of([root(), file("a", "old")]), Tar::of([root(), Head::link("b", "a"), file("a", "new")])],
        &[ROOT, "f 644 0:0 @1000 a \"new\"", "f 644 0:0 @1000 b \"old\""],
    );
}

#[test]
fn c08_hard_link_two_layers_down_through_a_lower_symlink() {
    check(
        &[
            Tar::of([
                root(),
                dir("usr"),
                dir("usr/lib"),
                file("usr/lib/a", "a"),
                Head::symlink("lib", "usr/lib"),
            ]),
            Tar::of([root(), file("x", "x")]),
            Tar::of([root(), Head::link("b", "lib/a")]),
        ],
        &[
            ROOT,
            "f 644 0:0 @1000 b \"a\"",
            "l 777 0:0 @1000 lib -> usr/lib",
            "d 755 0:0 @1000 usr",
            "d 755 0:0 @1000 usr/lib",
            "f 644 0:0 @1000 usr/lib/a \"a\" = b",
            "f 644 0:0 @1000 x \"x\"",
        ],
    );
}

// 9. Whiteouts of any type.

#[test]
fn c09_whiteout_as_a_hard_link() {
    check(
        &[
            Tar::of([root(), file("a", "a"), file("b", "b"), file("c", "c")]),
            Tar::of([root(), wh(".wh.a"), Head::link(".wh.b", ".wh.a")]),
        ],
        &[ROOT, "f 644 0:0 @1000 c \"c\""],
    );
}

// 10. Names and formats.

fn long(len: usize) -> String {
    let part = "0123456789".repeat(9);
    format!("{part}/{}", &"x".repeat(len))
}

#[test]
fn c10_gnu_long_name_and_link() {
    let name = long(120);
    let target = "t".repeat(150);
    let tar = Tar::new()
        .add(root())
        .add(dir(&name[..90]))
        .add(Head {
            data: [name.as_bytes(), b"\0"].concat(),
            format: Format::Gnu,
            ..Head::new(b'L', "././@LongLink", 0o644)
        })
        .add(file(&name, "data").format(Format::Gnu))
        .add(Head {
            data: [target.as_bytes(), b"\0"].concat(),
            format: Format::Gnu,
            ..Head::new(b'K', "././@LongLink", 0o644)
        })
        .add(Head::symlink("l", &target).format(Format::Gnu))
        .end();
    check(
        &[tar],
        &[
            ROOT,
            &format!("d 755 0:0 @1000 {}", &name[..90]),
            &format!("f 644 0:0 @1000 {name} \"data\""),
            &format!("l 777 0:0 @1000 l -> {target}"),
        ],
    );
}

#[test]
fn c10_pax_path_and_linkpath() {
    let (name, target) = (long(120), "t".repeat(150));
    check(
        &[Tar::of([
            root(),
            dir(&name[..90]),
            file("short", "data").pax("path", &name),
            Head::symlink("l", "short").pax("linkpath", &target),
            Head::link("h", "short").pax("linkpath", &name),
        ])],
        &[
            ROOT,
            &format!("d 755 0:0 @1000 {}", &name[..90]),
            &format!("f 644 0:0 @1000 {name} \"data\""),
            &format!("f 644 0:0 @1000 h \"data\" = {name}"),
            &format!("l 777 0:0 @1000 l -> {target}"),
        ],
    );
}

#[test]
fn c10_pax_size_replaces_the_header_s() {
    check(
        &[Tar::of([root(), file("a", "0123456789").size(0).pax("size", "10"), file("b", "b")])],
        &[ROOT, "f 644 0:0 @1000 a \"0123456789\"", "f 644 0:0 @1000 b \"b\""],
    );
}

#[test]
fn c10_ustar_prefix() {
    check(
        &[Tar::of([root(), dir("p"), dir("p/q"), Head { prefix: b"p/q".to_vec(), ..file("name", "x") }])],
        &[ROOT, "d 755 0:0 @1000 p", "d 755 0:0 @1000 p/q", "f 644 0:0 @1000 p/q/name \"x\""],
    );
}

#[test]
fn c10_gnu_headers_have_no_prefix() {
    let times =
        Head { prefix: b"15072412345\x0015072412345\0".to_vec(), ..file("name", "x").format(Format::Gnu) };
    check(&[Tar::of([root(), times])], &[ROOT, "f 644 0:0 @1000 name \"x\""]);
}

#[test]
fn c10_v7_headers() {
    check(
        &[Tar::of([
            Head::new(0, "./", 0o755).format(Format::V7),
            Head::new(0, "d/", 0o750).format(Format::V7),
            Head { flag: 0, ..file("d/a", "old") }.format(Format::V7),
            Head::link("b", "d/a").format(Format::V7),
            Head::symlink("l", "d").format(Format::V7),
        ])],
        &[
            ROOT,
            "f 644 0:0 @1000 b \"old\"",
            "d 750 0:0 @1000 d",
            "f 644 0:0 @1000 d/a \"old\" = b",
            "l 777 0:0 @1000 l -> d",
        ],
    );
}

#[test]
fn c10_names_that_are_not_utf8() {
    check(
        &[Tar::of([
            root(),
            dir("d"),
            Head::file(b"d/caf\xe9", "x"),
            Head::symlink("l", b"caf\xe9"),
            Head::file("s", "y").pax("path", b"d/\xff\n="),
        ])],
        &[ROOT, "d 755 0:0 @1000 d", "? d/caf\\xe9", "? d/\\xff\\n=", "l 777 0:0 @1000 l -> caf\\xe9"],
    );
}

// 11. Extended attributes and mode bits.

#[test]
fn c11_capabilities_survive_chown() {
    let cap = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    check(
        &[Tar::of([
            root(),
            file("ping", "x")
                .mode(0o755)
                .owner(3, 4)
                .xattr("security.capability", cap)
                .xattr("user.note", b"a=b\nc"),
            dir("d").xattr("user.on", "dir"),
        ])],
        &[
            ROOT,
            "d 755 0:0 @1000 d {user.on=dir}",
            &format!(
                "f 755 3:4 @1000 ping \"x\" {{security.capability={}}} {{user.note=a=b\\nc}}",
                cap.escape_ascii()
            ),
        ],
    );
}

#[test]
fn c11_setuid_setgid_and_sticky_survive_chown() {
    check(
        &[Tar::of([
            root(),
            file("su", "x").mode(0o4755).owner(3, 4),
            file("sg", "x").mode(0o2755).owner(3, 4),
            dir("sgd").mode(0o2775).owner(3, 4),
            file("sgd/in", "x"),
            dir("t").mode(0o1777),
            file("world", "x").mode(0o666),
        ])],
        &[
            ROOT,
            "f 2755 3:4 @1000 sg \"x\"",
            "d 2775 3:4 @1000 sgd",
            "f 644 0:0 @1000 sgd/in \"x\"",
            "f 4755 3:4 @1000 su \"x\"",
            "d 1777 0:0 @1000 t",
            "f 666 0:0 @1000 world \"x\"",
        ],
    );
}

// 12. Times.

#[test]
fn c12_nanoseconds_and_times_before_1970() {
    check(
        &[Tar::of([
            root(),
            file("a", "").pax("mtime", "1700000000.123456789"),
            file("b", "").pax("mtime", "-1.25"),
            file("c", "").mtime(-5),
            file("d", "").pax("mtime", "7.5"),
        ])],
        &[
            ROOT,
            "f 644 0:0 @1700000000+123456789ns a",
            "f 644 0:0 @-2+750000000ns b",
            "f 644 0:0 @-5 c",
            "f 644 0:0 @7+500000000ns d",
        ],
    );
}

#[test]
fn c12_directory_times_are_set_last() {
    check(
        &[Tar::of([root(), dir("d").mtime(5), dir("d/e").mtime(6), file("d/e/f", "x"), file("d/g", "y")])],
        &[
            ROOT,
            "d 755 0:0 @5 d",
            "d 755 0:0 @6 d/e",
            "f 644 0:0 @1000 d/e/f \"x\"",
            "f 644 0:0 @1000 d/g \"y\"",
        ],
    );
}

#[test]
fn c12_symlinks_have_times_of_their_own() {
    check(
        &[Tar::of([
            root(),
            file("a", "x").mtime(1),
            Head::symlink("l", "a").pax("mtime", "2.5").owner(9, 9),
        ])],
        &[ROOT, "f 644 0:0 @1 a \"x\"", "l 777 9:9 @2+500000000ns l -> a"],
    );
}

#[test]
fn c12_whiteouts_leave_the_directory_s_time() {
    check(
        &[
            Tar::of([root(), dir("d").mtime(5), file("d/a", "a")]),
            Tar::of([root(), dir("d").mtime(6), wh("d/.wh.a")]),
        ],
        &[ROOT, "d 755 0:0 @6 d"],
    );
}

// 13. Large numbers.

#[test]
fn c13_owners_in_base_256_and_pax() {
    check(
        &[Tar::of([
            root(),
            file("a", "").owner(3_000_000, 4_000_000_000),
            file("b", "").pax("uid", "3000001").pax("gid", "4000000001"),
        ])],
        &[ROOT, "f 644 3000000:4000000000 @1000 a", "f 644 3000001:4000000001 @1000 b"],
    );
}

// 14. Special files.

#[test]
fn c14_fifo_and_devices() {
    check(
        &[Tar::of([
            root(),
            Head::new(b'6', "p", 0o622).owner(1, 2),
            Head::new(b'3', "null", 0o666).device(1, 3),
            Head::new(b'4', "disk", 0o660).device(259, 70000).owner(0, 6),
        ])],
        &[ROOT, "b 660 0:6 @1000 disk 259,70000", "c 666 0:0 @1000 null 1,3", "p 622 1:2 @1000 p"],
    );
}

// 15. Sparse files.

fn sparse_line(name: &str, size: usize, parts: &[(usize, &[u8])]) -> String {
    let mut content = vec![0; size];
    for (at, bytes) in parts {
        content[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    format!("f 644 0:0 @1000 {name} {size} bytes {} sparse", &sha256(&content)[7..15])
}

#[test]
fn c15_sparse_pax_1_0() {
    let mut data = b"2\n0\n4\n1048576\n4\n".to_vec();
    data.resize(512, 0);
    data.extend(b"headtail");
    let head = Head::file("GNUSparseFile.0/s", data)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "s")
        .pax("GNU.sparse.realsize", "2097152");
    check(
        &[Tar::of([root(), head, file("z", "z")])],
        &[ROOT, &sparse_line("s", 2097152, &[(0, b"head"), (1048576, b"tail")]), "f 644 0:0 @1000 z \"z\""],
    );
}

#[test]
fn c15_sparse_pax_0_1() {
    let head = Head::file("GNUSparseFile.0/s", "headtail")
        .pax("GNU.sparse.size", "2097152")
        .pax("GNU.sparse.name", "s")
        .pax("GNU.sparse.map", "0,4,1048576,4,2097152,0");
    check(
        &[Tar::of([root(), head, file("z", "z")])],
        &[ROOT, &sparse_line("s", 2097152, &[(0, b"head"), (1048576, b"tail")]), "f 644 0:0 @1000 z \"z\""],
    );
}

fn old_sparse(parts: usize) -> (Head, Vec<(usize, &'static [u8])>) {
    let segment = |i: usize| format!("{:011o}\0{:011o}\0", i * 65536, 4);
    let data = "data".repeat(parts);
    let mut head =
        Head { flag: b'S', ..file("s", &data).format(Format::Gnu) }.patch(483, format!("{:011o}\0", 4 << 20));
    for i in 0..parts.min(4) {
        head = head.patch(386 + 24 * i, segment(i));
    }
    if parts > 4 {
        head = head.patch(482, [1]);
    }
    (head, (0..parts).map(|i| (i * 65536, &b"data"[..])).collect())
}

#[test]
fn c15_sparse_old_gnu() {
    let (head, parts) = old_sparse(3);
    check(
        &[Tar::of([root(), head, file("z", "z")])],
        &[ROOT, &sparse_line("s", 4 << 20, &parts), "f 644 0:0 @1000 z \"z\""],
    );
}

#[test]
fn c15_sparse_old_gnu_with_more_headers() {
    let (head, parts) = old_sparse(30);
    let data = head.data.clone();
    let mut tar = Tar::new().add(root()).add(Head { data: Vec::new(), size: Some(120), ..head });
    for (from, to) in [(4, 25), (25, 30)] {
        let mut block: Vec<u8> =
            (from..to).flat_map(|i| format!("{:011o}\0{:011o}\0", i * 65536, 4).into_bytes()).collect();
        block.resize(512, 0);
        block[504] = u8::from(to < 30);
        tar = tar.raw(block);
    }
    let mut data = data;
    data.resize(512, 0);
    let tar = tar.raw(data).add(file("z", "z")).end();
    check(&[tar], &[ROOT, &sparse_line("s", 4 << 20, &parts), "f 644 0:0 @1000 z \"z\""]);
}

// 16. Duplicate entries.

#[test]
fn c16_the_last_of_duplicate_files_wins() {
    check(
        &[Tar::of([root(), file("a", "first"), file("a", "2").mode(0o600)])],
        &[ROOT, "f 600 0:0 @1000 a \"2\""],
    );
}

#[test]
fn c16_duplicate_directories_keep_their_children() {
    check(
        &[Tar::of([root(), dir("d").mode(0o700), file("d/a", "a"), dir("d/").mode(0o1777).mtime(9)])],
        &[ROOT, "d 1777 0:0 @9 d", "f 644 0:0 @1000 d/a \"a\""],
    );
}

#[test]
fn c16_duplicates_of_another_kind() {
    check(
        &[
            Tar::of([root(), dir("x"), file("x/low", "1")]),
            Tar::of([
                root(),
                file("x", "f"),
                dir("x"),
                dir("y"),
                file("y/in", "i"),
                file("y", "f"),
                Head::symlink("z", "/etc"),
                file("z", "f"),
                dir("w"),
                file("w/in", "i"),
                Head::symlink("w", "x"),
            ]),
        ],
        &[
            ROOT,
            "l 777 0:0 @1000 w -> x",
            "d 755 0:0 @1000 x",
            "f 644 0:0 @1000 y \"f\"",
            "f 644 0:0 @1000 z \"f\"",
        ],
    );
}

// 17. Parents without an entry.

#[test]
fn c17_parents_keep_the_lower_attributes() {
    check(
        &[
            Tar::of([
                root().mode(0o711).mtime(3).owner(1, 1),
                dir("d").mode(0o2750).owner(7, 8).mtime(77).xattr("user.k", "v"),
                dir("d/e").mode(0o700).mtime(78),
            ]),
            Tar::of([file("d/e/new", "x"), file("n/o/p", "y")]),
        ],
        &[
            "d 711 1:1 @3 .",
            "d 2750 7:8 @77 d {user.k=v}",
            "d 700 0:0 @78 d/e",
            "f 644 0:0 @1000 d/e/new \"x\"",
            "d 755 0:0 @0 n",
            "d 755 0:0 @0 n/o",
            "f 644 0:0 @1000 n/o/p \"y\"",
        ],
    );
}

#[test]
fn c17_parents_two_layers_down() {
    check(
        &[
            Tar::of([root(), dir("d").mode(0o700).mtime(77)]),
            Tar::of([file("d/a", "a")]),
            Tar::of([file("d/b", "b")]),
        ],
        &[ROOT, "d 700 0:0 @77 d", "f 644 0:0 @1000 d/a \"a\"", "f 644 0:0 @1000 d/b \"b\""],
    );
}

// 18. Entries through symbolic links.

fn usrmerge() -> Vec<u8> {
    Tar::of([
        root(),
        dir("usr"),
        dir("usr/lib").mode(0o750),
        file("usr/lib/old", "1"),
        Head::symlink("lib", "usr/lib"),
        Head::symlink("abs", "/usr/lib"),
        Head::symlink("two", "lib"),
    ])
}

fn usrmerge_tree<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut tree = vec![
        ROOT,
        "l 777 0:0 @1000 abs -> /usr/lib",
        "l 777 0:0 @1000 lib -> usr/lib",
        "l 777 0:0 @1000 two -> lib",
        "d 755 0:0 @1000 usr",
        "d 750 0:0 @1000 usr/lib",
    ];
    tree.extend(more);
    tree
}

#[test]
fn c18_through_a_lower_symlink() {
    for way in ["lib", "abs", "two"] {
        check(
            &[usrmerge(), Tar::of([root(), file(&format!("{way}/new"), "2")])],
            &usrmerge_tree(&["f 644 0:0 @1000 usr/lib/new \"2\"", "f 644 0:0 @1000 usr/lib/old \"1\""]),
        );
    }
}

#[test]
fn c18_replacing_a_file_through_a_lower_symlink() {
    check(
        &[usrmerge(), Tar::of([file("lib/old", "new"), dir("lib/sub"), file("lib/sub/x", "x")])],
        &usrmerge_tree(&[
            "f 644 0:0 @1000 usr/lib/old \"new\"",
            "d 755 0:0 @1000 usr/lib/sub",
            "f 644 0:0 @1000 usr/lib/sub/x \"x\"",
        ]),
    );
}

#[test]
fn c18_an_entry_for_the_directory_itself_replaces_the_symlink() {
    check(
        &[
            Tar::of([root(), dir("real"), Head::symlink("d", "real")]),
            Tar::of([root(), dir("d"), file("d/x", "x")]),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "f 644 0:0 @1000 d/x \"x\"", "d 755 0:0 @1000 real"],
    );
}

#[test]
fn c18_through_a_symlink_of_the_same_layer() {
    check(
        &[Tar::of([
            root(),
            dir("real"),
            Head::symlink("d", "/real"),
            file("d/x", "x"),
            Head::symlink("up", "../../real"),
            file("up/y", "y"),
        ])],
        &[
            ROOT,
            "l 777 0:0 @1000 d -> /real",
            "d 755 0:0 @1000 real",
            "f 644 0:0 @1000 real/x \"x\"",
            "f 644 0:0 @1000 real/y \"y\"",
            "l 777 0:0 @1000 up -> ../../real",
        ],
    );
}

#[test]
fn c18_dot_dot_behind_a_lower_symlink() {
    check(
        &[
            Tar::of([root(), dir("a"), dir("a/b"), dir("a/etc"), dir("etc"), Head::symlink("s", "a/b")]),
            Tar::of([root(), Head::symlink("t", "s/../etc"), file("t/x", "x")]),
        ],
        &[
            ROOT,
            "d 755 0:0 @1000 a",
            "d 755 0:0 @1000 a/b",
            "d 755 0:0 @1000 a/etc",
            "f 644 0:0 @1000 a/etc/x \"x\"",
            "d 755 0:0 @1000 etc",
            "l 777 0:0 @1000 s -> a/b",
            "l 777 0:0 @1000 t -> s/../etc",
        ],
    );
}

#[test]
fn c18_through_a_lower_symlink_to_nowhere() {
    check(
        &[Tar::of([root(), Head::symlink("var", "/data/var")]), Tar::of([root(), file("var/x", "x")])],
        &[
            ROOT,
            "d 755 0:0 @0 data",
            "d 755 0:0 @0 data/var",
            "f 644 0:0 @1000 data/var/x \"x\"",
            "l 777 0:0 @1000 var -> /data/var",
        ],
    );
}

// 19. Spellings of names; the root.

#[test]
fn c19_spellings_of_names() {
    check(
        &[Tar::of([root(), file("./a", "1"), file("/b", "2"), dir("d//"), file("d//./c", "3")])],
        &[
            ROOT,
            "f 644 0:0 @1000 a \"1\"",
            "f 644 0:0 @1000 b \"2\"",
            "d 755 0:0 @1000 d",
            "f 644 0:0 @1000 d/c \"3\"",
        ],
    );
}

#[test]
fn c19_the_root_s_own_mode_and_owner() {
    for name in ["./", ".", "/"] {
        check(
            &[
                Tar::of([root(), file("a", "1")]),
                Tar::of([Head::dir(name).mode(0o1700).owner(5, 6).mtime(8)]),
            ],
            &["d 1700 5:6 @8 .", "f 644 0:0 @1000 a \"1\""],
        );
    }
}

// 20. Unusual archives.

#[test]
fn c20_empty_layers() {
    for empty in [vec![0; 1024], vec![0; 10240], Vec::new()] {
        check(&[Tar::of([root(), file("a", "1")]), empty.clone()], &[ROOT, "f 644 0:0 @1000 a \"1\""]);
    }
}

#[test]
fn c20_only_an_empty_layer() {
    check(&[vec![0; 1024]], &["d 755 0:0 @0 ."]);
}

#[test]
fn c20_the_same_layer_twice() {
    let layer = Tar::of([root(), file("a", "1")]);
    check(&[layer.clone(), Tar::of([root(), file("a", "2")]), layer], &[ROOT, "f 644 0:0 @1000 a \"1\""]);
}

#[test]
fn c20_without_end_blocks() {
    check(&[Tar::new().add(root()).add(file("a", "1")).0], &[ROOT, "f 644 0:0 @1000 a \"1\""]);
}

#[test]
fn c20_global_pax_header() {
    let global = Head {
        data: layers::tar::record(b"comment", b"0123456789abcdef"),
        ..Head::new(b'g', "pax_global_header", 0o666)
    };
    check(&[Tar::of([global, root(), file("a", "1")])], &[ROOT, "f 644 0:0 @1000 a \"1\""]);
}

// 21. Old types.

#[test]
fn c21_contiguous_files() {
    check(&[Tar::of([root(), Head { flag: b'7', ..file("a", "1") }])], &[ROOT, "f 644 0:0 @1000 a \"1\""]);
}

#[test]
fn c21_aufs_books_are_dropped() {
    check(
        &[Tar::of([
            root(),
            wh(".wh..wh.aufs"),
            dir(".wh..wh.plnk"),
            file(".wh..wh.plnk/123.4", "x"),
            dir(".wh..wh.orph"),
            file("a", "1"),
        ])],
        &[ROOT, "f 644 0:0 @1000 a \"1\""],
    );
}

// 22. Overlayfs's own marks.

#[test]
fn c22_overlay_marks_in_a_layer_do_not_act() {
    check(
        &[
            Tar::of([root(), dir("d"), file("d/low", "1"), file("secret", "s"), file("f", "low")]),
            Tar::of([
                root(),
                dir("d").xattr("trusted.overlay.opaque", "y"),
                dir("r").xattr("trusted.overlay.redirect", "/d"),
                file("f", "").xattr("trusted.overlay.whiteout", "y"),
                file("m", "")
                    .xattr("trusted.overlay.metacopy", "")
                    .xattr("trusted.overlay.redirect", "/secret")
                    .xattr("user.keep", "k"),
            ]),
        ],
        &[
            ROOT,
            "d 755 0:0 @1000 d",
            "f 644 0:0 @1000 d/low \"1\"",
            "f 644 0:0 @1000 f",
            "f 644 0:0 @1000 m {user.keep=k}",
            "d 755 0:0 @1000 r",
            "f 644 0:0 @1000 secret \"s\"",
        ],
    );
}

// 23. Whiteouts through symbolic links.

#[test]
fn c23_whiteout_in_a_symlinked_directory() {
    check(&[usrmerge(), Tar::of([root(), wh("lib/.wh.old"), wh("two/.wh.never")])], &usrmerge_tree(&[]));
}

#[test]
fn c23_whiteout_in_a_directory_symlinked_by_its_own_layer() {
    check(
        &[
            Tar::of([root(), dir("real"), file("real/a", "a"), file("real/b", "b")]),
            Tar::of([root(), Head::symlink("d", "real"), wh("d/.wh.a")]),
        ],
        &[ROOT, "l 777 0:0 @1000 d -> real", "d 755 0:0 @1000 real", "f 644 0:0 @1000 real/b \"b\""],
    );
}

#[test]
fn c23_whiteout_of_the_symlink_itself() {
    check(
        &[
            Tar::of([root(), dir("real"), file("real/a", "a"), Head::symlink("d", "real")]),
            Tar::of([root(), wh(".wh.d"), file("d/x", "x")]),
        ],
        &[
            ROOT,
            "d 755 0:0 @0 d",
            "f 644 0:0 @1000 d/x \"x\"",
            "d 755 0:0 @1000 real",
            "f 644 0:0 @1000 real/a \"a\"",
        ],
    );
}

// 24. Whiteout of a directory and new parents under it.

#[test]
fn c24_whiteout_and_new_parents() {
    for order in [[wh(".wh.d"), file("d/e/new", "2")], [file("d/e/new", "2"), wh(".wh.d")]] {
        let [a, b] = order;
        check(
            &[
                Tar::of([
                    root(),
                    dir("d").mode(0o700),
                    dir("d/e").mode(0o700),
                    file("d/e/low", "1"),
                    file("d/x", "x"),
                ]),
                Tar::of([root(), a, b]),
            ],
            &[ROOT, "d 755 0:0 @0 d", "d 755 0:0 @0 d/e", "f 644 0:0 @1000 d/e/new \"2\""],
        );
    }
}

#[test]
fn c24_whiteouts_on_several_levels() {
    check(
        &[
            Tar::of([root(), dir("d"), dir("d/e"), file("d/e/a", "a"), file("d/e/b", "b"), file("d/f", "f")]),
            Tar::of([root(), dir("d"), wh("d/.wh.f"), wh("d/e/.wh.a")]),
        ],
        &[ROOT, "d 755 0:0 @1000 d", "d 755 0:0 @1000 d/e", "f 644 0:0 @1000 d/e/b \"b\""],
    );
}

// 25. Compression.

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn compressed(media_type: &str, pack: impl Fn(&[u8]) -> Vec<u8>) {
    let tar = Tar::of([root(), file("a", &"0123456789".repeat(10_000))]);
    let line =
        format!("f 644 0:0 @1000 a 100000 bytes {}", &sha256("0123456789".repeat(10_000).as_bytes())[7..15]);
    check_layout(&Layout::stored(pack(&tar), &tar, media_type), &[ROOT, &line]);
}

#[test]
fn c25_gzip_of_several_members() {
    compressed(GZIP, |tar| tar.chunks(777).flat_map(gzip).collect());
}

#[test]
fn c25_gzip_with_zero_padding() {
    compressed(GZIP, |tar| [gzip(tar), vec![0; 5000]].concat());
}

#[test]
fn c25_zstd_of_several_frames() {
    compressed(ZSTD, |tar| tar.chunks(7777).flat_map(|c| Compression::Zstd.pack(c)).collect());
}

#[test]
fn c25_zstd_with_skippable_frames() {
    let skip = [&0x184D_2A51u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"abc"].concat();
    compressed(ZSTD, |tar| {
        let (a, b) = tar.split_at(600);
        [&skip[..], &Compression::Zstd.pack(a), &skip, &Compression::Zstd.pack(b), &skip].concat()
    });
}

#[test]
fn c25_uncompressed() {
    compressed("application/vnd.oci.image.layer.v1.tar", |tar| tar.to_vec());
}

// 26. Docker's media types.

#[test]
fn c26_docker_schema_2() {
    let mut layout = Layout::of(&[Tar::of([root(), file("a", "1")])]);
    layout.layers[0].media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    layout.edit_manifest = |m| {
        m["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json".into();
        m["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    };
    check_layout(&layout, &[ROOT, "f 644 0:0 @1000 a \"1\""]);
}

#[test]
fn c26_docker_zstd_in_an_oci_manifest() {
    let mut layout = Layout::packed(&[Tar::of([root(), file("a", "1")])], Compression::Zstd);
    layout.layers[0].media_type = "application/vnd.docker.image.rootfs.diff.tar.zstd".into();
    check_layout(&layout, &[ROOT, "f 644 0:0 @1000 a \"1\""]);
}

// 27. Many layers.

#[test]
fn c27_130_layers() {
    let layers: Vec<_> = (0..130)
        .map(|i| Tar::of([root(), file(&format!("f{i:03}"), "x"), file("last", &i.to_string())]))
        .collect();
    let lines: Vec<_> = (0..130).map(|i| format!("f 644 0:0 @1000 f{i:03} \"x\"")).collect();
    let mut expected = vec![ROOT];
    expected.extend(lines.iter().map(String::as_str));
    expected.push("f 644 0:0 @1000 last \"129\"");
    check(&layers, &expected);
}

#[test]
fn c27_130_layers_that_all_depend_on_those_below() {
    let layers: Vec<_> = (0..130)
        .map(|i| {
            if i == 0 {
                Tar::of([root(), dir("d").mode(0o700)])
            } else {
                Tar::of([file(&format!("d/{i:03}"), "x"), wh(&format!("d/.wh.{:03}", i - 1))])
            }
        })
        .collect();
    check(&layers, &[ROOT, "d 700 0:0 @1000 d", "f 644 0:0 @1000 d/129 \"x\""]);
}

/// The same twice: nothing depends on the order in which threads finish.
#[test]
fn the_same_layout_gives_the_same_tree() {
    let Some(scratch) = Scratch::new() else { return };
    Layout::of(&[usrmerge(), Tar::of([file("lib/new", "2"), wh("usr/lib/.wh.old")])])
        .write(&scratch.path("layout"));
    let first = scratch.merged(&scratch.path("layout")).unwrap();
    std::fs::remove_dir_all(scratch.path("root")).unwrap();
    assert_eq!(scratch.merged(&scratch.path("layout")).unwrap(), first);
}
