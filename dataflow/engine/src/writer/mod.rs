//! Writes results and progress. Nothing that is handed over is dropped: what fails is tried again in its order.
//!
//! By default a result's causes are kept alive until it is delivered. With `exactly-once` the results between two
//! records of progress are one transaction with it (or several such groups are), so causes need not be kept.
mod exact;
mod lane;
mod plain;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use seldon_flow::{Emit, Input};
use seldon_kafka::{Admin, Producer, SendError, Transactions};
use seldon_records::{Names, Outgoing, header};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::metrics::Metrics;
use crate::topics::Partitions;

/// Results that may be on their way before no more is read.
const RECORDS: usize = 10_000;
/// Bytes of them.
const BYTES: usize = 64 << 20;

/// Why the writer ended: another incarnation must begin where this one's progress is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Another engine has taken over.
    #[error("another engine has taken over")]
    Fenced,
    /// The client cannot write any more.
    #[error("the client for writing has failed: {0}")]
    Failed(String),
}

/// How results are written.
pub enum Mode {
    /// Each on its own.
    Plain(Producer),
    /// In transactions with progress.
    Exact(Transactions),
}

/// What a writer needs besides.
pub struct Tools {
    /// For topics that were deleted under way.
    pub admin: Arc<Admin>,
    /// Known ones.
    pub partitions: Partitions,
    /// For the errors topic.
    pub names: Names,
    /// To count.
    pub metrics: Metrics,
}

/// The end that results are given to.
pub struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    gauge: Arc<Gauge>,
    exact: bool,
}

#[derive(Default)]
struct Gauge {
    records: AtomicUsize,
    bytes: AtomicUsize,
    less: Notify,
}

enum Job {
    Results(Vec<Item>),
    Progress(Vec<Item>),
}

/// One record to be written, and what its delivery sets free.
struct Item {
    record: Outgoing,
    _causes: Vec<Arc<Input>>,
    _size: Option<Size>,
    _done: Option<Arc<Done>>,
}

/// Says that it is dropped.
struct Done(Option<oneshot::Sender<()>>);

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(());
        }
    }
}

/// A part of what is on its way.
struct Size(usize, Arc<Gauge>);

impl Drop for Size {
    fn drop(&mut self) {
        self.1.records.fetch_sub(1, Ordering::Relaxed);
        self.1.bytes.fetch_sub(self.0, Ordering::Relaxed);
        self.1.less.notify_one();
    }
}

impl Writer {
    /// Starts a task that writes; it ends when the writer is dropped and all is written, or when it cannot go on.
    pub fn start(mode: Mode, tools: Tools) -> (Self, JoinHandle<Result<(), Broken>>) {
        let (jobs, receiver) = mpsc::unbounded_channel();
        let exact = matches!(mode, Mode::Exact(_));
        let task = match mode {
            Mode::Plain(producer) => tokio::spawn(plain::run(producer, tools, receiver)),
            Mode::Exact(transactions) => tokio::spawn(exact::run(transactions, tools, receiver)),
        };
        let writer = Self {
            jobs,
            gauge: Arc::default(),
            exact,
        };
        (writer, task)
    }

    /// Takes results.
    pub fn results(&self, emits: Vec<Emit>) {
        let items = emits.into_iter().map(|emit| {
            let value = emit.record.value.as_ref().map_or(0, |value| value.len());
            let size = value + 256;
            self.gauge.records.fetch_add(1, Ordering::Relaxed);
            self.gauge.bytes.fetch_add(size, Ordering::Relaxed);
            Item {
                record: emit.record,
                _causes: if self.exact { Vec::new() } else { emit.causes },
                _size: Some(Size(size, self.gauge.clone())),
                _done: None,
            }
        });
        let _ = self.jobs.send(Job::Results(items.collect()));
    }

    /// Takes progress, which covers all results before it; resolves when it is written.
    pub fn progress(&self, records: Vec<Outgoing>) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let done = Arc::new(Done(Some(sender)));
        let items = records.into_iter().map(|record| Item {
            record,
            _causes: Vec::new(),
            _size: None,
            _done: Some(done.clone()),
        });
        let _ = self.jobs.send(Job::Progress(items.collect()));
        receiver
    }

    /// Whether more may be handed over.
    pub fn has_room(&self) -> bool {
        self.gauge.records.load(Ordering::Relaxed) < RECORDS
            && self.gauge.bytes.load(Ordering::Relaxed) < BYTES
    }

    /// Resolves when something was written.
    pub async fn less(&self) {
        self.gauge.less.notified().await;
    }

    /// Results on their way.
    pub fn on_way(&self) -> usize {
        self.gauge.records.load(Ordering::Relaxed)
    }

    /// Waits until no result is on its way.
    pub async fn drained(&self) {
        while self.on_way() > 0 {
            let _ = tokio::time::timeout(Duration::from_millis(20), self.less()).await;
        }
    }
}

impl Tools {
    /// What is written instead of a record that can never be: the error, to who waits for it. `None`: it was one.
    fn instead(&self, record: &Outgoing, error: &SendError) -> Option<Outgoing> {
        let errors = self.names.errors();
        self.metrics.refused();
        if *record.topic == *errors {
            tracing::error!(%error, "an error record cannot be written and is dropped");
            return None;
        }
        let pipeline = record.headers.text(header::PIPELINE).unwrap_or_default();
        tracing::error!(pipeline, topic = %record.topic, %error, "a result cannot be written");
        let mut headers = record.headers.clone();
        headers.set(header::ERROR, pipeline.to_owned());
        headers.set(header::STATUS, "413");
        headers.set(header::GRPC_STATUS, "8");
        headers.remove(header::INFER_TYPE);
        Some(Outgoing {
            partition: self.partitions.fit(&errors, record.partition),
            topic: errors.into(),
            key: record.key.clone(),
            value: Some(format!("{} cannot be written: {error}", record.topic).into()),
            headers,
        })
    }

    /// Makes a topic that was deleted under way again, and looks how many partitions it has now.
    fn heal(&self, topic: &Arc<str>) {
        let (admin, partitions, topic) = (
            self.admin.clone(),
            self.partitions.clone(),
            topic.to_string(),
        );
        tokio::spawn(async move {
            if let Err(error) = admin.create(std::slice::from_ref(&topic), false).await {
                tracing::warn!(
                    topic,
                    "the topic is gone and cannot be made again: {error:#}"
                );
            }
            if let Ok(Some(count)) = admin.partitions(&topic).await {
                partitions.set(&topic, count);
            }
        });
    }
}
