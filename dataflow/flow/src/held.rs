//! What waits in joins, counted.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::{Limits, arrival::Arrival};

#[derive(Debug, Default)]
pub struct Held {
    records: usize,
    bytes: usize,
    sides: HashMap<(Arc<str>, i32), usize>,
    /// The limit was reached and there is not room enough again.
    is_full: bool,
}

impl Held {
    pub fn add(&mut self, arrival: &Arrival) {
        self.records += 1;
        self.bytes += arrival.size();
        *self.sides.entry(side(arrival)).or_default() += 1;
    }

    pub fn remove(&mut self, arrival: &Arrival) {
        self.records -= 1;
        self.bytes -= arrival.size();
        let side = side(arrival);
        if let Some(count) = self.sides.get_mut(&side) {
            *count -= 1;
            if *count == 0 {
                self.sides.remove(&side);
            }
        }
    }

    pub fn records(&self) -> usize {
        self.records
    }

    /// Compares with the limits; returns whether they are exceeded twice.
    pub fn check(&mut self, limits: &Limits) -> bool {
        let reached = self.records >= limits.records || self.bytes >= limits.bytes;
        let roomy = self.records == 0
            || (self.records < limits.records / 4 * 3 && self.bytes < limits.bytes / 4 * 3);
        self.is_full = reached || self.is_full && !roomy;
        self.records > 0
            && (self.records > limits.records.saturating_mul(2)
                || self.bytes > limits.bytes.saturating_mul(2))
    }

    /// The topic that most of what waits was read from: its others come later.
    pub fn ahead(&self) -> BTreeSet<(Arc<str>, i32)> {
        if !self.is_full {
            return BTreeSet::new();
        }
        let mut topics: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for ((topic, _), count) in &self.sides {
            *topics.entry(topic).or_default() += count;
        }
        let Some((topic, _)) = topics.into_iter().max_by_key(|(_, count)| *count) else {
            return BTreeSet::new();
        };
        let sides = self.sides.keys().filter(|(of, _)| of == topic);
        sides.cloned().collect()
    }
}

fn side(arrival: &Arrival) -> (Arc<str>, i32) {
    let record = &arrival.cause.record;
    (record.topic.clone(), record.partition)
}
