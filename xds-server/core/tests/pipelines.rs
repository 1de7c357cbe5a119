//! Pipelines: validation, versions, workers that come and go, routes, and a restart; then random histories of all that.
#![allow(clippy::unwrap_used)] // a test may
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use Worker::{Engine, ModelGateway, PipelineGateway};
use proptest::prelude::*;
use seldon_core::{
    Config, Effect, Endpoint, Event, Now, Order, Record, State, Synchronisation, Worker, invariants,
};
use seldon_proto::{
    chainer::{
        PipelineUpdateMessage, PipelineUpdateStatusMessage,
        pipeline_update_message::PipelineOperation,
    },
    scheduler::{
        Batch, DataflowSpec, Experiment, ExperimentCandidate, KubernetesMeta, MetaData, Model,
        ModelSpec, ModelUpdateMessage, ModelUpdateStatusMessage, Pipeline, PipelineInput,
        PipelineOutput, PipelineStep, PipelineVersionState, ResourceType,
        pipeline_version_state::PipelineStatus,
    },
};

fn step(name: &str, inputs: &[&str]) -> PipelineStep {
    PipelineStep {
        name: name.into(),
        inputs: inputs.iter().map(|text| (*text).to_owned()).collect(),
        ..Default::default()
    }
}

fn pipeline(name: &str, steps: Vec<PipelineStep>) -> Pipeline {
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

fn chain(name: &str) -> Pipeline {
    pipeline(name, vec![step("a", &[]), step("b", &["a"])])
}

type Key = (Worker, Arc<str>);

#[derive(Default)]
struct Hand {
    stream: Option<u64>,
    inbox: VecDeque<Order>,
    /// Pipelines (or models) and versions that it has; gateways have no versions.
    has: BTreeSet<(String, u32)>,
}

struct Bench {
    state: State,
    config: Config,
    now: Duration,
    workers: BTreeMap<Key, Hand>,
    stored: BTreeMap<Arc<str>, Record>,
    models: BTreeMap<Arc<str>, Record>,
    streams: u64,
    envoy: BTreeMap<Arc<str>, BTreeSet<u32>>,
}

impl Bench {
    fn new() -> Bench {
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
        };
        bench.step(Event::Tick).unwrap();
        bench
    }

    /// With one of each worker.
    fn whole() -> Bench {
        let mut bench = Bench::new();
        bench.connect(Engine, "engine-0");
        bench.connect(ModelGateway, "mg-0");
        bench.connect(PipelineGateway, "pg-0");
        bench
    }

    fn step(&mut self, event: Event) -> Result<(), seldon_core::Refusal> {
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

    fn connect(&mut self, worker: Worker, name: &str) {
        self.streams += 1;
        let hand = self.workers.entry((worker, name.into())).or_default();
        hand.stream = Some(self.streams);
        hand.inbox.clear();
        let endpoint = (worker == PipelineGateway).then(|| Endpoint {
            replica: 0,
            host: name.into(),
            http_port: 9010,
            grpc_port: 9011,
        });
        self.step(Event::WorkerConnected {
            worker,
            stream: self.streams,
            name: name.into(),
            endpoint,
        })
        .unwrap();
    }

    fn disconnect(&mut self, worker: Worker, name: &str) {
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

    fn load(&mut self, spec: Pipeline) -> Result<(), String> {
        let loaded = self.step(Event::LoadPipeline(Box::new(spec)));
        loaded.map_err(|refusal| refusal.to_string())
    }

    fn unload(&mut self, name: &str) -> Result<(), String> {
        let done = self.step(Event::UnloadPipeline { name: name.into() });
        done.map_err(|refusal| refusal.to_string())
    }

    fn load_model(&mut self, name: &str) {
        let model = Model {
            meta: Some(MetaData {
                name: name.into(),
                ..Default::default()
            }),
            model_spec: Some(ModelSpec::default()),
            ..Default::default()
        };
        self.step(Event::LoadModel(Box::new(model))).unwrap();
    }

    /// A worker acts on its oldest order; whether there was one. `heard`: the scheduler gets the answer.
    fn work(&mut self, worker: Worker, name: &str, success: bool, heard: bool) -> bool {
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
            hand.has.insert(object);
        } else if success {
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
    fn acknowledge(&mut self) {
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

    fn settle(&mut self) {
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

    fn advance(&mut self, span: Duration) {
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

    fn restart(&mut self) {
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

    fn shown(&self, name: &str) -> PipelineVersionState {
        let status = self.state.pipeline_status(name, false).unwrap();
        status.versions[0].state.clone().unwrap()
    }

    fn states(&self, name: &str) -> (PipelineStatus, PipelineStatus) {
        let shown = self.shown(name);
        (shown.status(), shown.pipeline_gw_status())
    }

    fn ready(&self, name: &str) -> bool {
        let ready = PipelineStatus::PipelineReady;
        self.states(name) == (ready, ready)
    }

    fn route(&self, name: &str) -> BTreeSet<u32> {
        let route = self.state.route(&format!("{name}.pipeline"));
        route.map_or(BTreeSet::new(), |route| {
            route.splits[0].replicas.replicas.clone()
        })
    }

    /// Engines that run a pipeline, and with which versions.
    fn running(&self, name: &str) -> BTreeMap<String, Vec<u32>> {
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

fn ordinal(name: &str) -> u32 {
    name.rsplit('-').next().unwrap().parse().unwrap()
}

#[test]
fn all_mistakes_are_told_at_once() {
    let mut bench = Bench::new();
    let mut wrong = pipeline(
        "p",
        vec![
            step("a", &["b.outputs", "x.outputs.T", "a.inputs"]),
            step("b", &["a.output", "p.outputs"]),
            step("b", &[]),
            step("p", &[".t"]),
        ],
    );
    wrong.steps[0].triggers = vec!["b".into(), "gone.outputs".into()];
    wrong.steps[0].tensor_map = [("c.outputs.T".to_owned(), "U".to_owned())].into();
    wrong.steps[1].tensor_map = [("p.inputs".to_owned(), "U".to_owned())].into();
    wrong.steps[1].batch = Some(Batch {
        size: Some(0),
        window_ms: Some(0),
    });
    wrong.output.as_mut().unwrap().steps = vec!["nowhere".into(), "p".into()];
    wrong.input = Some(PipelineInput {
        external_triggers: vec!["p.outputs".into(), "q.step".into(), "q.else".into()],
        ..Default::default()
    });
    let text = bench.load(wrong).unwrap_err();
    for part in [
        "pipeline p is not valid",
        "step p has the name of the pipeline",
        "step b is there twice",
        "step a: input \"x.outputs.T\" names a step that is not there",
        "step a: input \"a.inputs\" is what the step itself is given",
        "step a has b.outputs as an input and as a trigger",
        "step a: trigger \"gone.outputs\" names a step that is not there",
        "step b: input \"a.output\" has \"output\" where inputs or outputs belongs",
        "step b: input \"p.outputs\" is the pipeline's own answer",
        "step b: the tensorMap key \"p.inputs\" names no tensor",
        "step b: batch.size must be",
        "step b: batch.windowMs must be",
        "step p: input \".t\" begins with a dot",
        "input has no externalInputs",
        "\"p.outputs\" in externalTriggers is of this pipeline itself",
        "\"q.step\" in externalTriggers names no step",
        "\"q.else\" in externalTriggers has \"else\" where inputs, outputs or step belongs",
        "output: \"nowhere\" names a step that is not there",
        "output: \"p\" is the pipeline itself",
    ] {
        assert!(text.contains(part), "{part}\nis missing in\n{text}");
    }
    let mut map = chain("q");
    map.steps[1].tensor_map = [("c.outputs.T".to_owned(), "U".to_owned())].into();
    assert_eq!(
        bench.load(map).unwrap_err(),
        "pipeline q is not valid: step b: the tensorMap key \"c.outputs.T\" names nothing that is read there: use a tensor of a.outputs"
    );
    assert!(
        bench
            .load(pipeline("Q_", vec![]))
            .unwrap_err()
            .contains("2 mistakes")
    );
    assert_eq!(bench.state.pipeline_names().count(), 0);
}

#[test]
fn cycles_need_leave_and_a_limit_and_never_cross_pipelines() {
    let mut bench = Bench::new();
    let mut looped = pipeline(
        "counter",
        vec![
            step("a", &["counter.inputs", "b.outputs"]),
            step("b", &["a.outputs.out"]),
        ],
    );
    looped.steps[1].triggers = vec!["a.outputs.go".into()];
    let text = bench.load(looped.clone()).unwrap_err();
    assert!(
        text.contains("-> ") && text.contains("set allowCycles"),
        "{text}"
    );
    looped.allow_cycles = true;
    assert!(
        bench
            .load(looped.clone())
            .unwrap_err()
            .contains("maxStepRevisits is 0")
    );
    looped.max_step_revisits = 100;
    bench.load(looped).unwrap();

    let fed = |name: &str, by: &str| Pipeline {
        input: Some(PipelineInput {
            external_inputs: vec![by.to_owned()],
            tensor_map: [(format!("{by}.outputs.T"), "U".to_owned())].into(),
            ..Default::default()
        }),
        ..pipeline(name, vec![step(&format!("{name}-step"), &[])])
    };
    bench.load(fed("one", "two")).unwrap(); // which is not there yet
    bench.load(fed("two", "three")).unwrap();
    let text = bench.load(fed("three", "one")).unwrap_err();
    assert!(text.contains("feed each other in a cycle"), "{text}");
    for name in ["one", "two", "three"] {
        assert!(text.contains(name), "{text}");
    }
    bench.load(fed("three", "counter")).unwrap();
}

#[test]
fn engines_are_told_topics_tensors_and_joins() {
    let mut bench = Bench::whole();
    let mut spec = pipeline(
        "p",
        vec![step("b", &["a.outputs.X", "p.inputs.Y"]), step("a", &[])],
    );
    spec.steps[0].triggers = vec!["a.outputs.ok".into()];
    spec.steps[0].tensor_map = [("a.outputs.X".to_owned(), "IN".to_owned())].into();
    spec.steps[0].batch = Some(Batch {
        size: Some(4),
        window_ms: Some(50),
    });
    spec.steps[0].inputs_join = 2;
    spec.input = Some(PipelineInput {
        external_inputs: vec!["q.step.s.outputs.T".into(), "r".into()],
        ..Default::default()
    });
    bench.load(spec).unwrap();
    let engine = bench.workers.get(&(Engine, "engine-0".into())).unwrap();
    let Some(Order::Update(order)) = engine.inbox.front() else {
        panic!("no order");
    };
    let topics = |topics: &[seldon_proto::chainer::PipelineTopic]| -> Vec<String> {
        let shown = topics.iter().map(|topic| {
            let tensor = topic.tensor.as_deref().unwrap_or("*");
            format!("{}/{}/{tensor}", topic.pipeline_name, topic.topic_name)
        });
        shown.collect()
    };
    let shown: Vec<(Vec<String>, String)> = order
        .updates
        .iter()
        .map(|update| {
            (
                topics(&update.sources),
                update.sink.clone().unwrap().topic_name,
            )
        })
        .collect();
    let t = |name: &str| format!("seldon.default.{name}");
    assert_eq!(
        shown,
        [
            (
                vec![format!("p/{}/*", t("pipeline.p.inputs"))],
                t("model.a.inputs")
            ),
            (
                vec![
                    format!("p/{}/X", t("model.a.outputs")),
                    format!("p/{}/Y", t("pipeline.p.inputs")),
                ],
                t("model.b.inputs"),
            ),
            (
                vec![
                    format!("q/{}/T", t("model.s.outputs")),
                    format!("r/{}/*", t("pipeline.r.outputs")),
                ],
                t("pipeline.p.inputs"),
            ),
            (
                vec![format!("p/{}/*", t("model.a.outputs"))],
                t("pipeline.p.outputs")
            ),
            (
                vec![format!("p/{}/*", t("errors.errors"))],
                t("pipeline.p.outputs")
            ),
        ]
    );
    let second = &order.updates[1];
    assert_eq!(
        second.tensor_map[0].topic_and_tensor,
        t("model.a.outputs.X")
    );
    assert_eq!(
        topics(&second.triggers),
        [format!("p/{}/ok", t("model.a.outputs"))]
    );
    assert_eq!((second.input_join_ty, second.triggers_join_ty), (3, 1));
    assert_eq!(second.batch.unwrap().window_ms, Some(50));
    assert_eq!((order.version, &*order.stream), (1, "engine-0"));
    assert!(!order.uid.is_empty() && order.timestamp > 0);
}

#[test]
fn a_pipeline_is_ready_when_its_workers_and_envoys_have_it_and_says_what_models_lack() {
    let mut bench = Bench::new();
    bench.load(chain("p")).unwrap();
    assert_eq!(bench.states("p").0, PipelineStatus::PipelineCreate);
    assert_eq!(bench.shown("p").reason, "no dataflow engine is available");
    bench.connect(PipelineGateway, "pg-0");
    bench.settle();
    assert!(bench.route("p").is_empty(), "no engine has it yet");
    bench.connect(Engine, "engine-0");
    assert!(bench.work(Engine, "engine-0", false, true));
    assert_eq!(bench.states("p").0, PipelineStatus::PipelineFailed);
    assert!(bench.shown("p").reason.contains("engine-0: it broke"));
    bench.advance(bench.config.retry_first);
    assert!(bench.work(Engine, "engine-0", true, true));
    assert_eq!(bench.route("p"), [0].into());
    assert!(!bench.ready("p"), "Envoys have yet to take the route");
    bench.acknowledge();
    assert!(bench.ready("p"));
    let shown = bench.shown("p");
    assert!(!shown.models_ready);
    assert!(
        shown.reason.starts_with("created pipeline: 1/1 ready"),
        "{}",
        shown.reason
    );
    assert!(
        shown.reason.contains("model a is not loaded"),
        "{}",
        shown.reason
    );
    let why = bench.state.explain_pipeline("p").unwrap();
    assert_eq!((why.steps.len(), why.workers.len()), (2, 2));
    assert_eq!(why.steps[1].waits_for, "model b is not loaded");
}

#[test]
fn an_order_without_an_answer_is_repeated_and_older_answers_do_not_count() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    assert!(bench.work(Engine, "engine-0", true, false));
    bench.advance(bench.config.order_timeout);
    assert!(bench.shown("p").reason.contains("did not answer in time"));
    bench.advance(bench.config.retry_first);
    bench.settle();
    assert!(bench.ready("p"));
    let report = |timestamp, stream: &str| PipelineUpdateStatusMessage {
        update: Some(PipelineUpdateMessage {
            op: PipelineOperation::Create.into(),
            pipeline: "p".into(),
            version: 1,
            timestamp,
            stream: stream.to_owned(),
            ..Default::default()
        }),
        success: false,
        reason: "late".into(),
    };
    for report in [
        report(1, "engine-0"),
        report(u64::MAX, "engine-0"),
        report(1, "x"),
    ] {
        let report = Box::new(report);
        bench
            .step(Event::PipelineReported {
                worker: Engine,
                report,
            })
            .unwrap();
    }
    assert!(bench.ready("p"));
}

#[test]
fn a_new_version_runs_before_the_old_one_ends() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    bench.settle();
    let first = bench.state.pipeline_status("p", false).unwrap();
    bench.load(chain("p")).unwrap();
    assert!(bench.work(PipelineGateway, "pg-0", true, true));
    assert_eq!(bench.running("p")["engine-0"], [1]);
    assert_eq!(bench.route("p"), [0].into());
    let Record::Pipeline { versions, .. } = &bench.stored["p"] else {
        panic!("another record");
    };
    assert_eq!(versions.len(), 2);
    bench.settle();
    assert_eq!(bench.running("p")["engine-0"], [2]);
    assert!(bench.ready("p"));
    let all = bench.state.pipeline_status("p", true).unwrap();
    let states: Vec<PipelineStatus> = all
        .versions
        .iter()
        .map(|version| version.state.clone().unwrap().status())
        .collect();
    assert_eq!(
        states,
        [
            PipelineStatus::PipelineTerminated,
            PipelineStatus::PipelineReady
        ]
    );
    let uid = |status: &seldon_proto::scheduler::PipelineStatusResponse, at: usize| {
        status.versions[at].pipeline.clone().unwrap().uid
    };
    assert_ne!(uid(&first, 0), uid(&all, 1));
    // The same generation of a manifest is the same wish.
    let mut spec = chain("p");
    spec.kubernetes_meta = Some(KubernetesMeta {
        generation: 7,
        ..Default::default()
    });
    bench.load(spec.clone()).unwrap();
    bench.settle();
    bench.load(spec).unwrap();
    assert_eq!(bench.shown("p").pipeline_version, 3);
}

#[test]
fn unloading_takes_the_route_first_and_topics_last() {
    let mut bench = Bench::whole();
    let mut spec = chain("p");
    spec.dataflow_spec = Some(DataflowSpec {
        clean_topics_on_delete: true,
    });
    bench.load(spec.clone()).unwrap();
    bench.settle();
    bench.unload("p").unwrap();
    assert!(bench.route("p").is_empty());
    assert!(
        bench.workers.values().all(|hand| hand.inbox.is_empty()),
        "Envoys may still ask"
    );
    bench.acknowledge();
    let engine = (Engine, Arc::from("engine-0"));
    assert!(
        bench.workers[&engine].inbox.is_empty(),
        "the gateway may still wait"
    );
    assert!(bench.work(PipelineGateway, "pg-0", true, true));
    let Some(Order::Update(order)) = bench.workers[&engine].inbox.front() else {
        panic!("no order");
    };
    assert_eq!(
        (order.op(), order.updates.len()),
        (PipelineOperation::Delete, 1)
    );
    assert!(bench.unload("p").unwrap_err().contains("being removed"));
    // Asked for again meanwhile, it begins anew when the former one has ended.
    bench.load(spec).unwrap();
    assert_eq!(bench.shown("p").pipeline_version, 1);
    assert!(bench.shown("p").reason.contains("former"));
    bench.settle();
    assert!(bench.ready("p"));
    assert_eq!(bench.running("p")["engine-0"], [1]);
    bench.unload("p").unwrap();
    bench.settle();
    assert_eq!(bench.states("p").0, PipelineStatus::PipelineTerminated);
    assert_eq!(bench.shown("p").reason, "pipeline removed");
    assert!(bench.stored.is_empty() && bench.running("p").is_empty());
    assert!(bench.unload("p").unwrap_err().contains("not known"));
    bench.advance(bench.config.keep_terminated);
    assert_eq!(bench.state.pipeline_names().count(), 0);
}

#[test]
fn an_engine_that_comes_takes_over_only_after_the_former_let_go() {
    let mut bench = Bench::whole();
    let names: Vec<String> = (0..8).map(|number| format!("p{number}")).collect();
    for name in &names {
        bench.load(chain(name)).unwrap();
    }
    bench.settle();
    bench.connect(Engine, "engine-1");
    let second = (Engine, Arc::from("engine-1"));
    assert!(bench.workers[&second].inbox.is_empty());
    let moving = bench.workers[&(Engine, Arc::from("engine-0"))].inbox.len();
    assert!((1..8).contains(&moving), "{moving} of 8 move");
    bench.settle();
    assert_eq!(bench.workers[&second].has.len(), moving);
    for name in &names {
        assert!(
            bench.ready(name) && bench.running(name).len() == 1,
            "{name}"
        );
    }
    // It is lost: for a while it keeps what it owns, then it is replaced.
    bench.disconnect(Engine, "engine-1");
    assert!(names.iter().all(|name| bench.ready(name)));
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert_eq!(bench.workers[&(Engine, Arc::from("engine-0"))].has.len(), 8);
    // It comes back and still runs what others run now: nobody else is told before it is clear.
    bench.connect(Engine, "engine-1");
    bench.settle();
    for name in &names {
        assert!(
            bench.ready(name) && bench.running(name).len() == 1,
            "{name}"
        );
    }
    // One that does not answer is waited for, but not for ever.
    bench.disconnect(Engine, "engine-1");
    bench.advance(bench.config.replace_after);
    bench.settle();
    bench.connect(Engine, "engine-2");
    bench.advance(bench.config.replace_after * 3);
    let third = (Engine, Arc::from("engine-2"));
    assert!(!bench.workers[&third].inbox.is_empty());
}

#[test]
fn gateways_share_pipelines_and_leave_routes_before_they_let_go() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    bench.settle();
    for gateway in ["pg-1", "pg-2", "pg-3"] {
        bench.connect(PipelineGateway, gateway);
        assert!(!bench.route("p").is_empty());
    }
    bench.settle();
    let owners = bench.route("p");
    assert_eq!(owners.len(), 2, "as many as are of use");
    assert!(bench.ready("p"));
    let holders = |bench: &Bench| -> BTreeSet<u32> {
        let gateways = bench
            .workers
            .iter()
            .filter(|((kind, _), _)| *kind == PipelineGateway);
        let having = gateways.filter(|(_, hand)| !hand.has.is_empty());
        having.map(|((_, name), _)| ordinal(name)).collect()
    };
    assert_eq!(holders(&bench), owners);
    // One that is lost is left out at once, and replaced after a while.
    let lost = *owners.first().unwrap();
    bench.disconnect(PipelineGateway, &format!("pg-{lost}"));
    assert_eq!(bench.route("p").len(), 1);
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert_eq!(bench.route("p").len(), 2);
    assert!(!bench.route("p").contains(&lost));
    bench.step(Event::Shards(3)).unwrap();
    bench.settle();
    assert_eq!(bench.route("p").len(), 3);
    // All are lost, as when only the scheduler is cut off: the route stays.
    for gateway in 0..4 {
        bench.disconnect(PipelineGateway, &format!("pg-{gateway}"));
    }
    assert!(!bench.route("p").is_empty());
    bench.advance(Duration::from_secs(300));
    assert!(!bench.route("p").is_empty());
}

#[test]
fn a_restart_tears_nothing_down() {
    let mut bench = Bench::whole();
    bench.connect(Engine, "engine-1");
    bench.connect(PipelineGateway, "pg-1");
    let mut looped = chain("p");
    (looped.allow_cycles, looped.max_step_revisits) = (true, 9);
    looped.dataflow_spec = Some(DataflowSpec {
        clean_topics_on_delete: true,
    });
    bench.load(looped.clone()).unwrap();
    bench.load(chain("q")).unwrap();
    bench.settle();
    bench.load(looped).unwrap();
    bench.restart();
    for engine in ["engine-0", "engine-1"] {
        bench.connect(Engine, engine);
    }
    for gateway in ["pg-0", "pg-1"] {
        bench.connect(PipelineGateway, gateway);
    }
    assert!(
        !bench.state.synchronised(),
        "Envoys would lose their routes"
    );
    bench.settle();
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert!(bench.state.synchronised());
    bench.settle();
    for name in ["p", "q"] {
        assert!(bench.ready(name), "{name} {:?}", bench.shown(name));
        assert_eq!(bench.running(name).len(), 1);
        assert_eq!(bench.route(name).len(), 2);
    }
    assert_eq!(bench.shown("p").pipeline_version, 2);
    let kept = bench.state.pipeline_status("p", false).unwrap();
    let kept = kept.versions[0].pipeline.clone().unwrap();
    assert!(kept.allow_cycles && kept.max_step_revisits == 9 && kept.dataflow_spec.is_some());
    // Without any worker Envoys are served in the end.
    bench.restart();
    bench.advance(bench.config.replace_after * 2);
    assert!(bench.state.synchronised());
}

#[test]
fn models_have_one_gateway_each_and_do_not_depend_on_it() {
    let mut bench = Bench::new();
    bench.load_model("a");
    let gateway = |bench: &Bench| {
        let status = bench
            .state
            .model_status("a", false, Now::default())
            .unwrap();
        status.versions[0].state.clone().unwrap().model_gw_state()
    };
    use seldon_proto::scheduler::model_status::ModelState::*;
    assert_eq!(gateway(&bench), ModelCreate);
    bench.connect(ModelGateway, "mg-0");
    assert_eq!(gateway(&bench), ModelProgressing);
    assert!(bench.work(ModelGateway, "mg-0", false, true));
    assert_eq!(gateway(&bench), ModelFailed);
    bench.advance(bench.config.retry_first);
    bench.settle();
    assert_eq!(gateway(&bench), ModelAvailable);
    bench.disconnect(ModelGateway, "mg-0");
    bench.connect(ModelGateway, "mg-1");
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert_eq!(gateway(&bench), ModelAvailable);
    bench
        .step(Event::UnloadModel {
            name: "a".into(),
            kubernetes_meta: None,
        })
        .unwrap();
    bench.settle();
    bench.connect(ModelGateway, "mg-0");
    bench.settle();
    assert_eq!(gateway(&bench), ModelTerminated);
}

#[test]
fn on_demand_only_models_that_pipelines_use_have_topics() {
    let mut bench = Bench::new();
    bench.config.topics_on_demand = true;
    bench.state = State::new(bench.config.clone(), Now::default());
    bench.step(Event::Tick).unwrap();
    bench.connect(ModelGateway, "mg-0");
    bench.load_model("a");
    bench.load_model("c");
    let key = (ModelGateway, Arc::from("mg-0"));
    assert!(bench.workers[&key].inbox.is_empty());
    bench.load(chain("p")).unwrap();
    assert_eq!(bench.workers[&key].inbox.len(), 1);
    bench.settle();
    bench.unload("p").unwrap();
    assert_eq!(bench.workers[&key].inbox.len(), 1);
}

#[test]
fn experiments_split_pipelines() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    bench.load(pipeline("q", vec![step("c", &[])])).unwrap();
    let candidates = ["p", "q"].map(|name| ExperimentCandidate {
        name: name.into(),
        weight: 50,
    });
    let spec = Experiment {
        name: "e".into(),
        default: Some("p".into()),
        candidates: candidates.into(),
        resource_type: ResourceType::Pipeline.into(),
        ..Default::default()
    };
    bench.step(Event::StartExperiment(Box::new(spec))).unwrap();
    let status = bench.state.experiment_status("e").unwrap();
    assert!(
        !status.active
            && status
                .status_description
                .contains("pipeline p is not ready")
    );
    bench.settle();
    bench.settle();
    assert!(bench.state.experiment_status("e").unwrap().active);
    let route = bench.state.experiment_route("e").unwrap();
    assert!(route.pipelines && route.candidates.len() == 2);
    assert_eq!(route.endpoint.as_deref(), Some("p.pipeline"));
    let p = bench.state.route("p.pipeline").unwrap();
    assert!(p.candidate && p.split_by.as_deref() == Some("e"));
    bench.unload("q").unwrap();
    let route = bench.state.experiment_route("e").unwrap();
    assert_eq!(route.candidates.len(), 1);
    bench
        .step(Event::StopExperiment { name: "e".into() })
        .unwrap();
    assert!(bench.state.route("p.pipeline").unwrap().split_by.is_none());
}

#[derive(Clone, Debug)]
enum Deed {
    Load(u8),
    Unload(u8),
    Connect(u8),
    Disconnect(u8),
    Work(u8, bool, bool),
    Acknowledge,
    Wait(u16),
    Restart,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (0u8..3).prop_map(Deed::Load),
        2 => (0u8..3).prop_map(Deed::Unload),
        3 => (0u8..7).prop_map(Deed::Connect),
        2 => (0u8..7).prop_map(Deed::Disconnect),
        12 => (0u8..7, prop::bool::weighted(0.85), prop::bool::weighted(0.85))
            .prop_map(|(at, success, heard)| Deed::Work(at, success, heard)),
        4 => Just(Deed::Acknowledge),
        3 => (1u16..90).prop_map(Deed::Wait),
        1 => Just(Deed::Restart),
    ]
}

const WORKERS: [(Worker, &str); 7] = [
    (Engine, "engine-0"),
    (Engine, "engine-1"),
    (Engine, "engine-2"),
    (PipelineGateway, "pg-0"),
    (PipelineGateway, "pg-1"),
    (PipelineGateway, "pg-2"),
    (ModelGateway, "mg-0"),
];

fn act(bench: &mut Bench, deed: Deed) {
    let (worker, name) = match &deed {
        Deed::Connect(at) | Deed::Disconnect(at) | Deed::Work(at, _, _) => WORKERS[*at as usize],
        _ => WORKERS[0],
    };
    let known = bench.workers.contains_key(&(worker, name.into()));
    match deed {
        Deed::Load(which) => {
            let name = format!("p{which}");
            // What a worker that is away has of a life that has ended is not remembered beyond a restart in the next.
            let status = bench.state.pipeline_status(&name, false);
            let ended = status.is_some_and(|_| bench.shown(&name).reason.contains("removed"));
            let mut away = bench.workers.values().filter(|hand| hand.stream.is_none());
            let kept = away.any(|hand| hand.has.iter().any(|(known, _)| *known == name));
            if !(ended && kept) {
                bench.load(chain(&name)).unwrap();
            }
        }
        Deed::Unload(which) => drop(bench.unload(&format!("p{which}"))),
        Deed::Connect(_) => bench.connect(worker, name),
        Deed::Disconnect(_) if known => bench.disconnect(worker, name),
        Deed::Work(_, success, heard) if known => drop(bench.work(worker, name, success, heard)),
        Deed::Acknowledge => bench.acknowledge(),
        Deed::Wait(seconds) => bench.advance(Duration::from_secs(seconds.into())),
        Deed::Restart => {
            let names = bench.state.pipeline_names();
            let begins = |name: &Arc<str>| bench.shown(name).reason.contains("former");
            let waiting = names.filter(|name| begins(name)).count();
            // As above.
            if waiting == 0 {
                bench.restart();
            }
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Whatever happens, in the end every pipeline runs on one engine and answers on gateways that have it.
    #[test]
    fn everything_is_ready_in_the_end(deeds in prop::collection::vec(deed(), 1..60)) {
        let mut bench = Bench::whole();
        bench.load_model("a");
        for deed in deeds {
            act(&mut bench, deed);
        }
        for (worker, name) in WORKERS {
            bench.connect(worker, name);
        }
        for _ in 0..12 {
            bench.settle();
            bench.advance(Duration::from_secs(150));
        }
        bench.settle();
        let names: Vec<Arc<str>> = bench.state.pipeline_names().cloned().collect();
        for name in names {
            let gone = bench.states(&name).0 == PipelineStatus::PipelineTerminated;
            let running = bench.running(&name);
            if gone {
                prop_assert!(running.is_empty(), "{name} is gone and runs on {running:?}");
                continue;
            }
            prop_assert!(bench.ready(&name), "{name}: {:?}", bench.state.explain_pipeline(&name));
            prop_assert_eq!(running.len(), 1, "{} runs on {:?}", name, running);
            let version = bench.shown(&name).pipeline_version;
            prop_assert_eq!(running.into_values().next().unwrap(), vec![version]);
            let route = bench.route(&name);
            prop_assert_eq!(route.len(), 2);
            for ((worker, gateway), hand) in &bench.workers {
                let has = hand.has.iter().any(|(known, _)| **known == *name);
                if *worker == PipelineGateway {
                    prop_assert_eq!(has, route.contains(&ordinal(gateway)), "{} of {}", gateway, name);
                }
            }
        }
    }
}

/// A load and its orders cost as much among 4,000 pipelines as among a few.
#[test]
fn a_step_does_not_cost_more_where_there_are_many() {
    let config = Config::new(Synchronisation::AfterTimeout(Duration::ZERO));
    let mut state = State::new(config, Now::default());
    let now = Now {
        monotonic: Duration::from_secs(1),
        wall: Duration::from_secs(1),
    };
    for (stream, worker) in [(1, Engine), (2, PipelineGateway)] {
        let endpoint = (worker == PipelineGateway).then(|| Endpoint {
            replica: 0,
            host: "pg-0".into(),
            http_port: 9010,
            grpc_port: 9011,
        });
        let event = Event::WorkerConnected {
            worker,
            stream,
            name: "one-0".into(),
            endpoint,
        };
        state.step(event, now).reply.unwrap();
    }
    let mut load = |from: usize| {
        let begun = std::time::Instant::now();
        for number in from..from + 500 {
            let name = format!("p{number}");
            let spec = pipeline(&name, vec![step(&format!("m{number}"), &[])]);
            let outcome = state.step(Event::LoadPipeline(Box::new(spec)), now);
            let orders = outcome
                .effects
                .into_iter()
                .filter_map(|effect| match effect {
                    Effect::Tell {
                        message: Order::Update(update),
                        ..
                    } => Some(*update),
                    _ => None,
                });
            for update in orders.collect::<Vec<_>>() {
                let report = Box::new(PipelineUpdateStatusMessage {
                    update: Some(update),
                    success: true,
                    reason: String::new(),
                });
                let event = Event::PipelineReported {
                    worker: Engine,
                    report,
                };
                state.step(event, now).reply.unwrap();
            }
        }
        begun.elapsed()
    };
    let first = load(0).min(load(500));
    for from in (1000..3000).step_by(500) {
        load(from);
    }
    let last = load(3000).min(load(3500));
    println!("500 pipelines: {first:?} as the first, {last:?} as the last of 4000");
    assert!(last < first * 4, "{first:?} became {last:?}");
}
