//! Chance and virtual time: both come from the seed alone.
use std::{collections::BTreeMap, time::Duration};

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5e1d_0c0e)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// True so many times of a thousand.
    pub fn chance(&mut self, of_a_thousand: usize) -> bool {
        self.below(1000) < of_a_thousand
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        let span = usize::try_from(to - from + 1).unwrap();
        Duration::from_millis(from + self.below(span) as u64)
    }

    /// The time that a message takes: mostly short.
    pub fn delay(&mut self) -> Duration {
        match self.below(100) {
            0 => self.millis(5_000, 20_000),
            1..10 => self.millis(100, 2_000),
            _ => self.millis(1, 20),
        }
    }
}

/// What is to happen, by time; of one time in the order in which it was put in.
pub struct Queue<T> {
    pub now: Duration,
    waiting: BTreeMap<(Duration, u64), T>,
    count: u64,
}

impl<T> Queue<T> {
    pub fn new() -> Queue<T> {
        Queue {
            now: Duration::ZERO,
            waiting: BTreeMap::new(),
            count: 0,
        }
    }

    pub fn after(&mut self, span: Duration, what: T) {
        self.at(self.now + span, what);
    }

    pub fn at(&mut self, time: Duration, what: T) {
        self.count += 1;
        self.waiting.insert((time.max(self.now), self.count), what);
    }

    /// The next until `end`.
    pub fn pop(&mut self, end: Duration) -> Option<T> {
        let first = self.waiting.first_entry()?;
        if first.key().0 > end {
            return None;
        }
        let ((at, _), what) = first.remove_entry();
        self.now = at;
        Some(what)
    }
}
