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
    /// Follows what the scheduler said with an order, unless it has said something newer.
    pub async fn keep(&self, version: &ModelVersion, keeping: Keeping, sequence: u64) {
        let entry = internal_name(version).ok();
        let Some(entry) = entry.and_then(|internal| self.find(&internal)) else {
            return;
        };
        if entry.kept.fetch_max(sequence, Ordering::SeqCst) > sequence {
            return;
        }
        entry.watched.store(keeping.watched, Ordering::Relaxed);
        if keeping.resting {
            entry.rest();
            self.put_to_rest(&entry).await;
        } else if entry.wake() && entry.state() == State::Evicted {
            self.bring_back(&entry);
        }
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
