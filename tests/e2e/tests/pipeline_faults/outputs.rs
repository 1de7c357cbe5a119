//! What comes out of a pipeline's outputs topic, looked at as it comes.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use seldon_e2e::eventually_async;
use seldon_kafka::{Consumer, Position, Settings};
use seldon_proto::inference::ModelInferResponse;
use seldon_records::{Record, decode_response, header};
use tokio_util::task::AbortOnDropHandle;

use crate::callers::FIRST_KEY;

/// Says which request a record belongs to.
pub(crate) const MARK: &str = "x-mark";

pub(crate) fn mark(key: i64, number: i64) -> String {
    format!("{key}:{number}")
}

fn unmark(text: &str) -> Option<(i64, i64)> {
    let (key, number) = text.split_once(':')?;
    Some((key.parse().ok()?, number.parse().ok()?))
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// By request, how many results.
    results: HashMap<(i64, i64), u32>,
    /// By key, the number of its latest first result.
    latest: HashMap<i64, i64>,
    pub(crate) marked: u64,
    /// Marked ones that were the first of their request.
    pub(crate) marked_first: u64,
    pub(crate) unmarked_repeats: Vec<String>,
    pub(crate) disorder: Vec<String>,
    pub(crate) wrong: Vec<String>,
    /// Results of the writer's records that are errors, by their text.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Errors of callers, who are told of them: their time was over.
    pub(crate) of_callers: u64,
}

impl Seen {
    /// How many of the requests with keys below `keys` have a result.
    pub(crate) fn of_topics(&self, keys: i64) -> i64 {
        let found = self.results.keys().filter(|(key, _)| *key < keys);
        i64::try_from(found.count()).unwrap_or(i64::MAX)
    }

    /// Results beyond one for each request.
    pub(crate) fn repeated(&self) -> u64 {
        self.results
            .values()
            .map(|count| u64::from(count - 1))
            .sum()
    }

    fn look(&mut self, record: &Record) {
        let place = format!("{}/{}", record.partition, record.offset);
        let Some(request) = record.headers.text(MARK).and_then(unmark) else {
            return self.wrong.push(format!("{place} has no mark"));
        };
        let repeat = record.headers.has(header::REPEAT);
        self.marked += u64::from(repeat);
        let value = record.value.clone().unwrap_or_default();
        if record.headers.has(header::ERROR) && request.0 >= FIRST_KEY {
            self.of_callers += 1;
        } else if record.headers.has(header::ERROR) {
            let text = String::from_utf8_lossy(&value).into_owned();
            *self.errors.entry(text).or_default() += 1;
        } else {
            let read = decode_response(&record.headers, &value).ok();
            if read.as_ref().and_then(numbers) != Some(request) {
                self.wrong.push(format!("{place} of {request:?}: {read:?}"));
            }
        }
        let count = self.results.entry(request).or_default();
        *count += 1;
        if *count > 1 {
            if !repeat {
                self.unmarked_repeats
                    .push(format!("{request:?} at {place}"));
            }
            return;
        }
        self.marked_first += u64::from(repeat);
        // Callers share a key among requests that are under way at once: nothing is promised of their order.
        if request.0 >= FIRST_KEY {
            return;
        }
        let latest = self.latest.entry(request.0).or_insert(-1);
        if request.1 < *latest {
            self.disorder
                .push(format!("{request:?} after {latest} at {place}"));
        }
        *latest = request.1.max(*latest);
    }
}

/// The numbers of the only tensor.
pub(crate) fn numbers(response: &ModelInferResponse) -> Option<(i64, i64)> {
    let tensor = response.outputs.first()?;
    let numbers = match &tensor.contents {
        Some(contents) if !contents.int64_contents.is_empty() => contents.int64_contents.clone(),
        _ => {
            let raw = response.raw_output_contents.first()?.chunks_exact(8);
            raw.map(|eight| i64::from_le_bytes(eight.try_into().unwrap()))
                .collect()
        }
    };
    Some((*numbers.first()?, *numbers.get(1)?))
}

/// Reads an outputs topic from its beginning.
#[derive(Clone)]
pub(crate) struct Outputs {
    seen: Arc<Mutex<Seen>>,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl Outputs {
    pub(crate) fn follow(
        settings: &Settings,
        topic: &str,
        partitions: i32,
        committed_only: bool,
    ) -> Result<Self> {
        let consumer = Consumer::new(settings, "reader-of-the-test", committed_only)?;
        let topic: Arc<str> = topic.into();
        let all: Vec<_> = (0..partitions)
            .map(|partition| (topic.clone(), partition, Position::Offset(0)))
            .collect();
        consumer.assign(&all)?;
        let seen = Arc::<Mutex<Seen>>::default();
        let sink = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                match consumer.recv().await {
                    Ok(record) => sink
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .look(&record),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        Ok(Self {
            seen,
            _task: Arc::new(AbortOnDropHandle::new(task)),
        })
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until so many requests of the writer have their results.
    pub(crate) async fn complete(&self, records: i64, keys: i64, seconds: u64) -> Result<()> {
        let look = async || {
            let found = self.with(|seen| seen.of_topics(keys));
            ensure!(
                found >= records,
                "{found} of {records} records have a result"
            );
            Ok(())
        };
        eventually_async(seconds, look)
            .await
            .context("records were lost, or are stuck")
    }
}
