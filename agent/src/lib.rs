//! The agent beside each inference server: registers with the scheduler, brings artefacts from storage into the
//! server's repository, has models loaded and unloaded, and passes inference requests on.
pub mod admin;
mod app;
pub mod artefact;
pub mod config;
pub mod control;
mod hash;
pub mod models;
mod options;
mod owner;
mod permits;
pub mod repository;
pub mod scaling;
mod server;

pub use app::{Listeners, run, scheduler};
pub use options::{Options, ServerType};
