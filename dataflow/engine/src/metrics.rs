//! What an engine counts.
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use seldon_flow::Counts;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pipeline {
    pipeline: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    pipeline: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Topic {
    topic: Arc<str>,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    records: Family<Pipeline, Counter>,
    emits: Family<Pipeline, Counter>,
    repeats: Family<Pipeline, Counter>,
    errors: Family<Pipeline, Counter>,
    dropped: Family<Dropped, Counter>,
    held: Family<Pipeline, Gauge>,
    lag: Family<Topic, Gauge>,
    pipelines: Gauge,
    on_way: Gauge,
    progress: Counter,
    retried: Counter,
    refused: Counter,
    incarnations: Counter,
}

impl Metrics {
    /// Registered.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("seldon_dataflow");
        let Self {
            records,
            emits,
            repeats,
            errors,
            dropped,
            held,
            lag,
            pipelines,
            on_way,
            progress,
            retried,
            refused,
            incarnations,
        } = metrics.clone();
        registry.register("records", "Records taken", records);
        registry.register("emits", "Records written", emits);
        registry.register(
            "repeats",
            "Records dropped because they were seen before",
            repeats,
        );
        registry.register(
            "errors",
            "Requests answered with an error by the engine",
            errors,
        );
        registry.register("dropped", "Records dropped, by reason", dropped);
        registry.register(
            "open_joins",
            "Records held by joins, batches and deliveries",
            held,
        );
        registry.register("lag", "Records of a topic that are not read yet", lag);
        registry.register("pipelines", "Pipelines owned", pipelines);
        registry.register("in_flight", "Results being written", on_way);
        registry.register("progress_writes", "Records of progress written", progress);
        registry.register(
            "write_retries",
            "Deliveries that failed and are tried again",
            retried,
        );
        registry.register(
            "writes_refused",
            "Results that the broker does not take",
            refused,
        );
        registry.register(
            "incarnations",
            "How often the engine began anew",
            incarnations,
        );
        metrics
    }

    /// Adds what happened in a pipeline between two counts.
    pub fn count(&self, pipeline: &Arc<str>, before: &Counts, now: &Counts) {
        let label = Pipeline {
            pipeline: pipeline.clone(),
        };
        let add = |family: &Family<Pipeline, Counter>, before: u64, now: u64| {
            if now > before {
                family.get_or_create(&label).inc_by(now - before);
            }
        };
        add(&self.records, before.handled, now.handled);
        add(&self.emits, before.emitted, now.emitted);
        add(&self.repeats, before.repeats, now.repeats);
        add(&self.errors, before.errors, now.errors);
        let reasons = [
            ("foreign_error", before.foreign_errors, now.foreign_errors),
            ("foreign", before.foreign, now.foreign),
            ("version_gone", before.gone, now.gone),
            ("no_tensor", before.without_tensors, now.without_tensors),
            ("half_join", before.half_joins, now.half_joins),
        ];
        for (reason, before, now) in reasons {
            if now > before {
                let pipeline = pipeline.clone();
                let dropped = Dropped { pipeline, reason };
                self.dropped.get_or_create(&dropped).inc_by(now - before);
            }
        }
    }

    /// Records a pipeline holds.
    pub fn held(&self, pipeline: &Arc<str>, count: usize) {
        let label = Pipeline {
            pipeline: pipeline.clone(),
        };
        self.held
            .get_or_create(&label)
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A pipeline is not here any more.
    pub fn forget(&self, pipeline: &Arc<str>) {
        let label = Pipeline {
            pipeline: pipeline.clone(),
        };
        self.held.remove(&label);
    }

    /// Records of a topic that are not read.
    pub fn lag(&self, topic: &Arc<str>, count: i64) {
        let label = Topic {
            topic: topic.clone(),
        };
        self.lag.get_or_create(&label).set(count);
    }

    /// Pipelines owned and results on their way.
    pub fn state(&self, pipelines: usize, on_way: usize) {
        self.pipelines.set(i64::try_from(pipelines).unwrap_or(0));
        self.on_way.set(i64::try_from(on_way).unwrap_or(0));
    }

    /// Progress that was handed over.
    pub fn progress(&self, records: usize) {
        self.progress.inc_by(records as u64);
    }

    /// A delivery failed and is tried again.
    pub fn retried(&self) {
        self.retried.inc();
    }

    /// A record that can never be written.
    pub fn refused(&self) {
        self.refused.inc();
    }

    /// The engine began (again).
    pub fn began(&self) {
        self.incarnations.inc();
    }
}
