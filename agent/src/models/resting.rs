//! Models at rest: the scheduler has them kept out of memory, and unbooked, until somebody asks for them.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use seldon_proto::agent::ModelVersion;

use super::entry::{Entry, State};
use super::{Registry, internal_name};

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
        self.entry_of(version).is_some_and(|entry| {
            let there = matches!(
                entry.state(),
                State::Loaded | State::Evicted | State::Restoring
            );
            there && entry.is_same(version)
        })
    }

    /// Follows what the scheduler said with an order, as far as nothing has to be waited for, unless it has said something
    /// newer. Says whether that ended a rest.
    pub fn heed(&self, version: &ModelVersion, keeping: Keeping, sequence: u64) -> bool {
        self.entry_of(version)
            .is_some_and(|entry| heed(&entry, keeping, sequence).unwrap_or(false))
    }

    /// Follows all of it, when the order itself has been done: the model may be another entry now. `woken`: the order ended
    /// a rest.
    pub async fn keep(&self, version: &ModelVersion, keeping: Keeping, sequence: u64, woken: bool) {
        let Some(entry) = self.entry_of(version) else {
            return;
        };
        let Some(now) = heed(&entry, keeping, sequence) else {
            return;
        };
        // Most never rest: no word of them is on the disk.
        if keeping.resting {
            self.mark(&entry, true).await;
            self.put_to_rest(&entry).await;
        } else if woken || now {
            self.mark(&entry, false).await;
            if self.0.room.will_fit(Some(&entry)) {
                // Where others would have to leave for it, it waits until it is asked for.
                self.bring_back(&entry);
            }
        }
    }

    /// Keeps on the disk whether a model rests.
    async fn mark(&self, entry: &Entry, rests: bool) {
        let (repository, internal) = (self.0.repository.clone(), entry.internal.clone());
        let mark = move || repository.folders().mark(&internal, rests);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(mark).await {
            tracing::warn!(model = entry.internal, %error, "a restarted agent will not know whether it rests");
        }
    }

    fn entry_of(&self, version: &ModelVersion) -> Option<Arc<Entry>> {
        self.find(&internal_name(version).ok()?)
    }

    /// Out of memory, unless somebody uses it or has done so since it was to rest: the scheduler is about to be told.
    async fn put_to_rest(&self, entry: &Arc<Entry>) {
        let _turn = entry.turn.lock().await;
        let rests = entry.is_resting() && !entry.is_asked_at_rest();
        if rests && entry.state() == State::Loaded {
            let leaving = self.0.room.leave(entry);
            self.evict_in_turn(entry, leaving).await;
        }
    }
}

/// Whether that ended a rest; `None` where an older order comes late.
fn heed(entry: &Entry, keeping: Keeping, sequence: u64) -> Option<bool> {
    if entry.kept.fetch_max(sequence, Ordering::SeqCst) > sequence {
        return None;
    }
    entry.watched.store(keeping.watched, Ordering::Relaxed);
    if keeping.resting {
        entry.rest();
        return Some(false);
    }
    Some(entry.wake())
}
