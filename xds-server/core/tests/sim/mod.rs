//! A world to put the rules into: agents, an Envoy that lags, a store. Everything is a plain value.
#![allow(dead_code)]
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use seldon_core::{
    AgentKey, Config, Effect, Event, ExperimentRoute, Now, Record, Route, State, StreamId,
    invariants,
};
use seldon_proto::{
    agent::{
        AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage,
        ModelScalingTriggerMessage, ModelVersion, ReplicaConfig,
        model_event_message::Event as Report, model_operation_message::Operation,
        model_scaling_trigger_message::Trigger,
    },
    scheduler::{
        DeploymentSpec, Experiment, ExperimentCandidate, ExperimentMirror, MetaData, Model,
        ModelSpec, ServerNotify, model_status::ModelState,
    },
};

pub fn model(name: &str, replicas: u32) -> Model {
    Model {
        meta: Some(MetaData {
            name: name.into(),
            ..MetaData::default()
        }),
        model_spec: Some(ModelSpec {
            uri: "gs://models/one".into(),
            requirements: vec!["sklearn".into()],
            memory_bytes: Some(100),
            ..ModelSpec::default()
        }),
        deployment_spec: Some(DeploymentSpec {
            replicas,
            ..DeploymentSpec::default()
        }),
        ..Model::default()
    }
}

/// An experiment over candidates with weights.
pub fn experiment(name: &str, default: Option<&str>, candidates: &[(&str, u32)]) -> Experiment {
    Experiment {
        name: name.into(),
        default: default.map(str::to_owned),
        candidates: candidates
            .iter()
            .map(|(name, weight)| ExperimentCandidate {
                name: (*name).to_owned(),
                weight: *weight,
            })
            .collect(),
        ..Default::default()
    }
}

pub fn mirror(name: &str, percent: u32) -> Option<ExperimentMirror> {
    let name = name.to_owned();
    Some(ExperimentMirror { name, percent })
}

pub fn spec(model: &mut Model) -> &mut ModelSpec {
    model.model_spec.as_mut().unwrap()
}

#[derive(Clone, Debug, Default)]
pub struct Agent {
    pub stream: Option<StreamId>,
    /// What may be booked; of that, `memory` is there.
    pub capacity: u64,
    pub memory: u64,
    pub capabilities: Vec<String>,
    pub models: BTreeMap<(String, u32), Model>,
    /// Those that are to be out of memory.
    pub resting: BTreeSet<(String, u32)>,
    /// It is not one of ours: another port for each protocol.
    pub foreign: bool,
    pub inbox: VecDeque<ModelOperationMessage>,
}

pub struct Sim {
    pub state: State,
    pub config: Config,
    pub now: Duration,
    pub agents: BTreeMap<AgentKey, Agent>,
    pub models_stored: BTreeMap<Arc<str>, Record>,
    pub servers_stored: BTreeMap<Arc<str>, Record>,
    pub experiments_stored: BTreeMap<Arc<str>, Record>,
    /// What the Envoy routes by.
    pub envoy: BTreeMap<Arc<str>, Route>,
    pub filter: BTreeMap<Arc<str>, ExperimentRoute>,
    pub drained: Vec<u64>,
    /// Whether the last drain left nothing routed.
    pub complete: bool,
    /// The Envoy keeps the route it has of these.
    pub rejected: BTreeSet<String>,
    pub effects: Vec<Effect>,
    pub streams: StreamId,
    /// Check all invariants after each step; costs time that grows with the world.
    pub strict: bool,
    /// Loads may be so late that the scheduler gave them up; agents then refuse what does not fit.
    pub late: bool,
}

pub fn agent(server: &str, replica: u32) -> AgentKey {
    AgentKey {
        server: server.into(),
        replica,
    }
}

impl Sim {
    pub fn new(config: Config) -> Sim {
        Sim {
            state: State::new(config.clone(), Now::default()),
            config,
            now: Duration::ZERO,
            agents: BTreeMap::new(),
            models_stored: BTreeMap::new(),
            servers_stored: BTreeMap::new(),
            experiments_stored: BTreeMap::new(),
            envoy: BTreeMap::new(),
            filter: BTreeMap::new(),
            drained: Vec::new(),
            complete: false,
            rejected: BTreeSet::new(),
            effects: Vec::new(),
            streams: 0,
            strict: true,
            late: false,
        }
    }

    pub fn add_agent(&mut self, server: &str, replica: u32, capacity: u64, capabilities: &[&str]) {
        let capabilities = capabilities.iter().map(|word| (*word).to_owned()).collect();
        self.agents.insert(
            agent(server, replica),
            Agent {
                capacity,
                memory: capacity,
                capabilities,
                ..Agent::default()
            },
        );
    }

    /// `count` replicas of a server, connected.
    pub fn add_server(&mut self, server: &str, count: u32, capacity: u64, capabilities: &[&str]) {
        for replica in 0..count {
            self.add_agent(server, replica, capacity, capabilities);
            self.connect(&agent(server, replica));
        }
    }

    pub fn step(&mut self, event: Event) -> Result<(), seldon_core::Refusal> {
        let text = if self.strict {
            format!("{event:?}")
        } else {
            String::new()
        };
        if let Event::RouteRejected { model, reason } = &event {
            self.refuse(model, reason.is_some());
        }
        let before = self.state.generation();
        let outcome = self.state.step(
            event,
            Now {
                monotonic: self.now,
                wall: self.now,
            },
        );
        let mut grown = 0;
        for effect in outcome.effects {
            match &effect {
                Effect::Persist(record @ Record::Model { name, .. }) => {
                    self.models_stored.insert(name.clone(), record.clone());
                }
                Effect::Persist(record @ Record::Server { name, .. }) => {
                    self.servers_stored.insert(name.clone(), record.clone());
                }
                Effect::Persist(record @ Record::Experiment { name, .. }) => {
                    self.experiments_stored.insert(name.clone(), record.clone());
                }
                Effect::Persist(Record::Pipeline { .. })
                | Effect::ForgetPipeline(_)
                | Effect::Tell { .. }
                | Effect::PipelineChanged(_) => {}
                Effect::ForgetExperiment(name) => {
                    self.experiments_stored.remove(name);
                }
                Effect::ForgetModel(name) => {
                    self.models_stored.remove(name);
                }
                Effect::ForgetServer(name) => {
                    self.servers_stored.remove(name);
                }
                Effect::Send {
                    agent,
                    stream,
                    message,
                } => {
                    if let Some(known) = self
                        .agents
                        .get_mut(agent)
                        .filter(|known| known.stream == Some(*stream))
                    {
                        known.inbox.push_back((**message).clone());
                    }
                }
                Effect::RouteChanged(_)
                | Effect::EndpointsChanged(_)
                | Effect::ExperimentRouted(_) => grown += 1,
                Effect::Drained { token, complete } => {
                    self.drained.push(*token);
                    self.complete = *complete;
                }
                Effect::ModelChanged(_)
                | Effect::ServerChanged(_)
                | Effect::ServerScaled(_)
                | Effect::ExperimentChanged(_) => {}
            }
            if self.strict {
                self.effects.push(effect);
            }
        }
        if self.strict {
            if let Err(broken) = invariants::check(&self.state) {
                panic!("{broken}\nafter {text}");
            }
            assert_eq!(
                self.state.generation() - before,
                grown,
                "generations after {text}"
            );
        }
        outcome.reply
    }

    pub fn load(&mut self, model: Model) {
        self.step(Event::LoadModel(Box::new(model))).unwrap();
    }

    pub fn start(&mut self, spec: Experiment) -> Result<(), seldon_core::Refusal> {
        self.step(Event::StartExperiment(Box::new(spec)))
    }

    pub fn stop(&mut self, name: &str) -> Result<(), seldon_core::Refusal> {
        self.step(Event::StopExperiment { name: name.into() })
    }

    /// Whether an experiment is active, and its status in words.
    pub fn experiment(&self, name: &str) -> (bool, String) {
        let status = self.state.experiment_status(name).unwrap();
        (status.active, status.status_description)
    }

    /// The split in force as `candidate*weight`, and `+mirror*percent`.
    pub fn split(&self, name: &str) -> Vec<String> {
        let route = self.state.experiment_route(name);
        let route = route.as_ref();
        let candidates = route.into_iter().flat_map(|route| &route.candidates);
        let candidates = candidates.map(|one| format!("{}*{}", one.name, one.weight));
        let mirror = route.and_then(|route| route.mirror.as_ref());
        let mirror = mirror.map(|one| format!("+{}*{}", one.name, one.percent));
        candidates.chain(mirror).collect()
    }

    pub fn unload(&mut self, name: &str) {
        self.step(Event::UnloadModel {
            name: name.into(),
            kubernetes_meta: None,
        })
        .unwrap();
    }

    /// An agent sees a threshold crossed.
    pub fn trigger(&mut self, key: &AgentKey, model: &str, version: u32, trigger: Trigger) {
        self.trigger_by(key, model, version, trigger, None);
    }

    /// The same, with what it saw.
    pub fn trigger_by(
        &mut self,
        key: &AgentKey,
        model: &str,
        version: u32,
        trigger: Trigger,
        metric: Option<(&str, u32)>,
    ) {
        self.step(Event::ScalingTriggered(Box::new(
            ModelScalingTriggerMessage {
                server_name: key.server.to_string(),
                replica_idx: key.replica,
                model_name: model.into(),
                model_version: version,
                trigger: trigger.into(),
                metrics: metric
                    .map(|(name, value)| (name.to_owned(), value))
                    .into_iter()
                    .collect(),
                ..ModelScalingTriggerMessage::default()
            },
        )))
        .unwrap();
    }

    /// As the operator does for a server with bounds.
    pub fn notify_bounds(&mut self, name: &str, expected: u32, least: u32, most: u32) {
        let servers = vec![ServerNotify {
            name: name.into(),
            expected_replicas: expected,
            min_replicas: least,
            max_replicas: most,
            ..ServerNotify::default()
        }];
        self.step(Event::ServerNotify {
            servers,
            first_sync: false,
        })
        .unwrap();
    }

    pub fn notify(&mut self, name: &str, expected_replicas: u32, first_sync: bool) {
        let servers = vec![ServerNotify {
            name: name.into(),
            expected_replicas,
            ..ServerNotify::default()
        }];
        self.step(Event::ServerNotify {
            servers,
            first_sync,
        })
        .unwrap();
    }

    pub fn connect(&mut self, key: &AgentKey) {
        self.streams += 1;
        let agent = self.agents.get_mut(key).unwrap();
        agent.stream = Some(self.streams);
        agent.inbox.clear();
        let used: u64 = agent.models.values().map(bytes).sum();
        let subscription = AgentSubscribeRequest {
            server_name: key.server.to_string(),
            shared: true,
            replica_idx: key.replica,
            replica_config: Some(ReplicaConfig {
                inference_svc: format!("{}-{}", key.server, key.replica),
                inference_http_port: 9999,
                inference_grpc_port: 9999 + i32::from(agent.foreign),
                memory_bytes: agent.memory,
                capabilities: agent.capabilities.clone(),
                over_commit_percentage: u32::from(agent.memory < agent.capacity) * 50,
            }),
            loaded_models: agent
                .models
                .iter()
                .map(|((_, version), model)| ModelVersion {
                    model: Some(model.clone()),
                    version: *version,
                })
                .collect(),
            available_memory_bytes: agent.capacity.saturating_sub(used),
        };
        let stream = self.streams;
        self.step(Event::AgentConnected {
            stream,
            subscription: Box::new(subscription),
        })
        .unwrap();
    }

    pub fn disconnect(&mut self, key: &AgentKey) {
        let known = self.agents.get_mut(key).unwrap();
        known.inbox.clear();
        if let Some(stream) = known.stream.take() {
            self.step(Event::AgentDisconnected {
                agent: key.clone(),
                stream,
            })
            .unwrap();
        }
    }

    /// Lets an agent act on its oldest message; whether there was one.
    pub fn work(&mut self, key: &AgentKey, succeed: bool) -> bool {
        let agent = self.agents.get_mut(key).unwrap();
        let Some(message) = agent.inbox.pop_front() else {
            return false;
        };
        let version = message.model_version.clone().unwrap();
        let model = version.model.unwrap();
        let name = model.meta.clone().unwrap().name;
        let entry = (name.clone(), version.version);
        // What is loaded already is only told whether to watch it: that cannot fail.
        let succeed = succeed
            || (message.operation() == Operation::LoadModel && agent.models.contains_key(&entry));
        let event = match (message.operation(), succeed) {
            (Operation::LoadModel, true) => {
                let told = agent.models.contains_key(&entry);
                let rests = message.resting && !agent.foreign;
                match rests {
                    true => agent.resting.insert(entry.clone()),
                    false => agent.resting.remove(&entry),
                };
                let others = agent.models.iter().filter(|(key, _)| **key != entry);
                let others = others.filter(|(key, _)| !agent.resting.contains(*key));
                let used: u64 = others.map(|(_, model)| bytes(model)).sum();
                let own = if rests { 0 } else { bytes(&model) };
                let used = used + own;
                // One that is woken has others evicted.
                let fits = told || used <= agent.capacity;
                assert!(
                    fits || self.late,
                    "{key:?} is asked to hold {used} of {} bytes",
                    agent.capacity
                );
                if fits {
                    agent.models.insert(entry, model);
                    Report::Loaded
                } else {
                    Report::LoadFailMemory
                }
            }
            (Operation::LoadModel, false) => Report::LoadFailed,
            (_, true) => {
                let own = self.envoy.get(name.as_str()).into_iter();
                let own = own.flat_map(|route| &route.splits);
                let shares = self.filter.values().flat_map(|route| {
                    let candidates = route.candidates.iter().map(|one| (&one.name, &one.splits));
                    let mirror = route.mirror.iter().map(|one| (&one.name, &one.splits));
                    candidates.chain(mirror)
                });
                let shares = shares.filter(|(model, _)| ***model == *name);
                let routed = own
                    .chain(shares.flat_map(|(_, splits)| splits))
                    .any(|split| {
                        split.version == version.version
                            && split.replicas.server == key.server
                            && split.replicas.replicas.contains(&key.replica)
                    });
                assert!(
                    !routed,
                    "{name}:{} is unloaded from {key:?} while the Envoy uses it",
                    version.version
                );
                agent.models.remove(&entry);
                agent.resting.remove(&entry);
                Report::Unloaded
            }
            (_, false) => Report::UnloadFailed,
        };
        self.report(key, &name, version.version, event);
        true
    }

    pub fn report(&mut self, key: &AgentKey, model: &str, version: u32, event: Report) {
        let message = if matches!(event, Report::LoadFailed) {
            "the artefact is broken"
        } else {
            ""
        };
        // What the scheduler answers is for the agent's log.
        let _ = self.step(Event::AgentReported(Box::new(ModelEventMessage {
            server_name: key.server.to_string(),
            replica_idx: key.replica,
            model_name: model.into(),
            model_version: version,
            event: event.into(),
            message: message.into(),
            ..ModelEventMessage::default()
        })));
    }

    /// The Envoy keeps the route it has from now on, or takes the newest after all.
    fn refuse(&mut self, model: &str, refused: bool) {
        if refused {
            self.rejected.insert(model.to_owned());
        } else if self.rejected.remove(model) {
            match self
                .state
                .route(model)
                .filter(|_| self.state.synchronised())
            {
                Some(route) => drop(self.envoy.insert(route.model.clone(), route)),
                None => drop(self.envoy.remove(model)),
            }
        }
    }

    /// The Envoy takes the newest world.
    pub fn acknowledge(&mut self) {
        let generation = self.state.generation();
        if self.state.synchronised() {
            let kept = std::mem::take(&mut self.envoy);
            for route in self.state.routes() {
                let former = kept.get(&route.model).cloned();
                let taken = match self.rejected.contains(&*route.model) {
                    true => former,
                    false => Some(route),
                };
                self.envoy
                    .extend(taken.map(|route| (route.model.clone(), route)));
            }
            let names = self.state.experiment_names();
            let routes = names.filter_map(|name| self.state.experiment_route(name));
            self.filter = routes.map(|route| (route.name.clone(), route)).collect();
            self.step(Event::RoutesAcknowledged {
                serving: generation,
                released: generation,
            })
            .unwrap();
        }
    }

    pub fn advance(&mut self, span: Duration) {
        let end = self.now + span;
        self.late |= span > Duration::from_secs(3600);
        while let Some(deadline) = self
            .state
            .next_deadline()
            .filter(|deadline| *deadline <= end)
        {
            self.now = self.now.max(deadline);
            self.step(Event::Tick).unwrap();
        }
        self.now = end;
    }

    /// The scheduler is killed and starts again; nobody has connected yet.
    pub fn restart(&mut self) {
        // What an Envoy refuses is found out anew: it is told of everything again.
        self.rejected.clear();
        for agent in self.agents.values_mut() {
            agent.stream = None;
            agent.inbox.clear();
        }
        self.state = State::new(
            self.config.clone(),
            Now {
                monotonic: self.now,
                wall: self.now,
            },
        );
        let records = self
            .models_stored
            .values()
            .chain(self.servers_stored.values())
            .chain(self.experiments_stored.values())
            .cloned()
            .collect();
        self.step(Event::Restored(records)).unwrap();
    }

    /// Everybody does what is asked until nothing is left to do.
    pub fn settle(&mut self) {
        let keys: Vec<AgentKey> = self.agents.keys().cloned().collect();
        for _ in 0..200 {
            let generation = self.state.generation();
            let mut busy = false;
            for key in &keys {
                while self.work(key, true) {
                    busy = true;
                }
            }
            self.acknowledge();
            if self
                .state
                .next_deadline()
                .is_some_and(|deadline| deadline <= self.now)
            {
                self.step(Event::Tick).unwrap();
                busy = true;
            }
            let inboxes = self.agents.values().any(|agent| !agent.inbox.is_empty());
            if !busy && !inboxes && generation == self.state.generation() {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    pub fn status(&self, name: &str) -> (ModelState, String) {
        let status = self
            .state
            .model_status(name, false, Now::default())
            .unwrap();
        let state = status.versions[0].state.clone().unwrap();
        (state.state(), state.reason)
    }

    pub fn state_of(&self, name: &str) -> ModelState {
        self.status(name).0
    }

    /// The route as `version@server[replicas]*weight`.
    pub fn route(&self, name: &str) -> Vec<String> {
        let splits = self
            .state
            .route(name)
            .map(|route| route.splits)
            .unwrap_or_default();
        splits
            .iter()
            .map(|split| {
                let replicas: Vec<String> =
                    split.replicas.replicas.iter().map(u32::to_string).collect();
                format!(
                    "{}@{}[{}]*{}",
                    split.version,
                    split.replicas.server,
                    replicas.join(","),
                    split.weight
                )
            })
            .collect()
    }
}

pub fn bytes(model: &Model) -> u64 {
    model
        .model_spec
        .as_ref()
        .and_then(|spec| spec.memory_bytes)
        .unwrap_or(0)
}
