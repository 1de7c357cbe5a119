//! Agents' processes: they subscribe, report until they are answered, crash and come back.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use seldon_core::AgentKey;
use seldon_proto::{
    agent::{
        AgentSubscribeRequest, ModelEventMessage, ModelVersion, ReplicaConfig,
        model_event_message::Event as Report,
    },
    scheduler::{
        MlServerModelSettings, Model, ModelRuntimeInfo,
        model_runtime_info::ModelRuntimeInfo as Runtime,
    },
};

use crate::world::{Call, Entry, Happening, Link, World};

/// Time after which an agent takes a report for lost.
const LIMIT: Duration = Duration::from_secs(10);
/// Deliveries of a report that the scheduler refuses.
const REFUSALS: u32 = 5;

/// What an agent does with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// By this piece of work.
    Loading(u64),
    Loaded,
    Unloading(u64),
}

#[derive(Clone, Debug)]
pub struct Held {
    pub model: Model,
    pub phase: Phase,
    /// It is to be out of memory, and was once.
    pub resting: bool,
    pub rested: bool,
}

pub struct Agent {
    pub process: u64,
    pub up: bool,
    /// Its owner does not want it.
    pub gone: bool,
    pub stopped_until: Duration,
    /// No connection comes about before.
    pub cut_until: Duration,
    pub memory: u64,
    pub over_commit: u32,
    pub link: Option<u64>,
    pub accepted: bool,
    pub draining: bool,
    pub held: BTreeMap<Entry, Held>,
    outbox: BTreeMap<Entry, (ModelEventMessage, u32)>,
    calling: BTreeSet<Entry>,
    /// All that it ever had loaded.
    pub ever: BTreeSet<Entry>,
}

/// Instances that the runtime turns out to start.
fn workers(model: &Model) -> u32 {
    let uri = &model.model_spec.as_ref().unwrap().uri;
    if uri.ends_with('3') { 2 } else { 1 }
}

pub fn runtime(model: &Model) -> ModelRuntimeInfo {
    let settings = MlServerModelSettings {
        parallel_workers: workers(model),
    };
    ModelRuntimeInfo {
        model_runtime_info: Some(Runtime::Mlserver(settings)),
    }
}

pub fn bytes(model: &Model) -> u64 {
    crate::sim::bytes(model) * u64::from(workers(model))
}

impl Agent {
    pub fn new(memory: u64, over_commit: u32, wanted: bool) -> Agent {
        Agent {
            process: 0,
            up: false,
            gone: !wanted,
            stopped_until: Duration::ZERO,
            cut_until: Duration::ZERO,
            memory,
            over_commit,
            link: None,
            accepted: false,
            draining: false,
            held: BTreeMap::new(),
            outbox: BTreeMap::new(),
            calling: BTreeSet::new(),
            ever: BTreeSet::new(),
        }
    }

    pub fn capacity(&self) -> u64 {
        self.memory + self.memory * u64::from(self.over_commit) / 100
    }

    /// Bytes of what is in memory or on its way out.
    pub fn registered(&self) -> u64 {
        let there = self
            .held
            .values()
            .filter(|held| !matches!(held.phase, Phase::Loading(_)));
        there.map(|held| bytes(&held.model)).sum()
    }

    fn subscription(&self, key: &AgentKey) -> AgentSubscribeRequest {
        let loaded = self
            .held
            .iter()
            .filter(|(_, held)| held.phase == Phase::Loaded);
        let described = |((_, version), held): (&Entry, &Held)| {
            let mut model = held.model.clone();
            model.model_spec.as_mut().unwrap().model_runtime_info = Some(runtime(&held.model));
            ModelVersion {
                model: Some(model),
                version: *version,
            }
        };
        AgentSubscribeRequest {
            server_name: key.server.to_string(),
            shared: true,
            replica_idx: key.replica,
            replica_config: Some(ReplicaConfig {
                inference_svc: format!("{}-{}", key.server, key.replica),
                inference_http_port: 9999,
                inference_grpc_port: 9999,
                memory_bytes: self.memory,
                capabilities: vec!["sklearn".into()],
                over_commit_percentage: self.over_commit,
            }),
            loaded_models: loaded.map(described).collect(),
            available_memory_bytes: self.capacity().saturating_sub(self.registered()),
        }
    }
}

impl World {
    pub fn agent(&mut self, key: &AgentKey) -> &mut Agent {
        self.agents.get_mut(key).unwrap()
    }

    pub fn agent_starts(&mut self, key: &AgentKey, process: u64) {
        let agent = self.agent(key);
        if agent.process != process || agent.up || agent.gone {
            return;
        }
        (agent.up, agent.draining) = (true, false);
        self.tell(|| format!("{}-{}: starts", key.server, key.replica));
        self.queue.after(
            Duration::from_millis(10),
            Happening::Dial {
                key: key.clone(),
                process,
            },
        );
    }

    /// Its process ends; whether its disk survives.
    pub fn agent_dies(&mut self, key: &AgentKey, with_disk: bool, back: bool) {
        let agent = self.agent(key);
        agent.process += 1;
        agent.up = false;
        agent.stopped_until = Duration::ZERO;
        (agent.accepted, agent.draining) = (false, false);
        agent.outbox.clear();
        agent.calling.clear();
        match with_disk {
            true => agent.held.retain(|_, held| {
                // It is not told to everybody that a model rests.
                held.resting = false;
                held.phase == Phase::Loaded
            }),
            false => agent.held.clear(),
        }
        let (process, link) = (agent.process, agent.link.take());
        self.tell(|| {
            format!(
                "{}-{}: dies, disk {with_disk}, comes back {back}",
                key.server, key.replica
            )
        });
        if let Some(link) = link {
            self.break_link(key, link);
        }
        if back {
            let after = self.random.millis(500, 90_000);
            self.queue.after(
                after,
                Happening::AgentStarts {
                    key: key.clone(),
                    process,
                },
            );
        }
    }

    /// Both ends notice, each in its time; what was on its way is lost.
    pub fn break_link(&mut self, key: &AgentKey, link: u64) {
        let known = self.links.get_mut(&link).unwrap();
        known.broken = true;
        let (life, stream) = (known.life, known.stream);
        let soon = self.random.chance(700);
        let after = |world: &mut World| match soon {
            true => world.random.millis(1, 1_000),
            false => world.random.millis(1_000, 30_000),
        };
        if let Some(stream) = stream {
            let after = after(self);
            self.queue.after(
                after,
                Happening::StreamEnded {
                    life,
                    key: key.clone(),
                    stream,
                },
            );
        }
        let after = after(self);
        self.queue.after(
            after,
            Happening::LinkEnded {
                key: key.clone(),
                link,
            },
        );
    }

    pub fn dial(&mut self, key: &AgentKey, process: u64) {
        let (now, life, alive) = (self.queue.now, self.scheduler.life, self.scheduler.alive);
        let agent = &self.agents[key];
        if agent.process != process || !agent.up || agent.link.is_some() {
            return;
        }
        if !alive || agent.cut_until > now {
            let pause = self.random.millis(200, 3_000);
            return self.queue.after(
                pause,
                Happening::Dial {
                    key: key.clone(),
                    process,
                },
            );
        }
        let link = self.number();
        let known = Link {
            life,
            stream: None,
            broken: false,
            last: now,
        };
        self.links.insert(link, known);
        let agent = self.agent(key);
        agent.link = Some(link);
        let subscription = Box::new(agent.subscription(key));
        let after = self.random.delay();
        self.queue.after(
            after,
            Happening::Subscribe {
                key: key.clone(),
                link,
                subscription,
            },
        );
    }

    pub fn accepted(&mut self, key: &AgentKey, link: u64) {
        if self.links[&link].broken || self.agents[key].link != Some(link) {
            return;
        }
        self.agent(key).accepted = true;
        self.deliver(key);
    }

    pub fn link_ended(&mut self, key: &AgentKey, link: u64) {
        let agent = self.agent(key);
        if agent.link != Some(link) {
            return;
        }
        (agent.link, agent.accepted) = (None, false);
        let process = agent.process;
        self.links.get_mut(&link).unwrap().broken = true;
        let pause = self.random.millis(100, 5_000);
        self.queue.after(
            pause,
            Happening::Dial {
                key: key.clone(),
                process,
            },
        );
    }

    /// Puts a report in the outbox, where it replaces an older one.
    pub fn report(&mut self, key: &AgentKey, entry: &Entry, event: Report) {
        let agent = &self.agents[key];
        let model = agent.held.get(entry).map(|held| &held.model);
        let message = ModelEventMessage {
            server_name: key.server.to_string(),
            replica_idx: key.replica,
            model_name: entry.0.clone(),
            model_version: entry.1,
            event: event.into(),
            message: String::new(),
            available_memory_bytes: agent.capacity().saturating_sub(agent.registered()),
            runtime_info: model.filter(|_| event == Report::Loaded).map(runtime),
            ..ModelEventMessage::default()
        };
        self.agent(key).outbox.insert(entry.clone(), (message, 0));
        self.deliver(key);
    }

    fn deliver(&mut self, key: &AgentKey) {
        let agent = &self.agents[key];
        if !agent.accepted || !agent.up {
            return;
        }
        let free = agent
            .outbox
            .keys()
            .filter(|entry| !agent.calling.contains(*entry));
        let free: Vec<Entry> = free.cloned().collect();
        for entry in free {
            let agent = self.agent(key);
            let (message, refusals) = agent.outbox.remove(&entry).unwrap();
            agent.calling.insert(entry.clone());
            let process = agent.process;
            self.call(Call {
                key: key.clone(),
                process,
                entry,
                message,
                refusals,
            });
        }
    }

    /// A call arrives, or not, or too late for its caller; or its answer is lost.
    fn call(&mut self, call: Call) {
        let life = self.scheduler.life;
        let delay = self.random.delay();
        let call = Box::new(call);
        let trouble = if self.troubled {
            self.random.below(100)
        } else {
            100
        };
        let (arrives, answered) = match trouble {
            0..4 => (None, false),
            4..10 => (Some(delay), false),
            10..14 => (Some(LIMIT + self.random.millis(0, 15_000)), false),
            _ => (Some(delay), true),
        };
        if !answered {
            self.queue.after(
                LIMIT,
                Happening::CallEnded {
                    call: call.clone(),
                    delivered: false,
                },
            );
        }
        if let Some(after) = arrives {
            self.queue.after(
                after,
                Happening::Report {
                    life,
                    call,
                    answered,
                },
            );
        }
    }

    pub fn call_ended(&mut self, call: Call, delivered: bool) {
        let Call {
            key,
            process,
            entry,
            message,
            refusals,
        } = call;
        let agent = self.agent(&key);
        if agent.process != process {
            return;
        }
        agent.calling.remove(&entry);
        if !delivered && refusals < REFUSALS {
            agent.outbox.entry(entry).or_insert((message, refusals));
        }
        if self.scheduler.alive {
            self.deliver(&key);
        } else {
            // The stream ends as well before long; it delivers when it is back.
            let pause = self.random.millis(1, 1_000);
            if let Some(link) = self.agents[&key].link {
                self.queue.after(pause, Happening::LinkEnded { key, link });
            }
        }
    }

    /// It asks for its models to be moved, and ends when they are, or when it has waited long enough.
    pub fn agent_leaves(&mut self, key: &AgentKey) {
        let life = self.scheduler.life;
        let agent = self.agent(key);
        if !agent.up || agent.draining {
            return;
        }
        agent.draining = true;
        let (process, accepted) = (agent.process, agent.accepted);
        self.tell(|| format!("{}-{}: is told to end", key.server, key.replica));
        let after = self.random.delay();
        match accepted {
            true => self.queue.after(
                after,
                Happening::Drain {
                    life,
                    key: key.clone(),
                    process,
                },
            ),
            false => self.queue.after(
                after,
                Happening::AgentEnds {
                    key: key.clone(),
                    process,
                },
            ),
        }
        self.queue.after(
            Duration::from_secs(120),
            Happening::AgentEnds {
                key: key.clone(),
                process,
            },
        );
    }

    pub fn agent_ends(&mut self, key: &AgentKey, process: u64) {
        let agent = &self.agents[key];
        if agent.process != process || !agent.up {
            return;
        }
        let gone = agent.gone;
        let with_disk = !gone && self.random.chance(600);
        self.agent_dies(key, with_disk, !gone);
    }
}
