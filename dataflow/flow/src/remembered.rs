//! What was handled lately, so that what comes again is recognised.
use std::collections::{HashSet, VecDeque};

use seldon_records::{Record, header};
use xxhash_rust::xxh3::Xxh3;

use crate::arrival::Arrival;

/// Bounded in number and time.
#[derive(Debug)]
pub struct Remembered {
    known: HashSet<u128>,
    order: VecDeque<(i64, u128)>,
    most: usize,
    time_ms: i64,
}

impl Remembered {
    pub fn new(most: usize, time_ms: i64) -> Self {
        Self {
            known: HashSet::new(),
            order: VecDeque::new(),
            most,
            time_ms,
        }
    }

    /// Whether it is new.
    pub fn add(&mut self, mark: u128, now_ms: i64) -> bool {
        self.forget(now_ms);
        if !self.known.insert(mark) {
            return false;
        }
        self.order.push_back((now_ms, mark));
        if self.order.len() > self.most
            && let Some((_, mark)) = self.order.pop_front()
        {
            self.known.remove(&mark);
        }
        true
    }

    fn forget(&mut self, now_ms: i64) {
        while let Some((since, mark)) = self.order.front().copied()
            && now_ms - since > self.time_ms
        {
            self.order.pop_front();
            self.known.remove(&mark);
        }
    }
}

/// What is the same for the same result: whose, where it was read, in which visit.
pub fn mark(record: &Record, arrival: &Arrival) -> u128 {
    let visits = arrival.headers.get(header::VISITS);
    digest(
        record,
        arrival.identity.as_str(),
        visits.map_or(&[], |visits| visits),
    )
}

/// The same for an error: whose, and of which step.
pub fn error_mark(record: &Record, identity: &str) -> u128 {
    let visits = record
        .headers
        .get(header::VISITS)
        .map_or(&[][..], |visits| visits);
    let step = record
        .headers
        .get(header::ERROR)
        .map_or(&[][..], |step| step);
    digest(record, identity, &[visits, &[0], step].concat())
}

fn digest(record: &Record, identity: &str, rest: &[u8]) -> u128 {
    let mut digest = Xxh3::new();
    for part in [record.topic.as_bytes(), identity.as_bytes(), rest] {
        digest.update(&(part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.digest128()
}
