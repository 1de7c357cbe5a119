//! The models of this replica: what the scheduler ordered, what is in memory, who uses it.
mod bell;
mod book;
mod demand;
mod entry;
mod eviction;
mod lru;
mod orders;
mod residence;
mod resting;
mod room;
mod traffic;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use prost::Message;
use seldon_agent_proxy::Metrics;
use seldon_proto::agent::ModelVersion;
use seldon_proto::agent_debug::{ModelReplicaState, model_replica_state::ModelState};
use seldon_proto::scheduler::ModelRuntimeInfo;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::artefact::Artefacts;
use crate::permits::Permits;
use crate::repository::Repository;
use crate::server::InferenceServer;
use book::OrderBook;
use entry::Entry;
pub use entry::State;
pub use orders::Outcome;
pub use resting::Keeping;
use room::Room;

/// Loads into the inference server at a time when many are restored.
const RESTORES: usize = 16;

/// Orders to load at a time, not counting those that take long: most of them wait for downloads, or for others.
const UNDER_WAY: usize = 256;

/// Of these, those that the inference server loads.
const LOADS: usize = 16;

/// Loads at a time that requests cause.
const REVIVALS: usize = 16;

/// Memory of this replica.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub total: u64,
    pub overcommit_percentage: u32,
}

impl Memory {
    /// Memory with over-commitment: models that need so much may be registered.
    pub fn with_overcommit(self) -> u64 {
        let budget = u128::from(self.total) * u128::from(self.overcommit_percentage) / 100;
        self.total
            .saturating_add(u64::try_from(budget).unwrap_or(u64::MAX))
    }
}

/// How long things may take.
#[derive(Debug, Clone)]
pub struct Times {
    /// An unloaded model goes on serving for this time.
    pub grace: Duration,
    /// An unloaded model can be brought back by a late request for this time.
    pub retention: Duration,
    /// A whole load, downloads and retries included.
    pub load: Duration,
    /// A whole unload, requests in flight included.
    pub unload: Duration,
    /// How long a restarted inference server's models hold up the registration.
    pub restore: Duration,
}

/// The registry; cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    models: RwLock<HashMap<String, Arc<Entry>>>,
    orders: OrderBook,
    artefacts: Artefacts,
    repository: Arc<dyn Repository>,
    server: InferenceServer,
    metrics: Arc<Metrics>,
    memory: Memory,
    /// Bytes of all registered models.
    registered: AtomicU64,
    room: Arc<Room>,
    times: Times,
    held_per_model: usize,
    under_way: Permits,
    loads: Permits,
    restores: Permits,
    /// Others than those: a load that a request causes may wait for the restoration.
    revivals: Permits,
    /// True while the inference server lives and holds what it should.
    up: watch::Sender<bool>,
    /// Events that no order waits for, such as a model that could not be restored.
    unasked: tokio::sync::mpsc::UnboundedSender<(ModelVersion, Outcome)>,
    departed: OnceLock<Departed>,
}

/// Called with the name of a model that has gone.
type Departed = Box<dyn Fn(&str) + Send + Sync>;

/// What a registry is made of.
pub struct Parts {
    pub artefacts: Artefacts,
    pub repository: Arc<dyn Repository>,
    pub server: InferenceServer,
    pub metrics: Arc<Metrics>,
    pub memory: Memory,
    pub times: Times,
    /// Requests of one model that may wait for it to be loaded.
    pub held_per_model: usize,
    pub unasked: tokio::sync::mpsc::UnboundedSender<(ModelVersion, Outcome)>,
}

impl Registry {
    /// Makes the registry and takes over the models that a former agent left on disk; they count as lost until
    /// [`Registry::restore`] found them in the inference server or brought them back.
    pub fn open(parts: Parts) -> anyhow::Result<Self> {
        let Parts {
            artefacts,
            repository,
            server,
            metrics,
            memory,
            times,
            held_per_model,
            unasked,
        } = parts;
        metrics
            .gauges()
            .capacity(memory.total, memory.with_overcommit());
        let registry = Self(Arc::new(Inner {
            models: RwLock::default(),
            orders: OrderBook::default(),
            artefacts,
            repository,
            server,
            metrics,
            memory,
            registered: AtomicU64::new(0),
            room: Room::new(memory.total),
            times,
            held_per_model,
            under_way: Permits::new(UNDER_WAY),
            loads: Permits::new(LOADS),
            restores: Permits::new(RESTORES),
            revivals: Permits::new(REVIVALS),
            up: watch::Sender::new(false),
            unasked,
            departed: OnceLock::new(),
        }));
        registry.adopt()?;
        Ok(registry)
    }

    fn adopt(&self) -> anyhow::Result<()> {
        for (internal, record) in self.0.repository.records()? {
            let runtime = self.0.repository.runtime_info(&internal);
            match ModelVersion::decode(record.as_slice()) {
                Ok(version) if internal_name(&version).as_deref() == Ok(internal.as_str()) => {
                    let entry = self.entry(internal, version, &runtime);
                    if self.0.repository.folders().rests(&entry.internal) {
                        entry.rest();
                    }
                    entry.adopted.store(true, Ordering::SeqCst);
                    self.insert(&entry, &CancellationToken::new());
                    self.set(&entry, State::Restoring);
                }
                _ => self.0.repository.remove(&internal)?,
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        internal: String,
        version: ModelVersion,
        runtime: &ModelRuntimeInfo,
    ) -> Arc<Entry> {
        Entry::new(
            internal,
            version,
            runtime,
            State::Loading,
            &self.0.room.bell,
        )
    }

    /// Memory the scheduler may still book here: evicted models are booked, too.
    pub fn available(&self) -> u64 {
        let registered = self.0.registered.load(Ordering::SeqCst);
        self.0.memory.with_overcommit().saturating_sub(registered)
    }

    /// What the scheduler needs to know to count this model's memory here.
    pub fn runtime_info(&self, name: &str, version: u32) -> ModelRuntimeInfo {
        self.0.repository.runtime_info(&internal(name, version))
    }

    /// Models the scheduler has here, as it sent them.
    pub fn loaded(&self) -> Vec<ModelVersion> {
        let wanted = |entry: &&Arc<Entry>| {
            matches!(
                entry.state(),
                State::Loaded | State::Restoring | State::Evicted
            )
        };
        let mut loaded: Vec<_> = self
            .entries()
            .iter()
            .filter(wanted)
            .map(|entry| self.described(entry.version()))
            .collect();
        loaded.sort_by(|a, b| name_of(a).cmp(name_of(b)).then(a.version.cmp(&b.version)));
        loaded
    }

    /// Calls `departed` with the internal name of each model that leaves; only the first call counts.
    pub fn on_departure(&self, departed: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.0.departed.set(Box::new(departed));
    }

    /// Whether the inference server holds what it should.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.0.up.subscribe()
    }

    /// Says whether any request is in flight.
    pub fn is_answering(&self) -> bool {
        self.entries().iter().any(|entry| entry.is_answering())
    }

    /// What the debug service shows.
    pub fn debug(&self) -> Vec<ModelReplicaState> {
        let state = |entry: &Arc<Entry>| {
            let last_used = entry.last_used();
            let state = if entry.state().serves() {
                ModelState::InMemory
            } else {
                ModelState::Evicted
            };
            ModelReplicaState {
                state: state.into(),
                last_accessed: Some(prost_types::Timestamp {
                    seconds: last_used.as_secs().try_into().unwrap_or_default(),
                    nanos: last_used.subsec_nanos().try_into().unwrap_or_default(),
                }),
                name: entry.internal.clone(),
            }
        };
        let mut states: Vec<_> = self.entries().iter().map(state).collect();
        states.sort_by(|a, b| a.name.cmp(&b.name));
        states
    }

    /// The model with the runtime information that this server gave it.
    fn described(&self, mut version: ModelVersion) -> ModelVersion {
        let runtime = || self.runtime_info(name_of(&version), version.version);
        let known = version
            .model
            .as_ref()
            .and_then(|model| model.model_spec.as_ref())
            .is_some_and(|spec| spec.model_runtime_info.is_some());
        let runtime = (!known).then(runtime);
        if let (Some(runtime), Some(model)) = (runtime, version.model.as_mut())
            && let Some(spec) = model.model_spec.as_mut()
        {
            spec.model_runtime_info = Some(runtime);
        }
        version
    }

    fn find(&self, internal: &str) -> Option<Arc<Entry>> {
        self.0
            .models
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(internal)
            .cloned()
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.0
            .models
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Adds an entry or replaces one, unless its order is cancelled: who has done so finds it, or it is not added.
    fn insert(&self, entry: &Arc<Entry>, cancel: &CancellationToken) -> bool {
        let mut models = self
            .0
            .models
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let wanted = !cancel.is_cancelled();
        if wanted {
            models.insert(entry.internal.clone(), entry.clone());
        }
        wanted
    }

    /// Changes a model's state, and with it the memory booked and the metrics.
    fn set(&self, entry: &Arc<Entry>, state: State) {
        self.change(entry, None, state);
    }

    /// The same, if the state still is `from`: an order for the model may have changed it.
    fn shift(&self, entry: &Arc<Entry>, from: State, state: State) -> bool {
        self.change(entry, Some(from), state)
    }

    fn change(&self, entry: &Arc<Entry>, from: Option<State>, state: State) -> bool {
        let changed = entry.state.send_if_modified(|current| {
            if from.is_some_and(|from| from != *current) {
                return false;
            }
            let booked = if state.is_registered() {
                entry.bytes()
            } else {
                0
            };
            let former = entry.booked.swap(booked, Ordering::SeqCst);
            let registered = &self.0.registered;
            registered.fetch_add(booked, Ordering::SeqCst);
            registered.fetch_sub(former, Ordering::SeqCst);
            entry.changes.fetch_add(1, Ordering::SeqCst);
            *current = state;
            true
        });
        if !changed {
            return false;
        }
        let gauges = self.0.metrics.gauges();
        match state {
            State::Loaded | State::Releasing => gauges.in_memory(&entry.internal, entry.bytes()),
            State::Restoring | State::Evicted | State::Released => {
                gauges.on_disk(&entry.internal, entry.bytes());
            }
            State::Gone => {
                self.0.metrics.forget(&entry.internal);
                if let Some(departed) = self.0.departed.get() {
                    departed(&entry.internal);
                }
            }
            State::Loading => {}
        }
        if !self.0.room.follow(entry) {
            self.trim();
        }
        true
    }

    /// Takes a model out of the registry and its files from the disk.
    async fn drop_model(&self, entry: &Arc<Entry>, reason: &str) {
        let _ = entry.reason.set(reason.to_owned());
        {
            let mut models = self
                .0
                .models
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if models
                .get(&entry.internal)
                .is_some_and(|known| Arc::ptr_eq(known, entry))
            {
                models.remove(&entry.internal);
            }
        }
        self.set(entry, State::Gone);
        let (repository, internal) = (self.0.repository.clone(), entry.internal.clone());
        let removed = tokio::task::spawn_blocking(move || repository.remove(&internal)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(model = entry.internal, %error, "files of a model are left behind");
        }
    }
}

/// The name that a model's author gave it.
pub fn name_of(version: &ModelVersion) -> &str {
    let meta = version.model.as_ref().and_then(|model| model.meta.as_ref());
    meta.map_or("", |meta| meta.name.as_str())
}

/// `<name>_<version>`, the name on the inference server; it also names a folder, so it must not lead elsewhere.
pub fn internal_name(version: &ModelVersion) -> Result<String, String> {
    let name = name_of(version);
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let first = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    if !first || name.len() > 253 || !name.chars().all(usable) {
        return Err(format!(
            "model name {name:?} cannot be used: letters, digits, '-', '_' and '.' only"
        ));
    }
    Ok(internal(name, version.version))
}

/// The same for a name that was found usable, or is only looked for.
fn internal(name: &str, version: u32) -> String {
    format!("{name}_{version}")
}
