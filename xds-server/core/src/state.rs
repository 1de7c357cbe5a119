//! The state of the scheduler, and the step that changes it.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seldon_proto::scheduler::{
    ExperimentStatusResponse, ModelStatusResponse, PipelineStatusResponse, ServerStatusResponse,
};

use crate::{
    Config, Effect, Endpoint, Event, ExperimentExplanation, ExperimentRoute, Explanation,
    Generation, Now, PIPELINE_GATEWAYS, PipelineExplanation, Refusal, ReplicaSet, Route,
    experiment::{self, Experiments, Surroundings},
    explain,
    model::{Entry, logs_payloads, retries},
    pipeline::{self, Fleets, Pipelines},
    reconcile::{forget, reconcile, refresh_timer},
    scaling, status, step,
    world::{Timer, World},
};

/// Models that could not be placed are tried again so many at a time, to keep every step short.
const MOST_RETRIES: usize = 128;

/// What came of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// To be carried out in this order.
    pub effects: Vec<Effect>,
    /// The answer, where the event was a request.
    pub reply: Result<(), Refusal>,
}

/// All that the scheduler knows.
#[derive(Debug)]
pub struct State {
    pub(crate) models: BTreeMap<Arc<str>, Entry>,
    pub(crate) world: World,
    pub(crate) experiments: Experiments,
    pub(crate) pipelines: Pipelines,
    pub(crate) fleets: Fleets,
}

impl State {
    /// Knows nothing yet. Feed it [`Event::Restored`] first; any other first event means that there is no store.
    pub fn new(config: Config, now: Now) -> State {
        let mut world = World::new(config, now);
        world
            .timers
            .insert((world.sync.deadline, Timer::Synchronise));
        State {
            models: BTreeMap::new(),
            world,
            experiments: Experiments::default(),
            pipelines: Pipelines::default(),
            fleets: Fleets::default(),
        }
    }

    /// Takes in what happened, and says what to do about it.
    pub fn step(&mut self, event: Event, now: Now) -> Outcome {
        self.world.now = now;
        if !matches!(event, Event::Restored(_)) {
            self.world.sync.no_store();
        }
        let reply = step::apply(self, event);
        self.fire_timers();
        self.settle();
        #[cfg(debug_assertions)]
        crate::invariants::check_touched(self);
        Outcome {
            effects: std::mem::take(&mut self.world.effects),
            reply,
        }
    }

    /// When (monotonic) [`Event::Tick`] is due, at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.world.to_retry > 0 && self.world.sync.done {
            return Some(self.world.now.monotonic);
        }
        self.world.timers.first().map(|(deadline, _)| *deadline)
    }

    /// Grows with every change of any route or endpoint; starts at 1, so that an acknowledgement is always needed.
    pub fn generation(&self) -> Generation {
        self.world.generation
    }

    /// Whether the servers and the pipelines of before are back; until then Envoys must not be served.
    pub fn synchronised(&self) -> bool {
        self.world.sync.done && self.fleets.back(&self.world)
    }

    /// The route of a model, or of a pipeline with [`crate::PIPELINE_SUFFIX`].
    pub fn route(&self, model: &str) -> Option<Route> {
        match self.pipelines.by_endpoint(model) {
            Some(entry) => self.route_of_pipeline(entry),
            None => self.route_of(self.models.get(model)?),
        }
    }

    /// All routes, those of models first, by name.
    pub fn routes(&self) -> impl Iterator<Item = Route> + '_ {
        let models = self.models.values();
        let pipelines = self.pipelines.entries.values();
        models
            .filter_map(|entry| self.route_of(entry))
            .chain(pipelines.filter_map(|entry| self.route_of_pipeline(entry)))
    }

    fn route_of_pipeline(&self, entry: &pipeline::Entry) -> Option<Route> {
        let index = &self.experiments.index;
        (!entry.splits.is_empty()).then(|| Route {
            model: entry.endpoint.clone(),
            pipeline: true,
            splits: entry.splits.clone(),
            retry: true,
            log_payloads: false,
            split_by: index.split_by(&entry.endpoint).cloned(),
            candidate: index.is_candidate(&entry.endpoint),
        })
    }

    fn route_of(&self, entry: &Entry) -> Option<Route> {
        let spec = &entry.latest().spec;
        let index = &self.experiments.index;
        (!entry.splits.is_empty()).then(|| Route {
            model: entry.name.clone(),
            pipeline: false,
            splits: entry.splits.clone(),
            retry: retries(spec),
            log_payloads: logs_payloads(spec),
            split_by: index.split_by(&entry.name).cloned(),
            candidate: index.is_candidate(&entry.name),
        })
    }

    /// How an experiment's requests are shared out; `None` for one that is unknown, stopped or never was in force.
    pub fn experiment_route(&self, experiment: &str) -> Option<ExperimentRoute> {
        self.experiments.entries.get(experiment)?.route.clone()
    }

    /// All running experiments, by name.
    pub fn experiment_names(&self) -> impl Iterator<Item = &Arc<str>> + '_ {
        self.experiments.running().map(|entry| &entry.name)
    }

    /// The running experiment whose default this model is, or this pipeline with [`crate::PIPELINE_SUFFIX`].
    pub fn split_by(&self, model: &str) -> Option<Arc<str>> {
        self.experiments.index.split_by(model).cloned()
    }

    /// The documented status of an experiment, also of one that was stopped lately.
    pub fn experiment_status(&self, name: &str) -> Option<ExperimentStatusResponse> {
        Some(self.experiments.entries.get(name)?.shown.clone())
    }

    /// Running experiments and those stopped lately, by name.
    pub fn known_experiment_names(&self) -> impl Iterator<Item = &Arc<str>> + '_ {
        self.experiments.entries.keys()
    }

    /// Why an experiment splits as it does.
    pub fn explain_experiment(&self, name: &str) -> Option<ExperimentExplanation> {
        let entry = self.experiments.entries.get(name)?;
        Some(experiment::explain(entry, self.surroundings()))
    }

    /// Experiments whose roll-out needs [`Event::Measured`] now.
    pub fn measured_experiments(&self) -> impl Iterator<Item = &Arc<str>> + '_ {
        let running = self.experiments.running();
        let measured = running.filter(|entry| {
            let rollout = entry.rollout.as_ref();
            rollout.is_some_and(|rollout| rollout.running())
        });
        measured.map(|entry| &entry.name)
    }

    pub(crate) fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            models: &self.models,
            pipelines: &self.pipelines,
            fleets: &self.fleets,
            world: &self.world,
        }
    }

    /// Where the replicas of a set listen; one that is unknown is left out.
    pub fn endpoints(&self, set: &ReplicaSet) -> Vec<Endpoint> {
        if *set.server == *PIPELINE_GATEWAYS {
            let members = self.fleets.pipeline_gateways.members.values();
            let chosen = members.filter(|member| set.replicas.contains(&member.index));
            return chosen
                .filter_map(|member| member.endpoint.clone())
                .collect();
        }
        let Some(server) = self.world.servers.get(&set.server) else {
            return Vec::new();
        };
        set.replicas
            .iter()
            .filter_map(|index| Some(server.replicas.get(index)?.endpoint.clone()))
            .collect()
    }

    /// All models that can be shown, those lately deleted included.
    pub fn model_names(&self) -> impl Iterator<Item = &Arc<str>> + '_ {
        self.models.keys()
    }

    pub fn server_names(&self) -> impl Iterator<Item = &Arc<str>> + '_ {
        self.world.servers.keys()
    }

    /// The documented status of a model; `now` is not needed by any rule so far.
    pub fn model_status(
        &self,
        name: &str,
        all_versions: bool,
        _now: Now,
    ) -> Option<ModelStatusResponse> {
        self.models.get(name).map(|entry| {
            let gateway = self.pipelines.readers.shown(entry);
            status::model_status(entry, all_versions, gateway, &self.world)
        })
    }

    pub fn server_status(&self, name: &str) -> Option<ServerStatusResponse> {
        self.world
            .servers
            .get_key_value(name)
            .map(|(name, server)| status::server_status(name, server))
    }

    /// Replicas that a server should have and has not been given yet: the documented request.
    pub fn scaling_request(&self, name: &str) -> Option<ServerStatusResponse> {
        let server = self.world.servers.get(name)?;
        let (replicas, _) = server.scaling.requested?;
        Some(status::scaling_request(name, replicas, server))
    }

    /// All pipelines that can be shown, those lately deleted included.
    pub fn pipeline_names(&self) -> impl Iterator<Item = &Arc<str>> + '_ {
        self.pipelines.entries.keys()
    }

    /// The documented status of a pipeline.
    pub fn pipeline_status(
        &self,
        name: &str,
        all_versions: bool,
    ) -> Option<PipelineStatusResponse> {
        let entry = self.pipelines.entries.get(name)?;
        Some(pipeline::pipeline_status(entry, all_versions))
    }

    /// Why a pipeline is, or is not, ready.
    pub fn explain_pipeline(&self, name: &str) -> Option<PipelineExplanation> {
        let entry = self.pipelines.entries.get(name)?;
        let route = self.route_of_pipeline(entry);
        let (models, readers) = (&self.models, &self.pipelines.readers);
        Some(pipeline::explain(
            entry,
            route,
            (models, readers),
            &self.fleets,
        ))
    }

    /// Why a model is, or is not, served where it is.
    pub fn explain(&self, model: &str) -> Option<Explanation> {
        let entry = self.models.get(model)?;
        Some(explain::explain(entry, self.route_of(entry), &self.world))
    }

    pub(crate) fn touch_all(&mut self) {
        self.world.dirty.extend(self.models.keys().cloned());
    }

    /// All models whose topics are read, or are to be.
    pub(crate) fn touch_readers(&mut self) {
        self.touch_all();
        let pipelines = &self.pipelines;
        let others = pipelines.users.keys().chain(pipelines.readers.names());
        self.world.dirty.extend(others.cloned());
    }

    fn fire_timers(&mut self) {
        while let Some((deadline, timer)) = self.world.timers.first().cloned() {
            if deadline > self.world.now.monotonic {
                return;
            }
            self.world.timers.pop_first();
            match timer {
                Timer::Synchronise => {}
                Timer::Replica(agent) => step::replica_due(self, &agent),
                Timer::Server(server) => drop(self.world.changed_servers.insert(server)),
                Timer::Model(name) => {
                    if let Some(entry) = self.models.get_mut(&name) {
                        entry.timer = None;
                    }
                    self.world.dirty.insert(name);
                }
                Timer::Pipeline(name) => {
                    if let Some(entry) = self.pipelines.entries.get_mut(&name) {
                        entry.timer = None;
                    }
                    self.pipelines.dirty.insert(name);
                }
                Timer::Reader(name) => {
                    if let Some(reader) = self.pipelines.readers.get_mut(&name) {
                        reader.fired();
                    }
                    self.world.dirty.insert(name);
                }
                Timer::Worker(worker, name) => step::worker_due(self, worker, &name),
                Timer::Workers => step::workers_due(self),
                Timer::Experiment(name) => {
                    if let Some(entry) = self.experiments.entries.get_mut(&name) {
                        entry.timer = None;
                    }
                    self.experiments.dirty.insert(name);
                }
            }
        }
    }

    fn settle(&mut self) {
        if self.world.sync.check(&self.world.servers, self.world.now) {
            self.touch_all();
            self.experiments.touch_all();
            self.world
                .changed_servers
                .extend(self.world.servers.keys().cloned());
        }
        let mut retries_left = MOST_RETRIES;
        let mut announced = BTreeSet::new();
        loop {
            self.reconcile_dirty();
            if let Some(name) = self.next_retry(&mut retries_left) {
                self.world.dirty.insert(name);
                continue;
            }
            let Some(server) = self.world.changed_servers.pop_first() else {
                break;
            };
            if self.world.sync.done {
                step::prune(&mut self.world, &server);
                scaling::consider_fewer(&mut self.world, &server, &self.models);
            }
            self.world.refresh_pressure(&server);
            announced.insert(server);
        }
        self.settle_pipelines();
        experiment::settle(self);
        self.fleets.prune(&mut self.world);
        self.world
            .effects
            .extend(announced.into_iter().map(Effect::ServerChanged));
    }

    fn reconcile_dirty(&mut self) {
        while let Some(name) = self.world.dirty.pop_first() {
            let (pipelines, fleets, world) =
                (&mut self.pipelines, &mut self.fleets, &mut self.world);
            pipelines.touch_model(&name);
            let Some(entry) = self.models.get_mut(&name) else {
                pipeline::settle_reader(&name, None, pipelines, fleets, world);
                continue;
            };
            self.experiments.touch(&name);
            reconcile(entry, world);
            let held = pipeline::settle_reader(&name, Some(entry), pipelines, fleets, world);
            let over = forget(entry, held, world);
            refresh_timer(entry, world);
            step::advance_drains(entry, world);
            if over {
                let timer = (entry.timer.unwrap_or_default(), Timer::Model(name.clone()));
                world.timers.remove(&timer);
                pipelines.readers.forget(&name);
                self.models.remove(&name);
            }
        }
    }

    /// After models, whose state pipelines show; a pipeline that begins or ends may concern models in turn.
    fn settle_pipelines(&mut self) {
        loop {
            while let Some(name) = self.pipelines.dirty.pop_first() {
                let Some(mut entry) = self.pipelines.entries.remove(&name) else {
                    continue;
                };
                self.experiments.touch(&entry.endpoint);
                pipeline::reconcile(
                    &mut entry,
                    &mut self.pipelines,
                    &mut self.fleets,
                    &self.models,
                    &mut self.world,
                );
                let now = self.world.now.monotonic;
                let over = entry.gone_at.is_some_and(|gone| gone <= now);
                if over && entry.next.is_none() {
                    step::forget_pipeline(self, &entry);
                } else {
                    self.pipelines.entries.insert(name, entry);
                }
            }
            if self.world.dirty.is_empty() {
                return;
            }
            self.reconcile_dirty();
        }
    }

    /// The next of the models that could not be placed, round and round.
    fn next_retry(&mut self, left: &mut usize) -> Option<Arc<str>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let world = &mut self.world;
        if world.to_retry == 0 || *left == 0 || !world.sync.done {
            return None;
        }
        (world.to_retry, *left) = (world.to_retry - 1, *left - 1);
        let after = world.retry_cursor.as_ref().map_or(Unbounded, Excluded);
        let mut rest = world.unplaced.range::<Arc<str>, _>((after, Unbounded));
        let next = rest.next().or_else(|| world.unplaced.first()).cloned();
        if next.is_none() {
            world.to_retry = 0;
        }
        world.retry_cursor.clone_from(&next);
        next
    }
}
