//! What a step asks its owner to do.
use std::{sync::Arc, time::Duration};

use seldon_proto::{
    agent::ModelOperationMessage,
    chainer::PipelineUpdateMessage,
    scheduler::{Experiment, Model, ModelStatusResponse, Pipeline, PipelineStatusResponse},
};

use crate::{AgentKey, StreamId, Worker};

/// Desired state, as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A model that is wanted, or (`deleted`) one whose removal is still under way.
    Model {
        name: Arc<str>,
        /// The newest version's number.
        version: u32,
        spec: Arc<Model>,
        deleted: bool,
        /// The number with which its present life began: what an agent has of an older one is of a life before.
        born: u32,
        /// Replicas that autoscaling has given it, in place of those of the specification.
        scaled: Option<u32>,
    },
    /// An experiment that is wanted.
    Experiment {
        name: Arc<str>,
        spec: Arc<Experiment>,
        /// What stays in force where `spec` cannot be.
        last_good: Option<Arc<Experiment>>,
        rollout: Option<RolloutRecord>,
    },
    /// A pipeline that is wanted, or (`deleted`) one whose removal is still under way.
    Pipeline {
        name: Arc<str>,
        /// Those that are not gone yet, newest last; at least one. Of a deleted one, a last version whose number does not
        /// rise was asked for since: it begins when the others are gone.
        versions: Vec<Arc<Pipeline>>,
        deleted: bool,
        /// Of a life before: engines that are away may run them, and are to end them.
        former: Vec<Arc<Pipeline>>,
    },
    /// A server's wish for replicas.
    Server {
        name: Arc<str>,
        expected_replicas: u32,
        min_replicas: u32,
        max_replicas: u32,
    },
}

/// How far a guarded roll-out has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolloutRecord {
    /// From 0.
    pub step: u32,
    pub outcome: RolloutOutcome,
    /// Oldest first.
    pub history: Vec<RolloutEvent>,
    /// What the default did in the last step in which it had requests.
    pub usual: Option<Counts>,
}

/// What was counted of one side of a roll-out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that it was chosen for.
    pub begun: u64,
    /// Those that have ended.
    pub requests: u64,
    pub errors: u64,
    pub microseconds: u64,
}

/// Where a roll-out stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RolloutOutcome {
    #[default]
    Running,
    Complete,
    RolledBack,
}

/// One decision of a roll-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutEvent {
    /// Wall clock since 1970.
    pub at: Duration,
    /// What the candidate gets from then on, of a hundred requests.
    pub percent: u32,
    pub reason: String,
}

/// What a worker is told to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// For a model gateway.
    Model(Box<ModelStatusResponse>),
    /// For a pipeline gateway.
    Pipeline(Box<PipelineStatusResponse>),
    /// For an engine.
    Update(Box<PipelineUpdateMessage>),
}

/// What a step asks its owner to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Must be durable before the event's request is answered.
    Persist(Record),
    /// The experiment was stopped.
    ForgetExperiment(Arc<str>),
    /// The model is gone for good.
    ForgetModel(Arc<str>),
    /// The pipeline is gone for good.
    ForgetPipeline(Arc<str>),
    /// The server is gone for good.
    ForgetServer(Arc<str>),
    /// A command for an agent; a stream that is gone gives [`crate::Event::SendFailed`].
    Send {
        agent: AgentKey,
        stream: StreamId,
        message: Box<ModelOperationMessage>,
    },
    /// An order for a worker; a stream that is gone gives [`crate::Event::WorkerDisconnected`].
    Tell {
        worker: Worker,
        stream: StreamId,
        name: Arc<str>,
        message: Order,
    },
    /// `State::route(model)` changed (also: appeared or disappeared).
    RouteChanged(Arc<str>),
    /// `State::endpoints(set)` changed for every set of this server.
    EndpointsChanged(Arc<str>),
    /// `State::experiment_route(experiment)` changed (also: appeared or disappeared).
    ExperimentRouted(Arc<str>),
    /// The status of an experiment changed: tell subscribers.
    ExperimentChanged(Arc<str>),
    /// The status of a model changed: tell subscribers.
    ModelChanged(Arc<str>),
    /// The status of a pipeline changed: tell subscribers.
    PipelineChanged(Arc<str>),
    /// The status of a server changed: tell subscribers.
    ServerChanged(Arc<str>),
    /// `State::scaling_request(server)` changed: tell whoever owns the server's replicas.
    ServerScaled(Arc<str>),
    /// A drain has ended; `complete` when nothing is routed to the replica any more.
    Drained { token: u64, complete: bool },
}

/// Why a request was not accepted; the text names the object and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// gRPC `FailedPrecondition`.
    #[error("{0}")]
    Precondition(String),
    /// gRPC `InvalidArgument`.
    #[error("{0}")]
    Invalid(String),
    /// gRPC `Internal`: what an agent reported does not fit what was asked of it.
    #[error("{0}")]
    Mismatch(String),
}
