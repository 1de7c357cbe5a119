//! What was handled lately, so that what comes again is recognised.
use std::collections::{HashMap, VecDeque, hash_map};

use seldon_records::{Record, header};
use xxhash_rust::xxh3::Xxh3;

use crate::arrival::Arrival;

/// Bounded in number and time.
#[derive(Debug)]
pub struct Remembered {
    /// Each with the place where it was read first.
    known: HashMap<u128, Place>,
    order: VecDeque<(i64, u128)>,
    most: usize,
    time_ms: i64,
}

/// Partition and offset.
pub type Place = (i32, i64);

/// Whether something was handled before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Never,
    /// The same record.
    Here,
    /// Another record that says the same.
    Elsewhere,
}

impl Remembered {
    pub fn new(most: usize, time_ms: i64) -> Self {
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
            most,
            time_ms,
        }
    }

    /// Whether it was seen; it is from now on.
    pub fn add(&mut self, mark: u128, record: &Record, now_ms: i64) -> Seen {
        self.forget(now_ms);
        let place = (record.partition, record.offset);
        match self.known.entry(mark) {
            hash_map::Entry::Occupied(known) if *known.get() == place => return Seen::Here,
            hash_map::Entry::Occupied(_) => return Seen::Elsewhere,
            hash_map::Entry::Vacant(free) => free.insert(place),
        };
        self.order.push_back((now_ms, mark));
        self.at_most(self.most);
        Seen::Never
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Forgets the oldest beyond so many, and gives their memory back.
    pub fn shrink(&mut self, most: usize) {
        self.at_most(most);
        self.known.shrink_to(most);
        self.order.shrink_to(most);
    }

    pub fn clear(&mut self) {
        self.known.clear();
        self.order.clear();
    }

    fn at_most(&mut self, most: usize) {
        while self.order.len() > most
            && let Some((_, mark)) = self.order.pop_front()
        {
            self.known.remove(&mark);
        }
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
