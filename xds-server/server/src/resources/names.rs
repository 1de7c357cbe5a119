//! Names of resources and headers that several parts have to agree on.
use std::{collections::BTreeSet, fmt::Write};

use seldon_core::{PIPELINE_SUFFIX, ReplicaSet};
use seldon_routing::EXPERIMENT_SUFFIX;

/// Type URLs of what the scheduler serves.
pub mod types {
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    pub const ENDPOINTS: &str =
        "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    pub const SCOPE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
    pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";

    /// The order in which additions reach an Envoy: nothing may name what is not there yet.
    pub const ORDER: [&str; 5] = [CLUSTER, ENDPOINTS, LISTENER, SCOPE, EXTENSION];
}

/// The listener of inference requests.
pub const LISTENER: &str = "seldon_http";
/// The name under which filter chain, ECDS resource and `typed_per_filter_config` meet.
pub const FILTER: &str = "seldon";
/// What selects a scope; only Envoy and its filter write it.
pub const SCOPE_HEADER: &str = "x-seldon-scope";
pub const MODEL_HEADER: &str = "seldon-model";
/// Tells the agent which version answers.
pub const INTERNAL_MODEL_HEADER: &str = "seldon-internal-model";
/// Tells the client which version answered.
pub const ROUTE_HEADER: &str = "x-seldon-route";

/// Marks an agent's answer that it cannot give for want of the model: the request went nowhere, and another replica may
/// have it.
pub const ABSENT_HEADER: &str = "x-seldon-absent";

/// The scope of requests for a name that the client sent or the filter found; empty for requests without a model. Keys
/// that begin with `i:` belong to candidates of experiments, and only the filter writes them.
pub fn client_scope(name: &str) -> String {
    format!("c:{name}")
}

/// The scope of one version of a candidate, `<model>_<version>`; only the filter writes its key.
pub fn candidate_scope(version: &str) -> String {
    format!("i:{version}")
}

/// The name by which requests ask for an experiment.
pub fn experiment_endpoint(experiment: &str) -> String {
    format!("{experiment}{EXPERIMENT_SUFFIX}")
}

/// The model that a scope belongs to.
pub fn model_of_scope(key: &str) -> Option<&str> {
    let name = match key.strip_prefix("i:") {
        Some(version) => version.rsplit_once('_').map_or(version, |(model, _)| model),
        None => key.strip_prefix("c:")?,
    };
    (!name.is_empty() && !name.ends_with(EXPERIMENT_SUFFIX)).then_some(name)
}

/// `<model>_<version>`, as agents and clients see it; of a pipeline, whose gateways serve all versions (0), its name with
/// the suffix.
pub fn internal_model(model: &str, version: u32) -> String {
    match version {
        0 if model.ends_with(PIPELINE_SUFFIX) => model.to_owned(),
        0 => format!("{model}{PIPELINE_SUFFIX}"),
        version => format!("{model}_{version}"),
    }
}

/// Longest list of replicas that is spelled out in a name; it stands in every scope that uses the set.
const LONGEST_LIST: usize = 24;

/// Names the cluster of a replica set, such as `mlserver_0-2_5`. A server's name has no underscore, so different sets
/// have different names; and no dot, at which Envoy would end the name in its metrics.
pub fn cluster_name(set: &ReplicaSet) -> String {
    let mut list = ranges(&set.replicas);
    if list.len() > LONGEST_LIST {
        let digest = xxhash_rust::xxh3::xxh3_64(list.as_bytes());
        list = format!("x{digest:016x}");
    }
    format!("{}_{list}", set.server)
}

fn ranges(replicas: &BTreeSet<u32>) -> String {
    let mut text = String::new();
    let mut all = replicas.iter().copied().peekable();
    while let Some(first) = all.next() {
        let mut last = first;
        while let Some(next) = all.next_if(|next| *next == last + 1) {
            last = next;
        }
        let separator = if text.is_empty() { "" } else { "_" };
        let _ = write!(text, "{separator}{first}"); // writing to a string cannot fail
        if last > first {
            let _ = write!(text, "-{last}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(replicas: impl IntoIterator<Item = u32>) -> String {
        cluster_name(&ReplicaSet {
            server: "mlserver".into(),
            replicas: replicas.into_iter().collect(),
        })
    }

    #[test]
    fn a_cluster_is_named_by_server_and_replicas() {
        assert_eq!(name([0]), "mlserver_0");
        assert_eq!(name([0, 1, 2, 5]), "mlserver_0-2_5");
        assert_eq!(name(0..50), "mlserver_0-49");
        let scattered = name((0..50).map(|i| i * 2));
        assert_eq!(scattered.len(), "mlserver_x".len() + 16);
        assert_ne!(scattered, name((0..50).map(|i| i * 3)));
    }

    #[test]
    fn a_scope_tells_its_model() {
        assert_eq!(model_of_scope("c:iris"), Some("iris"));
        assert_eq!(model_of_scope("i:iris_12"), Some("iris"));
        assert_eq!(model_of_scope("i:p.pipeline"), Some("p.pipeline"));
        assert_eq!(model_of_scope("c:e.experiment"), None);
        assert_eq!(model_of_scope("c:"), None);
        assert_eq!(model_of_scope("iris"), None);
    }
}
