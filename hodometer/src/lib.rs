//! Optional usage metrics: what is in use, counted and sent to the addresses that were given, and nowhere else.
//!
//! [`Tally`] counts the scheduler's statuses and [`Usage`] is what leaves: pure, without I/O. The other modules ask the
//! scheduler, ask Kubernetes where there is one, and publish. There is no default address: without one nothing is asked
//! and nothing is sent.
#![warn(missing_docs)]

mod app;
mod cluster;
mod event;
mod exchange;
mod options;
mod publish;
pub mod receiver;
mod scheduler;
mod tally;
mod target;
mod usage;
mod workload;

pub use app::run;
pub use options::Options;
pub use tally::Tally;
pub use usage::{Features, Installation, Level, Limits, Resources, Usage};
