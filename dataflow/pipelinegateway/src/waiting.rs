//! Callers that wait for their answers.
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use seldon_records::{Record, header};
use tokio::sync::oneshot;

/// Of the map, so that callers and the reader seldom meet.
const SHARDS: usize = 64;

/// Everybody who waits, by the identity of the request.
pub(crate) struct Waiting {
    shards: [Mutex<HashMap<u128, Waiter>>; SHARDS],
    /// Random, different in each process.
    process: u64,
    next: AtomicU64,
}

struct Waiter {
    topics: Arc<[Arc<str>]>,
    answer: oneshot::Sender<Record>,
}

/// A place in the map, given up when it is dropped.
pub(crate) struct Place {
    waiting: Arc<Waiting>,
    pub(crate) number: u128,
    pub(crate) answer: oneshot::Receiver<Record>,
}

impl Waiting {
    pub(crate) fn new() -> Arc<Self> {
        let random = |salt: u8| RandomState::new().hash_one(salt);
        Arc::new(Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            process: random(0),
            next: AtomicU64::new(random(1)),
        })
    }

    /// Waits for the one record of a new identity in one of these topics.
    pub(crate) fn register(self: &Arc<Self>, topics: Arc<[Arc<str>]>) -> Place {
        let low = self.next.fetch_add(1, Ordering::Relaxed);
        let number = u128::from(self.process) << 64 | u128::from(low);
        let (sender, answer) = oneshot::channel();
        let waiter = Waiter {
            topics,
            answer: sender,
        };
        self.shard(number).insert(number, waiter);
        Place {
            waiting: self.clone(),
            number,
            answer,
        }
    }

    /// Hands a record to who waits for it. Records of others, and repeats, are of no interest: says whether it was.
    pub(crate) fn deliver(&self, record: Record) -> bool {
        let Some(number) = record.headers.get(header::ID).and_then(|id| number(id)) else {
            return false;
        };
        // The process is part of the number: what others wait for is known without a look into the map.
        if (number >> 64) as u64 != self.process {
            return false;
        }
        let mut shard = self.shard(number);
        let expected = shard
            .get(&number)
            .is_some_and(|waiter| waiter.topics.iter().any(|topic| **topic == *record.topic));
        let waiter = expected.then(|| shard.remove(&number)).flatten();
        drop(shard);
        waiter.is_some_and(|waiter| waiter.answer.send(record).is_ok())
    }

    /// How many wait.
    pub(crate) fn count(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, number: u128) -> MutexGuard<'_, HashMap<u128, Waiter>> {
        lock(&self.shards[number as usize % SHARDS])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.shard(self.number).remove(&self.number);
    }
}

/// 32 digits of base 16.
fn number(text: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(text).ok()?;
    (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok())?
}

// A panic while a shard was locked leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use seldon_records::{Headers, Identity};

    use super::*;

    fn record(topic: &str, number: u128) -> Record {
        let mut headers = Headers::new();
        headers.set(header::ID, Identity::of_number(number).as_str().to_owned());
        Record {
            topic: topic.into(),
            partition: 0,
            offset: 0,
            key: None,
            value: None,
            headers,
            timestamp_ms: 0,
        }
    }

    #[test]
    fn only_the_first_record_of_an_own_id_in_an_expected_topic() {
        let waiting = Waiting::new();
        let topics: Arc<[Arc<str>]> = ["out".into()].into();
        let mut place = waiting.register(topics.clone());
        let other = waiting.register(topics);
        assert!(!waiting.deliver(record("other", place.number)));
        assert!(!waiting.deliver(record("out", 7)));
        assert!(waiting.deliver(record("out", place.number)));
        assert!(!waiting.deliver(record("out", place.number)));
        assert!(place.answer.try_recv().is_ok());
        assert_eq!(waiting.count(), 1);
        drop((place, other));
        assert_eq!(waiting.count(), 0);
    }
}
