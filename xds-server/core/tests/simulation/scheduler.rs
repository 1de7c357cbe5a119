//! The scheduler's process: the rules, the store behind them, and the streams.
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use seldon_core::{AgentKey, Config, Effect, Event, Now, Record, State, StreamId};
use seldon_proto::agent::{AgentSubscribeRequest, ModelScalingTriggerMessage};

use crate::{
    clients::Request,
    envoys::Engine,
    store::{Job, Key, write},
    world::{Call, Happening, World},
};

/// Whose request it is, and which copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub client: usize,
    pub request: u64,
}

pub struct Scheduler {
    pub config: Config,
    pub life: u64,
    pub alive: bool,
    pub stopped_until: Duration,
    pub state: State,
    pub engine: Engine,
    pub store: BTreeMap<Key, Record>,
    pub jobs: VecDeque<Job>,
    pub committing: bool,
    pub streams: BTreeMap<StreamId, (AgentKey, u64)>,
    newest: BTreeMap<AgentKey, StreamId>,
    ticking: Option<Duration>,
    pub drains: BTreeMap<u64, (AgentKey, u64)>,
    /// It crashes in the middle of a step before long.
    pub doomed: bool,
}

impl Scheduler {
    pub fn new(config: Config) -> Scheduler {
        Scheduler {
            state: State::new(config.clone(), Now::default()),
            config,
            life: 0,
            alive: false,
            stopped_until: Duration::ZERO,
            engine: Engine::default(),
            store: BTreeMap::new(),
            jobs: VecDeque::new(),
            committing: false,
            streams: BTreeMap::new(),
            newest: BTreeMap::new(),
            ticking: None,
            drains: BTreeMap::new(),
            doomed: false,
        }
    }

    pub fn engine_is_open(&self) -> bool {
        self.engine.is_open()
    }

    pub fn is(&self, life: u64) -> bool {
        self.alive && self.life == life
    }
}

impl World {
    pub fn now(&self) -> Now {
        Now {
            monotonic: self.queue.now,
            wall: self.queue.now,
        }
    }

    pub fn start(&mut self) {
        if self.scheduler.alive {
            return;
        }
        self.scheduler.life += 1;
        let (life, now) = (self.scheduler.life, self.now());
        self.check_durable();
        let records: Vec<Record> = self.scheduler.store.values().cloned().collect();
        self.tell(|| {
            format!(
                "scheduler: life {life} begins with {} records",
                records.len()
            )
        });
        self.scheduler.alive = true;
        self.scheduler.state = State::new(self.scheduler.config.clone(), now);
        self.scheduler.engine = Engine::new(life == 1);
        (self.scheduler.ticking, self.scheduler.doomed) = (None, false);
        self.step(Event::Restored(records), None);
        if self.owned {
            for server in 0..self.owners.len() {
                let after = self.random.delay();
                self.queue.after(
                    after,
                    Happening::Notify {
                        life,
                        server,
                        first: server == 0,
                    },
                );
            }
        }
    }

    /// It dies at once: what is not written is lost, or just made it.
    pub fn crash(&mut self) {
        if !self.scheduler.alive {
            return;
        }
        self.scheduler.alive = false;
        self.scheduler.stopped_until = Duration::ZERO;
        let durable = self.random.below(self.scheduler.jobs.len() + 1);
        let jobs = std::mem::take(&mut self.scheduler.jobs);
        let lost = jobs.len() - durable;
        self.tell(|| format!("scheduler: dies, {lost} batches are lost"));
        for (at, job) in jobs.into_iter().enumerate() {
            if at < durable {
                job.writes
                    .into_iter()
                    .for_each(|write| self.scheduler.write(write));
            }
            if let Some((ticket, _)) = job.answer {
                let after = self.random.millis(0, 500);
                self.queue.after(after, Happening::Lost { ticket });
            }
        }
        self.scheduler.committing = false;
        self.scheduler.streams.clear();
        self.scheduler.newest.clear();
        self.scheduler.drains.clear();
        let keys: Vec<AgentKey> = self.agents.keys().cloned().collect();
        self.links.values_mut().for_each(|link| link.broken = true);
        for key in keys {
            if let Some(link) = self.agents[&key].link {
                let after = self.random.delay();
                self.queue.after(after, Happening::LinkEnded { key, link });
            }
        }
        for envoy in 0..self.envoys.len() {
            self.envoys[envoy].link = None;
            self.envoys[envoy].taking = None;
            let after = self.random.millis(100, 20_000);
            self.queue.after(after, Happening::EnvoyDials { envoy });
        }
        let after = self.random.millis(100, 20_000);
        self.queue.after(after, Happening::Start);
    }

    /// One event through the rules, with all that follows. `None`: it died over it.
    pub fn step(&mut self, event: Event, ticket: Option<Ticket>) -> Option<Result<(), String>> {
        let mut job = Job::default();
        let mut pending = VecDeque::from([event]);
        let (mut reply, mut grown) = (None, false);
        while let Some(event) = pending.pop_front() {
            let before = self.routed();
            let text = format!("{event:?}");
            let outcome = self.scheduler.state.step(event.clone(), self.now());
            self.effects += outcome.effects.len() as u64;
            let answer = outcome.reply.map_err(|refusal| refusal.to_string());
            if let Err(refusal) = &answer {
                self.tell(|| format!("scheduler: refuses: {refusal}"));
            }
            reply.get_or_insert(answer);
            self.check_rules(&event, &text, &before);
            let dies = self.scheduler.doomed && self.random.chance(300);
            let dies = dies.then(|| self.random.below(outcome.effects.len() + 1));
            for (at, effect) in outcome.effects.into_iter().enumerate() {
                if dies == Some(at) {
                    self.die_over(ticket);
                    return None;
                }
                grown |= matches!(
                    effect,
                    Effect::RouteChanged(_)
                        | Effect::EndpointsChanged(_)
                        | Effect::ExperimentRouted(_)
                );
                job.writes.extend(write(&effect));
                pending.extend(self.carry_out(effect));
            }
            if dies.is_some() {
                self.die_over(ticket);
                return None;
            }
        }
        let answer = reply.unwrap();
        job.answer = ticket.map(|ticket| (ticket, answer.clone()));
        self.submit(job);
        if grown {
            self.apply_world();
        }
        self.open_engine();
        self.set_tick();
        Some(answer)
    }

    fn die_over(&mut self, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            self.queue
                .after(Duration::from_millis(50), Happening::Lost { ticket });
        }
        self.crash();
    }

    /// Carries an effect out, as the scheduler's writer does; what cannot be sent is an event.
    fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Send {
                agent,
                stream,
                message,
            } => {
                let link = self.scheduler.streams.get(&stream).map(|(_, link)| *link);
                let version = message.model_version.clone().unwrap();
                let model = version.model.unwrap().meta.unwrap().name;
                let (operation, number) = (message.operation(), version.version);
                let Some(link) = link else {
                    return Some(Event::SendFailed {
                        agent,
                        stream,
                        model,
                        version: number,
                    });
                };
                let place = format!("{}-{}", agent.server, agent.replica);
                self.tell(|| {
                    format!(
                        "scheduler: {} {model}:{number} to {place}",
                        operation.as_str_name()
                    )
                });
                self.check_order(&agent, &model, number, operation);
                self.send(link, |link| Happening::Order {
                    key: agent,
                    link,
                    message,
                });
            }
            Effect::Drained { token, complete } => {
                if let Some((key, process)) = self.scheduler.drains.remove(&token) {
                    self.tell(|| format!("scheduler: {key:?} is drained: {complete}"));
                    let after = self.random.millis(10, 3_000);
                    self.queue
                        .after(after, Happening::AgentEnds { key, process });
                }
            }
            Effect::ServerScaled(name) => self.scaling_asked(&name),
            _ => {}
        }
        None
    }

    /// In its order, later.
    pub fn send(&mut self, link: u64, what: impl FnOnce(u64) -> Happening) {
        let delay = self.random.delay();
        let known = self.links.get_mut(&link).unwrap();
        known.last = known.last.max(self.queue.now + delay);
        self.queue.at(known.last, what(link));
    }

    fn set_tick(&mut self) {
        let due = self.scheduler.state.next_deadline();
        if let Some(due) = due.filter(|due| self.scheduler.ticking.is_none_or(|set| *due < set)) {
            self.scheduler.ticking = Some(due);
            self.queue.at(
                due,
                Happening::Tick {
                    life: self.scheduler.life,
                },
            );
        }
    }

    pub fn tick(&mut self, life: u64) {
        if !self.scheduler.is(life)
            || self
                .scheduler
                .ticking
                .is_none_or(|set| set > self.queue.now)
        {
            return;
        }
        self.scheduler.ticking = None;
        let due = self.scheduler.state.next_deadline();
        if due.is_some_and(|due| due <= self.queue.now) {
            self.ticks += 1;
            self.tell(|| "scheduler: a deadline".into());
            self.step(Event::Tick, None);
        } else {
            self.set_tick();
        }
    }

    pub fn subscribed(&mut self, key: &AgentKey, link: u64, subscription: AgentSubscribeRequest) {
        let life = self.scheduler.life;
        let here = self.scheduler.is(self.links[&link].life);
        if !here {
            let key = key.clone();
            return self
                .queue
                .after(Duration::from_millis(1), Happening::LinkEnded { key, link });
        }
        let stream = self.number();
        let held: Vec<String> = subscription
            .loaded_models
            .iter()
            .map(|held| {
                format!(
                    "{}:{}",
                    held.model.clone().unwrap().meta.unwrap().name,
                    held.version
                )
            })
            .collect();
        self.tell(|| {
            format!(
                "scheduler: {}-{} subscribes with {held:?}",
                key.server, key.replica
            )
        });
        self.scheduler.streams.insert(stream, (key.clone(), link));
        self.links.get_mut(&link).unwrap().stream = Some(stream);
        let accepted = key.clone();
        self.send(link, |link| Happening::Accepted {
            key: accepted,
            link,
        });
        let event = Event::AgentConnected {
            stream,
            subscription: Box::new(subscription),
        };
        match self.step(event, None) {
            None => return,
            Some(Ok(())) => {
                if let Some(former) = self.scheduler.newest.insert(key.clone(), stream)
                    && let Some((_, former)) = self.scheduler.streams.remove(&former)
                {
                    let known = self.links.get_mut(&former).unwrap();
                    known.broken = true;
                    self.queue.after(
                        Duration::from_millis(5),
                        Happening::LinkEnded {
                            key: key.clone(),
                            link: former,
                        },
                    );
                }
            }
            Some(Err(_)) => {
                self.scheduler.streams.remove(&stream);
                self.links.get_mut(&link).unwrap().broken = true;
                self.queue.after(
                    Duration::from_millis(5),
                    Happening::LinkEnded {
                        key: key.clone(),
                        link,
                    },
                );
            }
        }
        if self.links[&link].broken {
            let after = self.random.delay();
            self.queue.after(
                after,
                Happening::StreamEnded {
                    life,
                    key: key.clone(),
                    stream,
                },
            );
        }
    }

    pub fn stream_ended(&mut self, life: u64, key: AgentKey, stream: StreamId) {
        if !self.scheduler.is(life) {
            return;
        }
        self.tell(|| {
            format!(
                "scheduler: the stream of {}-{} ended",
                key.server, key.replica
            )
        });
        self.scheduler.streams.remove(&stream);
        self.scheduler.newest.retain(|_, newest| *newest != stream);
        self.step(Event::AgentDisconnected { agent: key, stream }, None);
    }

    pub fn report_arrives(&mut self, life: u64, call: Call, answered: bool) {
        if !self.scheduler.is(life) {
            if answered {
                let after = self.random.millis(1, 500);
                self.queue.after(
                    after,
                    Happening::CallEnded {
                        call: Box::new(call),
                        delivered: false,
                    },
                );
            }
            return;
        }
        self.tell(|| {
            let (name, version) = &call.entry;
            let event = call.message.event().as_str_name();
            format!(
                "scheduler: {}-{} reports {event} {name}:{version}",
                call.key.server, call.key.replica
            )
        });
        let accepted = self.step(Event::AgentReported(Box::new(call.message.clone())), None);
        if answered {
            let after = self.random.delay();
            let delivered = accepted == Some(Ok(()));
            let refused = u32::from(matches!(accepted, Some(Err(_))));
            let call = Box::new(Call {
                refusals: call.refusals + refused,
                ..call
            });
            self.queue
                .after(after, Happening::CallEnded { call, delivered });
        }
    }

    pub fn triggered(&mut self, life: u64, message: ModelScalingTriggerMessage) {
        if self.scheduler.is(life) {
            self.tell(|| {
                format!(
                    "scheduler: {}-{} has {:?} {:?}",
                    message.server_name,
                    message.replica_idx,
                    message.model_name,
                    message.trigger()
                )
            });
            self.step(Event::ScalingTriggered(Box::new(message)), None);
        }
    }

    pub fn drain_asked(&mut self, life: u64, key: AgentKey, process: u64) {
        let token = self.number();
        let alive = self.scheduler.is(life);
        if alive {
            self.tell(|| format!("scheduler: {}-{} asks for a drain", key.server, key.replica));
            self.scheduler.drains.insert(token, (key.clone(), process));
            let event = Event::DrainRequested {
                agent: key.clone(),
                token,
            };
            if self.step(event, None) == Some(Ok(())) {
                return;
            }
            self.scheduler.drains.remove(&token);
        }
        self.queue.after(
            Duration::from_secs(1),
            Happening::AgentEnds { key, process },
        );
    }

    pub fn asked(&mut self, life: u64, ticket: Ticket, request: Request) {
        if !self.scheduler.is(life) {
            return self
                .queue
                .after(Duration::from_millis(10), Happening::Lost { ticket });
        }
        self.tell(|| format!("scheduler: is asked: {request}"));
        self.step(request.event(), Some(ticket));
    }
}
