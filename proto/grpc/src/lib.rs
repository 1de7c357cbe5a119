//! Clients and servers of the gRPC services. Their messages are in `seldon-proto`.
#![allow(missing_docs, clippy::all)]

mod plain;

pub use plain::Plain;

macro_rules! service {
    ($($(#[$doc:meta])* $module:ident = $file:literal;)*) => {$(
        $(#[$doc])*
        pub mod $module {
            include!(concat!(env!("OUT_DIR"), "/", $file, ".rs"));
        }
    )*};
}

service! {
    /// Served by the scheduler to agents.
    agent = "seldon.mlops.agent";
    /// Served by each agent to developers.
    agent_debug = "seldon.mlops.agent_debug";
    /// Served by the scheduler to dataflow engines.
    chainer = "seldon.mlops.chainer";
    /// Served beside every control plane service.
    health = "seldon.mlops.health";
    /// Served by the scheduler: what it did and why. Ours, not part of the documented surface.
    introspect = "seldon.mlops.introspect";
    /// Served by a test tool.
    proxy = "seldon.mlops.proxy";
    /// Served by the scheduler to operators, command lines and gateways.
    scheduler = "seldon.mlops.scheduler";
    /// The Open Inference Protocol.
    inference = "inference";
}
