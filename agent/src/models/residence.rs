//! What an inference server that ended, or an agent that did, leaves to be put right.
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{Entry, State};
use super::orders::{CRASHES, settled};
use super::{Outcome, Registry};
use crate::server::{Indexed, ServerError};

/// Rounds in which a model was loaded and the inference server did not hold it, before the model is blamed: several
/// restarts of the server in a row are not its fault.
const UNCONFIRMED: u32 = 10;

impl Registry {
    /// Takes note that the inference server ended, with everything in its memory.
    pub fn server_lost(&self) {
        self.0.up.send_replace(false);
        for entry in self.entries() {
            self.shift(&entry, State::Loaded, State::Restoring);
            if self.shift(&entry, State::Releasing, State::Released) {
                self.0.room.free(&entry);
            }
        }
    }

    /// Makes a live inference server hold what it should: models it still has are taken over, missing ones are loaded
    /// again, unknown ones unloaded. Slow ones go on after the time limit. Fails when the server ends meanwhile, even
    /// where it is back already: what it held is compared once more at the end.
    pub async fn restore(&self) -> Result<(), ServerError> {
        let index = self.0.server.index().await?;
        let resident: HashSet<&str> = index
            .iter()
            .filter(|model| model.state == "READY")
            .map(|model| model.name.as_str())
            .collect();
        self.unload_strangers(&index).await;
        let (there, missing): (Vec<_>, Vec<_>) = self
            .entries()
            .into_iter()
            .filter(|entry| entry.state() == State::Restoring)
            .partition(|entry| resident.contains(entry.internal.as_str()));
        // First: what they hold is not there for others.
        for entry in there {
            self.shift(&entry, State::Restoring, State::Loaded);
        }
        self.unload_evicted(&resident).await;
        let (mut suspects, mut others) = (Vec::new(), Vec::new());
        for entry in missing {
            if !self.may_restore(&entry) {
                entry.absent.store(true, Ordering::SeqCst);
                self.shift(&entry, State::Restoring, State::Evicted);
            } else if entry.crashes.load(Ordering::Relaxed) > 0 {
                suspects.push(entry);
            } else {
                others.push(entry);
            }
        }
        // Requests that are refused meanwhile are uses, too: each time is read once.
        others.sort_by_cached_key(|entry| std::cmp::Reverse(entry.used_at()));
        let work = tokio::spawn(self.clone().restore_all(others, suspects));
        let finished = tokio::time::timeout(self.0.times.restore, work)
            .await
            .is_ok();
        self.confirm().await?;
        let left = |entry: &Arc<Entry>| entry.state() == State::Restoring;
        if finished && self.entries().iter().any(left) {
            return Err(ServerError::Unreachable);
        }
        self.0.up.send_replace(true);
        Ok(())
    }

    /// Says whether a model that was in memory gets back there now. One that a former agent left waits for a request
    /// where models are evicted, where memory has become too little for all, and where it rests.
    fn may_restore(&self, entry: &Entry) -> bool {
        let was_in_memory = !entry.adopted.swap(false, Ordering::SeqCst);
        let evicts = self.0.memory.overcommit_percentage > 0;
        was_in_memory || (!evicts && !entry.is_resting() && self.0.room.hold(entry))
    }

    /// Asks whether the inference server holds everything that counts as loaded.
    pub async fn confirm(&self) -> Result<(), ServerError> {
        let is_loaded = |entry: &Arc<Entry>| entry.state() == State::Loaded;
        // What is loaded while the server answers need not be in its answer.
        let expected: Vec<_> = self
            .entries()
            .into_iter()
            .map(|entry| (entry.changes.load(Ordering::SeqCst), entry))
            .filter(|(_, entry)| is_loaded(entry))
            .collect();
        let index = self.0.server.index().await?;
        let ready: HashSet<&str> = index
            .iter()
            .filter(|model| model.state == "READY")
            .map(|model| model.name.as_str())
            .collect();
        let mut missing = None;
        for (changes, entry) in expected {
            if ready.contains(entry.internal.as_str()) {
                entry.unconfirmed.store(0, Ordering::Relaxed);
            } else if entry.changes.load(Ordering::SeqCst) != changes {
                // Unloaded or evicted meanwhile, and perhaps loaded again.
            } else if entry.unconfirmed.fetch_add(1, Ordering::Relaxed) + 1 < UNCONFIRMED {
                missing = Some(entry.internal.clone());
            } else {
                let reason = "it was loaded again and again after the inference server restarted, but did not become ready";
                self.give_up(&entry, reason.to_owned()).await;
            }
        }
        if let Some(model) = missing {
            return Err(ServerError::Refused(format!(
                "it does not hold all models that were loaded into it, such as {model}"
            )));
        }
        Ok(())
    }

    /// Drops a model and tells the scheduler, which did not ask.
    pub(super) async fn give_up(&self, entry: &Arc<Entry>, reason: String) {
        self.drop_model(entry, &reason).await;
        // The receiver lives as long as the control loop; without it nobody is to be told.
        let _ = self
            .0
            .unasked
            .send((entry.version(), Outcome::LoadFailed(reason)));
    }

    async fn unload_strangers(&self, index: &[Indexed]) {
        for model in index.iter().filter(|model| model.is_resident()) {
            if self.find(&model.name).is_none() {
                tracing::info!(
                    model = model.name,
                    "the inference server holds a model that nobody ordered: unloading it"
                );
                if let Err(error) = self.0.server.unload(&model.name).await {
                    tracing::warn!(model = model.name, %error, "it stays");
                }
            }
        }
    }

    /// A model that counts as evicted, but was left in memory by an eviction that nobody saw the end of.
    async fn unload_evicted(&self, resident: &HashSet<&str>) {
        for entry in self.entries() {
            // Whoever has its turn is loading or evicting it.
            let Ok(_turn) = entry.turn.try_lock() else {
                continue;
            };
            if entry.state() != State::Evicted {
                continue;
            }
            if resident.contains(entry.internal.as_str()) {
                self.clear_out(&entry).await;
            }
            entry.absent.store(true, Ordering::SeqCst);
            self.0.room.free(&entry);
        }
    }

    /// Models that were being loaded when the server ended come last, one after another: one of them may be why.
    async fn restore_all(self, others: Vec<Arc<Entry>>, suspects: Vec<Arc<Entry>>) {
        let restores = others
            .iter()
            .map(|entry| self.0.restores.run(self.restore_one(entry)));
        futures_util::future::join_all(restores).await;
        for entry in &suspects {
            self.restore_one(entry).await;
        }
    }

    async fn restore_one(&self, entry: &Arc<Entry>) {
        let _turn = entry.turn.lock().await;
        if entry.state() != State::Restoring {
            return;
        }
        let loaded = tokio::select! {
            biased;
            () = settled(entry) => return,
            loaded = self.0.server.load(&entry.internal) => loaded,
        };
        match loaded {
            Ok(()) => {
                entry.crashes.store(0, Ordering::Relaxed);
                self.shift(entry, State::Restoring, State::Loaded);
            }
            Err(ServerError::Unreachable)
                if entry.crashes.fetch_add(1, Ordering::Relaxed) + 1 < CRASHES => {}
            Err(error) => {
                let reason = format!(
                    "it could not be loaded again after the inference server restarted: {error}"
                );
                self.give_up(entry, reason).await;
            }
        }
    }
}
