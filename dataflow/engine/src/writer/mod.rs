//! Writes results and progress. Nothing that is handed over is dropped: what fails is tried again in its order.
//!
//! By default a result's causes are kept alive until it is delivered. With `exactly-once` the results between two
//! records of progress are one transaction with it (or several such groups are), so causes need not be kept.
mod exact;
mod lane;
mod plain;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
/// Of them, on their way to one topic: beyond, pipelines that write to it wait, and the others go on.
const SINK_RECORDS: usize = RECORDS / 4;
const SINK_BYTES: usize = BYTES / 4;

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
#[derive(Clone)]
pub enum Mode {
    /// Each on its own.
    Plain(Producer),
    /// In transactions with progress.
    Exact(Arc<Transactions>),
}

impl Mode {
    /// Has the client know of a topic that was made again.
    async fn look_at(&self, topic: &str) -> anyhow::Result<()> {
        match self {
            Self::Plain(producer) => producer.look_at(topic).await,
            Self::Exact(transactions) => transactions.look_at(topic).await,
        }
    }
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
    /// What writes.
    pub mode: Mode,
    /// Topics that are being made again.
    pub healing: Arc<Mutex<HashSet<Arc<str>>>>,
}

/// The end that results are given to.
pub struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    gauge: Arc<Gauge>,
    sinks: HashMap<Arc<str>, Arc<Load>>,
    exact: bool,
}

/// How many results of a pipeline are on their way.
pub type OnWay = Arc<AtomicUsize>;

#[derive(Default)]
struct Gauge {
    load: Load,
    less: Notify,
}

/// What is on its way: all of it, or to one topic.
#[derive(Default)]
struct Load {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

enum Job {
    Results(Vec<Item>),
    Progress(Vec<Item>),
}

/// One record to be written, and what its delivery sets free.
struct Item {
    record: Outgoing,
    _causes: Vec<Arc<Input>>,
    /// Of a result.
    size: Option<Size>,
    /// Of progress; of several where a later one was written in their stead.
    part_of: Vec<Arc<Unwritten>>,
}

/// Records that are written together. Who waits is told when all are, and never where one is dropped unwritten.
struct Unwritten {
    left: AtomicUsize,
    waits: Mutex<Option<oneshot::Sender<()>>>,
}

impl Unwritten {
    fn new(records: usize) -> (Arc<Self>, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        let unwritten = Self {
            left: AtomicUsize::new(records),
            waits: Mutex::new(Some(sender)),
        };
        if records == 0 {
            unwritten.tell();
        }
        (Arc::new(unwritten), receiver)
    }

    fn one_less(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.tell();
        }
    }

    fn tell(&self) {
        if let Some(waits) = lock(&self.waits).take() {
            let _ = waits.send(());
        }
    }
}

/// A part of what is on its way.
struct Size {
    bytes: usize,
    gauge: Arc<Gauge>,
    sink: Arc<Load>,
    of: OnWay,
}

impl Size {
    fn new(bytes: usize, gauge: Arc<Gauge>, sink: Arc<Load>, of: OnWay) -> Self {
        gauge.load.add(bytes);
        sink.add(bytes);
        of.fetch_add(1, Ordering::Relaxed);
        Self {
            bytes,
            gauge,
            sink,
            of,
        }
    }
}

impl Drop for Size {
    fn drop(&mut self) {
        self.gauge.load.sub(self.bytes);
        self.sink.sub(self.bytes);
        self.of.fetch_sub(1, Ordering::Relaxed);
        self.gauge.less.notify_one();
    }
}

impl Load {
    fn add(&self, bytes: usize) {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&self, bytes: usize) {
        self.records.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn reaches(&self, records: usize, bytes: usize) -> bool {
        self.records.load(Ordering::Relaxed) >= records
            || self.bytes.load(Ordering::Relaxed) >= bytes
    }

    /// Of one topic, in quarters of what it may have.
    fn exceeds(&self, quarters: usize) -> bool {
        self.reaches(SINK_RECORDS / 4 * quarters, SINK_BYTES / 4 * quarters)
    }

    fn is_idle(&self) -> bool {
        self.records.load(Ordering::Relaxed) == 0
    }
}

impl Item {
    /// It is in its topic.
    fn written(self) {
        self.part_of.iter().for_each(|all| all.one_less());
    }

    /// It could not be written. Where nobody knows whether it was, what is written in the end may be there twice.
    fn tried(&mut self, error: &SendError) {
        if self.size.is_some() && matches!(error, SendError::Other(_)) {
            self.record.headers.set(header::REPEAT, "1");
        }
    }
}

impl Writer {
    /// Starts a task that writes; it ends when the writer is dropped and all is written, or when it cannot go on.
    pub fn start(tools: Tools) -> (Self, JoinHandle<Result<(), Broken>>) {
        let (jobs, receiver) = mpsc::unbounded_channel();
        let exact = matches!(tools.mode, Mode::Exact(_));
        let task = match tools.mode.clone() {
            Mode::Plain(producer) => tokio::spawn(plain::run(producer, tools, receiver)),
            Mode::Exact(transactions) => tokio::spawn(exact::run(transactions, tools, receiver)),
        };
        let writer = Self {
            jobs,
            gauge: Arc::default(),
            sinks: HashMap::new(),
            exact,
        };
        (writer, task)
    }

    /// Takes results of a pipeline.
    pub fn results(&mut self, emits: Vec<Emit>, of: &OnWay) {
        let mut items = Vec::with_capacity(emits.len());
        for emit in emits {
            let value = emit.record.value.as_ref().map_or(0, |value| value.len());
            let sink = self.sink(&emit.record.topic);
            let size = Size::new(value + 256, self.gauge.clone(), sink, of.clone());
            items.push(Item {
                record: emit.record,
                _causes: if self.exact { Vec::new() } else { emit.causes },
                size: Some(size),
                part_of: Vec::new(),
            });
        }
        let _ = self.jobs.send(Job::Results(items));
    }

    fn sink(&mut self, topic: &Arc<str>) -> Arc<Load> {
        if self.sinks.len() > 1_000 && !self.sinks.contains_key(topic) {
            self.sinks.retain(|_, sink| !sink.is_idle());
        }
        self.sinks.entry(topic.clone()).or_default().clone()
    }

    /// Whether no more should be written to a topic for now. In transactions all wait for all.
    pub fn is_full(&self, topic: &str) -> bool {
        !self.exact && self.sinks.get(topic).is_some_and(|sink| sink.exceeds(4))
    }

    /// Whether one that was full has room again.
    pub fn has_room_for(&self, topic: &str) -> bool {
        self.sinks.get(topic).is_none_or(|sink| !sink.exceeds(3))
    }

    /// Takes progress, which covers all results before it; resolves when it is written, with an error when it never is.
    pub fn progress(&self, records: Vec<Outgoing>) -> oneshot::Receiver<()> {
        let (all, receiver) = Unwritten::new(records.len());
        let items = records.into_iter().map(|record| Item {
            record,
            _causes: Vec::new(),
            size: None,
            part_of: vec![all.clone()],
        });
        let _ = self.jobs.send(Job::Progress(items.collect()));
        receiver
    }

    /// Whether more may be handed over.
    pub fn has_room(&self) -> bool {
        !self.gauge.load.reaches(RECORDS, BYTES)
    }

    /// Resolves when something was written.
    pub async fn less(&self) {
        self.gauge.less.notified().await;
    }

    /// Results on their way.
    pub fn on_way(&self) -> usize {
        self.gauge.load.records.load(Ordering::Relaxed)
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

    /// Makes a topic that was deleted under way again, and looks how many partitions it has now: once at a time, however
    /// many records wait for it.
    fn heal(&self, topic: &Arc<str>) {
        if !lock(&self.healing).insert(topic.clone()) {
            return;
        }
        let healing = Healing {
            all: self.healing.clone(),
            topic: topic.clone(),
        };
        let (admin, partitions) = (self.admin.clone(), self.partitions.clone());
        let mode = self.mode.clone();
        tokio::spawn(async move {
            let topic = healing.topic.to_string();
            let made = async {
                admin.create(std::slice::from_ref(&topic), false).await?;
                mode.look_at(&topic).await
            };
            if let Err(error) = made.await {
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

/// A topic that is being made again, until it is dropped.
struct Healing {
    all: Arc<Mutex<HashSet<Arc<str>>>>,
    topic: Arc<str>,
}

impl Drop for Healing {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.topic);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oneshot::error::TryRecvError;

    fn item(all: &Arc<Unwritten>) -> Item {
        Item {
            record: Outgoing {
                topic: "progress".into(),
                partition: None,
                key: None,
                value: None,
                headers: Default::default(),
            },
            _causes: Vec::new(),
            size: None,
            part_of: vec![all.clone()],
        }
    }

    #[test]
    fn progress_is_written_when_all_of_it_is_and_not_when_it_is_dropped() {
        let (all, mut waits) = Unwritten::new(2);
        item(&all).written();
        assert_eq!(waits.try_recv(), Err(TryRecvError::Empty));
        item(&all).written();
        assert_eq!(waits.try_recv(), Ok(()));

        let (all, mut waits) = Unwritten::new(2);
        item(&all).written();
        drop(item(&all));
        drop(all);
        assert_eq!(waits.try_recv(), Err(TryRecvError::Closed));

        assert_eq!(Unwritten::new(0).1.try_recv(), Ok(()));
    }
}
