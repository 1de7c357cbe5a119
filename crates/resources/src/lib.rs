//! The custom resources as a user writes them: Model, Server, Pipeline and Experiment manifests.
//!
//! [`read`] turns the text of a manifest file into checked [`Manifest`]s or into every mistake found, each with its
//! line and the path of its field. Conversion to the scheduler's messages is a pure method of each kind.
#![warn(missing_docs)]

mod check;
mod error;
mod experiment;
mod join;
mod meta;
mod model;
mod pipeline;
mod quantity;
mod read;
mod server;
mod tree;

pub use check::is_valid_name;
pub use error::{Mistake, Mistakes};
pub use experiment::{Candidate, Cohort, Experiment, ExperimentSpec, Mirror, Rollout};
pub use join::Join;
pub use meta::ObjectMeta;
pub use model::{Dataflow, Explainer, Llm, Logger, Model, ModelSpec, Parameter};
pub use pipeline::{Batch, Pipeline, PipelineInput, PipelineOutput, PipelineSpec, PipelineStep};
pub use quantity::{Quantity, QuantityError};
pub use read::{Document, Manifest, read};
pub use server::{ClaimRetention, ImageOverrides, Server, ServerSpec};

/// The group and version of every kind here.
pub const API_VERSION: &str = "mlops.seldon.io/v1alpha1";
