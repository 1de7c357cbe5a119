//! How many partitions topics have: read from the broker, never assumed.
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Partitions(Arc<RwLock<HashMap<Arc<str>, i32>>>);

impl Partitions {
    /// Notes what the broker said.
    pub fn set(&self, topic: &str, count: i32) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(topic.into(), count);
    }

    /// Of a topic, where it is known.
    pub fn of(&self, topic: &str) -> Option<i32> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(topic).copied()
    }

    /// All that are known.
    pub fn topics(&self) -> Vec<String> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.keys().map(|topic| topic.to_string()).collect()
    }

    /// Forgets a topic.
    pub fn forget(&self, topic: &str) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(topic);
    }

    /// The partition to write to: the wanted one, around the topic's number of them.
    pub fn fit(&self, topic: &str, wanted: Option<i32>) -> Option<i32> {
        let wanted = wanted?;
        let count = self.of(topic).unwrap_or(1).max(1);
        Some(wanted.rem_euclid(count))
    }
}
