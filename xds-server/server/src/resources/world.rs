//! The world as resources: what a change of the rules' state means for Envoy.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use seldon_ads::Change;
use seldon_core::{Endpoint, ExperimentRoute, PIPELINE_GATEWAYS, ReplicaSet, Route, Split, State};

use super::{
    cluster::{self, Balance, Protocol},
    experiment, filter,
    names::{
        FILTER, candidate_scope, client_scope, cluster_name, experiment_endpoint, internal_model,
        types,
    },
    scope::{self, Scope, Share},
    server_scope,
    tls::Tls,
};

/// What resources are derived from.
pub trait View {
    fn route(&self, model: &str) -> Option<Route>;
    fn endpoints(&self, set: &ReplicaSet) -> Vec<Endpoint>;
    fn experiment_route(&self, experiment: &str) -> Option<ExperimentRoute>;
}

impl View for State {
    fn route(&self, model: &str) -> Option<Route> {
        State::route(self, model)
    }
    fn endpoints(&self, set: &ReplicaSet) -> Vec<Endpoint> {
        State::endpoints(self, set)
    }
    fn experiment_route(&self, experiment: &str) -> Option<ExperimentRoute> {
        State::experiment_route(self, experiment)
    }
}

/// Which clusters a replica set needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ports {
    /// One port for both protocols: our own agents.
    One,
    Two,
}

/// Whose scopes changed, as a set of names.
type Names = BTreeSet<Arc<str>>;
type Entry = seldon_routing::Experiment;

/// A replica set that some route uses.
struct Used {
    ports: Ports,
    balance: Balance,
    name: Arc<str>,
    /// Whether its endpoints are a resource of their own.
    separate_endpoints: bool,
    models: Names,
    /// Those whose mirror it serves.
    experiments: Names,
}

/// What a model had.
#[derive(Default)]
struct Routed {
    sets: Vec<ReplicaSet>,
    /// Scopes of its versions, as a candidate.
    versions: BTreeSet<String>,
}

/// What an experiment had.
struct Running {
    endpoint: Option<String>,
    /// Sets of its mirror.
    sets: Vec<ReplicaSet>,
}

/// What changed, before it is looked at whether it has any use.
#[derive(Default)]
struct Work {
    changes: Vec<Change>,
    models: Names,
    experiments: Names,
    idle: BTreeSet<ReplicaSet>,
}

/// Knows what was derived, to tell what has changed. Bodies are not kept.
#[derive(Default)]
pub struct World {
    tls: Option<Arc<Tls>>,
    /// The filter's path, where Envoys have one.
    module: String,
    routes: HashMap<Arc<str>, Routed>,
    used: BTreeMap<ReplicaSet, Used>,
    experiments: HashMap<Arc<str>, Running>,
    /// Names of experiments besides `<name>.experiment`, and whose they are.
    endpoints: HashMap<String, Arc<str>>,
    /// What the filter was told last.
    filter: seldon_routing::Config,
    /// The set that answers requests without a model, and its shape at that time.
    server_scope: Option<(ReplicaSet, Ports)>,
}

impl World {
    /// A world without models. `module` is the filter's path, for Envoys that name none of their own.
    pub fn new(tls: Option<Arc<Tls>>, module: Option<&str>) -> Self {
        Self {
            tls,
            module: module.unwrap_or_default().to_owned(),
            ..Self::default()
        }
    }

    /// The filter, told of the experiments there are.
    pub fn filter(&self) -> Change {
        put(
            types::EXTENSION,
            FILTER,
            filter::encode(&self.module, &self.filter),
        )
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

    /// Derives what the change of these models' and experiments' routes and of these servers' endpoints means.
    pub fn update(
        &mut self,
        view: &impl View,
        models: &Names,
        servers: &Names,
        experiments: &Names,
    ) -> Vec<Change> {
        let mut work = Work::default();
        for server in servers {
            self.refresh_server(view, server, &mut work);
        }
        work.models.extend(models.iter().cloned());
        work.experiments.extend(experiments.iter().cloned());
        let mut told = false;
        for experiment in std::mem::take(&mut work.experiments) {
            told |= self.rerun(view, &experiment, &mut work);
        }
        for model in std::mem::take(&mut work.models) {
            self.rebuild(view, &model, &mut work);
        }
        for set in std::mem::take(&mut work.idle) {
            if self.used.get(&set).is_some_and(Used::is_idle) {
                self.remove_set(&set, &mut work.changes);
            }
        }
        self.refresh_server_scope(&mut work.changes);
        if told {
            work.changes.push(self.filter());
        }
        work.changes
    }

    /// Clusters whose shape changed make the scopes of their models change as well, and the filter's entries.
    fn refresh_server(&mut self, view: &impl View, server: &Arc<str>, work: &mut Work) {
        let first = ReplicaSet {
            server: server.clone(),
            replicas: BTreeSet::new(),
        };
        let of_server = self
            .used
            .range_mut(first..)
            .take_while(|(set, _)| set.server == *server);
        for (set, used) in of_server {
            let endpoints = view.endpoints(set);
            let (ports, balance) = (Ports::of(&endpoints), Balance::of(&endpoints));
            if std::mem::replace(&mut used.balance, balance) != balance {
                work.models.extend(used.models.iter().cloned());
            }
            if ports != used.ports {
                let old = used.clusters();
                used.ports = ports;
                work.models.extend(used.models.iter().cloned());
                work.experiments.extend(used.experiments.iter().cloned());
                for (name, _) in old {
                    remove_cluster(name, used.separate_endpoints, &mut work.changes);
                }
            }
            put_clusters(used, &endpoints, self.tls.as_deref(), &mut work.changes);
        }
    }

    /// Derives an experiment again. Whether the filter has to be told.
    fn rerun(&mut self, view: &impl View, name: &Arc<str>, work: &mut Work) -> bool {
        let former = self.experiments.remove(name);
        let existed = former.is_some();
        let mut endpoint_before = None;
        if let Some(former) = former {
            for set in former.sets {
                if let Some(used) = self.used.get_mut(&set) {
                    used.experiments.remove(name);
                    work.idle.insert(set);
                }
            }
            endpoint_before = former.endpoint;
        }
        let route = view.experiment_route(name);
        let endpoint = route.as_ref().and_then(|route| route.endpoint.clone());
        let before = self.entry(name, endpoint_before.as_deref());
        self.drop_entry(name, endpoint_before.as_deref());
        let renamed = endpoint_before != endpoint;
        if renamed {
            self.hand_over(name, endpoint_before, endpoint.as_deref(), work);
        }
        match route {
            Some(route) => {
                let sets = self.mirrored_to(view, &route, work);
                experiment::put(&mut self.filter, &route, |set| view.endpoints(set));
                if !existed {
                    let key = client_scope(&experiment_endpoint(name));
                    let body = scope::unavailable(&key, name);
                    work.changes.push(put(types::SCOPE, &key, body));
                }
                let after = self.entry(name, endpoint.as_deref());
                let running = Running { endpoint, sets };
                self.experiments.insert(name.clone(), running);
                renamed || after != before
            }
            None if existed => {
                let key = client_scope(&experiment_endpoint(name));
                work.changes.push(remove(types::SCOPE, key));
                before.is_some()
            }
            None => false,
        }
    }

    /// An experiment answers for another name than before.
    fn hand_over(
        &mut self,
        name: &Arc<str>,
        before: Option<String>,
        now: Option<&str>,
        work: &mut Work,
    ) {
        if let Some(before) = before
            && self.endpoints.get(&before) == Some(name)
        {
            self.endpoints.remove(&before);
            work.models.insert(before.as_str().into());
        }
        if let Some(now) = now {
            self.endpoints.insert(now.to_owned(), name.clone());
            work.models.insert(now.into());
        }
    }

    /// Holds the clusters of an experiment's mirror.
    fn mirrored_to(
        &mut self,
        view: &impl View,
        route: &ExperimentRoute,
        work: &mut Work,
    ) -> Vec<ReplicaSet> {
        let splits = route.mirror.iter().flat_map(|mirror| &mirror.splits);
        let sets: Vec<ReplicaSet> = splits.map(|split| split.replicas.clone()).collect();
        for set in &sets {
            let used = self.reference(view, set, &mut work.changes);
            used.experiments.insert(route.name.clone());
        }
        sets
    }

    /// What the filter is told of an experiment, and of its other name.
    fn entry(&self, name: &str, endpoint: Option<&str>) -> Option<(Entry, bool)> {
        let entry = self.filter.experiments.get(name)?.clone();
        let of = endpoint.and_then(|endpoint| self.filter.endpoints.get(endpoint));
        Some((entry, of.is_some_and(|of| of == name)))
    }

    fn drop_entry(&mut self, name: &str, endpoint: Option<&str>) {
        self.filter.experiments.remove(name);
        if let Some(endpoint) = endpoint
            && self
                .filter
                .endpoints
                .get(endpoint)
                .is_some_and(|of| of == name)
        {
            self.filter.endpoints.remove(endpoint);
        }
    }

    fn rebuild(&mut self, view: &impl View, model: &Arc<str>, work: &mut Work) {
        let former = self.routes.remove(model).unwrap_or_default();
        for set in former.sets {
            if let Some(used) = self.used.get_mut(&set) {
                used.models.remove(model);
                work.idle.insert(set);
            }
        }
        let route = view.route(model);
        let mut routed = Routed::default();
        for split in route.iter().flat_map(|route| &route.splits) {
            let used = self.reference(view, &split.replicas, &mut work.changes);
            used.models.insert(model.clone());
            routed.sets.push(split.replicas.clone());
        }
        routed.sets.dedup();
        let key = client_scope(model);
        match (&route, self.endpoints.get(&**model)) {
            (Some(route), _) => {
                let body = self.scope(route).encode();
                work.changes.push(put(types::SCOPE, &key, body));
            }
            (None, Some(experiment)) => {
                let body = scope::unavailable(&key, experiment);
                work.changes.push(put(types::SCOPE, &key, body));
            }
            (None, None) => work.changes.push(remove(types::SCOPE, key)),
        }
        if let Some(route) = route {
            if route.candidate {
                for version in self.versions(&route) {
                    let body = version.encode();
                    work.changes.push(put(types::SCOPE, &version.key, body));
                    routed.versions.insert(version.key);
                }
            }
            self.routes.insert(model.clone(), routed);
        }
        let kept = self.routes.get(model).map(|routed| &routed.versions);
        for key in former.versions {
            if kept.is_none_or(|kept| !kept.contains(&key)) {
                work.changes.push(remove(types::SCOPE, key));
            }
        }
    }

    fn reference(
        &mut self,
        view: &impl View,
        set: &ReplicaSet,
        changes: &mut Vec<Change>,
    ) -> &mut Used {
        let tls = self.tls.as_deref();
        self.used.entry(set.clone()).or_insert_with(|| {
            let endpoints = view.endpoints(set);
            let mut used = Used {
                ports: Ports::of(&endpoints),
                balance: Balance::of(&endpoints),
                name: cluster_name(set).into(),
                separate_endpoints: false,
                models: Names::new(),
                experiments: Names::new(),
            };
            put_clusters(&mut used, &endpoints, tls, changes);
            used
        })
    }

    /// The scope of a model, whether its client named it or the filter found its name; without the filter, unless an
    /// experiment shares its requests out. What the filter leaves alone is the model's own then.
    fn scope(&self, route: &Route) -> Scope {
        let share = |split: &Split| self.share(route, split);
        Scope {
            key: client_scope(&route.model),
            shares: route.splits.iter().filter_map(share).collect(),
            filter_off: route.split_by.is_none(),
            retry: route.retry,
            mirror: false,
        }
    }

    /// The scopes of a candidate's versions, which only the filter can choose.
    fn versions(&self, route: &Route) -> Vec<Scope> {
        let version = |split: &Split| {
            let share = self.share(route, split)?;
            Some(Scope {
                key: candidate_scope(&share.internal_model),
                shares: vec![share],
                filter_off: true,
                retry: route.retry,
                mirror: true,
            })
        };
        route.splits.iter().filter_map(version).collect()
    }

    fn share(&self, route: &Route, split: &Split) -> Option<Share> {
        let used = self.used.get(&split.replicas)?;
        Some(Share {
            internal_model: internal_model(&route.model, split.version),
            http_cluster: used.http_cluster(),
            grpc_cluster: used.grpc_cluster(),
            by_model: used.balance == Balance::ByModel,
            weight: split.weight,
        })
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
        let sets = self.routes.get(model).into_iter().flat_map(|r| &r.sets);
        let used = sets.filter_map(|set| self.used.get(set));
        used.flat_map(|used| used.clusters().into_iter().map(|(name, _)| name))
            .collect()
    }

    /// Any replica set of a server will do: the first.
    fn refresh_server_scope(&mut self, changes: &mut Vec<Change>) {
        let of_server = |(set, _): &(&ReplicaSet, &Used)| &*set.server != PIPELINE_GATEWAYS;
        let chosen = self.used.iter().find(of_server);
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
    pub(super) fn of(endpoints: &[Endpoint]) -> Self {
        if endpoints.iter().all(|e| e.http_port == e.grpc_port) {
            Self::One
        } else {
            Self::Two
        }
    }

    pub(super) fn http_cluster(self, set: &str) -> String {
        match self {
            Self::One => set.to_owned(),
            Self::Two => format!("{set}_http"),
        }
    }

    pub(super) fn grpc_cluster(self, set: &str) -> String {
        match self {
            Self::One => set.to_owned(),
            Self::Two => format!("{set}_grpc"),
        }
    }
}

impl Used {
    fn is_idle(&self) -> bool {
        self.models.is_empty() && self.experiments.is_empty()
    }

    fn http_cluster(&self) -> String {
        self.ports.http_cluster(&self.name)
    }

    fn grpc_cluster(&self) -> String {
        self.ports.grpc_cluster(&self.name)
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

/// All resources but the listener, derived from nothing; what all updates together must come to.
pub fn snapshot<'a>(
    view: &impl View,
    tls: Option<Arc<Tls>>,
    models: impl IntoIterator<Item = &'a str>,
    experiments: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<(&'static str, Arc<str>), Bytes> {
    let models = models.into_iter().map(Arc::from).collect();
    let experiments = experiments.into_iter().map(Arc::from).collect();
    let mut world = World::new(tls, None);
    let mut all = BTreeMap::new();
    let changes = world.update(view, &models, &Names::new(), &experiments);
    collect(&mut all, vec![world.filter()]);
    collect(&mut all, changes);
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
