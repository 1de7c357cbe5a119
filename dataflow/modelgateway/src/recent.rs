//! What was seen lately.
use std::collections::{HashSet, VecDeque};

use seldon_records::{Identity, Record, header};

/// Enough for all that a crash of an engine repeats.
const REMEMBERED: usize = 100_000;

/// Requests that were seen lately, so that repeats of them are not asked again.
#[derive(Default)]
pub(crate) struct Recent {
    seen: HashSet<u128>,
    order: VecDeque<u128>,
}

impl Recent {
    /// Whether this is the first time; a model may be reached several times by one request, each with its own visits.
    pub(crate) fn is_new(&mut self, model: &str, record: &Record) -> bool {
        let visits = record.headers.text(header::VISITS).unwrap_or_default();
        let id = Identity::of(record);
        let parts = [id.as_str().as_bytes(), model.as_bytes(), visits.as_bytes()];
        let derived = Identity::derived(&parts);
        let number = u128::from_str_radix(derived.as_str(), 16).unwrap_or_default();
        if !self.seen.insert(number) {
            return false;
        }
        self.order.push_back(number);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}
