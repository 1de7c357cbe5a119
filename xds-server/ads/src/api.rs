//! The surface of the engine.
use std::{sync::Arc, time::Duration};

use bytes::Bytes;

/// Numbers the states of the world, given by the caller of `Engine::apply`; grows.
pub type Generation = u64;

/// One change of one resource.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// `body` is the encoded message, without the `Any` around it.
    Put {
        type_url: &'static str,
        name: Arc<str>,
        body: Bytes,
    },
    Remove {
        type_url: &'static str,
        name: Arc<str>,
    },
}

/// The Envoy at the other end of a stream. Its identity is the stream: every documented Envoy has the same node id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub id: String,
    pub cluster: String,
    /// The peer's address.
    pub address: String,
    /// Such as `1.40.0`; empty where it did not say.
    pub version: String,
    /// The node's metadata as JSON.
    pub metadata: serde_json::Value,
}

/// Changes a resource for one Envoy, such as the port of a listener. Must depend on nothing but its arguments.
pub trait Tailor: Send + Sync + 'static {
    /// `None`: as it is.
    fn tailor(&self, node: &Node, type_url: &str, name: &str, body: &Bytes) -> Option<Bytes>;
}

/// How the engine treats its streams.
#[derive(Clone)]
pub struct Settings {
    /// Types in the order in which additions are sent, each acknowledged before the next; removals go the other way.
    /// Types that are not named are answered as empty. Endpoints (EDS) wait for nothing: Envoy acknowledges a cluster
    /// only when it has its endpoints.
    pub order: Vec<&'static str>,
    pub tailor: Option<Arc<dyn Tailor>>,
    /// A stream that has not answered for so long no longer holds up `Progress::serving`. After thirty times as long, and
    /// after a lease, it is closed: it would hold up `Progress::released` for ever.
    pub lag: Duration,
    /// How long an Envoy that left may go on with its last world and holds up `Progress::released`.
    pub lease: Duration,
}

/// What all Envoys together have reached. Neither number ever falls; both are 0 until the engine is open.
///
/// A refused resource does not hold them up: it is reported as a rejection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Additions up to here are acknowledged by every stream that keeps up; all of them where no stream is open.
    pub serving: Generation,
    /// Removals up to here are acknowledged by every stream, and no Envoy that left is within its lease with less.
    /// A new engine knows of no Envoy, so one of unknown state counts as away for the first lease.
    pub released: Generation,
}

/// Who is there to be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// An Envoy has subscribed.
    pub subscribed: bool,
    /// An Envoy came with versions of a former stream: it still serves that world.
    pub returning: bool,
}

/// A resource that an Envoy refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub type_url: String,
    pub resource: String,
    pub reason: String,
    /// For how long it has been refused.
    pub since: Duration,
}

/// A resource that the first Envoy refuses, or that no Envoy refuses any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectionEvent {
    pub type_url: String,
    pub resource: String,
    /// `None`: accepted after all, removed, or the Envoys that refused it are gone.
    pub reason: Option<String>,
}

/// What one Envoy has seen of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeStatus {
    pub type_url: String,
    /// Responses sent.
    pub sent: u64,
    /// Responses acknowledged.
    pub acknowledged: u64,
    /// Resources that wait to be sent or to be acknowledged.
    pub pending: u64,
    /// Resources the Envoy holds.
    pub resources: u64,
}

/// One Envoy, connected or within its lease.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvoyStatus {
    pub stream: u64,
    pub node: Node,
    pub connected: bool,
    pub delta: bool,
    /// Since the stream opened, or was lost.
    pub since: Duration,
    /// Additions and removals up to here are acknowledged.
    pub acknowledged: Generation,
    pub types: Vec<TypeStatus>,
    pub rejections: Vec<Rejection>,
}
