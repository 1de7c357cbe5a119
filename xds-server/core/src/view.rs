//! What others see of the world: the routes and the endpoints behind them.
use std::{collections::BTreeSet, sync::Arc};

/// Stands for a server in the routes of pipelines, whose replicas are pipeline gateways. No server can be called so.
pub const PIPELINE_GATEWAYS: &str = "PipelineGateway";
/// Behind a pipeline's name in requests and routes.
pub const PIPELINE_SUFFIX: &str = ".pipeline";

/// The replicas of one server that serve one version of a model; the unit of an Envoy cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaSet {
    pub server: Arc<str>,
    pub replicas: BTreeSet<u32>,
}

/// One version's share of a model's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// 0 in the route of a pipeline, whose gateways serve all of its versions.
    pub version: u32,
    pub replicas: ReplicaSet,
    /// Parts of the sum of all weights of the route; never 0.
    pub weight: u32,
}

/// Where the requests of a model go. A model without a replica that can answer has no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// A model's name, or a pipeline's with [`PIPELINE_SUFFIX`].
    pub model: Arc<str>,
    /// Whether pipeline gateways answer: they are told this name as it is, without a version.
    pub pipeline: bool,
    /// At least one, by version.
    pub splits: Vec<Split>,
    /// Whether a request may run twice after its replica was lost; off by the annotation-like parameter of the model.
    pub retry: bool,
    pub log_payloads: bool,
    /// The running experiment that splits the requests for this name; the filter has to see them.
    pub split_by: Option<Arc<str>>,
    /// Whether it takes part in a running experiment, so that each version needs a scope of its own.
    pub candidate: bool,
}

/// How requests of an experiment are shared out now: only candidates that can answer, with the weights in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExperimentRoute {
    pub name: Arc<str>,
    /// Candidates and the mirror are pipelines: their names stand here without [`PIPELINE_SUFFIX`].
    pub pipelines: bool,
    /// Another name that requests use besides `<name>.experiment`: the default's, such as `iris` or `p.pipeline`.
    pub endpoint: Option<String>,
    /// In the manifest's order. One with weight 0 answers only those that name its route.
    pub candidates: Vec<LiveCandidate>,
    pub mirror: Option<LiveMirror>,
    /// Requests with the same value of this header get the same candidate.
    pub cohort_header: Option<String>,
}

/// A candidate that can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveCandidate {
    pub name: Arc<str>,
    pub weight: u32,
    /// Its versions, as in its own route; at least one.
    pub splits: Vec<Split>,
}

/// A mirror that can take copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveMirror {
    pub name: Arc<str>,
    /// Of a hundred requests, 1 to 100.
    pub percent: u32,
    pub splits: Vec<Split>,
}

/// Where one replica listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub replica: u32,
    /// Host name or address, IPv4 or IPv6.
    pub host: String,
    pub http_port: u16,
    /// Equal to `http_port` where the agent is ours and serves both protocols on one port.
    pub grpc_port: u16,
    /// It has more models than memory and may have to load one for a request: each model's requests should keep to one
    /// replica.
    pub over_committed: bool,
}

impl Endpoint {
    /// Whether both listen at one address.
    pub(crate) fn same_place(&self, other: &Endpoint) -> bool {
        (&self.host, self.http_port, self.grpc_port)
            == (&other.host, other.http_port, other.grpc_port)
    }
}
