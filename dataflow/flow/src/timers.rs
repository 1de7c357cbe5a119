//! What is due when, in the order of time and then of making.
use std::collections::BTreeMap;

/// A place in the order.
pub type Due = (i64, u64);

/// Ordered by when they are due.
#[derive(Debug)]
pub struct Timers<T> {
    due: BTreeMap<Due, T>,
    made: u64,
}

impl<T> Timers<T> {
    pub fn new() -> Self {
        Self {
            due: BTreeMap::new(),
            made: 0,
        }
    }

    pub fn add(&mut self, at_ms: i64, what: T) -> Due {
        self.made += 1;
        let due = (at_ms, self.made);
        self.due.insert(due, what);
        due
    }

    pub fn remove(&mut self, due: Due) {
        self.due.remove(&due);
    }

    pub fn first(&self) -> Option<i64> {
        self.due.first_key_value().map(|((at_ms, _), _)| *at_ms)
    }

    /// Takes the first one that is due.
    pub fn pop(&mut self, now_ms: i64) -> Option<T> {
        let entry = self.due.first_entry()?;
        (entry.key().0 <= now_ms).then(|| entry.remove())
    }

    /// Takes the first that is wanted, due or not.
    pub fn pop_where(&mut self, wanted: impl Fn(&T) -> bool) -> Option<T> {
        let due = *self.due.iter().find(|(_, what)| wanted(what))?.0;
        self.due.remove(&due)
    }
}
