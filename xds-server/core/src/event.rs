//! What can happen to the world.
use std::{sync::Arc, time::Duration};

use seldon_proto::{
    agent::{AgentSubscribeRequest, ModelEventMessage, ModelScalingTriggerMessage},
    chainer::PipelineUpdateStatusMessage,
    scheduler::{
        Experiment, KubernetesMeta, Model, ModelUpdateStatusMessage, Pipeline, ServerNotify,
    },
};

use crate::{Endpoint, Record};

/// The time of an event, told by whoever observed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Since an arbitrary start; never goes back. All deadlines are in this.
    pub monotonic: Duration,
    /// Wall clock since 1970; only shown, never compared.
    pub wall: Duration,
}

/// Counts changes of the routed world; grows by one with every change of any route or endpoint.
pub type Generation = u64;

/// One subscription of an agent, unique in the life of a scheduler.
pub type StreamId = u64;

/// Processes that pipelines run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Worker {
    /// Takes requests to models from topics and writes their answers to others.
    ModelGateway,
    /// Takes requests to pipelines over HTTP and gRPC.
    PipelineGateway,
    /// Moves records from step to step.
    Engine,
}

/// A replica of a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentKey {
    pub server: Arc<str>,
    pub replica: u32,
}

/// What Envoys counted of a candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measurement {
    pub experiment: Arc<str>,
    pub candidate: Arc<str>,
    /// Requests that it was chosen for.
    pub begun: u64,
    /// Those that ended.
    pub requests: u64,
    /// Those answered with a status of 500 or more, 429 or 408, with such a gRPC status, or not at all.
    pub errors: u64,
    /// Sum over the requests, from the choice of the candidate to the end of the answer.
    pub microseconds: u64,
}

/// What can happen to the world. Requests are answered by [`crate::Outcome::reply`].
#[derive(Clone, Debug)]
pub enum Event {
    /// Desired state read back from the store, before anything else happens.
    Restored(Vec<Record>),
    LoadModel(Box<Model>),
    UnloadModel {
        name: String,
        kubernetes_meta: Option<KubernetesMeta>,
    },
    StartExperiment(Box<Experiment>),
    StopExperiment {
        name: String,
    },
    /// A pipeline that is wanted. Its version, and where it has none its uid, are given by the rules.
    LoadPipeline(Box<Pipeline>),
    UnloadPipeline {
        name: String,
    },
    /// A worker subscribed. A second stream of the same name replaces the first.
    WorkerConnected {
        worker: Worker,
        stream: StreamId,
        name: Arc<str>,
        /// Of a pipeline gateway: where Envoys find it; `replica` is set by the rules.
        endpoint: Option<Endpoint>,
    },
    /// A worker's stream ended, or could not take an order. Ignored where a newer stream of the same name took over.
    WorkerDisconnected {
        worker: Worker,
        stream: StreamId,
        name: Arc<str>,
    },
    /// An engine or a pipeline gateway says how an order ended.
    PipelineReported {
        worker: Worker,
        report: Box<PipelineUpdateStatusMessage>,
    },
    /// A model gateway says how an order ended.
    ModelReported(Box<ModelUpdateStatusMessage>),
    /// `maxShardCountMultiplier` is another.
    Shards(u32),
    /// What Envoys counted since they were last read, of experiments with a roll-out under way; also that they counted
    /// nothing. Of a step under way, what comes after the first reading counts.
    Measured(Vec<Measurement>),
    /// No Envoy could be read.
    Unmeasured,
    /// An Envoy refused the filter's configuration, or (`None`) all took it after all.
    FilterRejected {
        reason: Option<String>,
    },
    ServerNotify {
        servers: Vec<ServerNotify>,
        first_sync: bool,
    },
    /// An agent subscribed. A second stream of the same replica replaces the first.
    AgentConnected {
        stream: StreamId,
        subscription: Box<AgentSubscribeRequest>,
    },
    /// A stream ended. Ignored where a newer stream of the same replica took over.
    AgentDisconnected {
        agent: AgentKey,
        stream: StreamId,
    },
    /// An agent reported on one of its models.
    AgentReported(Box<ModelEventMessage>),
    /// An agent saw one of its models cross a threshold of autoscaling.
    ScalingTriggered(Box<ModelScalingTriggerMessage>),
    /// An effect `Send` could not be delivered: the stream counts as lost, as if it had ended.
    SendFailed {
        agent: AgentKey,
        stream: StreamId,
        model: String,
        version: u32,
    },
    /// An agent is about to stop and asks for its models to be served elsewhere first. Answered by
    /// [`crate::Effect::Drained`] with the same token.
    DrainRequested {
        agent: AgentKey,
        token: u64,
    },
    /// `serving`: every Envoy that keeps up has acknowledged this generation. `released`: no Envoy, connected or
    /// within its routing lease, can still use anything older.
    RoutesAcknowledged {
        serving: Generation,
        released: Generation,
    },
    /// An Envoy refused the route of a model, or (`None`) took it after all.
    RouteRejected {
        model: String,
        reason: Option<String>,
    },
    /// A deadline given by [`crate::State::next_deadline`] has come.
    Tick,
}
