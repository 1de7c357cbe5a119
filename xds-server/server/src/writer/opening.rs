//! When Envoys are served after a start without any memory: a world that is not whole would take routes from Envoys that
//! still serve the world of before.
use std::time::Duration;

use seldon_ads::Audience;
use tokio::time::Instant;

/// No new agent for so long means that all are there.
const QUIET: Duration = Duration::from_secs(3);
/// How often it is looked at who is there.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Who has come since the start.
pub(super) struct Opening {
    /// Until then at most; none where the store says what to wait for.
    limit: Option<Instant>,
    last_agent: Option<Instant>,
    /// An agent came with models: there was a world before.
    had_models: bool,
}

impl Opening {
    /// `limit`: none where the store says what to wait for.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self {
            limit: limit.map(|span| Instant::now() + span),
            last_agent: None,
            had_models: false,
        }
    }

    pub(super) fn agent_came(&mut self, now: Instant, with_models: bool) {
        self.last_agent = Some(now);
        self.had_models |= with_models;
    }

    /// Whether Envoys may be served, as far as this can tell.
    pub(super) fn may_open(&self, audience: Audience, now: Instant) -> bool {
        let Some(limit) = self.limit else {
            return true;
        };
        let all_there = self.last_agent.is_some_and(|at| now >= at + QUIET);
        // The Envoy is new and no agent has anything: so is the world.
        let fresh = audience.subscribed && !audience.returning && !self.had_models;
        now >= limit || all_there || fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_of_before_is_waited_for_and_a_new_one_is_not() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let nobody = Audience::default();
        let new = Audience {
            subscribed: true,
            returning: false,
        };
        let old = Audience {
            subscribed: true,
            returning: true,
        };
        assert!(Opening::new(None).may_open(old, at(0)));
        let mut opening = Opening::new(Some(Duration::from_secs(60)));
        assert!(opening.may_open(new, at(1)) && !opening.may_open(nobody, at(59)));
        assert!(!opening.may_open(old, at(59)) && opening.may_open(old, at(61)));
        opening.agent_came(at(5), true);
        assert!(!opening.may_open(new, at(6)) && !opening.may_open(old, at(7)));
        opening.agent_came(at(7), true);
        assert!(!opening.may_open(old, at(9)) && opening.may_open(old, at(10)));
    }
}
