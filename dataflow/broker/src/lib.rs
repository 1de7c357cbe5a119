//! A Kafka broker for one machine, without set-up: one process, or a part of one.
//!
//! It speaks the protocol of librdkafka and of Java's clients: topics, records, consumer groups of the classic protocol,
//! idempotent producers and transactions. It keeps record batches as the bytes it received, in memory up to a limit, and in
//! files where it has a folder. What it does not support it refuses.
//!
//! ```no_run
//! # async fn run() -> anyhow::Result<()> {
//! let broker = seldon_broker::Broker::start(seldon_broker::Config::default()).await?;
//! println!("bootstrap.servers=127.0.0.1:{}", broker.port());
//! broker.stop().await;
//! # Ok(()) }
//! ```
#![warn(missing_docs)]

mod api;
mod batch;
mod config;
mod connection;
mod disk;
mod group;
mod groups;
mod journal;
mod log;
mod node;
mod schema;
mod server;
mod topic;
mod transactions;

pub use config::Config;
pub use server::{Broker, Running};

/// For fuzzing: hands requests, without their lengths, to a broker with nothing in it.
#[doc(hidden)]
pub use connection::answer_each;
