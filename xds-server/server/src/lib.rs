//! The scheduler: carries out the rules of `seldon-core` and drives the Envoys through `seldon-ads`.
//!
//! `system` wires it: services hand events to the `writer`, which owns the rules' state and carries out their effects;
//! `resources` turns the world into Envoy's configuration; `store` keeps desired state.
pub mod certificates;
pub mod clock;
pub mod flags;
pub mod kafka;
pub mod measure;
pub mod probes;
pub mod resources;
pub mod services;
pub mod sockets;
pub mod store;
pub mod system;
pub mod writer;
