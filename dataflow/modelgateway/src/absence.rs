//! A model that nobody serves.
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A model that was just loaded may be on its way to Envoy; one that stays away for longer is not waited for.
const GRACE: Duration = Duration::from_secs(2);
/// Who was not missed for so long is waited for anew.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// Since when a model is missed, and when last: so that of many requests only the first wait, and none of those behind
/// them for its whole time.
#[derive(Debug, Default)]
pub(crate) struct Absence(Mutex<Option<(Instant, Instant)>>);

impl Absence {
    /// It is missed; until when it is worth to ask again.
    pub(crate) fn missed(&self, now: Instant) -> Instant {
        let mut absence = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *absence {
            Some((since, last)) if now.duration_since(last) < FORGOTTEN => since,
            _ => now,
        };
        *absence = Some((since, now));
        since + GRACE
    }

    /// Somebody serves it.
    pub(crate) fn over(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_requests_wait() {
        let (absence, start) = (Absence::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(absence.missed(at(0)), at(2000));
        assert_eq!(absence.missed(at(1900)), at(2000));
        assert_eq!(absence.missed(at(4000)), at(2000));
        // As long as anybody asks it is known to be away; after that it may have come back.
        assert_eq!(absence.missed(at(8900)), at(2000));
        assert_eq!(absence.missed(at(13_900)), at(15_900));
        absence.over();
        assert_eq!(absence.missed(at(14_000)), at(16_000));
    }
}
