//! Each result on its own, many on their way at a time.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use seldon_kafka::{Producer, SendError};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::lane::Lane;
use super::{Broken, Item, Job, Tools};

/// The pause before what failed is tried again; it doubles each time, so many times at most.
const PAUSE: Duration = Duration::from_millis(100);
const DOUBLED: u32 = 4;
/// The pause while the client's queue is full.
const FULL: Duration = Duration::from_millis(10);

type Key = (Arc<str>, i32);
type Answer = (Key, u64, Result<(i32, i64), SendError>);

struct Plain {
    producer: Producer,
    tools: Tools,
    lanes: HashMap<Key, Lane<Item>>,
    on_way: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Lanes that are stuck, and when they are looked at.
    stuck: HashMap<Key, Instant>,
    broken: Option<String>,
}

pub(super) async fn run(
    producer: Producer,
    tools: Tools,
    mut jobs: mpsc::UnboundedReceiver<Job>,
) -> Result<(), Broken> {
    let mut plain = Plain {
        producer,
        tools,
        lanes: HashMap::new(),
        on_way: FuturesUnordered::new(),
        stuck: HashMap::new(),
        broken: None,
    };
    let mut open = true;
    while open || !plain.lanes.is_empty() {
        let again = plain.stuck.values().min().copied();
        tokio::select! {
            biased;
            job = jobs.recv(), if open => match job {
                Some(job) => plain.take(job),
                None => open = false,
            },
            Some(answer) = plain.on_way.next(), if !plain.on_way.is_empty() => plain.answered(answer),
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => plain.unstick(),
        }
        if let Some(reason) = plain.broken.take() {
            return Err(Broken::Failed(reason));
        }
    }
    Ok(())
}

impl Plain {
    fn take(&mut self, job: Job) {
        let (Job::Results(items) | Job::Progress(items)) = job;
        for item in items {
            self.push(item);
        }
    }

    fn push(&mut self, item: Item) {
        let key = (
            item.record.topic.clone(),
            item.record.partition.unwrap_or(-1),
        );
        self.lanes.entry(key.clone()).or_default().push(item);
        self.pump(&key);
    }

    /// Sends what may be sent.
    fn pump(&mut self, key: &Key) {
        let Some(lane) = self.lanes.get_mut(key) else {
            return;
        };
        while let Some((number, item)) = lane.next() {
            match self.producer.enqueue(item.record.clone()) {
                Ok(delivery) => {
                    lane.sent();
                    let key = key.clone();
                    self.on_way
                        .push(Box::pin(async move { (key, number, delivery.await) }));
                }
                Err(SendError::Full) => {
                    let due = Instant::now() + FULL;
                    self.stuck.entry(key.clone()).or_insert(due);
                    return;
                }
                Err(error) => {
                    lane.sent();
                    let key = key.clone();
                    self.on_way
                        .push(Box::pin(async move { (key, number, Err(error)) }));
                }
            }
        }
    }

    fn answered(&mut self, (key, number, answer): Answer) {
        let Some(lane) = self.lanes.get_mut(&key) else {
            return;
        };
        match answer {
            Ok(_) => {
                if let Some(item) = lane.delivered(number) {
                    item.written();
                }
                self.pump(&key);
            }
            Err(error) if error.is_retryable() => {
                if fatal(&error) {
                    self.broken = Some(error.to_string());
                }
                self.tools.metrics.retried();
                tracing::debug!(topic = %key.0, %error, "a record is written again");
                if matches!(error, SendError::UnknownTopic(_)) {
                    self.tools.heal(&key.0);
                }
                if let Some(item) = lane.failed(number) {
                    item.tried(&error);
                    // A topic that was made again may have fewer partitions.
                    let record = &mut item.record;
                    record.partition = self.tools.partitions.fit(&record.topic, record.partition);
                }
                let pause = PAUSE * 2u32.pow(lane.rounds().min(DOUBLED));
                self.stuck
                    .entry(key.clone())
                    .or_insert(Instant::now() + pause);
            }
            Err(error @ (SendError::Fenced | SendError::Failed(_))) => {
                self.broken = Some(error.to_string());
            }
            Err(error) => {
                match lane.delivered(number) {
                    Some(item) if item.size.is_none() => tracing::error!(
                        %error, "progress cannot be written: what it covers is repeated after a crash"
                    ),
                    Some(mut item) => {
                        if let Some(record) = self.tools.instead(&item.record, &error) {
                            item.record = record;
                            self.push(item);
                        }
                    }
                    None => {}
                }
                // What waited for its answer.
                self.pump(&key);
            }
        }
        if self.lanes.get(&key).is_some_and(Lane::is_empty) {
            self.lanes.remove(&key);
        }
    }

    fn unstick(&mut self) {
        let now = Instant::now();
        let due = self.stuck.iter().filter(|(_, due)| **due <= now);
        let due: Vec<Key> = due.map(|(key, _)| key.clone()).collect();
        for key in due {
            self.stuck.remove(&key);
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.repair();
                self.pump(&key);
            }
            // What failed with others still on their way is looked at again.
            if self.lanes.get(&key).is_some_and(Lane::has_failed) {
                self.stuck.entry(key).or_insert(now + PAUSE);
            }
        }
    }
}

/// An idempotent client that has lost its place in a partition writes nothing any more.
pub(super) fn fatal(error: &SendError) -> bool {
    matches!(error, SendError::Failed(_))
        || matches!(error, SendError::Other(text) if text.to_ascii_lowercase().contains("fatal"))
}
