//! Aggregated discovery: incremental (delta) and state-of-the-world in one engine.
//!
//! The engine knows resources by type and name, and what each stream has acknowledged; it knows nothing of models.
//! [`Engine::apply`] changes the world; each stream follows at the pace of its own acknowledgements, types in order;
//! [`Engine::progress`] tells what all have reached. That a scope's key never moves is the caller's care.
mod api;
mod engine;
mod lease;
mod service;
mod stream;
mod subscription;
mod wire;
mod world;

pub use api::{
    Audience, Change, EnvoyStatus, Generation, Node, Progress, Rejection, RejectionEvent, Settings,
    Tailor, TypeStatus,
};
pub use engine::Engine;
pub use service::Discovery;
