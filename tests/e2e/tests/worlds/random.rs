//! Random worlds: each is the one before with some changes, now and then one drawn anew.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use seldon_core::{Endpoint, ExperimentRoute, LiveCandidate, LiveMirror, ReplicaSet, Route, Split};
use seldon_scheduler::resources::View;

/// Splitmix64: small, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn number(&mut self, limit: u32) -> u32 {
        u32::try_from(self.below(u64::from(limit))).expect("the limit fits")
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).expect("a length fits")]
    }
}

const SERVERS: [&str; 4] = [
    "mlserver",
    "triton",
    "mlserver-with-a-rather-long-name-0123456789",
    "s",
];
const REPLICAS: u32 = 40;
const MODELS: u32 = 60;
const EXPERIMENTS: u32 = 12;

/// A world made by hand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    routes: BTreeMap<Arc<str>, Route>,
    replicas: BTreeMap<(Arc<str>, u32), Endpoint>,
    experiments: BTreeMap<Arc<str>, Wanted>,
}

/// An experiment; of its models only those with a route can answer.
#[derive(Clone, Debug)]
struct Wanted {
    /// A candidate, or the name of a pipeline.
    default: Option<String>,
    candidates: Vec<(Arc<str>, u32)>,
    mirror: Option<(Arc<str>, u32)>,
    cohort_header: Option<String>,
}

impl Wanted {
    fn names(&self, model: &str) -> bool {
        let candidates = self.candidates.iter().map(|(name, _)| name);
        let mut all = candidates.chain(self.mirror.iter().map(|(name, _)| name));
        all.any(|name| **name == *model) || self.default.as_deref() == Some(model)
    }
}

impl View for Made {
    fn route(&self, model: &str) -> Option<Route> {
        let mut route = self.routes.get(model)?.clone();
        for (name, wanted) in &self.experiments {
            route.candidate |= wanted.candidates.iter().any(|(c, _)| **c == *model);
            if wanted.default.as_deref() == Some(model) {
                route.split_by = Some(name.clone());
            }
        }
        Some(route)
    }

    fn experiment_route(&self, experiment: &str) -> Option<ExperimentRoute> {
        let wanted = self.experiments.get(experiment)?;
        let splits = |name: &Arc<str>| Some(self.routes.get(name)?.splits.clone());
        let candidate = |(name, weight): &(Arc<str>, u32)| {
            Some(LiveCandidate {
                name: name.clone(),
                weight: *weight,
                splits: splits(name)?,
            })
        };
        let mirror = |(name, percent): &(Arc<str>, u32)| {
            Some(LiveMirror {
                name: name.clone(),
                percent: *percent,
                splits: splits(name)?,
            })
        };
        Some(ExperimentRoute {
            name: experiment.into(),
            endpoint: wanted.default.clone(),
            candidates: wanted.candidates.iter().filter_map(candidate).collect(),
            mirror: wanted.mirror.as_ref().and_then(mirror),
            cohort_header: wanted.cohort_header.clone(),
            pipelines: false,
        })
    }

    fn endpoints(&self, set: &ReplicaSet) -> Vec<Endpoint> {
        let of = |replica: &u32| self.replicas.get(&(set.server.clone(), *replica));
        set.replicas.iter().filter_map(of).cloned().collect()
    }
}

/// What has changed, by name.
#[derive(Default)]
pub(crate) struct Changed {
    pub(crate) models: BTreeSet<Arc<str>>,
    pub(crate) servers: BTreeSet<Arc<str>>,
    pub(crate) experiments: BTreeSet<Arc<str>>,
}

impl Made {
    /// Changes the world; returns the models and experiments whose route, and the servers whose endpoints have changed.
    pub(crate) fn change(&mut self, random: &mut Random) -> Changed {
        let mut changed = Changed::default();
        match random.below(50) {
            0 => {
                self.clear(&mut changed);
                let servers = self.replicas.keys().map(|(server, _)| server.clone());
                changed.servers.extend(servers);
                self.replicas.clear();
                (0..100).for_each(|_| self.step(random, &mut changed));
            }
            1 => self.clear(&mut changed),
            2 => self.stop_all(&mut changed),
            _ => {
                let steps = 1 + random.below(8);
                (0..steps).for_each(|_| self.step(random, &mut changed));
            }
        }
        changed
    }

    fn clear(&mut self, changed: &mut Changed) {
        changed.models.extend(self.routes.keys().cloned());
        changed.experiments.extend(self.experiments.keys().cloned());
        self.routes.clear();
    }

    fn stop_all(&mut self, changed: &mut Changed) {
        for name in self.experiments.keys().cloned().collect::<Vec<_>>() {
            self.touch_experiment(&name, changed);
        }
        self.experiments.clear();
    }

    fn step(&mut self, random: &mut Random, changed: &mut Changed) {
        let model = model_name(random.number(MODELS));
        match random.below(14) {
            0..5 => {
                let route = route(random, &model);
                self.routes.insert(model.clone(), route);
                self.touch_model(model, changed);
            }
            5..7 => {
                self.routes.remove(&model);
                self.touch_model(model, changed);
            }
            kind @ 7..10 => {
                let server: Arc<str> = (*random.pick(&SERVERS)).into();
                let replica = random.number(REPLICAS);
                if kind < 9 {
                    self.replicas
                        .insert((server.clone(), replica), endpoint(random, replica));
                } else {
                    self.replicas.remove(&(server.clone(), replica));
                }
                changed.servers.insert(server);
            }
            kind => {
                let number = random.number(EXPERIMENTS);
                let name: Arc<str> = match number % 3 {
                    0 => format!("e{number}"),
                    1 => format!("with.dots.{number}"),
                    _ => format!("{}-{number}", "long".repeat(40)),
                }
                .into();
                self.touch_experiment(&name, changed);
                self.experiments.remove(&name);
                if kind < 13 {
                    let wanted = self.experiment(random);
                    self.experiments.insert(name.clone(), wanted);
                    self.touch_experiment(&name, changed);
                }
                changed.experiments.insert(name);
            }
        }
    }

    fn touch_model(&self, model: Arc<str>, changed: &mut Changed) {
        let concerned = self.experiments.iter().filter(|(_, e)| e.names(&model));
        changed
            .experiments
            .extend(concerned.map(|(e, _)| e.clone()));
        changed.models.insert(model);
    }

    fn touch_experiment(&self, name: &Arc<str>, changed: &mut Changed) {
        let wanted = self.experiments.get(name).into_iter();
        let models = wanted.flat_map(|wanted| &wanted.candidates);
        changed
            .models
            .extend(models.map(|(model, _)| model.clone()));
        changed.experiments.insert(name.clone());
    }

    fn experiment(&self, random: &mut Random) -> Wanted {
        let first = random.number(MODELS);
        let candidates: Vec<(Arc<str>, u32)> = (0..random.number(5))
            .map(|i| (model_name((first + i) % MODELS), random.number(3) * 40))
            .collect();
        let default = match random.below(4) {
            0 => None,
            1 => Some(format!("p{first}.pipeline")),
            _ => candidates.first().map(|(name, _)| name.to_string()),
        };
        let mut others = self.experiments.values();
        let taken = others.any(|other| other.default == default);
        let mirror = model_name((first + 7) % MODELS);
        Wanted {
            default: default.filter(|_| !taken),
            candidates,
            mirror: (random.below(2) > 0).then(|| (mirror, 1 + random.number(100))),
            cohort_header: (random.below(3) == 0).then(|| "x-user".to_owned()),
        }
    }
}

fn model_name(number: u32) -> Arc<str> {
    match number % 6 {
        0 => format!("m{number}"),
        1 => format!("Model_{number}.v1"),
        2 => format!("{number}"),
        3 => format!("{}-{number}", "long".repeat(50)),
        4 => format!("i-{number}"),
        _ => format!("iris.{number}"),
    }
    .into()
}

fn route(random: &mut Random, model: &Arc<str>) -> Route {
    let first = 1 + random.number(100_000);
    let splits = (0..1 + random.number(3)).map(|number| Split {
        version: first + number,
        replicas: replica_set(random),
        weight: 1 + random.number(if number == 0 { 1000 } else { 10 }),
    });
    Route {
        model: model.clone(),
        splits: splits.collect(),
        retry: random.below(4) > 0,
        log_payloads: random.below(2) > 0,
        split_by: None,
        candidate: false,
        pipeline: false,
    }
}

fn replica_set(random: &mut Random) -> ReplicaSet {
    let server = (*random.pick(&SERVERS)).into();
    let replicas = match random.below(5) {
        0 => (0..REPLICAS)
            .filter(|_| random.below(2) > 0)
            .chain([0])
            .collect(),
        1 => (0..1 + random.number(REPLICAS)).collect(),
        _ => (0..1 + random.number(3))
            .map(|_| random.number(4))
            .collect(),
    };
    ReplicaSet { server, replicas }
}

fn endpoint(random: &mut Random, replica: u32) -> Endpoint {
    let host = match random.below(8) {
        0 => "localhost".to_owned(),
        1 => format!("fd00::{replica:x}"),
        2 => format!("[2001:DB8:0:0::{replica:x}]"),
        3 => "::1".to_owned(),
        _ => format!("10.{}.0.{}", random.below(3), random.below(250)),
    };
    let http_port = 1 + u16::try_from(random.below(65_000)).expect("it fits");
    let two = random.below(3) == 0;
    Endpoint {
        replica,
        host,
        http_port,
        grpc_port: http_port + u16::from(two),
        over_committed: random.below(3) == 0,
    }
}
