//! Where records wait, so that another process can put them there again.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use seldon_records::{Record, header};
use xxhash_rust::xxh3::Xxh3;

use crate::{Flow, arrival::Arrival, batches::Open, graph::Step};

/// A step and one request's record there: the same in each process.
pub type Place = u64;
/// Topic, partition and offset of a record.
pub type At = (Arc<str>, i32, i64);

impl Step {
    /// Where a record waits if it waits here.
    pub fn place(&self, arrival: &Arrival) -> Place {
        let visits = arrival.headers.get(header::VISITS);
        let visits = visits.map_or(&[][..], |visits| visits);
        let identity = arrival.identity.as_str().as_bytes();
        let mut digest = Xxh3::new();
        for part in [self.sink.as_bytes(), identity, visits] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.digest()
    }
}

impl Flow {
    /// The places of records that wait in some of those that they came to, and are done with the others. What waits
    /// wherever it came is not among them.
    pub fn waits(&self) -> HashMap<At, Vec<Place>> {
        let mut all: HashMap<At, Waiting> = HashMap::new();
        for live in self.versions.values().filter(|live| live.waiting > 0) {
            let mut waits = |record: &Record, place: Option<Place>| {
                let at = (record.topic.clone(), record.partition, record.offset);
                let waiting = all.entry(at).or_insert_with(|| {
                    let readers = live.graph.readers.get(&record.topic);
                    // A batch came apart: its members wait each for itself.
                    let is_batch = record.headers.has(header::BATCH);
                    Waiting {
                        comes_to: readers.filter(|_| !is_batch).map_or(usize::MAX, Vec::len),
                        places: BTreeSet::new(),
                    }
                });
                waiting.places.extend(place);
            };
            let steps = live.graph.steps.iter();
            for ((step, joins), batch) in steps.zip(&live.joins).zip(&live.batches) {
                for arrival in joins.waiting() {
                    waits(&arrival.cause.record, Some(step.place(arrival)));
                }
                // Held, but done here: told of even where it waits nowhere else.
                for arrival in joins.gone_on() {
                    waits(&arrival.cause.record, None);
                }
                for (input, place) in batch.iter().flat_map(Open::places) {
                    waits(&input.record, Some(*place));
                }
            }
        }
        let partly = all.into_iter();
        let partly = partly.filter(|(_, of)| of.places.len() < of.comes_to);
        partly
            .map(|(at, of)| (at, of.places.into_iter().collect()))
            .collect()
    }
}

struct Waiting {
    comes_to: usize,
    places: BTreeSet<Place>,
}
