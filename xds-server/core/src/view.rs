//! What others see of the world: the routes and the endpoints behind them.
use std::{collections::BTreeSet, sync::Arc};

/// The replicas of one server that serve one version of a model; the unit of an Envoy cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaSet {
    pub server: Arc<str>,
    pub replicas: BTreeSet<u32>,
}

/// One version's share of a model's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    pub version: u32,
    pub replicas: ReplicaSet,
    /// Parts of the sum of all weights of the route; never 0.
    pub weight: u32,
}

/// Where the requests of a model go. A model without a replica that can answer has no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub model: Arc<str>,
    /// At least one, by version.
    pub splits: Vec<Split>,
    /// Whether a request may run twice after its replica was lost; off by the annotation-like parameter of the model.
    pub retry: bool,
    pub log_payloads: bool,
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
}
