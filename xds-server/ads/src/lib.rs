//! Aggregated discovery: incremental (delta) and state-of-the-world in one engine.
//!
//! The engine knows resources by type and name, and what each stream has acknowledged; it knows nothing of models.
mod api;

pub use api::{Change, EnvoyStatus, Generation, Node, Progress, Rejection, Settings, Tailor, TypeStatus};
