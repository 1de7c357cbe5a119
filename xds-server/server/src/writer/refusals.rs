//! What Envoys refuse, and which models suffer from it.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use seldon_ads::Rejection;

use crate::resources::{
    World,
    names::{FILTER, candidate_scope, client_scope, model_of_scope, types},
};

/// Refused resources with the reasons, and what the rules were told of them.
#[derive(Default)]
pub(super) struct Refusals {
    scopes: BTreeMap<String, String>,
    /// Clusters, for themselves or for their endpoints.
    clusters: BTreeMap<(String, String), String>,
    told: BTreeMap<Arc<str>, String>,
    filter: Option<String>,
    told_of_filter: Option<String>,
}

impl Refusals {
    /// A resource is refused, or (`None`) no longer; the models that this may concern.
    pub(super) fn set(
        &mut self,
        type_url: &str,
        resource: &str,
        reason: Option<String>,
        world: &World,
    ) -> BTreeSet<Arc<str>> {
        match type_url {
            types::SCOPE => {
                put(&mut self.scopes, resource.to_owned(), reason);
                model_of_scope(resource)
                    .map(Arc::from)
                    .into_iter()
                    .collect()
            }
            types::CLUSTER | types::ENDPOINTS => {
                let key = (resource.to_owned(), type_url.to_owned());
                put(&mut self.clusters, key, reason);
                world.models_of_cluster(resource)
            }
            types::EXTENSION if resource == FILTER => {
                self.filter = reason;
                BTreeSet::new()
            }
            _ => BTreeSet::new(),
        }
    }

    /// Why the filter's configuration is refused, where that changed since the rules were told.
    pub(super) fn filter_changed(&mut self) -> Option<Option<String>> {
        if self.filter == self.told_of_filter {
            return None;
        }
        self.told_of_filter.clone_from(&self.filter);
        Some(self.filter.clone())
    }

    /// These are all there are; the models that this may concern.
    pub(super) fn replace(
        &mut self,
        all: impl Iterator<Item = Rejection>,
        world: &World,
    ) -> BTreeSet<Arc<str>> {
        (self.scopes, self.clusters, self.filter) = Default::default();
        let mut models: BTreeSet<Arc<str>> = self.told.keys().cloned().collect();
        for rejection in all {
            let Rejection {
                type_url,
                resource,
                reason,
                ..
            } = rejection;
            models.extend(self.set(&type_url, &resource, Some(reason), world));
        }
        models
    }

    /// Of these models, those for which something changed since the rules were told, with the reason now.
    pub(super) fn changed(
        &mut self,
        models: impl Iterator<Item = Arc<str>>,
        world: &World,
    ) -> Vec<(Arc<str>, Option<String>)> {
        if self.scopes.is_empty() && self.clusters.is_empty() && self.told.is_empty() {
            return Vec::new();
        }
        let mut changed = Vec::new();
        for model in models {
            let reason = self.reason(&model, world);
            if self.told.get(&model) != reason.as_ref() {
                put(&mut self.told, model.clone(), reason.clone());
                changed.push((model, reason));
            }
        }
        changed
    }

    fn reason(&self, model: &str, world: &World) -> Option<String> {
        if let Some(reason) = self.scopes.get(&client_scope(model)) {
            return Some(reason.clone());
        }
        let first = candidate_scope(model);
        let of_versions = self.scopes.range(first.clone()..);
        let mut of_versions = of_versions.take_while(|(key, _)| key.starts_with(&first));
        if let Some((key, reason)) = of_versions.find(|(key, _)| model_of_scope(key) == Some(model))
        {
            return Some(format!("scope {key}: {reason}"));
        }
        world.clusters_of_model(model).into_iter().find_map(|name| {
            let types = [types::CLUSTER, types::ENDPOINTS];
            let keys = types.map(|type_url| (name.clone(), type_url.to_owned()));
            keys.iter()
                .find_map(|key| self.clusters.get(key))
                .map(|reason| format!("cluster {name}: {reason}"))
        })
    }
}

fn put<K: Ord>(known: &mut BTreeMap<K, String>, key: K, reason: Option<String>) {
    match reason {
        Some(reason) => drop(known.insert(key, reason)),
        None => drop(known.remove(&key)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may
mod tests {
    use seldon_core::{Endpoint, ExperimentRoute, ReplicaSet, Route, Split};

    use super::*;
    use crate::resources::View;

    /// Model `m0` on replica 0, and so on.
    struct Each;

    impl View for Each {
        fn route(&self, model: &str) -> Option<Route> {
            let index: u32 = model.strip_prefix('m')?.parse().ok()?;
            Some(Route {
                model: model.into(),
                pipeline: false,
                splits: vec![Split {
                    version: 1,
                    replicas: ReplicaSet {
                        server: "mlserver".into(),
                        replicas: [index].into(),
                    },
                    weight: 1,
                }],
                retry: true,
                log_payloads: false,
                split_by: None,
                candidate: false,
            })
        }
        fn endpoints(&self, set: &ReplicaSet) -> Vec<Endpoint> {
            let replicas = set.replicas.iter();
            let endpoint = |replica: &u32| Endpoint {
                replica: *replica,
                host: "127.0.0.1".into(),
                http_port: 1,
                grpc_port: 1,
                over_committed: false,
            };
            replicas.map(endpoint).collect()
        }
        fn experiment_route(&self, _: &str) -> Option<ExperimentRoute> {
            None
        }
    }

    #[test]
    fn a_refused_cluster_is_the_fault_of_its_models() {
        let mut world = World::new(None, None);
        let models: BTreeSet<Arc<str>> = ["m0".into(), "m1".into()].into();
        world.update(&Each, &models, &BTreeSet::new(), &BTreeSet::new());
        let mut refusals = Refusals::default();
        let bad = || Some("bad".to_owned());
        let concerned = refusals.set(types::CLUSTER, "mlserver_1", bad(), &world);
        assert_eq!(concerned, ["m1".into()].into());
        let told = |refusals: &mut Refusals| refusals.changed(models.iter().cloned(), &world);
        let reason = "cluster mlserver_1: bad".to_owned();
        assert_eq!(told(&mut refusals), [("m1".into(), Some(reason.clone()))]);
        assert!(told(&mut refusals).is_empty(), "told once");
        refusals.set(types::SCOPE, "c:m0", bad(), &world);
        assert_eq!(told(&mut refusals), [("m0".into(), bad())]);
        // Events were missed, and both are taken by now.
        let concerned = refusals.replace([].into_iter(), &world);
        assert_eq!(concerned, models);
        let taken = [("m0".into(), None), ("m1".into(), None)];
        assert_eq!(told(&mut refusals), taken);
        refusals.set(types::SCOPE, "i:m0_3", bad(), &world);
        let reason = "scope i:m0_3: bad".to_owned();
        assert_eq!(told(&mut refusals), [("m0".into(), Some(reason))]);
        refusals.set(types::EXTENSION, FILTER, bad(), &world);
        assert_eq!(refusals.filter_changed(), Some(bad()));
        assert_eq!(refusals.filter_changed(), None, "told once");
        refusals.replace([].into_iter(), &world);
        assert_eq!(refusals.filter_changed(), Some(None));
    }
}
