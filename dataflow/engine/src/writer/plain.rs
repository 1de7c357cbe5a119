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

/// The pause before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause while the client's queue is full.
const FULL: Duration = Duration::from_millis(10);

type Key = (Arc<str>, i32);
type Answer = (Key, u64, Result<(i32, i64), SendError>);

struct Plain {
    producer: Producer,
    tools: Tools,
    lanes: HashMap<Key, Lane<Item>>,
    on_way: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// When lanes that are stuck are looked at.
    again: Option<Instant>,
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
        again: None,
        broken: None,
    };
    let mut open = true;
    while open || !plain.lanes.is_empty() {
        let again = plain.again.unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            job = jobs.recv(), if open => match job {
                Some(job) => plain.take(job),
                None => open = false,
            },
            Some(answer) = plain.on_way.next(), if !plain.on_way.is_empty() => plain.answered(answer),
            () = sleep_until(again), if plain.again.is_some() => plain.unstick(),
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
                    self.again.get_or_insert(Instant::now() + FULL);
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
            Ok(_) => drop(lane.delivered(number)),
            Err(error) if error.is_retryable() => {
                if fatal(&error) {
                    self.broken = Some(error.to_string());
                }
                self.tools.metrics.retried();
                tracing::debug!(topic = %key.0, %error, "a record is written again");
                if matches!(error, SendError::UnknownTopic(_)) {
                    self.tools.heal(&key.0);
                }
                lane.failed(number);
                self.again.get_or_insert(Instant::now() + PAUSE);
            }
            Err(error @ (SendError::Fenced | SendError::Failed(_))) => {
                self.broken = Some(error.to_string());
            }
            Err(error) => {
                if let Some(mut item) = lane.delivered(number)
                    && let Some(record) = self.tools.instead(&item.record, &error)
                {
                    item.record = record;
                    self.push(item);
                }
            }
        }
        if self.lanes.get(&key).is_some_and(Lane::is_empty) {
            self.lanes.remove(&key);
        }
    }

    fn unstick(&mut self) {
        self.again = None;
        let stuck = self.lanes.iter_mut().filter(|(_, lane)| lane.is_stuck());
        let stuck: Vec<Key> = stuck
            .map(|(key, lane)| {
                lane.repair();
                key.clone()
            })
            .collect();
        for key in &stuck {
            self.pump(key);
        }
        // What failed with others still on their way is looked at again.
        if self.again.is_none() && self.lanes.values().any(Lane::is_stuck) {
            self.again = Some(Instant::now() + PAUSE);
        }
    }
}

/// An idempotent client that has lost its place in a partition writes nothing any more.
pub(super) fn fatal(error: &SendError) -> bool {
    matches!(error, SendError::Failed(_))
        || matches!(error, SendError::Other(text) if text.to_ascii_lowercase().contains("fatal"))
}
