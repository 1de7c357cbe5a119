//! The time that the rules are told.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use seldon_core::Now;
use tokio::time::Instant;

/// Counts from its creation; follows tokio's clock, so that it can be paused.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(&self) -> Now {
        Now {
            monotonic: self.0.elapsed(),
            // A clock before 1970 is shown as 1970.
            wall: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }

    /// When a monotonic time comes.
    pub fn at(&self, monotonic: Duration) -> Instant {
        self.0 + monotonic
    }
}
