//! What an import tells whoever watches it. Several layers report at the same time, from their own threads.

/// Receives the progress of an import. `layer` counts from 0, bottom first.
pub trait Progress: Sync {
    /// An import begins that has to unpack `layers` layers of `bytes` bytes as stored.
    fn begin(&self, _layers: usize, _bytes: u64) {}
    /// Layer `layer`, of `bytes` bytes as stored, is being unpacked.
    fn layer(&self, _layer: usize, _bytes: u64) {}
    /// `bytes` more of the layer have been read.
    fn advance(&self, _layer: usize, _bytes: u64) {}
    /// The layer is complete.
    fn done(&self, _layer: usize) {}
}

/// Nobody watches.
pub struct Silent;

impl Progress for Silent {}
