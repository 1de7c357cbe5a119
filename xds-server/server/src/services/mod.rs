//! The gRPC services.
mod agents;
mod chainer;
mod health;
mod introspect;
mod scheduler;
mod streams;
mod workers;

use tonic::Status;

pub use agents::Agents;
pub use chainer::Engines;
pub use health::Health;
pub use introspect::Introspection;
pub use scheduler::{GatewayPorts, SchedulerApi};

/// An honest answer for what is documented and not built yet.
fn not_built(what: &str) -> Status {
    Status::unimplemented(format!(
        "{what} are not supported by this version of the scheduler"
    ))
}
