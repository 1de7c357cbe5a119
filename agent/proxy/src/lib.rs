//! The agent's streaming reverse proxy: Envoy on one side, the inference server on the other.
//!
//! Each listener speaks HTTP/1.1 and HTTP/2 without an upgrade, REST and gRPC alike. The proxy allows inference paths
//! and RPCs only, names the model in every request itself (the header `seldon-internal-model`, which Envoy overwrites,
//! is the only thing that decides which model answers), and neither holds nor decodes bodies, but for one thing: behind
//! `infer` and `infer_stream` a model is also spoken to in OpenAI's language, which is translated. Such a request and its
//! answer are held whole, within bounds; its stream is translated event by event.
//!
//! # Failures
//! - What the proxy refuses it answers: JSON `{"error": …}` for REST, a gRPC status for gRPC.
//! - When the inference server cannot be reached, or its connection breaks before it sent response headers, the proxy
//!   *resets* the request (HTTP/1.1: closes the connection, HTTP/2: `RST_STREAM`, `REFUSED_STREAM` if nothing was sent)
//!   instead of answering a status: Envoy retries a reset on another replica and never retries a status.
//! - After response headers a broken server breaks the response; nothing is sent twice.
#![warn(missing_docs)]

mod admission;
mod body;
mod errors;
mod frames;
mod grpc;
mod headers;
mod held;
mod metrics;
mod models;
mod openai;
mod openai_stream;
mod pool;
mod protobuf;
mod proxy;
mod rest;
mod routes;
mod server;

pub use errors::Reset;
pub use frames::{FrameError, Rewriter};
pub use metrics::{Gauges, Metrics};
pub use models::{Identity, Lease, Limits, Models, NotServed, Upstream};
pub use proxy::Proxy;
