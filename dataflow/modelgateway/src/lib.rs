//! The model gateway: what is written to a model's inputs topic is asked of the model through Envoy, and the answer, or
//! the error, is written.
//!
//! Order per model and key is kept. An offset is stored when everything up to it is written; what a successor reads
//! again is marked. See [`Options`] for the other guarantee.
#![warn(missing_docs)]

mod absence;
mod app;
mod ask;
mod bucket;
mod control;
mod exactly_once;
mod failure;
mod gateway;
mod halves;
mod look;
mod metrics;
mod model;
mod options;
mod progress;
mod recent;
mod result;
mod shared;
mod work;

pub use app::{run, run_on};
pub use options::{Guarantee, Options};
