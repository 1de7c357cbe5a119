//! What a pipeline does with each record: no I/O, no clock, no async.
//!
//! [`Flow`] is one pipeline. Records go in with the time, records come out with what they follow from. A request is
//! told from others by its [`seldon_records::Identity`], which travels with it; records of one run meet by it in joins,
//! those of other pipelines by their key. All that waits has a time limit.
#![warn(missing_docs)]

mod arrival;
mod batches;
mod endings;
mod failures;
mod flow;
mod graph;
mod held;
mod joins;
mod live;
mod members;
mod remembered;
mod rounds;
mod rows;
mod runs;
mod steps;
mod tensors;
mod timers;
mod types;
mod waits;
mod write;

pub use flow::Flow;
pub use runs::InFlight;
pub use types::{BadPipeline, Counts, Emit, Input, Limits};
pub use waits::{At, Place};
