//! Several records and positions, all or none of them.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{error::KafkaError, producer::Producer as _};
use seldon_records::Outgoing;
use tokio::task::spawn_blocking;

use crate::{Consumer, Delivery, Producer, Result, SendError, Settings};

const PATIENCE: Duration = Duration::from_secs(30);

/// Writes in transactions under an id of which there is one holder: a new one fences the former.
pub struct Transactions {
    producer: Producer,
}

impl Transactions {
    /// Takes the id over: an unfinished transaction of the former holder is aborted, and it may not write any more.
    pub async fn new(settings: &Settings, id: &str) -> Result<Self, SendError> {
        let producer = Producer::with(settings, &[("transactional.id", id)])
            .map_err(|error| SendError::Other(format!("{error:#}")))?;
        let transactions = Self { producer };
        transactions
            .blocking(|producer| producer.client.init_transactions(PATIENCE))
            .await?;
        Ok(transactions)
    }

    /// As [`Producer::look_at`].
    pub async fn look_at(&self, topic: &str) -> Result<()> {
        self.producer.look_at(topic).await
    }

    /// Begins one. What is enqueued from here on belongs to it.
    pub fn begin(&self) -> Result<(), SendError> {
        let begun = self.producer.client.begin_transaction();
        begun.map_err(|error| typed(&error))
    }

    /// As [`Producer::enqueue`], within the transaction.
    pub fn enqueue(&self, record: Outgoing) -> Result<Delivery, SendError> {
        self.producer.enqueue(record)
    }

    /// Adds positions of the consumer's group to the transaction: the offsets to read next.
    pub async fn offsets(
        &self,
        consumer: &Consumer,
        offsets: &[(Arc<str>, i32, i64)],
    ) -> Result<(), SendError> {
        self.offsets_of(consumer, offsets, "").await
    }

    /// As [`Transactions::offsets`], with a note of who works on what follows.
    pub async fn offsets_of(
        &self,
        consumer: &Consumer,
        offsets: &[(Arc<str>, i32, i64)],
        owner: &str,
    ) -> Result<(), SendError> {
        let other = |error: &dyn std::fmt::Display| SendError::Other(error.to_string());
        let list = crate::consumer::owned_offsets(offsets, owner).map_err(|error| other(&error))?;
        let group = consumer.group().map_err(|error| other(&error))?;
        self.blocking(move |producer| {
            let client = &producer.client;
            client.send_offsets_to_transaction(&list, &group, PATIENCE)
        })
        .await
    }

    /// Makes it visible. The deliveries were awaited before.
    pub async fn commit(&self) -> Result<(), SendError> {
        self.blocking(|producer| {
            // The last report is acknowledged a moment after it was told: librdkafka would wait 100 ms for that.
            let start = Instant::now();
            while producer.client.in_flight_count() > 0 && start.elapsed().as_millis() < 20 {
                std::thread::sleep(Duration::from_micros(50));
            }
            producer.client.commit_transaction(PATIENCE)
        })
        .await
    }

    /// Undoes it.
    pub async fn abort(&self) -> Result<(), SendError> {
        self.blocking(|producer| producer.client.abort_transaction(PATIENCE))
            .await
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&Producer) -> Result<(), KafkaError> + Send + 'static,
    ) -> Result<(), SendError> {
        let producer = self.producer.clone();
        match spawn_blocking(move || work(&producer)).await {
            Ok(done) => done.map_err(|error| typed(&error)),
            Err(error) => Err(SendError::Other(error.to_string())),
        }
    }
}

/// A fatal error of a transactional client is that it was fenced, or as good as that: it cannot write any more.
fn typed(error: &KafkaError) -> SendError {
    match error {
        KafkaError::Transaction(error) if error.is_fatal() => SendError::Fenced,
        error => SendError::of(error, ""),
    }
}
