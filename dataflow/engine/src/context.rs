//! What the parts of one incarnation of the engine share.
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use seldon_kafka::{Admin, Consumer, Producer, SendError, Settings, Transactions};
use seldon_records::Names;
use tokio::sync::{Mutex, Notify};

use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::topics::Partitions;
use crate::worker::now_ms;

/// One incarnation: an engine that lost its right to write begins anew with another.
pub struct Context {
    /// Its name in the progress topic, and its transactional id.
    pub me: String,
    /// Of topics.
    pub names: Names,
    /// The progress topic.
    pub progress: Arc<str>,
    /// Results and progress in transactions.
    pub exact: bool,
    /// The only reader.
    pub consumer: Arc<Consumer>,
    /// For topics.
    pub admin: Arc<Admin>,
    /// For progress at a take-over, and for results unless they are in transactions.
    pub producer: Producer,
    /// To fence others.
    pub kafka: Settings,
    /// What all engines wrote about their progress.
    pub ledger: Ledger,
    /// Of topics.
    pub partitions: Partitions,
    /// To count.
    pub metrics: Metrics,
    /// When the worker was last seen at work.
    pub beat: Arc<AtomicI64>,
    /// Asks for a look at the topics.
    pub look: Notify,
    /// Owners that cannot write any more.
    pub fenced: Mutex<HashSet<String>>,
}

impl Context {
    /// The worker is at work.
    pub fn beat(&self) {
        self.beat.store(now_ms(), Ordering::Relaxed);
    }

    /// Sees to it that an owner writes nothing any more.
    pub async fn fence(&self, owner: &str) -> Result<(), SendError> {
        let mut fenced = self.fenced.lock().await;
        if fenced.contains(owner) {
            return Ok(());
        }
        tracing::warn!(
            owner,
            "fencing an engine that did not release its pipelines"
        );
        let transactions = Transactions::new(&self.kafka, owner).await?;
        // Ending a client of librdkafka waits for its threads.
        let _ = tokio::task::spawn_blocking(move || drop(transactions)).await;
        fenced.insert(owner.to_owned());
        Ok(())
    }
}
