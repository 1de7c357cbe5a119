//! The one task that owns the state of the rules: everything that happens reaches it in one queue.
//!
//! It takes what has gathered as one batch: steps each event, then writes, sends, tells subscribers and gives Envoys
//! the difference, once. It never waits for anyone but its queue.
mod batch;
mod handle;
mod lingering;
mod opening;
mod refusals;
mod streams;
mod subscribers;

use std::{collections::HashMap, sync::Arc, time::Duration};

use seldon_ads::{Change, Engine, Progress, RejectionEvent};
use seldon_core::{AgentKey, Endpoint, Event, Now, Order, Refusal, State, StreamId, Worker};
use seldon_proto::agent::ModelOperationMessage;
use tokio::{
    sync::{broadcast::error::RecvError, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    resources::{Tls, World},
    store::Committer,
};

pub use handle::{Failure, Handle};
pub use subscribers::{Kind, Subscription};

use batch::Batch;
use lingering::Lingering;
use opening::{LOOK_EVERY, Opening};
use refusals::Refusals;
use streams::Streams;
use subscribers::Subscribers;

type Agents = Streams<AgentKey, ModelOperationMessage>;
type Workers = Streams<(Worker, Arc<str>), Order>;

/// A request's answer; `Ok` once what it changed is durable.
type Reply = oneshot::Sender<Result<(), Failure>>;
/// Reads the state between two batches.
type Query = Box<dyn FnOnce(&State, Now) + Send>;

/// What comes to the writer.
enum Command {
    /// Something that nobody waits for.
    Happened(Event),
    /// A request that is answered once it is durable.
    Durable(Event, Reply),
    /// A request that is answered as soon as the rules have seen it.
    Reported(Event, Reply),
    Connect {
        stream: StreamId,
        subscription: Box<seldon_proto::agent::AgentSubscribeRequest>,
        messages: mpsc::UnboundedSender<ModelOperationMessage>,
        reply: Reply,
    },
    ConnectWorker {
        connection: Connection,
        orders: mpsc::UnboundedSender<Order>,
        reply: Reply,
    },
    Drain {
        agent: AgentKey,
        reply: oneshot::Sender<Result<bool, Failure>>,
    },
    Read(Query),
    /// Other certificates, and the listener that holds them.
    Renew(Arc<Tls>, Change),
    Subscribe(Kind, oneshot::Sender<Subscription>),
}

/// A stream of a gateway or an engine.
#[derive(Clone, Debug)]
pub struct Connection {
    pub worker: Worker,
    pub stream: StreamId,
    pub name: Arc<str>,
    /// Where Envoys find a pipeline gateway.
    pub endpoint: Option<Endpoint>,
}

/// Commands taken in one batch at most, so that no answer waits for a very long one.
const LARGEST_BATCH: usize = 2048;

/// The writer's parts.
pub struct Writer {
    state: State,
    clock: Clock,
    world: World,
    engine: Engine,
    committer: Committer,
    queue: mpsc::UnboundedReceiver<Command>,
    agents: Agents,
    workers: Workers,
    subscribers: Subscribers,
    drains: HashMap<u64, oneshot::Sender<Result<bool, Failure>>>,
    next_drain: u64,
    synchronised: watch::Sender<bool>,
    measured: watch::Sender<Names>,
    refusals: Refusals,
    opening: Opening,
    lingering: Lingering,
}

impl Writer {
    /// A writer and the handle by which everyone else talks to it.
    pub fn new(
        state: State,
        clock: Clock,
        world: World,
        engine: Engine,
        committer: Committer,
    ) -> (Self, Handle) {
        let (commands, queue) = mpsc::unbounded_channel();
        let (synchronised, watched) = watch::channel(false);
        let measured = watch::Sender::default();
        let handle = Handle::new(commands, watched, measured.subscribe());
        let writer = Self {
            state,
            clock,
            world,
            engine,
            committer,
            queue,
            agents: Agents::default(),
            workers: Workers::default(),
            subscribers: Subscribers::default(),
            drains: HashMap::new(),
            next_drain: 0,
            synchronised,
            measured,
            refusals: Refusals::default(),
            opening: Opening::new(None),
            lingering: Lingering::default(),
        };
        (writer, handle)
    }

    /// Runs until `stop`, or until nobody can send any more. `restored` is what the store holds, where there is one;
    /// `patience` is how long a world of before is waited for at most, where no store knows of it. What was acknowledged
    /// is durable when it returns.
    pub async fn run(
        mut self,
        restored: Option<Vec<seldon_core::Record>>,
        patience: Option<Duration>,
        stop: CancellationToken,
    ) {
        self.opening = Opening::new(patience);
        let mut batch = Batch::default();
        if let Some(records) = restored {
            let _ = self.step(Event::Restored(records), &mut batch);
        }
        self.finish(batch);
        let mut progress = self.engine.progress();
        progress.mark_changed();
        let mut rejections = self.engine.rejections();
        loop {
            let deadline = self.deadline();
            let mut batch = Batch::default();
            // Rejections before progress: what an Envoy refused is not to be taken for what it left behind.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                rejection = rejections.recv() => match rejection {
                    Ok(rejection) => self.rejected(rejection, &mut batch),
                    Err(RecvError::Lagged(lost)) => {
                        tracing::warn!(lost, "rejections by Envoys were missed: all are looked at again");
                        rejections = rejections.resubscribe();
                        self.look_at_all_rejections(&mut batch);
                    }
                    Err(RecvError::Closed) => break,
                },
                changed = progress.changed() => {
                    if changed.is_err() { break }
                    let reached = *progress.borrow_and_update();
                    self.acknowledged(reached, &mut batch);
                }
                command = self.queue.recv() => {
                    let Some(command) = command else { break };
                    self.take(command, &mut batch);
                    self.drain_queue(&mut batch);
                }
                () = tokio::time::sleep_until(deadline) => drop(self.step(Event::Tick, &mut batch)),
            }
            self.finish(batch);
        }
    }

    fn deadline(&self) -> Instant {
        const FAR: Duration = Duration::from_secs(3600);
        let held = self.state.synchronised() && !*self.synchronised.borrow();
        let look = Instant::now() + if held { LOOK_EVERY } else { FAR };
        let next = self.state.next_deadline().map(|at| self.clock.at(at));
        let times = [next, self.lingering.deadline()].into_iter().flatten();
        times.fold(look, Instant::min)
    }

    fn drain_queue(&mut self, batch: &mut Batch) {
        for _ in 1..LARGEST_BATCH {
            let Ok(command) = self.queue.try_recv() else {
                return;
            };
            self.take(command, batch);
        }
    }

    fn take(&mut self, command: Command, batch: &mut Batch) {
        match command {
            Command::Happened(event) => drop(self.step(event, batch)),
            Command::Durable(event, reply) => {
                let answer = self.step(event, batch);
                batch.answer_when_durable(reply, answer);
            }
            Command::Reported(event, reply) => {
                let answer = self.step(event, batch);
                let _ = reply.send(answer.map_err(Failure::from));
            }
            Command::Connect {
                stream,
                subscription,
                messages,
                reply,
            } => {
                let agent = AgentKey {
                    server: subscription.server_name.as_str().into(),
                    replica: subscription.replica_idx,
                };
                let with_models = !subscription.loaded_models.is_empty();
                self.opening.agent_came(Instant::now(), with_models);
                self.agents.connect(stream, messages);
                let event = Event::AgentConnected {
                    stream,
                    subscription,
                };
                let answer = self.step(event, batch);
                match &answer {
                    Ok(()) => self.agents.take_over(agent, stream),
                    Err(_) => self.agents.disconnect(stream),
                }
                let _ = reply.send(answer.map_err(Failure::from));
            }
            Command::ConnectWorker {
                connection,
                orders,
                reply,
            } => {
                let Connection {
                    worker,
                    stream,
                    name,
                    endpoint,
                } = connection;
                self.workers.connect(stream, orders);
                let event = Event::WorkerConnected {
                    worker,
                    stream,
                    name: name.clone(),
                    endpoint,
                };
                let answer = self.step(event, batch);
                match &answer {
                    Ok(()) => self.workers.take_over((worker, name), stream),
                    Err(_) => self.workers.disconnect(stream),
                }
                let _ = reply.send(answer.map_err(Failure::from));
            }
            Command::Drain { agent, reply } => {
                self.next_drain += 1;
                let token = self.next_drain;
                self.drains.insert(token, reply);
                if let Err(refusal) = self.step(Event::DrainRequested { agent, token }, batch)
                    && let Some(reply) = self.drains.remove(&token)
                {
                    let _ = reply.send(Err(refusal.into()));
                }
            }
            Command::Renew(tls, listener) => {
                batch.renewed = Some((tls, listener));
            }
            Command::Read(query) => query(&self.state, self.clock.now()),
            Command::Subscribe(kind, reply) => {
                let names = match kind {
                    Kind::Models => self.state.model_names().cloned().collect(),
                    Kind::Servers | Kind::Scaling => self.state.server_names().cloned().collect(),
                    Kind::Experiments => self.state.known_experiment_names().cloned().collect(),
                    Kind::Pipelines => self.state.pipeline_names().cloned().collect(),
                };
                let _ = reply.send(self.subscribers.add(kind, &names));
            }
        }
    }

    /// One event through the rules. Sends that fail are events as well, taken at once.
    fn step(&mut self, event: Event, batch: &mut Batch) -> Result<(), Refusal> {
        if let Event::AgentDisconnected { stream, .. } = &event {
            self.agents.disconnect(*stream);
        }
        if let Event::WorkerDisconnected { stream, .. } = &event {
            self.workers.disconnect(*stream);
        }
        let outcome = self.state.step(event, self.clock.now());
        let mut failed = batch.collect(outcome.effects, &self.agents, &self.workers);
        while let Some(event) = failed.pop() {
            let after = self.state.step(event, self.clock.now());
            failed.extend(batch.collect(after.effects, &self.agents, &self.workers));
        }
        outcome.reply
    }

    fn acknowledged(&mut self, reached: Progress, batch: &mut Batch) {
        let event = Event::RoutesAcknowledged {
            serving: reached.serving,
            released: reached.released,
        };
        let _ = self.step(event, batch);
    }

    fn rejected(&mut self, rejection: RejectionEvent, batch: &mut Batch) {
        let RejectionEvent {
            type_url,
            resource,
            reason,
        } = rejection;
        match &reason {
            Some(reason) => {
                tracing::error!(type_url, resource, reason, "an Envoy refuses a resource")
            }
            None => tracing::info!(type_url, resource, "no Envoy refuses the resource any more"),
        }
        let models = self.refusals.set(&type_url, &resource, reason, &self.world);
        self.tell_of_filter(batch);
        self.tell_refusals(models.into_iter(), batch);
    }

    fn look_at_all_rejections(&mut self, batch: &mut Batch) {
        let all = self.engine.envoys().into_iter().flat_map(|e| e.rejections);
        let models = self.refusals.replace(all, &self.world);
        self.tell_of_filter(batch);
        self.tell_refusals(models.into_iter(), batch);
    }

    fn tell_of_filter(&mut self, batch: &mut Batch) {
        if let Some(reason) = self.refusals.filter_changed() {
            let _ = self.step(Event::FilterRejected { reason }, batch);
        }
    }

    /// Tells the rules what changed of what Envoys refuse of these models. Whether anything did.
    fn tell_refusals(&mut self, models: impl Iterator<Item = Arc<str>>, batch: &mut Batch) -> bool {
        let changed = self.refusals.changed(models, &self.world);
        let any = !changed.is_empty();
        for (model, reason) in changed {
            let model = model.to_string();
            let _ = self.step(Event::RouteRejected { model, reason }, batch);
        }
        any
    }

    /// Carries a batch out.
    fn finish(&mut self, batch: Batch) {
        let Batch {
            writes,
            told,
            orders,
            routes,
            endpoints,
            models,
            servers,
            scaled,
            shares,
            experiments,
            pipelines,
            drained,
            renewed,
        } = batch;
        self.committer.submit(writes, told, orders);
        let mut changes = Vec::new();
        if let Some((tls, listener)) = renewed {
            changes = self.world.renew(&self.state, tls);
            changes.push(listener);
        }
        if !routes.is_empty() || !endpoints.is_empty() || !shares.is_empty() {
            let update = self.world.update(&self.state, &routes, &endpoints, &shares);
            changes.extend(update);
        }
        let now = Instant::now();
        self.lingering.hold_back(&mut changes, now);
        changes.extend(self.lingering.take(now));
        if !changes.is_empty() {
            self.engine.apply(self.state.generation(), changes);
        }
        self.open_when_synchronised();
        self.subscribers.tell(Kind::Models, &models);
        self.subscribers.tell(Kind::Servers, &servers);
        self.subscribers.tell(Kind::Scaling, &scaled);
        self.subscribers.tell(Kind::Experiments, &experiments);
        self.subscribers.tell(Kind::Pipelines, &pipelines);
        self.tell_who_is_measured();
        for (token, complete) in drained {
            if let Some(reply) = self.drains.remove(&token) {
                let _ = reply.send(Ok(complete));
            }
        }
        // Another route may lead over a cluster that is refused, or no longer.
        let mut after = Batch::default();
        if self.tell_refusals(routes.into_iter(), &mut after) {
            self.finish(after);
        }
    }

    fn tell_who_is_measured(&self) {
        let wanted: Names = self.state.measured_experiments().cloned().collect();
        self.measured.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }

    /// Envoys get nothing before the world is whole: a smaller one would take models away that agents still hold.
    fn open_when_synchronised(&mut self) {
        if *self.synchronised.borrow() || !self.state.synchronised() {
            return;
        }
        if self
            .opening
            .may_open(self.engine.audience(), Instant::now())
        {
            tracing::info!("synchronised: Envoys are served");
            self.engine.open();
            self.synchronised.send_replace(true);
        }
    }
}

/// Names of objects.
pub type Names = std::collections::BTreeSet<Arc<str>>;
