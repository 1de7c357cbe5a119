//! Who is told of changed status.
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::Names;

/// What a subscriber is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Models,
    Servers,
    /// Replicas that servers should have.
    Scaling,
    Experiments,
    Pipelines,
}

/// Names whose status changed and was not fetched yet. A slow subscriber skips states, never names, and what waits for
/// it is bounded by the number of names.
#[derive(Default)]
struct Pending {
    names: Mutex<Names>,
    wake: Notify,
}

/// One subscriber's end. Dropping it ends the subscription.
pub struct Subscription(Arc<Pending>);

impl Subscription {
    /// Waits for changes and takes up to `most` of their names.
    pub async fn next(&self, most: usize) -> Vec<Arc<str>> {
        loop {
            let waiting = self.0.wake.notified();
            let taken = self.0.take(most);
            if !taken.is_empty() {
                return taken;
            }
            waiting.await;
        }
    }
}

impl Pending {
    fn add(&self, names: &Names) {
        let mut waiting = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(names.iter().cloned());
        drop(waiting);
        self.wake.notify_one();
    }

    fn take(&self, most: usize) -> Vec<Arc<str>> {
        let mut waiting = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(name) = waiting.pop_first()
        {
            taken.push(name);
        }
        taken
    }
}

#[derive(Default)]
pub(super) struct Subscribers(Vec<(Kind, Arc<Pending>)>);

impl Subscribers {
    /// Begins with all names.
    pub(super) fn add(&mut self, kind: Kind, names: &Names) -> Subscription {
        let pending = Arc::new(Pending::default());
        pending.add(names);
        self.0.push((kind, pending.clone()));
        Subscription(pending)
    }

    pub(super) fn tell(&mut self, kind: Kind, names: &Names) {
        if names.is_empty() {
            return;
        }
        self.0.retain(|(_, pending)| Arc::strong_count(pending) > 1);
        for (_, pending) in self.0.iter().filter(|(k, _)| *k == kind) {
            pending.add(names);
        }
    }
}
