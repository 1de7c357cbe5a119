//! The world as resources: what a change of the rules' state means for Envoy.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use seldon_ads::Change;
use seldon_core::{Endpoint, ReplicaSet, Route, Split, State};

use super::{
    cluster::{self, Protocol},
    names::{client_scope, cluster_name, types},
    scope::{Scope, Share},
    server_scope,
    tls::Tls,
};

/// What resources are derived from.
pub trait View {
    fn route(&self, model: &str) -> Option<Route>;
    fn endpoints(&self, set: &ReplicaSet) -> Vec<Endpoint>;
}

impl View for State {
    fn route(&self, model: &str) -> Option<Route> {
        State::route(self, model)
    }
    fn endpoints(&self, set: &ReplicaSet) -> Vec<Endpoint> {
        State::endpoints(self, set)
    }
}

/// Which clusters a replica set needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    /// One port for both protocols: our own agents.
    One,
    Two,
}

/// A replica set that some route uses.
struct Used {
    ports: Ports,
    name: Arc<str>,
    /// Whether its endpoints are a resource of their own.
    separate_endpoints: bool,
    models: BTreeSet<Arc<str>>,
}

/// Knows what was derived, to tell what has changed. Bodies are not kept.
#[derive(Default)]
pub struct World {
    tls: Option<Arc<Tls>>,
    routes: HashMap<Arc<str>, Vec<ReplicaSet>>,
    used: BTreeMap<ReplicaSet, Used>,
    /// The set that answers requests without a model, and its shape at that time.
    server_scope: Option<(ReplicaSet, Ports)>,
}

impl World {
    /// A world without models.
    pub fn new(tls: Option<Arc<Tls>>) -> Self {
        Self {
            tls,
            ..Self::default()
        }
    }

    /// Takes other certificates; every cluster changes.
    pub fn renew(&mut self, view: &impl View, tls: Arc<Tls>) -> Vec<Change> {
        self.tls = Some(tls);
        let mut changes = Vec::new();
        for (set, used) in &mut self.used {
            put_clusters(
                used,
                &view.endpoints(set),
                self.tls.as_deref(),
                &mut changes,
            );
        }
        changes
    }

    /// Derives what the change of these models' routes and of these servers' endpoints means.
    pub fn update(
        &mut self,
        view: &impl View,
        models: &BTreeSet<Arc<str>>,
        servers: &BTreeSet<Arc<str>>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut reshaped = BTreeSet::new();
        for server in servers {
            self.refresh_server(view, server, &mut changes, &mut reshaped);
        }
        reshaped.extend(models.iter().cloned());
        let mut idle = BTreeSet::new();
        for model in &reshaped {
            self.rebuild(view, model, &mut changes, &mut idle);
        }
        for set in idle {
            if self
                .used
                .get(&set)
                .is_some_and(|used| used.models.is_empty())
            {
                self.remove_set(&set, &mut changes);
            }
        }
        self.refresh_server_scope(&mut changes);
        changes
    }

    /// Clusters whose shape changed make their models' scopes change as well.
    fn refresh_server(
        &mut self,
        view: &impl View,
        server: &Arc<str>,
        changes: &mut Vec<Change>,
        reshaped: &mut BTreeSet<Arc<str>>,
    ) {
        let first = ReplicaSet {
            server: server.clone(),
            replicas: BTreeSet::new(),
        };
        let sets: Vec<ReplicaSet> = self
            .used
            .range(first..)
            .map(|(set, _)| set)
            .take_while(|set| set.server == *server)
            .cloned()
            .collect();
        for set in sets {
            let endpoints = view.endpoints(&set);
            let Some(used) = self.used.get_mut(&set) else {
                continue;
            };
            let ports = Ports::of(&endpoints);
            if ports != used.ports {
                let old = used.clusters();
                used.ports = ports;
                reshaped.extend(used.models.iter().cloned());
                for (name, _) in old {
                    remove_cluster(name, used.separate_endpoints, changes);
                }
            }
            put_clusters(used, &endpoints, self.tls.as_deref(), changes);
        }
    }

    fn rebuild(
        &mut self,
        view: &impl View,
        model: &Arc<str>,
        changes: &mut Vec<Change>,
        idle: &mut BTreeSet<ReplicaSet>,
    ) {
        let former = self.routes.remove(model).unwrap_or_default();
        let existed = !former.is_empty();
        for set in former {
            if let Some(used) = self.used.get_mut(&set) {
                used.models.remove(model);
                if used.models.is_empty() {
                    idle.insert(set);
                }
            }
        }
        let Some(route) = view.route(model) else {
            if existed {
                changes.push(remove(types::SCOPE, client_scope(model)));
            }
            return;
        };
        for split in &route.splits {
            self.reference(view, &split.replicas, model, changes);
        }
        let scope = self.scope(&route);
        changes.push(put(types::SCOPE, scope.key.as_str(), scope.encode()));
        let mut sets: Vec<_> = route.splits.into_iter().map(|s| s.replicas).collect();
        sets.dedup();
        self.routes.insert(model.clone(), sets);
    }

    fn reference(
        &mut self,
        view: &impl View,
        set: &ReplicaSet,
        model: &Arc<str>,
        changes: &mut Vec<Change>,
    ) {
        if let Some(used) = self.used.get_mut(set) {
            used.models.insert(model.clone());
            return;
        }
        let endpoints = view.endpoints(set);
        let mut used = Used {
            ports: Ports::of(&endpoints),
            name: cluster_name(set).into(),
            separate_endpoints: false,
            models: BTreeSet::from([model.clone()]),
        };
        put_clusters(&mut used, &endpoints, self.tls.as_deref(), changes);
        self.used.insert(set.clone(), used);
    }

    /// The scope of a plain model, whether its client named it or the filter found its name; without the filter, which
    /// has nothing more to do there. Scopes with the keys that only the filter writes belong to candidates.
    fn scope(&self, route: &Route) -> Scope {
        let share = |split: &Split| {
            let used = self.used.get(&split.replicas)?;
            Some(Share {
                internal_model: format!("{}_{}", route.model, split.version),
                http_cluster: used.http_cluster(),
                grpc_cluster: used.grpc_cluster(),
                weight: split.weight,
            })
        };
        Scope {
            key: client_scope(&route.model),
            shares: route.splits.iter().filter_map(share).collect(),
            filter_off: true,
            retry: route.retry,
        }
    }

    fn remove_set(&mut self, set: &ReplicaSet, changes: &mut Vec<Change>) {
        let Some(used) = self.used.remove(set) else {
            return;
        };
        for (name, _) in used.clusters() {
            remove_cluster(name, used.separate_endpoints, changes);
        }
    }

    /// The models that are served by a cluster.
    pub fn models_of_cluster(&self, cluster: &str) -> BTreeSet<Arc<str>> {
        let sets = self.used.values();
        let named = sets.filter(|used| used.clusters().iter().any(|(name, _)| name == cluster));
        named.flat_map(|used| used.models.iter().cloned()).collect()
    }

    /// The clusters that serve a model.
    pub fn clusters_of_model(&self, model: &str) -> Vec<String> {
        let sets = self.routes.get(model).into_iter().flatten();
        let used = sets.filter_map(|set| self.used.get(set));
        used.flat_map(|used| used.clusters().into_iter().map(|(name, _)| name))
            .collect()
    }

    /// Any replica set will do: the first.
    fn refresh_server_scope(&mut self, changes: &mut Vec<Change>) {
        let chosen = self.used.first_key_value();
        let wanted = chosen.map(|(set, used)| (set.clone(), used.ports));
        if wanted == self.server_scope {
            return;
        }
        match chosen {
            Some((_, used)) => changes.push(put(
                types::SCOPE,
                client_scope("").as_str(),
                server_scope::encode(&used.http_cluster(), &used.grpc_cluster()),
            )),
            None => changes.push(remove(types::SCOPE, client_scope(""))),
        }
        self.server_scope = wanted;
    }
}

impl Ports {
    fn of(endpoints: &[Endpoint]) -> Self {
        if endpoints.iter().all(|e| e.http_port == e.grpc_port) {
            Self::One
        } else {
            Self::Two
        }
    }
}

impl Used {
    fn http_cluster(&self) -> String {
        match self.ports {
            Ports::One => self.name.to_string(),
            Ports::Two => format!("{}_http", self.name),
        }
    }

    fn grpc_cluster(&self) -> String {
        match self.ports {
            Ports::One => self.name.to_string(),
            Ports::Two => format!("{}_grpc", self.name),
        }
    }

    fn clusters(&self) -> Vec<(String, Protocol)> {
        match self.ports {
            Ports::One => vec![(self.http_cluster(), Protocol::Both)],
            Ports::Two => vec![
                (self.http_cluster(), Protocol::Http1),
                (self.grpc_cluster(), Protocol::Grpc),
            ],
        }
    }
}

fn put_clusters(
    used: &mut Used,
    endpoints: &[Endpoint],
    tls: Option<&Tls>,
    changes: &mut Vec<Change>,
) {
    let had_endpoints = used.separate_endpoints;
    for (name, protocol) in used.clusters() {
        let encoded = cluster::encode(&name, protocol, endpoints, tls);
        changes.push(put(types::CLUSTER, name.as_str(), encoded.cluster));
        used.separate_endpoints = encoded.endpoints.is_some();
        match encoded.endpoints {
            Some(body) => changes.push(put(types::ENDPOINTS, name.as_str(), body)),
            None if had_endpoints => changes.push(remove(types::ENDPOINTS, name)),
            None => {}
        }
    }
}

fn remove_cluster(name: String, separate_endpoints: bool, changes: &mut Vec<Change>) {
    if separate_endpoints {
        changes.push(remove(types::ENDPOINTS, name.clone()));
    }
    changes.push(remove(types::CLUSTER, name));
}

fn put(type_url: &'static str, name: &str, body: Bytes) -> Change {
    Change::Put {
        type_url,
        name: name.into(),
        body,
    }
}

fn remove(type_url: &'static str, name: String) -> Change {
    Change::Remove {
        type_url,
        name: name.into(),
    }
}

/// All resources of models, derived from nothing; what all updates together must come to.
pub fn snapshot<'a>(
    view: &impl View,
    tls: Option<Arc<Tls>>,
    models: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<(&'static str, Arc<str>), Bytes> {
    let models = models.into_iter().map(Arc::from).collect();
    let mut all = BTreeMap::new();
    collect(
        &mut all,
        World::new(tls).update(view, &models, &BTreeSet::new()),
    );
    all
}

/// Carries changes out on a map.
pub fn collect(all: &mut BTreeMap<(&'static str, Arc<str>), Bytes>, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Put {
                type_url,
                name,
                body,
            } => drop(all.insert((type_url, name), body)),
            Change::Remove { type_url, name } => drop(all.remove(&(type_url, name))),
        }
    }
}
