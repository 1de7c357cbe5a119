//! Who is in the inference server's memory: requests that need a model, and a server that ended.
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use seldon_agent_proxy::{Lease, Models, NotServed};

use super::entry::{Entry, State};
use super::orders::{CRASHES, settled};
use super::{Outcome, Registry};
use crate::server::{Indexed, ServerError};

/// How long a request waits for an inference server that restarts, before Envoy is made to try another replica.
const AWAY: Duration = Duration::from_secs(3);

/// Rounds in which a model was loaded and the inference server did not hold it, before the model is blamed: several
/// restarts of the server in a row are not its fault.
const UNCONFIRMED: u32 = 10;

impl Models for Registry {
    async fn acquire(&self, internal: &str) -> Result<Lease, NotServed> {
        let entry = self.find(internal).ok_or(NotServed::Unknown)?;
        if let Some(in_flight) = entry.enter() {
            return Ok(Lease::new(in_flight));
        }
        if entry.state() == State::Released {
            self.0.metrics.gauges().count_miss();
        }
        tokio::select! {
            biased;
            lease = self.wait_for(entry) => lease,
            () = self.given_up() => Err(NotServed::Away),
        }
    }
}

impl Registry {
    /// Resolves when the inference server has been away for so long that another replica should be tried.
    async fn given_up(&self) {
        let mut up = self.up();
        loop {
            let _ = up.wait_for(|up| !*up).await;
            let back = tokio::time::timeout(AWAY, up.wait_for(|up| *up)).await;
            if back.is_err() {
                return;
            }
        }
    }

    /// Waits until a model can answer; the caller bounds the wait. Loads go on without the caller.
    async fn wait_for(&self, mut entry: Arc<Entry>) -> Result<Lease, NotServed> {
        loop {
            let mut state = entry.state.subscribe();
            let seen = *state.borrow_and_update();
            match seen {
                State::Loaded | State::Releasing => {
                    if let Some(in_flight) = entry.enter() {
                        return Ok(Lease::new(in_flight));
                    }
                }
                State::Gone => match self.find(&entry.internal) {
                    Some(newer) if !Arc::ptr_eq(&newer, &entry) => entry = newer,
                    _ => {
                        return Err(entry
                            .reason
                            .get()
                            .cloned()
                            .map_or(NotServed::Unknown, NotServed::Failed));
                    }
                },
                State::Released => {
                    tokio::spawn(self.clone().revive(entry.clone()));
                    let _ = state.changed().await;
                }
                State::Loading | State::Restoring => drop(state.changed().await),
            }
        }
    }

    /// Brings an unloaded model back for late requests; only the first of several does the work.
    async fn revive(self, entry: Arc<Entry>) {
        let _turn = entry.turn.lock().await;
        if entry.state() != State::Released {
            return;
        }
        match self.0.server.load(&entry.internal).await {
            Ok(()) => self.set(&entry, State::Releasing),
            Err(error) => self.drop_model(&entry, &error.to_string()).await,
        }
    }

    /// Takes note that the inference server ended, with everything in its memory.
    pub fn server_lost(&self) {
        self.0.up.send_replace(false);
        for entry in self.entries() {
            match entry.state() {
                State::Loaded => self.set(&entry, State::Restoring),
                State::Releasing => self.set(&entry, State::Released),
                _ => {}
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
        let (mut suspects, mut others) = (Vec::new(), Vec::new());
        for entry in self
            .entries()
            .into_iter()
            .filter(|entry| entry.state() == State::Restoring)
        {
            if resident.contains(entry.internal.as_str()) {
                self.set(&entry, State::Loaded);
            } else if entry.crashes.load(Ordering::Relaxed) > 0 {
                suspects.push(entry);
            } else {
                others.push(entry);
            }
        }
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

    /// Asks whether the inference server holds everything that counts as loaded.
    pub async fn confirm(&self) -> Result<(), ServerError> {
        let is_loaded = |entry: &Arc<Entry>| entry.state() == State::Loaded;
        // What is loaded while the server answers need not be in its answer.
        let expected: Vec<_> = self.entries().into_iter().filter(is_loaded).collect();
        let index = self.0.server.index().await?;
        let ready: HashSet<&str> = index
            .iter()
            .filter(|model| model.state == "READY")
            .map(|model| model.name.as_str())
            .collect();
        let mut missing = false;
        for entry in expected {
            if ready.contains(entry.internal.as_str()) {
                entry.unconfirmed.store(0, Ordering::Relaxed);
            } else if !is_loaded(&entry) {
                // Unloaded meanwhile.
            } else if entry.unconfirmed.fetch_add(1, Ordering::Relaxed) + 1 < UNCONFIRMED {
                missing = true;
            } else {
                let reason = "it was loaded again and again after the inference server restarted, but did not become ready";
                self.give_up(&entry, reason.to_owned()).await;
            }
        }
        if missing {
            return Err(ServerError::Refused(
                "it does not hold all models that were loaded into it".to_owned(),
            ));
        }
        Ok(())
    }

    /// Drops a model and tells the scheduler, which did not ask.
    async fn give_up(&self, entry: &Arc<Entry>, reason: String) {
        self.drop_model(entry, &reason).await;
        // The receiver lives as long as the control loop; without it nobody is to be told.
        let _ = self
            .0
            .unasked
            .send((entry.version.clone(), Outcome::LoadFailed(reason)));
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
                self.set(entry, State::Loaded);
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
