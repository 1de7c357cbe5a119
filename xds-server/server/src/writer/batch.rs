//! What a batch of events asks for.
use std::sync::Arc;

use seldon_ads::Change;
use seldon_core::{AgentKey, Effect, Event, Order, Refusal, StreamId};
use seldon_proto::agent::ModelOperationMessage;

use super::{Agents, Failure, Names, Reply, Workers};
use crate::{
    resources::Tls,
    store::{Dispatch, Key, Outcome, Write},
};

type Told = Box<dyn FnOnce(Outcome) + Send>;

/// Effects, gathered: several changes of one thing are one.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) writes: Vec<Write>,
    pub(super) told: Vec<Told>,
    /// To workers, once the writes are durable.
    pub(super) orders: Vec<Dispatch>,
    pub(super) routes: Names,
    pub(super) endpoints: Names,
    pub(super) models: Names,
    pub(super) servers: Names,
    /// Servers that should have another number of replicas.
    pub(super) scaled: Names,
    /// Experiments that share requests out in another way.
    pub(super) shares: Names,
    pub(super) experiments: Names,
    pub(super) pipelines: Names,
    /// Drains that ended, and whether nothing is routed there any more.
    pub(super) drained: Vec<(u64, bool)>,
    /// Other certificates, and the listener that holds them.
    pub(super) renewed: Option<(Arc<Tls>, Change)>,
}

impl Batch {
    /// Takes effects in. Commands to agents go out at once; what cannot be sent comes back as events.
    pub(super) fn collect(
        &mut self,
        effects: Vec<Effect>,
        agents: &Agents,
        workers: &Workers,
    ) -> Vec<Event> {
        let mut failed = Vec::new();
        for effect in effects {
            match effect {
                Effect::Persist(record) => self.writes.push(Write::Put(record)),
                Effect::ForgetModel(name) => self.writes.push(Write::ForgetModel(name)),
                Effect::ForgetServer(name) => self.writes.push(Write::ForgetServer(name)),
                Effect::ForgetExperiment(name) => {
                    self.writes.push(Write::ForgetExperiment(name));
                }
                Effect::Send {
                    agent,
                    stream,
                    message,
                } => {
                    let refused = agents.send(stream, *message).err();
                    failed.extend(refused.map(|message| send_failed(agent, stream, message)));
                }
                Effect::RouteChanged(model) => drop(self.routes.insert(model)),
                Effect::EndpointsChanged(server) => drop(self.endpoints.insert(server)),
                Effect::ModelChanged(model) => drop(self.models.insert(model)),
                Effect::ServerChanged(server) => drop(self.servers.insert(server)),
                Effect::ServerScaled(server) => drop(self.scaled.insert(server)),
                Effect::ExperimentRouted(experiment) => drop(self.shares.insert(experiment)),
                Effect::ExperimentChanged(experiment) => {
                    self.experiments.insert(experiment);
                }
                Effect::ForgetPipeline(name) => self.writes.push(Write::ForgetPipeline(name)),
                Effect::PipelineChanged(pipeline) => drop(self.pipelines.insert(pipeline)),
                Effect::Tell {
                    worker,
                    stream,
                    name,
                    message,
                } => {
                    let Some(orders) = workers.sender(stream) else {
                        failed.push(Event::WorkerDisconnected {
                            worker,
                            stream,
                            name,
                        });
                        continue;
                    };
                    self.orders.push(Dispatch {
                        about: about(&message),
                        // A stream that has ended meanwhile says so itself.
                        send: Box::new(move || drop(orders.send(message))),
                    });
                }
                Effect::Drained { token, complete } => self.drained.push((token, complete)),
            }
        }
        failed
    }

    /// Refusals wait as well: an answer must not overtake the one of an earlier request.
    pub(super) fn answer_when_durable(&mut self, reply: Reply, answer: Result<(), Refusal>) {
        self.told.push(Box::new(move |outcome| {
            let answer = match (answer, outcome) {
                (Err(refusal), _) => Err(Failure::from(refusal)),
                (Ok(()), Err(error)) => Err(Failure::Store(error.to_string())),
                (Ok(()), Ok(())) => Ok(()),
            };
            let _ = reply.send(answer); // the caller may have left
        }));
    }
}

fn about(order: &Order) -> Key {
    match order {
        Order::Model(model) => Key::Model(model.model_name.as_str().into()),
        Order::Pipeline(pipeline) => Key::Pipeline(pipeline.pipeline_name.as_str().into()),
        Order::Update(update) => Key::Pipeline(update.pipeline.as_str().into()),
    }
}

fn send_failed(agent: AgentKey, stream: StreamId, message: ModelOperationMessage) -> Event {
    let version = message.model_version.unwrap_or_default();
    let meta = version.model.and_then(|m| m.meta).unwrap_or_default();
    Event::SendFailed {
        agent,
        stream,
        model: meta.name,
        version: version.version,
    }
}
