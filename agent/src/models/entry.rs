//! One model on this replica.
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;
use seldon_agent_proxy::NotServed;
use seldon_proto::agent::ModelVersion;
use seldon_proto::scheduler::{
    ModelRuntimeInfo, StorageConfig, model_runtime_info, storage_config,
};
use tokio::sync::{Notify, watch};

use super::bell::Bell;
use super::traffic::has_bounds;

/// Where a model is. It answers requests while `Loaded` or `Releasing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// On its way for the first time: download, installation, load.
    Loading,
    /// In memory.
    Loaded,
    /// Was in memory until the inference server ended; on its way back.
    Restoring,
    /// Made room for others, files kept: a request brings it back. To the scheduler it is loaded.
    Evicted,
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

    /// Counts against what may be registered here.
    pub fn is_registered(self) -> bool {
        matches!(
            self,
            Self::Loaded | Self::Restoring | Self::Evicted | Self::Releasing
        )
    }

    /// Out of memory, and brought back by a request.
    pub fn is_on_demand(self) -> bool {
        matches!(self, Self::Evicted | Self::Released)
    }
}

/// Why a model could not be brought back.
struct Failure {
    why: NotServed,
    /// In a row.
    times: u32,
    until: Instant,
}

/// A model, its state and who uses it.
pub struct Entry {
    /// Unlike its name, no other model's.
    pub id: u64,
    pub internal: String,
    /// What the scheduler ordered, encoded: it takes a fraction of the memory, and is hardly ever looked at.
    order: Mutex<Box<[u8]>>,
    /// Memory as the scheduler counts it; known when the model is installed, and unchanged while it is in memory.
    bytes: AtomicU64,
    /// Memory of the inference server that it has or is about to take; changed by the room alone.
    held: AtomicU64,
    /// Bytes by which it counts as registered.
    pub booked: AtomicU64,
    /// Held by the one operation that works on this model.
    pub turn: tokio::sync::Mutex<()>,
    /// How often the inference server ended while this model was loaded into it.
    pub crashes: AtomicU32,
    /// How often in a row it was loaded, and the inference server did not hold it afterwards.
    pub unconfirmed: AtomicU32,
    /// How often its state changed.
    pub changes: AtomicU32,
    /// Why it is gone.
    pub reason: OnceLock<String>,
    pub state: watch::Sender<State>,
    /// Left by a former agent, and not looked for in the inference server yet.
    pub adopted: AtomicBool,
    /// Known not to be in the inference server's memory.
    pub absent: AtomicBool,
    /// Somebody brings it back.
    pub reviving: AtomicBool,
    /// Requests are held, so that it falls idle and can be evicted.
    yielding: AtomicBool,
    /// Until when it need not yield, like `last_used`.
    spared: AtomicU64,
    /// The scheduler is told when its requests cross a threshold.
    pub watched: AtomicBool,
    /// The newest order that said how it is to be kept.
    pub kept: AtomicU64,
    /// Its rest was ended by an order, and nothing was done about that yet.
    pub roused: AtomicBool,
    /// Since when it rests, like `last_used`; 0 while it does not.
    resting: AtomicU64,
    /// How often it could not be brought back.
    failures: AtomicU32,
    failure: Mutex<Option<Box<Failure>>>,
    in_flight: AtomicUsize,
    waiting: AtomicUsize,
    idle: Notify,
    last_used: AtomicU64,
    bell: Arc<Bell>,
}

impl Entry {
    pub fn new(
        internal: String,
        version: ModelVersion,
        runtime: &ModelRuntimeInfo,
        state: State,
        bell: &Arc<Bell>,
    ) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let bytes = AtomicU64::new(memory(&version, runtime));
        Arc::new(Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            internal,
            order: Mutex::new(version.encode_to_vec().into()),
            bytes,
            held: AtomicU64::new(0),
            booked: AtomicU64::new(0),
            turn: tokio::sync::Mutex::new(()),
            crashes: AtomicU32::new(0),
            unconfirmed: AtomicU32::new(0),
            changes: AtomicU32::new(0),
            reason: OnceLock::new(),
            state: watch::Sender::new(state),
            adopted: AtomicBool::new(false),
            absent: AtomicBool::new(false),
            reviving: AtomicBool::new(false),
            yielding: AtomicBool::new(false),
            spared: AtomicU64::new(0),
            watched: AtomicBool::new(has_bounds(&version)),
            kept: AtomicU64::new(0),
            roused: AtomicBool::new(false),
            resting: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            failure: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            idle: Notify::new(),
            last_used: AtomicU64::new(now()),
            bell: bell.clone(),
        })
    }

    /// What the scheduler ordered.
    pub fn version(&self) -> ModelVersion {
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        ModelVersion::decode(&**order).expect("it was encoded here")
    }

    /// Takes over an order for the same model: how many replicas it has, or what scales it, may be new.
    pub fn renew(&self, version: &ModelVersion) {
        let order = version.encode_to_vec().into();
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = order;
    }

    /// The state now.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Memory as the scheduler counts it.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Memory of the inference server that it has or is about to take.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    /// For the room alone, which keeps the sum.
    pub fn set_held(&self, bytes: u64) {
        self.held.store(bytes, Ordering::SeqCst);
    }

    /// Counts the memory anew, by what the installed model says.
    pub fn measure(&self, runtime: &ModelRuntimeInfo) {
        self.bytes
            .store(memory(&self.version(), runtime), Ordering::SeqCst);
    }

    /// Marks a request in flight, if the model can answer at once.
    pub fn enter(self: &Arc<Self>) -> Option<InFlight> {
        // Counted before the state is looked at: whoever changes the state looks at the count afterwards.
        let guard = InFlight(self.clone());
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        if !self.state().serves() || self.yielding.load(Ordering::SeqCst) {
            return None;
        }
        self.touch();
        Some(guard)
    }

    /// Holds requests from now on, or lets them go on: those that wait look again.
    pub fn set_yielding(&self, yields: bool) {
        self.yielding.store(yields, Ordering::SeqCst);
        if !yields {
            self.state.send_modify(|_| {});
        }
    }

    /// It need not yield for this time.
    pub fn spare(&self, time: Duration) {
        let until = now().saturating_add(time.as_nanos().try_into().unwrap_or(u64::MAX));
        self.spared.store(until, Ordering::Relaxed);
    }

    /// Until when it need not yield: those that have been in memory for longest come first.
    pub fn spared_until(&self) -> u64 {
        self.spared.load(Ordering::Relaxed)
    }

    /// Takes note of a use.
    pub fn touch(&self) {
        self.last_used.store(now(), Ordering::Relaxed);
    }

    /// It is to be out of memory until it is asked for; no news for one that is.
    pub fn rest(&self) {
        self.roused.store(false, Ordering::SeqCst);
        let _ = self
            .resting
            .compare_exchange(0, now(), Ordering::SeqCst, Ordering::SeqCst);
    }

    /// It is to be in memory.
    pub fn wake(&self) {
        if self.resting.swap(0, Ordering::SeqCst) > 0 {
            self.roused.store(true, Ordering::SeqCst);
        }
    }

    /// Says whether it is to be out of memory until it is asked for.
    pub fn is_resting(&self) -> bool {
        self.resting.load(Ordering::SeqCst) > 0
    }

    /// Says whether it was asked for since it was to rest.
    pub fn is_asked_at_rest(&self) -> bool {
        let since = self.resting.load(Ordering::SeqCst);
        since > 0 && (self.is_needed() || self.used_at() > since)
    }

    /// Marks somebody who waits for the model to answer: once it is in memory, it must not leave before that.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self.clone())
    }

    /// Those who wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Says whether a request is in flight or waits for this model.
    pub fn is_needed(&self) -> bool {
        self.is_answering() || self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Requests that are in flight or wait for this model.
    pub fn wanted_by(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst) + self.waiting.load(Ordering::SeqCst)
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
        Duration::from_nanos(self.used_at())
    }

    /// The same in nanoseconds, to compare.
    pub fn used_at(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// How often this model could not be brought back.
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::SeqCst)
    }

    /// What to tell a request that came after `failures`: why the model could not be brought back, if it was tried
    /// since, or so recently that it is not tried again yet.
    pub fn refusal(&self, failures: u32) -> Option<NotServed> {
        let failure = self.failure();
        let failure = failure.as_ref()?;
        let since = self.failures() != failures;
        (since || Instant::now() < failure.until).then(|| failure.why.clone())
    }

    /// Takes note that it could not be brought back, and why; returns how often in a row.
    pub fn failed(&self, why: NotServed, pause: impl Fn(u32) -> Duration) -> u32 {
        let mut failure = self.failure();
        let blames = matches!(why, NotServed::Failed(_));
        let former = failure.as_ref().map_or(0, |failure| failure.times);
        let times = former + u32::from(blames);
        let pause = if blames { pause(times) } else { Duration::ZERO };
        let until = Instant::now() + pause;
        *failure = Some(Box::new(Failure { why, times, until }));
        self.failures.fetch_add(1, Ordering::SeqCst);
        times
    }

    /// Takes note that it is in memory.
    pub fn succeeded(&self) {
        *self.failure() = None;
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<Box<Failure>>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
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
        let own = self.version();
        own.version == other.version && plain(&own) == plain(other)
    }

    /// Says whether an order asks for what a load of this model under way does already, credentials included.
    pub fn is_same_load(&self, other: &ModelVersion) -> bool {
        let storage = |version: &ModelVersion| {
            let spec = version.model.as_ref()?.model_spec.as_ref()?;
            spec.storage_config.clone()
        };
        self.is_same(other) && storage(&self.version()) == storage(other)
    }
}

/// A request in flight.
pub struct InFlight(Arc<Entry>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.touch();
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
            self.0.bell.ring();
        }
    }
}

/// Somebody who waits for a model.
pub struct Waiting(Arc<Entry>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.bell.ring();
        }
    }
}

/// What is kept of an order on the disk that models share. What the model needs at run time is read from its files, by
/// whoever finds the record.
pub fn record(version: ModelVersion) -> Vec<u8> {
    without_credentials(version).encode_to_vec()
}

/// The model without an inline storage configuration: what may lie on the disk, and what makes two orders of one version
/// the same.
fn without_credentials(mut version: ModelVersion) -> ModelVersion {
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

/// Nanoseconds since the epoch, by a clock that never goes back.
pub fn now() -> u64 {
    static START: OnceLock<(Instant, Duration)> = OnceLock::new();
    let (start, epoch) = START.get_or_init(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        (Instant::now(), since.unwrap_or_default())
    });
    let time = *epoch + start.elapsed();
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let plain = record(version(1, Some(secret.clone())));
        assert!(!String::from_utf8_lossy(&plain).contains("PLANTED"));
        let named = version(
            1,
            Some(storage_config::Config::StorageSecretName("minio".into())),
        );
        assert_eq!(without_credentials(named.clone()), named);
        let workers = ModelRuntimeInfo::default();
        let entry = Entry::new(
            "a_1".into(),
            version(1, None),
            &workers,
            State::Loading,
            &Arc::default(),
        );
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
            &Arc::default(),
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
}
