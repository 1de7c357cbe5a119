//! Kafka as pipelines use it. No other crate knows librdkafka.
//!
//! Clients are few and shared: a process has one [`Producer`], one [`Consumer`] of its own assignment (never a member of
//! a group that rebalances), and one [`Admin`]. What is away comes back by itself: errors are typed and most are retried
//! inside.
#![warn(missing_docs)]

mod access;
mod admin;
mod consumer;
mod context;
mod error;
mod fields;
mod gather;
mod maker;
mod oauth;
mod producer;
mod security;
mod settings;
mod transactions;
mod wire;

pub use admin::Admin;
pub use consumer::{Consumer, Position};
pub use error::{ReadError, SendError};
pub use producer::{Delivery, Producer};
pub use settings::Settings;
pub use transactions::Transactions;

/// What fails here unless said otherwise: the text names the object and the way out.
pub type Result<T, E = anyhow::Error> = std::result::Result<T, E>;
