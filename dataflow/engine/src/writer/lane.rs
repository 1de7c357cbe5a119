//! What is written to one partition, in order. Pure.
use std::collections::VecDeque;

/// The queue of one partition. After a failure nothing more is sent until all that was sent is answered; then what
/// failed is sent again, before what waits: one at a time, until one is delivered. Each failure of an idempotent client
/// holds up all that it writes to other partitions.
#[derive(Debug)]
pub struct Lane<T> {
    /// The number of the first slot.
    first: u64,
    slots: VecDeque<Slot<T>>,
    /// Slots at the end that wait.
    waiting: usize,
    sent: usize,
    failed: usize,
    /// How often in a row it was tried in vain.
    rounds: u32,
}

#[derive(Debug)]
enum Slot<T> {
    Waiting(T),
    Sent(T),
    Failed(T),
    Done,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            first: 0,
            slots: VecDeque::new(),
            waiting: 0,
            sent: 0,
            failed: 0,
            rounds: 0,
        }
    }
}

impl<T> Lane<T> {
    /// Adds one at the end.
    pub fn push(&mut self, item: T) {
        self.slots.push_back(Slot::Waiting(item));
        self.waiting += 1;
    }

    /// What may be sent now, with its number.
    pub fn next(&mut self) -> Option<(u64, &mut T)> {
        let only_tries = self.rounds > 0 && self.sent > 0;
        if self.failed > 0 || self.waiting == 0 || only_tries {
            return None;
        }
        let index = self.slots.len() - self.waiting;
        let number = self.first + index as u64;
        match &mut self.slots[index] {
            Slot::Waiting(item) => Some((number, item)),
            _ => None,
        }
    }

    /// What [`Lane::next`] gave was sent.
    pub fn sent(&mut self) {
        let index = self.slots.len() - self.waiting;
        self.turn(index, Slot::Sent);
        self.waiting -= 1;
        self.sent += 1;
    }

    /// It was delivered.
    pub fn delivered(&mut self, number: u64) -> Option<T> {
        let index = self.index(number)?;
        let Slot::Sent(item) = std::mem::replace(&mut self.slots[index], Slot::Done) else {
            return None;
        };
        self.sent -= 1;
        self.rounds = 0;
        while matches!(self.slots.front(), Some(Slot::Done)) {
            self.slots.pop_front();
            self.first += 1;
        }
        Some(item)
    }

    /// It was not delivered, as far as is known.
    pub fn failed(&mut self, number: u64) -> Option<&mut T> {
        let index = self.index(number)?;
        self.turn(index, Slot::Failed);
        self.sent -= 1;
        self.failed += 1;
        match &mut self.slots[index] {
            Slot::Failed(item) => Some(item),
            _ => None,
        }
    }

    /// Lets what failed wait for its turn again, once nothing is on its way.
    pub fn repair(&mut self) {
        if self.failed == 0 || self.sent > 0 {
            return;
        }
        let before = self.slots.len();
        self.slots.retain(|slot| !matches!(slot, Slot::Done));
        // No number of before is on its way, so numbers may be given anew.
        self.first += (before - self.slots.len()) as u64;
        for index in 0..self.slots.len() {
            self.turn(index, Slot::Waiting);
        }
        (self.waiting, self.failed) = (self.slots.len(), 0);
        self.rounds = self.rounds.saturating_add(1);
    }

    /// How often in a row it was tried in vain.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Whether something is to be sent again.
    pub fn has_failed(&self) -> bool {
        self.failed > 0
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn index(&self, number: u64) -> Option<usize> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        (index < self.slots.len()).then_some(index)
    }

    fn turn(&mut self, index: usize, into: impl FnOnce(T) -> Slot<T>) {
        let slot = &mut self.slots[index];
        *slot = match std::mem::replace(slot, Slot::Done) {
            Slot::Waiting(item) | Slot::Sent(item) | Slot::Failed(item) => into(item),
            Slot::Done => Slot::Done,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each item is delivered once; one that failed comes before everything that was not sent when it did.
        #[test]
        fn nothing_is_lost(fails in prop::collection::vec(any::<bool>(), 1..60), burst in 1..9_usize) {
            let mut lane = Lane::default();
            for item in 0..fails.len() {
                lane.push(item);
            }
            let (mut delivered, mut tried) = (Vec::new(), vec![0; fails.len()]);
            let (mut failed, mut sent): (Vec<(usize, usize)>, usize) = (Vec::new(), 0);
            while !lane.is_empty() {
                let mut on_way = Vec::new();
                while on_way.len() < burst {
                    let Some((number, item)) = lane.next() else { break };
                    on_way.push((number, *item));
                    tried[*item] += 1;
                    sent = sent.max(*item);
                    lane.sent();
                }
                prop_assert!(!on_way.is_empty());
                prop_assert!(lane.rounds() == 0 || on_way.len() == 1);
                for (number, item) in on_way {
                    if fails[item] && tried[item] == 1 {
                        prop_assert_eq!(lane.failed(number), Some(&mut item.clone()));
                        failed.push((item, sent));
                        prop_assert!(lane.next().is_none());
                    } else {
                        prop_assert_eq!(lane.delivered(number), Some(item));
                        failed.retain(|(other, _)| *other != item);
                        prop_assert!(failed.iter().all(|(_, sent)| item <= *sent));
                        delivered.push(item);
                    }
                }
                lane.repair();
            }
            delivered.sort_unstable();
            prop_assert_eq!(delivered, (0..fails.len()).collect::<Vec<_>>());
        }
    }
}
