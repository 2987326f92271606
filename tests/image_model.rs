//! Random layers against a model: a map from paths to files, changed entry by entry as the specification says.
//!
//! The model knows neither overlayfs nor separate layers, so it can't share a mistake with the code. Names are few, so
//! that entries meet: replaced, whited out, made again, passed through.

mod layers;

use layers::{Head, Layout, Scratch, Tar};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Entry {
    Dir(String, u64),
    File(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir(u64),
    File(String),
}

type Tree = BTreeMap<String, Node>;

/// A linear congruential generator: the same cases on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    fn path(&mut self) -> String {
        let parts: Vec<_> = (0..=self.below(3)).map(|_| ["a", "b", "c"][self.below(3)]).collect();
        parts.join("/")
    }

    fn entry(&mut self, serial: usize) -> Entry {
        match self.below(10) {
            0..3 => Entry::Dir(self.path(), [0o700, 0o711, 0o1777][self.below(3)]),
            3..6 => Entry::File(self.path(), format!("{serial}")),
            6 => Entry::Link(self.path(), self.path()),
            7 | 8 => Entry::Whiteout(self.path()),
            _ => Entry::Opaque(self.path()),
        }
    }
}

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').map(|(at, _)| path[..at].to_string()).collect()
}

fn remove(tree: &mut Tree, path: &str, itself: bool) {
    let inside = format!("{path}/");
    tree.retain(|p, _| !(p.starts_with(&inside) || itself && p == path));
}

/// Applies a layer; `None` where the outcome is not defined or the layer is refused.
fn apply(below: &Tree, layer: &[Entry]) -> Option<Tree> {
    let mut tree = below.clone();
    for entry in layer {
        match entry {
            Entry::Whiteout(path) => remove(&mut tree, path, true),
            Entry::Opaque(path) => remove(&mut tree, path, false),
            _ => {}
        }
    }
    let mut own = BTreeSet::new();
    for entry in layer {
        let (Entry::Dir(path, _) | Entry::File(path, _) | Entry::Link(path, _)) = entry else { continue };
        for parent in parents(path) {
            match tree.get(&parent) {
                Some(Node::Dir(_)) => {}
                Some(Node::File(_)) if own.contains(&parent) => return None,
                _ => drop(tree.insert(parent.clone(), Node::Dir(0o755))),
            }
            own.insert(parent);
        }
        let node = match entry {
            Entry::Dir(_, mode) => Node::Dir(*mode),
            Entry::File(_, text) => Node::File(text.clone()),
            Entry::Link(_, target) => match tree.get(target) {
                Some(node @ Node::File(_)) => node.clone(),
                _ => return None,
            },
            _ => continue,
        };
        if !matches!((&node, tree.get(path)), (Node::Dir(_), Some(Node::Dir(_)))) {
            remove(&mut tree, path, true);
        }
        tree.insert(path.clone(), node);
        own.insert(path.clone());
    }
    Some(tree)
}

fn tar(layer: &[Entry]) -> Vec<u8> {
    let marker = |path: &str| match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    let head = |entry: &Entry| match entry {
        Entry::Dir(path, mode) => Head::dir(path).mode(*mode),
        Entry::File(path, text) => Head::file(path, text),
        Entry::Link(path, target) => Head::link(path, target),
        Entry::Whiteout(path) => Head::file(marker(path), ""),
        Entry::Opaque(path) => Head::file(format!("{path}/.wh..wh..opq"), ""),
    };
    Tar::of(layer.iter().map(head))
}

fn lines(tree: &Tree) -> Vec<String> {
    let line = |(path, node): (&String, &Node)| match node {
        Node::Dir(mode) => format!("d {mode:o} {path}"),
        Node::File(text) => format!("f 644 {path} {text:?}"),
    };
    let mut lines: Vec<_> = tree.iter().map(line).collect();
    lines.sort();
    lines
}

/// The lines of [`layers::tree::show`] as [`lines`] has them.
fn found(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let mut words: Vec<&str> = line.split(" = ").next().unwrap().split(' ').collect();
        words.drain(2..4);
        words.join(" ")
    };
    let mut lines: Vec<_> = text.lines().skip(1).map(line).collect();
    lines.sort();
    lines
}

#[test]
fn random_layers_give_the_tree_of_the_model() {
    let Some(scratch) = Scratch::new() else { return };
    let src = scratch.path("layout");
    let mut defined = 0;
    for seed in 0..600 {
        let mut random = Random(seed);
        let mut serial = 0;
        let mut expected = Some(Tree::new());
        let mut layers = Vec::new();
        for _ in 0..2 + random.below(3) {
            let layer: Vec<_> = (0..random.below(9))
                .map(|_| {
                    serial += 1;
                    random.entry(serial)
                })
                .collect();
            // A layer that the model has no answer for is left out.
            let below = expected.clone().unwrap();
            if let Some(tree) = apply(&below, &layer) {
                expected = Some(tree);
                layers.push(layer);
            }
        }
        let _ = std::fs::remove_dir_all(&src);
        Layout::of(&layers.iter().map(|l| tar(l)).collect::<Vec<_>>()).write(&src);
        let result = match layers.is_empty() {
            true => continue,
            false => scratch.merged(&src),
        };
        let text = result.unwrap_or_else(|e| panic!("seed {seed}: {e}\n{layers:#?}"));
        assert_eq!(found(&text), lines(&expected.unwrap()), "seed {seed}: {layers:#?}");
        defined += 1;
    }
    assert!(defined > 500, "only {defined} cases were defined");
}
