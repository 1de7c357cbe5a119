//! The documented metrics of an agent: names, labels (sorted, as documented output shows them) and buckets.
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder},
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use seldon_telemetry::{Count, Seconds};

use crate::{headers::stem, models::Identity};

const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Series of one model, by name asked for and code, before further names are counted under the model's own.
const NAMES_PER_MODEL: usize = 64;

/// All metrics of one server replica. Cheap to record; the series of a model are made when it first answers.
pub struct Metrics {
    replica: Replica,
    api: Family<Labels<2>, Histogram, fn() -> Histogram>,
    requests: Family<Labels<4>, Count>,
    seconds: Family<Labels<4>, Seconds>,
    aggregate: [(Count, Seconds); 2],
    api_known: RwLock<HashMap<(&'static str, Code), Histogram>>,
    models: RwLock<HashMap<Arc<str>, Arc<ModelSeries>>>,
    gauges: Gauges,
}

/// What the registry of models counts; see the documented names at each field.
pub struct Gauges {
    replica: Replica,
    evicted: Count,
    missed: Count,
    loads: Count,
    unloads: Count,
    loaded: Family<Labels<1>, Gauge>,
    loaded_bytes: Family<Labels<1>, Gauge>,
    evicted_bytes: Family<Labels<1>, Gauge>,
    capacity: Gauge,
    overcommit: Gauge,
}

impl Metrics {
    /// Registers every family in `registry`.
    pub fn new(identity: &Identity, registry: &mut Registry) -> Arc<Self> {
        let replica = Replica {
            server: identity.server.as_str().into(),
            ordinal: identity.replica.to_string().into(),
        };
        let api: Family<Labels<2>, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let (requests, seconds) = (Family::default(), Family::default());
        let (all_requests, all_seconds) = (
            Family::<Labels<1>, Count>::default(),
            Family::<Labels<1>, Seconds>::default(),
        );
        registry.register(
            "seldon_model_infer_api_seconds",
            "Time to answer by method and code",
            api.clone(),
        );
        registry.register(
            "seldon_model_infer_total",
            "Requests answered",
            requests.clone(),
        );
        registry.register(
            "seldon_model_infer_seconds_total",
            "Time spent answering",
            seconds.clone(),
        );
        registry.register(
            "seldon_model_aggregate_infer_total",
            "Requests answered by all models",
            all_requests.clone(),
        );
        registry.register(
            "seldon_model_aggregate_infer_seconds_total",
            "Time spent answering by all models",
            all_seconds.clone(),
        );
        let aggregate = [Method::Rest, Method::Grpc].map(|method| {
            let labels = replica.labels([("method_type", method.as_str().into())]);
            (
                all_requests.get_or_create_owned(&labels),
                all_seconds.get_or_create_owned(&labels),
            )
        });
        let gauges = Gauges::new(replica.clone(), registry);
        let (api_known, models) = Default::default();
        Arc::new(Self {
            replica,
            api,
            requests,
            seconds,
            aggregate,
            api_known,
            models,
            gauges,
        })
    }

    /// The metrics that the registry of models keeps.
    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// Removes every series of a model that left this replica. Requests still in flight are not counted any more.
    pub fn forget(&self, internal: &str) {
        let removed = write(&self.models).remove(internal);
        if let Some(series) = removed {
            let mut known = lock(&series.known);
            for row in known.rows.drain(..) {
                self.requests.remove(&row.labels);
                self.seconds.remove(&row.labels);
            }
            known.forgotten = true;
        }
        self.gauges.forget(internal);
    }

    /// The series of a model, to be looked up once a request.
    pub(crate) fn model(&self, internal: &str) -> Arc<ModelSeries> {
        if let Some(series) = read(&self.models).get(internal) {
            return series.clone();
        }
        let name: Arc<str> = internal.into();
        let series = || {
            Arc::new(ModelSeries {
                internal: name.clone(),
                known: Mutex::default(),
            })
        };
        write(&self.models)
            .entry(name.clone())
            .or_insert_with(series)
            .clone()
    }

    /// Counts an answer by method and code alone.
    pub(crate) fn answered(&self, method: &'static str, code: Code, took: Duration) {
        let seconds = took.as_secs_f64();
        let key = (method, code);
        if let Some(histogram) = read(&self.api_known).get(&key) {
            return histogram.observe(seconds);
        }
        let labels = self
            .replica
            .labels([("code", code.text()), ("method", method.into())]);
        let histogram = self.api.get_or_create_owned(&labels);
        histogram.observe(seconds);
        write(&self.api_known).insert(key, histogram);
    }

    /// Counts an answer of a model; `external` is the name the client asked for.
    pub(crate) fn answered_by(
        &self,
        series: &ModelSeries,
        external: &str,
        method: Method,
        code: Code,
        took: Duration,
    ) {
        let seconds = took.as_secs_f64();
        let (requests, time) = &self.aggregate[method as usize];
        requests.add(1);
        time.add(seconds);
        let mut known = lock(&series.known);
        if known.forgotten {
            return;
        }
        let full = known.rows.len() >= NAMES_PER_MODEL;
        let find = |name: &str| {
            known
                .rows
                .iter()
                .find(|row| row.code == code && row.method == method && *row.external == *name)
        };
        let external = if full && find(external).is_none() {
            stem(&series.internal)
        } else {
            external
        };
        if let Some(row) = find(external) {
            row.requests.add(1);
            row.seconds.add(seconds);
            return;
        }
        let labels = self.replica.labels([
            ("code", code.text()),
            ("method_type", method.as_str().into()),
            ("model", external.into()),
            ("model_internal", series.internal.clone()),
        ]);
        let requests = self.requests.get_or_create_owned(&labels);
        let time = self.seconds.get_or_create_owned(&labels);
        requests.add(1);
        time.add(seconds);
        known.rows.push(Row {
            external: external.into(),
            method,
            code,
            labels,
            requests,
            seconds: time,
        });
    }
}

impl Gauges {
    fn new(replica: Replica, registry: &mut Registry) -> Self {
        let labels = replica.labels([]);
        let mut count = |name: &str, help: &str| {
            let family = Family::<Labels<0>, Count>::default();
            registry.register(name, help, family.clone());
            family.get_or_create_owned(&labels)
        };
        let evicted = count("seldon_cache_evict_count", "Models evicted to make room");
        let missed = count(
            "seldon_cache_miss_count",
            "Requests that found their model evicted",
        );
        let loads = count(
            "seldon_load_model_counter",
            "Models loaded by the scheduler",
        );
        let unloads = count(
            "seldon_unload_model_counter",
            "Models unloaded by the scheduler",
        );
        let mut per_model = |name: &str, help: &str| {
            let family = Family::<Labels<1>, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let loaded = per_model("seldon_loaded_model_gauge", "Models in memory");
        let loaded_bytes = per_model(
            "seldon_loaded_model_memory_bytes_gauge",
            "Memory of models in memory",
        );
        let evicted_bytes = per_model(
            "seldon_evicted_model_memory_bytes_gauge",
            "Memory of evicted models",
        );
        let mut single = |name: &str, help: &str| {
            let family = Family::<Labels<0>, Gauge>::default();
            registry.register(name, help, family.clone());
            family.get_or_create_owned(&labels)
        };
        let capacity = single(
            "seldon_server_replica_memory_capacity_bytes_gauge",
            "Memory for models",
        );
        let overcommit = single(
            "seldon_server_replica_memory_capacity_overcommit_bytes_gauge",
            "Memory for models with what over-commitment adds",
        );
        Self {
            replica,
            evicted,
            missed,
            loads,
            unloads,
            loaded,
            loaded_bytes,
            evicted_bytes,
            capacity,
            overcommit,
        }
    }

    /// A model is in memory: `seldon_loaded_model_gauge` and its bytes. Counts nothing.
    pub fn in_memory(&self, internal: &str, bytes: u64) {
        let labels = self.labels(internal);
        self.evicted_bytes.remove(&labels);
        self.loaded.get_or_create(&labels).set(1);
        self.loaded_bytes.get_or_create(&labels).set(signed(bytes));
    }

    /// A model is known but not in memory: `seldon_evicted_model_memory_bytes_gauge`. Counts nothing.
    pub fn on_disk(&self, internal: &str, bytes: u64) {
        let labels = self.labels(internal);
        self.loaded.remove(&labels);
        self.loaded_bytes.remove(&labels);
        self.evicted_bytes.get_or_create(&labels).set(signed(bytes));
    }

    /// Counts a model evicted to make room: `seldon_cache_evict_count`.
    pub fn count_eviction(&self) {
        self.evicted.add(1);
    }

    /// Counts a request that found its model evicted: `seldon_cache_miss_count`.
    pub fn count_miss(&self) {
        self.missed.add(1);
    }

    /// Counts a load ordered by the scheduler: `seldon_load_model_counter`.
    pub fn count_load(&self) {
        self.loads.add(1);
    }

    /// Counts an unload ordered by the scheduler: `seldon_unload_model_counter`.
    pub fn count_unload(&self) {
        self.unloads.add(1);
    }

    /// Memory of this replica, and with over-commitment.
    pub fn capacity(&self, bytes: u64, with_overcommit: u64) {
        self.capacity.set(signed(bytes));
        self.overcommit.set(signed(with_overcommit));
    }

    fn labels(&self, internal: &str) -> Labels<1> {
        self.replica.labels([("model_internal", internal.into())])
    }

    fn forget(&self, internal: &str) {
        let labels = self.labels(internal);
        for family in [&self.loaded, &self.loaded_bytes, &self.evicted_bytes] {
            family.remove(&labels);
        }
    }
}

/// The series of one model, with their handles.
pub(crate) struct ModelSeries {
    internal: Arc<str>,
    known: Mutex<Known>,
}

impl ModelSeries {
    /// The model's name at the inference server.
    pub(crate) fn internal(&self) -> &str {
        &self.internal
    }
}

#[derive(Default)]
struct Known {
    rows: Vec<Row>,
    forgotten: bool,
}

struct Row {
    external: Box<str>,
    method: Method,
    code: Code,
    labels: Labels<4>,
    requests: Count,
    seconds: Seconds,
}

/// How a request came: the label `method_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Rest,
    Grpc,
}

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Grpc => "grpc",
        }
    }
}

/// The label `code`: a number of HTTP or the name of a gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Code {
    Http(u16),
    Grpc(u8),
}

impl Code {
    fn text(self) -> Arc<str> {
        const NAMES: [&str; 17] = [
            "OK",
            "Canceled",
            "Unknown",
            "InvalidArgument",
            "DeadlineExceeded",
            "NotFound",
            "AlreadyExists",
            "PermissionDenied",
            "ResourceExhausted",
            "FailedPrecondition",
            "Aborted",
            "OutOfRange",
            "Unimplemented",
            "Internal",
            "Unavailable",
            "DataLoss",
            "Unauthenticated",
        ];
        match self {
            Self::Http(status) => status.to_string().into(),
            Self::Grpc(code) => NAMES
                .get(usize::from(code))
                .copied()
                .unwrap_or("Unknown")
                .into(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Replica {
    server: Arc<str>,
    ordinal: Arc<str>,
}

impl Replica {
    fn labels<const N: usize>(&self, own: [(&'static str, Arc<str>); N]) -> Labels<N> {
        Labels {
            own,
            replica: self.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels<const N: usize> {
    own: [(&'static str, Arc<str>); N],
    replica: Replica,
}

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        for (name, value) in &self.own {
            (*name, &**value).encode(encoder.encode_label())?;
        }
        ("server", &*self.replica.server).encode(encoder.encode_label())?;
        ("server_replica", &*self.replica.ordinal).encode(encoder.encode_label())
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// A panic while one of these locks was held leaves nothing half done that matters more than going on.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
