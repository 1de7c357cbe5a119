//! Models at rest: the scheduler has them kept out of memory, and unbooked, until somebody asks for them.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use seldon_proto::agent::ModelVersion;
use tokio::sync::MutexGuard;

use super::entry::{Entry, State, record};
use super::{Registry, internal, name_of};

/// How the scheduler wants a model kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keeping {
    /// It is told when the model's requests cross a threshold.
    pub watched: bool,
    /// Out of memory until it is asked for.
    pub resting: bool,
}

impl Registry {
    /// Says whether an order is for a model that is here, in memory or not.
    pub fn has(&self, version: &ModelVersion) -> bool {
        let entry = self.find(&internal(name_of(version), version.version));
        entry.is_some_and(|entry| {
            let there = matches!(
                entry.state(),
                State::Loaded | State::Evicted | State::Restoring
            );
            there && entry.is_same(version)
        })
    }

    /// Follows what the scheduler said with an order, as far as nothing has to be waited for, unless it has said something
    /// newer.
    pub fn heed(&self, (name, version): (&str, u32), keeping: Keeping, sequence: u64) {
        if let Some(entry) = self.find(&internal(name, version)) {
            heed(&entry, keeping, sequence);
        }
    }

    /// Follows all of it, when the order itself has been done: the model may be another entry now.
    pub async fn keep(&self, (name, version): (&str, u32), keeping: Keeping, sequence: u64) {
        let Some(entry) = self.find(&internal(name, version)) else {
            return;
        };
        if !heed(&entry, keeping, sequence) {
            return;
        }
        if keeping.resting {
            self.put_to_rest(&entry).await;
        } else if entry.roused.swap(false, Ordering::SeqCst) {
            // Most never rest: no word of them is on the disk.
            self.mark(&entry, &entry.turn.lock().await).await;
            self.rouse(&entry).await;
        }
    }

    /// Keeps on the disk whether a model rests; in its turn, so that what is written last is what it is then.
    async fn mark(&self, entry: &Entry, _turn: &MutexGuard<'_, ()>) {
        // The folder is another entry's by now.
        if entry.state() == State::Gone {
            return;
        }
        let (repository, internal) = (self.0.repository.clone(), entry.internal.clone());
        // Its record along with it: the next scheduler is told by that what it may have missed.
        let record = entry.is_resting().then(|| record(entry.version()));
        let mark = move || repository.folders().mark(&internal, record.as_deref());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(mark).await {
            tracing::warn!(model = entry.internal, %error, "a restarted agent will not know whether it rests");
        }
    }

    /// Out of memory, unless somebody uses it or has done so since it was to rest: the scheduler is about to be told.
    async fn put_to_rest(&self, entry: &Arc<Entry>) {
        let turn = entry.turn.lock().await;
        self.mark(entry, &turn).await;
        let rests = entry.is_resting() && !entry.is_asked_at_rest();
        if rests && entry.state() == State::Loaded {
            let leaving = self.0.room.leave(entry);
            self.evict_in_turn(entry, leaving).await;
        }
    }
}

/// Not where an older order comes late.
fn heed(entry: &Entry, keeping: Keeping, sequence: u64) -> bool {
    if entry.kept.fetch_max(sequence, Ordering::SeqCst) > sequence {
        return false;
    }
    entry.watched.store(keeping.watched, Ordering::Relaxed);
    if keeping.resting {
        entry.rest();
    } else {
        entry.wake();
    }
    true
}
