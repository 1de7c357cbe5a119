//! How long one step of the scheduler's rules takes at ten thousand models: the state that the scheduler has, driven in this
//! process by scripted agents and an Envoy that takes everything at once, each step by itself measured.
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use seldon_core::{AgentKey, Config, Effect, Event, Now, State, Synchronisation};
use seldon_proto::{
    agent::{
        AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage, ModelVersion,
        ReplicaConfig, model_event_message::Event as Outcome, model_operation_message::Operation,
    },
    scheduler::{DeploymentSpec, MetaData, Model, ModelSpec},
};

use crate::{dice::Dice, report::Report};

use super::{REPLICAS, SECTION};

/// Changes that are measured.
const CHANGES: usize = 5_000;
/// How often the whole history is run.
const ROUNDS: usize = 3;
const SERVER: &str = "mlserver";
const MEMORY: u64 = 1 << 30;

/// Steps in the order in which they were taken: what kind, and microseconds.
type Steps = Vec<(&'static str, f64)>;

/// Runs the part.
pub(super) fn run(models: usize, report: &mut Report) -> Result<()> {
    let (mut small, mut large, held) = history(models)?;
    for _ in 1..ROUNDS {
        let (again, again_large, _) = history(models)?;
        least(&mut small, &again)?;
        least(&mut large, &again_large)?;
    }
    changes(&small, models, report);
    let what =
        format!("rules: longest step when a replica of {held} models is lost and comes back");
    let longest = large.iter().max_by(|one, other| one.1.total_cmp(&other.1));
    let (kind, longest) = longest.context("no steps")?;
    report.shown(SECTION, format!("{what} ({kind})"), longest / 1e3, "ms");
    report.shown(
        SECTION,
        "rules: the same, a model of it",
        longest / held as f64,
        "µs",
    );
    Ok(())
}

/// The same history has the same steps. Its least time is a step's own; the rest was other processes'.
fn least(steps: &mut Steps, again: &Steps) -> Result<()> {
    ensure!(steps.len() == again.len(), "the history is another one");
    for (step, again) in steps.iter_mut().zip(again) {
        step.1 = step.1.min(again.1);
    }
    Ok(())
}

/// Steps of changes of one model each, steps around the loss of a replica, and how many models that replica had.
fn history(models: usize) -> Result<(Steps, Steps, usize)> {
    let mut world = World::new();
    let mut dice = Dice::new(11);
    for replica in 0..REPLICAS {
        world.connect(replica);
    }
    let mut names: Vec<String> = (0..models).map(|n| format!("model-{n:05}")).collect();
    for name in &names {
        world.load(name, &mut dice);
    }
    world.settle()?;
    ensure!(
        world.state.routes().count() == models,
        "not every model has a route"
    );

    world.steps.clear();
    for change in 0..CHANGES {
        let one = dice.roll(names.len());
        match change % 3 {
            0 => {
                world.unload(&names[one]);
                names[one] = format!("late-{change:05}");
                world.load(&names[one], &mut dice);
            }
            // Another version, or another number of replicas.
            _ => world.load(&names[one], &mut dice),
        }
        world.settle()?;
    }
    let small = std::mem::take(&mut world.steps);

    // What concerns all models of a replica is one step, too.
    let held = world.agents[0].has.len();
    world.disconnect(0);
    world.advance(Duration::from_secs(10))?;
    world.settle()?;
    world.connect(0);
    world.settle()?;
    ensure!(
        world.state.routes().count() == models,
        "not every model has a route again"
    );
    Ok((small, world.steps, held))
}

fn changes(steps: &Steps, models: usize, report: &mut Report) {
    let mut kinds: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for (kind, time) in steps {
        kinds.entry(*kind).or_default().push(*time);
    }
    for (kind, times) in &kinds {
        let longest = times.iter().copied().fold(0.0, f64::max);
        report.shown(
            SECTION,
            format!(
                "rules at {models} models: {kind}, mean of {}, longest {longest:.1}",
                times.len()
            ),
            times.iter().sum::<f64>() / times.len() as f64,
            "µs",
        );
    }
    let mut all: Vec<f64> = steps.iter().map(|step| step.1).collect();
    all.sort_by(f64::total_cmp);
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let p99 = all[all.len() * 99 / 100];
    let most = all[all.len() - 1];
    for (what, value) in [("mean", mean), ("p99", p99), ("longest", most)] {
        report.at_most(
            SECTION,
            format!("rules at {models} models: a step, {what} of {}", all.len()),
            value,
            "µs",
            200.0,
        );
    }
}

#[derive(Default)]
struct Agent {
    stream: u64,
    has: BTreeMap<(String, u32), Model>,
    inbox: VecDeque<ModelOperationMessage>,
}

struct World {
    state: State,
    now: Duration,
    agents: Vec<Agent>,
    streams: u64,
    steps: Steps,
}

impl World {
    fn new() -> Self {
        let config = Config::new(Synchronisation::AfterTimeout(Duration::ZERO));
        let mut agents = Vec::new();
        agents.resize_with(REPLICAS as usize, Agent::default);
        Self {
            state: State::new(config, Now::default()),
            now: Duration::ZERO,
            agents,
            streams: 0,
            steps: Steps::new(),
        }
    }

    fn step(&mut self, kind: &'static str, event: Event) {
        let now = Now {
            monotonic: self.now,
            wall: self.now,
        };
        let start = Instant::now();
        let outcome = self.state.step(event, now);
        let took = start.elapsed().as_secs_f64() * 1e6;
        self.steps.push((kind, took));
        for effect in outcome.effects {
            if let Effect::Send {
                agent,
                stream,
                message,
            } = effect
            {
                let known = self.agents.get_mut(agent.replica as usize);
                if let Some(known) = known.filter(|known| known.stream == stream) {
                    known.inbox.push_back((*message).clone());
                }
            }
        }
    }

    fn load(&mut self, name: &str, dice: &mut Dice) {
        let model = Model {
            meta: Some(MetaData {
                name: name.into(),
                ..Default::default()
            }),
            model_spec: Some(ModelSpec {
                uri: "gs://models/one".into(),
                requirements: vec!["sklearn".into()],
                memory_bytes: Some(100 + dice.roll(900) as u64),
                ..Default::default()
            }),
            deployment_spec: Some(DeploymentSpec {
                replicas: [1, 1, 2, 3][dice.roll(4)],
                ..Default::default()
            }),
            ..Default::default()
        };
        self.step("LoadModel", Event::LoadModel(Box::new(model)));
    }

    fn unload(&mut self, name: &str) {
        let event = Event::UnloadModel {
            name: name.into(),
            kubernetes_meta: None,
        };
        self.step("UnloadModel", event);
    }

    fn connect(&mut self, replica: u32) {
        self.streams += 1;
        let stream = self.streams;
        let agent = &mut self.agents[replica as usize];
        agent.stream = stream;
        let loaded = agent.has.iter().map(|((_, version), model)| ModelVersion {
            model: Some(model.clone()),
            version: *version,
        });
        let subscription = AgentSubscribeRequest {
            server_name: SERVER.into(),
            shared: true,
            replica_idx: replica,
            replica_config: Some(ReplicaConfig {
                inference_svc: "127.0.0.1".into(),
                inference_http_port: 9000,
                inference_grpc_port: 9500,
                memory_bytes: MEMORY,
                capabilities: vec!["sklearn".into()],
                over_commit_percentage: 0,
            }),
            loaded_models: loaded.collect(),
            available_memory_bytes: MEMORY,
        };
        let event = Event::AgentConnected {
            stream,
            subscription: Box::new(subscription),
        };
        self.step("AgentConnected", event);
    }

    fn disconnect(&mut self, replica: u32) {
        let agent = &mut self.agents[replica as usize];
        let stream = std::mem::take(&mut agent.stream);
        agent.inbox.clear();
        let event = Event::AgentDisconnected {
            agent: AgentKey {
                server: SERVER.into(),
                replica,
            },
            stream,
        };
        self.step("AgentDisconnected", event);
    }

    /// An agent carries out its oldest order; whether there was one.
    fn work(&mut self, replica: u32) -> Result<bool> {
        let agent = &mut self.agents[replica as usize];
        let Some(order) = agent.inbox.pop_front() else {
            return Ok(false);
        };
        let loads = order.operation() == Operation::LoadModel;
        let version = order.model_version.context("an order without a model")?;
        let model = version.model.context("an order without a model")?;
        let name = model.meta.as_ref().map(|meta| meta.name.clone());
        let name = name.context("a model without a name")?;
        let key = (name.clone(), version.version);
        let event = match loads {
            true => {
                agent.has.insert(key, model);
                Outcome::Loaded
            }
            false => {
                agent.has.remove(&key);
                Outcome::Unloaded
            }
        };
        let event = Event::AgentReported(Box::new(ModelEventMessage {
            server_name: SERVER.into(),
            replica_idx: replica,
            model_name: name,
            model_version: version.version,
            event: event.into(),
            available_memory_bytes: MEMORY,
            ..Default::default()
        }));
        self.step("AgentReported", event);
        Ok(true)
    }

    fn acknowledge(&mut self) {
        let generation = self.state.generation();
        let event = Event::RoutesAcknowledged {
            serving: generation,
            released: generation,
        };
        self.step("RoutesAcknowledged", event);
    }

    /// Lets time pass, tick by tick.
    fn advance(&mut self, span: Duration) -> Result<()> {
        let end = self.now + span;
        while let Some(deadline) = self.state.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(deadline);
            self.step("Tick", Event::Tick);
            self.settle()?;
        }
        self.now = end;
        Ok(())
    }

    /// Everybody does what is asked until nothing is left to do.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..200 {
            let generation = self.state.generation();
            let mut busy = false;
            for replica in 0..REPLICAS {
                while self.work(replica)? {
                    busy = true;
                }
            }
            self.acknowledge();
            let due = self.state.next_deadline();
            if due.is_some_and(|due| due <= self.now) {
                self.step("Tick", Event::Tick);
                busy = true;
            }
            let waiting = self.agents.iter().any(|agent| !agent.inbox.is_empty());
            if !busy && !waiting && generation == self.state.generation() {
                return Ok(());
            }
        }
        anyhow::bail!("the world does not come to rest")
    }
}
