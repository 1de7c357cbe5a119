//! The scheduler's rules: `step(state, event, now) → effects`.
//!
//! No I/O, no clock, no async: whoever owns a [`State`] feeds it [`Event`]s together with the time and carries out
//! the [`Effect`]s it gets back. Every outcome of an effect returns as another event. Choices are deterministic.
mod advice;
mod config;
mod effect;
mod event;
mod experiment;
mod explain;
pub mod invariants;
mod model;
mod pipeline;
mod reconcile;
mod replica_state;
mod retire;
mod route;
mod scaling;
mod schedule;
mod server;
mod size;
mod state;
mod status;
mod step;
mod sync;
mod view;
mod world;

pub use config::{Config, Synchronisation};
pub use effect::{
    Counts, Effect, Order, Record, Refusal, RolloutEvent, RolloutOutcome, RolloutRecord,
};
pub use event::{AgentKey, Event, Generation, Measurement, Now, StreamId, Worker};
pub use experiment::{CandidateVerdict, ExperimentExplanation, MirrorVerdict, RolloutVerdict};
pub use explain::{Explanation, ReplicaVerdict, ServerVerdict};
pub use model::RETRY_PARAMETER;
pub use pipeline::{PipelineExplanation, StepVerdict, WorkerVerdict};
pub use state::{Outcome, State};
pub use view::{
    Endpoint, ExperimentRoute, LiveCandidate, LiveMirror, PIPELINE_GATEWAYS, PIPELINE_SUFFIX,
    ReplicaSet, Route, Split,
};
