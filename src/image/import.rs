//! Taking an image into the store: verify the documents, unpack the missing layers, give it its name.
//!
//! Layers are unpacked several at a time, each into a temporary directory, and settled in order, bottom first, as
//! soon as those below are. Settled layers are written to disk (syncfs(2)) before they get their names, so a crash
//! at any point leaves whole layers and rubbish that the next import removes, and nothing between.

use super::digest::{ChainId, DiffId, Digest};
use super::fixup::{self, Outcome};
use super::journal::Journal;
use super::manifest::Manifest;
use super::pipeline::{self, Job};
use super::progress::Progress;
use super::reference::Reference;
use super::source::{Picked, Source};
use super::stack::Stack;
use super::store::{self, Lock, Record, Store};
use super::unpack::unpack;
use super::{Image, ImageConfig, Layer};
use crate::sys::fs;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

/// Each layer has a thread that inflates, which is half of the work: more layers at a time than this only need memory.
const AT_A_TIME: usize = 4;
/// How much may be settled but not yet named: less means more syncfs(2), more means more to do again after a crash.
const UNNAMED: u64 = 16 << 20;

impl Store {
    /// Imports an image from a layout directory, an OCI archive or a saved image, `src`; `PATH:NAME` chooses among
    /// several. It is called `name`, or else all that the source calls it, or else as its file is called. All threads
    /// have ended when this returns. An image that is already there is only named, without reading a layer.
    pub fn import(&self, src: &Path, name: Option<&str>, progress: &dyn Progress) -> Result<Image> {
        self.import_from(src, name, progress).with_context(|| format!("import {}", src.display()))
    }

    fn import_from(&self, src: &Path, name: Option<&str>, progress: &dyn Progress) -> Result<Image> {
        let (path, select) = split_selection(src);
        let source = Source::open(&path, &self.layers, &self.limits)?;
        let picked = source.pick(select.as_deref(), &|digest| self.document(digest), &self.limits)?;
        let names = self.names_for(name, &picked, &source)?;
        let (_, diffs) = ImageConfig::parse(&picked.config).context("configuration of the image")?;
        let manifest: Manifest = serde_json::from_slice(&picked.manifest)?;
        let digest = Digest::of(&picked.manifest);
        manifest.check(&diffs, &self.limits).with_context(|| format!("manifest {digest}"))?;
        let known = names.iter().map(|name| self.has_name(name, &digest)).collect::<Result<Vec<_>>>()?;
        if known.iter().all(|known| *known)
            && let Ok(image) = self.resolve(&names[0].to_string())
        {
            return Ok(image);
        }
        let lock = self.lock()?;
        self.sweep(&lock)?;
        Import {
            store: self,
            source: &source,
            picked: &picked,
            diffs: &diffs,
            chains: &ChainId::chain(&diffs),
            progress,
            _lock: &lock,
        }
        .layers()?;
        self.keep(&[&picked.manifest[..], &picked.config[..]])?;
        self.keep(&picked.indexes.iter().map(|i| &i[..]).collect::<Vec<_>>())?;
        for name in &names {
            self.set_name(name, &picked.manifest, &picked.indexes)?;
        }
        self.resolve(&names[0].to_string())
    }

    /// What the image will be called; at least one name.
    fn names_for(&self, name: Option<&str>, picked: &Picked, source: &Source) -> Result<Vec<Reference>> {
        if let Some(name) = name {
            return Ok(vec![Reference::parse(name)?]);
        }
        let names: Vec<Reference> = picked.names.iter().filter_map(|n| Reference::parse(n).ok()).collect();
        if !names.is_empty() {
            return Ok(names);
        }
        let own = source.own_name().context("the image has no name: give it one with --name")?;
        Ok(vec![Reference::parse(&own)?])
    }
}

/// One import under way.
struct Import<'a> {
    store: &'a Store,
    source: &'a Source,
    picked: &'a Picked,
    diffs: &'a [DiffId],
    chains: &'a [ChainId],
    progress: &'a dyn Progress,
    _lock: &'a Lock,
}

/// A layer in its temporary directory.
struct Unpacked {
    dir: Temporary,
    root: OwnedFd,
    journal: Journal,
}

/// A settled layer that has no name yet.
struct Settled {
    dir: Temporary,
    key: String,
    record: Record,
}

/// A directory that is removed unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: what is left is removed by the next import.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Import<'_> {
    /// Makes every layer that the store doesn't have.
    fn layers(&self) -> Result<()> {
        let mut present = Vec::with_capacity(self.diffs.len());
        for (diff, chain) in self.diffs.iter().zip(self.chains) {
            present.push(self.store.layer(diff, chain)?);
        }
        let missing: Vec<usize> = (0..present.len()).filter(|i| present[*i].is_none()).collect();
        let bytes = missing.iter().map(|i| self.picked.layers[*i].stored.map_or(0, |(_, size)| size)).sum();
        self.progress.begin(missing.len(), bytes);
        if missing.is_empty() {
            return Ok(());
        }
        let stop = AtomicBool::new(false);
        let next = AtomicUsize::new(0);
        let (done, results) = channel();
        let workers =
            thread::available_parallelism().map_or(2, usize::from).clamp(2, AT_A_TIME).min(missing.len());
        thread::scope(|scope| {
            for _ in 0..workers {
                let done = done.clone();
                let (stop, next, missing) = (&stop, &next, &missing);
                let work = move || {
                    while let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if stop.load(Ordering::Relaxed)
                            || done.send((*layer, self.unpack(*layer, stop))).is_err()
                        {
                            return;
                        }
                    }
                };
                thread::Builder::new()
                    .name("pgbox-layer".into())
                    .spawn_scoped(scope, work)
                    .context("start a thread")?;
            }
            drop(done);
            let next = || match results.recv() {
                Ok((layer, unpacked)) => Ok((layer, unpacked?)),
                Err(_) => bail!("an unpacking thread ended early"),
            };
            let settled = self.settle_in_order(&present, next);
            stop.store(true, Ordering::Relaxed);
            settled
        })
    }

    /// Settles the layers, bottom first, as `next` hands them over in any order.
    fn settle_in_order(
        &self,
        present: &[Option<Layer>],
        mut next: impl FnMut() -> Result<(usize, Unpacked)>,
    ) -> Result<()> {
        let mut below = Stack::default();
        let mut ready = BTreeMap::new();
        let mut settled = Vec::new();
        let mut result = Ok(());
        for (i, present) in present.iter().enumerate() {
            if let Some(layer) = present {
                below
                    .push(fs::open_dir(&layer.dir).with_context(|| format!("open {}", layer.dir.display()))?);
                continue;
            }
            let mut wait = || -> Result<Unpacked> {
                loop {
                    if let Some(unpacked) = ready.remove(&i) {
                        return Ok(unpacked);
                    }
                    let (layer, unpacked) = next()?;
                    ready.insert(layer, unpacked);
                }
            };
            let one =
                wait().and_then(|unpacked| self.settle(i, unpacked, &below).with_context(|| self.shown(i)));
            match one {
                Ok((root, layer)) => {
                    below.push(root);
                    settled.push(layer);
                }
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
            if settled.iter().map(|s| s.record.size).sum::<u64>() >= UNNAMED {
                self.name(&mut settled)?;
            }
        }
        // Also after an error: what is complete need not be done again by the next import.
        self.name(&mut settled)?;
        result
    }

    /// Unpacks one layer, not knowing those below it.
    fn unpack(&self, i: usize, stop: &AtomicBool) -> Result<Unpacked> {
        self.unpack_on(i, None, stop).with_context(|| self.shown(i))
    }

    /// Unpacks one layer into a temporary directory; in sight of those below only if it must be.
    fn unpack_on(&self, i: usize, below: Option<&Stack>, stop: &AtomicBool) -> Result<Unpacked> {
        let layer = &self.picked.layers[i];
        let blob = self.source.layer(layer)?;
        self.progress.layer(i, blob.len);
        let round = if below.is_some() { "again" } else { "new" };
        let path = self.store.layers.join(format!("tmp-{}-{i}-{round}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("mkdir {}", path.display()))?;
        let dir = Temporary(path);
        let root = fs::open_dir(&dir.0)?;
        let limits = &self.store.limits;
        let advance = |bytes| {
            // The second time has been told already.
            if below.is_none() {
                self.progress.advance(i, bytes);
            }
        };
        let digest = layer.stored.map(|(digest, _)| digest);
        let job = Job { blob: &blob, digest, diff_id: self.diffs[i], limits, stop, advance: &advance };
        let journal = pipeline::run(&job, |tape| unpack(tape, &root, below, limits))?;
        Ok(Unpacked { dir, root, journal })
    }

    fn settle(&self, i: usize, unpacked: Unpacked, below: &Stack) -> Result<(OwnedFd, Settled)> {
        let (mut unpacked, mut again) = (unpacked, false);
        loop {
            let Unpacked { dir, root, journal } = unpacked;
            let key = store::key(&self.diffs[i], &self.chains[i], journal.stands_alone());
            let (diff_id, chain_id) = (self.diffs[i].to_string(), self.chains[i].to_string());
            let record = Record { diff_id, chain_id, size: journal.bytes, entries: journal.entries };
            match fixup::settle(&root, journal, below, again)? {
                Outcome::Done => {
                    self.progress.done(i);
                    return Ok((root, Settled { dir, key, record }));
                }
                Outcome::Again if again => bail!("it can't be settled on the layers below it"),
                Outcome::Again => {
                    again = true;
                    unpacked = self.unpack_on(i, Some(below), &AtomicBool::new(false))?;
                }
            }
        }
    }

    /// Gives settled layers their names, once they are on disk.
    fn name(&self, settled: &mut Vec<Settled>) -> Result<()> {
        if settled.is_empty() {
            return Ok(());
        }
        for layer in settled.iter() {
            self.store.write_record(&layer.key, &layer.record)?;
        }
        let layers = fs::open_dir(&self.store.layers)?;
        fs::syncfs(&layers).context("syncfs")?;
        for layer in settled.drain(..) {
            let path = self.store.layers.join(&layer.key);
            // An image may have one layer twice; the second is dropped.
            if !path.exists() {
                std::fs::rename(&layer.dir.0, &path)
                    .with_context(|| format!("rename to {}", path.display()))?;
            }
        }
        std::fs::File::from(layers).sync_all().context("fsync layers")
    }

    fn shown(&self, i: usize) -> String {
        let blob = self.picked.layers[i].stored.map_or(self.diffs[i].0, |(digest, _)| digest);
        format!("layer {} of {} ({blob})", i + 1, self.diffs.len())
    }
}

/// `PATH:NAME` chooses an image of the source at PATH, unless there is a file of the whole name.
fn split_selection(src: &Path) -> (PathBuf, Option<String>) {
    if let (false, Some(text)) = (src.exists(), src.to_str()) {
        for (at, _) in text.match_indices(':') {
            if Path::new(&text[..at]).exists() {
                return (PathBuf::from(&text[..at]), Some(text[at + 1..].to_string()));
            }
        }
    }
    (src.to_owned(), None)
}
