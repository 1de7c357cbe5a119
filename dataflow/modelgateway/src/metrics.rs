//! What is counted.
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfModel {
    pub(crate) model: String,
}

/// One model and how it went: `ok`, `repeat`, or the HTTP status of the error.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) model: String,
    pub(crate) result: String,
}

type Seconds = Family<OfModel, Histogram, fn() -> Histogram>;

/// Metrics of this process.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) records: Family<Outcome, Counter>,
    pub(crate) retries: Family<OfModel, Counter>,
    pub(crate) seconds: Seconds,
    pub(crate) repeats: Counter,
    pub(crate) models: Gauge,
    pub(crate) outstanding: Gauge,
    pub(crate) lag: Family<OfModel, Gauge>,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let new = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let metrics = Self {
            records: Family::default(),
            retries: Family::default(),
            seconds: Family::new_with_constructor(new),
            repeats: Counter::default(),
            models: Gauge::default(),
            outstanding: Gauge::default(),
            lag: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("seldon_modelgateway");
        registry.register(
            "records",
            "Records by model and result",
            metrics.records.clone(),
        );
        registry.register("retries", "Requests asked again", metrics.retries.clone());
        registry.register(
            "infer_seconds",
            "Time a model took, with retries",
            metrics.seconds.clone(),
        );
        registry.register(
            "marked_repeats",
            "Results marked as possibly written before",
            metrics.repeats.clone(),
        );
        registry.register("models", "Models that are read", metrics.models.clone());
        registry.register(
            "outstanding",
            "Records that are being worked on",
            metrics.outstanding.clone(),
        );
        registry.register(
            "lag",
            "Records of a model that are not done",
            metrics.lag.clone(),
        );
        metrics
    }
}
