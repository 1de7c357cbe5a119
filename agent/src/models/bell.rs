//! Tells those who wait for memory that some may have become free.
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Rung when memory may have become free, if somebody listens.
#[derive(Default)]
pub struct Bell {
    listeners: AtomicUsize,
    rung: Notify,
}

impl Bell {
    pub fn ring(&self) {
        // Nobody listens while there is room for all: requests must not meet at one lock.
        if self.listeners.load(Ordering::SeqCst) > 0 {
            self.rung.notify_waiters();
        }
    }

    pub fn listen(&self) -> Listener<'_> {
        self.listeners.fetch_add(1, Ordering::SeqCst);
        Listener(self)
    }
}

/// Somebody who listens until this is dropped.
pub struct Listener<'a>(&'a Bell);

impl<'a> Listener<'a> {
    pub fn rung(&self) -> tokio::sync::futures::Notified<'a> {
        self.0.rung.notified()
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::SeqCst);
    }
}
