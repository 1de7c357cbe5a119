//! Everything but the models: servers, timers, what Envoys have taken, and the effects of the step at hand.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seldon_proto::agent::{
    ModelOperationMessage, ModelVersion, model_operation_message::Operation,
};

use crate::{
    AgentKey, Config, Effect, Generation, Now, Record, Worker,
    model::{Replica, Version},
    replica_state::{
        ReplicaState::{self, Draining},
        holds_memory, is_loading_or_loaded, is_transient,
    },
    scaling,
    server::Server,
    sync::StartUp,
};

/// Who owns a deadline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Synchronise,
    Replica(AgentKey),
    /// Whether it needs more or fewer replicas.
    Server(Arc<str>),
    Model(Arc<str>),
    Experiment(Arc<str>),
    Pipeline(Arc<str>),
    /// A model's topics.
    Reader(Arc<str>),
    /// A worker that is lost.
    Worker(Worker, Arc<str>),
    /// After a restart, workers were waited for long enough.
    Workers,
}

/// Everything but the models.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) now: Now,
    pub(crate) sync: StartUp,
    pub(crate) servers: BTreeMap<Arc<str>, Server>,
    pub(crate) timers: BTreeSet<(Duration, Timer)>,
    pub(crate) generation: Generation,
    /// Generations that Envoys have taken, and that none is behind of.
    pub(crate) serving: Generation,
    pub(crate) released: Generation,
    pub(crate) awaiting_serving: BTreeSet<(Generation, Arc<str>)>,
    pub(crate) awaiting_release: BTreeSet<(Generation, Arc<str>)>,
    /// Models that could not be placed as wanted, or failed too often.
    pub(crate) unplaced: BTreeSet<Arc<str>>,
    /// Something changed for the better: how many of them are still to be tried, and from where.
    pub(crate) to_retry: usize,
    pub(crate) retry_cursor: Option<Arc<str>>,
    /// Counts agents that connected; a model that failed too often is tried again in a new world.
    pub(crate) epoch: u64,
    pub(crate) draining: usize,
    /// Whether a replica changed its state since this was last reset.
    pub(crate) moved: bool,
    // Of the step at hand:
    pub(crate) effects: Vec<Effect>,
    pub(crate) dirty: BTreeSet<Arc<str>>,
    pub(crate) changed_servers: BTreeSet<Arc<str>>,
}

impl World {
    pub(crate) fn new(config: Config, now: Now) -> World {
        World {
            sync: StartUp::new(&config, now),
            config,
            now,
            servers: BTreeMap::new(),
            timers: BTreeSet::new(),
            generation: 1,
            serving: 0,
            released: 0,
            awaiting_serving: BTreeSet::new(),
            awaiting_release: BTreeSet::new(),
            unplaced: BTreeSet::new(),
            to_retry: 0,
            retry_cursor: None,
            epoch: 0,
            draining: 0,
            moved: false,
            effects: Vec::new(),
            dirty: BTreeSet::new(),
            changed_servers: BTreeSet::new(),
        }
    }

    pub(crate) fn grow(&mut self) -> Generation {
        self.generation += 1;
        self.generation
    }

    /// Moves the one deadline that something of this name has.
    pub(crate) fn set_timer(
        &mut self,
        timer: fn(Arc<str>) -> Timer,
        name: &Arc<str>,
        set: &mut Option<Duration>,
        due: Option<Duration>,
    ) {
        if due == *set {
            return;
        }
        let timer = timer(name.clone());
        if let Some(former) = *set {
            self.timers.remove(&(former, timer.clone()));
        }
        self.timers.extend(due.map(|due| (due, timer)));
        *set = due;
    }

    /// Models that could not be placed may fit now.
    pub(crate) fn retry_unplaced(&mut self) {
        self.to_retry = self.unplaced.len();
    }

    pub(crate) fn touch(&mut self, model: &Arc<str>) {
        if !self.dirty.contains(model) {
            self.dirty.insert(model.clone());
        }
    }

    pub(crate) fn touch_server(&mut self, server: &Arc<str>) {
        if !self.changed_servers.contains(server) {
            self.changed_servers.insert(server.clone());
        }
    }

    /// Adds a replica without a state yet to a version that has a server; its position.
    pub(crate) fn add_replica(
        &mut self,
        model: &Arc<str>,
        version: &mut Version,
        index: u32,
    ) -> usize {
        let at = version
            .replicas
            .partition_point(|replica| replica.index < index);
        if version.replicas.is_empty() {
            version
                .replicas
                .reserve_exact(crate::model::wanted(&version.spec).min(64));
        }
        version.replicas.insert(at, Replica::new(index));
        let resting = version.resting;
        if let Some(host) = self.host(version, index) {
            *host.models.entry(model.clone()).or_default() += 1;
            host.count_awake(u32::from(!resting), 0);
        }
        at
    }

    fn host(&mut self, version: &Version, index: u32) -> Option<&mut crate::server::ServerReplica> {
        self.servers
            .get_mut(version.server.as_ref()?)?
            .replicas
            .get_mut(&index)
    }

    /// Moves a replica to another state: books or frees memory, sets its deadline.
    pub(crate) fn set_state(
        &mut self,
        version: &mut Version,
        at: usize,
        state: ReplicaState,
        reason: Option<&str>,
    ) {
        self.moved = true;
        let required = version.required();
        let replica = &mut version.replicas[at];
        let (former, index) = (replica.state, replica.index);
        replica.state = state;
        replica.reason = reason.map(Arc::from);
        replica.since = self.now.wall;
        let config = &self.config;
        replica.deadline = is_transient(state).then(|| {
            self.now.monotonic
                + match state {
                    ReplicaState::Draining => config.drain_timeout,
                    ReplicaState::UnloadRequested | ReplicaState::Unloading => {
                        config.unload_timeout
                    }
                    _ => config.load_timeout,
                }
        });
        let counts = crate::replica_state::can_receive_traffic;
        if let Some(host) = self.host(version, index) {
            match (holds_memory(former), holds_memory(state)) {
                (false, true) => host.booked = host.booked.saturating_add(required),
                (true, false) => {
                    host.booked = host.booked.saturating_sub(required);
                    host.excess = host.excess.min(host.booked.saturating_sub(host.capacity));
                }
                _ => {}
            }
            host.loaded = host.loaded + u32::from(counts(state)) - u32::from(counts(former));
        }
        if holds_memory(former) && !holds_memory(state) {
            self.retry_unplaced();
        }
        if let Some(server) = &version.server {
            self.touch_server(server);
        }
    }

    /// Takes a replica off a version.
    pub(crate) fn remove_replica(&mut self, model: &Arc<str>, version: &mut Version, at: usize) {
        self.set_state(version, at, ReplicaState::Unloaded, None);
        let (index, resting) = (version.replicas.remove(at).index, version.resting);
        if let Some(host) = self.host(version, index)
            && let Some(count) = host.models.get_mut(model)
        {
            *count -= 1;
            if *count == 0 {
                host.models.remove(model);
            }
            host.count_awake(0, u32::from(!resting));
        }
        let share = self.config.server_packing;
        if let Some(name) = &version.server
            && let Some(server) = self.servers.get_mut(name)
        {
            server.scaling.removed(share);
            self.note_empty(name, index);
        }
    }

    /// A server that can shrink is looked at again when nothing on a replica has taken memory for a while.
    pub(crate) fn note_empty(&mut self, server: &Arc<str>, index: u32) {
        let now = self.now.monotonic;
        let Some(known) = self.servers.get_mut(server) else {
            return;
        };
        let scales = self.config.server_autoscaling && known.max_replicas > 0;
        let Some(replica) = known.replicas.get_mut(&index) else {
            return;
        };
        if replica.awake > 0 {
            return;
        }
        let since = *replica.empty_since.get_or_insert(now);
        let due = since + self.config.scale_server_down_pause;
        if scales && due > now {
            self.timers.insert((due, Timer::Server(server.clone())));
        }
    }

    /// What a runtime told of itself changes what each replica takes.
    pub(crate) fn rebook(&mut self, version: &Version, former: u64) {
        let required = version.required();
        for replica in version
            .replicas
            .iter()
            .filter(|replica| holds_memory(replica.state))
        {
            if let Some(host) = self.host(version, replica.index) {
                host.booked = host.booked.saturating_sub(former).saturating_add(required);
                host.excess = host.booked.saturating_sub(host.capacity);
            }
        }
    }

    /// Puts a version to rest, or wakes it: its agents are told, and what it takes is booked anew.
    pub(crate) fn set_resting(&mut self, version: &mut Version, resting: bool) {
        let former = version.required();
        version.resting = resting;
        self.moved = true;
        self.rebook(version, former);
        for at in 0..version.replicas.len() {
            let replica = &version.replicas[at];
            let told = is_loading_or_loaded(replica.state) || replica.state == Draining;
            let index = replica.index;
            if let Some(host) = self.host(version, index) {
                host.count_awake(u32::from(!resting), u32::from(resting));
            }
            self.note_crowded(version, at);
            if told {
                self.tell_keeping(version, index);
            }
            if let Some(server) = &version.server {
                self.note_empty(server, index);
                self.touch_server(server);
            }
        }
        if resting {
            self.retry_unplaced();
        }
    }

    /// Takes note where a version is that came to take memory without being placed there: too much may be booked now.
    pub(crate) fn note_crowded(&mut self, version: &mut Version, at: usize) {
        let takes = version.required() > 0 && holds_memory(version.replicas[at].state);
        let host = self.host(version, version.replicas[at].index);
        let exceeds = host.is_some_and(|host| host.excess > 0);
        version.replicas[at].crowded = takes && exceeds;
    }

    /// Those that stay when enough was freed have their place like others.
    pub(crate) fn forget_crowded(&mut self, version: &mut Version) {
        for at in 0..version.replicas.len() {
            if version.replicas[at].crowded {
                self.note_crowded(version, at);
            }
        }
    }

    /// Tells an agent what to do about a version; nothing is sent while its stream is lost.
    pub(crate) fn send(&mut self, version: &Version, index: u32, operation: Operation) {
        let Some(server) = &version.server else {
            return;
        };
        let stream = self
            .servers
            .get(server)
            .and_then(|known| known.replicas.get(&index)?.stream);
        let Some(stream) = stream else { return };
        let autoscaling_enabled =
            self.config.model_autoscaling && scaling::has_bounds(&version.spec);
        let message = Box::new(ModelOperationMessage {
            operation: operation.into(),
            model_version: Some(ModelVersion {
                model: Some((*version.spec).clone()),
                version: version.number,
            }),
            autoscaling_enabled,
            resting: version.resting,
        });
        let agent = AgentKey {
            server: server.clone(),
            replica: index,
        };
        self.effects.push(Effect::Send {
            agent,
            stream,
            message,
        });
    }

    /// Agents learn by an order to load whether they are to watch a model's requests, and whether to keep it out of
    /// memory; what is loaded stays so. Documented agents would load it anew, so only ours are told.
    pub(crate) fn tell_keeping(&mut self, version: &Version, index: u32) {
        if self.is_ours(version, index) {
            self.send(version, index, Operation::LoadModel);
        }
    }

    /// Whether the agent of a replica is ours.
    pub(crate) fn is_ours(&self, version: &Version, index: u32) -> bool {
        let server = version.server.as_ref();
        let server = server.and_then(|name| self.servers.get(name));
        let replica = server.and_then(|server| server.replicas.get(&index));
        replica.is_some_and(crate::server::ServerReplica::is_ours)
    }

    /// Keeps the index of replica sets in step with a version's placement.
    pub(crate) fn count_set(&mut self, version: &mut Version) {
        let placed: Vec<u32> = version.placed().collect();
        if version.counted.as_deref().unwrap_or_default() == placed {
            return;
        }
        let Some(server) = version
            .server
            .as_ref()
            .and_then(|name| self.servers.get_mut(name))
        else {
            version.counted = None;
            return;
        };
        if let Some(former) = version.counted.take() {
            server.sets.remove(&former);
        }
        version.counted = (!placed.is_empty()).then(|| server.sets.add(&placed));
    }

    /// Follows which replicas have more models than memory: Envoys choose among those by what they have in memory.
    pub(crate) fn refresh_pressure(&mut self, name: &Arc<str>) {
        let Some(server) = self.servers.get_mut(name) else {
            return;
        };
        let mut changed = false;
        for replica in server.replicas.values_mut() {
            let pressed = replica.under_pressure();
            changed |= std::mem::replace(&mut replica.endpoint.over_committed, pressed) != pressed;
        }
        if changed {
            self.grow();
            self.effects.push(Effect::EndpointsChanged(name.clone()));
        }
    }

    /// Remembers how many replicas a server has, to wait for as many after a restart.
    pub(crate) fn record_server(&mut self, name: &Arc<str>) {
        let Some(server) = self.servers.get_mut(name) else {
            return;
        };
        let known = u32::try_from(server.replicas.len()).unwrap_or(u32::MAX);
        let expected = server.expected.unwrap_or(known);
        server.recorded = expected;
        self.effects.push(Effect::Persist(Record::Server {
            name: name.clone(),
            expected_replicas: expected,
            min_replicas: server.min_replicas,
            max_replicas: server.max_replicas,
        }));
    }
}
