//! Envoys take worlds piece by piece; the engine says how far all of them are, as the scheduler's does.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seldon_core::{Event, ExperimentRoute, Generation, Route, Split};

use crate::world::{Happening, World};

const LEASE: Duration = Duration::from_secs(60);
const LAG: Duration = Duration::from_secs(2);

/// The routed world of one generation.
#[derive(Debug, Default)]
pub struct Snapshot {
    routes: BTreeMap<Arc<str>, Route>,
    shares: BTreeMap<Arc<str>, ExperimentRoute>,
}

/// How far an Envoy has come with a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Some,
    Added,
    Released,
}

/// What an Envoy answers: how far it is, and what it refuses.
#[derive(Clone, Debug)]
pub struct Ack {
    generation: Generation,
    stage: Stage,
    refused: BTreeSet<String>,
}

/// A world that an Envoy is taking.
pub struct Taking {
    generation: Generation,
    world: Arc<Snapshot>,
    stage: Stage,
}

#[derive(Default)]
pub struct Envoy {
    pub link: Option<u64>,
    pub taking: Option<Taking>,
    routes: BTreeMap<Arc<str>, Route>,
    shares: BTreeMap<Arc<str>, ExperimentRoute>,
    refused: BTreeMap<String, Route>,
    /// Away for longer than its lease, and not up to date since.
    expired: bool,
}

impl Envoy {
    /// All places that it may send requests to.
    pub fn places(&self) -> impl Iterator<Item = (&str, &Split)> {
        let own = self
            .routes
            .values()
            .flat_map(|route| route.splits.iter().map(|split| (&*route.model, split)));
        let shares = self.shares.values().flat_map(|route| {
            let candidates = route.candidates.iter().map(|one| (&one.name, &one.splits));
            let mirror = route.mirror.iter().map(|one| (&one.name, &one.splits));
            candidates.chain(mirror)
        });
        own.chain(shares.flat_map(|(name, splits)| splits.iter().map(|split| (&**name, split))))
    }

    pub fn route(&self, model: &str) -> Option<&Route> {
        self.routes.get(model)
    }
}

/// One Envoy's stream, at the engine's end.
struct Stream {
    envoy: usize,
    added: Generation,
    released: Generation,
    unanswered: Option<Duration>,
    refused: BTreeSet<String>,
    since: Duration,
}

struct Departed {
    envoy: usize,
    lost: Duration,
    released: Generation,
    refused: BTreeSet<String>,
}

/// What the scheduler knows of its Envoys.
#[derive(Default)]
pub struct Engine {
    latest: Generation,
    world: Arc<Snapshot>,
    opened: Option<Duration>,
    /// Nothing was served before.
    first: bool,
    streams: BTreeMap<u64, Stream>,
    departed: Vec<Departed>,
    serving: Generation,
    released: Generation,
    told: BTreeSet<String>,
}

impl Engine {
    pub fn new(first: bool) -> Engine {
        Engine {
            first,
            ..Engine::default()
        }
    }

    pub fn is_open(&self) -> bool {
        self.opened.is_some()
    }

    fn knows(&self, envoy: usize) -> bool {
        let streams = self.streams.values().any(|stream| stream.envoy == envoy);
        streams || self.departed.iter().any(|gone| gone.envoy == envoy)
    }
}

impl World {
    /// The engine is given the newest world.
    pub fn apply_world(&mut self) {
        let state = &self.scheduler.state;
        let names = state.experiment_names();
        let shares = names.filter_map(|name| state.experiment_route(name));
        let world = Snapshot {
            routes: state
                .routes()
                .map(|route| (route.model.clone(), route))
                .collect(),
            shares: shares.map(|route| (route.name.clone(), route)).collect(),
        };
        let generation = state.generation();
        (self.scheduler.engine.latest, self.scheduler.engine.world) = (generation, Arc::new(world));
        self.offer();
        self.refresh();
    }

    pub fn open_engine(&mut self) {
        let now = self.queue.now;
        if self.scheduler.engine.opened.is_some() || !self.scheduler.state.synchronised() {
            return;
        }
        self.tell(|| "scheduler: Envoys are served".into());
        self.scheduler.engine.opened = Some(now);
        let life = self.scheduler.life;
        self.queue.after(LEASE, Happening::LeaseEnded { life });
        self.apply_world();
    }

    /// Envoys that have nothing to do begin with the newest world.
    fn offer(&mut self) {
        if self.scheduler.engine.opened.is_none() {
            return;
        }
        for envoy in 0..self.envoys.len() {
            let Some(link) = self.envoys[envoy]
                .link
                .filter(|_| self.envoys[envoy].taking.is_none())
            else {
                continue;
            };
            let engine = &mut self.scheduler.engine;
            let (generation, world) = (engine.latest, engine.world.clone());
            let Some(stream) = engine.streams.get_mut(&link) else {
                continue;
            };
            if stream.released == generation {
                continue;
            }
            stream.unanswered = Some(self.queue.now);
            self.envoys[envoy].taking = Some(Taking {
                generation,
                world,
                stage: Stage::Some,
            });
            let after = self.envoy_delay();
            self.queue
                .after(after, Happening::EnvoyTakes { envoy, link });
            // One that lags does not hold the others up.
            let life = self.scheduler.life;
            self.queue.after(LAG, Happening::LeaseEnded { life });
        }
    }

    fn envoy_delay(&mut self) -> Duration {
        match self.random.below(100) {
            0 if self.troubled => self.random.millis(5_000, 60_000),
            1..10 => self.random.millis(50, 3_000),
            _ => self.random.millis(1, 30),
        }
    }

    pub fn envoy_dials(&mut self, envoy: usize) {
        if self.envoys[envoy].link.is_some() {
            return;
        }
        if !self.scheduler.alive || self.scheduler.stopped_until > self.queue.now {
            let pause = self.random.millis(100, 5_000);
            return self.queue.after(pause, Happening::EnvoyDials { envoy });
        }
        self.tell(|| format!("envoy {envoy}: connects"));
        self.envoys[envoy].expired = self.is_expired(envoy);
        let link = self.number();
        self.envoys[envoy].link = Some(link);
        // It is given everything again, and may take now what it refused.
        self.envoys[envoy].refused.clear();
        let stream = Stream {
            envoy,
            added: 0,
            released: 0,
            unanswered: None,
            refused: BTreeSet::new(),
            since: self.queue.now,
        };
        self.scheduler.engine.streams.insert(link, stream);
        self.offer();
        self.refresh();
    }

    /// It has served its last world for longer than it may: it can send where nothing is any more.
    pub fn is_expired(&self, envoy: usize) -> bool {
        let engine = &self.scheduler.engine;
        let over = engine
            .opened
            .is_some_and(|opened| engine.first || self.queue.now >= opened + LEASE);
        self.envoys[envoy].expired || (over && !engine.knows(envoy))
    }

    pub fn envoy_takes(&mut self, envoy: usize, link: u64) {
        let known = &mut self.envoys[envoy];
        if known.link != Some(link) {
            return;
        }
        let Some(mut taking) = known.taking.take() else {
            return;
        };
        let all = taking.stage == Stage::Added;
        match taking.stage {
            Stage::Some | Stage::Added => {
                for route in taking.world.routes.values() {
                    let name = route.model.to_string();
                    let same = self.envoys[envoy].routes.get(&route.model) == Some(route);
                    let refused = self.envoys[envoy].refused.get(&name) == Some(route);
                    if same || refused || (!all && self.random.chance(500)) {
                        continue;
                    }
                    let refuses = self.troubled && self.random.chance(15);
                    let known = &mut self.envoys[envoy];
                    if refuses {
                        known.refused.insert(name, route.clone());
                    } else {
                        known.refused.remove(&name);
                        known.routes.insert(route.model.clone(), route.clone());
                    }
                }
                for route in taking.world.shares.values() {
                    if all || self.random.chance(500) {
                        self.envoys[envoy]
                            .shares
                            .insert(route.name.clone(), route.clone());
                    }
                }
            }
            Stage::Released => {
                let known = &mut self.envoys[envoy];
                known
                    .routes
                    .retain(|name, _| taking.world.routes.contains_key(name));
                known
                    .shares
                    .retain(|name, _| taking.world.shares.contains_key(name));
                known
                    .refused
                    .retain(|name, _| taking.world.routes.contains_key(name.as_str()));
                known.expired = false;
            }
        }
        let refused: BTreeSet<String> = self.envoys[envoy].refused.keys().cloned().collect();
        self.tell(|| {
            format!(
                "envoy {envoy}: {:?} of {}, refuses {refused:?}",
                taking.stage, taking.generation
            )
        });
        let ack = Ack {
            generation: taking.generation,
            stage: taking.stage,
            refused,
        };
        let next = match taking.stage {
            Stage::Some => Some(Stage::Added),
            Stage::Added => Some(Stage::Released),
            Stage::Released => None,
        };
        if let Some(next) = next {
            taking.stage = next;
            self.envoys[envoy].taking = Some(taking);
        }
        let after = self.random.millis(1, 30);
        self.queue.after(after, Happening::EnvoyAcks { link, ack });
    }

    pub fn envoy_acks(&mut self, link: u64, ack: Ack) {
        let now = self.queue.now;
        let Some(stream) = self.scheduler.engine.streams.get_mut(&link) else {
            return;
        };
        let envoy = stream.envoy;
        stream.refused = ack.refused;
        stream.unanswered = Some(now);
        match ack.stage {
            Stage::Some => {}
            Stage::Added => stream.added = ack.generation,
            Stage::Released => (stream.released, stream.unanswered) = (ack.generation, None),
        }
        if ack.stage != Stage::Released && self.envoys[envoy].link == Some(link) {
            let after = self.envoy_delay();
            self.queue
                .after(after, Happening::EnvoyTakes { envoy, link });
        }
        self.offer();
        self.refresh();
    }

    /// Its stream breaks; the engine notices now or later.
    pub fn envoy_cut(&mut self, envoy: usize) {
        let Some(link) = self.envoys[envoy].link.take() else {
            return;
        };
        self.envoys[envoy].taking = None;
        let life = self.scheduler.life;
        let noticed = if self.random.chance(700) {
            self.random.millis(1, 500)
        } else {
            self.random.millis(500, 20_000)
        };
        self.queue
            .after(noticed, Happening::EnvoyLinkEnded { life, link });
        let back = if self.random.chance(600) {
            self.random.millis(50, 20_000)
        } else {
            self.random.millis(40_000, 200_000)
        };
        self.tell(|| format!("envoy {envoy}: is cut off for {back:?}"));
        self.queue.after(back, Happening::EnvoyDials { envoy });
    }

    pub fn envoy_link_ended(&mut self, life: u64, link: u64) {
        if !self.scheduler.is(life) {
            return;
        }
        let now = self.queue.now;
        let Some(stream) = self.scheduler.engine.streams.remove(&link) else {
            return;
        };
        let Stream {
            envoy,
            released,
            refused,
            ..
        } = stream;
        self.scheduler.engine.departed.push(Departed {
            envoy,
            lost: now,
            released,
            refused,
        });
        self.queue.after(LEASE, Happening::LeaseEnded { life });
        self.refresh();
    }

    pub fn lease_ended(&mut self, life: u64) {
        if self.scheduler.is(life) {
            self.refresh();
        }
    }

    /// Recomputes what all have reached; the rules learn of it a little later.
    fn refresh(&mut self) {
        let now = self.queue.now;
        let engine = &mut self.scheduler.engine;
        let streams = &engine.streams;
        let latest = engine.latest;
        engine.departed.retain(|gone| {
            let expired = now >= gone.lost + LEASE;
            let back = streams.values().any(|stream| {
                stream.envoy == gone.envoy && stream.since >= gone.lost && stream.released == latest
            });
            if expired && !streams.values().any(|stream| stream.envoy == gone.envoy) {
                self.envoys[gone.envoy].expired = true;
            }
            // One that refused something may be back, and not have said so again.
            let fresh = streams
                .values()
                .any(|stream| stream.since >= gone.lost && stream.released == 0);
            let lasts = !expired || (fresh && !gone.refused.is_empty());
            lasts && !back
        });
        let Some(opened) = engine.opened else { return };
        let keeps_up = |stream: &&Stream| stream.unanswered.is_none_or(|at| now < at + LAG);
        let in_time = engine
            .streams
            .values()
            .filter(keeps_up)
            .map(|stream| stream.added)
            .min();
        let serving = in_time.or_else(|| engine.streams.values().map(|stream| stream.added).max());
        let there = engine.streams.values().map(|stream| stream.released).min();
        let away = engine.departed.iter().map(|gone| gone.released).min();
        let unknown = (!engine.first && now < opened + LEASE).then_some(0);
        let released = [there, away, unknown].into_iter().flatten().min();
        engine.serving = engine.serving.max(serving.unwrap_or(latest));
        engine.released = engine.released.max(released.unwrap_or(latest));
        let after = self.random.millis(0, 3);
        let life = self.scheduler.life;
        self.queue.after(after, Happening::Progress { life });
    }

    /// The rules learn what is refused, and then what is reached.
    pub fn progress(&mut self, life: u64) {
        if !self.scheduler.is(life) {
            return;
        }
        let engine = &mut self.scheduler.engine;
        let streams = engine.streams.values().flat_map(|stream| &stream.refused);
        let departed = engine.departed.iter().flat_map(|gone| &gone.refused);
        let refused: BTreeSet<String> = streams.chain(departed).cloned().collect();
        let (serving, released) = (engine.serving, engine.released);
        let told = std::mem::replace(&mut engine.told, refused.clone());
        for model in told.symmetric_difference(&refused) {
            let reason = refused.contains(model).then(|| "refused".to_owned());
            let event = Event::RouteRejected {
                model: model.clone(),
                reason,
            };
            if self.step(event, None).is_none() {
                return;
            }
        }
        self.step(Event::RoutesAcknowledged { serving, released }, None);
    }
}
