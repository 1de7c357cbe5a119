//! Commands to the scheduler.
pub(crate) mod experiment;
pub(crate) mod explain;
pub(crate) mod files;
pub(crate) mod model;
pub(crate) mod pipeline;
pub(crate) mod server;
mod session;
pub(crate) mod xds;

pub(crate) use session::Session;
