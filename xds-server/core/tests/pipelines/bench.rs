//! A state with scripted workers and one Envoy.
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use Worker::{Engine, ModelGateway, PipelineGateway};
use seldon_core::{
    Config, Effect, Endpoint, Event, Now, Order, Record, State, Synchronisation, Worker, invariants,
};
use seldon_proto::{
    chainer::{
        PipelineUpdateMessage, PipelineUpdateStatusMessage,
        pipeline_update_message::PipelineOperation,
    },
    scheduler::{
        DataflowSpec, MetaData, Model, ModelSpec, ModelUpdateMessage, ModelUpdateStatusMessage,
        Pipeline, PipelineOutput, PipelineStep, PipelineVersionState,
        pipeline_version_state::PipelineStatus,
    },
};

pub(crate) fn step(name: &str, inputs: &[&str]) -> PipelineStep {
    PipelineStep {
        name: name.into(),
        inputs: inputs.iter().map(|text| (*text).to_owned()).collect(),
        ..Default::default()
    }
}

pub(crate) fn pipeline(name: &str, steps: Vec<PipelineStep>) -> Pipeline {
    let last = steps.last().map(|step| step.name.clone());
    Pipeline {
        name: name.into(),
        steps,
        output: Some(PipelineOutput {
            steps: last.into_iter().collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn chain(name: &str) -> Pipeline {
    pipeline(name, vec![step("a", &[]), step("b", &["a"])])
}

pub(crate) type Key = (Worker, Arc<str>);

#[derive(Default)]
pub(crate) struct Hand {
    pub(crate) stream: Option<u64>,
    pub(crate) inbox: VecDeque<Order>,
    /// Pipelines (or models) and versions that it has; gateways have no versions.
    pub(crate) has: BTreeSet<(String, u32)>,
}

pub(crate) struct Bench {
    pub(crate) state: State,
    pub(crate) config: Config,
    pub(crate) now: Duration,
    pub(crate) workers: BTreeMap<Key, Hand>,
    pub(crate) stored: BTreeMap<Arc<str>, Record>,
    pub(crate) models: BTreeMap<Arc<str>, Record>,
    pub(crate) streams: u64,
    pub(crate) envoy: BTreeMap<Arc<str>, BTreeSet<u32>>,
    /// Of models and pipelines, such as `model.a`.
    pub(crate) topics: BTreeSet<String>,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let config = Config::new(Synchronisation::AfterTimeout(Duration::ZERO));
        let mut bench = Bench {
            state: State::new(config.clone(), Now::default()),
            config,
            now: Duration::from_secs(1),
            workers: BTreeMap::new(),
            stored: BTreeMap::new(),
            models: BTreeMap::new(),
            streams: 0,
            envoy: BTreeMap::new(),
            topics: BTreeSet::new(),
        };
        bench.step(Event::Tick).unwrap();
        bench
    }

    /// With one of each worker.
    pub(crate) fn whole() -> Bench {
        let mut bench = Bench::new();
        bench.connect(Engine, "engine-0");
        bench.connect(ModelGateway, "mg-0");
        bench.connect(PipelineGateway, "pg-0");
        bench
    }

    pub(crate) fn step(&mut self, event: Event) -> Result<(), seldon_core::Refusal> {
        let text = format!("{event:?}");
        let before = self.state.generation();
        let now = Now {
            monotonic: self.now,
            wall: self.now,
        };
        let outcome = self.state.step(event, now);
        let mut grown = 0;
        for effect in outcome.effects {
            match effect {
                Effect::Persist(record) => match &record {
                    Record::Pipeline { name, .. } => drop(self.stored.insert(name.clone(), record)),
                    Record::Model { name, .. } => drop(self.models.insert(name.clone(), record)),
                    _ => {}
                },
                Effect::ForgetPipeline(name) => drop(self.stored.remove(&name)),
                Effect::ForgetModel(name) => drop(self.models.remove(&name)),
                Effect::Tell {
                    worker,
                    stream,
                    name,
                    message,
                } => {
                    let hand = self.workers.get_mut(&(worker, name)).unwrap();
                    assert_eq!(hand.stream, Some(stream), "an order for a lost stream");
                    hand.inbox.push_back(message);
                }
                Effect::RouteChanged(_)
                | Effect::EndpointsChanged(_)
                | Effect::ExperimentRouted(_) => grown += 1,
                _ => {}
            }
        }
        if let Err(broken) = invariants::check(&self.state) {
            panic!("{broken}\nafter {text}");
        }
        assert_eq!(self.state.generation() - before, grown, "after {text}");
        outcome.reply
    }

    pub(crate) fn connect(&mut self, worker: Worker, name: &str) {
        self.streams += 1;
        let hand = self.workers.entry((worker, name.into())).or_default();
        hand.stream = Some(self.streams);
        hand.inbox.clear();
        let endpoint = (worker == PipelineGateway).then(|| Endpoint {
            replica: 0,
            host: name.into(),
            http_port: 9010,
            grpc_port: 9011,
            over_committed: false,
        });
        self.step(Event::WorkerConnected {
            worker,
            stream: self.streams,
            name: name.into(),
            endpoint,
        })
        .unwrap();
    }

    pub(crate) fn disconnect(&mut self, worker: Worker, name: &str) {
        let hand = self.workers.get_mut(&(worker, name.into())).unwrap();
        hand.inbox.clear();
        if let Some(stream) = hand.stream.take() {
            let name = name.into();
            self.step(Event::WorkerDisconnected {
                worker,
                stream,
                name,
            })
            .unwrap();
        }
    }

    pub(crate) fn load(&mut self, spec: Pipeline) -> Result<(), String> {
        let loaded = self.step(Event::LoadPipeline(Box::new(spec)));
        loaded.map_err(|refusal| refusal.to_string())
    }

    pub(crate) fn unload(&mut self, name: &str) -> Result<(), String> {
        let done = self.step(Event::UnloadPipeline { name: name.into() });
        done.map_err(|refusal| refusal.to_string())
    }

    pub(crate) fn load_model(&mut self, name: &str) {
        self.load_cleaning(name, false);
    }

    /// Loads a model; `clean`: its topics are to go with it.
    pub(crate) fn load_cleaning(&mut self, name: &str, clean: bool) {
        let model = Model {
            meta: Some(MetaData {
                name: name.into(),
                ..Default::default()
            }),
            model_spec: Some(ModelSpec::default()),
            dataflow_spec: clean.then_some(DataflowSpec {
                clean_topics_on_delete: true,
            }),
            ..Default::default()
        };
        self.step(Event::LoadModel(Box::new(model))).unwrap();
    }

    pub(crate) fn unload_model(&mut self, name: &str) {
        self.step(unloading(name)).unwrap();
    }

    /// It may not be loaded.
    pub(crate) fn try_unload_model(&mut self, name: &str) {
        drop(self.step(unloading(name)));
    }

    /// Gateways that read a model's topics.
    pub(crate) fn reading(&self, model: &str) -> Vec<String> {
        let has = |hand: &Hand| hand.has.iter().any(|(name, _)| name == model);
        let all = self.workers.iter();
        let gateways = all.filter(|((kind, _), hand)| *kind == ModelGateway && has(hand));
        gateways.map(|((_, name), _)| name.to_string()).collect()
    }

    pub(crate) fn inbox(&self, worker: Worker, name: &str) -> &VecDeque<Order> {
        &self.workers[&(worker, Arc::from(name))].inbox
    }

    /// A worker acts on its oldest order; whether there was one. `heard`: the scheduler gets the answer.
    pub(crate) fn work(&mut self, worker: Worker, name: &str, success: bool, heard: bool) -> bool {
        let hand = self.workers.get_mut(&(worker, name.into())).unwrap();
        let Some(order) = hand.inbox.pop_front() else {
            return false;
        };
        let (create, delete) = (PipelineOperation::Create, PipelineOperation::Delete);
        let reason = if success { "" } else { "it broke" }.to_owned();
        let (object, made, update) = match order {
            Order::Update(update) => (
                (update.pipeline.clone(), update.version),
                update.op() == create,
                *update,
            ),
            Order::Pipeline(status) => {
                let made = status.operation == 1;
                let update = PipelineUpdateMessage {
                    op: if made { create } else { delete }.into(),
                    pipeline: status.pipeline_name.clone(),
                    timestamp: status.timestamp,
                    stream: name.to_owned(),
                    ..Default::default()
                };
                ((status.pipeline_name, 0), made, update)
            }
            Order::Model(status) => {
                let model = status.model_name.clone();
                if success && status.operation == 1 {
                    self.topics.insert(format!("model.{model}"));
                    hand.has.insert((model, 0));
                } else if success {
                    let latest = status.versions.last();
                    let spec = latest.and_then(|latest| latest.model_defn.as_ref());
                    let cleans = spec.is_some_and(|spec| spec.dataflow_spec.is_some());
                    if cleans && !status.keep_topics {
                        self.topics.remove(&format!("model.{model}"));
                    }
                    hand.has.remove(&(model, 0));
                }
                if heard {
                    let report = ModelUpdateStatusMessage {
                        update: Some(ModelUpdateMessage {
                            op: status.operation,
                            model: status.model_name,
                            timestamp: status.timestamp,
                            stream: name.to_owned(),
                            ..Default::default()
                        }),
                        success,
                        reason,
                    };
                    self.step(Event::ModelReported(Box::new(report))).unwrap();
                }
                return true;
            }
        };
        if success && made {
            if worker == Engine {
                self.topics.insert(format!("pipeline.{}", object.0));
            }
            hand.has.insert(object);
        } else if success {
            if worker == Engine && !update.updates.is_empty() {
                self.topics.remove(&format!("pipeline.{}", object.0));
            }
            if worker == PipelineGateway {
                let index = self.state.explain_pipeline(&object.0);
                assert!(index.is_some(), "{} is not known", object.0);
                let routed = self
                    .envoy
                    .get(object.0.as_str())
                    .cloned()
                    .unwrap_or_default();
                assert!(
                    !routed.contains(&ordinal(name)),
                    "{name} lets {} go",
                    object.0
                );
            }
            hand.has.remove(&object);
        }
        if heard {
            let report = PipelineUpdateStatusMessage {
                update: Some(update),
                success,
                reason,
            };
            let report = Box::new(report);
            self.step(Event::PipelineReported { worker, report })
                .unwrap();
        }
        true
    }

    /// The Envoy takes the newest world.
    pub(crate) fn acknowledge(&mut self) {
        if !self.state.synchronised() {
            return;
        }
        let generation = self.state.generation();
        self.envoy = self
            .state
            .routes()
            .filter(|route| route.pipeline)
            .map(|route| {
                let name = route.model.trim_end_matches(".pipeline").into();
                (name, route.splits[0].replicas.replicas.clone())
            })
            .collect();
        self.step(Event::RoutesAcknowledged {
            serving: generation,
            released: generation,
        })
        .unwrap();
    }

    pub(crate) fn settle(&mut self) {
        for _ in 0..100 {
            let generation = self.state.generation();
            let keys: Vec<Key> = self.workers.keys().cloned().collect();
            let mut busy = false;
            for (worker, name) in keys {
                while self.work(worker, &name, true, true) {
                    busy = true;
                }
            }
            self.acknowledge();
            let told = self.workers.values().any(|hand| !hand.inbox.is_empty());
            if !busy && !told && generation == self.state.generation() {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    pub(crate) fn advance(&mut self, span: Duration) {
        let end = self.now + span;
        let mut steps = 0;
        while let Some(due) = self.state.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.step(Event::Tick).unwrap();
            steps += 1;
            assert!(steps < 1000, "deadlines without end");
        }
        self.now = end;
    }

    pub(crate) fn restart(&mut self) {
        for hand in self.workers.values_mut() {
            hand.stream = None;
            hand.inbox.clear();
        }
        let now = Now {
            monotonic: self.now,
            wall: self.now,
        };
        self.state = State::new(self.config.clone(), now);
        let records = self.stored.values().chain(self.models.values());
        let records = records.cloned().collect();
        self.step(Event::Restored(records)).unwrap();
    }

    pub(crate) fn shown(&self, name: &str) -> PipelineVersionState {
        let status = self.state.pipeline_status(name, false).unwrap();
        status.versions[0].state.clone().unwrap()
    }

    pub(crate) fn states(&self, name: &str) -> (PipelineStatus, PipelineStatus) {
        let shown = self.shown(name);
        (shown.status(), shown.pipeline_gw_status())
    }

    pub(crate) fn ready(&self, name: &str) -> bool {
        let ready = PipelineStatus::PipelineReady;
        self.states(name) == (ready, ready)
    }

    pub(crate) fn route(&self, name: &str) -> BTreeSet<u32> {
        let route = self.state.route(&format!("{name}.pipeline"));
        route.map_or(BTreeSet::new(), |route| {
            route.splits[0].replicas.replicas.clone()
        })
    }

    /// Engines that run a pipeline, and with which versions.
    pub(crate) fn running(&self, name: &str) -> BTreeMap<String, Vec<u32>> {
        let engines = self
            .workers
            .iter()
            .filter(|((worker, _), _)| *worker == Engine);
        let of = engines.map(|((_, engine), hand)| {
            let versions = hand.has.iter().filter(|(known, _)| known == name);
            (
                engine.to_string(),
                versions.map(|(_, version)| *version).collect::<Vec<_>>(),
            )
        });
        of.filter(|(_, versions)| !versions.is_empty()).collect()
    }
}

fn unloading(model: &str) -> Event {
    Event::UnloadModel {
        name: model.into(),
        kubernetes_meta: None,
    }
}

pub(crate) fn ordinal(name: &str) -> u32 {
    name.rsplit('-').next().unwrap().parse().unwrap()
}
