//! The memory that the batches of all partitions take together.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    used: AtomicUsize,
    clock: AtomicU64,
}

/// What a batch takes beside its bytes.
const OVERHEAD: usize = 128;

impl Memory {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            clock: AtomicU64::new(0),
        }
    }

    /// Counts a batch in; returns its age: the lower, the older.
    pub(crate) fn take(&self, bytes: usize) -> u64 {
        self.used.fetch_add(bytes + OVERHEAD, Ordering::Relaxed);
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes + OVERHEAD, Ordering::Relaxed);
    }

    pub(crate) fn over(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }

    /// True until so much is free that the next look is worth its price.
    pub(crate) fn tight(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit / 8 * 7
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}
