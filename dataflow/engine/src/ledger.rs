//! What is known of all engines' progress: the progress topic, read from its beginning and followed.
//!
//! Each take-over has a higher epoch; what a former owner still writes is older and does not count.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use seldon_records::{Headers, Outgoing, Record};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::progress::Snapshot;

/// Keys of records that only say how far the topic was read.
const SYNC: &str = "|sync|";

/// The progress of a pipeline in a partition, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// How far.
    #[serde(flatten)]
    pub at: Snapshot,
    /// What is handled below this may have been handled before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<i64>,
    /// The incarnation of an engine, which is also its transactional id.
    pub owner: String,
    /// Grows with each owner.
    #[serde(default)]
    pub epoch: u64,
    /// The owner has let go; nothing was taken since.
    pub released: bool,
    /// Where requests enter: the version that they enter from each offset on, so that one that is read again enters the
    /// version that it had entered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub enters: Vec<(i64, u32)>,
    /// In one of a pipeline's places: what is in flight in each version, until when, and the requests' digests. Absent in
    /// all: an engine before this wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<Vec<(u32, i64, Vec<u32>)>>,
}

/// Where a progress is of: pipeline, topic, partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Whose.
    pub pipeline: Arc<str>,
    /// In which topic.
    pub topic: Arc<str>,
    /// Of it.
    pub partition: i32,
}

impl Place {
    /// The record's key.
    pub fn key(&self) -> String {
        format!("{}|{}|{}", self.pipeline, self.topic, self.partition)
    }

    /// Reads a key; neither names of pipelines nor of topics hold a bar.
    pub fn parse(key: &str) -> Option<Self> {
        let mut parts = key.split('|');
        let (pipeline, topic, partition) = (parts.next()?, parts.next()?, parts.next()?);
        (parts.next().is_none() && !pipeline.is_empty()).then(|| {
            Some(Self {
                pipeline: pipeline.into(),
                topic: topic.into(),
                partition: partition.parse().ok()?,
            })
        })?
    }
}

/// The record that says it; `None` removes it.
pub fn outgoing(topic: &Arc<str>, place: &Place, entry: Option<&Entry>) -> Outgoing {
    let json = |entry| serde_json::to_vec(entry).expect("an entry is plain data");
    Outgoing {
        topic: topic.clone(),
        // The order of one key's records matters, so the partition is the same whatever the topic's number of them.
        partition: Some(0),
        key: Some(place.key().into()),
        value: entry.map(|entry| Bytes::from(json(entry))),
        headers: Headers::new(),
    }
}

/// What a record of the progress topic means to its reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing to do.
    None,
    /// A place of ours has another owner now.
    Lost(Place),
    /// A former owner overwrote what we wrote.
    Overwritten(Place),
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Inner>>);

/// What is known of each partition of a topic.
type Entries = HashMap<(Arc<str>, i32), Entry>;

#[derive(Default)]
struct Inner {
    pipelines: HashMap<Arc<str>, Entries>,
    waiting: HashMap<String, oneshot::Sender<()>>,
    number: u64,
}

impl Ledger {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record of the progress topic.
    pub fn apply(&self, me: &str, record: &Record) -> News {
        let key = record.key.as_deref().unwrap_or_default();
        let Ok(key) = std::str::from_utf8(key) else {
            return News::None;
        };
        let mut inner = self.inner();
        if let Some(number) = key.strip_prefix(SYNC) {
            if let Some(waiting) = inner.waiting.remove(number) {
                let _ = waiting.send(());
            }
            return News::None;
        }
        let Some(place) = Place::parse(key) else {
            return News::None;
        };
        let entries = inner.pipelines.entry(place.pipeline.clone()).or_default();
        let at = (place.topic.clone(), place.partition);
        let Some(value) = &record.value else {
            entries.remove(&at);
            if entries.is_empty() {
                inner.pipelines.remove(&place.pipeline);
            }
            return News::None;
        };
        let entry: Entry = match serde_json::from_slice(value) {
            Ok(entry) => entry,
            Err(error) => {
                tracing::warn!(key, %error, "a record of the progress topic cannot be read");
                return News::None;
            }
        };
        let known = entries.get(&at);
        let was_mine = known.is_some_and(|known| known.owner == me);
        let newer = known.is_none_or(|known| {
            entry.epoch > known.epoch || (entry.epoch == known.epoch && entry.owner == known.owner)
        });
        let mine = entry.owner == me;
        if newer {
            entries.insert(at, entry);
        }
        match (was_mine, mine, newer) {
            (true, false, true) => News::Lost(place),
            (true, false, false) => News::Overwritten(place),
            _ => News::None,
        }
    }

    /// All that is known of a pipeline.
    pub fn of(&self, pipeline: &str) -> HashMap<(Arc<str>, i32), Entry> {
        self.inner()
            .pipelines
            .get(pipeline)
            .cloned()
            .unwrap_or_default()
    }

    /// A record to be written, and what resolves when it was read: then everything written before is known.
    pub fn barrier(&self, topic: &Arc<str>, me: &str) -> (Outgoing, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.inner();
        inner.waiting.retain(|_, waiting| !waiting.is_closed());
        inner.number += 1;
        let number = format!("{me}|{}", inner.number);
        let record = Outgoing {
            topic: topic.clone(),
            partition: Some(0),
            key: Some(format!("{SYNC}{number}").into()),
            value: None,
            headers: Headers::new(),
        };
        inner.waiting.insert(number, sender);
        (record, receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(owner: &str, epoch: u64, offset: i64) -> Record {
        let place = Place::parse("p|t|0").expect("a key");
        let entry = Entry {
            at: Snapshot::at(offset),
            replay: None,
            owner: owner.to_owned(),
            epoch,
            released: false,
            enters: Vec::new(),
            runs: None,
        };
        let written = outgoing(&"progress".into(), &place, Some(&entry));
        Record {
            topic: written.topic,
            partition: 0,
            offset: 0,
            key: written.key,
            value: written.value,
            headers: written.headers,
            timestamp_ms: 0,
        }
    }

    #[test]
    fn an_owner_is_replaced_only_by_a_later_one() {
        let ledger = Ledger::default();
        let place = Place::parse("p|t|0").expect("a key");
        let at = ("t".into(), 0);
        assert_eq!(ledger.apply("a", &record("a", 1, 5)), News::None);
        assert_eq!(
            ledger.apply("a", &record("b", 2, 5)),
            News::Lost(place.clone())
        );
        assert_eq!(ledger.apply("a", &record("a", 1, 9)), News::None);
        assert_eq!(ledger.of("p")[&at].at.offset, 5);
        assert_eq!(
            ledger.apply("b", &record("a", 1, 9)),
            News::Overwritten(place)
        );
        assert_eq!(
            ledger.apply("b", &record("c", 2, 9)),
            ledger.apply("b", &record("a", 1, 9))
        );
        assert_eq!(ledger.of("p")[&at].owner, "b");
        assert_eq!(Place::parse("|sync|3"), None);
    }
}
