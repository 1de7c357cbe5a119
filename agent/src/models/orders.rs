//! The scheduler's orders: load and unload.
//!
//! Each model's operations take turns. A newer order cancels the older one, but only where it waits: steps that change
//! files run to their end, so that nothing of a cancelled order happens later.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prost::Message;
use seldon_proto::agent::ModelVersion;
use tokio_util::sync::CancellationToken;

use super::entry::{Entry, State, record};
use super::eviction::FAIR;
use super::{Registry, internal_name};
use crate::server::ServerError;

/// Rounds of loading a model while the inference server ends, before the model is blamed.
pub(super) const CRASHES: u32 = 3;

/// For how long a model need not yield at most, whatever its load has taken: others wait.
const LONGEST: Duration = Duration::from_secs(8);

/// How long the inference server is asked to give up a model that it may not even hold.
const CLEAR_OUT: Duration = Duration::from_secs(10);

/// How an order ended: what the scheduler is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Loaded,
    LoadFailed(String),
    Unloaded,
    UnloadFailed(String),
    /// A newer order took over; it has its own outcome.
    Superseded,
}

/// Why a load ended early.
enum Broken {
    Cancelled,
    Failed(String),
}

impl Registry {
    /// Brings a model into memory, or, where it is to rest, as far as the disk. `sequence` orders the scheduler's messages.
    pub async fn load(&self, version: Box<ModelVersion>, sequence: u64, resting: bool) -> Outcome {
        let internal = match internal_name(&version) {
            Ok(internal) => internal,
            Err(reason) => return Outcome::LoadFailed(reason),
        };
        let under_way = self
            .find(&internal)
            .filter(|known| known.state() == State::Loading && known.is_same_load(&version));
        let joined = under_way.and_then(|known| {
            let cancel = self.0.orders.join(&internal, sequence)?;
            Some((known, cancel))
        });
        let outcome = if let Some((known, cancel)) = joined {
            outcome_of(&known, &cancel).await
        } else {
            let Some(cancel) = self.0.orders.accept(&internal, sequence, true) else {
                return Outcome::Superseded;
            };
            self.0.metrics.gauges().count_load();
            if self.is_there(&internal, &version) {
                return Outcome::Loaded;
            }
            // Thousands may be ordered at once: until its turn has come each is as small as can be.
            let order = version.encode_to_vec();
            drop(version);
            let load = async {
                let version = ModelVersion::decode(&*order).expect("it was encoded here");
                Box::pin(self.load_in_turn(&internal, version, resting, &cancel)).await
            };
            let done = self.0.under_way.run_unless(cancel.cancelled(), load).await;
            done.unwrap_or(Outcome::Superseded)
        };
        if matches!(outcome, Outcome::LoadFailed(_)) {
            self.0.orders.done(&internal, sequence);
        }
        outcome
    }

    /// Takes over an order for a model that is here already, unless something is done about it now.
    fn is_there(&self, internal: &str, version: &ModelVersion) -> bool {
        self.find(internal).is_some_and(|known| {
            let turn = known.turn.try_lock();
            turn.is_ok() && known.is_same(version) && renewed(&known, version)
        })
    }

    async fn load_in_turn(
        &self,
        internal: &str,
        version: ModelVersion,
        resting: bool,
        cancel: &CancellationToken,
    ) -> Outcome {
        let known = self.find(internal);
        if let Some(known) = known.filter(|known| known.is_same(&version)) {
            if known.state() == State::Restoring {
                tokio::select! {
                    () = cancel.cancelled() => return Outcome::Superseded,
                    () = settled(&known) => {}
                }
            }
            let turn = tokio::select! {
                biased;
                () = cancel.cancelled() => return Outcome::Superseded,
                turn = known.turn.lock() => turn,
            };
            if renewed(&known, &version) {
                return Outcome::Loaded;
            }
            // Still in memory, but its record is gone from the disk: the whole load writes it again.
            if known.state() == State::Releasing {
                return self.load_entry(&known, cancel).await;
            }
            drop(turn);
        }
        let Some(entry) = self.replace(internal, version, cancel).await else {
            return Outcome::Superseded;
        };
        if resting {
            entry.rest();
        }
        let _turn = entry.turn.lock().await;
        self.load_entry(&entry, cancel).await
    }

    /// A new entry under this name, after the work on an old one has ended; none for an order that was cancelled: whoever
    /// did that may have looked for an entry already.
    async fn replace(
        &self,
        internal: &str,
        version: ModelVersion,
        cancel: &CancellationToken,
    ) -> Option<Arc<Entry>> {
        let runtime = self.0.repository.runtime_info(internal);
        let entry = self.entry(internal.to_owned(), version, &runtime);
        if let Some(old) = self.find(internal) {
            self.stop_reloading(&old);
            let _turn = old.turn.lock().await;
            // First: requests that wait for the old one look once for what took its place.
            if !self.insert(&entry, cancel) {
                return None;
            }
            // In the inference server it is one model, which is replaced by the load.
            self.0.room.pass_on(&old, &entry);
            self.set(&old, State::Gone);
        } else if !self.insert(&entry, cancel) {
            return None;
        }
        Some(entry)
    }

    /// Loads the entry whose turn the caller holds.
    async fn load_entry(&self, entry: &Arc<Entry>, cancel: &CancellationToken) -> Outcome {
        let limit = self.0.times.load;
        let without_room = AtomicBool::new(false);
        // One that is in the inference server's memory leaves it by an eviction.
        let asleep = entry.is_resting() && entry.state() == State::Loading && entry.held() == 0;
        let bring = async {
            self.install(entry, cancel).await?;
            match asleep {
                true => Ok(()),
                false => self.bring(entry, cancel, &without_room).await,
            }
        };
        let result = match tokio::time::timeout(limit, bring).await {
            Ok(result) => result,
            Err(_) if without_room.load(Ordering::Relaxed) => Err(Broken::Failed(format!(
                "the {} bytes of memory that it needs could not be freed within {limit:?}: all models in memory are in use",
                entry.bytes()
            ))),
            Err(_) => {
                self.clear_out(entry).await;
                Err(Broken::Failed(format!(
                    "it was not loaded within {limit:?}"
                )))
            }
        };
        match result {
            Ok(()) => {
                entry.absent.store(asleep, Ordering::SeqCst);
                let state = if asleep {
                    State::Evicted
                } else {
                    State::Loaded
                };
                self.set(entry, state);
                Outcome::Loaded
            }
            Err(Broken::Cancelled) => Outcome::Superseded,
            Err(Broken::Failed(reason)) => {
                self.drop_model(entry, &reason).await;
                Outcome::LoadFailed(reason)
            }
        }
    }

    /// Downloads a model and installs it, so that the inference server can load it.
    async fn install(&self, entry: &Arc<Entry>, cancel: &CancellationToken) -> Result<(), Broken> {
        let version = entry.version();
        let spec = version
            .model
            .as_ref()
            .and_then(|model| model.model_spec.clone())
            .unwrap_or_default();
        let fetched = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Broken::Cancelled),
            fetched = Box::pin(self.0.artefacts.fetch(&spec)) => fetched.map_err(|error| Broken::Failed(error.to_string()))?,
        };
        let record = record(version);
        let (repository, internal) = (self.0.repository.clone(), entry.internal.clone());
        let uri = crate::artefact::redacted(&spec.uri);
        // The copy, which is this model's alone, goes along and ends with the installation: it must outlast a caller that
        // gives up.
        let install = move || {
            let copy = fetched;
            repository.install(&copy.folder, &spec, &internal, &record)
        };
        match tokio::task::spawn_blocking(install).await {
            Ok(Ok(())) => entry.measure(&self.0.repository.runtime_info(&entry.internal)),
            Ok(Err(error)) => {
                return Err(Broken::Failed(format!(
                    "the artefact at {uri} cannot be used: {error}"
                )));
            }
            Err(_) => {
                return Err(Broken::Failed(
                    "installing the artefact was broken off".to_owned(),
                ));
            }
        }
        match self.0.room.refuses(entry) {
            Some(reason) => Err(Broken::Failed(reason)),
            None => Ok(()),
        }
    }

    /// Loads an installed model. `without_room` is true while it waits for memory.
    async fn bring(
        &self,
        entry: &Arc<Entry>,
        cancel: &CancellationToken,
        without_room: &AtomicBool,
    ) -> Result<(), Broken> {
        without_room.store(true, Ordering::Relaxed);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Broken::Cancelled),
            () = self.queue_for_room(Some(entry)) => {}
        }
        without_room.store(false, Ordering::Relaxed);
        entry.absent.store(false, Ordering::SeqCst);
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Broken::Cancelled),
            loaded = self.0.loads.run(self.load_on_server(entry)) => {
                if loaded.is_err() {
                    self.clear_out(entry).await;
                }
                loaded.map_err(Broken::Failed)
            }
        }
    }

    /// Makes sure that the inference server does not hold a model whose files go: after a failure it might.
    pub(super) async fn clear_out(&self, entry: &Arc<Entry>) {
        let unload = self.0.server.unload(&entry.internal);
        match tokio::time::timeout(CLEAR_OUT, unload).await {
            // A server that ended holds nothing.
            Ok(Ok(()) | Err(ServerError::Unreachable)) => {}
            Ok(Err(error)) => {
                tracing::warn!(model = entry.internal, %error, "a model may be left in the inference server's memory")
            }
            Err(_) => tracing::warn!(
                model = entry.internal,
                "a model may be left in the inference server's memory: it does not answer"
            ),
        }
    }

    /// Loads an installed model, through ends of the inference server that need not be its fault.
    pub(super) async fn load_on_server(&self, entry: &Arc<Entry>) -> Result<(), String> {
        let mut up = self.up();
        for _ in 0..CRASHES {
            // The sender lives as long as the registry.
            let _ = up.wait_for(|up| *up).await;
            let begun = Instant::now();
            match self.0.server.load(&entry.internal).await {
                Ok(()) => {
                    // What took long to load is not soon to go again.
                    entry.spare(begun.elapsed().clamp(FAIR, LONGEST));
                    return Ok(());
                }
                Err(ServerError::Unreachable) => {
                    // Time for the watch to notice, so that the next round waits for a live server.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("the inference server ended each time this model was loaded".to_owned())
    }

    /// Takes a model out of memory: it stops being wanted at once, answers what is still under way, and can be
    /// brought back by late requests for a while.
    pub async fn unload(&self, version: &ModelVersion, sequence: u64) -> Outcome {
        let internal = match internal_name(version) {
            Ok(internal) => internal,
            Err(reason) => return Outcome::UnloadFailed(reason),
        };
        let Some(cancel) = self.0.orders.accept(&internal, sequence, false) else {
            return Outcome::Superseded;
        };
        self.0.metrics.gauges().count_unload();
        let Some(entry) = self.find(&internal) else {
            self.0.orders.done(&internal, sequence);
            return Outcome::Unloaded;
        };
        self.stop_reloading(&entry);
        let outcome = self.unload_entry(&entry, &cancel).await;
        if outcome != Outcome::Superseded {
            // A failed unload is tried again there, and told when it succeeds.
            let untold = outcome != Outcome::Unloaded;
            tokio::spawn(self.clone().retire(entry, cancel, sequence, untold));
        }
        outcome
    }

    async fn unload_entry(&self, entry: &Arc<Entry>, cancel: &CancellationToken) -> Outcome {
        let _turn = entry.turn.lock().await;
        if cancel.is_cancelled() {
            return Outcome::Superseded;
        }
        if let Err(error) = self.0.repository.forget(&entry.internal) {
            tracing::warn!(model = entry.internal, %error, "an unloaded model may come back when the agent restarts");
        }
        match entry.state() {
            State::Loaded => self.set(entry, State::Releasing),
            // Its load was cancelled half-way.
            State::Loading => {
                self.clear_out(entry).await;
                self.drop_model(entry, "it was unloaded").await;
            }
            // Its reload may have been broken off half-way.
            State::Restoring | State::Evicted | State::Released => {
                self.clear_out_unless_absent(entry).await;
                self.set(entry, State::Released);
                self.0.room.free(entry);
            }
            State::Releasing | State::Gone => {}
        }
        if entry.state() != State::Releasing {
            return Outcome::Unloaded;
        }
        let quiet = async {
            tokio::time::sleep(self.0.times.grace).await;
            entry.idle().await;
        };
        let limit = self.0.times.unload;
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Outcome::Superseded,
            quiet = tokio::time::timeout(limit, quiet) => if quiet.is_err() {
                return Outcome::UnloadFailed(format!("it still answered requests after {limit:?}"));
            }
        }
        match self.release(entry).await {
            Ok(()) => Outcome::Unloaded,
            Err(reason) => Outcome::UnloadFailed(reason),
        }
    }

    /// Ends the work on a model that is being loaded again, which holds its turn and may never end.
    fn stop_reloading(&self, entry: &Arc<Entry>) {
        for reloaded in [State::Restoring, State::Evicted] {
            self.shift(entry, reloaded, State::Released);
        }
    }

    /// An evicted model leaves the inference server alone.
    async fn clear_out_unless_absent(&self, entry: &Arc<Entry>) {
        if !entry.absent.load(Ordering::SeqCst) {
            self.clear_out(entry).await;
        }
    }

    /// Out of memory; a request that came in just before is answered first.
    async fn release(&self, entry: &Arc<Entry>) -> Result<(), String> {
        self.set(entry, State::Released);
        if tokio::time::timeout(self.0.times.unload, entry.idle())
            .await
            .is_err()
        {
            self.set(entry, State::Releasing);
            return Err("it is still answering requests".to_owned());
        }
        match self.0.server.unload(&entry.internal).await {
            // A server that ended holds nothing.
            Ok(()) | Err(ServerError::Unreachable) => {
                self.0.room.free(entry);
                Ok(())
            }
            Err(error) => {
                self.set(entry, State::Releasing);
                Err(error.to_string())
            }
        }
    }

    /// Keeps an unloaded model's files for late requests, then removes it; a new order ends this.
    async fn retire(
        self,
        entry: Arc<Entry>,
        cancel: CancellationToken,
        sequence: u64,
        untold: bool,
    ) {
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(self.0.times.retention) => {}
            }
            let _turn = entry.turn.lock().await;
            if cancel.is_cancelled() {
                return;
            }
            match entry.state() {
                State::Releasing => {
                    if let Err(error) = self.release(&entry).await {
                        tracing::warn!(
                            model = entry.internal,
                            error,
                            "a released model stays in memory"
                        );
                    }
                }
                State::Released => {
                    self.clear_out_unless_absent(&entry).await;
                    self.drop_model(&entry, "it was unloaded").await;
                    break;
                }
                _ => break,
            }
        }
        if untold && entry.state() == State::Gone {
            // The receiver lives as long as the control loop; without it nobody is to be told.
            let _ = self.0.unasked.send((entry.version(), Outcome::Unloaded));
        }
        self.0.orders.done(&entry.internal, sequence);
    }
}

/// Takes over an order for a model that is loaded. An evicted one is, as far as the scheduler is concerned.
fn renewed(known: &Entry, version: &ModelVersion) -> bool {
    let there = matches!(known.state(), State::Loaded | State::Evicted);
    if there {
        known.renew(version);
    }
    there
}

/// How a load under way ends, for an order that joined it.
async fn outcome_of(entry: &Entry, cancel: &CancellationToken) -> Outcome {
    let mut state = entry.state.subscribe();
    tokio::select! {
        biased;
        () = cancel.cancelled() => Outcome::Superseded,
        // The entry holds the sender.
        _ = state.wait_for(|state| *state != State::Loading) => match (entry.state(), entry.reason.get()) {
            (State::Gone, Some(reason)) => Outcome::LoadFailed(reason.clone()),
            (State::Gone, None) => Outcome::Superseded,
            _ => Outcome::Loaded,
        }
    }
}

/// Resolves when a model is not being restored any more.
pub(super) async fn settled(entry: &Entry) {
    let mut state = entry.state.subscribe();
    // The entry holds the sender.
    let _ = state.wait_for(|state| *state != State::Restoring).await;
}
