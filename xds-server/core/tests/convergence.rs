//! Random histories: agents load, fail, vanish and return, the Envoy lags, the scheduler is killed. The invariants hold
//! after every step, nothing is unloaded that the Envoy uses, and when all is well again all is as wanted.
#![allow(clippy::unwrap_used)] // a test may
mod sim;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use seldon_core::{AgentKey, Config, Event, Measurement, Now, Record, Synchronisation};
use seldon_proto::{
    agent::{model_operation_message::Operation, model_scaling_trigger_message::Trigger},
    scheduler::{Experiment, ExperimentRollout, Model, model_status::ModelState},
};
use sim::{Sim, agent, experiment, mirror, model, spec};

/// Replicas of each server when all is well.
const SERVERS: [(&str, u32); 2] = [("alpha", 3), ("beta", 2)];

#[derive(Clone, Debug)]
enum Op {
    Load {
        name: usize,
        replicas: u32,
        least: u32,
        artefact: u8,
        pinned: Option<usize>,
    },
    Unload(usize),
    Work {
        agent: usize,
        succeed: bool,
    },
    Acknowledge,
    Cut(usize),
    Crash(usize),
    Connect(usize),
    Drain(usize),
    Scale {
        server: usize,
        replicas: u32,
    },
    Advance(u64),
    Reject {
        name: usize,
        reject: bool,
    },
    Start(usize, Box<Experiment>),
    Stop(usize),
    Measured {
        requests: u64,
        errors: u64,
    },
    RejectFilter(bool),
    /// An agent sees a model cross a threshold of autoscaling.
    Trigger {
        name: usize,
        agent: usize,
        up: bool,
    },
    Restart,
}

/// Names of models 0 to 4 with weights; the last may be a mirror.
fn start() -> impl Strategy<Value = Experiment> {
    let members = proptest::sample::subsequence((0..5usize).collect::<Vec<_>>(), 1..5);
    let weights = proptest::collection::vec(0..3u32, 5);
    let mirrored = proptest::option::weighted(0.3, prop_oneof![Just(0u32), Just(50), Just(101)]);
    let default = proptest::option::weighted(0.7, 0..2usize);
    (
        members,
        weights,
        mirrored,
        default,
        proptest::bool::weighted(0.4),
    )
        .prop_map(|(members, weights, mirrored, default, rollout)| {
            let names: Vec<String> = members.into_iter().map(name).collect();
            let taken = usize::from(mirrored.is_some());
            let candidates: Vec<(&str, u32)> = names[..names.len() - taken]
                .iter()
                .zip(weights)
                .map(|(name, weight)| (name.as_str(), weight))
                .collect();
            let default = default.and_then(|at| Some(candidates.get(at)?.0));
            let mut spec = experiment("", default, &candidates);
            spec.mirror = mirrored.and_then(|percent| mirror(names.last().unwrap(), percent));
            if rollout && candidates.len() == 2 && default.is_some() {
                spec.rollout = Some(ExperimentRollout {
                    min_requests: 10,
                    ..ExperimentRollout::default()
                });
            }
            spec
        })
}

fn op() -> impl Strategy<Value = Op> {
    let load = (
        0..5usize,
        0..4u32,
        0..2u32,
        0..3u8,
        proptest::option::weighted(0.2, 0..2usize),
    );
    prop_oneof![
        6 => load.prop_map(|(name, replicas, least, artefact, pinned)| Op::Load {
            name, replicas, least: least.min(replicas), artefact, pinned,
        }),
        3 => (0..5usize).prop_map(Op::Unload),
        12 => (0..5usize, proptest::bool::weighted(0.85)).prop_map(|(agent, succeed)| Op::Work { agent, succeed }),
        6 => Just(Op::Acknowledge),
        2 => (0..5usize).prop_map(Op::Cut),
        1 => (0..5usize).prop_map(Op::Crash),
        4 => (0..5usize).prop_map(Op::Connect),
        1 => (0..5usize).prop_map(Op::Drain),
        1 => (0..2usize, 0..4u32).prop_map(|(server, replicas)| Op::Scale { server, replicas }),
        3 => prop_oneof![Just(1u64), Just(7), Just(70), Just(4000)].prop_map(Op::Advance),
        1 => (0..5usize, any::<bool>()).prop_map(|(name, reject)| Op::Reject { name, reject }),
        4 => (0..3usize, start()).prop_map(|(name, spec)| Op::Start(name, Box::new(spec))),
        2 => (0..3usize).prop_map(Op::Stop),
        3 => (0..40u64, 0..5u64).prop_map(|(requests, errors)| Op::Measured { requests, errors }),
        1 => any::<bool>().prop_map(Op::RejectFilter),
        4 => (0..5usize, 0..5usize, any::<bool>()).prop_map(|(name, agent, up)| Op::Trigger { name, agent, up }),
        1 => Just(Op::Restart),
    ]
}

fn keys() -> Vec<AgentKey> {
    SERVERS
        .iter()
        .flat_map(|(server, count)| (0..*count).map(move |replica| agent(server, replica)))
        .collect()
}

fn name(number: usize) -> String {
    format!("model-{number}")
}

struct History {
    sim: Sim,
    wanted: BTreeMap<String, Model>,
    experiments: BTreeMap<String, Experiment>,
    tokens: u64,
    scaled: bool,
    /// Asked to drain, or gave an unload up: these must connect again to be of use.
    worn: BTreeSet<AgentKey>,
}

impl History {
    fn new(synchronisation: Synchronisation, capacity: u64) -> History {
        // However long an agent was away: what it still has must not come back to life.
        let keep_terminated = Duration::from_secs(10_000_000);
        let mut sim = Sim::new(Config {
            keep_terminated,
            model_autoscaling: true,
            ..Config::new(synchronisation)
        });
        for key in keys() {
            sim.add_agent(&key.server, key.replica, capacity, &["sklearn"]);
        }
        History {
            sim,
            wanted: BTreeMap::new(),
            experiments: BTreeMap::new(),
            tokens: 0,
            scaled: false,
            worn: BTreeSet::new(),
        }
    }

    fn routed(&self) -> Vec<String> {
        self.sim
            .state
            .routes()
            .map(|route| route.model.to_string())
            .collect()
    }

    /// Applies an operation; only some may take a route away.
    fn apply(&mut self, op: Op) {
        let harmless = matches!(
            op,
            Op::Work { .. }
                | Op::Acknowledge
                | Op::Cut(_)
                | Op::Drain(_)
                | Op::Advance(_)
                | Op::Reject { .. }
                | Op::Start(..)
                | Op::Stop(_)
                | Op::Measured { .. }
                | Op::RejectFilter(_)
                | Op::Trigger { .. }
        );
        let before = self.routed();
        let settled = self.sim.state.synchronised() && !self.scaled;
        let text = format!("{op:?}");
        self.carry_out(op);
        let after = self.routed();
        let lost: Vec<&String> = before.iter().filter(|name| !after.contains(name)).collect();
        assert!(
            !(harmless && settled) || lost.is_empty(),
            "{text} took the route of {lost:?} away"
        );
    }

    fn carry_out(&mut self, op: Op) {
        let keys = keys();
        match op {
            Op::Load {
                name: number,
                replicas,
                least,
                artefact,
                pinned,
            } => {
                let mut wanted = model(&name(number), replicas);
                spec(&mut wanted).uri = format!("gs://models/{artefact}");
                spec(&mut wanted).server = pinned.map(|server| SERVERS[server].0.to_owned());
                wanted.deployment_spec.as_mut().unwrap().min_replicas = least;
                if self
                    .sim
                    .step(Event::LoadModel(Box::new(wanted.clone())))
                    .is_ok()
                {
                    self.wanted.insert(name(number), wanted);
                }
            }
            Op::Unload(number) => {
                let event = Event::UnloadModel {
                    name: name(number),
                    kubernetes_meta: None,
                };
                if self.sim.step(event).is_ok() {
                    self.wanted.remove(&name(number));
                }
            }
            Op::Work { agent, succeed } => {
                let unload = self.sim.agents[&keys[agent]].inbox.front();
                let unload = unload.is_some_and(|m| m.operation() == Operation::UnloadModel);
                if unload && !succeed {
                    self.worn.insert(keys[agent].clone());
                }
                self.sim.work(&keys[agent], succeed);
            }
            Op::Acknowledge => self.sim.acknowledge(),
            Op::Cut(agent) => self.sim.disconnect(&keys[agent]),
            Op::Crash(agent) => {
                self.sim.disconnect(&keys[agent]);
                self.sim
                    .agents
                    .get_mut(&keys[agent])
                    .unwrap()
                    .models
                    .clear();
            }
            Op::Connect(agent) => self.sim.connect(&keys[agent]),
            Op::Drain(agent) => {
                self.tokens += 1;
                self.worn.insert(keys[agent].clone());
                let _ = self.sim.step(Event::DrainRequested {
                    agent: keys[agent].clone(),
                    token: self.tokens,
                });
            }
            Op::Scale { server, replicas } => {
                // A replica of a server that shrinks may go for good.
                self.scaled = true;
                self.sim.notify(SERVERS[server].0, replicas, true);
            }
            Op::Advance(seconds) => self.sim.advance(Duration::from_secs(seconds)),
            Op::Reject {
                name: number,
                reject,
            } => {
                let reason = reject.then(|| "refused".to_owned());
                self.sim
                    .step(Event::RouteRejected {
                        model: name(number),
                        reason,
                    })
                    .unwrap();
            }
            Op::Start(number, mut spec) => {
                spec.name = format!("experiment-{number}");
                if self.sim.start((*spec).clone()).is_ok() {
                    self.experiments.insert(spec.name.clone(), *spec);
                }
            }
            Op::Stop(number) => {
                let stopped = format!("experiment-{number}");
                let known = self.sim.stop(&stopped).is_ok();
                assert!(known || !self.experiments.contains_key(&stopped));
                self.experiments.remove(&stopped);
            }
            Op::Measured { requests, errors } => self.measure(requests, errors),
            Op::RejectFilter(reject) => {
                let reason = reject.then(|| "refused".to_owned());
                self.sim.step(Event::FilterRejected { reason }).unwrap();
            }
            Op::Trigger {
                name: number,
                agent,
                up,
            } => {
                let status = self
                    .sim
                    .state
                    .model_status(&name(number), false, Now::default());
                let version = status.map_or(1, |status| status.versions[0].version);
                let trigger = if up {
                    Trigger::ScaleUp
                } else {
                    Trigger::ScaleDown
                };
                self.sim
                    .trigger(&keys[agent], &name(number), version, trigger);
            }
            Op::Restart => {
                let percents = self.percents();
                self.sim.restart();
                assert_eq!(percents, self.percents(), "roll-outs go on where they were");
            }
        }
    }

    /// Defaults answer without errors; candidates do not.
    fn measure(&mut self, requests: u64, errors: u64) {
        let measured: Vec<Measurement> = self
            .sim
            .state
            .measured_experiments()
            .flat_map(|name| {
                let spec = &self.experiments[&**name];
                spec.candidates.iter().map(|one| Measurement {
                    experiment: name.clone(),
                    candidate: one.name.as_str().into(),
                    begun: requests,
                    requests,
                    errors: match spec.default.as_ref() == Some(&one.name) {
                        true => 0,
                        false => errors.min(requests),
                    },
                    microseconds: requests * 1000,
                })
            })
            .collect();
        self.sim.step(Event::Measured(measured)).unwrap();
    }

    /// What roll-outs would give their candidates.
    fn percents(&self) -> BTreeMap<String, Vec<u32>> {
        let explained = self.experiments.keys().map(|name| {
            let known = self.sim.state.explain_experiment(name).unwrap();
            let wanted = known.candidates.iter().map(|one| one.wanted).collect();
            (name.clone(), wanted)
        });
        explained.collect()
    }

    /// Experiments are those wanted, stored, and active where they can be.
    fn check_experiments(&self) {
        let state = &self.sim.state;
        let names: Vec<String> = state.experiment_names().map(|n| n.to_string()).collect();
        let wanted: Vec<String> = self.experiments.keys().cloned().collect();
        assert_eq!(names, wanted);
        for (name, spec) in &self.experiments {
            let stored = self.sim.experiments_stored.get(name.as_str());
            assert!(
                matches!(stored, Some(Record::Experiment { spec: kept, .. }) if **kept == *spec),
                "{name} is stored as {stored:?}"
            );
            let mut members = spec
                .candidates
                .iter()
                .map(|one| &one.name)
                .chain(spec.mirror.iter().map(|one| &one.name));
            let ready = members.all(|member| {
                self.wanted.contains_key(member)
                    && self.sim.state_of(member) == ModelState::ModelAvailable
            });
            let weight = spec.candidates.iter().any(|one| one.weight > 0);
            let good = (weight || spec.rollout.is_some())
                && spec.mirror.as_ref().is_none_or(|one| one.percent <= 100);
            let (active, text) = self.sim.experiment(name);
            assert_eq!(active, ready && good, "{name}: {text}: {spec:?}");
            if active {
                let live = state.experiment_route(name).unwrap().candidates.len();
                assert_eq!(live, spec.candidates.len(), "{name}");
            }
        }
        assert_eq!(self.sim.experiments_stored.len(), self.experiments.len());
    }

    /// Everything comes back and does what it is asked. `gently`: agents that are there stay as they are, and clients
    /// ask again for what they want.
    fn heal(&mut self, gently: bool) {
        self.sim
            .step(Event::FilterRejected { reason: None })
            .unwrap();
        for number in 0..5 {
            self.sim
                .step(Event::RouteRejected {
                    model: name(number),
                    reason: None,
                })
                .unwrap();
        }
        for (server, count) in SERVERS {
            self.sim.notify(server, count, true);
        }
        for key in keys() {
            let well = self.sim.agents[&key].stream.is_some() && !self.worn.contains(&key);
            if gently && well {
                continue;
            }
            self.sim.disconnect(&key);
            self.sim.connect(&key);
        }
        if gently {
            for wanted in self.wanted.values() {
                self.sim.load(wanted.clone());
            }
        }
        for _ in 0..12 {
            self.sim.settle();
            self.sim.advance(Duration::from_secs(400));
        }
        self.sim.settle();
    }

    fn check(&self) {
        assert!(self.sim.state.synchronised());
        self.check_experiments();
        let mut held: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for ((name, version), _) in self.sim.agents.values().flat_map(|agent| &agent.models) {
            held.entry(name.clone()).or_default().push(*version);
        }
        for (name, wanted) in &self.wanted {
            let scaled = match &self.sim.models_stored[name.as_str()] {
                Record::Model { scaled, .. } => *scaled,
                other => panic!("{name} is stored as {other:?}"),
            };
            let asked = wanted.deployment_spec.as_ref().unwrap();
            let replicas = scaled.unwrap_or(asked.replicas) as usize;
            let most = match spec(&mut wanted.clone()).server.as_deref() {
                Some("beta") => 2,
                _ => 3,
            };
            let least = asked.min_replicas as usize;
            if let Some(scaled) = scaled {
                assert!(
                    least > 0 && scaled >= asked.min_replicas,
                    "{name} has {scaled} replicas"
                );
            }
            let (state, reason) = self.sim.status(name);
            let versions = held.remove(name).unwrap_or_default();
            if replicas == 0 {
                assert_eq!(
                    (state, versions.len()),
                    (ModelState::ModelScaledDown, 0),
                    "{name}: {reason}"
                );
                continue;
            }
            if replicas > most && least == 0 {
                // A version that came when fewer were wanted may answer beside the one before, which then stays.
                let versions: BTreeSet<u32> = versions.into_iter().collect();
                let state_is_right = match versions.len() {
                    0 | 1 => state == ModelState::ScheduleFailed,
                    _ => reason.contains("3 replicas wanted"),
                };
                assert!(state_is_right, "{name}: {state:?} {reason}, {versions:?}");
                continue;
            }
            assert_eq!(
                state,
                ModelState::ModelAvailable,
                "{name}: {reason} {:#?}",
                self.sim.state.explain(name)
            );
            let latest = self
                .sim
                .state
                .model_status(name, false, Now::default())
                .unwrap()
                .versions[0]
                .version;
            let full = replicas.min(most);
            assert!(
                versions.len() == full && versions.iter().all(|version| *version == latest),
                "{name} wants {full} of version {latest}, agents hold {versions:?}"
            );
            let route = self.sim.state.route(name).unwrap();
            assert!(
                route.splits.len() == 1 && route.splits[0].weight as usize == full,
                "{route:?}"
            );
        }
        assert!(held.is_empty(), "agents hold what nobody wants: {held:?}");
        let stored: Vec<String> = self
            .sim
            .models_stored
            .keys()
            .map(|name| name.to_string())
            .collect();
        for name in self.wanted.keys() {
            assert!(stored.contains(name), "{name} is not in the store");
        }
    }
}

fn run(ops: Vec<Op>, gently: bool, synchronisation: Synchronisation) {
    let mut history = History::new(synchronisation, 100_000);
    for op in ops {
        history.apply(op);
    }
    history.heal(gently);
    history.check();
}

/// `PROPTEST_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_local_history_ends_well(ops in proptest::collection::vec(op(), 1..120), gently: bool) {
        run(ops, gently, Synchronisation::AfterTimeout(Duration::from_secs(30)));
    }

    #[test]
    fn any_kubernetes_history_ends_well(ops in proptest::collection::vec(op(), 1..120), gently: bool) {
        run(ops, gently, Synchronisation::FirstServers { timeout: Duration::from_secs(600) });
    }

    /// Where not everything fits, nothing is overbooked, all comes to rest, and what is deleted goes.
    #[test]
    fn any_history_with_little_memory_comes_to_rest(ops in proptest::collection::vec(op(), 1..120)) {
        let mut history = History::new(Synchronisation::AfterTimeout(Duration::from_secs(30)), 250);
        for op in ops {
            history.apply(op);
        }
        history.heal(false);
        let held = history.sim.agents.values().flat_map(|agent| agent.models.keys());
        for (name, version) in held {
            assert!(history.wanted.contains_key(name), "{name}:{version} is not wanted");
        }
    }
}
