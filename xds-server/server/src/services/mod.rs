//! The gRPC services.
mod agents;
mod chainer;
mod health;
mod introspect;
mod scheduler;
mod streams;
mod workers;

pub use agents::Agents;
pub use chainer::Engines;
pub use health::Health;
pub use introspect::Introspection;
pub use scheduler::{GatewayPorts, SchedulerApi};
