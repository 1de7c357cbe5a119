use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use envoy_types::pb::envoy::config::{
    cluster::v3::{Cluster, cluster::LbPolicy},
    core::v3::TypedExtensionConfig,
    listener::v3::Listener,
    route::v3::ScopedRouteConfiguration,
};
use proptest::prelude::*;
use prost::Message;
use seldon_ads::{Node, Tailor};
use seldon_core::{Endpoint, ExperimentRoute, LiveCandidate, LiveMirror, ReplicaSet, Route, Split};

use super::*;
use names::types;

/// A world made by hand.
#[derive(Clone, Debug, Default)]
struct Made {
    routes: BTreeMap<Arc<str>, Route>,
    replicas: BTreeMap<(Arc<str>, u32), Endpoint>,
    experiments: BTreeMap<Arc<str>, Wanted>,
}

/// An experiment: its default, its candidates and its mirror by name, the mirror possibly gone.
#[derive(Clone, Debug)]
struct Wanted {
    default: Option<String>,
    candidates: Vec<(String, u32)>,
    mirror: Option<String>,
}

impl View for Made {
    fn route(&self, model: &str) -> Option<Route> {
        let mut route = self.routes.get(model)?.clone();
        for (name, wanted) in &self.experiments {
            route.candidate |= wanted.candidates.iter().any(|(c, _)| c == model);
            if wanted.default.as_deref() == Some(model) {
                route.split_by = Some(name.clone());
            }
        }
        Some(route)
    }
    fn experiment_route(&self, experiment: &str) -> Option<ExperimentRoute> {
        let wanted = self.experiments.get(experiment)?;
        let splits = |name: &str| Some(self.routes.get(name)?.splits.clone());
        let candidate = |(name, weight): &(String, u32)| {
            Some(LiveCandidate {
                name: name.as_str().into(),
                weight: *weight,
                splits: splits(name)?,
            })
        };
        let mirror = |name: &String| {
            Some(LiveMirror {
                name: name.as_str().into(),
                percent: 40,
                splits: splits(name)?,
            })
        };
        Some(ExperimentRoute {
            pipelines: false,
            name: experiment.into(),
            endpoint: wanted.default.clone(),
            candidates: wanted.candidates.iter().filter_map(candidate).collect(),
            mirror: wanted.mirror.as_ref().and_then(mirror),
            cohort_header: None,
        })
    }
    fn endpoints(&self, set: &ReplicaSet) -> Vec<Endpoint> {
        let of = |replica: &u32| self.replicas.get(&(set.server.clone(), *replica));
        set.replicas.iter().filter_map(of).cloned().collect()
    }
}

impl Made {
    fn replica(&mut self, server: &str, replica: u32, host: &str, ports: (u16, u16)) {
        let endpoint = Endpoint {
            replica,
            host: host.into(),
            http_port: ports.0,
            grpc_port: ports.1,
            over_committed: false,
        };
        self.replicas.insert((server.into(), replica), endpoint);
    }

    fn over_committed(&mut self, server: &str, replica: u32) {
        let endpoint = self.replicas.get_mut(&(server.into(), replica)).unwrap();
        endpoint.over_committed = true;
    }

    fn serve(&mut self, model: &str, splits: &[(u32, &str, &[u32], u32)]) {
        let splits = splits
            .iter()
            .map(|(version, server, replicas, weight)| Split {
                version: *version,
                replicas: ReplicaSet {
                    server: (*server).into(),
                    replicas: replicas.iter().copied().collect(),
                },
                weight: *weight,
            })
            .collect();
        let route = Route {
            model: model.into(),
            pipeline: false,
            splits,
            retry: true,
            log_payloads: false,
            split_by: None,
            candidate: false,
        };
        self.routes.insert(model.into(), route);
    }

    fn snapshot(&self) -> BTreeMap<(&'static str, Arc<str>), bytes::Bytes> {
        let models = self.routes.keys().map(|m| &**m);
        snapshot(self, None, models, self.experiments.keys().map(|e| &**e))
    }

    fn experiment(
        &mut self,
        name: &str,
        default: Option<&str>,
        candidates: &[&str],
        mirror: Option<&str>,
    ) {
        let wanted = Wanted {
            default: default.map(str::to_owned),
            candidates: candidates.iter().map(|c| ((*c).to_owned(), 50)).collect(),
            mirror: mirror.map(str::to_owned),
        };
        self.experiments.insert(name.into(), wanted);
    }

    /// All models and experiments that any change of one of them can concern.
    fn everything(&self) -> (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>) {
        let models = self.routes.keys().cloned().collect();
        (models, self.experiments.keys().cloned().collect())
    }
}

fn names_of(changes: &[Change]) -> Vec<String> {
    let short = |url: &str| url.rsplit('.').next().unwrap().to_owned();
    changes
        .iter()
        .map(|change| match change {
            Change::Put { type_url, name, .. } => format!("+{} {name}", short(type_url)),
            Change::Remove { type_url, name } => format!("-{} {name}", short(type_url)),
        })
        .collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<Arc<str>> {
    names.into_iter().map(Arc::from).collect()
}

#[test]
fn a_model_costs_one_scope_and_shares_its_cluster() {
    let mut made = Made::default();
    made.replica("mlserver", 0, "10.0.0.1", (9000, 9000));
    made.replica("mlserver", 1, "fd00::2", (9000, 9000));
    made.serve("iris", &[(1, "mlserver", &[0, 1], 1)]);
    let mut world = World::new(None, None);
    let first = world.update(&made, &set(["iris"]), &set([]), &set([]));
    insta::assert_yaml_snapshot!("first_model", names_of(&first));

    made.serve("wine", &[(1, "mlserver", &[0, 1], 1)]);
    let second = world.update(&made, &set(["wine"]), &set([]), &set([]));
    assert_eq!(names_of(&second), ["+ScopedRouteConfiguration c:wine"]);
    let bytes: usize = second
        .iter()
        .map(|change| match change {
            Change::Put { body, .. } => body.len(),
            Change::Remove { .. } => 0,
        })
        .sum();
    assert!(bytes <= 400, "{bytes} bytes for a model");

    made.routes.clear();
    let removed = world.update(&made, &set(["iris", "wine"]), &set([]), &set([]));
    insta::assert_yaml_snapshot!("last_model_removed", names_of(&removed));
}

/// A replica that may have to load a model first is asked for it by as few Envoys and as often as can be.
#[test]
fn models_of_over_committed_replicas_keep_to_one_of_them() {
    let mut made = Made::default();
    for replica in 0..2 {
        made.replica("mlserver", replica, "10.0.0.1", (9000, 9000));
    }
    made.serve("iris", &[(1, "mlserver", &[0, 1], 1)]);
    made.serve("alone", &[(1, "mlserver", &[0], 1)]);
    let mut world = World::new(None, None);
    let mut all = BTreeMap::new();
    let none = set([]);
    collect(
        &mut all,
        world.update(&made, &set(["iris", "alone"]), &none, &none),
    );
    let hashed = |all: &BTreeMap<(&'static str, Arc<str>), bytes::Bytes>, model: &str| {
        let body = all[&(types::SCOPE, Arc::from(format!("c:{model}")))].clone();
        let scope = ScopedRouteConfiguration::decode(body).unwrap();
        format!("{scope:?}").contains("x-seldon-scope")
    };
    assert!(!hashed(&all, "iris"));
    made.over_committed("mlserver", 1);
    collect(
        &mut all,
        world.update(&made, &none, &set(["mlserver"]), &none),
    );
    assert!(hashed(&all, "iris") && !hashed(&all, "alone"));
    let rings = all.iter().filter(|((url, _), body)| {
        let cluster = || Cluster::decode((*body).clone()).unwrap();
        *url == types::CLUSTER && cluster().lb_policy == LbPolicy::RingHash as i32
    });
    assert_eq!(rings.count(), 1);
    collect(&mut all, vec![world.filter()]);
    assert_eq!(all, made.snapshot());
}

#[test]
fn an_experiment_gets_scopes_of_its_own_and_one_entry() {
    let mut made = Made::default();
    made.replica("mlserver", 0, "10.0.0.1", (9000, 9000));
    made.replica("triton", 0, "10.0.0.3", (9001, 9501));
    made.serve("iris", &[(1, "mlserver", &[0], 1)]);
    made.serve(
        "iris2",
        &[(3, "mlserver", &[0], 1), (4, "mlserver", &[0], 2)],
    );
    made.serve("copy", &[(9, "triton", &[0], 1)]);
    let mut world = World::new(None, None);
    world.update(&made, &set(["iris", "iris2", "copy"]), &set([]), &set([]));
    made.experiment("e", Some("iris"), &["iris", "iris2"], Some("copy"));
    let models = set(["iris", "iris2"]);
    let started = world.update(&made, &models, &set([]), &set(["e"]));
    insta::assert_yaml_snapshot!("experiment_started", names_of(&started));
    insta::assert_yaml_snapshot!("experiment_entry", told(&started));
    let again = world.update(&made, &set([]), &set([]), &set(["e"]));
    assert_eq!(told(&again), None, "nothing is new");
    for body in started.iter().filter_map(|change| match change {
        Change::Put { name, body, .. } if &**name == "i:iris2_4" => Some(body),
        _ => None,
    }) {
        let scope = ScopedRouteConfiguration::decode(body.clone()).unwrap();
        insta::assert_debug_snapshot!("scope_of_a_candidate", scope);
    }

    // The mirror's model loses its route: what serves it stays for as long as the filter may name it.
    let copy = made.routes.remove("copy").unwrap();
    let gone = world.update(&made, &set(["copy"]), &set([]), &set([]));
    assert_eq!(names_of(&gone), ["-ScopedRouteConfiguration c:copy"]);
    let told_of = world.update(&made, &set([]), &set([]), &set(["e"]));
    insta::assert_yaml_snapshot!("mirror_gone", names_of(&told_of));
    made.routes.insert("copy".into(), copy);

    made.routes.remove("iris");
    let gone = world.update(&made, &set(["iris"]), &set([]), &set(["e"]));
    insta::assert_yaml_snapshot!("default_without_route", names_of(&gone));
    made.experiments.clear();
    let stopped = world.update(&made, &models, &set([]), &set(["e"]));
    insta::assert_yaml_snapshot!("experiment_stopped", names_of(&stopped));
}

/// What the filter is told by these changes.
fn told(changes: &[Change]) -> Option<String> {
    use envoy_types::pb::{
        envoy::extensions::filters::http::wasm::v3::Wasm, google::protobuf::StringValue,
    };
    let body = changes.iter().find_map(|change| match change {
        Change::Put { type_url, body, .. } if *type_url == types::EXTENSION => Some(body),
        _ => None,
    })?;
    let extension = TypedExtensionConfig::decode(body.clone()).unwrap();
    let wasm = Wasm::decode(extension.typed_config.unwrap().value.as_slice()).unwrap();
    let text = wasm.config.unwrap().configuration.unwrap().value;
    let text = StringValue::decode(text.as_slice()).unwrap().value;
    seldon_routing::Config::from_json(text.as_bytes()).unwrap();
    Some(text)
}

#[test]
fn goldens() {
    let mut made = Made::default();
    made.replica("mlserver", 0, "10.0.0.1", (9000, 9000));
    made.replica("mlserver", 1, "10.0.0.2", (9000, 9000));
    made.replica("triton", 0, "triton-0.seldon", (9001, 9501));
    made.serve(
        "iris",
        &[(1, "mlserver", &[0], 3), (2, "mlserver", &[0, 1], 7)],
    );
    made.serve("cifar", &[(4, "triton", &[0], 1)]);
    let all = made.snapshot();
    let body = |url: &'static str, name: &str| all[&(url, Arc::from(name))].clone();
    let scope = |name: &str| ScopedRouteConfiguration::decode(body(types::SCOPE, name)).unwrap();
    insta::assert_debug_snapshot!("scope_of_a_rollout", scope("c:iris"));
    insta::assert_debug_snapshot!("scope_of_two_ports", scope("c:cifar"));
    insta::assert_debug_snapshot!("scope_of_servers", scope("c:"));
    let cluster = |name: &str| {
        envoy_types::pb::envoy::config::cluster::v3::Cluster::decode(body(types::CLUSTER, name))
            .unwrap()
    };
    insta::assert_debug_snapshot!("cluster_by_address", cluster("mlserver_0-1"));
    insta::assert_debug_snapshot!("cluster_by_name", cluster("triton_0_grpc"));
    insta::assert_yaml_snapshot!(
        "snapshot_names",
        all.keys()
            .map(|k| format!("{} {}", k.0, k.1))
            .collect::<Vec<_>>()
    );
}

fn fixed_resources() -> (bytes::Bytes, bytes::Bytes) {
    let options = ListenerOptions {
        port: 9000,
        access_log: Some(AccessLog {
            path: "/tmp/envoy-accesslog.txt".into(),
            successes: false,
        }),
        tls: None,
    };
    let mut changes = fixed(&options, Some("/filter.wasm"), &Default::default()).into_iter();
    let mut body = || match changes.next().unwrap() {
        Change::Put { body, .. } => body,
        Change::Remove { .. } => panic!("nothing is removed"),
    };
    (body(), body())
}

#[test]
fn an_envoy_gets_its_own_port_and_module() {
    let (listener, filter) = fixed_resources();
    let tailor = ByMetadata {
        default_module: false,
    };
    let node = |metadata| Node {
        metadata,
        ..Default::default()
    };
    let own =
        node(serde_json::json!({"seldon": {"data_port": 9100.0, "filter_module": "/own.wasm"}}));
    let tailored = tailor
        .tailor(&own, types::LISTENER, names::LISTENER, &listener)
        .unwrap();
    let text = format!("{:?}", Listener::decode(tailored.clone()).unwrap());
    assert!(text.contains("PortValue(9100)"), "{text}");
    assert!(contains(&tailored, b"ConfigDiscovery") || contains(&tailored, b"filters.http.wasm"));
    let module = tailor
        .tailor(&own, types::EXTENSION, names::FILTER, &filter)
        .unwrap();
    assert!(contains(&module, b"/own.wasm") && !contains(&module, b"/filter.wasm"));
    TypedExtensionConfig::decode(module).unwrap();

    let documented = node(serde_json::Value::Null);
    let without = tailor
        .tailor(&documented, types::LISTENER, names::LISTENER, &listener)
        .unwrap();
    assert!(
        !contains(&without, b"filters.http.wasm"),
        "no module, no filter"
    );
    let has_default = ByMetadata {
        default_module: true,
    };
    let same = has_default.tailor(&documented, types::LISTENER, names::LISTENER, &listener);
    assert_eq!(same, None);
    let odd = node(serde_json::json!({"seldon": {"data_port": 70000}}));
    assert_eq!(
        has_default.tailor(&odd, types::LISTENER, names::LISTENER, &listener),
        None
    );
}

fn contains(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

#[derive(Clone, Debug)]
enum Step {
    Route(u8, Vec<(u8, u8)>),
    Unroute(u8),
    /// Server, replica, and how its agent listens; 0 is gone.
    Replica(u8, u8, u8),
    /// Number, default, candidates by bits, mirror.
    Experiment(u8, Option<u8>, u8, Option<u8>),
    Stop(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6u8, prop::collection::vec((0..2u8, 1..8u8), 1..3))
            .prop_map(|(m, s)| Step::Route(m, s)),
        (0..6u8).prop_map(Step::Unroute),
        (0..2u8, 0..3u8, 0..5u8).prop_map(|(s, r, how)| Step::Replica(s, r, how)),
        (
            0..3u8,
            prop::option::of(0..6u8),
            0..64u8,
            prop::option::of(0..6u8)
        )
            .prop_map(|(e, d, c, m)| Step::Experiment(e, d, c, m)),
        (0..3u8).prop_map(Step::Stop),
    ]
}

proptest! {
    #[test]
    fn updates_come_to_what_a_snapshot_has(steps in prop::collection::vec(step(), 1..40)) {
        let mut made = Made::default();
        let mut world = World::new(None, None);
        let mut reached = BTreeMap::new();
        collect(&mut reached, vec![world.filter()]);
        for step in steps {
            let (mut models, mut experiments) = made.everything();
            let servers = made.take(step);
            let after = made.everything();
            models.extend(after.0);
            experiments.extend(after.1);
            collect(&mut reached, world.update(&made, &models, &servers, &experiments));
            prop_assert_eq!(&reached, &made.snapshot());
        }
    }
}

impl Made {
    /// Carries a step out; the servers whose endpoints changed.
    fn take(&mut self, step: Step) -> BTreeSet<Arc<str>> {
        let name = |model: u8| format!("m{model}");
        match step {
            Step::Route(model, splits) => {
                let servers = ["a", "b"];
                let replicas: Vec<Vec<u32>> = splits
                    .iter()
                    .map(|(_, bits)| (0..3).filter(|i| bits & (1 << i) != 0).collect())
                    .collect();
                let splits: Vec<_> = splits
                    .iter()
                    .zip(&replicas)
                    .enumerate()
                    .map(|(i, ((server, _), replicas))| {
                        (
                            i as u32 + 1,
                            servers[usize::from(*server)],
                            replicas.as_slice(),
                            1,
                        )
                    })
                    .collect();
                self.serve(&name(model), &splits);
            }
            Step::Unroute(model) => drop(self.routes.remove(name(model).as_str())),
            Step::Replica(server, replica, how) => {
                let server = ["a", "b"][usize::from(server)];
                let replica = u32::from(replica);
                match how {
                    0 => drop(self.replicas.remove(&(server.into(), replica))),
                    1 => self.replica(server, replica, "10.0.0.1", (9, 9)),
                    2 => self.replica(server, replica, "10.0.0.1", (9, 10)),
                    3 => self.replica(server, replica, "host", (9, 9)),
                    _ => {
                        self.replica(server, replica, "10.0.0.1", (9, 9));
                        self.over_committed(server, replica);
                    }
                }
                return set([server]);
            }
            Step::Experiment(number, default, candidates, mirror) => {
                let number = format!("e{number}");
                // One default belongs to one experiment.
                let taken = |model: &String| {
                    let mut others = self.experiments.iter().filter(|(e, _)| ***e != *number);
                    others.any(|(_, wanted)| wanted.default.as_ref() == Some(model))
                };
                let default = default.map(name).filter(|model| !taken(model));
                let candidates: Vec<String> = (0..6)
                    .filter(|i| candidates & (1 << i) != 0)
                    .map(name)
                    .collect();
                let candidates: Vec<&str> = candidates.iter().map(String::as_str).collect();
                let mirror = mirror.map(name);
                self.experiment(&number, default.as_deref(), &candidates, mirror.as_deref());
            }
            Step::Stop(number) => drop(self.experiments.remove(format!("e{number}").as_str())),
        }
        BTreeSet::new()
    }
}
