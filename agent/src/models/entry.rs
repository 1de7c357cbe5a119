//! One model on this replica.
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use seldon_proto::agent::ModelVersion;
use seldon_proto::scheduler::{
    ModelRuntimeInfo, StorageConfig, model_runtime_info, storage_config,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Where a model is. It answers requests while `Loaded` or `Releasing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// On its way for the first time: download, installation, load.
    Loading,
    /// In memory.
    Loaded,
    /// Was in memory until the inference server ended; on its way back.
    Restoring,
    /// Ordered to go, still in memory: late requests are answered.
    Releasing,
    /// Out of memory, files kept: a late request brings it back for a while.
    Released,
    /// Not here any more; what waits for it gives up.
    Gone,
}

impl State {
    /// Can answer at once.
    pub fn serves(self) -> bool {
        matches!(self, Self::Loaded | Self::Releasing)
    }

    /// Takes memory of the inference server.
    pub fn is_resident(self) -> bool {
        matches!(self, Self::Loaded | Self::Restoring | Self::Releasing)
    }
}

/// The newest order of the scheduler for one model.
struct Orders {
    sequence: u64,
    is_load: bool,
    cancel: CancellationToken,
}

/// A model, its state and who uses it.
pub struct Entry {
    pub internal: String,
    pub version: ModelVersion,
    /// Memory as the scheduler counts it; known when the model is installed, and unchanged while it is resident.
    bytes: AtomicU64,
    /// Held by the one operation that works on this model.
    pub turn: tokio::sync::Mutex<()>,
    /// How often the inference server ended while this model was loaded into it.
    pub crashes: AtomicU32,
    /// How often in a row it was loaded, and the inference server did not hold it afterwards.
    pub unconfirmed: AtomicU32,
    /// Why it is gone.
    pub reason: OnceLock<String>,
    pub state: watch::Sender<State>,
    in_flight: AtomicUsize,
    idle: Notify,
    last_used: AtomicU64,
}

impl Entry {
    pub fn new(
        internal: String,
        version: ModelVersion,
        runtime: &ModelRuntimeInfo,
        state: State,
    ) -> Arc<Self> {
        let bytes = AtomicU64::new(memory(&version, runtime));
        Arc::new(Self {
            internal,
            version,
            bytes,
            turn: tokio::sync::Mutex::new(()),
            crashes: AtomicU32::new(0),
            unconfirmed: AtomicU32::new(0),
            reason: OnceLock::new(),
            state: watch::Sender::new(state),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            last_used: AtomicU64::new(now()),
        })
    }

    /// The state now.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Memory as the scheduler counts it.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Counts the memory anew, by what the installed model says.
    pub fn measure(&self, runtime: &ModelRuntimeInfo) {
        self.bytes
            .store(memory(&self.version, runtime), Ordering::SeqCst);
    }

    /// Marks a request in flight, if the model can answer at once.
    pub fn enter(self: &Arc<Self>) -> Option<InFlight> {
        // Counted before the state is looked at: whoever changes the state looks at the count afterwards.
        let guard = InFlight(self.clone());
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        if !self.state().serves() {
            return None;
        }
        self.last_used.store(now(), Ordering::Relaxed);
        Some(guard)
    }

    /// Says whether a request is in flight.
    pub fn is_answering(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) > 0
    }

    /// Resolves when no request is in flight.
    pub async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Time of the last request, since the epoch.
    pub fn last_used(&self) -> Duration {
        Duration::from_millis(self.last_used.load(Ordering::Relaxed))
    }

    /// Says whether an order is for exactly this model.
    pub fn is_same(&self, other: &ModelVersion) -> bool {
        let plain = |version: &ModelVersion| {
            let version = without_credentials(version.clone());
            let mut spec = version
                .model
                .and_then(|model| model.model_spec)
                .unwrap_or_default();
            spec.model_runtime_info = None;
            spec
        };
        self.version.version == other.version && plain(&self.version) == plain(other)
    }

    /// Says whether an order asks for what a load of this model under way does already, credentials included.
    pub fn is_same_load(&self, other: &ModelVersion) -> bool {
        let storage = |version: &ModelVersion| {
            let spec = version.model.as_ref()?.model_spec.as_ref()?;
            spec.storage_config.clone()
        };
        self.is_same(other) && storage(&self.version) == storage(other)
    }
}

/// A request in flight.
pub struct InFlight(Arc<Entry>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// The newest orders by model: an older one that comes late is dropped.
#[derive(Default)]
pub struct OrderBook(Mutex<std::collections::HashMap<String, Orders>>);

impl OrderBook {
    /// Takes note of an order and cancels the work on an older one. `None` when a newer one is known.
    pub fn accept(
        &self,
        internal: &str,
        sequence: u64,
        is_load: bool,
    ) -> Option<CancellationToken> {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = orders.get(internal) {
            if known.sequence > sequence {
                return None;
            }
            known.cancel.cancel();
        }
        let cancel = CancellationToken::new();
        orders.insert(
            internal.to_owned(),
            Orders {
                sequence,
                is_load,
                cancel: cancel.clone(),
            },
        );
        Some(cancel)
    }

    /// Takes over from the order that is being followed, if that is an older load; its work goes on.
    pub fn join(&self, internal: &str, sequence: u64) -> Option<CancellationToken> {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = orders.get_mut(internal)?;
        if !known.is_load || known.sequence > sequence || known.cancel.is_cancelled() {
            return None;
        }
        known.sequence = sequence;
        Some(known.cancel.clone())
    }

    /// Forgets a model whose newest order this is.
    pub fn done(&self, internal: &str, sequence: u64) {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if orders
            .get(internal)
            .is_some_and(|known| known.sequence == sequence)
        {
            orders.remove(internal);
        }
    }
}

/// The model without an inline storage configuration: what may lie on the disk that models share, and what makes two
/// orders of one version the same.
pub fn without_credentials(mut version: ModelVersion) -> ModelVersion {
    let spec = version
        .model
        .as_mut()
        .and_then(|model| model.model_spec.as_mut());
    if let Some(spec) = spec {
        let inline = |config: &StorageConfig| {
            matches!(
                config.config,
                Some(storage_config::Config::StorageRcloneConfig(_))
            )
        };
        if spec.storage_config.as_ref().is_some_and(inline) {
            spec.storage_config = None;
        }
    }
    version
}

/// `memoryBytes` for each instance; none given counts as nothing.
fn memory(version: &ModelVersion, runtime: &ModelRuntimeInfo) -> u64 {
    let spec = version
        .model
        .as_ref()
        .and_then(|model| model.model_spec.as_ref());
    let instances = match &runtime.model_runtime_info {
        Some(model_runtime_info::ModelRuntimeInfo::Mlserver(settings)) => settings.parallel_workers,
        Some(model_runtime_info::ModelRuntimeInfo::Triton(config)) => {
            config.cpu.first().map_or(1, |cpu| cpu.instance_count)
        }
        None => 1,
    };
    spec.and_then(|spec| spec.memory_bytes)
        .unwrap_or(0)
        .saturating_mul(u64::from(instances.max(1)))
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use seldon_proto::scheduler::{Model, ModelSpec};

    fn version(number: u32, config: Option<storage_config::Config>) -> ModelVersion {
        let spec = ModelSpec {
            uri: "s3://a/b".into(),
            memory_bytes: Some(7),
            storage_config: config.map(|config| StorageConfig {
                config: Some(config),
            }),
            ..Default::default()
        };
        ModelVersion {
            model: Some(Model {
                model_spec: Some(spec),
                ..Default::default()
            }),
            version: number,
        }
    }

    #[test]
    fn credentials_stay_in_memory() {
        let secret = storage_config::Config::StorageRcloneConfig("PLANTED".into());
        let plain = without_credentials(version(1, Some(secret.clone()))).encode_to_vec();
        assert!(!String::from_utf8_lossy(&plain).contains("PLANTED"));
        let named = version(
            1,
            Some(storage_config::Config::StorageSecretName("minio".into())),
        );
        assert_eq!(without_credentials(named.clone()), named);
        let workers = ModelRuntimeInfo::default();
        let entry = Entry::new("a_1".into(), version(1, None), &workers, State::Loading);
        assert!(
            entry.is_same(&version(1, Some(secret)))
                && !entry.is_same(&version(2, None))
                && !entry.is_same(&named)
        );
        assert_eq!(entry.bytes(), 7);
    }

    #[test]
    fn a_request_is_in_flight_until_its_guard_is_dropped() {
        let entry = Entry::new(
            "a_1".into(),
            version(1, None),
            &ModelRuntimeInfo::default(),
            State::Loading,
        );
        assert!(entry.enter().is_none());
        assert_eq!(entry.in_flight.load(Ordering::SeqCst), 0);
        entry.state.send_replace(State::Loaded);
        let guard = entry.enter().expect("it serves");
        assert_eq!(entry.in_flight.load(Ordering::SeqCst), 1);
        entry.state.send_replace(State::Released);
        assert!(entry.enter().is_none());
        drop(guard);
        assert_eq!(entry.in_flight.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn newer_orders_cancel_older_ones() {
        let book = OrderBook::default();
        let first = book.accept("a_1", 1, true).expect("the first");
        let third = book.accept("a_1", 3, true).expect("newer");
        assert!(first.is_cancelled() && !third.is_cancelled());
        assert!(book.accept("a_1", 2, true).is_none(), "late");
        book.done("a_1", 1);
        assert!(book.accept("a_1", 2, true).is_none(), "still known");
        book.done("a_1", 3);
        assert!(book.accept("a_1", 2, true).is_some());
    }

    #[test]
    fn a_load_is_joined_and_an_unload_is_not() {
        let book = OrderBook::default();
        assert!(book.join("a_1", 1).is_none(), "nothing to join");
        let load = book.accept("a_1", 2, true).expect("the first");
        assert!(book.join("a_1", 1).is_none(), "late");
        let joined = book.join("a_1", 3).expect("the same load");
        assert!(!load.is_cancelled());
        book.accept("a_1", 4, false).expect("newer");
        assert!(load.is_cancelled() && joined.is_cancelled());
        assert!(book.join("a_1", 5).is_none(), "an unload");
    }
}
