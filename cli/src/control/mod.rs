//! Commands to the scheduler.
mod bars;
pub(crate) mod experiment;
mod experiment_page;
pub(crate) mod explain;
mod explain_pipeline;
mod explain_route;
pub(crate) mod files;
mod inspect;
pub(crate) mod model;
pub(crate) mod pipeline;
pub(crate) mod server;
mod session;
pub(crate) mod xds;

pub(crate) use session::Session;
