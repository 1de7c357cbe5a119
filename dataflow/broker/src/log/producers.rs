//! What a partition knows of its producers: the last batches of each, open transactions and aborted ones.

use std::collections::{HashMap, VecDeque};

use kafka_protocol::ResponseError;

use crate::batch::Header;

/// Batches that a producer may have under way, and so may send again.
const RECENT: usize = 5;

#[derive(Debug, Default)]
pub(crate) struct Producers {
    known: HashMap<i64, Known>,
    /// The first offset of each open transaction.
    open: HashMap<i64, i64>,
    aborted: Vec<Aborted>,
}

#[derive(Debug)]
struct Known {
    epoch: i16,
    recent: VecDeque<Sent>,
    used_ms: i64,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    first: i32,
    last: i32,
    base: i64,
}

/// A transaction that readers of committed records leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Aborted {
    pub(crate) producer: i64,
    pub(crate) first: i64,
    /// The offset of its marker.
    pub(crate) last: i64,
}

/// Sequence numbers go back to 0 after the largest.
fn sequence_after(sequence: i32, steps: i32) -> i32 {
    sequence.wrapping_add(steps) & i32::MAX
}

impl Producers {
    /// Returns the place of the batch if it is there already.
    pub(crate) fn check(&self, batch: &Header) -> Result<Option<i64>, ResponseError> {
        let Some(known) = self.known.get(&batch.producer) else {
            return Ok(None);
        };
        if batch.producer < 0 {
            return Ok(None);
        }
        if batch.epoch < known.epoch {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        if batch.sequence < 0 {
            return Ok(None);
        }
        let out_of_order = Err(ResponseError::OutOfOrderSequenceNumber);
        if batch.epoch > known.epoch {
            return if batch.sequence == 0 {
                Ok(None)
            } else {
                out_of_order
            };
        }
        let last = sequence_after(batch.sequence, batch.last_delta);
        let same = |sent: &&Sent| sent.first == batch.sequence && sent.last == last;
        if let Some(sent) = known.recent.iter().find(same) {
            return Ok(Some(sent.base));
        }
        match known.recent.back() {
            Some(sent) if sequence_after(sent.last, 1) != batch.sequence => out_of_order,
            _ => Ok(None),
        }
    }

    /// Notes a batch that is in the log now, at `header.base`; a marker with whether it commits.
    pub(crate) fn note(&mut self, header: &Header, commits: bool) {
        if header.producer < 0 {
            return;
        }
        let known = self.known.entry(header.producer).or_insert_with(|| Known {
            epoch: header.epoch,
            recent: VecDeque::new(),
            used_ms: header.max_ms,
        });
        if header.epoch > known.epoch {
            known.epoch = header.epoch;
            known.recent.clear();
        }
        known.used_ms = known.used_ms.max(header.max_ms);
        if header.control() {
            if let Some(first) = self.open.remove(&header.producer)
                && !commits
            {
                self.aborted.push(Aborted {
                    producer: header.producer,
                    first,
                    last: header.base,
                });
            }
            return;
        }
        if header.sequence >= 0 {
            let last = sequence_after(header.sequence, header.last_delta);
            known.recent.push_back(Sent {
                first: header.sequence,
                last,
                base: header.base,
            });
            if known.recent.len() > RECENT {
                known.recent.pop_front();
            }
        }
        if header.transactional() {
            self.open.entry(header.producer).or_insert(header.base);
        }
    }

    pub(crate) fn has_open(&self, producer: i64) -> bool {
        self.open.contains_key(&producer)
    }

    /// The first offset that readers of committed records must not see.
    pub(crate) fn stable_end(&self, end: i64) -> i64 {
        self.open.values().copied().min().unwrap_or(end)
    }

    /// The aborted transactions with records between two offsets, the second excluded.
    pub(crate) fn aborted(&self, from: i64, to: i64) -> Vec<Aborted> {
        let within = |one: &&Aborted| one.last >= from && one.first < to;
        self.aborted.iter().filter(within).copied().collect()
    }

    pub(crate) fn any_aborted(&self, from: i64, to: i64) -> bool {
        self.aborted
            .iter()
            .any(|one| one.last >= from && one.first <= to)
    }

    /// Forgets what is about records that are gone, and producers not heard of since `ms`.
    pub(crate) fn forget(&mut self, start: i64, ms: i64) {
        self.aborted.retain(|one| one.last >= start);
        let open = &self.open;
        self.known
            .retain(|id, known| known.used_ms >= ms || open.contains_key(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(base: i64, epoch: i16, sequence: i32, count: i32) -> Header {
        Header {
            size: 100,
            base,
            attributes: 0,
            last_delta: count - 1,
            first_ms: 0,
            max_ms: 0,
            producer: 1,
            epoch,
            sequence,
            count,
        }
    }

    #[test]
    fn a_batch_is_taken_once_and_in_order() {
        let mut producers = Producers::default();
        for (base, sequence) in [(0, 0), (3, 3), (6, 6)] {
            assert_eq!(producers.check(&batch(base, 0, sequence, 3)), Ok(None));
            producers.note(&batch(base, 0, sequence, 3), false);
        }
        assert_eq!(producers.check(&batch(9, 0, 3, 3)), Ok(Some(3)));
        let out_of_order = Err(ResponseError::OutOfOrderSequenceNumber);
        assert_eq!(producers.check(&batch(9, 0, 12, 3)), out_of_order);
        assert_eq!(producers.check(&batch(9, 1, 9, 3)), out_of_order);
        assert_eq!(producers.check(&batch(9, 1, 0, 3)), Ok(None));
        producers.note(&batch(9, 1, 0, 3), false);
        let fenced = Err(ResponseError::InvalidProducerEpoch);
        assert_eq!(producers.check(&batch(12, 0, 9, 3)), fenced);
    }

    #[test]
    fn sequences_begin_again_after_the_largest() {
        let mut producers = Producers::default();
        producers.note(&batch(0, 0, i32::MAX - 1, 2), false);
        assert_eq!(producers.check(&batch(2, 0, 0, 1)), Ok(None));
        let wrapping = batch(0, 0, i32::MAX, 3);
        let mut other = Producers::default();
        other.note(&wrapping, false);
        assert_eq!(other.check(&batch(3, 0, 2, 1)), Ok(None));
    }
}
