//! The engine: the world, its streams, and what they have reached together.
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, broadcast, watch},
    time::Instant,
};

use crate::{
    Audience, Change, EnvoyStatus, Generation, Node, Progress, RejectionEvent, Settings,
    lease::{Departed, Departures},
    stream::Stream,
    wire::{Answer, Asked},
    world::{View, World},
};

/// Rejections that a slow reader may fall behind; `Engine::envoys` always has all of them.
const EVENTS: usize = 1024;
/// A stream that leaves a response unanswered for so many times the permitted lag, and for a lease, is closed.
const PATIENCE: u32 = 30;

/// Serves a world of resources to Envoys and tells what they have acknowledged.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    settings: Settings,
    epoch: Instant,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    rejections: broadcast::Sender<RejectionEvent>,
    /// Wakes what waits for a lease to end.
    pub(crate) ending: Notify,
}

struct State {
    world: World,
    streams: BTreeMap<u64, Connected>,
    departures: Departures,
    next_stream: u64,
    opened: Option<Duration>,
    /// Nothing was served before this engine.
    first_world: bool,
    closed: bool,
    /// Reasons that were told, by type and resource.
    told: BTreeMap<(String, String), String>,
    /// How often refusals had changed on the streams then; none when it must be looked at again.
    told_at: Option<u64>,
}

/// A stream with what wakes its task.
pub(crate) struct Connected {
    pub(crate) stream: Stream,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) since: Duration,
    /// Stands for an Envoy that had left.
    pub(crate) credited: bool,
    delta: bool,
    wake: Arc<Notify>,
}

impl Connected {
    fn status(&self, id: u64, now: Duration) -> EnvoyStatus {
        EnvoyStatus {
            stream: id,
            node: self.stream.node.clone(),
            connected: true,
            delta: self.delta,
            since: now.saturating_sub(self.since),
            acknowledged: self.stream.released,
            types: self.stream.types(),
            rejections: self.stream.rejections(now),
        }
    }
}

/// What the task of a stream is to do next.
pub(crate) struct Turn {
    pub(crate) answers: Vec<Answer>,
    /// When to look again though nothing happened.
    pub(crate) deadline: Option<Instant>,
    pub(crate) closed: bool,
}

impl Engine {
    /// An empty world, not open yet.
    pub fn new(settings: Settings) -> Engine {
        let state = State {
            world: World::new(&settings.order),
            streams: BTreeMap::new(),
            departures: Departures::default(),
            next_stream: 1,
            opened: None,
            first_world: false,
            closed: false,
            told: BTreeMap::new(),
            told_at: None,
        };
        Engine(Arc::new(Shared {
            settings,
            epoch: Instant::now(),
            state: Mutex::new(state),
            progress: watch::Sender::new(Progress::default()),
            rejections: broadcast::Sender::new(EVENTS),
            ending: Notify::new(),
        }))
    }

    /// Brings the world to `generation`. Costs as much as the changes, not as the world; sends nothing itself.
    pub fn apply(&self, generation: Generation, changes: Vec<Change>) {
        let mut state = self.0.lock();
        let State { world, streams, .. } = &mut *state;
        let changed = world.apply(generation, changes);
        for connected in streams.values_mut() {
            for (kind, name) in &changed {
                connected.stream.on_change(*kind, name);
            }
            connected.wake.notify_one();
        }
        self.0.refresh(&mut state);
    }

    /// Lets streams have answers. Until then they are accepted and wait, so that no Envoy turns ready before the first
    /// world. For one lease from now on an unknown Envoy counts as away: it may still serve an earlier world.
    pub fn open(&self) {
        let now = self.0.now();
        let mut state = self.0.lock();
        if state.opened.is_some() {
            return;
        }
        state.opened = Some(now);
        for connected in state.streams.values() {
            connected.wake.notify_one();
        }
        self.0.refresh(&mut state);
        drop(state);
        self.0.clone().end_lease();
    }

    /// Says, before [`Engine::open`], that there never was a world before this one, so that no Envoy can be away with it.
    pub fn first_world(&self) {
        self.0.lock().first_world = true;
    }

    /// Whether an Envoy has subscribed, and whether one came with a world of before.
    pub fn audience(&self) -> Audience {
        let state = self.0.lock();
        let streams = || state.streams.values().map(|c| &c.stream);
        Audience {
            subscribed: streams().any(|stream| !stream.types().is_empty()),
            returning: streams().any(|stream| stream.returning),
        }
    }

    /// What all Envoys have reached; changes whenever that does.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.progress.subscribe()
    }

    /// Resources that Envoys start or cease to refuse, from now on.
    pub fn rejections(&self) -> broadcast::Receiver<RejectionEvent> {
        self.0.rejections.subscribe()
    }

    /// All Envoys, connected or within their lease.
    pub fn envoys(&self) -> Vec<EnvoyStatus> {
        let now = self.0.now();
        let state = self.0.lock();
        let connected = state.streams.iter().map(|(id, c)| c.status(*id, now));
        connected
            .chain(state.departures.status(now, self.0.settings.lease))
            .collect()
    }

    /// Ends every stream and refuses new ones; Envoys go on with the world they have.
    pub fn close(&self) {
        let mut state = self.0.lock();
        state.closed = true;
        for connected in state.streams.values() {
            connected.wake.notify_one();
        }
        drop(state);
        self.0.ending.notify_waiters();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// A stream opens; `None` when closed.
    pub(crate) fn connect(&self, ip: Option<IpAddr>, delta: bool) -> Option<(u64, Arc<Notify>)> {
        let now = self.now();
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        let id = state.next_stream;
        state.next_stream += 1;
        let node = Node {
            address: ip.map(|ip| ip.to_string()).unwrap_or_default(),
            ..Node::default()
        };
        let wake = Arc::new(Notify::new());
        let connected = Connected {
            stream: Stream::new(&self.settings.order, delta, node),
            ip,
            since: now,
            credited: false,
            delta,
            wake: wake.clone(),
        };
        state.streams.insert(id, connected);
        Some((id, wake))
    }

    pub(crate) fn ask(&self, id: u64, asked: Asked) {
        let now = self.now();
        let mut state = self.lock();
        let State { world, streams, .. } = &mut *state;
        let view = View {
            world,
            tailor: self.settings.tailor.as_deref(),
        };
        if let Some(connected) = streams.get_mut(&id) {
            connected.stream.on_request(asked, view, now);
        }
    }

    /// What the stream sends now.
    pub(crate) fn turn(&self, id: u64) -> Turn {
        let now = self.now();
        let mut state = self.lock();
        let State {
            world,
            streams,
            opened,
            closed,
            ..
        } = &mut *state;
        let view = View {
            world,
            tailor: self.settings.tailor.as_deref(),
        };
        let mut turn = Turn {
            answers: Vec::new(),
            deadline: None,
            closed: *closed,
        };
        let Some(connected) = streams.get_mut(&id).filter(|_| !turn.closed) else {
            turn.closed = true;
            return turn;
        };
        // One that never answers would hold up every removal: gone, it has a lease, and that ends.
        let patience = self.settings.lease.max(self.settings.lag * PATIENCE);
        let silent = connected.stream.unanswered_since();
        if silent.is_some_and(|at| now >= at + patience) {
            tracing::warn!(
                stream = id,
                "an Envoy does not answer: its stream is closed"
            );
            turn.closed = true;
            return turn;
        }
        if opened.is_some() {
            turn.answers = connected.stream.poll(view, now);
        }
        let late = connected.stream.unanswered_since();
        let looks = [self.settings.lag, patience].map(|span| late.map(|at| at + span));
        let next = looks.into_iter().flatten().filter(|at| *at > now).min();
        turn.deadline = next.map(|at| self.epoch + at);
        self.refresh(&mut state);
        turn
    }

    /// A stream is lost: its Envoy may go on with its world for a lease.
    pub(crate) fn depart(self: &Arc<Self>, id: u64) {
        let now = self.now();
        let mut state = self.lock();
        let Some(connected) = state.streams.remove(&id) else {
            return;
        };
        let mut status = connected.status(id, now);
        status.connected = false;
        // One that holds nothing can send nowhere.
        state.told_at = None;
        let holds = status.types.iter().any(|t| t.sent > 0 || t.resources > 0);
        if holds {
            state.departures.push(Departed {
                status,
                ip: connected.ip,
                lost: now,
                released: connected.stream.released,
            });
        }
        self.refresh(&mut state);
        let watch = holds && !state.closed;
        drop(state);
        if watch {
            self.clone().end_lease();
        }
    }

    /// Looks again when a lease that begins now is over, and after another: then nothing is left of it.
    fn end_lease(self: Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            // Outside of a runtime the next event of any stream does it.
            return;
        };
        runtime.spawn(async move {
            for _ in 0..2 {
                let over = tokio::time::sleep(self.settings.lease + Duration::from_millis(1));
                tokio::select! {
                    () = over => {}
                    () = self.ending.notified() => return,
                }
                let mut state = self.lock();
                self.refresh(&mut state);
            }
        });
    }

    /// Recomputes what depends on all streams, and tells what is new.
    fn refresh(&self, state: &mut State) {
        let now = self.now();
        let State {
            world,
            streams,
            departures,
            ..
        } = state;
        let before = departures.len();
        departures.expire(now, self.settings.lease, streams);
        departures.match_returned(streams, world.generation);
        if departures.len() != before {
            state.told_at = None;
        }
        self.tell_rejections(state, now);
        let Some(opened) = state.opened else { return };
        let latest = state.world.generation;
        let keeps_up = |c: &&Connected| {
            let since = c.stream.unanswered_since();
            since.is_none_or(|at| now < at + self.settings.lag)
        };
        let streams = || state.streams.values();
        let added = |c: &Connected| c.stream.added;
        let in_time = streams().filter(keeps_up).map(added).min();
        // Where all lag, what the furthest has taken is taken, and no more.
        let serving = in_time.or_else(|| streams().map(added).max());
        let released = streams().map(|c| c.stream.released).min();
        let away = state.departures.released();
        let may_be_away = !state.first_world && now < opened + self.settings.lease;
        let unknown = may_be_away.then_some(0);
        let released = [released, away, unknown].into_iter().flatten().min();
        self.progress.send_if_modified(|progress| {
            let before = *progress;
            progress.serving = before.serving.max(serving.unwrap_or(latest));
            progress.released = before.released.max(released.unwrap_or(latest));
            *progress != before
        });
    }

    fn tell_rejections(&self, state: &mut State, now: Duration) {
        let streams = state.streams.values();
        let changes = Some(streams.map(|c| c.stream.refusal_changes()).sum());
        if state.told_at == changes {
            return;
        }
        state.told_at = changes;
        let mut refused = BTreeMap::new();
        for connected in state.streams.values() {
            let rejections = connected.stream.rejections(now).into_iter();
            refused.extend(rejections.map(|r| ((r.type_url, r.resource), r.reason)));
        }
        for rejection in state.departures.rejections() {
            let key = (rejection.type_url.clone(), rejection.resource.clone());
            refused
                .entry(key)
                .or_insert_with(|| rejection.reason.clone());
        }
        if refused.is_empty() && state.told.is_empty() {
            return;
        }
        let told = std::mem::replace(&mut state.told, refused);
        for ((type_url, resource), reason) in &state.told {
            if told.get(&(type_url.clone(), resource.clone())) != Some(reason) {
                self.tell(type_url, resource, Some(reason.clone()));
            }
        }
        for (type_url, resource) in told.keys() {
            let key = (type_url.clone(), resource.clone());
            if !state.told.contains_key(&key) {
                self.tell(type_url, resource, None);
            }
        }
    }

    fn tell(&self, type_url: &str, resource: &str, reason: Option<String>) {
        // Without a reader there is nobody to tell.
        let _ = self.rejections.send(RejectionEvent {
            type_url: type_url.to_owned(),
            resource: resource.to_owned(),
            reason,
        });
    }
}
