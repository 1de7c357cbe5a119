//! The gRPC services.
mod agents;
mod health;
mod introspect;
mod scheduler;
mod streams;

use tonic::Status;

pub use agents::Agents;
pub use health::Health;
pub use introspect::Introspection;
pub use scheduler::SchedulerApi;

/// An honest answer for what is documented and not built yet.
fn not_built(what: &str) -> Status {
    Status::unimplemented(format!(
        "{what} are not supported by this version of the scheduler"
    ))
}
