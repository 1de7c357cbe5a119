//! The dataflow engine: carries the records of pipelines from step to step.
//!
//! What a record means is decided by `seldon-flow`; this is the shell around it. `chainer` takes the scheduler's
//! orders, `control` carries them out, `takeover` finds out where a former owner was, `worker` is the loop over all
//! records, `writer` delivers results, `progress` and `ledger` know how far everybody has come.
#![warn(missing_docs)]

mod app;
mod chainer;
mod context;
mod control;
mod health;
mod ledger;
mod metrics;
mod options;
mod progress;
mod takeover;
mod topics;
mod worker;
mod writer;

pub use app::{bind, run};
pub use options::{Guarantee, Options};
