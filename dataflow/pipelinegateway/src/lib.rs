//! Answers inference requests to pipelines: from REST and gRPC into Kafka, and back.
//!
//! A request becomes one record on its pipeline's inputs topic, with an identity of its own; the record with that identity
//! on the outputs topic is its answer. The scheduler says which pipelines are served here.
#![warn(missing_docs)]

mod app;
mod control;
mod failure;
mod gateway;
mod grpc;
mod headers;
mod health;
mod metrics;
mod options;
mod replies;
mod rest;
mod room;
mod routes;
mod server;
mod target;
mod upstream;
mod waiting;

pub use app::{Listeners, run};
pub use gateway::Limits;
pub use options::Options;
