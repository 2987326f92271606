//! One layer from blob to directory, as three threads: inflate and check the blob's digest; add up the diffID; parse
//! and write.
//!
//! Inflating takes about as long as both others together, so this is as fast as inflating alone. The threads pass
//! buffers of one pool on, never copies. The surprising rule is in the errors: a damaged blob makes the parser fail
//! first, on nonsense. The blob is therefore read and hashed to its end whatever happened, and a wrong digest is
//! what the user is told.

use super::blob::{Blob, BlobReader};
use super::decompress::Decoder;
use super::digest::{DiffId, Digest, Hasher};
use super::entry::Tape;
use super::limits::Limits;
use anyhow::{Context, Result, anyhow, bail};
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

const CHUNK: usize = 256 << 10;
/// Chunks that may wait for each reader: enough to even out a large write, 1 MiB at most.
const WAITING: usize = 4;

/// What is to be checked and told while a layer is read.
pub struct Job<'a> {
    pub blob: &'a Blob,
    /// The digest of the blob, where it is known.
    pub digest: Option<Digest>,
    pub diff_id: DiffId,
    pub limits: &'a Limits,
    /// Another layer has failed: stop.
    pub stop: &'a AtomicBool,
    /// Is told how many bytes of the blob have been read since the last time.
    pub advance: &'a (dyn Fn(u64) + Sync),
}

/// Reads the blob and gives its tar to `sink`, in a thread of its own. Both digests have been checked when it returns.
pub fn run<T: Send>(job: &Job<'_>, sink: impl FnOnce(ChunkTape) -> Result<T> + Send) -> Result<T> {
    let (to_hash, hash_from) = sync_channel(WAITING);
    let (to_sink, sink_from) = sync_channel(WAITING);
    thread::scope(|scope| {
        let hasher = spawn(scope, "pgbox-diffid", move || hash(hash_from))?;
        let writer =
            spawn(scope, "pgbox-unpack", move || sink(ChunkTape { from: sink_from, chunk: None, at: 0 }))?;
        let read = inflate(job, to_hash, to_sink);
        let diff = hasher.join().map_err(|_| anyhow!("the diffID thread panicked"))?;
        let written = writer.join().map_err(|_| anyhow!("the unpacking thread panicked"))?;
        // In the order of causes: a damaged blob, an entry that could not be made, a wrong diffID.
        let complete = read?;
        let made = written?;
        if !complete {
            bail!("unpacking was stopped");
        }
        if diff != job.diff_id.0 {
            bail!(
                "its content has the diffID {diff}, the configuration says {}: it is another layer",
                job.diff_id
            );
        }
        Ok(made)
    })
}

fn spawn<'s, T: Send + 's>(
    scope: &'s thread::Scope<'s, '_>,
    name: &str,
    f: impl FnOnce() -> T + Send + 's,
) -> Result<thread::ScopedJoinHandle<'s, T>> {
    thread::Builder::new().name(name.to_string()).spawn_scoped(scope, f).context("start a thread")
}

/// Inflates everything into both channels. `false` if it was not read to its end, for a reason told elsewhere.
fn inflate(job: &Job<'_>, to_hash: SyncSender<Shared>, to_sink: SyncSender<Shared>) -> Result<bool> {
    let mut decoder = Decoder::new(job.blob.hashing())?;
    let pumped = pump(job, &mut decoder, &to_hash, &to_sink);
    // The readers see the end and can finish while the rest of the blob is hashed.
    drop((to_hash, to_sink));
    if job.stop.load(Ordering::Relaxed) {
        return Ok(false);
    }
    if let Some(digest) = job.digest {
        let found = decoder.into_source().finish()?;
        if found != digest {
            bail!("its content has the digest {found}: it was changed or damaged");
        }
    }
    pumped
}

fn pump(
    job: &Job<'_>,
    decoder: &mut Decoder<BlobReader>,
    to_hash: &SyncSender<Shared>,
    to_sink: &SyncSender<Shared>,
) -> Result<bool> {
    let pool = Arc::new(Pool::default());
    let (mut made, mut told) = (0, 0);
    loop {
        let mut chunk = Pool::take(&pool);
        chunk.fill(decoder).context("inflate")?;
        let read = decoder.source().position();
        (job.advance)(read - told);
        told = read;
        if chunk.bytes.is_empty() {
            return Ok(true);
        }
        made += chunk.bytes.len() as u64;
        job.limits.inflated(read, made)?;
        let chunk = Arc::new(chunk);
        let refused = to_hash.send(Arc::clone(&chunk)).is_err() || to_sink.send(chunk).is_err();
        if refused || job.stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
    }
}

fn hash(from: Receiver<Shared>) -> Digest {
    let mut hasher = Hasher::default();
    for chunk in from {
        hasher.update(&chunk.bytes);
    }
    hasher.finish()
}

type Shared = Arc<Chunk>;

/// Buffers between two uses.
#[derive(Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn take(pool: &Arc<Pool>) -> Chunk {
        let spare = pool.0.lock().ok().and_then(|mut spare| spare.pop());
        Chunk { bytes: spare.unwrap_or_default(), pool: Arc::clone(pool) }
    }
}

/// Some bytes of the tar. Its buffer goes back to the pool when the last reader is done with it.
struct Chunk {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Chunk {
    /// Fills the buffer as far as the source goes.
    fn fill(&mut self, source: &mut impl Read) -> io::Result<()> {
        self.bytes.resize(CHUNK, 0);
        let mut len = 0;
        while len < CHUNK {
            match source.read(&mut self.bytes[len..]) {
                Ok(0) => break,
                Ok(got) => len += got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.bytes.truncate(len);
        Ok(())
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Ok(mut spare) = self.pool.0.lock() {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// The tar as the parser sees it.
pub struct ChunkTape {
    from: Receiver<Shared>,
    chunk: Option<Shared>,
    at: usize,
}

impl BufRead for ChunkTape {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.as_ref().is_none_or(|c| self.at == c.bytes.len()) {
            self.chunk = self.from.recv().ok();
            self.at = 0;
        }
        Ok(self.chunk.as_ref().map_or(&[], |c| &c.bytes[self.at..]))
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for ChunkTape {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let count = from.len().min(buf.len());
        buf[..count].copy_from_slice(&from[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl Tape for ChunkTape {}
