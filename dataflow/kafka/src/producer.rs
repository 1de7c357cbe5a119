//! Writing records.
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context as Task, Poll},
    time::Duration,
};

use anyhow::Context as _;
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ThreadedProducer},
};
use seldon_records::{Headers, Outgoing};
use tokio::{sync::oneshot, task::spawn_blocking};

use crate::{Result, SendError, Settings, context::Context, context::Waiting};

/// Bytes that may wait to be written: beyond, records are refused. One record of any size is always taken.
const OUTSTANDING: usize = 128 << 20;
/// How long a record is tried again while the queue is full.
const FULL_FOR: Duration = Duration::from_secs(60);

/// How long the broker may take to tell about a topic.
const LOOK: Duration = Duration::from_secs(20);

/// Writes records; one client of librdkafka, shared by its clones. Idempotent: what is tried again is not written twice.
#[derive(Clone)]
pub struct Producer {
    pub(crate) client: Arc<ThreadedProducer<Context>>,
    outstanding: Arc<AtomicUsize>,
}

/// Resolves to partition and offset when the broker has the record. Dropping it does not take the record back.
#[must_use = "whether the record was written is only known from this"]
pub struct Delivery(oneshot::Receiver<Result<(i32, i64), SendError>>);

impl Future for Delivery {
    type Output = Result<(i32, i64), SendError>;
    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(task)
            .map(|answer| answer.unwrap_or_else(|_| Err(SendError::Other("it was purged".into()))))
    }
}

impl Producer {
    /// Connects in the background; a broker that is away is no error here.
    pub fn new(settings: &Settings) -> Result<Self> {
        Self::with(settings, &[])
    }

    pub(crate) fn with(settings: &Settings, more: &[(&str, &str)]) -> Result<Self> {
        let (config, context) = settings.producer(more)?;
        let client = config
            .create_with_context(context)
            .map_err(|error| anyhow::anyhow!("no Kafka producer: {error}"))?;
        Ok(Self {
            client: Arc::new(client),
            outstanding: Arc::default(),
        })
    }

    /// Hands a record over to be written: what is enqueued first comes first in its partition.
    pub fn enqueue(&self, record: Outgoing) -> Result<Delivery, SendError> {
        self.enqueue_ref(&record)
    }

    fn enqueue_ref(&self, record: &Outgoing) -> Result<Delivery, SendError> {
        let size = size(record);
        let before = self.outstanding.fetch_add(size, Ordering::Relaxed);
        if before > 0 && before + size > OUTSTANDING {
            self.outstanding.fetch_sub(size, Ordering::Relaxed);
            return Err(SendError::Full);
        }
        let (answer, delivery) = oneshot::channel();
        let waiting = Box::new(Waiting {
            answer,
            size,
            outstanding: Arc::clone(&self.outstanding),
        });
        let mut base: BaseRecord<'_, [u8], [u8], Box<Waiting>> =
            BaseRecord::with_opaque_to(&record.topic, waiting);
        base.partition = record.partition;
        base.key = record.key.as_deref();
        base.payload = record.value.as_deref();
        base.headers = (!record.headers.is_empty()).then(|| headers(&record.headers));
        match self.client.send(base) {
            Ok(()) => Ok(Delivery(delivery)),
            Err((error, _)) => {
                self.outstanding.fetch_sub(size, Ordering::Relaxed);
                Err(SendError::of(&error, &record.topic))
            }
        }
    }

    /// Writes one record, waiting while the queue is full, and returns its partition and offset.
    pub async fn send(&self, record: Outgoing) -> Result<(i32, i64), SendError> {
        let start = tokio::time::Instant::now();
        loop {
            match self.enqueue_ref(&record) {
                Ok(delivery) => return delivery.await,
                Err(SendError::Full) if start.elapsed() < FULL_FOR => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Looks at a topic again: one that did not exist is otherwise not looked at for minutes.
    pub async fn look_at(&self, topic: &str) -> Result<()> {
        let (client, name) = (Arc::clone(&self.client), topic.to_owned());
        let look = move || client.client().fetch_metadata(Some(&name), LOOK).map(drop);
        let looked = spawn_blocking(look).await?;
        looked.with_context(|| format!("topic {topic} cannot be looked at"))
    }

    /// Why this client will not write any more, if so.
    pub fn failed(&self) -> Option<String> {
        let failed = self.client.client().fatal_error();
        failed.map(|(code, reason)| format!("{code}: {reason}"))
    }

    /// Waits until all that was enqueued is written (or has failed), at most this long.
    pub async fn flush(&self, limit: Duration) {
        let client = Arc::clone(&self.client);
        let flushed = spawn_blocking(move || client.flush(limit)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!("not all records were written before the end: {error}");
        }
    }
}

fn size(record: &Outgoing) -> usize {
    let of = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let headers = record.headers.iter();
    let headers: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
    of(&record.key) + of(&record.value) + headers + 128
}

fn headers(of: &Headers) -> OwnedHeaders {
    let all = OwnedHeaders::new_with_capacity(of.len());
    of.iter().fold(all, |all, (key, value)| {
        all.insert(Header {
            key,
            value: Some(&value[..]),
        })
    })
}
