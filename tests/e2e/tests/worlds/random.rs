//! Random worlds: each is the one before with some changes, now and then one drawn anew.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use seldon_core::{Endpoint, ReplicaSet, Route, Split};
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

/// A world made by hand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    routes: BTreeMap<Arc<str>, Route>,
    replicas: BTreeMap<(Arc<str>, u32), Endpoint>,
}

impl View for Made {
    fn route(&self, model: &str) -> Option<Route> {
        self.routes.get(model).cloned()
    }

    fn endpoints(&self, set: &ReplicaSet) -> Vec<Endpoint> {
        let of = |replica: &u32| self.replicas.get(&(set.server.clone(), *replica));
        set.replicas.iter().filter_map(of).cloned().collect()
    }
}

type Changed = (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>);

impl Made {
    /// Changes the world; returns the models whose route, and the servers whose endpoints have changed.
    pub(crate) fn change(&mut self, random: &mut Random) -> Changed {
        let mut changed = Changed::default();
        match random.below(50) {
            0 => {
                changed.0.extend(self.routes.keys().cloned());
                self.routes.clear();
                changed
                    .1
                    .extend(self.replicas.keys().map(|(server, _)| server.clone()));
                self.replicas.clear();
                (0..100).for_each(|_| self.step(random, &mut changed));
            }
            1 => {
                changed.0.extend(self.routes.keys().cloned());
                self.routes.clear();
            }
            _ => {
                let steps = 1 + random.below(8);
                (0..steps).for_each(|_| self.step(random, &mut changed));
            }
        }
        changed
    }

    fn step(&mut self, random: &mut Random, (models, servers): &mut Changed) {
        let model = model_name(random.number(MODELS));
        match random.below(10) {
            0..5 => {
                let route = route(random, &model);
                self.routes.insert(model.clone(), route);
                models.insert(model);
            }
            5..7 => {
                self.routes.remove(&model);
                models.insert(model);
            }
            kind => {
                let server: Arc<str> = (*random.pick(&SERVERS)).into();
                let replica = random.number(REPLICAS);
                if kind < 9 {
                    self.replicas
                        .insert((server.clone(), replica), endpoint(random, replica));
                } else {
                    self.replicas.remove(&(server.clone(), replica));
                }
                servers.insert(server);
            }
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
    }
}
