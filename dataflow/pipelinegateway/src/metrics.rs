//! The documented metrics of a pipeline gateway: names, labels and buckets.
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder},
    metrics::{family::Family, histogram::Histogram},
    registry::Registry,
};
use seldon_telemetry::{Count, Seconds};

const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const SERVER: &str = "pipeline-gateway";

/// What is counted, by pipeline; only of pipelines (and models) that are known, so that the series stay few.
pub(crate) struct Metrics {
    api: Family<Labels<3>, Histogram, fn() -> Histogram>,
    requests: Family<Labels<3>, Count>,
    seconds: Family<Labels<3>, Seconds>,
    all_requests: [Count; 2],
    all_seconds: [Seconds; 2],
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Rest,
    Grpc,
}

impl Method {
    fn kind(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Grpc => "grpc",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rest => "POST",
            Self::Grpc => "/inference.GRPCInferenceService/ModelInfer",
        }
    }
}

/// A code as the documented metrics spell it.
pub(crate) fn grpc_code(code: tonic::Code) -> String {
    match code {
        tonic::Code::Ok => "OK".to_owned(),
        tonic::Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

impl Metrics {
    /// Registers every family.
    pub(crate) fn new(registry: &mut Registry) -> Arc<Self> {
        let api: Family<Labels<3>, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let (requests, seconds) = (Family::default(), Family::default());
        let all_requests = Family::<Labels<1>, Count>::default();
        let all_seconds = Family::<Labels<1>, Seconds>::default();
        let prefix = "seldon_pipeline";
        let name = |rest: &str| format!("{prefix}_{rest}");
        registry.register(
            name("infer_api_seconds"),
            "Time to answer by method and code",
            api.clone(),
        );
        registry.register(name("infer_total"), "Requests answered", requests.clone());
        registry.register(
            name("infer_seconds_total"),
            "Time spent answering",
            seconds.clone(),
        );
        registry.register(
            name("aggregate_infer_total"),
            "Requests answered by all pipelines",
            all_requests.clone(),
        );
        registry.register(
            name("aggregate_infer_seconds_total"),
            "Time spent answering by all pipelines",
            all_seconds.clone(),
        );
        let methods = [Method::Rest, Method::Grpc];
        let labels = |method: Method| Labels([("method_type", method.kind().into())]);
        Arc::new(Self {
            api,
            requests,
            seconds,
            all_requests: methods.map(|m| all_requests.get_or_create_owned(&labels(m))),
            all_seconds: methods.map(|m| all_seconds.get_or_create_owned(&labels(m))),
        })
    }

    fn answered(&self, pipeline: &Arc<str>, method: Method, code: Arc<str>, took: Duration) {
        let seconds = took.as_secs_f64();
        self.all_requests[method as usize].add(1);
        self.all_seconds[method as usize].add(seconds);
        let labels = Labels([
            ("code", code.clone()),
            ("method", method.name().into()),
            ("pipeline", pipeline.clone()),
        ]);
        self.api.get_or_create(&labels).observe(seconds);
        let labels = Labels([
            ("code", code),
            ("method_type", method.kind().into()),
            ("pipeline", pipeline.clone()),
        ]);
        self.requests.get_or_create(&labels).add(1);
        self.seconds.get_or_create(&labels).add(seconds);
    }
}

/// A request from its arrival to its answer, counted once.
pub(crate) struct Exchange {
    metrics: Arc<Metrics>,
    pipeline: Arc<str>,
    method: Method,
    started: Instant,
    counted: bool,
}

impl Exchange {
    pub(crate) fn begin(metrics: &Arc<Metrics>, pipeline: Arc<str>, method: Method) -> Self {
        Self {
            metrics: metrics.clone(),
            pipeline,
            method,
            started: Instant::now(),
            counted: false,
        }
    }

    /// Counts the answer; `code` is an HTTP status or the name of a gRPC code.
    pub(crate) fn finish(&mut self, code: impl Into<Arc<str>>) {
        if !std::mem::replace(&mut self.counted, true) {
            let took = self.started.elapsed();
            self.metrics
                .answered(&self.pipeline, self.method, code.into(), took);
        }
    }
}

impl Drop for Exchange {
    /// A client that went away.
    fn drop(&mut self) {
        self.finish(match self.method {
            Method::Rest => "499",
            Method::Grpc => "Canceled",
        });
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Labels<const N: usize>([(&'static str, Arc<str>); N]);

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        for (name, value) in &self.0 {
            (*name, &**value).encode(encoder.encode_label())?;
        }
        ("server", SERVER).encode(encoder.encode_label())
    }
}
