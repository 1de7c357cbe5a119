//! What the filter is told of an experiment.
use seldon_core::{Endpoint, ExperimentRoute, LiveCandidate, LiveMirror, ReplicaSet, Split};
use seldon_routing::{Candidate, Config, Copy, Experiment, Mirror, Version};

use super::{
    names::internal_model,
    world::{Ports, View},
};

/// The filter's configuration with nothing but this experiment, where the filter has anything to do for it.
pub fn alone(view: &impl View, route: &ExperimentRoute) -> Config {
    let mut config = Config::default();
    put(&mut config, route, |set| view.endpoints(set));
    config
}

/// Enters an experiment. One without candidates has no entry: the scopes of its names answer by themselves.
pub(super) fn put(
    config: &mut Config,
    route: &ExperimentRoute,
    endpoints: impl Fn(&ReplicaSet) -> Vec<Endpoint>,
) {
    if route.candidates.is_empty() {
        return;
    }
    let experiment = Experiment {
        candidates: route.candidates.iter().map(candidate).collect(),
        mirror: route.mirror.as_ref().map(|m| mirror(m, &endpoints)),
        cohort: route.cohort_header.clone(),
    };
    let name = route.name.to_string();
    if let Some(endpoint) = &route.endpoint {
        config.endpoints.insert(endpoint.clone(), name.clone());
    }
    config.experiments.insert(name, experiment);
}

fn candidate(live: &LiveCandidate) -> Candidate {
    let version = |split: &Split| Version {
        route: internal_model(&live.name, split.version),
        weight: split.weight,
    };
    Candidate {
        name: live.name.to_string(),
        weight: live.weight,
        versions: live.splits.iter().map(version).collect(),
    }
}

fn mirror(live: &LiveMirror, endpoints: impl Fn(&ReplicaSet) -> Vec<Endpoint>) -> Mirror {
    let copy = |split: &Split| {
        let ports = Ports::of(&endpoints(&split.replicas));
        let name = super::names::cluster_name(&split.replicas);
        let (cluster, grpc) = (ports.http_cluster(&name), ports.grpc_cluster(&name));
        Copy {
            model: internal_model(&live.name, split.version),
            grpc_cluster: (grpc != cluster).then_some(grpc),
            cluster,
            weight: split.weight,
        }
    };
    Mirror {
        name: live.name.to_string(),
        percent: live.percent,
        versions: live.splits.iter().map(copy).collect(),
    }
}
